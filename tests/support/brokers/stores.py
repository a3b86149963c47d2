"""Job stores for the tests of crashes and network faults."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from support.brokers import nats_servers
from support.brokers import redis_servers as servers


class Server(Protocol):
    """A server of a single test that keeps its port and its data when it is killed."""

    port: int

    @property
    def url(self) -> str: ...
    def start(self) -> None: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Store:
    """A kind of broker that several processes can use.

    Args:
        url: Returns the URL of a shared store, or of one in the test's folder; every test uses a
            separate queue.
        backends: The event loops that it supports.
        server_clock: Whether its times come from the server's clock.
        overhead: Bytes of a job besides its payload, if the server limits their sum.
        repair: Seconds after which it completes changes that a lost connection interrupted.
        modes: Functions that start a server, by level of durability.
    """

    url: Callable[[Path], str]
    backends: tuple[str, ...] = ("asyncio", "uvloop", "trio")
    server_clock: bool = False
    overhead: int = 0
    repair: float = 0.0
    modes: Mapping[str, Callable[[], Server]] = field(default_factory=dict[str, Any])


def redis(name: str) -> Store:
    """Return the store for Redis or Valkey, with modes for how often its log is synced."""
    options = "--appendonly", "yes", "--appendfsync"
    return Store(
        url=lambda folder: servers.server(name).url,
        backends=("asyncio", "uvloop"),
        server_clock=True,
        modes={
            "appendfsync always": partial(servers.Server, name, *options, "always"),
            "appendfsync everysec": partial(servers.Server, name, *options, "everysec"),
        },
    )


class NatsProcess(nats_servers.NatsServer):
    """A NATS server with file storage in a temporary folder."""

    def __init__(self, jetstream: str) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="nats-", ignore_cleanup_errors=True)
        store = f"jetstream {{ store_dir: '{self._temporary.name}/store', {jetstream} }}"
        super().__init__(Path(self._temporary.name), store, jetstream=False)
        self.start()

    def close(self) -> None:
        self.kill()
        self._temporary.cleanup()


STORES: dict[str, Store] = {
    "sqlite": Store(url=lambda folder: f"sqlite:///{folder}/jobs.db"),
    **{name: redis(name) for name in servers.available()},
    "nats": Store(
        url=lambda folder: nats_servers.shared_server().url,
        backends=("asyncio", "uvloop"),
        server_clock=True,
        overhead=4096,
        repair=2.0,
        modes={
            "sync_interval always": partial(NatsProcess, "sync_interval: always"),
            "sync_interval 2m": partial(NatsProcess, "sync_interval: 2m"),
        },
    ),
}

#: Whether tests inject many faults, as in `nox -s faults`, or only a few.
FULL = os.environ.get("FAULTS") == "full"

#: Kinds that are left out unless `FULL`, as a similar one is tested.
_SIMILAR = () if FULL or "valkey" not in STORES else ("redis",)

NAMES = [name for name in STORES if name not in _SIMILAR]
SERVED = [
    (name, mode) for name in NAMES for mode in list(STORES[name].modes)[: None if FULL else 1]
]
