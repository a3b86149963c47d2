"""Fixtures of the tests of leaving."""

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
    """Return a function like `asyncio.run`; fail if it hangs or if asyncio logs anything."""

    def run_main(main: Callable[[], Awaitable[Any]]) -> Any:
        async def guarded() -> Any:
            return await main()

        with asyncio.Runner(loop_factory=request.param) as runner:
            loop = runner.get_loop()
            loop.call_later(10_000 if request.param is VirtualTimeLoop else 10, loop.stop)
            return runner.run(guarded())

    yield run_main  # type: ignore[misc]
    gc.collect()
    records = [record for record in caplog.records if record.name == "asyncio"]
    assert records == []
