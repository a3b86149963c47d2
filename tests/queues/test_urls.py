"""Brokers by URL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import NatsDsn, RedisDsn
from support.processes.process import running

from background.queues import JobQueue
from background.queues._extras import needing
from background.queues._urls import make_broker
from background.queues.memory import MemoryBroker
from background.queues.nats import NatsBroker
from background.queues.redis import RedisBroker
from background.queues.sqlite import SQLiteBroker


@pytest.mark.parametrize("url", ["memory:", "memory://", "MEMORY://"])
def test_memory(url: str) -> None:
    """A memory URL makes a memory broker."""
    assert isinstance(make_broker(url), MemoryBroker)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///jobs.db", Path("jobs.db").absolute()),
        ("sqlite:///data/jobs.db", Path("data/jobs.db").absolute()),
        ("sqlite:////data/jobs.db", Path("/data/jobs.db")),
        (
            "sqlite:///two%20words%3F.db?synchronous=full&timeout=2.5",
            Path("two words?.db").absolute(),
        ),
        ("SQLite:///jobs.db?synchronous=NORMAL", Path("jobs.db").absolute()),
    ],
)
def test_sqlite(url: str, path: Path) -> None:
    """An SQLite URL makes a broker with the URL's absolute path."""
    broker = make_broker(url)
    assert isinstance(broker, SQLiteBroker)
    assert broker.path == str(path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://jobs.db", "url must be sqlite:///name"),
        ("sqlite:jobs.db", "url must be sqlite:///name"),
        ("sqlite:///", "url must be sqlite:///name"),
        ("sqlite://", "url must be sqlite:///name"),
        ("sqlite:///:memory:", "in memory|no file"),
        ("sqlite:///jobs.db?mode=ro", "unknown option; the options of sqlite are synchronous"),
        ("sqlite:///jobs.db?prefix=a", "unknown option; the options of sqlite are synchronous"),
        ("sqlite:///jobs.db?synchronous=OFF", "synchronous must be normal or full"),
        ("sqlite:///jobs.db?timeout=-1", "timeout must be a number such as 2.5"),
        ("sqlite:///jobs.db?timeout=0", "timeout must be a finite number of seconds, more than 0"),
        ("sqlite:///jobs.db?synchronous", "an option must be like name=value"),
        ("sqlite:///jobs.db?synchronous=FULL&synchronous=FULL", "an option is given twice"),
        ("sqlite:///jobs#1.db", "# must be percent-encoded, as %23"),
        ("sqlite:///jobs%ff.db", "percent-encoded bytes must be UTF-8"),
        ("memory://?prefix=a", "url has an unknown option; there are none"),
        ("memory://jobs", "url must be memory://"),
        ("postgres://localhost/jobs", "url must begin with one of these schemes: memory, sqlite, "),
        ("jobs.db", "url must begin with a scheme, as in 'sqlite:///jobs.db'"),
        ("", "url must begin with a scheme"),
        (None, "url must be a str such as 'sqlite:///jobs.db', not NoneType"),
        (5, "url must be a str .* not int"),
        (b"redis://:s3cr3t@host", "url must be a str .* not bytes"),
        (RedisDsn("redis://:s3cr3t@host"), r"url must be a str .* not RedisDsn; .* by str\(\)"),
    ],
)
def test_invalid_urls(url: Any, message: str) -> None:
    """Invalid URLs are rejected with an explanation."""
    with pytest.raises(ValueError, match=message):
        make_broker(url)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://me:s3cr3t@host/jobs.db",
        "postgres://me:s3cr3t@host/",
        "s3cr3t://host",
        "me:s3cr3t@host:6379",
        "s3cr3t@host",
        "s3cr3t",
        "redis://:s3cr3t/@host",
        "redis://:a@s3cr3t:b",
        "redis://h?s3cr3t=1",
        b"redis://:s3cr3t@host",
        RedisDsn("redis://:s3cr3t@host"),
    ],
)
def test_hidden_password(url: Any) -> None:
    """Error messages contain no part of a URL that may be a password."""
    with pytest.raises(ValueError, match="url") as caught:
        make_broker(url)
    assert "s3cr3t" not in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (JobQueue, r"^broker must be of type Broker, not str; JobQueue\.from_url"),
        (lambda url: JobQueue(MemoryBroker(), results=url), r"results .*; RedisResults\(…\) takes"),
        (lambda url: JobQueue(MemoryBroker()).override(url).__enter__(), "broker .*RedisBroker"),
    ],
)
def test_url_as_broker(make: Callable[[Any], object], hint: str) -> None:
    """A URL in place of a broker is refused with a hint, and without its password."""
    with pytest.raises(ValueError, match=hint) as caught:
        make("redis://me:s3cr3t@host")
    assert "s3cr3t" not in str(caught.value)


def test_dsn_of_pydantic() -> None:
    """The text of pydantic's DSN is a URL."""
    dsn = NatsDsn("nats://me:pass%2Fword@host:4222,host2:4222")
    assert "host:4222,host2:4222" in repr(make_broker(str(dsn)))


@pytest.mark.parametrize("scheme", ["memory", "sqlite"])
def test_no_prefix(scheme: str) -> None:
    """A prefix is rejected for brokers without a server."""
    with pytest.raises(ValueError, match=f"prefix is for brokers on a server, not for {scheme}"):
        JobQueue.from_url(f"{scheme}:///jobs.db", prefix="a")


@pytest.mark.parametrize("scheme", ["nats", "redis"])
def test_prefix(scheme: str) -> None:
    """A prefix can be an argument or an option of the URL."""
    assert "prefix 'shop'" in repr(make_broker(f"{scheme}://localhost?prefix=shop"))
    assert "prefix 'shop'" in repr(make_broker(f"{scheme}://localhost", "shop"))
    assert JobQueue.from_url(f"{scheme}://localhost", prefix="shop")
    with pytest.raises(ValueError, match="prefix is given twice"):
        make_broker(f"{scheme}://localhost?prefix=shop", "mail")


def test_from_url_options() -> None:
    """JobQueue.from_url() accepts the options of JobQueue."""
    assert JobQueue.from_url("memory://", max_payload=5)._client.max_payload == 5
    with pytest.raises(ValueError, match="lease"):
        JobQueue.from_url("memory://", lease=0)


@pytest.mark.parametrize(
    "url",
    [
        *("redis://host", "rediss://host", "valkey://host", "valkeys://host", "unix:///socket"),
        *("valkeys+sentinel://host/name", "redis+cluster://host", "nats://host", "tls://host"),
    ],
)
def test_server_schemes(url: str) -> None:
    """The URL's scheme selects the Redis or the NATS broker."""
    is_nats = url.startswith(("nats", "tls"))
    assert isinstance(make_broker(url), NatsBroker if is_nats else RedisBroker)


WITHOUT = """
import sys
sys.modules[sys.argv[2]] = None  # as if it were not installed
from background.queues import JobQueue
try:
    JobQueue.from_url(sys.argv[1])
except ImportError as error:
    print(error)
"""


def test_import_error() -> None:
    """A failed import is explained by a missing extra."""
    with pytest.raises(ImportError, match="no module x: this needs an extra"), needing("x"):
        raise ImportError("no module x")


@pytest.mark.parametrize(
    ("url", "extra"), [("redis://localhost", "redis"), ("tls://localhost", "nats")]
)
def test_missing_extra(url: str, extra: str) -> None:
    """The error of a missing extra contains the command that installs it."""
    with running("-c", WITHOUT, url, extra) as process:
        assert process.wait() == 0
    assert f"pip install 'anyio-background[{extra}]'" in process.output
