"""Killed servers, cut connections, wrong clocks, bad payloads and large backlogs.

`FAULTS=full` runs many jobs with many faults; `-s` shows the measurements.
"""

from __future__ import annotations

import signal
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.brokers.proxy import Cut, Proxy, proxied
from support.brokers.stores import FULL, NAMES, SERVED, STORES
from support.processes.workers import Client, Cluster

from background.queues import JobState, PayloadTooLargeError

pytestmark = [
    pytest.mark.filterwarnings("ignore:several connections"),
    pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals"),
]

LEASE = 0.4
LIMIT = 1_048_576  # bytes of a payload, by default
REMOTE = [name for name in NAMES if STORES[name].modes]
BUSY = 20.0  # seconds by which everything may be delayed on a busy machine


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[Proxy]:
    with proxied(int(cluster.url.rpartition(":")[2])) as proxy:
        yield proxy


def proxy_url(proxy: Proxy, cluster: Cluster) -> str:
    """Return the URL of the cluster's server through the proxy."""
    return f"{cluster.url.rpartition(':')[0]}:{proxy.port}"


# Servers


@pytest.mark.parametrize(("name", "mode"), SERVED)
def test_killed_server(name: str, mode: str, tmp_path: Path) -> None:
    """A killed server loses no job, and workers continue after its restart."""
    jobs, kills = (2000, 10) if FULL else (150, 2)
    server = STORES[name].modes[mode]()
    recovered: list[float] = []
    try:
        with Cluster(STORES[name], tmp_path, server.url) as cluster, cluster.client() as client:
            ids = client.enqueue_many("work", [(0.005,)] * jobs)
            for _ in range(2):
                cluster.start(lease=LEASE, concurrency=4, max_crashes=1000)
            for number in range(1, kills + 1):
                cluster.log.wait_for_entries(jobs * number // (kills + 1), event="succeeded")
                with cluster.log.fault("*", "server killed"):
                    server.kill()
                    server.start()
                    restarted = time.monotonic()
                    cluster.log.wait_for(
                        lambda entries, since=restarted: any(
                            entry.event == "succeeded" and entry.time > since for entry in entries
                        )
                    )
                    recovered.append(time.monotonic() - restarted)
                ids.append(client.enqueue("work", 0.0))
            assert set(client.wait(*ids)) == {"succeeded"}
            history = cluster.history(client, slack=LEASE)
    finally:
        server.close()
    print(
        f"\n{name}, {mode}: killed {kills} times, {len(ids)} jobs: lost {len(history.lost)}, "
        f"run again {history.duplicates}; jobs settled again {max(recovered):.2f} s after the "
        "server was back"
    )
    history.check()
    assert history.acknowledged == sorted(ids)


# Connections


@pytest.mark.parametrize("name", REMOTE)
def test_enqueue_with_cut_connection(name: str, cluster: Cluster, proxy: Proxy) -> None:
    """A job is stored once, wherever in its request the connection is cut."""
    cuts = [cut for cut in Cut if FULL or cut is not Cut.SILENTLY]
    times: dict[Cut, float] = {}
    with cluster.client(proxy_url(proxy, cluster)) as client:
        ids = [client.enqueue("echo", "first")]
        for cut in cuts:
            hit = proxy.aim(cut, f"needle {cut.name}".encode())
            began = time.monotonic()
            ids.append(client.enqueue("echo", f"needle {cut.name}"))
            times[cut] = time.monotonic() - began
            assert hit.is_set()
        assert client.count() == len(ids)
        if FULL or not STORES[name].repair:
            cluster.start()
            assert set(client.wait(*ids)) == {"succeeded"}
            history = cluster.history(client)
            history.check()
            assert history.duplicates == 0
    for cut, seconds in times.items():
        print(f"\n{name}: cut {cut.value}: jobs per enqueue 1, enqueued in {seconds:.2f} s")
        assert seconds < BUSY


@pytest.mark.parametrize("name", REMOTE)
def test_worker_with_cut_connections(name: str, cluster: Cluster, proxy: Proxy) -> None:
    """A worker continues its jobs and settles them after a reconnect."""
    cuts = 20 if FULL else 2
    with cluster.client() as client:
        ids = client.enqueue_many("work", [(0.05,)] * 20 * cuts)
        cluster.start(url=proxy_url(proxy, cluster), concurrency=5)
        for number in range(1, cuts + 1):
            cluster.log.wait_for_entries(20 * number - 10, event="started")
            with cluster.log.fault("*", "cut"):
                proxy.cut()
        assert set(client.wait(*ids)) == {"succeeded"}
        history = cluster.history(client)
        ends = client.ends()
    print(
        f"\n{name}: cut {cuts} times, {len(ids)} jobs: lost {len(history.lost)}, "
        f"run again {history.duplicates}, connections {proxy.connections}"
    )
    history.check()
    assert len(ends) == len(ids)


@pytest.mark.parametrize("how", ["refused", "black hole"] if FULL else ["refused"])
@pytest.mark.parametrize("name", REMOTE)
def test_isolated_worker(
    name: str, how: str, cluster: Cluster, proxy: Proxy, tmp_path: Path
) -> None:
    """An isolated worker loses its jobs to another worker, and later reconnects."""
    gate = tmp_path / "gate"
    with cluster.client() as client:
        ids = client.enqueue_many("hold", [(str(gate),)] * 2)
        isolated = cluster.started(url=proxy_url(proxy, cluster), lease=LEASE)
        cluster.log.wait_for_entries(2, process=isolated.name, event="started")
        second = cluster.started(lease=LEASE)
        with (
            cluster.log.fault(isolated.name, how),
            proxy.refusing() if how == "refused" else proxy.black_hole(),
        ):
            cut_at = time.monotonic()
            cluster.log.wait_for_entries(2, process=second.name, event="started")
            cancelled = cluster.log.wait_for_entries(2, process=isolated.name, event="cancelled")
        reconnected = time.monotonic()
        gate.touch()
        assert set(client.wait(*ids)) == {"succeeded"}
        second.send(signal.SIGTERM)
        second.wait()
        ids.append(client.enqueue("work", 0.0))
        assert client.wait(ids[-1]) == ["succeeded"]
        (again,) = cluster.log.wait_for_entries(job=ids[-1], event="started")
        history = cluster.history(client)
    print(
        f"\n{name}: cut off ({how}): taken over in {history.takeover(1):.2f} s of "
        f"{LEASE * 4 / 3:.2f} s, its own runs cancelled after {cancelled[-1].time - cut_at:.2f} s, "
        f"works again after {again.time - reconnected:.2f} s"
    )
    history.check()
    assert again.process == isolated.name
    assert history.refused >= 2
    assert history.takeover(1) < LEASE * 4 / 3 + BUSY


# Clocks


@pytest.mark.parametrize("name", [name for name in NAMES if STORES[name].server_clock])
def test_wrong_clocks(name: str, cluster: Cluster) -> None:
    """Workers with wrong clocks take over no jobs, as leases use the server's clock."""
    with cluster.client() as client:
        ids = client.enqueue_many("work", [(2 * LEASE,)] * 6)
        for hours in (-1, 1):
            cluster.start(lease=LEASE, clock=hours * 3600.0, concurrency=4)
        assert set(client.wait(*ids)) == {"succeeded"}
        history = cluster.history(client)
    print(f"\n{name}: clocks an hour slow and fast: run again {history.duplicates}")
    history.check()
    assert {e.process for e in cluster.log.entries() if e.event == "started"} == {
        "worker 1",
        "worker 2",
    }


@pytest.mark.parametrize("name", [name for name in NAMES if not STORES[name].server_clock])
def test_moved_clock(name: str, cluster: Cluster, tmp_path: Path) -> None:
    """Jobs may run again when the clock of the host is moved, but end once."""
    with cluster.client() as client:
        worker = cluster.started(lease=LEASE, concurrency=4)
        ids: list[str] = []
        for hours in (1, 0):
            gate = tmp_path / f"gate {hours}"
            held = client.enqueue_many("hold", [(str(gate),)] * 2)
            cluster.log.wait_for_entries(job=held[-1], event="started")
            with cluster.log.fault(worker.name, "clock moved"):
                ids += [*held, client.enqueue("shift", hours * 3600.0)]
                cluster.log.wait_for_entries(job=ids[-1], event="returned")
                renewed = time.monotonic() + LEASE
                while time.monotonic() < renewed:
                    ids.append(client.enqueue("echo", "still works"))
                    assert client.wait(ids[-1]) == ["succeeded"]
                gate.touch()
                assert set(client.wait(*ids)) == {"succeeded"}
        history = cluster.history(client)
    print(
        f"\n{name}: the clock moved an hour ahead and back: run again {history.duplicates}, "
        f"late settlements accepted {len(history.late_accepted)}"
    )
    history.check()


# Payloads and backlogs


def peak_of_enqueuing(client: Client, size: int) -> float:
    """Return the peak memory in MB while a job with a large payload is refused."""
    large = "x" * size
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLargeError, match="max_payload is 1,048,576"):
            client.enqueue("echo", large)
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


CORRUPT = [
    *(b"", b"{", b'{"args":[1', b"\xff\xfe", b"null", b"[]", b'{"args":{}}', b'{"kwargs":[]}'),
    *(b'{"args":[NaN]}', b"[" * 100_000, b'{"args":' + b"[" * 100_000),
    b'{"args":[' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"]}",
]


def test_payloads(name: str, cluster: Cluster) -> None:
    """Payloads up to the limit arrive, and larger ones are refused.

    Corrupt payloads make a job dead. Those that a worker of another version may take are released.
    Both are stored unchanged.
    """
    size = 100_000_000 if FULL else 5_000_000
    maximum = LIMIT - len('{"args":[""]}') - STORES[name].overhead
    with cluster.client() as client:
        good = [client.enqueue("measure", "x" * maximum)]
        with pytest.raises(PayloadTooLargeError, match="max_payload is"):
            client.enqueue("echo", "x" * (LIMIT + 1 - len('{"args":[""]}')))
        refusing = peak_of_enqueuing(client, size)
        bad = {f"{cluster.queue}-{number}": body for number, body in enumerate(CORRUPT)}
        misfits = {f"{cluster.queue}-args": b'{"args":[1,2,3]}'}
        if STORES[name].overhead == 0:
            misfits[f"{cluster.queue}-over"] = b'{"args":["%s"]}' % (b"x" * (LIMIT + 1))
            misfits[f"{cluster.queue}-huge"] = b'{"args":["%s"]}' % (b"x" * size)
        for id, body in (bad | misfits).items():
            client.put(id, body)
        worker = cluster.started(concurrency=1)
        good.append(client.enqueue("echo", "still works"))
        assert set(client.wait(*bad)) == {"dead"}
        assert set(client.wait(*good)) == {"succeeded"}
        assert client.result(good[0]) == maximum
        worker.send(signal.SIGTERM)
        assert worker.wait() == -signal.SIGTERM
        for id, body in (bad | misfits).items():
            info = client.info(id)
            assert info.payload == body
            assert info.error
            assert id in bad or (info.attempt == 0 and not info.state.is_final)
    (reading,) = cluster.log.wait_for_entries(event="memory")
    print(
        f"\n{name}: {len(bad)} jobs with bad payloads dead and {len(misfits)} released, with their "
        f"bytes, no other job lost; {size / 1e6:.0f} MB refused on enqueue with {refusing:.0f} MB "
        f"of memory, on read with {reading.detail} MB in total"
    )
    assert {e.process for e in cluster.log.entries() if e.event == "ready"} == {worker.name}


def test_backlog(name: str, cluster: Cluster) -> None:
    """A worker claims no more jobs than it can run, and renews their leases."""
    jobs, rounds, concurrency = (100_000, 8, 50) if FULL else (1000, 2, 10)
    maximum = 0
    with cluster.client() as client:
        for _ in range(jobs // 500):
            client.enqueue_many("work", [(2 * LEASE,)] * 500)
        worker = cluster.started(lease=LEASE, concurrency=concurrency)
        for number in range(1, rounds + 1):
            cluster.log.wait_for_entries(concurrency * number, event="succeeded")
            maximum = max(maximum, client.count(state=JobState.RUNNING))
        worker.send(signal.SIGTERM)
        assert worker.wait() == -signal.SIGTERM
    entries = cluster.log.entries()
    (memory,) = (float(e.detail) for e in entries if e.event == "memory")
    lost = [e for e in entries if e.event == "cancelled" and "lease" in e.detail]
    late = [e for e in entries if "are renewed" in e.detail]
    paused = [e for e in entries if e.event == "paused"]
    print(
        f"\n{name}: a backlog of {jobs:,}: {maximum} running with a concurrency of {concurrency}, "
        f"{len(late)} late renewals, {len(lost)} leases lost, {memory:.0f} MB peak memory"
    )
    assert maximum <= concurrency
    assert memory < 300
    assert paused or not lost + late
