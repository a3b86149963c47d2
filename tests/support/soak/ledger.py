"""Accounts of the soak test: every submission, the order of its events, and its single end."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from background import (
    ManagerClosed,
    ManagerClosing,
    Observer,
    TaskAdded,
    TaskCancelled,
    TaskEvent,
    TaskExpired,
    TaskFailed,
    TaskHandle,
    TaskKind,
    TaskRetrying,
    TaskStalled,
    TaskStarted,
    TaskStatus,
    TaskSucceeded,
)

_WORST = 20  # maximum of printed faults

LOOP = TaskKind.LOOP

# The states of a task after which an event may occur.
_WAITING = ("added", "between iterations")
_UNDER_WAY = ("started", "retrying")
_OUTSTANDING = (*_WAITING, *_UNDER_WAY)


@dataclass
class Totals:
    """Totals over all managers."""

    submissions: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    events: int = 0
    managers: Counter[str] = field(default_factory=Counter)
    stuck: int = 0
    dropped: int = 0
    hook_errors: int = 0
    lost: int = 0
    doubled: int = 0
    disordered: int = 0
    faults: list[str] = field(default_factory=list)

    def fault(self, text: str) -> None:
        if len(self.faults) < _WORST:
            self.faults.append(text)


class Ledger(Observer):
    """The events of one manager; `balance()` compares them with the submissions."""

    def __init__(self, totals: Totals) -> None:
        self.accepted: list[TaskHandle[Any]] = []  # appended to by several threads
        self._totals = totals
        self._states: dict[str, tuple[str, int]] = {}  # latest event and iteration by task
        self._added: Counter[str] = Counter()
        self._ended: Counter[tuple[str, TaskStatus]] = Counter()
        self.successes = 0
        self.additions = 0
        self.task_observer_calls = 0
        self.closings: list[str] = []

    def _step(self, event: TaskEvent, name: str, after: tuple[str, ...]) -> None:
        self._totals.events += 1
        state, iteration = self._states.get(event.id, ("nothing", 0))
        if state not in after:
            self._totals.disordered += 1
            self._totals.fault(f"{name} after {state}: {event}")
        expected = iteration + (state in _WAITING and name == "started" and event.kind is LOOP)
        if event.iteration != expected:
            self._totals.disordered += 1
            self._totals.fault(f"iteration {event.iteration} after {iteration}: {event}")
        self._states[event.id] = name, event.iteration

    def _end(self, event: TaskEvent, status: TaskStatus, after: tuple[str, ...]) -> None:
        if event.id not in self._states:
            self._totals.doubled += 1
            self._totals.fault(f"an end without a task: {event}")
        self._step(event, status, after)
        del self._states[event.id]
        self._ended[event.id, status] += 1
        self._totals.ends[status] += 1

    def on_task_added(self, event: TaskAdded) -> None:
        self.additions += 1
        self._step(event, "added", ("nothing",))
        self._added[event.id] += 1

    def on_task_started(self, event: TaskStarted) -> None:
        self.task_observer_calls += event.meta.get("observers", 0)
        self._step(event, "started", _WAITING)

    def on_task_retrying(self, event: TaskRetrying) -> None:
        self._step(event, "retrying", _UNDER_WAY)

    def on_task_stalled(self, event: TaskStalled) -> None:
        state, _ = self._states.get(event.id, ("nothing", 0))
        self._step(event, state, _UNDER_WAY)

    def on_task_succeeded(self, event: TaskSucceeded) -> None:
        self.successes += 1
        if event.final:
            self._end(event, TaskStatus.SUCCEEDED, _UNDER_WAY)
        else:
            self._step(event, "between iterations", _UNDER_WAY)

    def on_task_failed(self, event: TaskFailed) -> None:
        if event.final:
            self._end(event, TaskStatus.FAILED, _UNDER_WAY)
        else:
            self._step(event, "between iterations", _UNDER_WAY)

    def on_task_cancelled(self, event: TaskCancelled) -> None:
        self._end(event, TaskStatus.CANCELLED, _OUTSTANDING)

    def on_task_expired(self, event: TaskExpired) -> None:
        self._end(event, TaskStatus.EXPIRED, _OUTSTANDING)

    def on_manager_closing(self, event: ManagerClosing) -> None:
        self.closings.append("closing")

    def on_manager_closed(self, event: ManagerClosed) -> None:
        self.closings.append("closed")

    def balance(self) -> None:
        """Compare the submissions with the events, and clear both.

        No task may be outstanding.
        """
        totals = self._totals
        totals.submissions += len(self.accepted)
        totals.lost += len(self._states)
        for id, (state, _) in self._states.items():
            totals.fault(f"task {id} has no end; its latest event: {state}")
        submitted = Counter(handle.id for handle in self.accepted)
        if submitted != self._added:
            totals.lost += (submitted - self._added).total()
            totals.doubled += (self._added - submitted).total()
            totals.fault(f"submitted but not added: {submitted - self._added}")
            totals.fault(f"added but not submitted: {self._added - submitted}")
        ended = Counter((handle.id, handle.status) for handle in self.accepted)
        if ended != self._ended:
            totals.doubled += (self._ended - ended).total()
            totals.lost += (ended - self._ended).total()
            totals.fault(f"handles say {ended - self._ended}, events {self._ended - ended}")
        for account in (self.accepted, self._states, self._added, self._ended):
            account.clear()


class Listener(logging.Handler):
    """Checks that the library logs only errors of observers."""

    def __init__(self, totals: Totals) -> None:
        super().__init__()
        self._totals = totals

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if not re.search(" raised| too slow| missed ", text):
            self._totals.fault(f"logged: {text}")
