"""Settings of a server that endanger jobs, lost keys, and versions of the format."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from redis import Redis
from support.brokers.jobs import claimed, message, settle
from support.brokers.redis import finish, open_broker, own_server, until
from support.brokers.redis_servers import Server

from background.queues import JobState
from background.queues._errors import BrokerRefusedError, BrokerUnavailableError
from background.queues.redis import RedisBroker, RedisResults

# Settings


def records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "background"]


def settings(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return the levels of the log's records, and the settings that they name."""
    found = []
    for record in records(caplog):
        name = record.getMessage().partition(": ")[2].partition(" is")[0]
        found.append((record.levelname, name))
    return found


@pytest.mark.parametrize(
    ("options", "expected", "again"),
    [
        (["--appendonly", "yes"], [], []),
        (["--appendonly", "no"], [("INFO", "appendonly")], []),
        (
            ["--appendonly", "yes", "--maxmemory-policy", "allkeys-lru"],
            [("WARNING", "maxmemory-policy")],
            [("WARNING", "maxmemory-policy")],
        ),
    ],
)
async def test_settings(
    server: Server,
    anyio_backend: object,
    caplog: pytest.LogCaptureFixture,
    options: list[str],
    expected: list[tuple[str, str]],
    again: list[tuple[str, str]],
) -> None:
    """A server that deletes keys is reported at each opening, one without a file at the first."""
    caplog.set_level(logging.INFO)
    with own_server(server.name, *options) as own:
        async with open_broker(own.url):
            assert settings(caplog) == expected
        results = RedisResults(own.url)
        await results.open()
        await results.close()
        assert settings(caplog) == expected + again


async def test_forbidden_settings(
    server: Server, anyio_backend: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is reported if the user may not send INFO."""
    caplog.set_level(logging.INFO)
    with own_server(server.name, "--maxmemory-policy", "allkeys-lru") as own:
        with Redis.from_url(own.url) as client:
            client.execute_command("ACL", "SETUSER", "default", "-info")
        async with open_broker(own.url) as broker:
            assert await broker.count() == 0
            await broker.maintain()
    assert not records(caplog)


# Lost keys


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in records(caplog) if record.levelname == "ERROR"]


async def test_lost_keys(
    broker: RedisBroker, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Keys that are gone are reported once, and the broker goes on."""
    with Redis.from_url(server.url) as client:
        for lost, named in (("*", "version"), ("version", "version"), ("messages", "messages")):
            await broker.enqueue([message(lost)])
            await broker.maintain()
            caplog.clear()
            client.delete(*client.keys(f"{{{broker.prefix}}}:{lost}"))
            for _ in range(3):
                await broker.maintain()
            (text,) = errors(caplog)
            assert f"keys of prefix '{broker.prefix}' are gone: {named}. " in text
            assert client.exists(f"{{{broker.prefix}}}:version")
            client.delete(*client.keys(f"{{{broker.prefix}}}:*"))
            await broker.maintain()


@pytest.mark.parametrize("lost", ["ready", "changing", "kept", "dependants", "order", "counts"])
async def test_lost_index(
    broker: RedisBroker, server: Server, caplog: pytest.LogCaptureFixture, lost: str
) -> None:
    """An index that is gone is reported, and restored by the same maintenance."""
    await broker.enqueue([message("ended")])
    await finish(broker, await broker.claim(["q"], 1, lease=30))
    await broker.enqueue([message(), message("late", delay=60)])
    await broker.enqueue([message("blocked", depends_on=("late",))])
    await broker.maintain()
    with Redis.from_url(server.url) as client:
        key = f"{{{broker.prefix}}}:{lost}"
        index = client.dump(key)
        client.delete(key)
        await broker.maintain()
        assert client.dump(key) == index
    await broker.maintain()
    (text,) = errors(caplog)
    assert f"are gone: {lost}. " in text


async def test_lost_changes(
    broker: RedisBroker, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Without another job that has a dependant or a lease, lost times of changes are found."""
    await broker.enqueue([message("late", delay=60)])
    with Redis.from_url(server.url) as client:
        client.delete(f"{{{broker.prefix}}}:changing")
        await broker.maintain()
        assert client.exists(f"{{{broker.prefix}}}:changing")
    (text,) = errors(caplog)
    assert "are gone: changing. " in text


@pytest.mark.parametrize("lost", ["results", "errors", "jobs"])
async def test_lost_values(
    broker: RedisBroker, server: Server, caplog: pytest.LogCaptureFixture, lost: str
) -> None:
    """Results, errors and records that are gone are reported once."""
    await broker.enqueue([message("one"), message("two")])
    one, two = await broker.claim(["q"], 2, lease=30)
    await settle(broker, one, JobState.SUCCEEDED, result=b"1")
    await settle(broker, two, JobState.DEAD, error={"type": "E"})
    with Redis.from_url(server.url) as client:
        client.delete(f"{{{broker.prefix}}}:{lost}")
    for _ in range(2):
        await broker.maintain()
    text, *_ = errors(caplog)
    assert f"are gone: {lost}. " in text
    assert sum("are gone" in text for text in errors(caplog)) == 1


async def test_lost_record(
    broker: RedisBroker, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A job whose record is gone is set aside with that reason."""
    await broker.wait_for_work(["none"], 0.01)  # it subscribes
    await broker.enqueue([message("late", delay=60), message()])
    with Redis.from_url(server.url) as client:
        client.delete(f"{{{broker.prefix}}}:jobs")
    assert await claimed(broker) == ["one"]  # which makes the key again
    assert await broker.get("late") is None
    await until(lambda: "job late is set aside, because its record is gone" in caplog.text)


async def test_evictions(
    server: Server, anyio_backend: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Evicted keys are reported once, until the broker is opened again."""
    broker: Any
    options = ("--maxmemory-policy", "allkeys-lru")
    with own_server(server.name, *options) as own, Redis.from_url(own.url) as client:
        async with open_broker(own.url) as broker:
            await broker.maintain()
            for _ in range(2):
                client.mset({f"x:{number}": "x" * 1000 for number in range(1000)})
                client.config_set("maxmemory", client.info("memory")["used_memory"] - 100_000)
                client.set("y", 1)
                client.config_set("maxmemory", 0)
                assert await broker._session.check_evictions()
                assert not await broker._session.check_evictions()
                await broker.maintain()
        (text,) = [text for text in errors(caplog) if "evicted" in text]
        assert "keys, because its memory is full" in text
        caplog.clear()
        async with open_broker(own.url) as broker:
            await broker.maintain()
        assert not errors(caplog)


async def test_no_lost_keys(broker: RedisBroker, caplog: pytest.LogCaptureFixture) -> None:
    """Jobs that end and are deleted are not reported as lost keys."""
    for _ in range(2):
        await broker.enqueue([message(), message("two", delay=60)])
        await broker.maintain()
        await finish(broker, await broker.claim(["q"], 1, lease=30))
        await broker.cancel("two")
        await broker.maintain()
        assert await broker.purge() == 2
        await broker.maintain()
    assert not [record for record in records(caplog) if record.levelno > logging.INFO]


# Versions


def version_of(broker: RedisBroker, server: Server) -> bytes | None:
    with Redis.from_url(server.url) as client:
        version: bytes | None = client.get(f"{{{broker.prefix}}}:version")
        return version


async def test_newer_version(broker: RedisBroker, server: Server) -> None:
    """Jobs of a newer version of the library are rejected."""
    assert version_of(broker, server) == b"1"
    with Redis.from_url(server.url) as client:
        client.set(f"{{{broker.prefix}}}:version", 99)
    with pytest.raises(BrokerUnavailableError, match="have version 99, from a newer version"):
        await RedisBroker(server.url, prefix=broker.prefix).open()
    assert version_of(broker, server) == b"99"


async def test_raised_version(
    broker: RedisBroker, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer release raises the version; older ones that can't read it stop, also while open."""
    monkeypatch.setattr("background.queues.redis.broker.READS", 2)
    async with open_broker(server.url, prefix=broker.prefix) as reading:
        await reading.enqueue([message()])
        monkeypatch.setattr("background.queues.redis.broker.WRITES", 2)
        async with open_broker(server.url, prefix=broker.prefix):
            assert version_of(broker, server) == b"2"
        monkeypatch.setattr("background.queues.redis.broker.WRITES", 1)
        await reading.maintain()
        assert await claimed(reading) == ["one"]
        assert version_of(broker, server) == b"2"
    monkeypatch.setattr("background.queues.redis.broker.READS", 1)
    with pytest.raises(BrokerUnavailableError, match="have version 2, from a newer version"):
        await broker.maintain()
    for _ in range(2):
        with pytest.raises(BrokerRefusedError, match="have version 2, from a newer version"):
            await broker.claim(["q"], 1, lease=30)
    with Redis.from_url(server.url) as client:
        client.set(f"{{{broker.prefix}}}:version", 1)
    await broker.close()
    await broker.open()
    assert await broker.count() == 1
