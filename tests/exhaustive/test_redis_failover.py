"""Workers whose Redis primary is killed, and replaced by its replica."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

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
