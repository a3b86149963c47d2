"""Settings of a server that endanger jobs, lost keys, and versions of the format."""

from __future__ import annotations

import logging

import pytest
from redis import Redis
from support.brokers.jobs import claimed, message
from support.brokers.redis import finish, open_broker, own_server
from support.brokers.redis_servers import Server

from background.queues._errors import BrokerUnavailableError
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
    ("options", "expected"),
    [
        (["--appendonly", "yes"], []),
        (["--appendonly", "no"], [("INFO", "appendonly")]),
        (
            ["--appendonly", "yes", "--maxmemory-policy", "allkeys-lru"],
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
) -> None:
    """A server that deletes keys, or writes no append-only file, is reported when it is opened."""
    caplog.set_level(logging.INFO)
    with own_server(server.name, *options) as own:
        async with open_broker(own.url):
            assert settings(caplog) == expected
        results = RedisResults(own.url)
        await results.open()
        await results.close()
        assert settings(caplog) == expected * 2


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
    assert not records(caplog)


# Lost keys


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
            (record,) = records(caplog)
            assert record.levelname == "ERROR"
            expected = f"keys of prefix '{broker.prefix}' are gone, and jobs with them: {named}. "
            assert expected in record.getMessage()
            assert client.exists(f"{{{broker.prefix}}}:version")
            client.delete(*client.keys(f"{{{broker.prefix}}}:*"))
            await broker.maintain()


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
        with pytest.raises(BrokerUnavailableError, match="have version 2, from a newer version"):
            await broker.claim(["q"], 1, lease=30)
    with Redis.from_url(server.url) as client:
        client.set(f"{{{broker.prefix}}}:version", 1)
    await broker.close()
    await broker.open()
    assert await broker.count() == 1
