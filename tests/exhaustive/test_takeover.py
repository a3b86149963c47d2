"""Takeovers of jobs from workers that are killed, stopped, shut down or blocked.

`FAULTS=full` runs many jobs with many faults; `-s` shows the measurements.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from random import Random, randrange

import pytest
from support.brokers.stores import FULL, STORES
from support.processes.history import Entry
from support.processes.workers import Cluster

pytestmark = [
    pytest.mark.filterwarnings("ignore:several connections"),
    pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals"),
]

LEASE = 0.4
_BEGINNINGS = ("acknowledged", "started")
SWEEP = LEASE / 3
BUSY = 15.0  # seconds by which everything may be delayed on a busy machine


def test_killed_workers(name: str, cluster: Cluster) -> None:
    """Every acknowledged job runs, and runs again only if its worker was killed."""
    jobs, kills, workers, longest = (1000, 50, 3, 1.0) if FULL else (120, 4, 2, 0.2)
    seed = randrange(10**6)
    random = Random(seed)
    repair = STORES[name].repair
    avoid_claims = repair > 0 and not FULL  # kill no worker in the middle of a claim
    options = {"lease": LEASE, "concurrency": 16, "max_crashes": 1000}
    ids: list[str] = []
    with cluster.client() as client:
        running = {w.name: w for w in (cluster.start(**options) for _ in range(workers))}
        for _ in range(kills):
            durations = [
                random.choice([0.01, 0.1, 0.3, 1.0]) * longest for _ in range(jobs // kills)
            ]
            cluster.log.wait_for(lambda entries: count_unfinished(entries) <= jobs // kills)
            ids += client.enqueue_many("work", [(seconds,) for seconds in durations])
            ids.append(client.enqueue("fail_once", longest))
            if avoid_claims:
                cluster.log.wait_for(all_started)
            busy = cluster.log.wait_for(lambda entries: busy_workers(entries, running))
            victim = running.pop(random.choice(busy))
            victim.kill()
            new = cluster.start(**options)
            running[new.name] = new
        assert set(client.wait(*ids)) == {"succeeded"}, f"seed {seed}"
        history = cluster.history(client, slack=LEASE)
    p99 = history.takeover(0.99)
    print(
        f"\n{name}: {kills} workers killed, {len(ids)} jobs: lost {len(history.lost)}, "
        f"run again {history.duplicates}, claimed and not begun {history.unstarted}, "
        f"takeover p99 {p99:.2f} s of {LEASE + SWEEP:.2f} s, seed {seed}"
    )
    history.check()
    assert history.acknowledged == sorted(ids)
    assert history.unstarted <= kills * 16
    assert p99 < LEASE + SWEEP + repair + BUSY


def count_unfinished(entries: Sequence[Entry]) -> int:
    """Return the number of jobs that were enqueued and have not succeeded."""
    events = [entry.event for entry in entries]
    return events.count("acknowledged") - events.count("succeeded")


def all_started(entries: Sequence[Entry]) -> bool:
    """Return whether every job that was enqueued has started."""
    jobs = {event: {e.job for e in entries if e.event == event} for event in _BEGINNINGS}
    return jobs["acknowledged"] <= jobs["started"]


def busy_workers(entries: Sequence[Entry], names: Collection[str]) -> list[str]:
    """Return the names of the workers that are running a job."""
    unfinished = {(e.job, e.attempt): e.process for e in entries if e.event == "started"}
    for entry in entries:
        if entry.event in ("returned", "retrying"):
            unfinished.pop((entry.job, entry.attempt), None)
    return sorted(set(unfinished.values()) & set(names))


def test_stopped_past_lease(name: str, cluster: Cluster, tmp_path: Path) -> None:
    """A worker stopped past its lease settles no job, whether its functions have ended or not."""
    at_end, running = tmp_path / "at end", tmp_path / "running"
    with cluster.client() as client:
        ids = client.enqueue_many("hold", [(str(at_end),), (str(running),)])
        stopped = cluster.started(lease=LEASE)
        cluster.log.wait_for_entries(2, process=stopped.name, event="started")
        second = cluster.start(lease=LEASE)
        with cluster.log.fault(stopped.name, "stopped"):
            stopped.send(signal.SIGSTOP)
            cluster.log.wait_for_entries(2, process=second.name, event="started")
            at_end.touch()
            client.wait(ids[0])
            stopped.send(signal.SIGCONT)
            cluster.log.wait_for_entries(2, process=stopped.name, event="cancelled")
        running.touch()
        assert set(client.wait(*ids)) == {"succeeded"}
        history = cluster.history(client)
        ends = client.ends()
    print(
        f"\n{name}: stopped past its lease of {LEASE:g} s: late settlements refused or cancelled "
        f"{history.refused}, accepted {len(history.late_accepted)}, takeover in "
        f"{history.takeover(1):.2f} s of {LEASE + SWEEP:.2f} s"
    )
    history.check()
    assert history.refused >= 2
    assert min(end.attempt for end in ends.values()) >= 2
    assert history.takeover(1) < LEASE + SWEEP + BUSY


def test_shutdown_releases_jobs(name: str, cluster: Cluster, tmp_path: Path) -> None:
    """A worker releases its jobs uncounted when its grace ends or at a second request."""
    gate = tmp_path / "gate"
    figures = []
    with cluster.client() as client:
        ids = client.enqueue_many("hold", [(str(gate),)] * 3)
        first = cluster.started(grace=0.05)
        cluster.log.wait_for_entries(3, process=first.name, event="started")
        second, third = cluster.started(grace=600.0), None
        for worker, signals in ((first, 1), (second, 2)):
            if worker is second:
                third = cluster.started()
            with cluster.log.fault(worker.name, "shut down", counts=False):
                for _ in range(signals):
                    worker.send(signal.SIGTERM)
                    cluster.log.wait_for_entries(process=worker.name, event="shutdown requested")
                assert worker.wait() == -signal.SIGTERM
            fault = cluster.log.faults[-1]
            started = cluster.log.wait_for(
                lambda entries, fault=fault: [
                    e for e in entries if e.event == "started" and e.time > fault.since
                ][2:]
            )
            figures.append((fault.until - fault.since, started[0].time - fault.since))
        assert third is not None
        gate.touch()
        assert set(client.wait(*ids)) == {"succeeded"}
        history = cluster.history(client)
        ends = client.ends()
    for times, (ended, taken_over) in zip(("once", "twice"), figures, strict=True):
        print(
            f"\n{name}: shut down {times}: ended after {ended:.2f} s, its jobs were taken over "
            f"after {taken_over:.2f} s, with a lease of 30 s"
        )
        assert taken_over < BUSY
    history.check()
    assert {end.attempt for end in ends.values()} == {1}


def test_poison_job(name: str, cluster: Cluster) -> None:
    """A job that kills its worker at once is dead after four attempts; other jobs succeed.

    The first crash does not count, because nothing shows that the worker received its claim.
    """
    with cluster.client() as client:
        harmless = client.enqueue_many("work", [(0.01,)] * 4)
        poison = client.enqueue("die")
        workers = [cluster.start(lease=LEASE / 2, concurrency=1) for _ in range(5)]
        with cluster.log.fault("*", "poison"):
            assert client.wait(poison) == ["dead"]
        assert set(client.wait(*harmless)) == {"succeeded"}
        error = client.info(poison).error
        cluster.history(client).check()
    starts = cluster.log.wait_for_entries(4, job=poison, event="started")
    print(f"\n{name}: a job that kills its worker is dead after {len(starts)} attempts")
    assert len(starts) == 4
    assert error is not None
    assert error.message == "its worker died 3 times while it ran the job"
    assert len({start.process for start in starts}) == 4
    assert len([w for w in workers if w.name not in {start.process for start in starts}]) == 1


def test_blocked_event_loop(name: str, cluster: Cluster) -> None:
    """A blocked event loop is logged, and the late settlement is refused."""
    with cluster.client() as client:
        blocking = client.enqueue("block", 2 * LEASE)
        blocked = cluster.started(lease=LEASE, concurrency=2)
        cluster.log.wait_for_entries(process=blocked.name, event="started")
        with cluster.log.fault(blocked.name, "blocked"):
            cluster.start(lease=LEASE)
            assert client.wait(blocking) == ["succeeded"]
            logged = cluster.log.wait_for(
                lambda entries: [
                    entry.detail
                    for entry in entries
                    if entry.process == blocked.name and "are renewed" in entry.detail
                ]
            )
            cluster.log.wait_for_entries(process=blocked.name, event="cancelled", job=blocking)
        history = cluster.history(client)
        ends = client.ends()
    print(
        f"\n{name}: blocked for twice its lease of {LEASE:g} s: late settlements refused "
        f"{history.refused}, accepted {len(history.late_accepted)}; logged: {logged[0]}"
    )
    history.check()
    assert "the event loop was blocked" in logged[0]
    assert ends[blocking].attempt >= 2
    assert history.refused >= 1


def test_cancel_from_another_process(name: str, cluster: Cluster, tmp_path: Path) -> None:
    """A queued job never runs; a running job is cancelled long before its lease ends."""
    never = str(tmp_path / "never")
    with cluster.client() as client:
        waiting = client.enqueue("hold", never)
        assert client.cancel(waiting)
        worker = cluster.started(concurrency=1, lease=600.0)
        running = client.enqueue("hold", never)
        cluster.log.wait_for_entries(process=worker.name, event="started", job=running)
        assert client.cancel(running)
        (cancelled,) = cluster.log.wait_for_entries(event="cancelled", job=running)
        last = client.enqueue("work", 0.0)
        assert client.wait(waiting, running, last) == ["cancelled", "cancelled", "succeeded"]
        assert not client.cancel(running)
        history = cluster.history(client)
    assert cancelled.process == worker.name
    assert cancelled.detail == "the job was cancelled"
    assert history.lost == [waiting]
    assert not history.problems


def test_fork_in_job(name: str, cluster: Cluster) -> None:
    """The child of a fork is refused the inherited queue; the parent continues."""
    with cluster.client() as client:
        ids = [client.enqueue("fork"), client.enqueue("work", 0.0)]
        cluster.start()
        answers = client.result(ids[0])
        ids.append(client.enqueue("work", 0.0))
        assert set(client.wait(*ids)) == {"succeeded"}
        history = cluster.history(client)
    print(f"\n{name}: in a child: {answers}")
    assert len(answers) == 2
    for answer in answers:
        assert answer.startswith("refused: ")
        assert "before a fork" in answer
    history.check()
    assert history.duplicates == 0
