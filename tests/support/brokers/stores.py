"""Where the jobs are in tests of what happens to processes, servers and connections."""

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
    """A real server of the tests' own, which keeps its port and its data when it is killed."""

    port: int

    @property
    def url(self) -> str: ...
    def start(self) -> None: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Store:
    """A kind of broker, where it is used by several processes.

    - `url`: of a place that tests can share or that is in the test's folder; each test has a queue
      and ids of its own there.
    - `backends`: the event loops that it works on.
    - `own_clock`: whether its times are not those of its processes' host.
    - `overhead`: bytes that a job may take besides its payload where the server limits both.
    - `repair`: seconds after which it completes what a lost connection left half done.
    - `modes`: how durable it can be made, each with what starts such a server.
    """

    url: Callable[[Path], str]
    backends: tuple[str, ...] = ("asyncio", "uvloop", "trio")
    own_clock: bool = False
    overhead: int = 0
    repair: float = 0.0
    modes: Mapping[str, Callable[[], Server]] = field(default_factory=dict[str, Any])


def redis(name: str) -> Store:
    """Redis or Valkey, whose log of changes reaches the disk at once, in a second, or never."""
    kept = "--appendonly", "yes", "--appendfsync"
    return Store(
        url=lambda folder: servers.server(name).url,
        backends=("asyncio", "uvloop"),
        own_clock=True,
        modes={
            "appendfsync always": partial(servers.Server, name, *kept, "always"),
            "appendfsync everysec": partial(servers.Server, name, *kept, "everysec"),
        },
    )


class NatsProcess(nats_servers.NatsServer):
    """A NATS server that keeps its jobs in a file."""

    def __init__(self, jetstream: str) -> None:
        self._kept = tempfile.TemporaryDirectory(prefix="nats-", ignore_cleanup_errors=True)
        store = f"jetstream {{ store_dir: '{self._kept.name}/store', {jetstream} }}"
        super().__init__(Path(self._kept.name), store, jetstream=False)
        self.start()

    def close(self) -> None:
        self.kill()
        self._kept.cleanup()


STORES: dict[str, Store] = {
    "sqlite": Store(url=lambda folder: f"sqlite:///{folder}/jobs.db"),
    **{name: redis(name) for name in servers.available()},
    "nats": Store(
        url=lambda folder: nats_servers.shared_server().url,
        backends=("asyncio", "uvloop"),
        own_clock=True,
        overhead=4096,
        repair=2.0,
        modes={
            "sync_interval always": partial(NatsProcess, "sync_interval: always"),
            "sync_interval 2m": partial(NatsProcess, "sync_interval: 2m"),
        },
    ),
}

#: Whether faults are to be many, as by `nox -s faults`, or just enough to see that they are met.
FULL = os.environ.get("FAULTS") == "full"

#: Kinds of which others take the part where faults are few.
_ALIKE = () if FULL or "valkey" not in STORES else ("redis",)

NAMES = [name for name in STORES if name not in _ALIKE]
SERVED = [
    (name, mode) for name in NAMES for mode in list(STORES[name].modes)[: None if FULL else 1]
]
