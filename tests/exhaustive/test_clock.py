"""Schedules with a moved wall clock, changes of daylight saving time, and a stopped process.

The runs of a cron loop are compared with the ticks that the wall clock has passed, which are
calculated without the package: no run may be missed, and none may be extra.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise, product
from zoneinfo import ZoneInfo

import anyio
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.processes.process import PROGRAMS, running

from background import Manager, Task, TaskKind, TaskStarted, TaskSucceeded, cron
from background._support import clock as system_clock
from background.testing import RecordingObserver, virtual_time, virtual_wall_clock

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows can't stop a process")

SCRIPT = PROGRAMS / "stopped.py"

EPSILON = 1e-3
MINUTE, HOUR, DAY = 60, 3600, 86400
PATIENCE = 60.0  # seconds by which a run may be late
START = datetime(2025, 1, 1, 11, 30, 20, tzinfo=UTC).timestamp()


@dataclass
class Period:
    """A period in which the wall clock was not moved."""

    began: float  # its begin on the event loop's clock
    wall: float  # its begin on the wall clock
    ran_before: int  # number of earlier runs


class WallClock:
    """A wall clock that follows the event loop's clock and can be moved."""

    def __init__(self) -> None:
        self._epoch = START - anyio.current_time()
        self.unmoved_periods: list[Period] = []
        self.runs: list[float] = []
        self.move(0)

    def __call__(self) -> float:
        return self._epoch + anyio.current_time()

    def move(self, seconds: float) -> None:
        self._epoch += seconds
        self.unmoved_periods.append(Period(anyio.current_time(), self(), len(self.runs)))

    async def tick(self) -> None:
        self.runs.append(self())

    def ticks(self, period: int) -> list[int]:
        """Return the tick of each run: the latest multiple of the period."""
        return [math.floor((run + EPSILON) / period) * period for run in self.runs]

    def extra(self, period: int) -> list[float]:
        """Return runs whose tick had been run before, and runs that were too late."""
        newest, extra = -math.inf, []
        for tick, run in zip(self.ticks(period), self.runs, strict=True):
            if tick <= newest or run - tick > PATIENCE + EPSILON:
                extra.append(run)
            newest = max(newest, tick)
        return extra

    def missed(self, period: int) -> list[int]:
        """Return the ticks without a run that the clock passed by itself.

        Ticks just before a move are left out, as the loop may not have noticed them.
        A tick that the clock passes again counts only if the loop must have noticed that the clock
        was moved back.
        """
        ticks = self.ticks(period)
        ends = [*(unmoved.began for unmoved in self.unmoved_periods[1:]), anyio.current_time()]
        missed = []
        epochs: list[float] = []
        furthest = -math.inf
        for unmoved, end in zip(self.unmoved_periods, ends, strict=True):
            epoch = unmoved.wall - unmoved.began
            again = any(earlier - epoch < PATIENCE for earlier in epochs)
            epochs.append(epoch)
            newest = max(ticks[: unmoved.ran_before], default=-math.inf)
            noticed = unmoved.wall + end - unmoved.began - PATIENCE - EPSILON
            first = math.floor(unmoved.wall / period + 1) * period
            for tick in range(first, math.ceil(noticed), period):
                if tick > newest and tick not in ticks and not (again and tick <= furthest):
                    missed.append(tick)
            furthest = max(furthest, epoch + end)
        return missed


@pytest.fixture
async def wall(anyio_backend: object, monkeypatch: pytest.MonkeyPatch) -> WallClock:
    clock = WallClock()
    monkeypatch.setattr(system_clock, "wall", clock)
    return clock


def count_runs(wall: WallClock, period: int) -> tuple[list[int], list[float]]:
    """Print and return the missed ticks and the extra runs."""
    missed, extra = wall.missed(period), wall.extra(period)
    print(f"runs = {len(wall.runs)}, missed runs = {len(missed)}, extra runs = {len(extra)}")
    return missed, extra


# The wall clock is moved

PERIODS = {"* * * * *": MINUTE, "*/5 * * * *": 5 * MINUTE, "0 * * * *": HOUR, "0 0 * * *": DAY}


MOVES = [HOUR, -HOUR, DAY, -DAY, 59, -59, 0.5, -0.5, 1e-3, -1e-3]


@pytest.mark.parametrize(
    ("expression", "moved"),
    [
        (expression, moved)
        for expression in PERIODS
        for moved in (MOVES if PERIODS[expression] < DAY else [HOUR, -HOUR, -0.5])
    ],
)
async def test_moved_clock(
    manager: Manager, wall: WallClock, expression: str, moved: float
) -> None:
    """Every tick runs once when the wall clock is moved before, at, after and between ticks."""
    period = PERIODS[expression]
    manager.cron(expression, wall.tick)
    await anyio.sleep(period - START % period)
    for pause in (period / 2, period / 2 - 0.1, 0.2, 2.7 * period):
        await anyio.sleep(pause)
        wall.move(moved)
    await anyio.sleep(2.1 * period + (4 * HOUR if moved == -HOUR else 0))
    assert count_runs(wall, period) == ([], [])
    assert len(wall.runs) >= (1 if moved == -DAY else 2)


@pytest.mark.parametrize(
    ("moved", "skipped", "waits"),
    [(HOUR, 60, 0), (-HOUR, 0, 60), (DAY, 24 * 60, 0), (-DAY, 0, 24 * 60)],
)
async def test_skipped_and_repeated_ticks(
    manager: Manager, wall: WallClock, moved: float, skipped: int, waits: int
) -> None:
    """Ticks that the clock jumped over are skipped, and repeated ticks do not run again."""
    manager.cron("* * * * *", wall.tick)
    await anyio.sleep(10 * MINUTE)
    wall.move(moved)
    before = wall.ticks(MINUTE)
    await anyio.sleep((10 + waits) * MINUTE)
    assert len(before) == 10
    after = wall.ticks(MINUTE)[10:]
    assert count_runs(wall, MINUTE) == ([], [])
    assert len(after) in (10, 11)
    assert after[0] - before[-1] in ((skipped + 1) * MINUTE, skipped * MINUTE)


async def test_repeated_steps_back(manager: Manager, wall: WallClock) -> None:
    """Every tick runs once when a fast clock is set back each minute, just after the tick."""
    manager.cron("* * * * *", wall.tick)
    await anyio.sleep(39.9)
    for _ in range(100):
        await anyio.sleep(MINUTE + 0.25)
        wall.move(-0.25)
    assert count_runs(wall, MINUTE) == ([], [])
    assert len(wall.runs) == 101


async def test_tick_after_jump(manager: Manager, wall: WallClock) -> None:
    """A tick right after a jump runs, although the loop has not noticed the jump."""
    manager.cron("*/5 * * * *", wall.tick)
    await anyio.sleep(1)
    tick = START - 20 + 25 * MINUTE
    wall.move(tick - 30 - wall())
    await anyio.sleep(2 * MINUTE)
    assert wall.ticks(5 * MINUTE) == [tick]


async def test_reverted_jump(manager: Manager, wall: WallClock) -> None:
    """Ticks that the clock jumped over run after the jump is reverted."""
    manager.cron("*/15 * * * *", wall.tick)
    await anyio.sleep(MINUTE)
    wall.move(DAY)
    await anyio.sleep(2 * MINUTE)
    wall.move(-DAY)
    await anyio.sleep(HOUR)
    assert count_runs(wall, 15 * MINUTE) == ([], [])
    assert len(wall.runs) == 4


async def test_clock_out_of_range(manager: Manager, wall: WallClock) -> None:
    """A wall clock past the year 9999 fails the cron loop, and no other task."""
    loop = manager.cron("* * * * *", wall.tick)
    delayed = manager.after(HOUR, anyio.sleep, 0)
    await anyio.sleep(MINUTE)
    wall.move(datetime.max.replace(tzinfo=UTC).timestamp() - wall() - 1)
    assert await loop.wait() == "failed"
    assert isinstance(loop.error, (ValueError, OverflowError))
    assert await delayed.wait() == "succeeded"


def eighths(seconds: float) -> st.SearchStrategy[float]:
    """Draw eighths of a second: a late run is then never mistaken for one of the next tick."""
    return st.integers(round(-8 * seconds), round(8 * seconds)).map(lambda number: number / 8)


moves = st.lists(
    st.tuples(
        st.floats(0, HOUR),
        st.one_of(
            eighths(2), eighths(2 * HOUR), st.sampled_from([-DAY, -HOUR, -60, 60, HOUR, DAY])
        ),
    ),
    max_size=6,
)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(deadline=None, max_examples=25)
@given(expression=st.sampled_from(list(PERIODS)), interval=st.floats(45, 300), moves=moves)
@example(expression="* * * * *", interval=45.0, moves=[(0.0, -60)])
def test_random_moves(
    backend: str, expression: str, interval: float, moves: Sequence[tuple[float, float]]
) -> None:
    """A tick that the clock passes runs once, and `every()` ignores the wall clock."""
    grid: list[float] = []

    async def record() -> None:
        grid.append(anyio.current_time())

    async def program() -> None:
        system_clock.wall = wall = WallClock()
        async with Manager() as manager:
            manager.every(interval, record)
            manager.cron(expression, wall.tick)
            began = anyio.current_time()
            for pause, seconds in moves:
                await anyio.sleep(pause)
                wall.move(seconds)
            await anyio.sleep(HOUR)
            ended = anyio.current_time()
            await manager.close(timeout=0)
        period = PERIODS[expression]
        assert (wall.missed(period), wall.extra(period)) == ([], [])
        expected = [began + interval * number for number in range(len(grid))]
        assert grid == pytest.approx(expected, abs=EPSILON)
        assert ended - grid[-1] <= interval + EPSILON

    real, (name, options) = system_clock.wall, virtual_time(backend)  # type: ignore[arg-type]
    try:
        anyio.run(program, backend=name, backend_options=options)
    finally:
        system_clock.wall = real


async def test_event_times(manager: Manager, wall: WallClock, recorder: RecordingObserver) -> None:
    """Event times use the wall clock, and durations do not."""
    handle = manager.run(anyio.sleep, 10)
    await anyio.sleep(5)
    wall.move(-HOUR)
    await handle
    started, ended = recorder.of(TaskStarted)[0], recorder.of(TaskSucceeded)[0]
    assert ended.time - started.time == pytest.approx(10 - HOUR)
    assert ended.duration == pytest.approx(10)


async def test_deadlines(manager: Manager, wall: WallClock) -> None:
    """Delays, timeouts, lifespans and the timeout of closing ignore the wall clock."""
    began = anyio.current_time()
    delayed = manager.after(20, anyio.sleep, 0)
    timed = manager.run_task(Task(anyio.sleep_forever, timeout=30))
    limited = manager.run_task(Task(anyio.sleep_forever, lifespan=40))
    manager.run(anyio.sleep_forever)
    for seconds in (HOUR, -DAY, 0.5):
        await anyio.sleep(1)
        wall.move(seconds)
    ends = []
    for handle in (delayed, timed, limited):
        await handle.wait()
        ends.append(anyio.current_time() - began)
    wall.move(DAY)
    await manager.close(timeout=10)
    ends.append(anyio.current_time() - began)
    assert ends == pytest.approx([20, 30, 40, 50])


# Daylight saving

# The loops run from about noon before the change to noon after it.
CHANGES = {
    "Prague, gap": ("Europe/Prague", datetime(2025, 3, 29, 12)),
    "Prague, fold": ("Europe/Prague", datetime(2025, 10, 25, 12)),
    "New York, gap": ("America/New_York", datetime(2025, 3, 8, 12)),
    "New York, fold": ("America/New_York", datetime(2025, 11, 1, 12)),
}

EVERY_HOUR = {
    "* * * * *": (range(60), range(24)),
    "*/10 * * * *": (range(0, 60, 10), range(24)),
    "0 * * * *": ([0], range(24)),
    "30 * * * *": ([30], range(24)),
    "45 */1 * * *": ([45], range(24)),
    "30 */2 * * *": ([30], range(0, 24, 2)),
    "*/20 1 * * *": (range(0, 60, 20), [1]),
    "*/20 2 * * *": (range(0, 60, 20), [2]),
}
FIXED_HOURS = {
    "59 0 * * *": ([59], [0]),
    "45 1 * * *": ([45], [1]),
    "0 2 * * *": ([0], [2]),
    "15 2 * * *": ([15], [2]),
    "30 2 * * *": ([30], [2]),
    "59 2 * * *": ([59], [2]),
    "0 3 * * *": ([0], [3]),
    "15,45 1-3 * * *": ([15, 45], [1, 2, 3]),
}


async def run_cron(manager: Manager, expression: str, tz: str, noon: datetime) -> list[float]:
    """Run a cron loop for a day, and return the times of its runs."""
    runs: list[float] = []

    async def tick() -> None:
        runs.append(round(system_clock.wall(), 3))

    with virtual_wall_clock(noon.replace(tzinfo=ZoneInfo(tz))):
        schedule = cron(expression, tz=tz)
        manager.run_task(Task(tick, kind=TaskKind.LOOP, schedule=schedule))
        await anyio.sleep(DAY + 1)
        await manager.close(timeout=0)
    return runs


def local_minutes(tz: str, noon: datetime) -> dict[float, datetime]:
    """Return every full minute of the day with its local time."""
    zone = ZoneInfo(tz)
    began = noon.replace(tzinfo=zone).timestamp()
    ticks = (began + MINUTE * number for number in range(1, DAY // MINUTE + 1))
    return {tick: datetime.fromtimestamp(tick, zone) for tick in ticks}


@pytest.mark.parametrize("expression", EVERY_HOUR)
@pytest.mark.parametrize("change", CHANGES)
async def test_every_hour_at_dst_change(manager: Manager, change: str, expression: str) -> None:
    """A local time that occurs twice runs twice, and one that does not occur does not run."""
    minutes, hours = EVERY_HOUR[expression]
    shown = local_minutes(*CHANGES[change])
    due = [t for t, local in shown.items() if local.minute in minutes and local.hour in hours]
    runs = await run_cron(manager, expression, *CHANGES[change])
    missed, extra = set(due) - set(runs), [run for run in runs if run not in due]
    print(f"runs = {len(runs)}, missed runs = {len(missed)}, extra runs = {len(extra)}")
    assert (missed, extra) == (set(), [])
    assert len(set(runs)) == len(runs)


@pytest.mark.parametrize("expression", FIXED_HOURS)
@pytest.mark.parametrize("change", CHANGES)
async def test_fixed_hour_at_dst_change(manager: Manager, change: str, expression: str) -> None:
    """A fixed local time runs once a day, at its first occurrence or right after the gap."""
    minutes, hours = FIXED_HOURS[expression]
    shown = local_minutes(*CHANGES[change])
    due = set()
    date = CHANGES[change][1] + timedelta(days=1)
    for hour, minute in product(hours, minutes):
        wanted = date.replace(hour=hour, minute=minute)
        due.add(min(tick for tick, local in shown.items() if local.replace(tzinfo=None) >= wanted))
    runs = await run_cron(manager, expression, *CHANGES[change])
    missed, extra = due - set(runs), [run for run in runs if run not in due]
    print(f"runs = {len(runs)}, missed runs = {len(missed)}, extra runs = {len(extra)}")
    assert (missed, extra) == (set(), [])
    assert len(set(runs)) == len(runs)


@pytest.mark.parametrize("change", CHANGES)
async def test_fixed_rate_at_dst_change(manager: Manager, change: str) -> None:
    """A fixed rate ignores daylight saving time."""
    tz, noon = CHANGES[change]
    runs: list[float] = []

    async def tick() -> None:
        runs.append(round(system_clock.wall(), 3))

    with virtual_wall_clock(noon.replace(tzinfo=ZoneInfo(tz))):
        manager.every(HOUR, tick)
        await anyio.sleep(DAY + 1)
        await manager.close(timeout=0)
    assert runs == [runs[0] + HOUR * number for number in range(25)]


# The process is stopped

STOPPED = 1.2  # seconds; the program's wall clock jumps by two more minutes


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, list[float]]]:
    """The iterations of programs that were stopped for a while, by backend."""
    with ExitStack() as stack:
        processes = {
            backend: stack.enter_context(running(SCRIPT, backend))
            for backend in ("asyncio", "uvloop", "trio")
        }
        for process in processes.values():
            process.wait_for("ready")
            process.send(signal.SIGSTOP)
        time.sleep(STOPPED)  # the duration of the fault
        for process in processes.values():
            process.send(signal.SIGCONT)
        lines = {backend: process.wait_for("found") for backend, process in processes.items()}
        assert [process.wait() for process in processes.values()] == [0, 0, 0]
    return {backend: json.loads(line.removeprefix("found")) for backend, line in lines.items()}


@posix
@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_fixed_rate_after_stop(found: dict[str, dict[str, list[float]]], backend: str) -> None:
    """After a stop, the next tick runs late and the other missed ticks are skipped."""
    began, late = found[backend]["began"], found[backend]["late"]
    grid = [start - delay for start, delay in zip(began, late, strict=True)]
    steps = [(due - grid[0]) / 0.05 for due in grid]
    numbers = [round(step) for step in steps]
    assert steps == pytest.approx(numbers, abs=0.3)
    repeated = len(numbers) - len(set(numbers))
    stop = max(range(1, len(began)), key=lambda n: began[n] - began[n - 1])
    skipped = numbers[stop + 1] - numbers[stop] - 1
    print(f"skipped runs = {skipped}, extra runs = {repeated}")
    assert numbers == sorted(numbers)
    assert repeated == 0
    assert skipped >= 20
    assert late[stop] > 1


@posix
@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_cron_after_stop(found: dict[str, dict[str, list[float]]], backend: str) -> None:
    """A cron loop skips the ticks that it missed while the process was stopped."""
    runs = found[backend]["ticks"]
    ticks = [math.floor(run) for run in runs]
    skipped = max(later - tick for tick, later in pairwise(ticks)) - 1
    extra = len(ticks) - len(set(ticks))
    print(f"skipped runs = {skipped:g}, extra runs = {extra}")
    assert ticks == sorted(ticks)
    assert extra == 0
    assert skipped >= 118
