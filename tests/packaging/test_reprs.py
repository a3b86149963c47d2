"""The texts of objects: settings are shown, and values of users are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from background import InvalidTaskError, Manager, Task, TaskKind, every
from background.observers import LoggingObserver, StallObserver
from background.observers.otel import OpenTelemetryObserver
from background.queues import AttemptInfo, JobFailedError, JobInfo, JobQueue, JobState, chain, group
from background.queues.abc import Claim, Message, Settlement, StoredJob
from background.queues.memory import MemoryBroker, MemoryResults
from background.queues.nats import NatsBroker
from background.queues.redis import RedisBroker, RedisResults
from background.queues.sqlite import SQLiteBroker, SQLiteResults
from background.testing import RecordingObserver

SECRET = "hunter2"


async def send(to: str, subject: str = "") -> None: ...


def test_task() -> None:
    """A task shows its function and its options, and the types of the values."""
    assert repr(Task(send)) == "Task(send)"
    task = Task(
        send,
        args=(SECRET,),
        kwargs={"subject": SECRET},
        meta={"user": SECRET},
        name="mail",
        kind=TaskKind.LOOP,
        schedule=every(5),
        timeout=2,
    )
    assert repr(task) == (
        "Task(send, args=(str), kwargs={'subject': str}, meta={'user': str}, name='mail', "
        "kind=<TaskKind.LOOP: 'loop'>, schedule=Every(seconds=5.0, jitter=0.0), timeout=2)"
    )


def test_submission() -> None:
    """The options of a submission are shown, with the types of the metadata."""
    submission = Manager().options(meta={"user": SECRET}, timeout=5)
    assert repr(submission) == "<Submission with meta={'user': str}, timeout=5>"


def test_job_submission() -> None:
    """The options of a job are shown, with the types of the metadata."""
    handler = JobQueue(MemoryBroker()).handler(name="send")(send)
    submission = handler.options(delay=5, queue="mail", meta={"user": SECRET})
    assert repr(submission) == (
        "<JobSubmission of 'send' with delay=5, queue='mail', meta={'user': str}>"
    )
    assert repr(handler.options()) == "<JobSubmission of 'send' with no options>"


INFO = JobInfo(
    id="one",
    handler="send",
    queue="mail",
    state=JobState.DEAD,
    attempt=2,
    worker=None,
    attempts=(),
    enqueued_at=1_900_000_000.5,
    started_at=1e30,
    finished_at=None,
    error=JobFailedError("one", "ValueError", SECRET, SECRET),
    result=[SECRET],
    args=[SECRET, 1],
    kwargs={"subject": SECRET},
    meta={"user": SECRET},
    payload=SECRET.encode(),
)


def test_info() -> None:
    """A job's information is one readable line without its values."""
    assert repr(INFO) == (
        "<JobInfo one: job of 'send' in 'mail', dead, attempt 2, enqueued 2030-03-17 17:46:40 UTC, "
        "started 1e+30, error ValueError, result list, args (str, int), kwargs {'subject': str}, "
        "meta {'user': str}>"
    )


def test_attempt() -> None:
    """An attempt is one readable line without the message of its error."""
    attempt = AttemptInfo(
        number=2,
        started_at=1_900_000_000.5,
        finished_at=1_900_000_001.5,
        worker="host-1-abc",
        outcome="failed",
        error=f"ValueError: {SECRET}",
    )
    assert repr(attempt) == (
        "<AttemptInfo 2: failed, started 2030-03-17 17:46:40 UTC, finished 2030-03-17 17:46:41 "
        "UTC, worker host-1-abc, error ValueError>"
    )


async def test_info_of_group() -> None:
    """A group's information names no handler, and leaves out what there is not."""
    jobs = JobQueue(MemoryBroker())
    step = jobs.handler(name="send")(send).job(SECRET)
    async with jobs:
        job = await jobs.enqueue(group(step), id="one")
        text = repr(await job.info())
    assert text.startswith("<JobInfo one: chain or group in 'default', scheduled, attempt 0, enq")
    assert text.endswith(" UTC>")


def test_steps() -> None:
    """Chains and groups show their steps, of which long ones show the first ten."""
    job = JobQueue(MemoryBroker()).handler(name="send")(send).job(SECRET)
    assert repr(chain(job, group(job, job))) == (
        "chain(<job of 'send'>, group(<job of 'send'>, <job of 'send'>))"
    )
    assert repr(group(*[job] * 100)).endswith("<job of 'send'>, … 90 more)")


BROKERS: dict[str, tuple[Any, str]] = {
    "memory": (MemoryBroker(), "<MemoryBroker>"),
    "memory results": (MemoryResults(), "<MemoryResults>"),
    "sqlite": (SQLiteBroker("a.db"), f"<SQLiteBroker {Path('a.db').absolute()}>"),
    "sqlite results": (SQLiteResults("a.db"), f"<SQLiteResults {Path('a.db').absolute()}>"),
    "redis": (
        RedisBroker(f"redis://me:{SECRET}@host:1/2", prefix="p"),
        "<RedisBroker redis://host:1/2, prefix 'p'>",
    ),
    "redis results": (
        RedisResults(f"redis://:{SECRET}@host", prefix="p"),
        "<RedisResults redis://host:6379/0, prefix 'p'>",
    ),
    "nats": (
        NatsBroker(f"nats://me:{SECRET}@host", prefix="p"),
        "<NatsBroker nats://host:4222, prefix 'p'>",
    ),
}


@pytest.mark.parametrize("name", BROKERS)
def test_brokers(name: str) -> None:
    """A broker shows its kind and its place, and no password."""
    broker, text = BROKERS[name]
    assert repr(broker) == text


async def test_queue() -> None:
    """A queue shows its broker, its store of results, and whether it is open."""
    jobs = JobQueue(MemoryBroker())
    assert repr(jobs) == "<JobQueue in <MemoryBroker>, not open>"
    async with jobs:
        assert repr(jobs) == "<JobQueue in <MemoryBroker>, open>"
    jobs = JobQueue(BROKERS["redis"][0], results=MemoryResults())
    assert repr(jobs) == (
        "<JobQueue in <RedisBroker redis://host:1/2, prefix 'p'>, results in <MemoryResults>, "
        "not open>"
    )


def test_observers() -> None:
    """Observers show their settings."""
    assert repr(LoggingObserver()) == "LoggingObserver('background')"
    observer = LoggingObserver("jobs", started="INFO", failed=35)
    assert repr(observer) == "LoggingObserver('jobs', started=INFO, failed=Level 35)"
    assert repr(StallObserver(after=30)) == "StallObserver(after=30)"
    assert repr(OpenTelemetryObserver(linked=True, trace=None)) == (
        "OpenTelemetryObserver(linked=True, trace=None)"
    )
    assert repr(RecordingObserver()) == "<RecordingObserver with 0 events>"


def test_data_of_brokers() -> None:
    """What brokers receive and return shows no payload, result or error."""
    payload, error = SECRET.encode(), {"message": SECRET}
    message = Message("one", "send", "mail", payload, 1.0, 2.0)
    records = [
        Claim(message, "token", 1, 0, 0, 0.0, (payload,), error, payload),
        Settlement("one", "token", JobState.DEAD, 0.0, payload, error),
        StoredJob(message, JobState.DEAD, 1, 0.0, error=error, result=payload, previous=(payload,)),
    ]
    for record in records:
        assert "one" in repr(record)
        assert SECRET not in repr(record)


@pytest.mark.parametrize("options", [{"kwargs": SECRET}, {"args": SECRET}, {"meta": {1: SECRET}}])
def test_errors_about_arguments(options: dict[str, Any]) -> None:
    """An error about arguments of the wrong type does not quote them."""
    with pytest.raises(InvalidTaskError) as info:
        Task(send, **options)
    assert SECRET not in str(info.value)


async def test_errors_about_arguments_of_jobs() -> None:
    """An error about arguments of a job of the wrong type does not quote them."""
    jobs = JobQueue(MemoryBroker())
    handler = jobs.handler(name="send")(send)
    async with jobs:
        calls: list[Any] = [
            lambda: jobs.enqueue("send", SECRET),
            lambda: jobs.enqueue("send", [], SECRET),
            lambda: handler.enqueue_many([SECRET]),
        ]
        for call in calls:
            with pytest.raises((TypeError, ValueError)) as info:
                await call()
            assert SECRET not in str(info.value)
        with pytest.raises(ValueError, match=r"^meta must be a mapping") as info:
            handler.options(meta=SECRET)  # type: ignore[arg-type]
        assert SECRET not in str(info.value)
