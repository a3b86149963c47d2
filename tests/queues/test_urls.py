"""Brokers by URL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.processes.process import running

from background.queues import JobQueue
from background.queues._urls import make_broker, needing
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
        ("sqlite:///two%20words%3F.db?synchronous=full", Path("two words?.db").absolute()),
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
        ("sqlite:///jobs.db?mode=ro", "url: the option of sqlite is synchronous, not mode"),
        ("sqlite:///jobs.db?synchronous=OFF", "synchronous"),
        ("postgres://localhost/jobs", "url must begin with"),
        ("jobs.db", "url must begin with"),
        ("", "url must begin with"),
        (None, "url must be a string"),
        (5, "url must be a string"),
    ],
)
def test_invalid_urls(url: Any, message: str) -> None:
    """Invalid URLs are rejected with an explanation."""
    with pytest.raises(ValueError, match=message):
        make_broker(url)


@pytest.mark.parametrize("url", ["sqlite://me:secret@host/jobs.db", "postgres://me:secret@host/"])
def test_hidden_password(url: str) -> None:
    """Error messages don't contain the URL's password."""
    with pytest.raises(ValueError, match="url") as caught:
        make_broker(url)
    assert "secret" not in str(caught.value)


def test_from_url_options() -> None:
    """JobQueue.from_url() accepts the options of JobQueue."""
    assert JobQueue.from_url("memory://", max_payload=5)._client.max_payload == 5
    with pytest.raises(ValueError, match="lease"):
        JobQueue.from_url("memory://", lease=0)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix", "nats", "tls"])
def test_server_schemes(scheme: str) -> None:
    """The URL's scheme selects the Redis or the NATS broker."""
    broker = make_broker(f"{scheme}://localhost")
    assert isinstance(broker, NatsBroker if scheme in ("nats", "tls") else RedisBroker)


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
    with pytest.raises(ImportError, match="no module x: these URLs need an extra"), needing("x"):
        raise ImportError("no module x")


@pytest.mark.parametrize(
    ("url", "extra"), [("redis://localhost", "redis"), ("tls://localhost", "nats")]
)
def test_missing_extra(url: str, extra: str) -> None:
    """The error of a missing extra contains the command that installs it."""
    with running("-c", WITHOUT, url, extra) as process:
        assert process.wait() == 0
    assert f"pip install 'anyio-background[{extra}]'" in process.output
