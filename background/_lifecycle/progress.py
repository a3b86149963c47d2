"""Records of what a closing waits for."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio

from .._execution.handle import TaskHandle
from .._states import TaskStatus
from .._support import stacks
from .._support.log import log

_INTERVAL = 10.0  # seconds between two records
_MOST_TASKS = 3  # that a record describes
_MOST_LETTERS = 60  # of a name in a record


async def wait_and_log(
    wait: Callable[[], Awaitable[None]], owner: str, left: Callable[[], Sequence[TaskHandle[Any]]]
) -> None:
    """Wait, and log at intervals which tasks are left.

    Args:
        wait: Returns once no task is left. It is cancelled and called again at every record.
        owner: What waits, for the record.
        left: Returns the tasks that it waits for.
    """
    while True:
        with anyio.move_on_after(_INTERVAL):
            await wait()
            return
        if handles := left():
            log(logging.INFO, "%s still waits for %s", owner, _described(handles))


def _described(handles: Sequence[TaskHandle[Any]]) -> str:
    """Return the number of tasks, and the name and the place of the oldest ones."""
    tasks = [_task(handle) for handle in handles[:_MOST_TASKS]]
    if len(handles) > _MOST_TASKS:
        tasks.append(f"{len(handles) - _MOST_TASKS} more")
    return f"{len(handles)} task{'' if len(handles) == 1 else 's'}: {', '.join(tasks)}"


def _task(handle: TaskHandle[Any]) -> str:
    name = handle.name[:_MOST_LETTERS]
    quoted = repr(name if len(handle.name) <= _MOST_LETTERS else f"{name}…")
    if handle.status is not TaskStatus.RUNNING:
        return f"{quoted} ({handle.status})"
    place = stacks.place(handle.stack())
    return f"{quoted} at {place}" if place else quoted
