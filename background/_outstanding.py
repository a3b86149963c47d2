"""The tasks that have not ended yet, and waiting until there are none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import anyio

from ._handle import TaskHandle
from ._states import TaskKind


class Outstanding:
    """Every outstanding task of one manager, by id, oldest first."""

    def __init__(self) -> None:
        self.handles: dict[str, TaskHandle[Any]] = {}
        self._counts = dict.fromkeys(TaskKind, 0)
        self._exempt: Counter[TaskHandle[Any]] = Counter()
        self._waiters: dict[anyio.Event, TaskKind | None] = {}

    def add(self, handle: TaskHandle[Any]) -> None:
        self.handles[handle.id] = handle
        self._counts[handle.kind] += 1

    def remove(self, handle: TaskHandle[Any]) -> None:
        del self.handles[handle.id]
        self._counts[handle.kind] -= 1

    def count(self, kind: TaskKind | None = None) -> int:
        return len(self.handles) if kind is None else self._counts[kind]

    def left(self, kind: TaskKind | None = None) -> list[TaskHandle[Any]]:
        """Return those to wait for: all but the exempt ones."""
        return [
            handle
            for handle in self.handles.values()
            if (kind is None or handle.kind is kind) and handle not in self._exempt
        ]

    @contextmanager
    def exempt(self, handle: TaskHandle[Any] | None) -> Generator[None]:
        """Let nobody wait for this task, as it waits for the others itself."""
        if handle is None or self.handles.get(handle.id) is not handle:
            yield
            return
        self._exempt[handle] += 1
        self.changed()
        try:
            yield
        finally:
            self._exempt[handle] -= 1
            if not self._exempt[handle]:
                del self._exempt[handle]

    def give_up(self, handle: TaskHandle[Any]) -> None:
        """Let nobody wait for this task any more."""
        self._exempt[handle] += 1

    def _is_idle(self, kind: TaskKind | None) -> bool:
        return self.count(kind) <= len(self._exempt) and not self.left(kind)

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
