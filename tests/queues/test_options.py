"""Options of queues, handlers and jobs."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

import pytest

from background import Manager, Observer
from background.queues import JobQueue
from background.queues._enqueue.options import NO_OPTIONS, check
from background.queues.memory import MemoryBroker


class WatchingObserver(Observer):
    async def watch(self, manager: Manager) -> None: ...


async def noop() -> None: ...


def test_defaults() -> None:
    """Options that are missing or None have their defaults."""
    assert check({}) == NO_OPTIONS
    assert check({"at": None, "id": None, "meta": None}) == NO_OPTIONS


def test_at() -> None:
    """`at` can be a datetime or a number of seconds since the epoch."""
    at = datetime(2030, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    assert check({"at": at}).at == datetime(2030, 1, 1, tzinfo=UTC).timestamp()
    assert check({"at": 5}).at == 5


class UnknownOffset(tzinfo):
    """A time zone without an offset from UTC."""

    def utcoffset(self, dt: datetime | None, /) -> None:
        return None


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("delay", -1),
        ("delay", math.nan),
        ("delay", math.inf),
        ("delay", "5"),
        ("delay", None),
        ("delay", True),
        ("at", math.inf),
        ("at", "tomorrow"),
        ("at", datetime(2030, 1, 1)),
        ("at", datetime(2030, 1, 1, tzinfo=UnknownOffset())),
        ("id", ""),
        ("id", "a b"),
        ("id", "order..1"),
        ("id", "x" * 129),
        ("id", 5),
        ("queue", "a/b"),
        ("queue", ""),
        ("expires", 0),
        ("expires", -1),
        ("expires", "5"),
        ("retry", 0),
        ("retry", -1),
        ("retry", True),
        ("retry", 1.5),
        ("retry", "5"),
        ("timeout", 0),
        ("timeout", math.nan),
        ("meta", [1]),
        ("meta", "text"),
    ],
)
def test_invalid_job_options(option: str, value: Any) -> None:
    """The error of an invalid job option begins with its name."""
    with pytest.raises(ValueError, match=rf"^{option}\b"):
        check({option: value})  # type: ignore[misc]


def test_policy_of_job() -> None:
    """A retry policy is rejected as an option of a job, as it can't be encoded."""
    from tenacity import AsyncRetrying

    with pytest.raises(ValueError, match="a policy belongs to the handler"):
        check({"retry": AsyncRetrying()})  # type: ignore[typeddict-item]


def test_delay_and_at() -> None:
    """delay and at can't be combined."""
    with pytest.raises(ValueError, match="delay and at"):
        check({"delay": 1, "at": 5})


def test_unknown_option() -> None:
    """The error of an unknown option lists the options."""
    with pytest.raises(TypeError, match="no option color, only delay, at, id"):
        check({"color": 1})  # type: ignore[typeddict-unknown-key]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("results", MemoryBroker()),
        ("observers", [Observer]),
        ("observers", "text"),
        ("observers", [WatchingObserver()]),
        ("lease", 0),
        ("lease", 0.05),
        ("lease", None),
        ("max_payload", 0),
        ("max_payload", 1.5),
        ("max_crashes", 0),
        ("max_crashes", True),
        ("baggage", 1),
        ("retention", -1),
        ("retention", math.inf),
    ],
)
def test_invalid_queue_options(option: str, value: Any) -> None:
    """The error of an invalid queue option begins with its name."""
    with pytest.raises(ValueError, match=rf"^{option}\b"):
        JobQueue(MemoryBroker(), **{option: value})


def test_invalid_broker() -> None:
    """A URL, None or a broker's class is rejected as a broker."""
    for value in ("memory://", None, MemoryBroker):
        with pytest.raises(ValueError, match="broker"):
            JobQueue(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("queue", ""),
        ("queue", None),
        ("name", ""),
        ("name", "a b"),
        ("name", 5),
        ("retry", 0),
        ("retry", "5"),
        ("timeout", 0),
        ("timeout", "5"),
        ("expires", 0),
        ("retention", -1),
        ("retention", "5"),
        ("retention", math.nan),
        ("store_result", "no"),
        ("store_result", None),
        ("observers", [WatchingObserver()]),
        ("observers", [1]),
    ],
)
def test_invalid_handler_options(option: str, value: Any) -> None:
    """The error of an invalid handler option begins with its name."""
    jobs = JobQueue(MemoryBroker())
    with pytest.raises(ValueError, match=rf"^{option}\b"):
        jobs.handler(**{option: value})(noop)
    assert jobs._handlers == {}


def test_duplicate_name() -> None:
    """A second handler with the same name is rejected."""
    jobs = JobQueue(MemoryBroker())
    jobs.handler()(noop)
    with pytest.raises(ValueError, match=f"name: there is a handler '{re.escape(__name__)}.noop'"):
        jobs.handler()(noop)
    jobs.handler(name="other")(noop)


def test_handler_metadata() -> None:
    """A handler has the name, docstring and function of its definition."""

    async def documented(a: int) -> None:
        """What it does."""

    handler = JobQueue(MemoryBroker()).handler()(documented)
    assert handler.name == f"{__name__}.test_handler_metadata.documented"
    assert (handler.__doc__, handler.__name__) == ("What it does.", "documented")
    assert handler.fn is handler.__wrapped__ is documented  # type: ignore[attr-defined]
