"""Hooks into single task steps of the asyncio and trio event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from itertools import count
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import trio

from background.testing import VirtualTimeLoop


class When(StrEnum):
    """The two ends of a suspension."""

    SUSPENDED = "as it is suspended"
    WOKEN = "as it is woken"  # scheduled to run again, but not yet resumed


class Step(NamedTuple):
    """One end of the n-th suspension of a task; 0 is before its first step."""

    task: int  # number in the order of their starts
    name: str
    number: int
    when: When


class Steps(trio.abc.Instrument):
    """Records the suspensions of every task started while it is active; acts at one of them."""

    def __init__(self, at: Step | None = None) -> None:
        self.act: Callable[[Any, str], object] = lambda task, name: None
        self.active = False
        self.reached: list[Step] = []
        self.errors: list[Exception] = []
        self._at = at
        self.acted = False
        self._numbers = count()
        self._started: WeakSet[Any] = WeakSet()
        self._tasks: WeakKeyDictionary[Any, Step] = WeakKeyDictionary()

    def begins(self, task: Any, name: str) -> None:
        if task not in self._started:
            self._started.add(task)
            if self.active:
                self._tasks[task] = Step(next(self._numbers), name, 0, When.WOKEN)

    def woken(self, task: Any) -> None:
        self._record(task, When.WOKEN)

    def suspended(self, task: Any) -> None:
        if task in self._tasks:
            step = self._tasks[task]
            self._tasks[task] = step._replace(number=step.number + 1)
        self._record(task, When.SUSPENDED)

    def _record(self, task: Any, when: When) -> None:
        if self.active and task in self._tasks:
            step = self._tasks[task]._replace(when=when)
            self.reached.append(step)
            if step == self._at and not self.acted:
                self.acted = True
                try:
                    self.act(task, step.name)
                except Exception as error:  # an event loop would only log it
                    self.errors.append(error)

    # On trio:

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.begins(task, task.name)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.woken(task)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self._tasks.pop(task, None)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.suspended(task)


class SteppingLoop(VirtualTimeLoop):
    """An asyncio event loop in virtual time that reports the steps of its tasks."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        super().__init__()

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        task = getattr(callback, "__self__", None)
        if isinstance(task, asyncio.Task):
            self._steps.begins(task, task.get_name())
            callback = partial(self._step, task, callback)
        return super().call_soon(callback, *args, context=context)

    def _step(self, task: asyncio.Task[Any], step: Callable[..., None], *args: Any) -> None:
        self._steps.woken(task)
        step(*args)
        if not task.done():
            self._steps.suspended(task)
