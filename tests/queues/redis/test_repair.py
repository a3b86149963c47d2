"""Passes that repair the indexes and counts in Redis from the records of jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from redis import Redis
from support.brokers.jobs import LEASE, claim_one, claimed, message, settle, settlement, state_of
from support.brokers.kinds import elapse
from support.brokers.redis import finish, messages, open_broker
from support.brokers.redis_servers import Server

from background.queues import JobState
from background.queues._states import FINAL
from background.queues.redis import RedisBroker
from background.queues.redis import broker as module
from background.queues.redis.script import FIELDS

#: Changes one value of a record. Values are MessagePack, so that they can have any type.
CHANGE = """
local job = cmsgpack.unpack(redis.call('HGET', KEYS[1], ARGV[1]))
job[tonumber(ARGV[2])] = cmsgpack.unpack(ARGV[3])
redis.call('HSET', KEYS[1], ARGV[1], cmsgpack.pack(job))
"""
#: nil, true, -1, a string, an array, a map, NaN, infinity, and a large number
VALUES = (
    *(b"\xc0", b"\xc3", b"\xff", b"\xa1x", b"\x91\x01", b"\x81\xa1x\x01"),
    *(b"\xcb\x7f" + byte + b"\0" * 6 for byte in (b"\xf8", b"\xf0", b"\xe0")),
)


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with Redis.from_url(server.url) as client:
        yield client


def key(broker: RedisBroker, name: str) -> str:
    return f"{{{broker.prefix}}}:{name}"


@asynccontextmanager
async def second(broker: RedisBroker, server: Server) -> AsyncIterator[RedisBroker]:
    """Open another broker with the same jobs, and with a name of its own."""
    async with open_broker(server.url, prefix=broker.prefix) as opened:
        opened._process = "second"
        yield opened


async def repair(broker: RedisBroker) -> None:
    """Run a whole pass, as the first maintenance does."""
    broker._requests_repair = True
    await broker.maintain()
    await broker.maintain()  # it deletes jobs whose retention was wrong


async def check(broker: RedisBroker, client: Any) -> dict[str, JobState]:
    """Check that the indexes and counts match the jobs; return their states."""
    jobs = {job.message.id: job.state async for job in broker.scan()}
    for state in JobState:
        assert await broker.count(state=state) == list(jobs.values()).count(state), state
    counts = client.hgetall(key(broker, "counts"))
    assert all(int(count) > 0 for count in counts.values())
    assert sum(map(int, counts.values())) == len(jobs)

    def members(name: str) -> list[str]:
        return [member.decode() for member in client.zrange(key(broker, name), 0, -1)]

    ready = {id for id, state in jobs.items() if state is JobState.READY}
    ended = {id for id, state in jobs.items() if state in FINAL}
    assert members("order") == list(jobs)
    assert {member.partition("\0")[2][14:] for member in members("ready")} == ready
    assert set(members("kept")) == ended
    assert set(members("changing")) <= set(jobs) - ended
    assert {member.split(" ")[1] for member in members("dependants")} <= set(jobs) - ended - ready
    return jobs


async def store_jobs(broker: RedisBroker) -> None:
    """Store jobs in all states."""
    await broker.enqueue([message("ended"), message("dead"), message("running")])
    ended, dead, _ = await broker.claim(["q"], 3, lease=LEASE)
    await settle(broker, ended, JobState.SUCCEEDED, result=b"1")
    await settle(broker, dead, JobState.DEAD, error={"type": "E"})
    sent = [message("ready"), message("later", delay=20), message("expiring", expires=500)]
    blocked = message("blocked", depends_on=("ended", "running", "later"))
    await broker.enqueue([*sent, blocked, message("last", depends_on=("blocked",))])


async def run_all(broker: RedisBroker) -> set[str]:
    """Let all jobs become due, run them, and return the ids of those that ran."""
    await elapse(broker, LEASE + 1)
    ran: set[str] = set()
    while claims := await broker.claim(["q"], 10, lease=LEASE):
        assert all(await finish(broker, claims))
        ran |= {claim.message.id for claim in claims}
    return ran


WAITING = {"ready", "later", "expiring", "running", "blocked", "last"}
INDEXES = ("ready", "changing", "kept", "order", "dependants")


# Indexes


@pytest.mark.parametrize("name", INDEXES)
async def test_missing_entries(broker: RedisBroker, client: Any, name: str) -> None:
    """Each missing entry of an index is stored again, and its job runs."""
    await store_jobs(broker)
    before = client.zrange(key(broker, name), 0, -1, withscores=True)
    for member, _ in before:
        client.zrem(key(broker, name), member)
        await repair(broker)
        assert client.zrange(key(broker, name), 0, -1, withscores=True) == before
        assert len(await check(broker, client)) == 8
    assert await run_all(broker) == WAITING
    await check(broker, client)


@pytest.mark.parametrize("name", [*INDEXES, "counts", "number", "repair"])
async def test_missing_index(
    broker: RedisBroker, client: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A missing index is rebuilt, and the correction is logged."""
    await store_jobs(broker)
    await repair(broker)
    caplog.clear()
    client.delete(key(broker, name))
    await repair(broker)
    reports = caplog.text.count("did not match the jobs and are corrected")
    assert reports == (name not in ("number", "repair"))
    assert len(await check(broker, client)) == 8
    assert await broker.enqueue([message("new")]) == [True]
    assert list(await check(broker, client))[-1] == "new"
    assert await run_all(broker) == {*WAITING, "new"}


@pytest.mark.parametrize("name", ["changing", "kept", "order"])
@pytest.mark.parametrize("score", [float("-inf"), 0, 1, float("inf")])
async def test_foreign_members(
    broker: RedisBroker, client: Any, name: str, score: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many members that are no jobs stop neither transitions nor maintenance."""
    monkeypatch.setattr(module, "_CHUNK", 50)
    monkeypatch.setattr(module, "_REPAIR_PAGE", 20)
    await store_jobs(broker)
    client.zadd(key(broker, name), {f"stray-{number}": score for number in range(120)})
    await repair(broker)
    assert len(await check(broker, client)) == 8
    assert await run_all(broker) == WAITING


@pytest.mark.parametrize("name", ["changing", "kept"])
async def test_wrong_scores(broker: RedisBroker, client: Any, name: str) -> None:
    """Many jobs with wrong low scores neither block transitions nor make maintenance endless."""
    sent = [*messages(150, delay=1000), *(message(f"x{n:04}") for n in range(150))]
    await broker.enqueue([*sent, message("due", delay=5)])
    assert all(await finish(broker, await broker.claim(["q"], 150, lease=LEASE)))
    await broker.maintain()
    client.zadd(key(broker, name), {message.id: 0 for message in sent})
    await elapse(broker, 6)
    for _ in range(4):  # a call has a hundred transitions
        ids = await claimed(broker)
    with anyio.fail_after(10):
        await broker.maintain()
    ids += await claimed(broker)
    assert await state_of(broker, "due") is JobState.RUNNING
    jobs = await check(broker, client)
    assert len(jobs) == 301
    assert jobs["x0000"] is JobState.SUCCEEDED


async def test_foreign_dependants(broker: RedisBroker, client: Any) -> None:
    """Members of dependants that are no jobs don't disturb a settlement, and are removed."""
    await store_jobs(broker)
    strays = ("running", "running x", "running x 1", "running x x", "running  1", "x blocked 9")
    client.zadd(key(broker, "dependants"), dict.fromkeys(strays, 0))
    assert await run_all(broker) == WAITING
    client.zadd(key(broker, "dependants"), dict.fromkeys(strays[:-1], 0))
    await repair(broker)
    await check(broker, client)


async def test_ready_in_other_queue(broker: RedisBroker, client: Any) -> None:
    """A job with a wrong entry in `ready` is claimed from its own queue only."""
    await broker.enqueue([message("one")])
    client.zadd(
        key(broker, "ready"), {b"r\0" + b"0" * 14 + b"one": 0, b"q\0" + b"0" * 14 + b"one": 0}
    )
    assert await claimed(broker, "r") == []
    assert await claimed(broker, "q") == ["one"]
    await check(broker, client)


async def test_wrong_order(broker: RedisBroker, client: Any) -> None:
    """Jobs with wrong numbers in `order` return to their places, and are counted once."""
    await broker.enqueue(messages(50))
    for ids in (range(50), range(5), range(45, 50)):
        for score in (0, 25, 25.5, 1000, float("inf")):
            client.zadd(key(broker, "order"), {f"{number:04}": score for number in ids})
            await repair(broker)
            assert list(await check(broker, client)) == [sent.id for sent in messages(50)]


# Counts


async def test_wrong_counts(broker: RedisBroker, client: Any) -> None:
    """Counts that are wrong, negative or no numbers neither stop workers nor stay."""
    await store_jobs(broker)
    await broker.maintain()
    for count in ("-5", "x", "", "9223372036854775807", "-9223372036854775808", "1.5"):
        for state in JobState:
            client.hset(key(broker, "counts"), f"q {state}", count)
        client.hset(key(broker, "counts"), "q", count)
        client.hset(key(broker, "counts"), "q ready x", count)
        assert isinstance(await broker.count(), int)
        (claim,) = await broker.claim(["q"], 1, lease=LEASE)
        await settle(broker, claim, JobState.READY)
        await repair(broker)
        assert len(await check(broker, client)) == 8
    assert await run_all(broker) == WAITING


async def test_negative_count(broker: RedisBroker, client: Any) -> None:
    """A count that becomes negative is corrected at the next maintenance."""
    await broker.enqueue([message("one"), message("two")])
    await broker.maintain()
    client.delete(key(broker, "counts"))
    await claim_one_of(broker)
    await broker.maintain()
    await check(broker, client)


async def claim_one_of(broker: RedisBroker) -> None:
    """Claim one of several jobs."""
    assert len(await broker.claim(["q"], 1, lease=LEASE)) == 1


async def test_hourly_pass(broker: RedisBroker, client: Any) -> None:
    """A pass runs each hour."""
    await broker.enqueue([message(delay=10_000)])
    await broker.maintain()
    client.hset(key(broker, "counts"), "q scheduled", 7)
    await elapse(broker, 3500)
    await broker.maintain()
    assert await broker.count() == 7
    await elapse(broker, 200)
    await broker.maintain()
    assert await broker.count() == 1


# Records


@pytest.mark.parametrize("name", ["messages", "jobs"])
async def test_missing_parts(broker: RedisBroker, client: Any, name: str) -> None:
    """A job whose message or record is missing is set aside, and the others run."""
    ids = ["ended", "dead", "running", "ready", "later", "expiring", "blocked", "last"]
    for lost in ids:
        if name == "jobs" and lost == "ready":
            continue  # it has no record
        await store_jobs(broker)
        client.hdel(key(broker, name), lost)
        await repair(broker)
        jobs = await check(broker, client)
        assert jobs.keys() == {*ids} - {lost}
        assert client.hexists(key(broker, "damaged"), lost) or lost == "ready"
        fails = {"running": {"blocked", "last"}, "later": {"blocked", "last"}, "blocked": {"last"}}
        dead = fails.get(lost, set())
        assert {id for id, state in jobs.items() if state is JobState.DEAD} - {"dead"} == dead
        assert await run_all(broker) == WAITING - {lost} - dead
        await broker.purge()
        await check(broker, client)


@pytest.mark.parametrize("lost", ["blocked", "later", "running"])
async def test_missing_message_without_pass(broker: RedisBroker, client: Any, lost: str) -> None:
    """A missing message stops neither claims nor transitions before the repair."""
    await store_jobs(broker)
    await broker.maintain()
    client.hdel(key(broker, "messages"), lost)
    await broker.enqueue([message("next")])
    assert set(await claimed(broker)) == {"ready", "expiring", "next"}
    for id in ("later", "running"):
        await broker.cancel(id)
    await elapse(broker, LEASE + 1)
    assert set(await claimed(broker)) >= {"ready", "expiring", "next"}
    await repair(broker)
    await check(broker, client)


async def test_expired_without_message(broker: RedisBroker, client: Any) -> None:
    """A blocked job without a message expires, and workers go on."""
    await broker.enqueue([message("a"), message("b", depends_on=("a",), expires=5)])
    client.hdel(key(broker, "messages"), "b")
    await elapse(broker, 6)
    assert await claimed(broker) == ["a"]
    await broker.maintain()
    assert list(await check(broker, client)) == ["a"]


@pytest.mark.parametrize("lost", ["a", "b"])
async def test_settle_without_message(broker: RedisBroker, client: Any, lost: str) -> None:
    """A settlement is accepted although the message of the job or a dependant is missing."""
    await broker.enqueue([message("a"), message("b", depends_on=("a",))])
    claim = await claim_one(broker)
    client.hdel(key(broker, "messages"), lost)
    assert await settle(broker, claim, JobState.SUCCEEDED)
    assert await claimed(broker) == ([] if lost == "b" else ["b"])
    await broker.maintain()
    assert list(await check(broker, client)) == ["b" if lost == "a" else "a"]


@pytest.mark.parametrize("number", range(len(VALUES)))
async def test_wrong_types(
    broker: RedisBroker, client: Any, number: int, pytestconfig: pytest.Config
) -> None:
    """A record with a value of a wrong type stops no script, and other jobs run."""
    damaged = ("later", "running", "ended", "expiring", "blocked")
    first, step = (1, 1) if pytestconfig.getoption("exhaustive") else (1 + number % 4, 4)
    for place in range(first, len(FIELDS) + 1, step):
        id = damaged[(place + number) % len(damaged)]
        await store_jobs(broker)
        client.eval(CHANGE, 1, key(broker, "jobs"), id, place, VALUES[number])
        await broker.get(id)
        await broker.cancel(id)
        await broker.requeue(id)
        assert await run_all(broker) >= {"later", "running", "expiring", "ready"} - {id}
        await repair(broker)
        assert len(await check(broker, client)) >= 5
        client.delete(*client.keys(key(broker, "*")))


async def test_fresh_job_in_changing(broker: RedisBroker, client: Any) -> None:
    """A wrong entry does not cost a job that is ready and has no record."""
    await broker.enqueue([message("a"), message("b")])
    client.zadd(key(broker, "changing"), {"a": 1})
    client.zadd(key(broker, "kept"), {"b": 1})
    await broker.maintain()
    assert await claimed(broker) == ["a", "b"]
    await check(broker, client)


async def test_lost_record_without_pass(broker: RedisBroker, client: Any) -> None:
    """A job whose record was lost is set aside at the end of its lease."""
    await broker.enqueue([message("a"), message("b")])
    await broker.claim(["q"], 2, lease=LEASE)
    await broker.maintain()
    client.hdel(key(broker, "jobs"), "a")
    await elapse(broker, LEASE + 1)
    assert await claimed(broker) == ["b"]
    await broker.maintain()
    assert list(await check(broker, client)) == ["b"]


# Dependants


async def test_dependants_of_damaged_job(broker: RedisBroker, client: Any) -> None:
    """Jobs that depend on a job that is set aside are dead, with an error that says so."""
    await broker.enqueue([message("a"), message("b", depends_on=("a",))])
    await broker.enqueue([message("c", depends_on=("b",))])
    client.hset(key(broker, "jobs"), "a", b"garbage")
    assert await claimed(broker) == []
    job = await broker.get("b")
    assert job is not None
    assert job.state is JobState.DEAD
    assert job.error == {
        "type": "background.queues.JobFailedError",
        "message": "job a, which it depends on, is set aside, because it can't be read",
    }
    assert await state_of(broker, "c") is JobState.DEAD
    await broker.maintain()
    await check(broker, client)


async def test_dependants_of_missing_job(broker: RedisBroker, client: Any) -> None:
    """Jobs that depend on a job that is not stored any more are dead, with the reason."""
    await broker.enqueue([message("a"), message("b"), message("c", depends_on=("a", "b"))])
    for name in ("messages", "jobs"):
        client.hdel(key(broker, name), "b")
    await broker.maintain()
    job = await broker.get("c")
    assert job is not None
    assert job.state is JobState.DEAD
    assert job.error is not None
    assert job.error["message"] == "job b, which it depends on, is missing"
    assert await check(broker, client) == {"a": JobState.READY, "c": JobState.DEAD}


async def test_dependencies_past_retention(broker: RedisBroker, client: Any) -> None:
    """A dependency that succeeded and was deleted since is not missing."""
    await broker.enqueue([message("a", retention=0), message("b")])
    await broker.enqueue([message("c", depends_on=("a", "b"))])
    await finish(broker, await broker.claim(["q"], 1, lease=LEASE))
    await repair(broker)
    assert await check(broker, client) == {"b": JobState.READY, "c": JobState.SCHEDULED}
    assert await run_all(broker) == {"b", "c"}


async def test_missed_ends(broker: RedisBroker, client: Any) -> None:
    """A job whose dependencies ended without notice starts, with the results, or is dead."""
    await broker.enqueue([message("a"), message("b")])
    await broker.enqueue(
        [
            message("c", depends_on=("a",)),
            message("d", depends_on=("b",)),
            message("e", depends_on=("a", "b")),
        ]
    )
    entries = client.zrange(key(broker, "dependants"), 0, -1)
    client.delete(key(broker, "dependants"))
    first, last = await broker.claim(["q"], 2, lease=LEASE)
    await settle(broker, first, JobState.SUCCEEDED, result=b"1")
    await settle(broker, last, JobState.DEAD)
    client.zadd(key(broker, "dependants"), dict.fromkeys(entries, 0))
    await broker.maintain()
    jobs = await check(broker, client)
    assert [jobs[id] for id in "cde"] == [JobState.READY, JobState.DEAD, JobState.DEAD]
    assert (await claim_one(broker)).previous == (b"1",)


async def test_reused_id(broker: RedisBroker, client: Any) -> None:
    """An id that was set aside can be enqueued again in the same call."""
    await broker.enqueue([message("a"), message("b", depends_on=("a",))])
    client.hset(key(broker, "jobs"), "a", b"garbage")
    sent = [message("a"), message("b"), message("c", depends_on=("a",))]
    assert await broker.enqueue(sent) == [True, False, True]
    assert await state_of(broker, "b") is JobState.DEAD
    await finish(broker, await broker.claim(["q"], 1, lease=LEASE))
    assert await claimed(broker) == ["c"]


# Passes


def slow_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each maintenance run one page of three jobs."""
    monkeypatch.setattr(module, "_REPAIR_PAGE", 3)
    monkeypatch.setattr(module, "_REPAIR_TIME", 0.0)


def is_running(broker: RedisBroker, client: Any) -> bool:
    """Return whether a pass is running."""
    return bool(client.hexists(key(broker, "repair"), "until"))


async def test_changes_during_pass(
    broker: RedisBroker, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that are enqueued, claimed, settled and deleted during a pass are counted right."""
    slow_down(monkeypatch)
    await broker.enqueue(messages(30))
    await broker.enqueue([message(f"d{n}", depends_on=(f"{n:04}",)) for n in range(15)])
    client.hset(key(broker, "counts"), "q ready", -100)
    pages = 0
    await broker.maintain()
    while is_running(broker, client):
        pages += 1
        await broker.enqueue(
            [
                message(f"n{pages}"),
                message(f"l{pages}", delay=1000),
                message(f"m{pages}", retention=0),
            ]
        )
        claims = await broker.claim(["q"], 4, lease=LEASE)
        ends = (JobState.SUCCEEDED, JobState.DEAD, JobState.READY, JobState.SCHEDULED)
        await broker.settle(
            [settlement(claim, end) for claim, end in zip(claims, ends, strict=False)]
        )
        await broker.cancel(f"00{29 - pages % 30:02}")
        if pages % 7 == 0:
            await broker.purge(state=JobState.DEAD)
        await broker.maintain()
    assert pages > 10
    assert len(await check(broker, client)) > 50


async def test_two_brokers(
    broker: RedisBroker, server: Server, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brokers that maintain at the same time run one pass after the other."""
    slow_down(monkeypatch)
    monkeypatch.setattr(module, "_REPAIR_TIME", 10.0)
    await broker.enqueue([*messages(60), message("last", depends_on=("0000", "0059"))])
    client.delete(key(broker, "counts"), key(broker, "ready"))

    async def work(worker: RedisBroker) -> None:
        for _ in range(15):
            await worker.maintain()
            await finish(worker, await worker.claim(["q"], 1, lease=LEASE))

    async with second(broker, server) as partner, anyio.create_task_group() as group:
        group.start_soon(work, broker)
        group.start_soon(work, partner)
    await broker.maintain()
    assert not is_running(broker, client)
    jobs = await check(broker, client)
    assert list(jobs.values()).count(JobState.SUCCEEDED) == 30


async def test_dead_owner(
    broker: RedisBroker, server: Server, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass whose broker died is continued by another one after fifteen seconds."""
    slow_down(monkeypatch)
    await broker.enqueue(messages(20, delay=1000))
    client.delete(key(broker, "counts"))
    for _ in range(4):
        await broker.maintain()
    state = client.hgetall(key(broker, "repair"))
    assert float(state[b"cursor"]) > 0
    await broker.close()
    async with second(broker, server) as successor:
        await elapse(broker, 10)
        await successor.maintain()
        assert client.hget(key(broker, "repair"), "cursor") == state[b"cursor"]
        await elapse(broker, 6)
        await successor.maintain()
        assert client.hget(key(broker, "repair"), "owner") == b"second"
        assert float(client.hget(key(broker, "repair"), "cursor")) == float(state[b"cursor"]) + 2
        for _ in range(40):
            await successor.maintain()
        assert not is_running(broker, client)
        assert len(await check(successor, client)) == 20


async def test_damaged_pass(
    broker: RedisBroker, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass whose state was damaged begins again."""
    slow_down(monkeypatch)
    await broker.enqueue(messages(20))
    damage: list[dict[str, Any]] = [
        {"cursor": "x"},
        {"cursor": 10, "=q ready": "x", "=q running": "x"},
        {"scan": "9 0", "until": "x"},
        {"next": "x"},
        {"=q scheduled": "x", "corrections": "x", "limit": "x"},
    ]
    for fields in damage:
        broker._requests_repair = True
        for _ in range(4):
            await broker.maintain()
        assert is_running(broker, client)
        client.hset(key(broker, "repair"), mapping=fields)
        await claim_one_of(broker)
        while is_running(broker, client):
            await broker.maintain()
        await repair(broker)
        while is_running(broker, client):
            await broker.maintain()
        assert len(await check(broker, client)) == 20


async def test_large_messages(
    broker: RedisBroker, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of large messages ends early."""
    monkeypatch.setattr(module, "_REPAIR_TIME", 0.0)
    await broker.enqueue([message(f"a{n}", body=b"x" * 1_500_000) for n in range(8)])
    await broker.maintain()
    cursors = [client.hget(key(broker, "repair"), "cursor")]
    while is_running(broker, client):
        await broker.maintain()
        cursors.append(client.hget(key(broker, "repair"), "cursor"))
    assert [cursor and float(cursor) for cursor in cursors] == [2, 4, 6, None]
    await check(broker, client)
