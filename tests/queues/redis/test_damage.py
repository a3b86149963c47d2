"""Jobs that another program has changed on the server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from redis import Redis
from support.brokers.jobs import claimed, message
from support.brokers.redis import until
from support.brokers.redis_servers import Server

from background.queues import BrokerUnavailableError, InvalidPayloadError, JobState
from background.queues.redis import RedisBroker, RedisResults

GARBAGE = (b"", b"x", b"\xff\x00", b"[1]", b"\x90", b"\x91\xc0", b"1 2 3\n", b"0" * 100)
HASHES = ("jobs", "messages", "results", "errors")


def key(broker: RedisBroker, name: str) -> str:
    return f"{{{broker.prefix}}}:{name}"


def damage_delay(client: Any, broker: RedisBroker, id: str) -> None:
    """Replace the delay in the message of a job."""
    stored: bytes = client.hget(key(broker, "messages"), id)
    fields = stored.split(b" ")
    fields[7] = b"x"
    client.hset(key(broker, "messages"), id, b" ".join(fields))


@pytest.mark.parametrize("name", HASHES)
async def test_damaged_hash(
    broker: RedisBroker, server: Server, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged entry of a job stops neither other jobs nor the inspection of the queue."""
    with Redis.from_url(server.url) as client:
        for number, garbage in enumerate(GARBAGE):
            damaged, innocent = f"damaged-{number}", f"innocent-{number}"
            await broker.enqueue([message(damaged), message(innocent)])
            for id in await claimed(broker):  # now both have records
                assert id in (damaged, innocent)
            client.hset(key(broker, name), damaged, garbage)
            await broker.enqueue([message(f"next-{number}")])
            assert f"next-{number}" in await claimed(broker)
            await broker.get(damaged)
            await broker.wait(damaged, 0)
            await broker.cancel(damaged)
            await broker.maintain()
            found = [job.message.id async for job in broker.scan()]
            assert innocent in found
            await broker.count()
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("name", ["jobs", "messages"])
async def test_job_is_set_aside(
    broker: RedisBroker, server: Server, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A job that can't be read is set aside with its bytes, and reported."""
    with Redis.from_url(server.url) as client:
        await broker.wait_for_work(["none"], 0.01)  # it subscribes
        await broker.enqueue([message(), message("two")])
        client.hset(key(broker, name), "one", b"garbage")
        assert await claimed(broker) == ["two"]
        assert await broker.get("one") is None
        assert b"garbage" in client.hgetall(key(broker, "damaged")).values()
        await until(lambda: "job one can't be read and is set aside" in caplog.text)


async def test_unreadable_claim(
    broker: RedisBroker, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A claimed job whose message or error has other values is dead with the reason."""
    with Redis.from_url(server.url) as client:
        await broker.enqueue([message("one"), message("two"), message("three")])
        damage_delay(client, broker, "one")
        assert await claimed(broker) == ["two", "three"]
        job = await broker.get("one")
        assert job is not None
        assert job.state is JobState.DEAD
        assert job.error is not None
        assert "what is stored can't be read" in job.error["message"]
    assert "job one can't be read and is dead" in caplog.text


async def test_unreadable_claim_unsettled(
    broker: RedisBroker, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other jobs of a claim are returned, although the unreadable one can't be settled."""

    async def fail(settlements: object) -> list[bool]:
        raise BrokerUnavailableError("no broker")

    with Redis.from_url(server.url) as client:
        await broker.enqueue([message("one"), message("two")])
        damage_delay(client, broker, "one")
    monkeypatch.setattr(broker, "settle", fail)
    assert await claimed(broker) == ["two"]


async def test_missing_message(broker: RedisBroker, server: Server) -> None:
    """A job whose message was deleted is set aside, and other jobs are claimed."""
    with Redis.from_url(server.url) as client:
        await broker.enqueue([message("one", delay=0.01), message("two", delay=0.01)])
        client.hdel(key(broker, "messages"), "one")
        await broker.wait_for_work(["q"], 10)
        assert await claimed(broker) == ["two"]
        assert client.hexists(key(broker, "damaged"), "one")
        assert [job.message.id async for job in broker.scan()] == ["two"]


async def test_stray_members(broker: RedisBroker, server: Server) -> None:
    """Members of indexes without a job are removed or ignored."""
    with Redis.from_url(server.url) as client:
        await broker.enqueue([message("one")])
        client.zadd(key(broker, "ready"), {b"q\x000garbage": 0, b"q\x00" + b"f" * 14 + b"no": 0})
        client.zadd(key(broker, "changing"), {"stray": 1})
        client.zadd(key(broker, "kept"), {"stray": 1})
        client.zadd(key(broker, "order"), {"stray": 0.5})
        client.zadd(key(broker, "dependants"), {"one": 0, "one two": 0, "one two x": 0})
        client.hset(key(broker, "counts"), "q ready x", json.dumps({}))
        assert await claimed(broker) == ["one"]
        await broker.maintain()
        assert [job.message.id async for job in broker.scan()] == ["one"]


TICKS = ("", "x", "1 x", "x 1e12", "1 2 3", "1e300 1e12", "inf 1e12", "nan 1e12", "-1 1e12")


@pytest.mark.parametrize("tick", TICKS)
async def test_damaged_schedule(
    broker: RedisBroker, server: Server, tick: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A schedule whose stored tick can't be read begins again, with one record."""
    with Redis.from_url(server.url) as client:
        client.hset(key(broker, "schedules"), mapping={"damaged": tick, "two": tick})
        for name in ("damaged", "new", "two"):
            assert await broker.advance_schedule(name, None, 5.0, retention=60) == 5.0
            assert await broker.advance_schedule(name, None, 6.0, retention=60) == 5.0
    levels = [record.levelname for record in caplog.records if "can't be read" in record.message]
    assert levels == ["ERROR"] * 2


async def test_damaged_result(broker: RedisBroker, server: Server) -> None:
    """A result whose key has another type is refused, and others can be read."""
    results = RedisResults(server.url, prefix=broker.prefix)
    await results.open()
    await results.save("innocent", b"1", retention=60)
    with Redis.from_url(server.url) as client:
        client.lpush(key(broker, "result:damaged"), "x")
        with pytest.raises(InvalidPayloadError, match="the result damaged can't be read"):
            await results.get("damaged")
        assert await results.get("innocent") == b"1"
        await results.delete("damaged")
        assert await results.get("damaged") is None
    await results.close()
