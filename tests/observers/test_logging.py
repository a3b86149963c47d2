"""What `LoggingObserver` writes, at which level, and that nobody can forge a line of it."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from traceback import FrameSummary
from typing import Any

import anyio
import pytest
from support.outcomes import (
    FATES,
    JOBS,
    LOOP,
    TWICE,
    broken,
    everything_happens,
    fine,
    meet,
    meet_job,
    nap,
)
from tenacity import AsyncRetrying, retry_if_result, stop_after_attempt, wait_fixed

from background import (
    JobDead,
    JobEnqueued,
    JobRef,
    Manager,
    ManagerClosing,
    Task,
    TaskAdded,
    TaskFailed,
    TaskKind,
    TaskRetrying,
    TaskStalled,
    TaskStarted,
    TaskStatus,
    TaskSucceeded,
    every,
)
from background.observers import LoggingObserver
from background.observers._log_levels import Levels
from background.testing import RecordingObserver, virtual_wall_clock

EVIL = "x\ny\r\x0b\x1b[31m\x85\u2028\u2029\u202e\x00\ud800 %s 'a' \"b\" \\n"
FAILED = "failed after 0.000 s, in attempt 1"
RETRIES = "failed attempt 1 and retries in 5.000 s"
EVENTS = [*Levels.__annotations__]


class ListHandler(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]

    def of(self, text: str) -> logging.LogRecord:
        (found,) = [record for record in self.records if text in record.getMessage()]
        return found


@pytest.fixture
def log() -> ListHandler:
    """What the logger `jobs` of the test gets."""
    handler = ListHandler()
    logger = logging.getLogger("jobs")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(1)
    return handler


@pytest.fixture
def observer(log: ListHandler) -> LoggingObserver:
    return LoggingObserver("jobs")


def event(kind: type, **fields: Any) -> Any:
    identity = {"id": "7", "name": "job", "kind": TaskKind.ONE_OFF, "meta": {}}
    return kind(**{**identity, "iteration": 0, "attempt": 1, "time": 0.0, **fields})


async def test_one_record_with_its_fields_for_each_event(
    observer: LoggingObserver, log: ListHandler, recorder: RecordingObserver
) -> None:
    await everything_happens(recorder, observer)
    assert len(log.records) == len(recorder.events)
    for record, told in zip(log.records, recorder.events, strict=True):
        fields = vars(record)
        job = getattr(told, "job", None)
        if hasattr(told, "id"):
            assert (fields["task_id"], fields["task_name"]) == (told.id, told.name)
            assert (fields["task_kind"], fields["task_meta"]) == (told.kind, told.meta)
            assert (job is None) == (told.name != "dies")
        elif job is not None:
            assert fields["job_meta"] == told.meta
        else:
            assert fields["manager_name"] == told.name
        given = {name: value for name, value in fields.items() if name.startswith("job_")}
        of_job = ("id", "handler", "queue", "attempt")
        expected = {} if job is None else {f"job_{name}": getattr(job, name) for name in of_job}
        assert given.items() >= expected.items()
        assert bool(given) == (job is not None)
        elsewhere = ("id", "name", "kind", "meta", "job", "time", "error", "stack", "report")
        for name in type(told).__slots__:
            if name not in (*elsewhere, "fn", "stall_after"):
                assert fields[name] == getattr(told, name)


@pytest.mark.parametrize("fate", FATES.values(), ids=FATES)
async def test_fields_are_plain_data(
    fate: Any, observer: LoggingObserver, log: ListHandler
) -> None:
    await meet(fate, observer)
    assert_plain(log)


@pytest.mark.parametrize("fate", JOBS.values(), ids=JOBS)
async def test_fields_of_jobs_are_plain_data(
    fate: Any, observer: LoggingObserver, log: ListHandler
) -> None:
    await meet_job(fate, observer)
    assert_plain(log)


def assert_plain(log: ListHandler) -> None:
    usual = vars(logging.makeLogRecord({})).keys()
    assert log.records
    for record in log.records:
        fields = {name: value for name, value in vars(record).items() if name not in usual}
        assert json.loads(json.dumps(fields)) == fields


@pytest.mark.parametrize(
    ("fate", "messages"),
    [
        (
            "one-off succeeds at last",
            [
                "task 'Flaky' ({id}) was added, due in 0.000 s",
                "task 'Flaky' ({id}) started, 0.000 s after it was due",
                f"task 'Flaky' ({{id}}) {RETRIES}: ValueError: flaky",
                "task 'Flaky' ({id}) succeeded in 5.000 s",
                "manager 'background' is closing: close() was called; outstanding tasks: 0",
                "manager 'background' closed in 0.000 s: nothing was left",
            ],
        ),
        (
            "loop too many failures",
            [
                "loop 'broken' ({id}) was added, due in 0.000 s",
                "loop 'broken' ({id}), iteration 1, started, 0.000 s after it was due",
                f"loop 'broken' ({{id}}), iteration 1, {FAILED}: ValueError: broken",
                "loop 'broken' ({id}), iteration 2, started, 0.000 s after it was due",
                f"loop 'broken' ({{id}}), iteration 2, {FAILED}: ValueError: broken",
                "manager 'background' is closing: close() was called; outstanding tasks: 0",
                "manager 'background' closed in 0.000 s: nothing was left",
            ],
        ),
        (
            "one-off running at close",
            [
                "task 'nap' ({id}) was added, due in 0.000 s",
                "task 'nap' ({id}) started, 0.000 s after it was due",
                "manager 'background' is closing: close() was called; outstanding tasks: 1",
                "task 'nap' ({id}) was cancelled after 2.000 s: shutdown",
                "manager 'background' closed in 1.000 s: 1 cancelled",
            ],
        ),
    ],
)
async def test_messages(
    fate: str, messages: list[str], observer: LoggingObserver, log: ListHandler
) -> None:
    handle = await meet(FATES[fate], observer)
    assert log.messages == [message.format(id=handle.id) for message in messages]


ENQUEUED = "job 'job' ({id}) was enqueued in the queue 'mail', due in 0.000 s"
BACK = "failed attempt 1 and returns to its queue for a retry in 5.000 s"
CLAIMED = "job 'job' ({id}) was claimed from the queue 'mail'"


@pytest.mark.parametrize(
    ("fate", "messages"),
    [
        (
            "gives up at last",
            [
                ("DEBUG", ENQUEUED),
                ("DEBUG", CLAIMED),
                ("DEBUG", "job 'job' ({id}) started attempt 1, 0.000 s after it was enqueued"),
                (
                    "WARNING",
                    f"job 'job' ({{id}}) {BACK}: ValueError: broken",
                ),
                ("DEBUG", CLAIMED),
                ("DEBUG", "job 'job' ({id}) started attempt 2, 5.000 s after it was enqueued"),
                (
                    "ERROR",
                    "job 'job' ({id}) failed after 0.000 s, in attempt 2: ValueError: broken",
                ),
                ("ERROR", "job 'job' ({id}) is dead after attempt 2: ValueError: broken"),
            ],
        ),
        (
            "handed back while running",
            [
                ("DEBUG", ENQUEUED),
                ("DEBUG", CLAIMED),
                ("DEBUG", "job 'job' ({id}) started attempt 1, 0.000 s after it was enqueued"),
                ("WARNING", "job 'job' ({id}) was cancelled after 1.000 s: shutdown"),
            ],
        ),
    ],
)
async def test_messages_of_jobs(
    fate: str, messages: list[tuple[str, str]], observer: LoggingObserver, log: ListHandler
) -> None:
    with virtual_wall_clock(datetime(2030, 1, 1, tzinfo=UTC)):
        id = await meet_job(JOBS[fate], observer)
    told = [(each.levelname, each.getMessage()) for each in log.records if hasattr(each, "job_id")]
    assert told == [(level, message.format(id=id)) for level, message in messages]


async def test_a_dead_job_has_one_traceback(observer: LoggingObserver, log: ListHandler) -> None:
    await meet_job(JOBS["gives up"], observer)
    (record,) = [each for each in log.records if each.exc_info]
    assert "failed after" in record.getMessage()


JOB = JobRef(id="7", handler="send", queue="mail", attempt=2, enqueued_at=100.0)


def test_a_clock_that_is_behind_that_of_the_enqueuer(
    observer: LoggingObserver, log: ListHandler
) -> None:
    """No job seems to start before it was enqueued."""
    fields = {"fn": fine, "queued_for": 0.0, "stall_after": None, "time": 40.0, "attempt": 2}
    observer.on_task_started(event(TaskStarted, job=JOB, **fields))
    assert log.messages == ["job 'job' (7) started attempt 2, 0.000 s after it was enqueued"]


def test_the_id_of_a_job_whose_task_has_another(
    observer: LoggingObserver, log: ListHandler
) -> None:
    """As one has that runs beside an attempt which has lost its lease."""
    observer.on_task_succeeded(event(TaskSucceeded, id="x-1", job=JOB, duration=1.0, final=True))
    assert log.messages == ["job 'job' (7) succeeded in 1.000 s"]
    assert (vars(log.records[0])["task_id"], vars(log.records[0])["job_id"]) == ("x-1", "7")


@pytest.mark.parametrize(
    ("fate", "message"),
    [
        ("one-off cancelled while delayed", "task 'nap' ({id}) was cancelled: enough"),
        ("one-off expires while running", "outlived its lifespan of 5 s after 5.000 s"),
        ("one-off expires while queued", "task 'nap' ({id}) outlived its lifespan of 5 s"),
        ("one-off refused results", "failed attempt 1 and retries in 0.000 s: the retry policy"),
        ("loop stopped in an iteration", "loop 'nap' ({id}), iteration 2, was stopped"),
        ("loop stopped before its first step", "loop 'fine' ({id}) was stopped"),
    ],
)
async def test_ends(fate: str, message: str, observer: LoggingObserver, log: ListHandler) -> None:
    handle = await meet(FATES[fate], observer)
    assert any(message.format(id=handle.id) in each for each in log.messages)


async def test_default_levels(observer: LoggingObserver, log: ListHandler) -> None:
    refused = AsyncRetrying(
        stop=stop_after_attempt(2), wait=wait_fixed(1), retry=retry_if_result(lambda _: True)
    )
    async with Manager(observers=[observer]) as manager:
        await manager.run(fine)
        await manager.run_task(Task(fine, retry=refused)).wait()
        manager.run(nap).cancel("enough")
        slow = manager.run_task(Task(nap, lifespan=2))
        manager.every(100, broken)
        await anyio.sleep(1)
        manager.report_stall(slow.id, elapsed=1)
        await anyio.sleep(2)
    levels = {
        "was added": "DEBUG",
        " started, ": "DEBUG",
        "and retries": "WARNING",
        "succeeded in": "INFO",
        " failed after": "ERROR",
        "was cancelled": "WARNING",
        "was stopped": "INFO",
        "outlived": "WARNING",
        "is still at": "WARNING",
        "is closing": "INFO",
        "closed in": "INFO",
    }
    seen = {
        text: {record.levelname for record in log.records if text in record.getMessage()}
        for text in levels
    }
    assert seen == {text: {level} for text, level in levels.items()}


async def test_stopped_is_for_loops_that_end_with_the_others(
    observer: LoggingObserver, log: ListHandler
) -> None:
    async with Manager(observers=[observer]) as manager:
        manager.run(nap).cancel("stopped")
        manager.every(10, fine).cancel("enough")
        manager.every(10, fine).cancel()
    assert [each.levelname for each in log.records if "was cancelled" in each.getMessage()] == [
        "WARNING"
    ] * 3


#: Texts that stand beside another one for the same event of a task.
JOBS_OWN = {
    "%s was claimed from the queue %s",
    "%s started attempt %d, %.3f s after it was enqueued",
}


@pytest.mark.parametrize("chosen", [logging.CRITICAL, "CRITICAL"])
@pytest.mark.parametrize("name", EVENTS)
async def test_chosen_levels(name: str, chosen: int | str, log: ListHandler) -> None:
    """A level is chosen for one event and changes that one alone."""
    usual = await _everything(log)
    changed = await _everything(log, **{name: chosen})
    assert {level for _, level in changed - usual} == {logging.CRITICAL}
    assert len({text for text, _ in changed - usual} - JOBS_OWN) == 1


async def _everything(log: ListHandler, **levels: Any) -> Counter[tuple[str, int]]:
    """Have everything logged; return how often each text was, with its level."""
    log.records.clear()
    observer = LoggingObserver("jobs", **levels)
    await everything_happens(observer)
    async with Manager(observers=[observer], cancel_timeout=1) as manager:
        manager.every(100, fine)
        async with stuck_at_close(manager):
            pass
    return Counter((record.msg, record.levelno) for record in log.records)


@asynccontextmanager
async def stuck_at_close(manager: Manager, **options: Any) -> AsyncIterator[None]:
    """Have the manager closed while a task ignores its cancellation; in the end, let it go."""
    released, started = anyio.Event(), anyio.Event()

    async def stubborn() -> None:
        started.set()
        with anyio.CancelScope(shield=True):
            await released.wait()  # stuck here

    handle = manager.run_task(Task(stubborn, **options))
    await started.wait()
    await manager.close(timeout=0)
    yield
    released.set()
    await handle.wait()


async def test_stuck_tasks_are_named_with_their_stacks(
    observer: LoggingObserver, log: ListHandler
) -> None:
    async with (
        Manager(observers=[observer], cancel_timeout=1) as manager,
        stuck_at_close(manager, name="stubborn\ntask", id="1\n2"),
    ):
        record = log.records[-1]
    headline, subject, *stack = record.getMessage().split("\n")
    assert headline == "manager 'background' closed in 1.000 s: 1 stuck"
    assert subject == r"task 'stubborn\ntask' (1\n2) is still at"
    assert "    await released.wait()  # stuck here" in stack
    assert all(line.startswith("  ") for line in stack)
    assert (record.levelname, vars(record)["stuck"]) == ("WARNING", 1)


async def test_traceback_of_failures(observer: LoggingObserver, log: ListHandler) -> None:
    async with Manager(observers=[observer]) as manager:
        handle = manager.run(broken)
        await handle.wait()
    record = log.of("failed after")
    assert record.exc_info is not None
    assert record.exc_info[1] is handle.error
    assert [each for each in log.records if each.exc_info] == [record]
    assert 'raise ValueError("broken")' in logging.Formatter().format(record)


async def test_stack_of_stalled_tasks(observer: LoggingObserver, log: ListHandler) -> None:
    async def hang() -> None:
        await anyio.sleep_forever()  # hangs here

    async with Manager(observers=[observer]) as manager:
        handle = manager.run(hang)
        await anyio.sleep(3)
        manager.report_stall(handle.id, elapsed=3)
        handle.cancel()
    record = log.of("is still at")
    headline, *stack = record.getMessage().split("\n")
    assert headline == (
        f"task {handle.name!r} ({handle.id}) has stalled: attempt 1 has run for "
        "3.000 s and is still at"
    )
    assert "    await anyio.sleep_forever()  # hangs here" in stack
    assert any(line.startswith(f'  File "{__file__}", line ') for line in stack)
    assert all(line.startswith("  ") for line in stack)
    assert vars(record)["stack"] == "\n".join(stack)


def test_stall_without_a_stack(observer: LoggingObserver, log: ListHandler) -> None:
    observer.on_task_stalled(event(TaskStalled, elapsed=1.0, stack=()))
    assert log.messages[0].endswith("is still at\n  (no stack frames)")


class EvilError(Exception):
    pass


EvilError.__qualname__ = EVIL


async def test_nobody_can_forge_a_line(log: ListHandler, observer: LoggingObserver) -> None:
    """Names, ids, reasons and errors are escaped, and nothing in them is lost or formatted."""

    async def fail() -> None:
        raise EvilError(EVIL)

    async with Manager(name=EVIL, observers=[observer], cancel_timeout=1) as manager:
        manager.run_task(Task(nap, name=EVIL, id=EVIL)).cancel(EVIL)
        await manager.run_task(Task(fail, name=EVIL, id=EVIL, retry=TWICE)).wait()
        await manager.run_task(Task(nap, name=EVIL, id=EVIL, lifespan=1)).wait()
        loop = Task(fine, name=EVIL, id=EVIL, kind=LOOP, schedule=every(1))
        manager.run_task(loop)
        await anyio.sleep(1.5)
    assert len({record.msg for record in log.records}) == 9
    escaped = repr(EVIL)[1:-1]
    for message in log.messages:
        assert message.isprintable()
        assert message.count(escaped) >= 1
        message.encode()
    assert log.of("was cancelled").getMessage().count(escaped) == 3
    assert log.of("and retries").getMessage().count(escaped) == 4


def test_nobody_can_forge_a_line_of_a_stack(log: ListHandler, observer: LoggingObserver) -> None:
    stack = (FrameSummary(EVIL, 1, EVIL, line=EVIL), FrameSummary("a.py", 2, "f", line=""))
    observer.on_task_stalled(event(TaskStalled, elapsed=1.0, stack=stack))
    observer.on_manager_closing(ManagerClosing(name="m", time=0.0, reason=EVIL, outstanding=0))
    stalled, closing = log.messages
    assert all(line.isprintable() for line in stalled.split("\n"))
    assert len(stalled.split("\n")) == 4
    assert closing.isprintable()


def test_nobody_can_forge_a_line_by_a_job(log: ListHandler, observer: LoggingObserver) -> None:
    """What another process has put into the broker is escaped, too."""
    job = JobRef(id=EVIL, handler=EVIL, queue=EVIL, attempt=1, enqueued_at=0.0)
    error = EvilError(EVIL)
    observer.on_job_enqueued(JobEnqueued(job=job, meta={}, time=0.0, delay=0.0))
    observer.on_job_dead(JobDead(job=job, meta={}, time=0.0, error=error))
    observer.on_task_added(event(TaskAdded, name=EVIL, job=job, delay=0.0))
    observer.on_task_retrying(event(TaskRetrying, name=EVIL, job=job, error=error, delay=0.0))
    escaped = repr(EVIL)[1:-1]
    assert [message.count(escaped) for message in log.messages] == [3, 4, 3, 4]
    assert all(message.isprintable() for message in log.messages)


def test_text_that_is_no_plain_string(log: ListHandler, observer: LoggingObserver) -> None:
    """A `str` that represents itself in another way can't forge a line either."""

    class Name(str):
        __slots__ = ()

        def __repr__(self) -> str:
            return "a\nb"

        __str__ = __repr__

    told = event(TaskSucceeded, name=Name("x\ny"), id=Name("z"), duration=1.0, final=True)
    observer.on_task_succeeded(told)
    assert log.messages == [r"task 'x\ny' (a\nb) succeeded in 1.000 s"]


def test_error_that_cannot_be_printed(log: ListHandler, observer: LoggingObserver) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    Mute.__qualname__ = "Mu\nte"
    observer.on_task_failed(event(TaskFailed, error=Mute(), duration=1.0, final=True))
    assert log.messages[0].endswith(r"in attempt 1: Mu\nte: <Mu\nte that can't be printed>")
    assert "Mu" in logging.Formatter().format(log.records[0])


async def test_a_disabled_level_costs_no_work(log: ListHandler) -> None:
    """Nothing is made of an event that the logger would drop."""

    class Untouchable:
        def __getattr__(self, name: str) -> Any:
            assert name in ("kind", "reason", "report", "stuck")
            return None

    logging.getLogger("jobs").setLevel(logging.CRITICAL)
    observer = LoggingObserver("jobs")
    untouchable: Any = Untouchable()
    untouchable.report = Untouchable()
    for name in dir(observer):
        if name.startswith("on_"):
            getattr(observer, name)(untouchable)
    assert log.records == []


def test_the_default_logger_is_that_of_the_package(caplog: pytest.LogCaptureFixture) -> None:
    LoggingObserver().on_task_failed(event(TaskFailed, error=OSError(), duration=1, final=True))
    assert [record.name for record in caplog.records] == ["background"]


def test_a_logger_may_be_given_itself(log: ListHandler) -> None:
    observer = LoggingObserver(logging.getLogger("jobs"), failed="DEBUG")
    observer.on_task_failed(event(TaskFailed, error=OSError(), duration=1, final=True))
    assert [record.levelname for record in log.records] == ["DEBUG"]


@pytest.mark.parametrize("level", [0, -1, True, None, "", "info", "LOUD", "NOTSET", 10.0, b"INFO"])
@pytest.mark.parametrize("name", EVENTS)
def test_bad_levels(name: str, level: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be a level .*, not {level!r}$"):
        LoggingObserver(**{name: level})


def test_unknown_events() -> None:
    with pytest.raises(TypeError, match="no event finished; its events are added, started,"):
        LoggingObserver(finished=10)  # type: ignore[call-arg]


@pytest.mark.parametrize("logger", [None, 1, logging, logging.LoggerAdapter(logging.root, {})])
def test_bad_loggers(logger: Any) -> None:
    with pytest.raises(ValueError, match=r"^logger must be a logging\.Logger or the name of one"):
        LoggingObserver(logger)


async def test_a_failure_that_is_logged_counts_as_told(
    observer: LoggingObserver, log: ListHandler, caplog: pytest.LogCaptureFixture
) -> None:
    async with Manager(observers=[observer]) as manager:
        handle = manager.run(broken)
        assert await handle.wait() is TaskStatus.FAILED
    assert log.of("failed after")
    assert [record for record in caplog.records if record.name == "background"] == []


async def test_failures_that_nobody_is_told_of_cannot_be_forged_either(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Manager() as manager:
        manager.run_task(Task(broken, name=EVIL, id=EVIL))
    (record,) = caplog.records
    assert record.getMessage().isprintable()
