"""Jobs and results in Redis beyond the conformance suite."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from support.brokers.jobs import LEASE, claim_one, claimed, message, settle
from support.brokers.kinds import elapse, make_redis_results
from support.brokers.redis import (
    QUOTED,
    finish,
    messages,
    own_server,
    wait_without_work,
)
from support.brokers.redis_servers import Server
from support.time import SOON

from background.queues._errors import BrokerUnavailableError
from background.queues._states import JobState
from background.queues.abc import LeaseStatus, MaintenanceStats
from background.queues.redis import RedisBroker, RedisResults
from background.queues.redis import broker as module
from background.queues.redis import script as script_module
from background.queues.redis.script import KEYS, Script


def keys(server: Server, broker: RedisBroker) -> dict[str, int]:
    """Return the sizes in bytes of a broker's keys, by name."""
    with Redis.from_url(server.url) as client:
        names = client.keys(f"{{{broker.prefix}}}:*")
        return {
            name.decode().partition(":")[2]: client.memory_usage(name, samples=0) for name in names
        }


# Jobs


async def test_invalid_names(broker: RedisBroker) -> None:
    """Ids and names with white space or a null byte are rejected, and ids with a comma."""
    invalid = [message("a,b")]
    for name in ("a b", "a\nb", "a\0b"):
        invalid += [message(name), message(queue=name), message(handler=name)]
    for rejected in invalid:
        with pytest.raises(ValueError, match="can't contain spaces"):
            await broker.enqueue([message("valid"), rejected])
    assert await broker.count() == 0


async def test_enqueue_nothing(broker: RedisBroker, server: Server) -> None:
    """Enqueueing no messages stores nothing except the version."""
    assert await broker.enqueue([]) == []
    assert set(keys(server, broker)) == {"version"}


async def test_numbers_round_trip(broker: RedisBroker) -> None:
    """Numbers in a message are returned unchanged."""
    sent = message(retention=1e9 + 1 / 3, delay=-0.1, at=1 / 3, expires=float("inf"), handler="-")
    await broker.enqueue([sent])
    assert (await claim_one(broker)).message == sent


async def test_chunks(broker: RedisBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many jobs are processed in chunks.

    A long script would block other clients.
    """
    monkeypatch.setattr(module, "_CHUNK", 4)
    monkeypatch.setattr("background.queues.redis.codec._MOST_AT_ONCE", 3)
    await broker.enqueue([*messages(10, delay=5), message("z", queue="r")])
    assert [job.message.id async for job in broker.scan(queue="r")] == ["z"]
    assert len([job async for job in broker.scan()]) == 11
    await elapse(broker, 6)
    assert await broker.maintain() == MaintenanceStats(due=10)
    claims = [claim for _ in range(3) for claim in await broker.claim(["q"], 10, lease=30)]
    assert [claim.message.id for claim in claims] == [f"{number:04}" for number in range(10)]
    assert await broker.renew(claims, lease=30) == [LeaseStatus.HELD] * 10
    assert await finish(broker, claims) == [True] * 10
    assert await broker.purge(state=JobState.DEAD) == 0
    await elapse(broker, 61)
    assert await broker.maintain() == MaintenanceStats(deleted=10)
    await broker.enqueue(messages(12))
    while claims := await broker.claim(["q"], 12, lease=30):
        await finish(broker, claims)
    assert await broker.purge(state=JobState.SUCCEEDED) == 12
    assert await broker.count() == 1


async def test_unknown_dependency_in_chunks(
    broker: RedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown dependency rejects all messages of a call, even in several chunks."""
    monkeypatch.setattr("background.queues.redis.codec._MOST_AT_ONCE", 3)
    chain = [message("0"), *(message(str(n), depends_on=(str(n - 1), "0")) for n in range(1, 8))]
    with pytest.raises(ValueError, match="job x depends on job y, which is not stored"):
        await broker.enqueue([*chain, message("x", depends_on=("3", "y"))])
    assert await broker.count() == 0
    assert await broker.enqueue(chain) == [True] * 8
    more = [message(f"x{n}", depends_on=(str(n), "0")) for n in range(8)]
    assert await broker.enqueue([*chain, *more]) == [False] * 8 + [True] * 8
    assert (
        await broker.enqueue([message(f"y{n}", depends_on=(str(n),)) for n in range(8)])
        == [True] * 8
    )


async def test_past_retention(broker: RedisBroker) -> None:
    """A job past its retention is not found, even before maintenance deletes it."""
    await broker.enqueue([message(retention=5), message("two", expires=5)])
    await finish(broker, await broker.claim(["q"], 1, lease=30))
    await elapse(broker, 6)
    assert await broker.get("one") is None
    assert await broker.cancel("one") is None
    assert not await broker.requeue("one")
    assert await broker.claim(["q"], 1, lease=30) == []
    assert [job.message.id async for job in broker.scan()] == ["two"]
    assert await broker.purge() == 1
    with pytest.raises(ValueError, match="depends on job one"):
        await broker.enqueue([message("three", depends_on=("one",))])


async def test_mixed_ids(broker: RedisBroker) -> None:
    """One call may contain new ids, stored ids, and ids of jobs past their retention."""
    await broker.enqueue(
        [message("past", retention=5), message("ready"), message("later", delay=50)]
    )
    await finish(broker, await broker.claim(["q"], 1, lease=30))
    await elapse(broker, 6)
    dependencies = ("past", "ready", "new")
    sent = [
        *(message("ready", body=b"other"), message("past", body=b"again"), message("later")),
        *(message("new"), message("new", body=b"other"), message("all", depends_on=dependencies)),
    ]
    assert await broker.enqueue(sent) == [False, True, False, True, False, True]
    claims = await broker.claim(["q"], 9, lease=30)
    bodies = {claim.message.id: claim.message.body for claim in claims}
    assert bodies == {"ready": message().body, "past": b"again", "new": message().body}
    await finish(broker, claims)
    assert await claimed(broker) == ["all"]
    assert await broker.count() == 5
    assert await broker.enqueue(sent) == [False] * 6


async def test_dependency_without_retention(broker: RedisBroker) -> None:
    """A job can depend on a job of the same call that ends at once without retention."""
    nothing = message("nothing", handler=None, retention=0)
    assert await broker.enqueue([nothing, message(depends_on=("nothing",))]) == [True, True]
    assert await claimed(broker) == ["one"]
    assert await broker.get("nothing") is None


async def test_many_expired_jobs(broker: RedisBroker) -> None:
    """Expired jobs are not claimed, even if there are more than one script ends."""
    await broker.enqueue([*messages(150, expires=5), message("last")])
    await elapse(broker, 6)
    assert await claimed(broker) == ["last"]
    assert await broker.count(state=JobState.EXPIRED) == 150


def record_answers(broker: RedisBroker, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which the sizes of all answers are added."""
    answers: list[int] = []
    ask = broker._ask

    async def record_size(*args: Any) -> bytes:
        answer = await ask(*args)
        answers.append(len(answer))
        return answer

    monkeypatch.setattr(broker, "_ask", record_size)
    return answers


async def test_large_messages(broker: RedisBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large messages are enqueued and scanned in chunks of limited size."""
    monkeypatch.setattr("background.queues.redis.codec._MOST_BYTES", 5_000_000)
    answers = record_answers(broker, monkeypatch)
    assert await broker.enqueue(messages(20, body=b"x" * 900_000)) == [True] * 20
    assert answers == [5] * 4
    answers.clear()
    found = [job.message.id async for job in broker.scan()]
    assert found == [sent.id for sent in messages(20)]
    assert len(answers) == 5
    assert max(answers) < 5_000_000


async def test_scan_of_large_results(broker: RedisBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results count for the size of a page of a scan."""
    await broker.enqueue(messages(8))
    for claim in await broker.claim(["q"], 8, lease=LEASE):
        await settle(broker, claim, JobState.SUCCEEDED, result=bytes(900_000))
    answers = record_answers(broker, monkeypatch)
    assert len([job async for job in broker.scan()]) == 8
    assert [answer // 900_000 for answer in answers] == [5, 3]


async def test_release_with_delay(broker: RedisBroker) -> None:
    """A job can be released with a delay, and its attempt is not counted."""
    await broker.enqueue([message()])
    assert await settle(broker, await claim_one(broker), JobState.READY, delay=10)
    assert await claimed(broker) == []
    await elapse(broker, 11)
    assert (await claim_one(broker)).attempt == 1


async def test_wait_for_expiry(broker: RedisBroker) -> None:
    """Waiting for a job returns when it expires, without maintenance by another process."""
    await broker.enqueue([message(expires=0.05)])
    job = await broker.wait("one", SOON)
    assert job is not None
    assert job.state is JobState.EXPIRED


async def test_duplicate_dependency(broker: RedisBroker) -> None:
    """A dependency that is listed twice is awaited once, and its result is passed twice."""
    await broker.enqueue([message("a", retention=0), message("b", depends_on=("a", "a"))])
    claim = await claim_one(broker)
    assert await settle(broker, claim, JobState.SUCCEEDED, result=b"1")
    assert (await claim_one(broker)).previous == (b"1", b"1")


async def use_everything(broker: RedisBroker, server: Server) -> None:
    """Store data in every key."""
    sent = [*messages(50), *messages(50, delay=100)]
    await broker.enqueue(sent)
    await broker.enqueue([message("early", expires=1000), message("later", delay=1000)])
    dependencies = tuple(sent.id for sent in messages(50))
    await broker.enqueue(
        [message("all", depends_on=dependencies), message("other", depends_on=("all", "later"))]
    )
    claims = await broker.claim(["q"], 20, lease=LEASE)
    for claim in claims:
        await broker.save(claim.message.id, claim.token, b"half")
        end = JobState.DEAD if claim is claims[-1] else JobState.SUCCEEDED
        assert await settle(broker, claim, end, result=b"x" * 50, error={"type": "E"})
    await broker.enqueue([message("more", depends_on=("0000", "later"))])
    assert await broker.requeue("0001")
    for claim in await broker.claim(["q"], 100, lease=LEASE):
        await settle(broker, claim, JobState.SCHEDULED, delay=50, error={"type": "E"})
    await wait_without_work(broker, server)
    await broker.wait("later", 0.01)
    await broker.enqueue([message("ready")])


# Keys


async def test_keys_after_retention(broker: RedisBroker, server: Server) -> None:
    """The keys of jobs are deleted after their retention.

    The number of the latest job remains, and for a while the queues with waiters.
    """
    await use_everything(broker, server)
    assert set(keys(server, broker)) == set(KEYS) - {"damaged", "schedules", "repair"}
    assert await broker.count() == 56
    async for job in broker.scan():
        await broker.cancel(job.message.id)
    assert set(keys(server, broker)) >= {"jobs", "messages", "kept", "order", "counts"}
    assert not {"needs", "ready", "changing"} & set(keys(server, broker))
    await elapse(broker, 61)
    assert (await broker.maintain()).deleted == 56
    left = keys(server, broker)
    assert set(left) == {"version", "number", "idle", "repair"}
    assert left["number"] < 200
    with Redis.from_url(server.url) as client:
        assert 0 < client.pttl(f"{{{broker.prefix}}}:idle") <= 10_000
        assert client.pttl(f"{{{broker.prefix}}}:number") == -1


async def test_keys_after_purge(broker: RedisBroker, server: Server) -> None:
    """The keys of purged jobs are deleted."""
    await use_everything(broker, server)
    async for job in broker.scan():
        await broker.cancel(job.message.id)
    assert await broker.purge() == 56
    assert set(keys(server, broker)) == {"version", "number", "idle"}


async def test_keys_without_retention(broker: RedisBroker, server: Server) -> None:
    """A job without retention leaves no keys."""
    await broker.enqueue([message(retention=0), message("two", retention=0, handler=None)])
    claim = await claim_one(broker)
    await broker.save("one", claim.token, b"half")
    assert await settle(broker, claim, JobState.SUCCEEDED, result=b"1", error={"type": "E"})
    assert set(keys(server, broker)) == {"version", "number"}


def test_scripts_declare_keys() -> None:
    """Scripts use only the keys that they declare, as Redis Cluster requires."""
    scripts = [value for value in vars(script_module).values() if isinstance(value, Script)]
    assert len(scripts) == 20
    for script in scripts:
        text = script.text.decode()
        commands = re.findall(r"\bp?(?:call|bulk)\('(\w+)'(, (?:KEYS\[\d+\]|key\b))?", text)
        assert len(commands) > 20
        assert {name for name, key in commands if not key} == {"TIME", "PUBLISH"}


async def test_dependants_are_deleted(broker: RedisBroker, server: Server) -> None:
    """Entries of dependants are deleted when the dependency succeeds or the dependant ends."""
    dependants = f"{{{broker.prefix}}}:dependants"
    await broker.enqueue([message("a"), message("b"), message("c", depends_on=("a", "b"))])
    with Redis.from_url(server.url) as client:
        await settle(broker, await claim_one(broker), JobState.SUCCEEDED)
        assert client.zrange(dependants, 0, -1) == [b"b c 2"]
        await broker.cancel("c")
        assert client.zrange(dependants, 0, -1) == []


async def test_incomplete_jobs(broker: RedisBroker, server: Server) -> None:
    """Jobs without their records are skipped and do not block other jobs."""
    await broker.enqueue([message("a"), message("b"), message("c", delay=5), message("d")])
    await settle(broker, await claim_one(broker), JobState.SUCCEEDED)
    with Redis.from_url(server.url) as client:
        for name in ("jobs", "messages"):
            client.hdel(f"{{{broker.prefix}}}:{name}", "a", "b", "c")
        assert await claimed(broker) == ["d"]
        client.zadd(f"{{{broker.prefix}}}:changing", {"c": 1})
        client.zadd(f"{{{broker.prefix}}}:kept", {"a": 1})
    await broker.maintain()
    assert await broker.maintain() == MaintenanceStats()
    assert [job.message.id async for job in broker.scan()] == ["d"]


# Results


def test_results_repr() -> None:
    """The representation of a result store hides the password; braces in a prefix are rejected."""
    store = RedisResults(f"redis://:{QUOTED}@host", prefix="p")
    assert repr(store) == "<RedisResults redis://host:6379/0, prefix 'p'>"
    with pytest.raises(ValueError, match="prefix"):
        RedisResults("redis://host", prefix="{a}")


@pytest.mark.parametrize("retention", [float("inf"), 0])
async def test_results_retention(server: Server, retention: float) -> None:
    """A result with infinite retention does not expire; with none it expires at once."""
    store = make_redis_results(server.name, Path())
    await store.open()
    await store.save("one", b"1", retention=retention)
    with Redis.from_url(server.url) as client:
        left = client.pttl(f"{{{store.prefix}}}:result:one")
    assert left == -1 if retention else left in (-2, 0, 1)
    await store.delete("one")
    await store.close()
    with pytest.raises(BrokerUnavailableError, match="not open"):
        await store.get("one")


async def test_results_server_error(server: Server, anyio_backend: object) -> None:
    """An error of the server fails a call of the result store."""
    with own_server(server.name) as own, Redis.from_url(own.url) as client:
        store = RedisResults(own.url)
        await store.open()
        client.replicaof("127.0.0.1", 1)
        with pytest.raises(BrokerUnavailableError, match="READONLY"):
            await store.save("one", b"1", retention=60)
        await store.close()
