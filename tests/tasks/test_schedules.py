"""Schedules: first as pure functions of time, then in a manager in virtual time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from background import InvalidTaskError, Manager, Schedule, Task, TaskKind, cron, every
from background._schedule import Cron, Every, Ticks
from background._support import clock as system_clock
from background.testing import RecordingObserver, virtual_wall_clock

HAIR = 1e-6
PRAGUE = "Europe/Prague"
NEVER = "0 0 */30 2 1#5"  # valid, but 1 and 31 February are no fifth Mondays


def grid(interval: float, start: float = 0.0, jitter: float = 0.0) -> Ticks:
    return every(interval, jitter=jitter).ticks(start, 0.0)


def utc(*fields: int) -> datetime:
    return datetime(*fields, tzinfo=UTC)  # type: ignore[misc, arg-type]


def cron_ticks(expression: str, start: datetime, end: datetime, tz: str = "UTC") -> list[datetime]:
    """Every tick between two times, of a loop whose iterations take no time."""
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


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, True, "60", None])
def test_an_interval_that_cannot_work_is_refused(seconds: object) -> None:
    with pytest.raises(InvalidTaskError, match="seconds must be"):
        every(seconds)  # type: ignore[arg-type]


@pytest.mark.parametrize("jitter", [-0.1, 60.1, math.nan, math.inf, False, "1"])
def test_a_jitter_that_cannot_work_is_refused(jitter: object) -> None:
    with pytest.raises(InvalidTaskError, match="jitter must be"):
        every(60, jitter=jitter)  # type: ignore[arg-type]


def test_jitter_may_be_as_long_as_the_interval() -> None:
    assert every(60, jitter=60) == Every(seconds=60, jitter=60)


def test_schedules_are_values() -> None:
    assert every(5) == every(5.0)
    assert hash(every(5, jitter=1)) == hash(every(5, jitter=1))
    assert cron("@daily") == cron("0 0 * * *")
    assert cron("@daily") != cron("@daily", tz=PRAGUE)
    assert "Europe/Prague" in repr(cron("@daily", tz=PRAGUE))
    assert isinstance(every(1), Schedule)
    assert isinstance(cron("@daily"), Schedule)


def test_the_first_tick_is_at_once() -> None:
    assert grid(10, start=123.0).next(123.0, 0.0) == 123.0


def test_one_schedule_serves_many_loops() -> None:
    schedule = every(10)
    one, other = schedule.ticks(0, 0), schedule.ticks(3, 0)
    assert [one.next(0, 0), other.next(3, 0), one.next(1, 0), other.next(4, 0)] == [0, 3, 10, 13]


def test_ticks_do_not_drift() -> None:
    """Sums of 0.1 would be off by more than a hair after a million of them."""
    ticks = grid(0.1, start=5.0)
    now = 5.0
    for number in range(100_000):
        now = ticks.next(now, 0.0)
        assert now == 5.0 + number * 0.1
        now += 0.03


def test_a_tick_during_an_iteration_is_skipped() -> None:
    ticks = grid(10)
    assert ticks.next(0, 0) == 0
    assert ticks.next(25, 0) == 30
    assert ticks.next(30.5, 0) == 40


def test_an_iteration_as_long_as_the_interval_misses_nothing() -> None:
    ticks = grid(10)
    assert [ticks.next(now, 0) for now in (0, 10, 20, 30)] == [0, 10, 20, 30]


def test_a_hair_over_the_interval_is_no_missed_tick() -> None:
    ticks = grid(0.1)
    ticks.next(0, 0)
    assert ticks.next(0.1 + 1e-9, 0) == pytest.approx(0.1, abs=1e-12)


def test_a_little_more_than_a_hair_is_a_missed_tick() -> None:
    ticks = grid(10)
    ticks.next(0, 0)
    assert ticks.next(10.001, 0) == 20


def test_an_iteration_that_began_late_misses_no_tick_by_that() -> None:
    """What keeps an event loop busy is not the iteration's fault, unless it took a whole tick."""
    ticks = every(10).ticks(0, 0)
    assert ticks.next(0, 0) == 0
    assert ticks.next(12, 0, 3) == 10  # began at 9
    assert ticks.next(57, 0, 3) == 60  # began at 54
    assert ticks.next(82, 0, 15) == 90  # began at 67


def test_a_tick_on_the_grid_is_due_as_it_was_given() -> None:
    """Only wall clocks jump: nothing is left to confirm for a fixed rate."""
    ticks = grid(10)
    ticks.next(0, 0)
    assert ticks.confirm(10.0, 500.0, -1e9) == 10.0
    assert ticks.patience == math.inf


intervals = st.floats(1e-3, 1e6)
starts = st.floats(0, 1e6)
# How long iterations take, in intervals: with exact multiples, and a hair beside them.
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
def test_every_tick_is_the_first_on_the_grid_that_is_not_missed(
    interval: float, start: float, lengths: list[float]
) -> None:
    ticks = grid(interval, start)
    due = ticks.next(start, 0.0)
    assert due == start
    for length in lengths:
        ended = due + length * interval
        following = ticks.next(ended, 0.0)
        number = (following - start) / interval
        assert abs(number - round(number)) <= HAIR * max(1.0, number)
        assert following > due
        assert following >= ended - 2 * HAIR * interval
        assert following <= max(due + interval, ended + interval) + HAIR * interval
        due = following


@given(
    interval=intervals,
    start=starts,
    share=st.floats(0.001, 1),
    lengths=lengths,
    seed=st.integers(0, 2**32),
)
def test_jitter_puts_ticks_off_but_does_not_move_the_grid(
    interval: float, start: float, share: float, lengths: list[float], seed: int
) -> None:
    print("seed", seed)
    random.seed(seed)
    jitter = share * interval
    ticks = grid(interval, start, jitter)
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


def test_jitter_spreads_loops_that_share_a_schedule() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    random.seed(seed)
    schedule = every(60, jitter=30)
    firsts = [schedule.ticks(0, 0).next(0, 0) for _ in range(1000)]
    assert all(0 <= first <= 30 for first in firsts)
    assert min(firsts) < 3
    assert max(firsts) > 27
    assert 12 < sum(firsts) / 1000 < 18


def test_a_tick_that_jitter_may_still_put_off_is_not_missed() -> None:
    ticks = grid(10, jitter=5)
    assert 0 <= ticks.next(0, 0) <= 5
    assert 13 <= ticks.next(13, 0) <= 15
    assert 20 <= ticks.next(16, 0) <= 25


# cron()


@pytest.mark.parametrize(
    "expression",
    ["", "* * * *", "60 * * * *", "* * * * * * *", "a * * * *", "@reboot", "*/0 * * * *", "5-1"],
)
def test_an_expression_that_is_wrong_is_refused(expression: str) -> None:
    with pytest.raises(InvalidTaskError, match=r"expression .* is not a cron expression"):
        cron(expression)


@pytest.mark.parametrize("expression", [None, 5, b"* * * * *", ["*"] * 5])
def test_an_expression_that_is_no_string_is_refused(expression: object) -> None:
    with pytest.raises(InvalidTaskError, match="expression must be a string"):
        cron(expression)  # type: ignore[arg-type]


@pytest.mark.parametrize("expression", ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "* * * 2 1#6", NEVER])
def test_a_date_that_never_comes_is_refused(expression: str) -> None:
    with pytest.raises(InvalidTaskError, match="expression"):
        cron(expression)


@pytest.mark.parametrize(
    "tz", ["Mars/Olympus", "", "../etc/passwd", "/etc/localtime", None, 1, "a\0"]
)
def test_an_unknown_zone_is_refused(tz: object) -> None:
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
def test_aliases(alias: str, expression: str) -> None:
    assert cron(alias) == cron(expression)


def test_the_first_tick_of_a_cron_schedule_is_the_next_one() -> None:
    """A loop that is started right on a tick does not run for that one."""
    ticks = cron_ticks("0 3 * * *", utc(2025, 1, 1, 3), utc(2025, 1, 3, 12))
    assert ticks == [utc(2025, 1, 2, 3), utc(2025, 1, 3, 3)]


def test_a_rare_date_is_found() -> None:
    ticks = cron_ticks("0 0 29 2 *", utc(2096, 3, 1), utc(2105, 1, 1))
    assert ticks == [utc(2104, 2, 29)]


def test_six_fields_have_seconds_first() -> None:
    ticks = cron_ticks("*/20 0 * * * *", utc(2025, 1, 1), utc(2025, 1, 1, 2))
    assert ticks == [
        utc(2025, 1, 1, hour, 0, second)
        for hour, second in [(0, 20), (0, 40), (1, 0), (1, 20), (1, 40), (2, 0)]
    ]


def test_an_expression_is_read_in_its_zone() -> None:
    ticks = cron_ticks("0 3 * * *", utc(2025, 1, 1), utc(2025, 1, 2), "Asia/Kathmandu")
    assert ticks == [utc(2025, 1, 1, 21, 15)]


def test_a_fixed_hour_in_the_gap_of_spring_runs_once_right_after_it() -> None:
    ticks = cron_ticks("30 2 * * *", utc(2025, 3, 28, 12), utc(2025, 4, 1), PRAGUE)
    assert ticks == [utc(2025, 3, 29, 1, 30), utc(2025, 3, 30, 1), utc(2025, 3, 31, 0, 30)]


def test_a_fixed_hour_that_comes_twice_in_autumn_runs_once() -> None:
    ticks = cron_ticks("30 2 * * *", utc(2025, 10, 25), utc(2025, 10, 28), PRAGUE)
    assert len(ticks) == 3
    assert ticks[0] == utc(2025, 10, 25, 0, 30)
    assert ticks[1] in (utc(2025, 10, 26, 0, 30), utc(2025, 10, 26, 1, 30))
    assert ticks[2] == utc(2025, 10, 27, 1, 30)


@pytest.mark.parametrize("change", [utc(2025, 3, 30, 1), utc(2025, 10, 26, 1)])
@pytest.mark.parametrize("minutes", [1, 15, 30])
def test_with_every_hour_clock_changes_lose_nothing_and_repeat_nothing(
    change: datetime, minutes: int
) -> None:
    start, end = change - timedelta(hours=3), change + timedelta(hours=3)
    ticks = cron_ticks(f"*/{minutes} * * * *", start, end, PRAGUE)
    count = 6 * 60 // minutes
    assert ticks == [start + timedelta(minutes=minutes * n) for n in range(1, count + 1)]


@pytest.mark.parametrize(
    "tz",
    ["UTC", PRAGUE, "America/New_York", "Australia/Lord_Howe", "America/St_Johns", "Asia/Gaza"],
)
@settings(deadline=None)
@given(
    minute=st.integers(0, 59),
    hour=st.integers(0, 23),
    day=st.dates(min_value=datetime(2024, 1, 1).date(), max_value=datetime(2026, 12, 1).date()),
)
def test_a_daily_tick_comes_once_every_day(tz: str, minute: int, hour: int, day: object) -> None:
    """Over a month, whatever the clocks do: once for each local date, in order."""
    zone = ZoneInfo(tz)
    start = datetime.combine(day, datetime.min.time(), UTC)  # type: ignore[arg-type]
    ticks = cron_ticks(f"{minute} {hour} * * *", start, start + timedelta(days=31), tz)
    dates = [tick.astimezone(zone).date() for tick in ticks]
    assert all(later > earlier for earlier, later in pairwise(ticks))
    assert dates == [dates[0] + timedelta(days=n) for n in range(len(dates))]
    assert 30 <= len(dates) <= 32


def test_a_clock_that_is_put_back_repeats_no_tick() -> None:
    ticks = cron("0 * * * *").ticks(0, utc(2025, 1, 1, 0, 59).timestamp())
    assert ticks.next(0, utc(2025, 1, 1, 0, 59).timestamp()) == 60
    assert ticks.next(61, utc(2025, 1, 1, 0, 0, 1).timestamp()) == 61 + 7199


def test_a_clock_that_is_put_forward_skips_the_ticks_in_between() -> None:
    ticks = cron("0 * * * *").ticks(0, utc(2025, 1, 1, 0, 59).timestamp())
    assert ticks.next(0, utc(2025, 1, 1, 0, 59).timestamp()) == 60
    assert ticks.next(61, utc(2025, 1, 1, 5, 30).timestamp()) == 61 + 1800


def test_a_tick_is_put_off_while_the_wall_clock_has_not_reached_it() -> None:
    ticks = cron("0 * * * *").ticks(0, utc(2025, 1, 1, 0, 59).timestamp())
    due = ticks.next(0, utc(2025, 1, 1, 0, 59).timestamp())
    assert ticks.confirm(due, 60, utc(2025, 1, 1, 0, 30).timestamp()) == 60 + 1800


@pytest.mark.parametrize(("late", "due"), [(0, 60), (59, 60), (60, 60), (61, 60 + 3600 - 61)])
def test_a_tick_may_be_a_minute_late_but_not_more(late: int, due: int) -> None:
    ticks = cron("0 * * * *").ticks(0, utc(2025, 1, 1, 0, 59).timestamp())
    given_due = ticks.next(0, utc(2025, 1, 1, 0, 59).timestamp())
    wall = utc(2025, 1, 1, 1).timestamp() + late
    assert ticks.confirm(given_due, 60, wall) == due


def test_the_zone_does_not_show_in_a_schedule_but_counts() -> None:
    schedule = cron("0 0 * * *", tz="Etc/GMT-1")
    assert isinstance(schedule, Cron)
    assert schedule.after(utc(2025, 1, 1).timestamp()) == utc(2025, 1, 1, 23).timestamp()


# In a manager


class WallClock:
    """A wall clock that follows the event loop's and can be put back and forward."""

    def __init__(self, start: datetime) -> None:
        self._epoch = start.timestamp() - anyio.current_time()

    def __call__(self) -> float:
        return self._epoch + anyio.current_time()

    def put(self, *, minutes: float) -> None:
        self._epoch += minutes * 60

    def read(self) -> str:
        return datetime.fromtimestamp(round(self(), 3), UTC).strftime("%H:%M:%S")


@pytest.fixture
async def wall_clock(anyio_backend: object, monkeypatch: pytest.MonkeyPatch) -> WallClock:
    clock = WallClock(utc(2025, 1, 1))
    monkeypatch.setattr(system_clock, "wall", clock)
    return clock


def note(times: list[str]) -> Callable[[], None]:
    """Return a function that takes down what the wall clock says."""

    def take_down() -> None:
        times.append(
            datetime.fromtimestamp(round(system_clock.wall(), 3), UTC).strftime("%H:%M:%S")
        )

    return take_down


async def test_a_cron_loop_follows_the_wall_clock(manager: Manager) -> None:
    times: list[datetime] = []

    async def tick() -> None:
        times.append(datetime.fromtimestamp(round(system_clock.wall(), 3), UTC))

    with virtual_wall_clock(utc(2024, 12, 31, 23, 57)):
        manager.cron("*/5 * * * *", tick)
        await anyio.sleep(18 * 60 + 1)
        await manager.close()
    assert times == [utc(2025, 1, 1, 0, minute) for minute in (0, 5, 10, 15)]


async def test_a_cron_loop_in_another_zone_survives_the_change_to_summer_time(
    manager: Manager,
) -> None:
    times: list[datetime] = []

    async def tick() -> None:
        times.append(datetime.fromtimestamp(round(system_clock.wall(), 3), UTC))

    with virtual_wall_clock(utc(2025, 3, 28, 12)):
        schedule = cron("30 2 * * *", tz=PRAGUE)
        manager.run_task(Task(tick, kind=TaskKind.LOOP, schedule=schedule))
        await anyio.sleep(3 * 86400)
        await manager.close()
    assert times == [utc(2025, 3, 29, 1, 30), utc(2025, 3, 30, 1), utc(2025, 3, 31, 0, 30)]


async def test_delay_comes_before_the_first_cron_tick(manager: Manager) -> None:
    times: list[str] = []

    async def tick() -> None:
        note(times)()

    with virtual_wall_clock(utc(2025, 1, 1)):
        schedule = cron("*/10 * * * *")
        manager.run_task(Task(tick, kind=TaskKind.LOOP, schedule=schedule, delay=25 * 60))
        await anyio.sleep(45 * 60)
        await manager.close()
    assert times == ["00:30:00", "00:40:00"]


async def test_a_cron_tick_during_an_iteration_is_skipped(
    manager: Manager, wall_clock: WallClock
) -> None:
    times: list[str] = []

    async def tick() -> None:
        times.append(wall_clock.read())
        await anyio.sleep(150)

    manager.cron("* * * * *", tick)
    await anyio.sleep(8 * 60 + 1)
    await manager.close(timeout=0)
    assert times == ["00:01:00", "00:04:00", "00:07:00"]


async def test_a_wall_clock_put_back_makes_no_tick_twice(
    manager: Manager, wall_clock: WallClock
) -> None:
    times: list[str] = []

    async def tick() -> None:
        times.append(wall_clock.read())

    manager.cron("0 * * * *", tick)
    await anyio.sleep(3601)
    wall_clock.put(minutes=-60)
    await anyio.sleep(2 * 3600)
    assert times == ["01:00:00", "02:00:00"]


async def test_a_wall_clock_put_back_before_a_tick_puts_it_off(
    manager: Manager, wall_clock: WallClock
) -> None:
    times: list[str] = []

    async def tick() -> None:
        times.append(wall_clock.read())

    manager.cron("0 * * * *", tick)
    await anyio.sleep(3000)
    wall_clock.put(minutes=-30)
    await anyio.sleep(2390)
    assert times == []
    await anyio.sleep(20)
    assert times == ["01:00:00"]


async def test_a_wall_clock_put_forward_beyond_a_tick_skips_it(
    manager: Manager, wall_clock: WallClock
) -> None:
    times: list[str] = []

    async def tick() -> None:
        times.append(wall_clock.read())

    manager.cron("0 * * * *", tick)
    await anyio.sleep(1800)
    wall_clock.put(minutes=45)
    await anyio.sleep(3000)
    assert times == ["02:00:00"]


async def test_a_wall_clock_put_forward_brings_a_tick_forward(
    manager: Manager, wall_clock: WallClock
) -> None:
    """A loop looks at the wall clock every minute, so the tick is a minute late at most."""
    times: list[str] = []

    async def tick() -> None:
        times.append(wall_clock.read())

    manager.cron("0 * * * *", tick)
    await anyio.sleep(601.5)
    wall_clock.put(minutes=20)
    await anyio.sleep(30 * 60 + 60)
    assert [time[:5] for time in times] == ["01:00"]


async def test_a_wall_clock_put_a_little_beyond_a_tick_loses_nothing(
    manager: Manager, wall_clock: WallClock
) -> None:
    times: list[str] = []

    async def tick() -> None:
        times.append(wall_clock.read())

    manager.cron("0 * * * *", tick)
    await anyio.sleep(3590)
    wall_clock.put(minutes=40 / 60)
    await anyio.sleep(60)
    assert len(times) == 1
    assert times[0][:5] == "01:00"


async def test_clock_changes_do_not_touch_fixed_rates(
    manager: Manager, wall_clock: WallClock
) -> None:
    times: list[float] = []

    async def tick() -> None:
        times.append(anyio.current_time())

    began = anyio.current_time()
    manager.every(10, tick)
    for minutes in (-600, 1200, -5):
        await anyio.sleep(10)
        wall_clock.put(minutes=minutes)
    await anyio.sleep(5)
    assert [round(time - began, 6) for time in times] == [0, 10, 20, 30]


async def test_a_schedule_that_cannot_start_leaves_nothing_behind(
    manager: Manager, recorder: RecordingObserver
) -> None:
    """A delay of many thousand years has no calendar: refused at the call, and not half taken."""
    task = Task(note([]), kind=TaskKind.LOOP, schedule=cron("@daily"), delay=1e12)
    with pytest.raises(InvalidTaskError, match="delay"):
        manager.run_task(task)
    assert manager.count() == 0
    assert recorder.names() == []
