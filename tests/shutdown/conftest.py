"""What the tests of leaving share."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.leaving import LOOPS

from background.testing import VirtualTimeLoop


@pytest.fixture(params=LOOPS)
def run(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Callable[[Callable[[], Awaitable[Any]]], Any]:
    """Run as `asyncio.run` does; fail if that hangs, or if asyncio has something to complain of."""

    def run_it(main: Callable[[], Awaitable[Any]]) -> Any:
        async def guarded() -> Any:
            return await main()

        with asyncio.Runner(loop_factory=request.param) as runner:
            loop = runner.get_loop()
            loop.call_later(10_000 if request.param is VirtualTimeLoop else 10, loop.stop)
            return runner.run(guarded())

    yield run_it  # type: ignore[misc]
    gc.collect()
    complaints = [record for record in caplog.records if record.name == "asyncio"]
    assert complaints == []
