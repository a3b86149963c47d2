"""Servers that are killed, connections that are cut, clocks that are wrong, jobs that are too much.

`FAULTS=full` makes it many jobs and many faults; `-s` shows the figures.
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
from support.processes.workers import Client, Fleet

from background.queues import JobState, PayloadTooLargeError

pytestmark = [
    pytest.mark.filterwarnings("ignore:several connections"),
    pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals"),
]

LEASE = 0.4
LIMIT = 1_048_576  # bytes of a payload, by default
REMOTE = [name for name in NAMES if STORES[name].modes]
BUSY = 20.0  # seconds that everything may take longer on a machine that has other things to do


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """A kind of broker."""
    return request.param


@pytest.fixture
def fleet(name: str, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(STORES[name], tmp_path) as fleet:
        yield fleet


@pytest.fixture
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    with proxied(int(fleet.url.rpartition(":")[2])) as proxy:
        yield proxy


def through(proxy: Proxy, fleet: Fleet) -> str:
    """Return the URL of a fleet's server that goes through a proxy."""
    return f"{fleet.url.rpartition(':')[0]}:{proxy.port}"


# Servers


@pytest.mark.parametrize(("name", "mode"), SERVED)
def test_killed_while_jobs_are_settled(name: str, mode: str, tmp_path: Path) -> None:
    """A server that comes back has lost nothing, and workers go on by themselves."""
    jobs, kills = (2000, 10) if FULL else (150, 2)
    server = STORES[name].modes[mode]()
    recovered: list[float] = []
    try:
        with Fleet(STORES[name], tmp_path, server.url) as fleet, fleet.client() as client:
            ids = client.enqueue_many("work", [(0.005,)] * jobs)
            for _ in range(2):
                fleet.start(lease=LEASE, concurrency=4, max_crashes=1000)
            for number in range(1, kills + 1):
                fleet.log.wait_for_entries(jobs * number // (kills + 1), what="succeeded")
                with fleet.log.fault("*", "server killed"):
                    server.kill()
                    server.start()
                    answered = time.monotonic()
                    fleet.log.wait_for(
                        lambda entries, since=answered: any(
                            each.what == "succeeded" and each.time > since for each in entries
                        )
                    )
                    recovered.append(time.monotonic() - answered)
                ids.append(client.enqueue("work", 0.0))
            assert set(client.wait(*ids)) == {"succeeded"}
            history = fleet.history(client, slack=LEASE)
    finally:
        server.close()
    print(
        f"\n{name}, {mode}: {kills} times killed, {len(ids)} jobs: lost {len(history.lost)}, "
        f"run again {history.duplicates}; jobs settled again {max(recovered):.2f} s after the "
        "server was back"
    )
    history.check()
    assert history.acknowledged == sorted(ids)


# Connections


@pytest.mark.parametrize("name", REMOTE)
def test_enqueued_while_the_connection_is_cut(name: str, fleet: Fleet, proxy: Proxy) -> None:
    """Each job is there once, wherever in its request it was cut."""
    cuts = [each for each in Cut if FULL or each is not Cut.SILENTLY]
    times: dict[Cut, float] = {}
    with fleet.client(through(proxy, fleet)) as client:
        ids = [client.enqueue("echo", "first")]
        for cut in cuts:
            hit = proxy.aim(cut, f"needle {cut.name}".encode())
            began = time.monotonic()
            ids.append(client.enqueue("echo", f"needle {cut.name}"))
            times[cut] = time.monotonic() - began
            assert hit.is_set()
        assert client.count() == len(ids)
        if FULL or not STORES[name].repair:
            fleet.start()
            assert set(client.wait(*ids)) == {"succeeded"}
            history = fleet.history(client)
            history.check()
            assert history.duplicates == 0
    for cut, seconds in times.items():
        print(f"\n{name}: cut {cut.value}: jobs per enqueue 1, enqueued in {seconds:.2f} s")
        assert seconds < BUSY


@pytest.mark.parametrize("name", REMOTE)
def test_a_worker_whose_connections_are_cut(name: str, fleet: Fleet, proxy: Proxy) -> None:
    """It goes on with what it has, and settles it."""
    cuts = 20 if FULL else 2
    with fleet.client() as client:
        ids = client.enqueue_many("work", [(0.05,)] * 20 * cuts)
        fleet.start(url=through(proxy, fleet), concurrency=5)
        for number in range(1, cuts + 1):
            fleet.log.wait_for_entries(20 * number - 10, what="started")
            with fleet.log.fault("*", "cut"):
                proxy.cut()
        assert set(client.wait(*ids)) == {"succeeded"}
        history = fleet.history(client)
        ends = client.ends()
    print(
        f"\n{name}: {cuts} times cut, {len(ids)} jobs: lost {len(history.lost)}, "
        f"run again {history.duplicates}, connections {proxy.connections}"
    )
    history.check()
    assert len(ends) == len(ids)


@pytest.mark.parametrize("how", ["refused", "black hole"] if FULL else ["refused"])
@pytest.mark.parametrize("name", REMOTE)
def test_a_worker_that_is_cut_off(
    name: str, how: str, fleet: Fleet, proxy: Proxy, tmp_path: Path
) -> None:
    """It gives up its jobs, another has them, and it comes back by itself."""
    gate = tmp_path / "gate"
    with fleet.client() as client:
        ids = client.enqueue_many("hold", [(str(gate),)] * 2)
        alone = fleet.started(url=through(proxy, fleet), lease=LEASE)
        fleet.log.wait_for_entries(2, who=alone.name, what="started")
        other = fleet.started(lease=LEASE)
        with (
            fleet.log.fault(alone.name, how),
            proxy.refusing() if how == "refused" else proxy.black_hole(),
        ):
            cut_at = time.monotonic()
            fleet.log.wait_for_entries(2, who=other.name, what="started")
            cancelled = fleet.log.wait_for_entries(2, who=alone.name, what="cancelled")
        back = time.monotonic()
        gate.touch()
        assert set(client.wait(*ids)) == {"succeeded"}
        other.send(signal.SIGTERM)
        other.wait()
        ids.append(client.enqueue("work", 0.0))
        assert client.wait(ids[-1]) == ["succeeded"]
        (again,) = fleet.log.wait_for_entries(job=ids[-1], what="started")
        history = fleet.history(client)
    print(
        f"\n{name}: cut off ({how}): taken over in {history.takeover(1):.2f} s of "
        f"{LEASE * 4 / 3:.2f} s, its own runs cancelled after {cancelled[-1].time - cut_at:.2f} s, "
        f"works again after {again.time - back:.2f} s"
    )
    history.check()
    assert again.who == alone.name
    assert history.refused >= 2
    assert history.takeover(1) < LEASE * 4 / 3 + BUSY


# Clocks


@pytest.mark.parametrize("name", [name for name in NAMES if STORES[name].own_clock])
def test_hosts_whose_clocks_are_wrong(name: str, fleet: Fleet) -> None:
    """Leases are by the server's clock, so they steal no jobs."""
    with fleet.client() as client:
        ids = client.enqueue_many("work", [(2 * LEASE,)] * 6)
        for hours in (-1, 1):
            fleet.start(lease=LEASE, clock=hours * 3600.0, concurrency=4)
        assert set(client.wait(*ids)) == {"succeeded"}
        history = fleet.history(client)
    print(f"\n{name}: clocks an hour off, both ways: run again {history.duplicates}")
    history.check()
    assert {each.who for each in fleet.log.entries() if each.what == "started"} == {
        "worker 1",
        "worker 2",
    }


@pytest.mark.parametrize("name", [name for name in NAMES if not STORES[name].own_clock])
def test_a_clock_that_is_moved(name: str, fleet: Fleet, tmp_path: Path) -> None:
    """That of the only host, an hour ahead and back: jobs may run again, and end once."""
    with fleet.client() as client:
        worker = fleet.started(lease=LEASE, concurrency=4)
        ids: list[str] = []
        for hours in (1, 0):
            gate = tmp_path / f"gate {hours}"
            held = client.enqueue_many("hold", [(str(gate),)] * 2)
            fleet.log.wait_for_entries(job=held[-1], what="started")
            with fleet.log.fault(worker.name, "clock moved"):
                ids += [*held, client.enqueue("shift", hours * 3600.0)]
                fleet.log.wait_for_entries(job=ids[-1], what="returned")
                renewed = time.monotonic() + LEASE
                while time.monotonic() < renewed:
                    ids.append(client.enqueue("echo", "still works"))
                    assert client.wait(ids[-1]) == ["succeeded"]
                gate.touch()
                assert set(client.wait(*ids)) == {"succeeded"}
        history = fleet.history(client)
    print(
        f"\n{name}: the clock moved by an hour, both ways: run again {history.duplicates}, "
        f"late settlements accepted {len(history.late_accepted)}"
    )
    history.check()


# What is too much


def peak_of_enqueuing(client: Client, size: int) -> float:
    """Return how many MB it takes to have a large job refused."""
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
    *(b'{"args":[1,2,3]}', b'{"args":[NaN]}', b"[" * 100_000, b'{"args":' + b"[" * 100_000),
    b'{"args":[' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"]}",
]


def test_payloads(name: str, fleet: Fleet) -> None:
    """Up to the limit they arrive; else the job is refused, or dead with all its bytes."""
    size = 100_000_000 if FULL else 5_000_000
    most = LIMIT - len('{"args":[""]}') - STORES[name].overhead
    with fleet.client() as client:
        good = [client.enqueue("measure", "x" * most)]
        with pytest.raises(PayloadTooLargeError, match="max_payload is"):
            client.enqueue("echo", "x" * (LIMIT + 1 - len('{"args":[""]}')))
        refusing = peak_of_enqueuing(client, size)
        bad = {f"{fleet.queue}-{number}": body for number, body in enumerate(CORRUPT)}
        if STORES[name].overhead == 0:
            bad[f"{fleet.queue}-over"] = b'{"args":["%s"]}' % (b"x" * (LIMIT + 1))
            bad[f"{fleet.queue}-huge"] = b'{"args":["%s"]}' % (b"x" * size)
        for id, body in bad.items():
            client.put(id, body)
        worker = fleet.started(concurrency=1)
        good.append(client.enqueue("echo", "still works"))
        assert set(client.wait(*bad)) == {"dead"}
        assert set(client.wait(*good)) == {"succeeded"}
        for id, body in bad.items():
            assert client.info(id).payload == body
        assert client.result(good[0]) == most
        worker.send(signal.SIGTERM)
        assert worker.wait() == -signal.SIGTERM
    (reading,) = fleet.log.wait_for_entries(what="memory")
    print(
        f"\n{name}: {len(bad)} bad payloads dead with their bytes, one worker, none of its jobs "
        f"lost; {size / 1e6:.0f} MB refused on enqueue with {refusing:.0f} MB more, on read with "
        f"{reading.detail} MB in all"
    )
    assert {each.who for each in fleet.log.entries() if each.what == "ready"} == {worker.name}


def test_a_backlog_of_slow_jobs(name: str, fleet: Fleet) -> None:
    """No more are claimed than can run, and their leases are kept."""
    jobs, rounds, concurrency = (100_000, 8, 50) if FULL else (1000, 2, 10)
    most = 0
    with fleet.client() as client:
        for _ in range(jobs // 500):
            client.enqueue_many("work", [(2 * LEASE,)] * 500)
        worker = fleet.started(lease=LEASE, concurrency=concurrency)
        for number in range(1, rounds + 1):
            fleet.log.wait_for_entries(concurrency * number, what="succeeded")
            most = max(most, client.count(state=JobState.RUNNING))
        worker.send(signal.SIGTERM)
        assert worker.wait() == -signal.SIGTERM
    entries = fleet.log.entries()
    (memory,) = (float(each.detail) for each in entries if each.what == "memory")
    lost = [each for each in entries if each.what == "cancelled" and "lease" in each.detail]
    late = [each for each in entries if "are renewed" in each.detail]
    paused = [each for each in entries if each.what == "paused"]
    print(
        f"\n{name}: a backlog of {jobs:,}: {most} running with a concurrency of {concurrency}, "
        f"{len(late)} times renewed late, {len(lost)} leases lost, {memory:.0f} MB at most"
    )
    assert most <= concurrency
    assert memory < 300
    assert paused or not lost + late
