"""What is special about the broker in memory."""

from __future__ import annotations

from typing import Any

import anyio
from test_brokers import claimed, message

from background.queues.memory import MemoryBroker


def test_made_before_there_is_an_event_loop(anyio_backend: Any) -> None:
    """Which is where modules make their queues."""
    broker = MemoryBroker()

    async def main() -> list[str]:
        async with anyio.create_task_group() as group:
            group.start_soon(broker.wait_for_work, ["q"], 1000)
            await anyio.sleep(1)
            await broker.enqueue([message()])
        return await claimed(broker)

    name, options = anyio_backend
    assert anyio.run(main, backend=name, backend_options=options) == ["one"]
