"""Everything that queues, handlers and jobs can be told, and what is refused."""

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


class Watches(Observer):
    async def watch(self, manager: Manager) -> None: ...


async def nothing() -> None: ...


def test_what_is_not_given_has_its_default() -> None:
    assert check({}) == NO_OPTIONS
    assert check({"at": None, "id": None, "meta": None}) == NO_OPTIONS


def test_times_may_be_given_as_datetimes() -> None:
    at = datetime(2030, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    assert check({"at": at}).at == datetime(2030, 1, 1, tzinfo=UTC).timestamp()
    assert check({"at": 5}).at == 5


class Nowhere(tzinfo):
    """A time zone that does not know how far it is from UTC."""

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
        ("at", datetime(2030, 1, 1, tzinfo=Nowhere())),
        ("id", ""),
        ("id", "a b"),
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
def test_an_option_that_cannot_work_is_named(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{option}\b"):
        check({option: value})  # type: ignore[misc]


def test_a_policy_cannot_travel() -> None:
    from tenacity import AsyncRetrying

    with pytest.raises(ValueError, match="a policy belongs to the handler"):
        check({"retry": AsyncRetrying()})  # type: ignore[typeddict-item]


def test_a_job_starts_at_one_time() -> None:
    with pytest.raises(ValueError, match="delay and at"):
        check({"delay": 1, "at": 5})


def test_an_option_that_does_not_exist() -> None:
    with pytest.raises(TypeError, match="no option color, only delay, at, id"):
        check({"color": 1})  # type: ignore[typeddict-unknown-key]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("results", MemoryBroker()),
        ("observers", [Observer]),
        ("observers", "text"),
        ("observers", [Watches()]),
        ("lease", 0),
        ("lease", 0.05),
        ("lease", None),
        ("max_payload", 0),
        ("max_payload", 1.5),
        ("max_crashes", 0),
        ("max_crashes", True),
        ("retention", -1),
        ("retention", math.inf),
    ],
)
def test_a_queue_that_cannot_work(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{option}\b"):
        JobQueue(MemoryBroker(), **{option: value})


def test_a_queue_needs_a_broker() -> None:
    for wrong in ("memory://", None, MemoryBroker):
        with pytest.raises(ValueError, match="broker"):
            JobQueue(wrong)  # type: ignore[arg-type]


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
        ("observers", [Watches()]),
        ("observers", [1]),
    ],
)
def test_a_handler_that_cannot_work(option: str, value: Any) -> None:
    jobs = JobQueue(MemoryBroker())
    with pytest.raises(ValueError, match=rf"^{option}\b"):
        jobs.handler(**{option: value})(nothing)
    assert jobs._handlers == {}


def test_a_name_belongs_to_one_handler() -> None:
    jobs = JobQueue(MemoryBroker())
    jobs.handler()(nothing)
    with pytest.raises(
        ValueError, match=f"name: there is a handler '{re.escape(__name__)}.nothing'"
    ):
        jobs.handler()(nothing)
    jobs.handler(name="other")(nothing)


def test_a_handler_looks_like_its_function() -> None:
    async def documented(a: int) -> None:
        """What it does."""

    handler = JobQueue(MemoryBroker()).handler()(documented)
    assert handler.name == f"{__name__}.test_a_handler_looks_like_its_function.documented"
    assert (handler.__doc__, handler.__name__) == ("What it does.", "documented")
    assert handler.fn is handler.__wrapped__ is documented  # type: ignore[attr-defined]
