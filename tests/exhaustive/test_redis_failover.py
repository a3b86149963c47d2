"""Workers whose Redis primary is killed, and replaced by its replica."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import anyio
import pytest
from support.brokers.redis_servers import Server
from support.brokers.redis_topologies import RedisCluster, Replicated, client, eventually

from background import Manager
from background.queues import JobQueue, JobState

JOBS = 300
PREFIX = "shop"


async def run_jobs(url: str, primary: Server, fail_over: Callable[[], None]) -> None:
    """Run jobs, kill the primary among them, and check that all jobs succeed."""
    jobs = JobQueue.from_url(url, prefix=PREFIX, lease=1)
    runs: list[int] = []
    busy = anyio.Event()

    @jobs.handler(name="work", retry=3)
    async def work(number: int) -> int:
        runs.append(number)
        if len(runs) > JOBS // 3:
            busy.set()
        await anyio.sleep(0.01)
        return number

    async with jobs:
        handles = await work.enqueue_many([(number,) for number in range(JOBS)])
        with client(primary) as connected:
            # Replication is asynchronous: jobs that have not arrived are lost with the primary.
            eventually(lambda: connected.wait(1, 100))
        async with Manager() as manager:
            await jobs.start(manager, concurrency=5)
            await busy.wait()
            await anyio.to_thread.run_sync(fail_over)
            with anyio.fail_after(30):
                for handle in handles:
                    await handle.wait()
        assert await jobs.count(state=JobState.SUCCEEDED) == JOBS
    assert set(runs) == set(range(JOBS))


async def test_sentinels(redis_server: Server, anyio_backend: object) -> None:
    """Workers continue after three sentinels have promoted the replica."""
    with ExitStack() as stack:
        servers = Replicated(redis_server.name, stack, 3)
        await run_jobs(servers.url, servers.servers[0], servers.fail_over)


@pytest.mark.parametrize("kills", [True, False], ids=["killed", "asked"])
async def test_cluster(redis_server: Server, anyio_backend: object, kills: bool) -> None:
    """Workers continue after a replica in a cluster was promoted, with or without its primary."""
    with ExitStack() as stack:
        cluster = RedisCluster(redis_server.name, stack, PREFIX)
        fail_over = cluster.kill_owner if kills else cluster.fail_over
        await run_jobs(cluster.url, cluster.owner(PREFIX), fail_over)


async def test_lost_changes(redis_server: Server, anyio_backend: object) -> None:
    """A fail-over undoes what the replica lacked: new jobs are lost, ended jobs run again."""
    with ExitStack() as stack:
        servers = Replicated(redis_server.name, stack, 1)
        first, second = servers.servers
        runs: Counter[int] = Counter()
        lost_lease = anyio.Event()

        async def work(number: int) -> int:
            runs[number] += 1
            if number == 3 and runs[number] == 1:
                try:
                    await anyio.sleep_forever()
                finally:
                    lost_lease.set()
            return number

        def queue(server: Server) -> Any:
            jobs = JobQueue.from_url(server.url, prefix=PREFIX, lease=1)
            return jobs, jobs.handler(name="work")(work)

        jobs, handler = queue(first)
        async with Manager() as manager, jobs:
            replicated = await handler.enqueue_many([(number,) for number in range(4)])
            with client(first) as primary, client(second) as replica:
                eventually(lambda: primary.wait(1, 100))
                replica.execute_command("REPLICAOF NO ONE")  # it receives nothing more
            await jobs.start(manager)
            lost = await handler.enqueue(4)
            for handle in (*replicated[:3], lost):
                assert await handle.wait() is JobState.SUCCEEDED
            first.kill()
            after, _ = queue(second)
            async with Manager() as other, after:
                await after.start(other)
                for handle in replicated:
                    assert await after.handle(handle.id).wait() is JobState.SUCCEEDED
                assert await after.get(lost.id) is None
            with anyio.fail_after(30):
                await lost_lease.wait()
    assert runs == {0: 2, 1: 2, 2: 2, 3: 2, 4: 1}
