"""The outstanding tasks, and waits for their end."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from .._states import TaskKind
from .handle import TaskHandle, state_of
from .state import TaskState


class WaitExemption(IntEnum):
    """The reason why waiters ignore a task: the task itself waits for other tasks.

    A waiter that accepts one exemption accepts the lower ones, too.
    """

    NONE = 0
    CLOSING = 1
    WAITING = 2


class TaskRegistry:
    """Every outstanding task of one manager, by id, oldest first."""

    def __init__(self) -> None:
        self.handles: dict[str, TaskHandle[Any]] = {}
        self.loops = 0
        self._exempt: dict[TaskState, list[WaitExemption]] = {}
        self._stuck: set[TaskState] = set()
        self._waiters: dict[anyio.Event, tuple[TaskKind | None, WaitExemption]] = {}

    def add(self, handle: TaskHandle[Any], state: TaskState) -> None:
        """Add a task that was submitted."""
        self.handles[state.id] = handle
        if state.task.kind is TaskKind.LOOP:
            self.loops += 1

    def remove(self, state: TaskState) -> TaskHandle[Any]:
        """Remove a task that has ended, and return its handle."""
        if state.task.kind is TaskKind.LOOP:
            self.loops -= 1
        if self._stuck:
            self._stuck.discard(state)
        return self.handles.pop(state.id)

    def states(self) -> list[TaskState]:
        """Return the states of all outstanding tasks."""
        return [state_of(handle) for handle in self.handles.values()]

    def count(self, kind: TaskKind | None = None) -> int:
        """Return the number of outstanding tasks of a kind."""
        if kind is None:
            return len(self.handles)
        return self.loops if kind is TaskKind.LOOP else len(self.handles) - self.loops

    def left(
        self, kind: TaskKind | None = None, *, accept: WaitExemption = WaitExemption.NONE
    ) -> list[TaskHandle[Any]]:
        """Return the tasks to wait for, which are neither stuck nor exempt."""
        return [
            handle
            for handle in self.handles.values()
            if (kind is None or handle.kind is kind) and self._is_left(state_of(handle), accept)
        ]

    def waits_for(self, state: TaskState, *, accept: WaitExemption) -> bool:
        """Return whether a waiter waits for a task."""
        return self._is_outstanding(state) and self._is_left(state, accept)

    def _is_outstanding(self, state: TaskState) -> bool:
        handle = self.handles.get(state.id)
        return handle is not None and state_of(handle) is state

    def _is_left(self, state: TaskState, accept: WaitExemption) -> bool:
        exemptions = self._exempt.get(state, ())
        return state not in self._stuck and not any(item <= accept for item in exemptions)

    @contextmanager
    def exempt(self, state: TaskState | None, exemption: WaitExemption) -> Generator[bool]:
        """Exempt a task that waits for other tasks; yield whether it belongs to this manager."""
        if state is None or not self._is_outstanding(state):
            yield False
            return
        self._exempt.setdefault(state, []).append(exemption)
        self.changed()
        try:
            yield True
        finally:
            exemptions = self._exempt.get(state, [])
            if exemption in exemptions:
                exemptions.remove(exemption)
            if not exemptions:
                self._exempt.pop(state, None)

    def end_exemptions(self, stuck: Iterable[TaskHandle[Any]]) -> None:
        """End all exemptions, and never wait for tasks that are stuck."""
        self._exempt.clear()
        self._stuck.update(map(state_of, stuck))
        self.changed()

    def _is_idle(self, kind: TaskKind | None, accept: WaitExemption) -> bool:
        not_waited_for = len(self._exempt) + len(self._stuck)
        return self.count(kind) <= not_waited_for and not self.left(kind, accept=accept)

    def changed(self) -> None:
        """Wake the waiters that have nothing left to wait for."""
        if not self._waiters:
            return
        for event, (kind, accept) in list(self._waiters.items()):
            if self._is_idle(kind, accept):
                event.set()

    async def idle(
        self, kind: TaskKind | None = None, *, accept: WaitExemption = WaitExemption.NONE
    ) -> None:
        """Wait until no task of a kind is left, including tasks that are added meanwhile."""
        while not self._is_idle(kind, accept):
            event = anyio.Event()
            self._waiters[event] = kind, accept
            try:
                await event.wait()
            finally:
                del self._waiters[event]
            await checkpoint()  # other waiters, woken by the same end, may submit tasks

    async def idle_except(self, state: TaskState | None, kind: TaskKind) -> None:
        """Wait like `idle`, but not for the calling task.

        Args:
            state: The calling task; `None` outside of tasks.
            kind: The kind of the tasks to wait for.
        """
        with self.exempt(state, WaitExemption.WAITING) as inside:
            accept = WaitExemption.WAITING if inside else WaitExemption.NONE
            await self.idle(kind, accept=accept)
