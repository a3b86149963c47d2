"""Conformance of brokers: jobs that depend on other jobs."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from support.brokers.jobs import LEASE, claim_one, claimed, message, settle, state_of
from support.brokers.kinds import Kind, elapse

from background.queues import JobState
from background.queues.abc import (
    Broker,
    Claim,
    StoredJob,
)


async def test_success_wakes_waiters(broker: Broker) -> None:
    """The success of a job wakes waiters for its dependents and for work."""
    await broker.enqueue([message("a"), message("b", depends_on=("a",))])
    await broker.enqueue([message("c", depends_on=("a",), handler=None)])
    ended: list[StoredJob | None] = []
    woken_after: list[float] = []

    async def wait(id: str) -> None:
        ended.append(await broker.wait(id, 50))

    async def wait_for_work() -> None:
        await broker.wait_for_work(["q"], 50)
        woken_after.append(anyio.current_time() - began)

    claim = await claim_one(broker)
    began = anyio.current_time()
    async with anyio.create_task_group() as group:
        group.start_soon(wait, "c")
        group.start_soon(wait_for_work)
        await elapse(broker, 5)
        await settle(broker, claim, JobState.SUCCEEDED)
    assert [job and job.state for job in ended] == [JobState.SUCCEEDED]
    assert woken_after[0] < LEASE - 10


async def test_cancel_wakes_waiters(broker: Broker) -> None:
    """The cancellation of a job wakes waiters for its dependents."""
    await broker.enqueue([message("a"), message("b", depends_on=("a",))])
    ended: list[StoredJob | None] = []

    async def wait() -> None:
        ended.append(await broker.wait("b", 50))

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await elapse(broker, 5)
        await broker.cancel("a")
    assert [job and job.state for job in ended] == [JobState.DEAD]


async def test_expiry_wakes_waiters(broker: Broker) -> None:
    """The expiry of a job wakes waiters for its dependents."""
    await broker.enqueue([message("a", expires=10), message("b", depends_on=("a",))])
    ended: list[StoredJob | None] = []

    async def wait() -> None:
        ended.append(await broker.wait("b", 50))

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await elapse(broker, 11)
        assert await claimed(broker) == []
    assert [job and job.state for job in ended] == [JobState.DEAD]


async def succeed_next(broker: Broker, result: bytes | None = None) -> Claim:
    """Claim the next job and settle it as succeeded."""
    claim = await claim_one(broker)
    assert await settle(broker, claim, JobState.SUCCEEDED, result=result)
    return claim


async def test_dependency_order(broker: Broker) -> None:
    """A job becomes ready when its dependencies have succeeded, and gets their results."""
    sent = [message("a"), message("b", depends_on=("a",)), message("c", depends_on=("b", "a"))]
    assert await broker.enqueue(sent) == [True, True, True]
    assert await broker.enqueue(sent) == [False, False, False]
    assert [await state_of(broker, id) for id in "abc"] == [
        JobState.READY,
        JobState.SCHEDULED,
        JobState.SCHEDULED,
    ]
    assert (await succeed_next(broker, b"1")).previous == ()
    second = await succeed_next(broker, b"2")
    assert (second.message.id, second.previous) == ("b", (b"1",))
    third = await succeed_next(broker)
    assert (third.message.id, third.previous) == ("c", (b"2", b"1"))


async def test_delay_after_dependencies(broker: Broker) -> None:
    """The delay of a job begins when its dependencies have succeeded."""
    await broker.enqueue([message("a"), message("b", depends_on=("a",), delay=10)])
    await elapse(broker, 20)
    await succeed_next(broker)
    assert await claimed(broker) == []
    await elapse(broker, 11)
    assert await claimed(broker) == ["b"]


async def test_results_without_retention(broker: Broker) -> None:
    """Dependents get the results of jobs that are not retained."""
    sent = [
        message("a", retention=0),
        message("b", retention=0),
        message("c", depends_on=("a", "b"), delay=5),
    ]
    await broker.enqueue(sent)
    await succeed_next(broker, b"1")
    await elapse(broker, 5)
    await succeed_next(broker, b"2")
    await elapse(broker, 6)
    await broker.maintain()
    assert await broker.get("a") is await broker.get("b") is None
    assert (await claim_one(broker)).previous == (b"1", b"2")


async def test_succeeded_dependency(broker: Broker) -> None:
    """A job can depend on a job that has already succeeded."""
    await broker.enqueue([message("a")])
    await succeed_next(broker, b"1")
    await broker.enqueue([message("b", depends_on=("a",))])
    assert (await claim_one(broker)).previous == (b"1",)


async def test_job_without_handler(broker: Broker) -> None:
    """A job without a handler succeeds as soon as its dependencies have."""
    await broker.enqueue([message("a"), message("all", depends_on=("a",), handler=None)])
    await broker.enqueue([message("none", handler=None)])
    assert await state_of(broker, "none") is JobState.SUCCEEDED
    assert await state_of(broker, "all") is JobState.SCHEDULED
    await succeed_next(broker)
    assert await state_of(broker, "all") is JobState.SUCCEEDED
    assert await claimed(broker) == []


async def test_previous_results(broker: Broker) -> None:
    """A stored job contains the results of its dependencies, even after their deletion.

    Jobs without a handler collect the results of a group in this way.
    """
    await broker.enqueue([message("a"), message("b"), message("all", depends_on=("b", "a"))])
    await succeed_next(broker, b"1")
    job = await broker.get("all")
    assert job is not None
    assert job.previous == (None, b"1")
    await succeed_next(broker, b"2")
    await broker.purge()
    (job,) = [job async for job in broker.scan()]
    assert job.previous == (b"2", b"1")
    assert await broker.get("all") == job


async def test_delay_without_handler(broker: Broker) -> None:
    """A job without a handler succeeds after its delay, or at once when it is requeued."""
    await broker.enqueue([message("a", handler=None, delay=10)])
    assert await state_of(broker, "a") is JobState.SCHEDULED
    await elapse(broker, 11)
    await broker.maintain()
    assert await state_of(broker, "a") is JobState.SUCCEEDED
    assert await broker.requeue("a")
    assert await state_of(broker, "a") is JobState.SUCCEEDED


async def test_purge_deletes_dependencies(broker: Broker) -> None:
    """Purged jobs leave no dependencies to new jobs with the same ids."""
    await broker.enqueue([message("a"), message("b", depends_on=("a",))])
    await succeed_next(broker)
    await succeed_next(broker)
    assert await broker.purge() == 2
    assert await broker.enqueue([message("a"), message("b", depends_on=("a",))]) == [True, True]
    assert await claimed(broker) == ["a"]


async def fail(broker: Broker) -> None:
    await settle(broker, await claim_one(broker), JobState.DEAD)


async def cancel(broker: Broker) -> None:
    await broker.cancel("a")


async def expire(broker: Broker) -> None:
    await elapse(broker, 11)
    await broker.maintain()


@pytest.mark.parametrize("end", [fail, cancel, expire])
async def test_failed_dependency(broker: Broker, end: Any) -> None:
    """A job that did not succeed makes its direct and indirect dependents dead."""
    first = message("a", expires=10)
    await broker.enqueue(
        [first, message("b", depends_on=("a",)), message("c", depends_on=("b", "a"))]
    )
    await end(broker)
    (late,) = await broker.enqueue([message("late", depends_on=("c",))])
    assert late
    state = await state_of(broker, "a")
    for id, cause in {"b": f"a, which it depends on, is {state}", "c": None, "late": None}.items():
        job = await broker.get(id)
        assert job is not None
        assert job.state is JobState.DEAD
        assert job.error is not None
        assert job.error["type"] == "background.queues.JobFailedError"
        assert cause is None or job.error["message"] == f"job {cause}"
    await elapse(broker, 20)
    assert await claimed(broker) == []


async def test_blocked_job_is_cancelled_or_expires(broker: Broker) -> None:
    """A job whose dependencies have not ended can be cancelled and can expire."""
    await broker.enqueue([message("a"), message("b", depends_on=("a",))])
    await broker.enqueue([message("c", depends_on=("a",), expires=5)])
    assert await broker.cancel("b") is JobState.SCHEDULED
    await elapse(broker, 6)
    await succeed_next(broker)
    assert await claimed(broker) == []
    assert await state_of(broker, "b") is JobState.CANCELLED
    assert await state_of(broker, "c") is JobState.EXPIRED


async def test_requeue_dead_dependent(broker: Broker) -> None:
    """A dead job that is requeued does not wait for its dependencies again."""
    await broker.enqueue([message("a"), message("b", depends_on=("a",))])
    await broker.cancel("a")
    assert await broker.requeue("b")
    assert (await succeed_next(broker)).message.id == "b"


async def test_requeue_blocked_job(broker: Broker) -> None:
    """A blocked job that is cancelled and requeued does not wait for its dependencies.

    It does not get their results either.
    """
    await broker.enqueue([message("a"), message("b", depends_on=("a",), queue="r")])
    assert await broker.cancel("b") is JobState.SCHEDULED
    assert await broker.requeue("b")
    claim = await claim_one(broker, "r")
    assert claim.previous == (None,)
    await succeed_next(broker, result=b"1")
    job = await broker.get("b")
    assert job is not None
    assert (job.state, job.previous) == (JobState.RUNNING, (None,))
    assert await settle(broker, claim, JobState.SUCCEEDED)


async def test_unknown_dependency(broker: Broker) -> None:
    """No message of a call is enqueued if one depends on a job that is not stored."""
    await broker.enqueue([message("stored")])
    batch = [
        message("a", depends_on=("stored",)),
        message("b", depends_on=("a", "c")),
        message("c"),
    ]
    with pytest.raises(ValueError, match="job b depends on job c, which is not stored"):
        await broker.enqueue(batch)
    assert await broker.count() == 1


async def test_long_chain(broker: Broker, broker_kind: Kind) -> None:
    """Chains longer than Python's recursion limit can be enqueued and can end."""
    long = broker_kind.long
    steps = [message("0"), *(message(str(n), depends_on=(str(n - 1),)) for n in range(1, long))]
    await broker.enqueue(steps)
    await succeed_next(broker)
    await broker.cancel("1")
    assert await broker.count(state=JobState.DEAD) == long - 2
    await broker.enqueue([message("j0")])
    joins = [message(f"j{n}", depends_on=(f"j{n - 1}",), handler=None) for n in range(1, long)]
    await broker.enqueue(joins)
    await succeed_next(broker)
    assert await broker.count(state=JobState.SUCCEEDED) == long + 1
