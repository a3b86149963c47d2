"""URLs, secrets and versions of Redis servers."""

from __future__ import annotations

import asyncio
import gc
import platform
import re
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from redis import Redis
from redis.credentials import UsernamePasswordCredentialProvider
from support.brokers import redis_servers as servers
from support.brokers.jobs import claimed, message
from support.brokers.kinds import make_redis
from support.brokers.redis import (
    QUOTED,
    Relay,
    open_broker,
    own_server,
    until,
)
from support.brokers.redis_servers import Server

from background.queues._errors import BrokerUnavailableError
from background.queues.redis import RedisBroker, RedisResults
from background.queues.redis.script import KEYS
from background.testing import virtual_time

SECRET = "s3cr3t/p@ss"


@contextmanager
def collected_loop_errors() -> Iterator[list[dict[str, Any]]]:
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda loop, context: errors.append(context))
    try:
        yield errors
    finally:
        loop.set_exception_handler(handler)


def test_available_servers() -> None:
    """All servers that exist for the platform are tested.

    Otherwise a missing kind of broker would go unnoticed.
    """
    if sys.platform in ("linux", "darwin"):
        assert "valkey" in servers.available()
    if (sys.platform, platform.machine()) == ("linux", "x86_64") and sys.version_info < (3, 12):
        assert servers.available() == ["redis", "valkey"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"http://:{QUOTED}@host", "must be like redis://"),
        ("redis+sentinels://host/name", "must be like redis://"),
        ("unix+cluster:///path", "must be like redis://"),
        ("unix://host/path", "must be like unix:///path"),
        ("unix://", "must be like unix:///path"),
        ("redis://host,host2", r"must have one host, or begin like redis\+sentinel:"),
        (f"redis://:{SECRET}@host", "must be percent-encoded"),
        (f"redis://:{QUOTED}@host:port", "a host must be like name:1234"),
        ("redis://host/jobs", "the path must be the number of a database, as in /0; .* a prefix"),
        ("redis://host/0/1", "the path must be the number of a database"),
        ("redis://host?db=x", "db must be a whole number"),
        ("redis://host/1?db=2", "db is given twice"),
        ("redis://host?socket_timeout=5", "the options of redis are client_name, db, prefix"),
        (f"redis://host?secret={QUOTED}", "the options of redis are client_name, db, prefix"),
        ("redis://host?ssl_ca_certs=ca", "the options of redis are client_name, db, prefix$"),
        ("rediss://host?ssl_cert_reqs=CERT_NONE", "ssl_cert_reqs must be none or optional or req"),
        ("rediss://host?ssl_check_hostname=no", "ssl_check_hostname must be true or false"),
        ("redis+sentinel://host", "the path must be the name that sentinels have"),
        ("redis+sentinel://host/name/x", "the path must be the name that sentinels have"),
        ("redis+cluster://host/1", "the path must be /0 or missing"),
        ("redis+cluster://host?db=1", r"the options of redis\+cluster are client_name, prefix"),
        ("", "must begin with a scheme"),
    ],
)
def test_invalid_url(url: str, message: str) -> None:
    """An invalid URL is rejected with an error that says what is allowed, without a password."""
    with pytest.raises(ValueError, match=f"url.*{message}|{message}") as caught:
        RedisBroker(url)
    assert "s3cr3t" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("url", "options", "error", "message"),
    [
        ("redis://h?prefix=a", {"prefix": "b"}, ValueError, "prefix is given twice"),
        ("redis://:a@h", {"password": "b"}, ValueError, "password is given twice"),
        ("redis://h", {"prefx": "b"}, TypeError, "no argument 'prefx'; .* username, password"),
        ("redis://h", {"retry_on_timeout": True}, TypeError, "no argument 'retry_on_timeout'"),
        ("redis://h", {"ssl_ca_certs": "ca"}, ValueError, "ssl_ca_certs: not with a URL of redis"),
        ("redis+cluster://h", {"db": 1}, ValueError, r"db: not with a URL of redis\+cluster"),
        ("redis://h", {"sentinel_password": "x"}, ValueError, "sentinel_password: not with a URL"),
        ("redis://h", {"tls": ssl.create_default_context()}, ValueError, "tls: not without TLS"),
        (
            "redis://:a@h",
            {"credential_provider": UsernamePasswordCredentialProvider("me", "s3cr3t")},
            ValueError,
            "cannot be passed along with 'credential_",
        ),
    ],
)
def test_invalid_arguments(url: str, options: Any, error: type[Exception], message: str) -> None:
    """An argument that is unknown, not valid, or in the URL, too, is rejected."""
    with pytest.raises(error, match=message):
        RedisBroker(url, **options)


@pytest.mark.parametrize("make", [RedisBroker, RedisResults])
@pytest.mark.parametrize("timeout", [0, -1, float("inf"), "5", None])
def test_invalid_timeout(make: Any, timeout: Any) -> None:
    """A timeout that is not a finite, positive number is rejected."""
    with pytest.raises(ValueError, match="timeout must be"):
        make("redis://host", timeout=timeout)


def test_invalid_prefix() -> None:
    """A prefix with braces is rejected."""
    with pytest.raises(ValueError, match="prefix"):
        RedisBroker("redis://host", prefix="{a}")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://", "redis://localhost:6379/0"),
        (f"redis://user:{QUOTED}@host:1/2", "redis://host:1/2"),
        (f"rediss://:{QUOTED}@host?ssl_password={QUOTED}", "rediss://host:6379/0"),
        (f"unix://user:{QUOTED}@/path?db=3", "unix:///path?db=3"),
        ("valkey://[::1]/1", "valkey://[::1]:6379/1"),
        ("valkeys://host?db=2", "valkeys://host:6379/2"),
        (
            f"rediss+sentinel://:{QUOTED}@a,b:1/my%20name?sentinel_password={QUOTED}",
            "rediss+sentinel://a:26379,b:1/my name/0",
        ),
        ("redis+sentinel://a/name/3", "redis+sentinel://a:26379/name/3"),
        ("valkey+cluster://a:7000,b", "valkey+cluster://a:7000,b:6379/0"),
    ],
)
def test_repr(url: str, text: str) -> None:
    """The representation of a broker contains its URL without user and passwords."""
    assert repr(RedisBroker(url, prefix="p")) == f"<RedisBroker {text}, prefix 'p'>"


def test_options() -> None:
    """Options of connections are arguments or in the URL; the broker sets timeouts and retries."""
    connection = RedisBroker("redis://host?client_name=web", timeout=7)._address.connection()
    assert connection.client_name == "web"
    assert connection.socket_timeout is None
    assert connection.socket_connect_timeout == 7
    assert connection.retry.get_retries() == 0
    assert connection.protocol == 2
    assert not connection.encoder.decode_responses
    provider = UsernamePasswordCredentialProvider("me", "s3cr3t")
    connection = RedisBroker("redis://host", credential_provider=provider)._address.connection()
    assert connection.credential_provider is provider
    connection = RedisBroker("redis://me@host", password="s3cr3t", db=3)._address.connection()
    assert (connection.username, connection.password, connection.db) == ("me", "s3cr3t", 3)


def test_trio() -> None:
    """Opening a broker on Trio fails with an error that names asyncio."""
    name, options = virtual_time("trio")
    with pytest.raises(RuntimeError, match="on asyncio only"):
        anyio.run(RedisBroker("redis://").open, backend=name, backend_options=options)


async def test_password_and_database(
    server: Server, caplog: pytest.LogCaptureFixture, anyio_backend: object
) -> None:
    """The URL contains password and database; errors and logs contain no password."""
    caplog.set_level(0)
    with own_server(server.name, "--requirepass", SECRET) as own:
        right = own.url.replace("//", f"//:{QUOTED}@") + "/3"
        async with open_broker(right) as broker:
            assert await broker.enqueue([message()]) == [True]
        async with open_broker(f"unix://:{QUOTED}@{own.socket}?db=3") as broker:
            assert await broker.count() == 1
        async with open_broker(own.url.replace("redis:", "valkey:"), password=SECRET) as broker:
            assert await broker.count() == 0
        for wrong in (own.url, own.url.replace("//", f"//:x{QUOTED}@")):
            with pytest.raises(BrokerUnavailableError) as caught:
                await RedisBroker(wrong).open()
            assert re.search(r"/0: .*(auth|invalid|password)", str(caught.value), re.IGNORECASE)
            assert "s3cr3t" not in repr(caught.value)
    assert "s3cr3t" not in caplog.text


async def test_missing_permissions(server: Server, anyio_backend: object) -> None:
    """A user needs permissions only for the prefix; opening fails without them."""
    with own_server(server.name) as own, Redis.from_url(own.url) as client:
        rights = "on", ">p", "resetchannels", "~{jobs}:*", "&{jobs}:*", "+@all", "-@dangerous"
        client.execute_command("ACL", "SETUSER", "user", *rights)
        url = own.url.replace("//", "//user:p@")
        async with open_broker(url, prefix="jobs") as broker:
            await broker.enqueue([message()])
            assert await claimed(broker) == ["one"]
        with pytest.raises(BrokerUnavailableError, match=r"NOPERM .*permission"):
            await RedisBroker(url, prefix="other").open()


async def test_missing_commands(server: Server, anyio_backend: object) -> None:
    """Opening names the commands of scripts that a user may not send."""
    with own_server(server.name) as own, Redis.from_url(own.url) as client:
        url = own.url.replace("//", "//user:p@")
        for commands in (["zrangebyscore"], ["publish"], ["hincrby", "hdel"], ["del", "pexpire"]):
            refused = [f"-{command}" for command in commands]
            rights = "reset", "on", ">p", "~*", "&*", "+@all", *refused
            client.execute_command("ACL", "SETUSER", "user", *rights)
            names = ", ".join(commands).upper()
            with pytest.raises(BrokerUnavailableError) as caught:
                await RedisBroker(url).open()
            shown = re.search("permission to send ([A-Z, ]+) for", str(caught.value))
            assert shown is not None
            assert sorted(shown[1].split(", ")) == sorted(names.split(", "))
        rights = "reset", "on", ">p", "~*", "resetchannels", "+@all"
        client.execute_command("ACL", "SETUSER", "user", *rights)
        with pytest.raises(BrokerUnavailableError, match="send PUBLISH for"):
            await RedisBroker(url).open()


async def test_check_of_rights(server: Server, anyio_backend: object) -> None:
    """The check of a user's rights tries each command of the scripts, and changes nothing."""
    folder = files("background.queues.redis").joinpath("lua")
    texts = {path.name: path.read_text("utf-8") for path in folder.iterdir()}
    used = {name for text in texts.values() for name in re.findall(r"call\('([A-Z]+)'", text)}
    used |= {name for text in texts.values() for name in re.findall(r"bulk\('([A-Z]+)'", text)}
    tried = re.findall(r"try\('([A-Z]+)'", texts["rights.lua"])
    assert sorted(tried) == sorted(used - {"TIME"})  # without which no script begins
    with own_server(server.name) as own, Redis.from_url(own.url) as client:
        async with open_broker(own.url) as broker:
            await broker.enqueue([message()])
        for every_key in (False, True):
            if every_key:
                client.zadd("{background}:changing", {"two": 1})
                for name in KEYS:
                    client.set(f"{{background}}:{name}", "1", nx=True)
            before = {key: client.dump(key) for key in client.scan_iter()}
            async with open_broker(own.url):
                assert {key: client.dump(key) for key in client.scan_iter()} == before
        assert not [key for key in before if client.ttl(key) >= 0]


async def test_refused_subscription(
    server: Server,
    anyio_backend: object,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A user that may not subscribe is reported once, and finds jobs later."""
    monkeypatch.setattr("background.queues.redis.pubsub._RECONNECT", 0.01)
    with own_server(server.name) as own, Redis.from_url(own.url) as client:
        rights = "on", ">p", "~*", "&*", "+@all", "-subscribe"
        client.execute_command("ACL", "SETUSER", "user", *rights)
        async with open_broker(own.url.replace("//", "//user:p@")) as broker:
            await broker.wait_for_work(["q"], 0.01)
            # It tries again.
            await until(lambda: sum(int(entry["count"]) for entry in client.acl_log()) >= 3)
            assert caplog.text.count("can't subscribe to {background}:events:0") == 1
            await broker.enqueue([message()])
            assert await claimed(broker) == ["one"]


async def test_tls(tmp_path: Path, server: Server, anyio_backend: object) -> None:
    """Certificates of client and server are verified.

    A relay provides TLS, because the servers are built without it.
    """
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    ca, pem = str(tmp_path / "ca"), str(tmp_path / "pem")
    authority.cert_pem.write_to_path(ca)
    certificate.private_key_and_cert_chain_pem.write_to_path(pem)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca)
    tls.load_cert_chain(pem)
    tls.verify_mode = ssl.CERT_REQUIRED
    prefix = make_redis(server.name, Path()).prefix
    async with Relay(server.port, tls) as relay:
        context = ssl.create_default_context(cafile=ca)
        context.load_cert_chain(pem)
        async with open_broker(relay.url, prefix=prefix, tls=context) as broker:
            assert await broker.count() == 0
        trusting = f"{relay.url}?ssl_ca_certs={ca}"
        url = f"{trusting}&ssl_certfile={pem}&ssl_keyfile={pem}"
        async with open_broker(url, prefix=prefix) as broker:
            assert await broker.enqueue([message()]) == [True]
            await broker.wait_for_work(["q"], 1)
            assert await claimed(broker) == ["one"]
        with collected_loop_errors() as errors:
            for wrong in (trusting, relay.url, relay.url.replace("rediss", "redis")):
                with pytest.raises(BrokerUnavailableError, match=r"rediss?://127"):
                    await RedisBroker(wrong, timeout=1).open()
        assert all(isinstance(error["exception"], OSError) for error in errors)  # in the relay
    del broker
    gc.collect()  # an open socket would issue a ResourceWarning


async def test_old_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is too old is rejected."""
    monkeypatch.setattr("background.queues.redis.session._OLDEST", (99,))
    with pytest.raises(BrokerUnavailableError, match=r"/0: Redis \d.* is too old: 6.2 is needed"):
        await RedisBroker(server.url).open()


async def test_server_without_hello(server: Server, anyio_backend: object) -> None:
    """A server without the command HELLO, which Redis 6.0 introduced, is rejected."""
    refused = pytest.raises(
        BrokerUnavailableError, match=r"Redis 6\.2 .* needed; .* unknown command"
    )
    with own_server(server.name, "--rename-command", "HELLO", "") as own, refused:
        await RedisBroker(own.url).open()
