"""Redis servers with sentinels, and clusters of them."""

from __future__ import annotations

import atexit
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

from redis import Redis
from redis.crc import key_slot

from support.brokers.redis_servers import PATIENCE, Server, free_port


def eventually(holds: Callable[[], Any]) -> Any:
    """Wait until a function returns a true value, and return it."""
    deadline = time.monotonic() + PATIENCE
    while not (value := holds()):
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.01)
    return value


def client(server: Server) -> Redis:
    """Return a client that does not follow redirections."""
    return Redis(port=server.port, decode_responses=True)


_AT_ONCE = "--repl-diskless-sync-delay", "0"  # a replica need not wait for others


class Replicated:
    """A primary, a replica, and sentinels that promote the replica.

    Attributes:
        servers: The first primary, and the replica.
        sentinels: The sentinels.
    """

    SERVICE = "jobs"

    def __init__(self, name: str, stack: ExitStack, sentinels: int, *options: str) -> None:
        first = Server(name, *_AT_ONCE, *options)
        stack.callback(first.close)
        replicaof = "--replicaof", "127.0.0.1", str(first.port)
        second = Server(name, *_AT_ONCE, *replicaof, *options)
        stack.callback(second.close)
        self.servers = first, second
        quorum = sentinels // 2 + 1
        config = (
            f"sentinel monitor {self.SERVICE} 127.0.0.1 {first.port} {quorum}\n"
            f"sentinel down-after-milliseconds {self.SERVICE} 500\n"
            f"sentinel failover-timeout {self.SERVICE} 2000\n"
        )
        self.sentinels = [Server(name, "--sentinel", config=config) for _ in range(sentinels)]
        for sentinel in self.sentinels:
            stack.callback(sentinel.close)
        with client(second) as replica:
            eventually(lambda: replica.info("replication")["master_link_status"] == "up")
        for sentinel in self.sentinels:
            with client(sentinel) as asked:
                eventually(lambda asked=asked: self._is_ready(asked, sentinels))

    def _is_ready(self, asked: Redis, sentinels: int) -> bool:
        state = asked.sentinel_master(self.SERVICE)
        return bool(state["num-slaves"] == 1 and state["num-other-sentinels"] == sentinels - 1)

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.SERVICE}"

    def primary(self) -> int:
        """Return the port of the primary, as the first sentinel sees it."""
        with client(self.sentinels[0]) as asked:
            return int(asked.sentinel_get_master_addr_by_name(self.SERVICE)[1])

    def fail_over(self) -> None:
        """Kill the primary, and wait until the sentinels have promoted the replica."""
        before = self.primary()
        (server,) = (server for server in self.servers if server.port == before)
        server.kill()
        eventually(lambda: self.primary() != before)


@contextmanager
def replicated(name: str, *options: str, sentinels: int = 1) -> Iterator[Replicated]:
    """Run a primary, a replica and sentinels until the block ends."""
    with ExitStack() as stack:
        yield Replicated(name, stack, sentinels, *options)


class RedisCluster:
    """A cluster of three primaries, and a replica of the one that has a prefix.

    Attributes:
        servers: The primaries; each has a third of the slots.
        replica: The replica.
    """

    def __init__(self, name: str, stack: ExitStack, prefix: str, *options: str) -> None:
        self._prefix = prefix
        self.servers = [self._start(name, stack, *options) for _ in range(3)]
        first = self.servers[0]
        for number, server in enumerate(self.servers):
            with client(server) as node:
                slots = range(16384 * number // 3, 16384 * (number + 1) // 3)
                node.execute_command("CLUSTER ADDSLOTS", *slots)
                node.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
                node.cluster("MEET", "127.0.0.1", first.port)
        self.replica = self._start(name, stack, *options)
        with client(self.replica) as node:
            node.cluster("MEET", "127.0.0.1", first.port)
            eventually(lambda: len(node.cluster("NODES")) == 4)
            node.cluster("REPLICATE", self.id_of(self.owner(prefix)))
            eventually(lambda: node.info("replication").get("master_link_status") == "up")
        for server in self.servers:
            with client(server) as node:
                eventually(lambda node=node: self._is_ready(node))

    def _start(self, name: str, stack: ExitStack, *options: str) -> Server:
        enabled = "--cluster-enabled", "yes", "--cluster-node-timeout", "1000"
        server = Server(name, *enabled, *_AT_ONCE, *options, port=cluster_port())
        stack.callback(server.close)
        return server

    def _is_ready(self, node: Redis) -> bool:
        nodes = node.cluster("NODES").values()
        replicas = [known for known in nodes if "slave" in known["flags"]]
        return bool(node.cluster("INFO")["cluster_state"] == "ok" and len(replicas) == 1)

    def id_of(self, server: Server) -> str:
        with client(server) as node:
            return str(node.execute_command("CLUSTER MYID"))

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers)
        return f"redis+cluster://{hosts}"

    def owner(self, prefix: str) -> Server:
        """Return the server that has a prefix at first."""
        return self.servers[slot(prefix) * 3 // 16384]

    def keys(self, other: str = "") -> dict[int, set[str]]:
        """Return the keys of each server, by its port, without those of another prefix."""
        found: dict[int, set[str]] = {}
        for server in self.servers:
            with client(server) as node:
                keys = node.keys()
                found[server.port] = {key for key in keys if not key.startswith(f"{{{other}}}")}
        return found

    def start_migration(self, prefix: str, target: Server) -> None:
        """Begin to move a prefix to another server."""
        source = self.owner(prefix)
        with client(source) as old, client(target) as new:
            command = "CLUSTER SETSLOT", slot(prefix)
            new.execute_command(*command, "IMPORTING", self.id_of(source))
            old.execute_command(*command, "MIGRATING", self.id_of(target))

    def finish_migration(self, prefix: str, target: Server) -> None:
        """Move all keys of the prefix, and give the slot to the other server."""
        with client(self.owner(prefix)) as old, client(target) as new:
            keys = old.execute_command("CLUSTER GETKEYSINSLOT", slot(prefix), 100)
            old.migrate("127.0.0.1", target.port, keys, 0, 5000)
            for node in (new, old):
                node.execute_command("CLUSTER SETSLOT", slot(prefix), "NODE", self.id_of(target))

    def fail_over(self) -> None:
        """Make the replica a primary, while all servers run."""
        with client(self.replica) as new, client(self.owner(self._prefix)) as old:
            new.execute_command("CLUSTER FAILOVER")
            eventually(lambda: new.info("replication")["role"] == "master")
            eventually(lambda: old.info("replication")["role"] == "slave")

    def kill_owner(self) -> None:
        """Kill the server that has the prefix, and wait until the replica is a primary."""
        self.owner(self._prefix).kill()
        with client(self.replica) as node:
            eventually(lambda: node.info("replication")["role"] == "master")


def slot(prefix: str) -> int:
    """Return the slot of all keys of a prefix."""
    return int(key_slot(f"{{{prefix}}}".encode()))


@cache
def shared_cluster(name: str) -> RedisCluster:
    """Return the cluster shared by all tests that do not disturb it."""
    stack = ExitStack()
    atexit.register(stack.close)
    return RedisCluster(name, stack, "shared")


@contextmanager
def redis_cluster(name: str, prefix: str, *options: str) -> Iterator[RedisCluster]:
    """Run a cluster until the block ends."""
    with ExitStack() as stack:
        yield RedisCluster(name, stack, prefix, *options)


def cluster_port() -> int:
    """Return a free port whose port of the cluster's bus is free, too."""
    while True:
        port = free_port()
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port + 10000))
            except (OSError, OverflowError):
                continue
            return port
