"""The tasks that have not ended yet, and waiting until there are none."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from .._states import TaskKind
from .handle import TaskHandle


class Absence(IntEnum):
    """What a task is busy with while others need not wait for it: it waits for them itself.

    Who ignores one kind ignores the lower ones too.
    """

    NONE = 0
    CLOSING = 1
    WAITING = 2


class Outstanding:
    """Every outstanding task of one manager, by id, oldest first."""

    def __init__(self) -> None:
        self.handles: dict[str, TaskHandle[Any]] = {}
        self.loops = 0
        self._absent: dict[TaskHandle[Any], list[Absence]] = {}
        self._stuck: set[TaskHandle[Any]] = set()
        self._waiters: dict[anyio.Event, tuple[TaskKind | None, Absence]] = {}

    def add(self, handle: TaskHandle[Any]) -> None:
        self.handles[handle.id] = handle
        if handle.task.kind is TaskKind.LOOP:
            self.loops += 1

    def remove(self, handle: TaskHandle[Any]) -> None:
        del self.handles[handle.id]
        if handle.task.kind is TaskKind.LOOP:
            self.loops -= 1
        if self._stuck:
            self._stuck.discard(handle)

    @property
    def one_offs(self) -> int:
        return len(self.handles) - self.loops

    def count(self, kind: TaskKind | None = None) -> int:
        if kind is None:
            return len(self.handles)
        return self.loops if kind is TaskKind.LOOP else self.one_offs

    def left(
        self, kind: TaskKind | None = None, *, ignoring: Absence = Absence.NONE
    ) -> list[TaskHandle[Any]]:
        """Return those to wait for; never the stuck ones."""
        return [
            handle
            for handle in self.handles.values()
            if (kind is None or handle.kind is kind)
            and handle not in self._stuck
            and not any(absence <= ignoring for absence in self._absent.get(handle, ()))
        ]

    @contextmanager
    def absent(self, handle: TaskHandle[Any] | None, absence: Absence) -> Generator[bool]:
        """Mark a task as waiting for the others; yields whether it is one of this manager's."""
        if handle is None or self.handles.get(handle.id) is not handle:
            yield False
            return
        self._absent.setdefault(handle, []).append(absence)
        self.changed()
        try:
            yield True
        finally:
            absences = self._absent.get(handle, [])
            if absence in absences:
                absences.remove(absence)
            if not absences:
                self._absent.pop(handle, None)

    def end_absences(self, stuck: Iterable[TaskHandle[Any]]) -> None:
        """Wait for every task again, but not for those that are stuck."""
        self._absent.clear()
        self._stuck.update(stuck)
        self.changed()

    def _is_idle(self, kind: TaskKind | None, ignoring: Absence) -> bool:
        not_waited_for = len(self._absent) + len(self._stuck)
        return self.count(kind) <= not_waited_for and not self.left(kind, ignoring=ignoring)

    def changed(self) -> None:
        """Wake those for whom nothing is left to wait for."""
        if not self._waiters:
            return
        for event, (kind, ignoring) in list(self._waiters.items()):
            if self._is_idle(kind, ignoring):
                event.set()

    async def idle(self, kind: TaskKind | None = None, *, ignoring: Absence = Absence.NONE) -> None:
        """Wait until nothing of that kind is left; what comes meanwhile is waited for too."""
        while not self._is_idle(kind, ignoring):
            event = anyio.Event()
            self._waiters[event] = kind, ignoring
            try:
                await event.wait()
            finally:
                del self._waiters[event]
            await checkpoint()  # others were woken by the same end, and may submit tasks

    async def idle_beside(self, handle: TaskHandle[Any] | None, kind: TaskKind) -> None:
        """As `idle`, called inside a task, which is not waited for; `None`: outside of any."""
        with self.absent(handle, Absence.WAITING) as inside:
            await self.idle(kind, ignoring=Absence.WAITING if inside else Absence.NONE)
