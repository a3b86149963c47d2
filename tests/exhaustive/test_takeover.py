"""Workers that are killed, frozen, asked to leave, blocked or overruled in the middle of jobs.

`FAULTS=full` makes it many jobs and many faults; `-s` shows the figures.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from random import Random, randrange

import pytest
from support.brokers.stores import FULL, NAMES, STORES
from support.processes.history import Entry
from support.processes.workers import Fleet

pytestmark = [
    pytest.mark.filterwarnings("ignore:several connections"),
    pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals"),
]

LEASE = 0.4
_BEGINNINGS = ("acknowledged", "started")
SWEEP = LEASE / 3
BUSY = 15.0  # seconds that everything may take longer on a machine that has other things to do


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """A kind of broker."""
    return request.param


@pytest.fixture
def fleet(name: str, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(STORES[name], tmp_path) as fleet:
        yield fleet


def test_killed_again_and_again(name: str, fleet: Fleet) -> None:
    """Every acknowledged job runs, and twice only where its worker was killed."""
    jobs, kills, workers, longest = (1000, 50, 3, 1.0) if FULL else (120, 4, 2, 0.2)
    seed = randrange(10**6)
    random = Random(seed)
    repair = STORES[name].repair
    spared = repair > 0 and not FULL  # what is killed in the middle of a claim
    options = {"lease": LEASE, "concurrency": 16, "max_crashes": 1000}
    ids: list[str] = []
    with fleet.client() as client:
        crew = {each.name: each for each in (fleet.start(**options) for _ in range(workers))}
        for _ in range(kills):
            durations = [
                random.choice([0.01, 0.1, 0.3, 1.0]) * longest for _ in range(jobs // kills)
            ]
            fleet.log.wait_for(lambda entries: left(entries) <= jobs // kills)
            ids += client.enqueue_many("work", [(each,) for each in durations])
            ids.append(client.enqueue("fail_once", longest))
            if spared:
                fleet.log.wait_for(has_begun_all)
            busy = fleet.log.wait_for(lambda entries: busy_among(entries, crew))
            victim = crew.pop(random.choice(busy))
            victim.kill()
            new = fleet.start(**options)
            crew[new.name] = new
        assert set(client.wait(*ids)) == {"succeeded"}, f"seed {seed}"
        history = fleet.history(client, slack=LEASE)
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


def left(entries: Sequence[Entry]) -> int:
    """Return how many jobs have been enqueued and have not ended."""
    what = [each.what for each in entries]
    return what.count("acknowledged") - what.count("succeeded")


def has_begun_all(entries: Sequence[Entry]) -> bool:
    """Tell whether workers have begun every job that was enqueued."""
    jobs = {what: {each.job for each in entries if each.what == what} for what in _BEGINNINGS}
    return jobs["acknowledged"] <= jobs["started"]


def busy_among(entries: Sequence[Entry], crew: Collection[str]) -> list[str]:
    """Return those who are in the middle of a job."""
    under_way = {(each.job, each.attempt): each.who for each in entries if each.what == "started"}
    for each in entries:
        if each.what in ("returned", "retrying"):
            under_way.pop((each.job, each.attempt), None)
    return sorted(set(under_way.values()) & set(crew))


def test_frozen_past_its_lease(name: str, fleet: Fleet, tmp_path: Path) -> None:
    """It can settle nothing any more, be its functions at their ends or not."""
    at_end, under_way = tmp_path / "at end", tmp_path / "under way"
    with fleet.client() as client:
        ids = client.enqueue_many("hold", [(str(at_end),), (str(under_way),)])
        frozen = fleet.started(lease=LEASE)
        fleet.log.wait_for_entries(2, who=frozen.name, what="started")
        other = fleet.start(lease=LEASE)
        with fleet.log.fault(frozen.name, "frozen"):
            frozen.send(signal.SIGSTOP)
            fleet.log.wait_for_entries(2, who=other.name, what="started")
            at_end.touch()
            client.wait(ids[0])
            frozen.send(signal.SIGCONT)
            fleet.log.wait_for_entries(2, who=frozen.name, what="cancelled")
        under_way.touch()
        assert set(client.wait(*ids)) == {"succeeded"}
        history = fleet.history(client)
        ends = client.ends()
    print(
        f"\n{name}: frozen past its lease of {LEASE:g} s: late settlements refused or cancelled "
        f"{history.refused}, accepted {len(history.late_accepted)}, takeover in "
        f"{history.takeover(1):.2f} s of {LEASE + SWEEP:.2f} s"
    )
    history.check()
    assert history.refused >= 2
    assert min(each.attempt for each in ends.values()) >= 2
    assert history.takeover(1) < LEASE + SWEEP + BUSY


def test_asked_to_leave(name: str, fleet: Fleet, tmp_path: Path) -> None:
    """It hands its jobs back at once, uncounted: after its grace time, or when asked twice."""
    gate = tmp_path / "gate"
    figures = []
    with fleet.client() as client:
        ids = client.enqueue_many("hold", [(str(gate),)] * 3)
        one = fleet.started(grace=0.05)
        fleet.log.wait_for_entries(3, who=one.name, what="started")
        two, three = fleet.started(grace=600.0), None
        for worker, signals in ((one, 1), (two, 2)):
            if worker is two:
                three = fleet.started()
            with fleet.log.fault(worker.name, "asked to leave", counts=False):
                for _ in range(signals):
                    worker.send(signal.SIGTERM)
                    fleet.log.wait_for_entries(who=worker.name, what="shutdown requested")
                assert worker.wait() == -signal.SIGTERM
            since = fleet.log.faults[-1]
            begun = fleet.log.wait_for(
                lambda entries, since=since: [
                    each for each in entries if each.what == "started" and each.time > since.since
                ][2:]
            )
            figures.append((since.until - since.since, begun[0].time - since.since))
        assert three is not None
        gate.touch()
        assert set(client.wait(*ids)) == {"succeeded"}
        history = fleet.history(client)
        ends = client.ends()
    for times, (gone, begun) in zip(("once", "twice"), figures, strict=True):
        print(
            f"\n{name}: asked to leave {times}: gone after {gone:.2f} s, its jobs run elsewhere "
            f"after {begun:.2f} s, with a lease of 30 s"
        )
        assert begun < BUSY
    history.check()
    assert {each.attempt for each in ends.values()} == {1}


def test_a_job_that_kills_its_worker(name: str, fleet: Fleet) -> None:
    """It is dead after three, and no other job is."""
    with fleet.client() as client:
        bystanders = client.enqueue_many("work", [(0.01,)] * 4)
        poison = client.enqueue("die")
        workers = [fleet.start(lease=LEASE / 2, concurrency=1) for _ in range(4)]
        with fleet.log.fault("*", "poison"):
            assert client.wait(poison) == ["dead"]
        assert set(client.wait(*bystanders)) == {"succeeded"}
        error = client.info(poison).error
        fleet.history(client).check()
    starts = fleet.log.wait_for_entries(3, job=poison, what="started")
    print(f"\n{name}: a job that kills its worker each time is dead after {len(starts)}")
    assert len(starts) == 3
    assert error is not None
    assert error.message == "its worker died 3 times while it ran the job"
    assert len({each.who for each in starts}) == 3
    assert len([each for each in workers if each.name not in {each.who for each in starts}]) == 1


def test_a_blocked_event_loop(name: str, fleet: Fleet) -> None:
    """It is told of in the log, and what it settles then is refused."""
    with fleet.client() as client:
        blocking = client.enqueue("block", 2 * LEASE)
        blocked = fleet.started(lease=LEASE, concurrency=2)
        fleet.log.wait_for_entries(who=blocked.name, what="started")
        with fleet.log.fault(blocked.name, "blocked"):
            fleet.start(lease=LEASE)
            assert client.wait(blocking) == ["succeeded"]
            logged = fleet.log.wait_for(
                lambda entries: [
                    each.detail
                    for each in entries
                    if each.who == blocked.name and "are renewed" in each.detail
                ]
            )
            fleet.log.wait_for_entries(who=blocked.name, what="cancelled", job=blocking)
        history = fleet.history(client)
        ends = client.ends()
    print(
        f"\n{name}: blocked for twice its lease of {LEASE:g} s: late settlements refused "
        f"{history.refused}, accepted {len(history.late_accepted)}; logged: {logged[0]}"
    )
    history.check()
    assert "the event loop was blocked" in logged[0]
    assert ends[blocking].attempt >= 2
    assert history.refused >= 1


def test_dequeued_by_another_process(name: str, fleet: Fleet, tmp_path: Path) -> None:
    """What waits never runs; what runs is cancelled, long before its lease ends."""
    never = str(tmp_path / "never")
    with fleet.client() as client:
        waiting = client.enqueue("hold", never)
        assert client.cancel(waiting)
        worker = fleet.started(concurrency=1, lease=600.0)
        running = client.enqueue("hold", never)
        fleet.log.wait_for_entries(who=worker.name, what="started", job=running)
        assert client.cancel(running)
        (cancelled,) = fleet.log.wait_for_entries(what="cancelled", job=running)
        last = client.enqueue("work", 0.0)
        assert client.wait(waiting, running, last) == ["cancelled", "cancelled", "succeeded"]
        assert not client.cancel(running)
        history = fleet.history(client)
    assert cancelled.who == worker.name
    assert cancelled.detail == "the job was cancelled"
    assert history.lost == [waiting]
    assert not history.problems


def test_a_fork_in_a_job(name: str, fleet: Fleet) -> None:
    """The child is refused what it has inherited, and the parent goes on."""
    with fleet.client() as client:
        ids = [client.enqueue("fork"), client.enqueue("work", 0.0)]
        fleet.start()
        told = client.result(ids[0])
        ids.append(client.enqueue("work", 0.0))
        assert set(client.wait(*ids)) == {"succeeded"}
        history = fleet.history(client)
    print(f"\n{name}: in a child: {told}")
    assert len(told) == 2
    for each in told:
        assert each.startswith("refused: ")
        assert "before a fork" in each
    history.check()
    assert history.duplicates == 0
