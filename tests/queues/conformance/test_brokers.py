"""The contract of brokers: the same tests for every one of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.brokers.jobs import LEASE, claim_one, claimed, message, settle, settlement, state_of
from support.brokers.kinds import Kind, elapse

from background.queues import JobState
from background.queues._states import FINAL
from background.queues.abc import (
    Broker,
    Claim,
    LeaseStatus,
    MaintenanceStats,
    Message,
    Settlement,
    StoredJob,
)

async def test_a_job_from_enqueueing_to_its_end(broker: Broker) -> None:
    sent = message(body=b"\x00\xff{", expires=100)
    assert await broker.enqueue([sent]) == [True]
    job = await broker.get("one")
    assert job is not None
    assert (job.message, job.state, job.attempt) == (sent, JobState.READY, 0)
    assert job.started_at is job.finished_at is job.error is job.result is None
    claim = await claim_one(broker)
    assert (claim.message, claim.attempt, claim.crashes) == (sent, 1, 0)
    assert claim.enqueued_at == job.enqueued_at
    job = await broker.get("one")
    assert job is not None
    assert (job.state, job.attempt) == (JobState.RUNNING, 1)
    assert job.started_at is not None
    assert await settle(broker, claim, JobState.SUCCEEDED, result=b"\x00[")
    job = await broker.get("one")
    assert job is not None
    assert (job.state, job.result) == (JobState.SUCCEEDED, b"\x00[")
    assert job.finished_at is not None
    assert job.enqueued_at <= (job.started_at or 0) <= job.finished_at


async def test_times_may_be_whole_numbers_however_large(broker: Broker) -> None:
    huge = 10**300
    await broker.enqueue([message("a", delay=huge, retention=huge), message("b", at=huge)])
    await broker.enqueue([message("c", expires=huge, retention=huge)])
    assert await claimed(broker) == ["c"]
    for id in ("a", "b"):
        assert await state_of(broker, id) is JobState.SCHEDULED


async def test_enqueueing_again_makes_no_second_job(broker: Broker) -> None:
    """Also while it runs, and for as long as it is kept after its end."""
    first, other = message(body=b"1"), message("two")
    assert await broker.enqueue([first, other, first]) == [True, True, False]
    assert await broker.enqueue([message(body=b"2", queue="r")]) == [False]
    assert await broker.count() == 2
    claim = await claim_one(broker)
    assert claim.message == first
    assert await broker.enqueue([message()]) == [False]
    await settle(broker, claim, JobState.SUCCEEDED)
    assert await broker.enqueue([message()]) == [False]
    await elapse(broker, 61)
    assert await broker.enqueue([message()]) == [True]


async def test_nothing_is_enqueued_for_no_messages(broker: Broker) -> None:
    assert await broker.enqueue([]) == []
    assert await broker.settle([]) == []
    assert await broker.renew([], lease=LEASE) == []


async def test_the_oldest_of_a_queue_goes_first(broker: Broker) -> None:
    await broker.enqueue([message(str(number)) for number in range(5)])
    assert await claimed(broker, most=2) == ["0", "1"]
    assert await claimed(broker, most=9) == ["2", "3", "4"]
    assert await claimed(broker) == []


async def test_the_first_queue_goes_first(broker: Broker) -> None:
    sent = [message("a", queue="r"), message("b"), message("c"), message("d", queue="s")]
    await broker.enqueue(sent)
    assert await claimed(broker, "q", "r", most=2) == ["b", "c"]
    assert await claimed(broker, "q", "r") == ["a"]
    assert await claimed(broker, "unknown", "s") == ["d"]


async def test_nobody_gets_a_job_that_somebody_has(broker: Broker) -> None:
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    assert await claimed(broker) == []
    await elapse(broker, LEASE - 1)
    assert await claimed(broker) == []
    assert await settle(broker, claim, JobState.SUCCEEDED)
    assert await claimed(broker) == []


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED])
async def test_a_job_ends_once(broker: Broker, state: JobState) -> None:
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    assert await settle(broker, claim, state, error={"type": "E"})
    for other in (JobState.SUCCEEDED, JobState.SCHEDULED, JobState.READY):
        assert not await settle(broker, claim, other, result=b"other")
    job = await broker.get("one")
    assert job is not None
    assert (job.state, job.result, job.error) == (state, None, {"type": "E"})


async def test_delayed_jobs_wait_for_their_time(broker: Broker) -> None:
    job = await broker.get("one")
    assert job is None
    await broker.enqueue([message("late", delay=20), message("soon", delay=10), message("now")])
    assert await state_of(broker, "late") is JobState.SCHEDULED
    assert await claimed(broker) == ["now"]
    await elapse(broker, 9)
    assert await claimed(broker) == []
    await elapse(broker, 2)
    assert await claimed(broker) == ["soon"]
    await elapse(broker, 10)
    assert await claimed(broker) == ["late"]


async def test_jobs_at_a_time(broker: Broker) -> None:
    await broker.enqueue([message()])
    stored = await broker.get("one")
    assert stored is not None
    now = stored.enqueued_at
    await broker.enqueue([message("past", at=now - 100), message("future", at=now + 20)])
    assert await claimed(broker) == ["one", "past"]
    await elapse(broker, 18)
    assert await claimed(broker) == []
    await elapse(broker, 4)
    assert await claimed(broker) == ["future"]


async def test_another_attempt_after_a_delay(broker: Broker) -> None:
    await broker.enqueue([message(), message("two")])
    claim = await claim_one(broker)
    assert await settle(broker, claim, JobState.SCHEDULED, delay=10, error={"type": "E"})
    job = await broker.get("one")
    assert job is not None
    assert (job.state, job.attempt, job.error) == (JobState.SCHEDULED, 1, {"type": "E"})
    assert await claimed(broker) == ["two"]
    await elapse(broker, 11)
    again = await claim_one(broker)
    assert (again.attempt, again.crashes, again.error) == (2, 0, {"type": "E"})
    assert claim.error is None
    assert again.token != claim.token


async def test_handed_back_a_job_is_as_it_was(broker: Broker) -> None:
    await broker.enqueue([message(), message("two")])
    claim = await claim_one(broker)
    assert await settle(broker, claim, JobState.READY)
    assert await state_of(broker) is JobState.READY
    again = await claim_one(broker)
    assert (again.message.id, again.attempt, again.crashes) == ("one", 1, 0)


async def test_a_lease_that_ends_frees_the_job(broker: Broker) -> None:
    await broker.enqueue([message()])
    late = await claim_one(broker)
    await elapse(broker, LEASE + 1)
    await broker.maintain()
    assert await state_of(broker) is JobState.READY
    claim = await claim_one(broker)
    assert (claim.attempt, claim.crashes) == (2, 1)
    for state in (JobState.SUCCEEDED, JobState.DEAD, JobState.SCHEDULED, JobState.READY):
        assert not await settle(broker, late, state, result=b"late")
    assert await broker.renew([late, claim], lease=LEASE) == [LeaseStatus.LOST, LeaseStatus.HELD]
    assert await settle(broker, claim, JobState.SUCCEEDED, result=b"1")
    job = await broker.get("one")
    assert job is not None
    assert job.result == b"1"


async def test_a_lease_that_ended_is_lost_before_anybody_else_has_the_job(broker: Broker) -> None:
    await broker.enqueue([message()])
    late = await claim_one(broker)
    await elapse(broker, LEASE + 1)
    await broker.maintain()
    assert await broker.renew([late], lease=LEASE) == [LeaseStatus.LOST]
    assert not await settle(broker, late, JobState.SUCCEEDED)
    assert await claimed(broker) == ["one"]


async def test_a_renewed_lease_goes_on(broker: Broker) -> None:
    await broker.enqueue([message(), message("two")])
    one, two = await broker.claim(["q"], 2, lease=LEASE)
    for _ in range(5):
        await elapse(broker, LEASE - 1)
        assert await broker.renew([one], lease=LEASE) == [LeaseStatus.HELD]
        await broker.maintain()
    assert await state_of(broker) is JobState.RUNNING
    assert await broker.renew([two], lease=LEASE) == [LeaseStatus.LOST]
    assert await settle(broker, one, JobState.SUCCEEDED)


async def test_an_intermediate_result(broker: Broker) -> None:
    await broker.enqueue([message(), message("two")])
    one, two = await broker.claim(["q"], 2, lease=LEASE)
    assert await broker.save("one", one.token, b"half")
    assert await broker.save("two", two.token, b"half")
    assert not await broker.save("one", f"{one.token}?", b"other")
    job = await broker.get("one")
    assert job is not None
    assert (job.state, job.result) == (JobState.RUNNING, b"half")
    await settle(broker, one, JobState.SCHEDULED)
    assert not await broker.save("one", one.token, b"late")
    again = await claim_one(broker)
    assert await settle(broker, again, JobState.DEAD)
    assert await settle(broker, two, JobState.SUCCEEDED)
    results = [await broker.get(id) for id in ("one", "two")]
    assert [job and job.result for job in results] == [b"half", None]
    assert not await broker.save("one", again.token, b"late")
    assert not await broker.save("?", again.token, b"none")


async def test_no_intermediate_result_once_the_lease_has_ended(broker: Broker) -> None:
    await broker.enqueue([message()])
    late = await claim_one(broker)
    await elapse(broker, LEASE + 1)
    assert not await broker.save("one", late.token, b"late")


async def test_settlements_are_judged_one_by_one(broker: Broker) -> None:
    await broker.enqueue([message(str(number)) for number in range(3)])
    first, second, third = await broker.claim(["q"], 3, lease=LEASE)
    assert await settle(broker, second, JobState.DEAD)
    states = [settlement(each, JobState.SUCCEEDED) for each in (first, second, third)]
    assert await broker.settle(states) == [True, False, True]
    assert [await state_of(broker, str(number)) for number in range(3)] == [
        JobState.SUCCEEDED,
        JobState.DEAD,
        JobState.SUCCEEDED,
    ]


@pytest.mark.parametrize("delay", [0, 10])
async def test_cancelled_before_it_starts_a_job_never_does(broker: Broker, delay: float) -> None:
    await broker.enqueue([message(delay=delay)])
    before = JobState.SCHEDULED if delay else JobState.READY
    assert await broker.cancel("one") is before
    assert await broker.cancel("one") is JobState.CANCELLED
    await elapse(broker, 11)
    assert await claimed(broker) == []
    assert await state_of(broker) is JobState.CANCELLED


async def test_who_runs_a_job_hears_that_it_is_cancelled(broker: Broker) -> None:
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    assert await broker.cancel("one") is JobState.RUNNING
    assert await state_of(broker) is JobState.RUNNING
    assert await broker.renew([claim], lease=LEASE) == [LeaseStatus.CANCELLED]
    assert await settle(broker, claim, JobState.CANCELLED)
    assert await state_of(broker) is JobState.CANCELLED


@pytest.mark.parametrize("state", [JobState.SCHEDULED, JobState.READY])
async def test_a_cancelled_job_is_not_run_again(broker: Broker, state: JobState) -> None:
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    await broker.cancel("one")
    assert await settle(broker, claim, state)
    assert await state_of(broker) is JobState.CANCELLED


async def test_a_cancelled_job_whose_worker_died_is_not_run_again(broker: Broker) -> None:
    await broker.enqueue([message()])
    await claim_one(broker)
    await broker.cancel("one")
    await elapse(broker, LEASE + 1)
    await broker.maintain()
    assert await state_of(broker) is JobState.CANCELLED


async def test_a_cancelled_job_may_still_succeed(broker: Broker) -> None:
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    await broker.cancel("one")
    assert await settle(broker, claim, JobState.SUCCEEDED)
    assert await state_of(broker) is JobState.SUCCEEDED


async def test_unknown_jobs(broker: Broker) -> None:
    assert await broker.get("?") is None
    assert await broker.cancel("?") is None
    assert not await broker.requeue("?")
    assert await broker.wait("?", 10) is None


@pytest.mark.parametrize("delay", [0.0, 500.0])
async def test_a_job_that_was_not_started_in_time_expires(broker: Broker, delay: float) -> None:
    await broker.enqueue([message(expires=10, delay=delay)])
    await elapse(broker, 11)
    await broker.maintain()
    assert await state_of(broker) is JobState.EXPIRED
    await elapse(broker, 10)
    assert await claimed(broker) == []


async def test_a_job_that_was_started_in_time_does_not_expire(broker: Broker) -> None:
    await broker.enqueue([message(expires=10)])
    claim = await claim_one(broker)
    await settle(broker, claim, JobState.SCHEDULED, delay=20)
    await elapse(broker, 21)
    assert await claimed(broker) == ["one"]


async def test_what_has_ended_is_kept_for_a_while(broker: Broker) -> None:
    await broker.enqueue([message(retention=100), message("two", retention=0)])
    for claim in await broker.claim(["q"], 2, lease=LEASE):
        await settle(broker, claim, JobState.SUCCEEDED)
    await elapse(broker, 99)
    await broker.maintain()
    assert await state_of(broker) is JobState.SUCCEEDED
    assert await broker.get("two") is None
    await elapse(broker, 2)
    await broker.maintain()
    assert await broker.get("one") is None
    assert await broker.count() == 0


@pytest.mark.parametrize("state", sorted(FINAL - {JobState.EXPIRED}))
async def test_requeueing_starts_anew(broker: Broker, state: JobState) -> None:
    await broker.enqueue([message()])
    assert not await broker.requeue("one")
    claim = await claim_one(broker)
    assert not await broker.requeue("one")
    await broker.cancel("one")
    await settle(broker, claim, state, result=b"1", error={"type": "E"})
    assert await broker.requeue("one")
    job = await broker.get("one")
    assert job is not None
    assert (job.state, job.attempt, job.result, job.finished_at) == (JobState.READY, 0, None, None)
    again = await claim_one(broker)
    assert (again.attempt, again.crashes) == (1, 0)
    assert await broker.renew([again], lease=LEASE) == [LeaseStatus.HELD]
    assert not await settle(broker, claim, JobState.SUCCEEDED)


async def test_an_expired_job_can_be_requeued(broker: Broker) -> None:
    await broker.enqueue([message(expires=10)])
    await elapse(broker, 11)
    await broker.maintain()
    assert await broker.requeue("one")
    await elapse(broker, 11)
    assert await claimed(broker) == ["one"]


async def test_counting_and_scanning(broker: Broker) -> None:
    sent = [message("a"), message("b", queue="r"), message("c", delay=10), message("d")]
    await broker.enqueue(sent)
    claim = await claim_one(broker)
    await settle(broker, claim, JobState.DEAD)

    async def ids(**chosen: Any) -> list[str]:
        found: list[StoredJob] = [job async for job in broker.scan(**chosen)]
        assert await broker.count(**chosen) == len(found)
        return [job.message.id for job in found]

    assert await ids() == ["a", "b", "c", "d"]
    assert await ids(queue="q") == ["a", "c", "d"]
    assert await ids(state=JobState.READY) == ["b", "d"]
    assert await ids(queue="q", state=JobState.DEAD) == ["a"]
    assert await ids(queue="r", state=JobState.DEAD) == []


async def test_purging(broker: Broker) -> None:
    await broker.enqueue([message(id, retention=1000) for id in "abcd"])
    first, second = await broker.claim(["q"], 2, lease=LEASE)
    await settle(broker, first, JobState.DEAD)
    await elapse(broker, 20)
    await broker.cancel("c")
    assert await broker.purge(older_than=30) == 0
    assert await broker.purge(older_than=10, state=JobState.CANCELLED) == 0
    assert await broker.purge(older_than=10) == 1
    assert await broker.get("a") is None
    assert await broker.purge() == 1
    assert [job.message.id async for job in broker.scan()] == ["b", "d"]
    assert await settle(broker, second, JobState.SUCCEEDED)


async def test_maintenance_tells_what_it_did(broker: Broker) -> None:
    await broker.enqueue(
        [message("a", retention=5), message("b", delay=1), message("c", expires=1)]
    )
    (claim,) = await broker.claim(["q"], 1, lease=1)
    assert await broker.maintain() == MaintenanceStats()
    await elapse(broker, 1.1)
    assert await broker.maintain() == MaintenanceStats(due=1, reclaimed=1, expired=1)
    claim = await claim_one(broker)
    await settle(broker, claim, JobState.SUCCEEDED)
    await elapse(broker, 5.1)
    assert await broker.maintain() == MaintenanceStats(deleted=1)


async def test_waiting_for_work(broker: Broker, broker_kind: Kind) -> None:
    second = broker_kind.second
    began = anyio.current_time()

    async def wait(*queues: str, timeout: float = 100) -> None:
        nonlocal began
        began = anyio.current_time()
        await broker.wait_for_work(queues, timeout * second)

    def waited(seconds: float) -> None:
        took = anyio.current_time() - began
        assert (seconds - 1) * second < took < seconds * second + broker_kind.late

    await wait("q", timeout=7)
    waited(7)
    await broker.enqueue([message("elsewhere", queue="r"), message(delay=10 * second)])
    await wait("q")
    waited(10)
    await wait("q", "r")
    waited(0)
    await broker.claim(["q"], 1, lease=15 * second)
    await wait("q")
    waited(15)
    claim = await claim_one(broker)
    async with anyio.create_task_group() as group:
        group.start_soon(wait, "q")
        await anyio.sleep(5 * second)
        await settle(broker, claim, JobState.READY)
    waited(5)


async def test_waiting_for_the_end_of_a_job(broker: Broker, broker_kind: Kind) -> None:
    await broker.enqueue([message()])
    ended: list[StoredJob | None] = []
    first = anyio.Event()

    async def wait(timeout: float) -> None:
        ended.append(await broker.wait("one", timeout * broker_kind.second))
        first.set()

    async with anyio.create_task_group() as group:
        group.start_soon(wait, 1000)
        group.start_soon(wait, 5)
        await first.wait()
        (early,) = ended
        assert early is not None
        assert early.state is JobState.READY
        await settle(broker, await claim_one(broker), JobState.SUCCEEDED, result=b"1")
    assert ended[1] is not None
    assert ended[1].result == b"1"
    assert await broker.wait("one", 0) == ended[1]


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


async def test_many_jobs(broker: Broker) -> None:
    """Each is handed out once, whoever asks."""
    await broker.enqueue([message(str(number)) for number in range(1000)])
    seen: list[str] = []

    async def work() -> None:
        while claims := await broker.claim(["q"], 7, lease=LEASE):
            seen.extend(each.message.id for each in claims)
            states = [settlement(each, JobState.SUCCEEDED) for each in claims]
            assert all(await broker.settle(states))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(work)
    assert sorted(seen) == sorted(str(number) for number in range(1000))
    assert await broker.count(state=JobState.SUCCEEDED) == 1000


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
