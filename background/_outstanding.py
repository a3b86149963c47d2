"""The tasks that have not ended yet, and waiting until there are none."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from ._handle import TaskHandle
from ._states import TaskKind


class Outstanding:
    """Every outstanding task of one manager, by id, oldest first."""

    def __init__(self) -> None:
        self.handles: dict[str, TaskHandle[Any]] = {}
        self._counts = dict.fromkeys(TaskKind, 0)
        self._exempt: dict[TaskHandle[Any], int] = {}
        self._stuck: set[TaskHandle[Any]] = set()
        self._waiters: dict[anyio.Event, TaskKind | None] = {}

    def add(self, handle: TaskHandle[Any]) -> None:
        self.handles[handle.id] = handle
        self._counts[handle.kind] += 1

    def remove(self, handle: TaskHandle[Any]) -> None:
        del self.handles[handle.id]
        self._stuck.discard(handle)
        self._counts[handle.kind] -= 1

    def count(self, kind: TaskKind | None = None) -> int:
        return len(self.handles) if kind is None else self._counts[kind]

    def left(self, kind: TaskKind | None = None) -> list[TaskHandle[Any]]:
        """Return those to wait for: neither exempt nor stuck."""
        return [
            handle
            for handle in self.handles.values()
            if (kind is None or handle.kind is kind)
            and handle not in self._exempt
            and handle not in self._stuck
        ]

    @contextmanager
    def exempt(self, handle: TaskHandle[Any] | None) -> Generator[None]:
        """Let nobody wait for this task, as it waits for the others itself."""
        if handle is None or self.handles.get(handle.id) is not handle:
            yield
            return
        self._exempt[handle] = self._exempt.get(handle, 0) + 1
        self.changed()
        try:
            yield
        finally:
            if handle in self._exempt:
                self._exempt[handle] -= 1
                if not self._exempt[handle]:
                    del self._exempt[handle]

    def end_exemptions(self, stuck: Iterable[TaskHandle[Any]]) -> None:
        """Wait for every task again, but not for those that are stuck."""
        self._exempt.clear()
        self._stuck.update(stuck)
        self.changed()

    def _is_idle(self, kind: TaskKind | None) -> bool:
        not_waited_for = len(self._exempt) + len(self._stuck)
        return self.count(kind) <= not_waited_for and not self.left(kind)

    def changed(self) -> None:
        """Wake those for whom nothing is left to wait for."""
        for event, kind in list(self._waiters.items()):
            if self._is_idle(kind):
                event.set()

    async def idle(self, kind: TaskKind | None = None) -> None:
        """Wait until nothing of that kind is left; what comes meanwhile is waited for too."""
        while not self._is_idle(kind):
            event = anyio.Event()
            self._waiters[event] = kind
            try:
                await event.wait()
            finally:
                del self._waiters[event]
            await checkpoint()  # others were woken by the same end, and may submit tasks
