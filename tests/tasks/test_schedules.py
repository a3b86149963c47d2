"""Schedules, as pure functions of time and in a manager in virtual time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from background import InvalidTaskError, Manager, Schedule, Task, TaskKind, cron, every
from background._schedule import Cron, Every, Ticks
from background._support import clock as system_clock
from background.testing import RecordingObserver, virtual_wall_clock

TOLERANCE = 1e-6
PRAGUE = "Europe/Prague"
NEVER = "0 0 */30 2 1#5"  # valid, but no fifth Monday is on 1 or 31 February


def make_ticks(interval: float, start: float = 0.0, jitter: float = 0.0) -> Ticks:
    return every(interval, jitter=jitter).ticks(start, 0.0)


def utc(*fields: int) -> datetime:
    return datetime(*fields, tzinfo=UTC)  # type: ignore[misc, arg-type]


def list_cron_ticks(
    expression: str, start: datetime, end: datetime, tz: str = "UTC"
) -> list[datetime]:
    """Return the ticks between two times of a loop whose iterations take no time."""
    ticks = cron(expression, tz=tz).ticks(0.0, start.timestamp())
    found: list[datetime] = []
    now, wall = 0.0, start.timestamp()
    while True:
        due = ticks.next(now, wall)
        assert due > now
        now, wall = due, wall + due - now
        if wall > end.timestamp():
            return found
        assert ticks.confirm(due, now, wall) == due
        found.append(datetime.fromtimestamp(round(wall, 3), UTC))


# every()


def test_equal_schedules() -> None:
    """Schedules of equal ticks have one representation, by which processes know them."""
    assert repr(every(60, jitter=0)) == repr(every(60.0, jitter=0.0))
    assert repr(cron(" 0  9 * * 1 ")) == repr(cron("0 9 * * 1"))


@given(st.floats(0.1, 1e5), st.integers(10**6, 10**7))
def test_grid(seconds: float, number: int) -> None:
    """The tick after a tick is the next one of the grid, however it is rounded."""
    tick, after = number * seconds, every(seconds).after
    assert [tick := after(tick) for _ in range(9)] == [
        (number + step) * seconds for step in range(1, 10)
    ]


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, True, "60", None])
def test_invalid_interval(seconds: object) -> None:
    """`every()` rejects an interval that is not a positive, finite number."""
    with pytest.raises(InvalidTaskError, match="seconds must be"):
        every(seconds)  # type: ignore[arg-type]


@pytest.mark.parametrize("jitter", [-0.1, 60.1, math.nan, math.inf, False, "1"])
def test_invalid_jitter(jitter: object) -> None:
    """`every()` rejects a jitter that is negative, not finite, or longer than the interval."""
    with pytest.raises(InvalidTaskError, match="jitter must be"):
        every(60, jitter=jitter)  # type: ignore[arg-type]


def test_longest_jitter() -> None:
    """The jitter can be as long as the interval."""
    assert every(60, jitter=60) == Every(seconds=60, jitter=60)


def test_schedule_equality() -> None:
    """Schedules are compared and hashed by their values."""
    assert every(5) == every(5.0)
    assert hash(every(5, jitter=1)) == hash(every(5, jitter=1))
    assert cron("@daily") == cron("0 0 * * *")
    assert cron("@daily") != cron("@daily", tz=PRAGUE)
    assert "Europe/Prague" in repr(cron("@daily", tz=PRAGUE))
    assert isinstance(every(1), Schedule)
    assert isinstance(cron("@daily"), Schedule)


def test_first_tick() -> None:
    """The first tick of a fixed rate is due immediately."""
    assert make_ticks(10, start=123.0).next(123.0, 0.0) == 123.0


def test_shared_schedule() -> None:
    """Loops that share a schedule have independent ticks."""
    schedule = every(10)
    first, second = schedule.ticks(0, 0), schedule.ticks(3, 0)
    assert [first.next(0, 0), second.next(3, 0)] == [0, 3]
    assert [first.next(1, 0), second.next(4, 0)] == [10, 13]


def test_no_drift() -> None:
    """Ticks are multiples of the interval; sums of 0.1 would accumulate rounding errors."""
    ticks = make_ticks(0.1, start=5.0)
    now = 5.0
    for number in range(100_000):
        now = ticks.next(now, 0.0)
        assert now == 5.0 + number * 0.1
        now += 0.03


def test_tick_during_iteration() -> None:
    """A tick that is due during an iteration is skipped."""
    ticks = make_ticks(10)
    assert ticks.next(0, 0) == 0
    assert ticks.next(25, 0) == 30
    assert ticks.next(30.5, 0) == 40


def test_iteration_as_long_as_interval() -> None:
    """An iteration that is as long as the interval misses no tick."""
    ticks = make_ticks(10)
    assert [ticks.next(now, 0) for now in (0, 10, 20, 30)] == [0, 10, 20, 30]


def test_lateness_within_tolerance() -> None:
    """A tick is not missed if the iteration exceeds the interval by a rounding error."""
    ticks = make_ticks(0.1)
    ticks.next(0, 0)
    assert ticks.next(0.1 + 1e-9, 0) == pytest.approx(0.1, abs=1e-12)


def test_lateness_beyond_tolerance() -> None:
    """A tick is missed if the iteration exceeds the interval by more than a rounding error."""
    ticks = make_ticks(10)
    ticks.next(0, 0)
    assert ticks.next(10.001, 0) == 20


def test_late_start() -> None:
    """An iteration that starts late misses a tick only if it takes a whole interval.

    A busy event loop delays the start, which is not the iteration's fault.
    """
    ticks = every(10).ticks(0, 0)
    assert ticks.next(0, 0) == 0
    assert ticks.next(12, 0, 3) == 10  # began at 9
    assert ticks.next(57, 0, 3) == 60  # began at 54
    assert ticks.next(82, 0, 15) == 90  # began at 67


def test_fixed_rate_ignores_wall_clock() -> None:
    """The wall clock does not move the ticks of a fixed rate."""
    ticks = make_ticks(10)
    ticks.next(0, 0)
    assert ticks.confirm(10.0, 500.0, -1e9) == 10.0
    assert ticks.patience == math.inf


intervals = st.floats(1e-3, 1e6)
starts = st.floats(0, 1e6)
# Lengths of iterations in intervals, including exact multiples and values close to them.
lengths = st.lists(
    st.one_of(
        st.floats(0, 4),
        st.integers(0, 4).map(float),
        st.integers(1, 4).map(lambda n: n + 1e-9),
        st.integers(1, 4).map(lambda n: n - 1e-9),
    ),
    max_size=50,
)


@given(interval=intervals, start=starts, lengths=lengths)
def test_next_tick_property(interval: float, start: float, lengths: list[float]) -> None:
    """Every tick is the first multiple of the interval that is not missed."""
    ticks = make_ticks(interval, start)
    due = ticks.next(start, 0.0)
    assert due == start
    for length in lengths:
        ended = due + length * interval
        following = ticks.next(ended, 0.0)
        number = (following - start) / interval
        assert abs(number - round(number)) <= TOLERANCE * max(1.0, number)
        assert following > due
        assert following >= ended - 2 * TOLERANCE * interval
        assert following <= max(due + interval, ended + interval) + TOLERANCE * interval
        due = following


@given(
    interval=intervals,
    start=starts,
    share=st.floats(0.001, 1),
    lengths=lengths,
    seed=st.integers(0, 2**32),
)
def test_jitter_property(
    interval: float, start: float, share: float, lengths: list[float], seed: int
) -> None:
    """Jitter delays ticks within its bounds, and the delays do not accumulate."""
    print("seed", seed)
    random.seed(seed)
    jitter = share * interval
    ticks = make_ticks(interval, start, jitter)
    ended = due = start
    for length in [0.0, *lengths]:
        following = ticks.next(ended, 0.0)
        assert following >= due
        assert following >= ended
        late = (following - start) % interval
        slack = 1e-5 * interval
        assert following == ended or late <= jitter + slack or late >= interval - slack
        assert following <= ended + interval + jitter + slack
        due, ended = following, following + length * interval


def test_jitter_distribution() -> None:
    """Jitter spreads the first ticks of loops evenly over its range."""
    seed = random.randrange(2**32)
    print("seed", seed)
    random.seed(seed)
    schedule = every(60, jitter=30)
    firsts = [schedule.ticks(0, 0).next(0, 0) for _ in range(1000)]
    assert all(0 <= first <= 30 for first in firsts)
    assert min(firsts) < 3
    assert max(firsts) > 27
    assert 12 < sum(firsts) / 1000 < 18


def test_tick_within_jitter() -> None:
    """A tick is not missed while its jitter can still delay it."""
    ticks = make_ticks(10, jitter=5)
    assert 0 <= ticks.next(0, 0) <= 5
    assert 13 <= ticks.next(13, 0) <= 15
    assert 20 <= ticks.next(16, 0) <= 25


# cron()


@pytest.mark.parametrize(
    "expression",
    ["", "* * * *", "60 * * * *", "* * * * * * *", "a * * * *", "@reboot", "*/0 * * * *", "5-1"],
)
def test_invalid_cron_expression(expression: str) -> None:
    """`cron()` rejects an invalid expression."""
    with pytest.raises(InvalidTaskError, match=r"expression .* is not a cron expression"):
        cron(expression)


@pytest.mark.parametrize("expression", [None, 5, b"* * * * *", ["*"] * 5])
def test_cron_expression_type(expression: object) -> None:
    """`cron()` rejects an expression that is not a string."""
    with pytest.raises(InvalidTaskError, match="expression must be a string"):
        cron(expression)  # type: ignore[arg-type]


@pytest.mark.parametrize("expression", ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "* * * 2 1#6", NEVER])
def test_cron_without_dates(expression: str) -> None:
    """`cron()` rejects an expression that no date matches."""
    with pytest.raises(InvalidTaskError, match="expression"):
        cron(expression)


@pytest.mark.parametrize(
    "tz", ["Mars/Olympus", "", "../etc/passwd", "/etc/localtime", None, 1, "a\0"]
)
def test_unknown_time_zone(tz: object) -> None:
    """`cron()` rejects an unknown time zone."""
    with pytest.raises(InvalidTaskError, match="tz must be a time zone"):
        cron("@daily", tz=tz)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("alias", "expression"),
    [
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("@monthly", "0 0 1 * *"),
        ("@weekly", "0 0 * * 0"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@hourly", "0 * * * *"),
        (" @Hourly ", "0 * * * *"),
    ],
)
def test_cron_aliases(alias: str, expression: str) -> None:
    """An alias is equal to its cron expression, regardless of case and spaces."""
    assert cron(alias) == cron(expression)


def test_first_cron_tick() -> None:
    """A loop that starts exactly on a cron tick waits for the next one."""
    ticks = list_cron_ticks("0 3 * * *", utc(2025, 1, 1, 3), utc(2025, 1, 3, 12))
    assert ticks == [utc(2025, 1, 2, 3), utc(2025, 1, 3, 3)]


def test_rare_date() -> None:
    """The search for the next tick finds a date eight years ahead."""
    ticks = list_cron_ticks("0 0 29 2 *", utc(2096, 3, 1), utc(2105, 1, 1))
    assert ticks == [utc(2104, 2, 29)]


def test_six_fields() -> None:
    """The first of six fields of an expression is the second."""
    ticks = list_cron_ticks("*/20 0 * * * *", utc(2025, 1, 1), utc(2025, 1, 1, 2))
    assert ticks == [
        utc(2025, 1, 1, hour, 0, second)
        for hour, second in [(0, 20), (0, 40), (1, 0), (1, 20), (1, 40), (2, 0)]
    ]


def test_cron_time_zone() -> None:
    """An expression is evaluated in its time zone."""
    ticks = list_cron_ticks("0 3 * * *", utc(2025, 1, 1), utc(2025, 1, 2), "Asia/Kathmandu")
    assert ticks == [utc(2025, 1, 1, 21, 15)]


def test_fixed_hour_in_dst_gap() -> None:
    """A fixed time that does not exist in spring runs once, right after the gap."""
    ticks = list_cron_ticks("30 2 * * *", utc(2025, 3, 28, 12), utc(2025, 4, 1), PRAGUE)
    assert ticks == [utc(2025, 3, 29, 1, 30), utc(2025, 3, 30, 1), utc(2025, 3, 31, 0, 30)]


@pytest.mark.parametrize("minutes", [-30, 0, 1, 30, 59, 60, 90, 119, 120])
def test_after_in_dst_fold(minutes: int) -> None:
    """The tick after a time in the hour that is repeated in autumn is later than that time."""
    schedule = cron("30,45 2 * * *", tz=PRAGUE)
    wall = (utc(2026, 10, 25) + timedelta(minutes=minutes)).timestamp()
    ticks = [utc(2026, 10, 25, 0, 30), utc(2026, 10, 25, 0, 45), utc(2026, 10, 26, 1, 30)]
    assert schedule.after(wall) == min(
        tick.timestamp() for tick in ticks if tick.timestamp() > wall
    )


def test_fixed_hour_in_dst_fold() -> None:
    """A fixed time that exists twice in autumn runs once."""
    ticks = list_cron_ticks("30 2 * * *", utc(2025, 10, 25), utc(2025, 10, 28), PRAGUE)
    assert len(ticks) == 3
    assert ticks[0] == utc(2025, 10, 25, 0, 30)
    assert ticks[1] in (utc(2025, 10, 26, 0, 30), utc(2025, 10, 26, 1, 30))
    assert ticks[2] == utc(2025, 10, 27, 1, 30)


@pytest.mark.parametrize("change", [utc(2025, 3, 30, 1), utc(2025, 10, 26, 1)])
@pytest.mark.parametrize("minutes", [1, 15, 30])
def test_minutes_across_dst_change(change: datetime, minutes: int) -> None:
    """Intervals of minutes neither lose nor repeat ticks at a clock change."""
    start, end = change - timedelta(hours=3), change + timedelta(hours=3)
    ticks = list_cron_ticks(f"*/{minutes} * * * *", start, end, PRAGUE)
    count = 6 * 60 // minutes
    assert ticks == [start + timedelta(minutes=minutes * n) for n in range(1, count + 1)]


@pytest.mark.parametrize(
    "tz",
    ["UTC", PRAGUE, "America/New_York", "Australia/Lord_Howe", "America/St_Johns", "Asia/Gaza"],
)
@given(
    minute=st.integers(0, 59),
    hour=st.integers(0, 23),
    day=st.dates(min_value=datetime(2024, 1, 1).date(), max_value=datetime(2026, 12, 1).date()),
)
def test_daily_tick_property(tz: str, minute: int, hour: int, day: object) -> None:
    """A daily tick occurs once for every local date, in order, across clock changes."""
    zone = ZoneInfo(tz)
    start = datetime.combine(day, datetime.min.time(), UTC)  # type: ignore[arg-type]
    ticks = list_cron_ticks(f"{minute} {hour} * * *", start, start + timedelta(days=31), tz)
    dates = [tick.astimezone(zone).date() for tick in ticks]
    assert all(later > earlier for earlier, later in pairwise(ticks))
    assert dates == [dates[0] + timedelta(days=n) for n in range(len(dates))]
    assert 30 <= len(dates) <= 32


def test_clock_moved_back() -> None:
    """No tick repeats after the wall clock moves back."""
    ticks = cron("0 * * * *").ticks(0, utc(2025, 1, 1, 0, 59).timestamp())
    assert ticks.next(0, utc(2025, 1, 1, 0, 59).timestamp()) == 60
    assert ticks.next(61, utc(2025, 1, 1, 0, 0, 1).timestamp()) == 61 + 7199


def test_clock_moved_forward() -> None:
    """Ticks are skipped when the wall clock moves forward past them."""
    ticks = cron("0 * * * *").ticks(0, utc(2025, 1, 1, 0, 59).timestamp())
    assert ticks.next(0, utc(2025, 1, 1, 0, 59).timestamp()) == 60
    assert ticks.next(61, utc(2025, 1, 1, 5, 30).timestamp()) == 61 + 1800


def test_tick_before_wall_clock() -> None:
    """A tick is postponed until the wall clock reaches its time."""
    ticks = cron("0 * * * *").ticks(0, utc(2025, 1, 1, 0, 59).timestamp())
    due = ticks.next(0, utc(2025, 1, 1, 0, 59).timestamp())
    assert ticks.confirm(due, 60, utc(2025, 1, 1, 0, 30).timestamp()) == 60 + 1800


@pytest.mark.parametrize(("late", "due"), [(0, 60), (59, 60), (60, 60), (61, 60 + 3600 - 61)])
def test_cron_lateness(late: int, due: int) -> None:
    """A cron tick can be up to one minute late; later it is skipped."""
    ticks = cron("0 * * * *").ticks(0, utc(2025, 1, 1, 0, 59).timestamp())
    planned = ticks.next(0, utc(2025, 1, 1, 0, 59).timestamp())
    wall = utc(2025, 1, 1, 1).timestamp() + late
    assert ticks.confirm(planned, 60, wall) == due


def test_offset_time_zone() -> None:
    """A time zone with a fixed offset determines the next tick."""
    schedule = cron("0 0 * * *", tz="Etc/GMT-1")
    assert isinstance(schedule, Cron)
    assert schedule.after(utc(2025, 1, 1).timestamp()) == utc(2025, 1, 1, 23).timestamp()


# Loops of a manager


class WallClock:
    """A wall clock that follows the event loop's clock and can be moved."""

    def __init__(self, start: datetime) -> None:
        self._epoch = start.timestamp() - anyio.current_time()

    def __call__(self) -> float:
        return self._epoch + anyio.current_time()

    def move(self, *, minutes: float) -> None:
        self._epoch += minutes * 60

    def read(self) -> str:
        return datetime.fromtimestamp(round(self(), 3), UTC).strftime("%H:%M:%S")


@pytest.fixture
async def wall_clock(anyio_backend: object, monkeypatch: pytest.MonkeyPatch) -> WallClock:
    clock = WallClock(utc(2025, 1, 1))
    monkeypatch.setattr(system_clock, "wall", clock)
    return clock


def make_recorder(times: list[str]) -> Callable[[], None]:
    """Return a function that appends the time of the wall clock to `times`."""

    def record_time() -> None:
        times.append(
            datetime.fromtimestamp(round(system_clock.wall(), 3), UTC).strftime("%H:%M:%S")
        )

    return record_time


async def test_cron_loop(manager: Manager) -> None:
    """A cron loop follows the wall clock."""
    times: list[datetime] = []

    async def tick() -> None:
        times.append(datetime.fromtimestamp(round(system_clock.wall(), 3), UTC))

    with virtual_wall_clock(utc(2024, 12, 31, 23, 57)):
        manager.cron("*/5 * * * *", tick)
        await anyio.sleep(18 * 60 + 1)
        await manager.close()
    assert times == [utc(2025, 1, 1, 0, minute) for minute in (0, 5, 10, 15)]


async def test_cron_loop_across_dst_change(
    manager: Manager,
) -> None:
    """A cron loop in another time zone runs daily across the change to summer time."""
    times: list[datetime] = []

    async def tick() -> None:
        times.append(datetime.fromtimestamp(round(system_clock.wall(), 3), UTC))

    with virtual_wall_clock(utc(2025, 3, 28, 12)):
        schedule = cron("30 2 * * *", tz=PRAGUE)
        manager.run_task(Task(tick, kind=TaskKind.LOOP, schedule=schedule))
        await anyio.sleep(3 * 86400)
        await manager.close()
    assert times == [utc(2025, 3, 29, 1, 30), utc(2025, 3, 30, 1), utc(2025, 3, 31, 0, 30)]


async def test_cron_loop_with_delay(manager: Manager) -> None:
    """The first tick of a cron loop comes after its delay."""
    times: list[str] = []

    async def tick() -> None:
        make_recorder(times)()

    with virtual_wall_clock(utc(2025, 1, 1)):
        schedule = cron("*/10 * * * *")
        manager.run_task(Task(tick, kind=TaskKind.LOOP, schedule=schedule, delay=25 * 60))
        await anyio.sleep(45 * 60)
        await manager.close()
    assert times == ["00:30:00", "00:40:00"]


async def test_cron_tick_during_iteration(manager: Manager, wall_clock: WallClock) -> None:
    """A cron tick during an iteration is skipped."""
    times: list[str] = []

    async def tick() -> None:
        times.append(wall_clock.read())
        await anyio.sleep(150)

    manager.cron("* * * * *", tick)
    await anyio.sleep(8 * 60 + 1)
    await manager.close(timeout=0)
    assert times == ["00:01:00", "00:04:00", "00:07:00"]


async def test_wall_clock_moved_back_after_tick(manager: Manager, wall_clock: WallClock) -> None:
    """A cron loop does not repeat a tick after the wall clock moves back."""
    times: list[str] = []

    async def tick() -> None:
        times.append(wall_clock.read())

    manager.cron("0 * * * *", tick)
    await anyio.sleep(3601)
    wall_clock.move(minutes=-60)
    await anyio.sleep(2 * 3600)
    assert times == ["01:00:00", "02:00:00"]


async def test_wall_clock_moved_back_before_tick(manager: Manager, wall_clock: WallClock) -> None:
    """A cron loop postpones its tick after the wall clock moves back."""
    times: list[str] = []

    async def tick() -> None:
        times.append(wall_clock.read())

    manager.cron("0 * * * *", tick)
    await anyio.sleep(3000)
    wall_clock.move(minutes=-30)
    await anyio.sleep(2390)
    assert times == []
    await anyio.sleep(20)
    assert times == ["01:00:00"]


async def test_wall_clock_moved_past_tick(manager: Manager, wall_clock: WallClock) -> None:
    """A cron loop skips a tick when the wall clock moves forward past it."""
    times: list[str] = []

    async def tick() -> None:
        times.append(wall_clock.read())

    manager.cron("0 * * * *", tick)
    await anyio.sleep(1800)
    wall_clock.move(minutes=45)
    await anyio.sleep(3000)
    assert times == ["02:00:00"]


async def test_wall_clock_moved_forward(manager: Manager, wall_clock: WallClock) -> None:
    """A cron loop runs earlier after the wall clock moves forward.

    It reads the wall clock every minute, so the tick is at most a minute late.
    """
    times: list[str] = []

    async def tick() -> None:
        times.append(wall_clock.read())

    manager.cron("0 * * * *", tick)
    await anyio.sleep(601.5)
    wall_clock.move(minutes=20)
    await anyio.sleep(30 * 60 + 60)
    assert [time[:5] for time in times] == ["01:00"]


async def test_wall_clock_moved_slightly_past_tick(manager: Manager, wall_clock: WallClock) -> None:
    """A cron loop still runs a tick that the wall clock passes by less than a minute."""
    times: list[str] = []

    async def tick() -> None:
        times.append(wall_clock.read())

    manager.cron("0 * * * *", tick)
    await anyio.sleep(3590)
    wall_clock.move(minutes=40 / 60)
    await anyio.sleep(60)
    assert len(times) == 1
    assert times[0][:5] == "01:00"


async def test_fixed_rate_loop_ignores_wall_clock(manager: Manager, wall_clock: WallClock) -> None:
    """Changes of the wall clock do not affect loops with a fixed rate."""
    times: list[float] = []

    async def tick() -> None:
        times.append(anyio.current_time())

    began = anyio.current_time()
    manager.every(10, tick)
    for minutes in (-600, 1200, -5):
        await anyio.sleep(10)
        wall_clock.move(minutes=minutes)
    await anyio.sleep(5)
    assert [round(time - began, 6) for time in times] == [0, 10, 20, 30]


async def test_unconfirmed_tick(manager: Manager, recorder: RecordingObserver) -> None:
    """A schedule that raises when its tick is due ends its loop, and no other task."""

    class BrokenTicks(Ticks):
        def next(self, now: float, wall: float, took: float = 0.0) -> float:
            return now + 10

        def confirm(self, due: float, now: float, wall: float) -> float:
            raise ValueError("wrong")

    class BrokenSchedule(Schedule):
        def ticks(self, now: float, wall: float) -> Ticks:
            return BrokenTicks()

        def after(self, wall: float) -> float:
            return wall + 10

    handle = manager.schedule(BrokenSchedule(), checkpoint)
    later = manager.after(20, checkpoint)
    with pytest.raises(ValueError, match="wrong"):
        await handle
    await later
    assert recorder.names(handle.id) == ["added", "failed"]


async def test_schedule_without_first_tick(manager: Manager, recorder: RecordingObserver) -> None:
    """A loop whose first tick cannot be computed is rejected and leaves no trace.

    A delay of many thousand years has no calendar date.
    """
    task = Task(make_recorder([]), kind=TaskKind.LOOP, schedule=cron("@daily"), delay=1e12)
    with pytest.raises(InvalidTaskError, match="delay"):
        manager.run_task(task)
    assert manager.count() == 0
    assert recorder.names() == []
