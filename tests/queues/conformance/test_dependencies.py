"""Conformance of every broker: jobs that depend on other jobs."""

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


async def test_those_who_wait_hear_of_what_a_job_was_needed_for(broker: Broker) -> None:
    await broker.enqueue([message("a"), message("b", depends_on=("a",))])
    await broker.enqueue([message("c", depends_on=("a",), handler=None)])
    ended: list[StoredJob | None] = []
    came: list[float] = []

    async def wait(id: str) -> None:
        ended.append(await broker.wait(id, 50))

    async def work() -> None:
        await broker.wait_for_work(["q"], 50)
        came.append(anyio.current_time() - began)

    claim = await claim_one(broker)
    began = anyio.current_time()
    async with anyio.create_task_group() as group:
        group.start_soon(wait, "c")
        group.start_soon(work)
        await elapse(broker, 5)
        await settle(broker, claim, JobState.SUCCEEDED)
    assert [job and job.state for job in ended] == [JobState.SUCCEEDED]
    assert came[0] < LEASE - 10


async def test_those_who_wait_hear_of_what_a_cancelled_job_was_needed_for(broker: Broker) -> None:
    await broker.enqueue([message("a"), message("b", depends_on=("a",))])
    ended: list[StoredJob | None] = []

    async def wait() -> None:
        ended.append(await broker.wait("b", 50))

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await elapse(broker, 5)
        await broker.cancel("a")
    assert [job and job.state for job in ended] == [JobState.DEAD]


async def test_those_who_wait_hear_of_what_an_expired_job_was_needed_for(broker: Broker) -> None:
    await broker.enqueue([message("a", expires=10), message("b", depends_on=("a",))])
    ended: list[StoredJob | None] = []

    async def wait() -> None:
        ended.append(await broker.wait("b", 50))

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await elapse(broker, 11)
        assert await claimed(broker) == []
    assert [job and job.state for job in ended] == [JobState.DEAD]


async def run(broker: Broker, result: bytes | None = None) -> Claim:
    """Have the job that is next succeed."""
    claim = await claim_one(broker)
    assert await settle(broker, claim, JobState.SUCCEEDED, result=result)
    return claim


async def test_a_job_waits_for_what_it_needs(broker: Broker) -> None:
    sent = [message("a"), message("b", depends_on=("a",)), message("c", depends_on=("b", "a"))]
    assert await broker.enqueue(sent) == [True, True, True]
    assert await broker.enqueue(sent) == [False, False, False]
    assert [await state_of(broker, id) for id in "abc"] == [
        JobState.READY,
        JobState.SCHEDULED,
        JobState.SCHEDULED,
    ]
    assert (await run(broker, b"1")).previous == ()
    second = await run(broker, b"2")
    assert (second.message.id, second.previous) == ("b", (b"1",))
    third = await run(broker)
    assert (third.message.id, third.previous) == ("c", (b"2", b"1"))


async def test_delays_begin_when_what_is_needed_has_succeeded(broker: Broker) -> None:
    await broker.enqueue([message("a"), message("b", depends_on=("a",), delay=10)])
    await elapse(broker, 20)
    await run(broker)
    assert await claimed(broker) == []
    await elapse(broker, 11)
    assert await claimed(broker) == ["b"]


async def test_results_of_what_is_not_kept_are_there_for_who_needs_them(broker: Broker) -> None:
    sent = [
        message("a", retention=0),
        message("b", retention=0),
        message("c", depends_on=("a", "b"), delay=5),
    ]
    await broker.enqueue(sent)
    await run(broker, b"1")
    await elapse(broker, 5)
    await run(broker, b"2")
    await elapse(broker, 6)
    await broker.maintain()
    assert await broker.get("a") is await broker.get("b") is None
    assert (await claim_one(broker)).previous == (b"1", b"2")


async def test_what_is_needed_may_have_succeeded_already(broker: Broker) -> None:
    await broker.enqueue([message("a")])
    await run(broker, b"1")
    await broker.enqueue([message("b", depends_on=("a",))])
    assert (await claim_one(broker)).previous == (b"1",)


async def test_a_job_without_a_handler_succeeds_by_itself(broker: Broker) -> None:
    await broker.enqueue([message("a"), message("all", depends_on=("a",), handler=None)])
    await broker.enqueue([message("none", handler=None)])
    assert await state_of(broker, "none") is JobState.SUCCEEDED
    assert await state_of(broker, "all") is JobState.SCHEDULED
    await run(broker)
    assert await state_of(broker, "all") is JobState.SUCCEEDED
    assert await claimed(broker) == []


async def test_results_of_what_a_job_needs_are_known(broker: Broker) -> None:
    """Which is how one without a handler stands for all of them."""
    await broker.enqueue([message("a"), message("b"), message("all", depends_on=("b", "a"))])
    await run(broker, b"1")
    job = await broker.get("all")
    assert job is not None
    assert job.previous == (None, b"1")
    await run(broker, b"2")
    await broker.purge()
    (job,) = [job async for job in broker.scan()]
    assert job.previous == (b"2", b"1")
    assert await broker.get("all") == job


async def test_a_job_without_a_handler_has_its_delay_too(broker: Broker) -> None:
    await broker.enqueue([message("a", handler=None, delay=10)])
    assert await state_of(broker, "a") is JobState.SCHEDULED
    await elapse(broker, 11)
    await broker.maintain()
    assert await state_of(broker, "a") is JobState.SUCCEEDED
    assert await broker.requeue("a")
    assert await state_of(broker, "a") is JobState.SUCCEEDED


async def test_of_needs_nothing_is_left_when_jobs_are_forgotten(broker: Broker) -> None:
    await broker.enqueue([message("a"), message("b", depends_on=("a",))])
    await run(broker)
    await run(broker)
    assert await broker.purge() == 2
    assert await broker.enqueue([message("a"), message("b", depends_on=("a",))]) == [True, True]
    assert await claimed(broker) == ["a"]


async def kill(broker: Broker) -> None:
    await settle(broker, await claim_one(broker), JobState.DEAD)


async def cancel(broker: Broker) -> None:
    await broker.cancel("a")


async def expire(broker: Broker) -> None:
    await elapse(broker, 11)
    await broker.maintain()


@pytest.mark.parametrize("end", [kill, cancel, expire])
async def test_what_needs_a_job_that_did_not_succeed_is_dead(broker: Broker, end: Any) -> None:
    first = message("a", expires=10)
    await broker.enqueue(
        [first, message("b", depends_on=("a",)), message("c", depends_on=("b", "a"))]
    )
    await end(broker)
    (late,) = await broker.enqueue([message("late", depends_on=("c",))])
    assert late
    state = await state_of(broker, "a")
    for id, needed in {"b": f"a, which it depends on, is {state}", "c": None, "late": None}.items():
        job = await broker.get(id)
        assert job is not None
        assert job.state is JobState.DEAD
        assert job.error is not None
        assert job.error["type"] == "JobFailedError"
        assert needed is None or job.error["message"] == f"job {needed}"
    await elapse(broker, 20)
    assert await claimed(broker) == []


async def test_a_job_that_waits_for_others_can_be_cancelled_and_expires(broker: Broker) -> None:
    await broker.enqueue([message("a"), message("b", depends_on=("a",))])
    await broker.enqueue([message("c", depends_on=("a",), expires=5)])
    assert await broker.cancel("b") is JobState.SCHEDULED
    await elapse(broker, 6)
    await run(broker)
    assert await claimed(broker) == []
    assert await state_of(broker, "b") is JobState.CANCELLED
    assert await state_of(broker, "c") is JobState.EXPIRED


async def test_requeued_what_was_dead_needs_nothing_any_more(broker: Broker) -> None:
    await broker.enqueue([message("a"), message("b", depends_on=("a",))])
    await broker.cancel("a")
    assert await broker.requeue("b")
    assert (await run(broker)).message.id == "b"


async def test_requeued_though_it_was_blocked_it_waits_for_nothing(broker: Broker) -> None:
    """Nor does it hear of what comes of that."""
    await broker.enqueue([message("a"), message("b", depends_on=("a",), queue="r")])
    assert await broker.cancel("b") is JobState.SCHEDULED
    assert await broker.requeue("b")
    claim = await claim_one(broker, "r")
    assert claim.previous == (None,)
    await run(broker, result=b"1")
    job = await broker.get("b")
    assert job is not None
    assert (job.state, job.previous) == (JobState.RUNNING, (None,))
    assert await settle(broker, claim, JobState.SUCCEEDED)


async def test_nothing_is_enqueued_that_needs_an_unknown_job(broker: Broker) -> None:
    await broker.enqueue([message("known")])
    wrong = [message("a", depends_on=("known",)), message("b", depends_on=("a", "c")), message("c")]
    with pytest.raises(ValueError, match="job b depends on job c, which is not stored"):
        await broker.enqueue(wrong)
    assert await broker.count() == 1


async def test_a_long_chain(broker: Broker, broker_kind: Kind) -> None:
    """As long as one likes: its end, too, is no recursion."""
    long = broker_kind.long
    steps = [message("0"), *(message(str(n), depends_on=(str(n - 1),)) for n in range(1, long))]
    await broker.enqueue(steps)
    await run(broker)
    await broker.cancel("1")
    assert await broker.count(state=JobState.DEAD) == long - 2
    await broker.enqueue([message("j0")])
    joins = [message(f"j{n}", depends_on=(f"j{n - 1}",), handler=None) for n in range(1, long)]
    await broker.enqueue(joins)
    await run(broker)
    assert await broker.count(state=JobState.SUCCEEDED) == long + 1
