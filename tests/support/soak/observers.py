"""Observers of the soak test: slow ones, failing ones, and observers of single tasks."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from random import Random

import anyio
from anyio.lowlevel import checkpoint

from background import Observer, TaskAdded, TaskFailed, TaskStarted, TaskSucceeded


class SoakError(Exception):
    """The error of all deliberate failures."""


class HookCalls:
    """Counts the finished calls of `async def` hooks."""

    def __init__(self) -> None:
        self.finished = 0


class Slow(Observer):
    """Has slow `async def` hooks; a few of their calls are very slow."""

    def __init__(self, random: Random, calls: HookCalls) -> None:
        self._random = random
        self._calls = calls

    async def _sleep(self) -> None:
        roll = self._random.random()
        await anyio.sleep(0.5 if roll < 0.0005 else 0.001 if roll < 0.02 else 0)
        self._calls.finished += 1

    async def on_task_added(self, event: TaskAdded) -> None:
        await self._sleep()

    async def on_task_succeeded(self, event: TaskSucceeded) -> None:
        await self._sleep()


class Broken(Observer):
    """Raises in its hooks and in every part of its context manager."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.raised = 0
        self.entered = 0

    def _maybe_raise(self, probability: float) -> None:
        if self._random.random() < probability:
            self.raised += 1
            raise SoakError("in an observer")

    def on_task_added(self, event: TaskAdded) -> None:
        self._maybe_raise(0.1)

    def on_task_failed(self, event: TaskFailed) -> None:
        self._maybe_raise(1)

    @contextmanager
    def _context(self) -> Generator[None]:
        self._maybe_raise(0.05)
        self.entered += 1
        try:
            yield
        finally:
            self.entered -= 1
            self._maybe_raise(0.05)

    def around_task(self, event: TaskStarted) -> AbstractContextManager[object]:
        self._maybe_raise(0.05)
        return self._context()


class TaskObserver(Observer):
    """An observer of single tasks."""

    def __init__(self, calls: HookCalls) -> None:
        self._calls = calls

    async def on_task_started(self, event: TaskStarted) -> None:
        await checkpoint()
        self._calls.finished += 1
