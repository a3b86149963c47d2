"""Records of `LoggingObserver`: fields, messages, levels and escaping."""

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
    JOBS,
    LOOP,
    SCENARIOS,
    TWICE,
    broken,
    call_every_hook,
    fine,
    nap,
    play,
    play_job,
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
    TaskCancelled,
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
from background.observers._log_levels import LogLevels
from background.queues._worker.decision import UNSETTLED
from background.testing import RecordingObserver, virtual_wall_clock

EVIL = "x\ny\r\x0b\x1b[31m\x85\u2028\u2029\u202e\x00\ud800 %s 'a' \"b\" \\n"
FAILED = "failed after 0.000 s, in attempt 1"
RETRIES = "failed attempt 1 and retries in 5.000 s"
EVENTS = [*LogLevels.__annotations__]


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
    """The records of the logger `jobs`."""
    handler = ListHandler()
    logger = logging.getLogger("jobs")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(1)
    return handler


@pytest.fixture
def observer(log: ListHandler) -> LoggingObserver:
    return LoggingObserver("jobs")


JOB = JobRef(id="7", handler="send", queue="mail", attempt=2, enqueued_at=100.0)


def make_event(kind: type, **fields: Any) -> Any:
    identity = {"id": "7", "name": "job", "kind": TaskKind.ONE_OFF, "meta": {}}
    return kind(**{**identity, "iteration": 0, "attempt": 1, "time": 0.0, **fields})


async def test_record_fields(
    observer: LoggingObserver, log: ListHandler, recorder: RecordingObserver
) -> None:
    """Every event is logged in one record, with the event's fields as attributes.

    The failure of a job is not, because the job is then dead, which is another event.
    """
    await call_every_hook(recorder, observer)
    failures = [event for event in recorder.of(TaskFailed) if event.job is not None]
    events = [event for event in recorder.events if event not in failures]
    assert len(failures) == 1
    for record, event in zip(log.records, events, strict=True):
        fields = vars(record)
        job = getattr(event, "job", None)
        if hasattr(event, "id"):
            assert (fields["task_id"], fields["task_name"]) == (event.id, event.name)
            assert (fields["task_kind"], fields["task_meta"]) == (event.kind, event.meta)
            assert (job is None) == (event.name != "dies")
        elif job is not None:
            assert fields["job_meta"] == event.meta
        else:
            assert fields["manager_name"] == event.name
        job_fields = {name: value for name, value in fields.items() if name.startswith("job_")}
        of_job = ("id", "handler", "queue", "attempt")
        expected = {} if job is None else {f"job_{name}": getattr(job, name) for name in of_job}
        assert job_fields.items() >= expected.items()
        assert bool(job_fields) == (job is not None)
        elsewhere = ("id", "name", "kind", "meta", "job", "time", "error", "stack", "report")
        for name in type(event).__slots__:
            if name not in (*elsewhere, "fn", "stall_after"):
                assert fields[name] == getattr(event, name)


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
async def test_plain_task_fields(
    scenario: Any, observer: LoggingObserver, log: ListHandler
) -> None:
    """The attributes of a task's records can be stored as JSON."""
    await play(scenario, observer)
    assert_plain(log)


@pytest.mark.parametrize("scenario", JOBS.values(), ids=JOBS)
async def test_plain_job_fields(scenario: Any, observer: LoggingObserver, log: ListHandler) -> None:
    """The attributes of a job's records can be stored as JSON."""
    await play_job(scenario, observer)
    assert_plain(log)


def assert_plain(log: ListHandler) -> None:
    usual = vars(logging.makeLogRecord({})).keys()
    assert log.records
    for record in log.records:
        fields = {name: value for name, value in vars(record).items() if name not in usual}
        assert json.loads(json.dumps(fields)) == fields


@pytest.mark.parametrize(
    ("scenario", "messages"),
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
                "manager 'background' closed in 1.000 s; since closing began: 1 cancelled",
            ],
        ),
    ],
)
async def test_task_messages(
    scenario: str, messages: list[str], observer: LoggingObserver, log: ListHandler
) -> None:
    """The messages of a task and of the manager describe their events."""
    handle = await play(SCENARIOS[scenario], observer)
    assert log.messages == [message.format(id=handle.id) for message in messages]


ENQUEUED = "job 'job' ({id}) was enqueued in the queue 'mail', due in 0.000 s"
BACK = "failed attempt 1 and returns to its queue for a retry in 5.000 s"
CLAIMED = "job 'job' ({id}) was claimed from the queue 'mail'"


@pytest.mark.parametrize(
    ("scenario", "messages"),
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
                ("ERROR", "job 'job' ({id}) is dead after attempt 2: ValueError: broken"),
            ],
        ),
        (
            "released while running",
            [
                ("DEBUG", ENQUEUED),
                ("DEBUG", CLAIMED),
                ("DEBUG", "job 'job' ({id}) started attempt 1, 0.000 s after it was enqueued"),
                ("INFO", "job 'job' ({id}) was released after 1.000 s: shutdown"),
            ],
        ),
    ],
)
async def test_job_messages(
    scenario: str, messages: list[tuple[str, str]], observer: LoggingObserver, log: ListHandler
) -> None:
    """The messages of a job describe its events, at their levels."""
    with virtual_wall_clock(datetime(2030, 1, 1, tzinfo=UTC)):
        id = await play_job(JOBS[scenario], observer)
    records = [record for record in log.records if hasattr(record, "job_id")]
    logged = [(record.levelname, record.getMessage()) for record in records]
    assert logged == [(level, message.format(id=id)) for level, message in messages]


async def test_traceback_of_dead_job(observer: LoggingObserver, log: ListHandler) -> None:
    """A dead job has one record of an error, with its traceback."""
    await play_job(JOBS["gives up"], observer)
    (record,) = [record for record in log.records if record.levelno >= logging.WARNING]
    assert "is dead after" in record.getMessage()
    assert 'raise ValueError("broken")' in logging.Formatter().format(record)


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("shutdown", "INFO was released after 1.000 s: shutdown"),
        ("cancelled from outside the manager", "INFO was released after 1.000 s: cancelled from"),
        ("snoozed for 60 s", "INFO was released after 1.000 s: snoozed for 60 s"),
        (UNSETTLED, f"WARNING ended after 1.000 s: {UNSETTLED}"),
        ("the job was cancelled", "WARNING was cancelled after 1.000 s: the job was cancelled"),
        (None, "WARNING was cancelled after 1.000 s"),
    ],
)
def test_released_job(
    reason: str | None, text: str, observer: LoggingObserver, log: ListHandler
) -> None:
    """A job that runs again is logged as released, and as cancelled otherwise."""
    observer.on_task_cancelled(make_event(TaskCancelled, job=JOB, reason=reason, duration=1.0))
    (record,) = log.records
    assert f"{record.levelname} {record.getMessage()}".replace("job 'job' (7) ", "").startswith(
        text
    )


def test_interrupted_job(observer: LoggingObserver, log: ListHandler) -> None:
    """A KeyboardInterrupt in a job is logged as a failure, because the job is not dead."""
    error = KeyboardInterrupt()
    observer.on_task_failed(make_event(TaskFailed, job=JOB, error=error, duration=1.0, final=True))
    assert log.messages == ["job 'job' (7) failed after 1.000 s, in attempt 1: KeyboardInterrupt: "]


def test_clock_behind_enqueuer(observer: LoggingObserver, log: ListHandler) -> None:
    """No job is logged as started before it was enqueued, even if the worker's clock is behind."""
    fields = {"fn": fine, "queued_for": 0.0, "stall_after": None, "time": 40.0, "attempt": 2}
    observer.on_task_started(make_event(TaskStarted, job=JOB, **fields))
    assert log.messages == ["job 'job' (7) started attempt 2, 0.000 s after it was enqueued"]


def test_task_id_differs_from_job_id(observer: LoggingObserver, log: ListHandler) -> None:
    """A message has the id of the job if the id of its task differs.

    It differs if another attempt, which has lost its lease, still runs.
    """
    observer.on_task_succeeded(
        make_event(TaskSucceeded, id="x-1", job=JOB, duration=1.0, final=True)
    )
    assert log.messages == ["job 'job' (7) succeeded in 1.000 s"]
    assert (vars(log.records[0])["task_id"], vars(log.records[0])["job_id"]) == ("x-1", "7")


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("one-off cancelled while delayed", "task 'nap' ({id}) was cancelled: enough"),
        ("one-off expires while running", "outlived its lifespan of 5 s after 5.000 s"),
        ("one-off expires while queued", "task 'nap' ({id}) outlived its lifespan of 5 s"),
        ("one-off refused results", "failed attempt 1 and retries in 0.000 s: the retry policy"),
        ("loop stopped in an iteration", "loop 'nap' ({id}) was stopped"),
        ("loop stopped before its first step", "loop 'fine' ({id}) was stopped"),
    ],
)
async def test_outcome_messages(
    scenario: str, message: str, observer: LoggingObserver, log: ListHandler
) -> None:
    """The message of an outcome has its details."""
    handle = await play(SCENARIOS[scenario], observer)
    assert any(message.format(id=handle.id) in logged for logged in log.messages)


async def test_default_levels(observer: LoggingObserver, log: ListHandler) -> None:
    """Every kind of event has a default level."""
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


async def test_loop_that_waits(observer: LoggingObserver, log: ListHandler) -> None:
    """The record of a loop that is stopped between two iterations names none."""
    async with Manager(observers=[observer]) as manager:
        loop = manager.every(10, fine)
        await anyio.sleep(15)
    assert f"loop 'fine' ({loop.id}) was stopped" in log.messages


async def test_loop_of_schedule(observer: LoggingObserver, log: ListHandler) -> None:
    """The loop of a schedule of jobs is logged at the level of enqueued jobs, unless it fails."""
    outcomes = iter([None, ValueError("odd")])

    async def tick() -> None:
        if (error := next(outcomes, None)) is not None:
            raise error

    async with Manager(observers=[observer]) as manager:
        manager.run_task(
            Task(tick, kind=TaskKind.LOOP, schedule=every(10), meta={"schedule_of": "report"})
        )
        await anyio.sleep(25)
    levels = {"succeeded in": ["DEBUG"] * 2, "failed after": ["ERROR"], "was stopped": ["DEBUG"]}
    assert levels == {
        text: [record.levelname for record in log.records if text in record.getMessage()]
        for text in levels
    }


async def test_cancelled_level(observer: LoggingObserver, log: ListHandler) -> None:
    """A loop that was cancelled individually is logged as a warning, as a one-off is."""
    async with Manager(observers=[observer]) as manager:
        manager.run(nap).cancel("stopped")
        manager.every(10, fine).cancel("enough")
        manager.every(10, fine).cancel()
    records = [record for record in log.records if "was cancelled" in record.getMessage()]
    assert [record.levelname for record in records] == ["WARNING"] * 3


async def test_level_of_interrupted_loop(observer: LoggingObserver, log: ListHandler) -> None:
    """A loop that the shutdown interrupts in an iteration was stopped; a one-off was cancelled."""
    async with Manager(observers=[observer]) as manager:
        loop = manager.every(10, nap)
        manager.run(nap)
        await anyio.sleep(1)
        await manager.close(timeout=0)
    messages = {
        record.getMessage(): record.levelname
        for record in log.records
        if "shutdown" in record.getMessage()
    }
    assert sorted(messages.values()) == ["INFO", "WARNING"]
    stopped = f"loop 'nap' ({loop.id}), iteration 1, was stopped after 1.000 s: shutdown"
    assert messages[stopped] == "INFO"


#: Messages of jobs for events that have another message for other tasks.
JOB_MESSAGES = {
    "%s was claimed from the queue %s",
    "%s started attempt %d, %.3f s after it was enqueued",
}


@pytest.mark.parametrize("chosen", [logging.CRITICAL, "CRITICAL"])
@pytest.mark.parametrize("name", EVENTS)
async def test_chosen_level(name: str, chosen: int | str, log: ListHandler) -> None:
    """A level that is chosen for an event changes only the records of that event."""
    usual = await log_everything(log)
    changed = await log_everything(log, **{name: chosen})
    assert {level for _, level in changed - usual} == {logging.CRITICAL}
    assert len({text for text, _ in changed - usual} - JOB_MESSAGES) == 1


async def log_everything(log: ListHandler, **levels: Any) -> Counter[tuple[str, int]]:
    """Log every event; return the number of records by message and level."""
    log.records.clear()
    observer = LoggingObserver("jobs", **levels)
    await call_every_hook(observer)
    observer.on_task_cancelled(make_event(TaskCancelled, job=JOB, reason="shutdown", duration=1.0))
    async with Manager(observers=[observer], cancel_timeout=1) as manager:
        manager.every(100, fine)
        async with stuck_at_close(manager):
            pass
    return Counter((record.msg, record.levelno) for record in log.records)


@asynccontextmanager
async def stuck_at_close(manager: Manager, **options: Any) -> AsyncIterator[None]:
    """Close the manager while a task ignores its cancellation; end the task at last."""
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


async def test_stuck_tasks(observer: LoggingObserver, log: ListHandler) -> None:
    """The record of the manager's end has the stuck tasks with their stacks."""
    async with (
        Manager(observers=[observer], cancel_timeout=1) as manager,
        stuck_at_close(manager, name="stubborn\ntask", id="1\n2"),
    ):
        record = log.records[-1]
    headline, subject, *stack = record.getMessage().split("\n")
    assert headline == "manager 'background' closed in 1.000 s; since closing began: 1 stuck"
    assert subject == r"task 'stubborn\ntask' (1\n2) is still at"
    assert "    await released.wait()  # stuck here" in stack
    assert all(line.startswith("  ") for line in stack)
    assert (record.levelname, vars(record)["stuck"]) == ("WARNING", 1)


async def test_traceback_of_failure(observer: LoggingObserver, log: ListHandler) -> None:
    """Only the record of a failure has a traceback."""
    async with Manager(observers=[observer]) as manager:
        handle = manager.run(broken)
        await handle.wait()
    record = log.of("failed after")
    assert record.exc_info is not None
    assert record.exc_info[1] is handle.error
    assert [logged for logged in log.records if logged.exc_info] == [record]
    assert 'raise ValueError("broken")' in logging.Formatter().format(record)


async def test_stack_of_stall(observer: LoggingObserver, log: ListHandler) -> None:
    """The record of a stall has the task's stack."""

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


def test_stall_without_stack(observer: LoggingObserver, log: ListHandler) -> None:
    """The record of a stall without stack frames says so."""
    observer.on_task_stalled(make_event(TaskStalled, elapsed=1.0, stack=()))
    assert log.messages[0].endswith("is still at\n  (no stack frames)")


class EvilError(Exception):
    pass


EvilError.__qualname__ = EVIL


async def test_escaped_tasks(log: ListHandler, observer: LoggingObserver) -> None:
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


def test_escaped_stack(log: ListHandler, observer: LoggingObserver) -> None:
    """The text of stack frames and the reason of closing are escaped."""
    stack = (FrameSummary(EVIL, 1, EVIL, line=EVIL), FrameSummary("a.py", 2, "f", line=""))
    observer.on_task_stalled(make_event(TaskStalled, elapsed=1.0, stack=stack))
    observer.on_manager_closing(ManagerClosing(name="m", time=0.0, reason=EVIL, outstanding=0))
    stalled, closing = log.messages
    assert all(line.isprintable() for line in stalled.split("\n"))
    assert len(stalled.split("\n")) == 4
    assert closing.isprintable()


def test_escaped_jobs(log: ListHandler, observer: LoggingObserver) -> None:
    """Text that another process stored in the broker is escaped."""
    job = JobRef(id=EVIL, handler=EVIL, queue=EVIL, attempt=1, enqueued_at=0.0)
    error = EvilError(EVIL)
    observer.on_job_enqueued(JobEnqueued(job=job, meta={}, time=0.0, delay=0.0))
    observer.on_job_dead(JobDead(job=job, meta={}, time=0.0, error=error))
    observer.on_task_added(make_event(TaskAdded, name=EVIL, job=job, delay=0.0))
    observer.on_task_retrying(make_event(TaskRetrying, name=EVIL, job=job, error=error, delay=0.0))
    escaped = repr(EVIL)[1:-1]
    assert [message.count(escaped) for message in log.messages] == [3, 4, 3, 4]
    assert all(message.isprintable() for message in log.messages)


def test_escaped_str_subclass(log: ListHandler, observer: LoggingObserver) -> None:
    """Text of a `str` subclass with its own `__repr__` is escaped."""

    class Name(str):
        __slots__ = ()

        def __repr__(self) -> str:
            return "a\nb"

        __str__ = __repr__

    succeeded = make_event(TaskSucceeded, name=Name("x\ny"), id=Name("z"), duration=1.0, final=True)
    observer.on_task_succeeded(succeeded)
    assert log.messages == [r"task 'x\ny' (a\nb) succeeded in 1.000 s"]


def test_unprintable_error(log: ListHandler, observer: LoggingObserver) -> None:
    """An error whose `__str__` raises is logged with a placeholder."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    Mute.__qualname__ = "Mu\nte"
    observer.on_task_failed(make_event(TaskFailed, error=Mute(), duration=1.0, final=True))
    assert log.messages[0].endswith(r"in attempt 1: Mu\nte: <Mu\nte that can't be printed>")
    assert "Mu" in logging.Formatter().format(log.records[0])


async def test_disabled_level(log: ListHandler) -> None:
    """No message is made for an event that the logger would drop."""

    class Untouchable:
        def __getattr__(self, name: str) -> Any:
            assert name in ("job", "kind", "reason", "report", "stuck")
            return None

    logging.getLogger("jobs").setLevel(logging.CRITICAL)
    observer = LoggingObserver("jobs")
    untouchable: Any = Untouchable()
    untouchable.report = Untouchable()
    for name in dir(observer):
        if name.startswith("on_"):
            getattr(observer, name)(untouchable)
    assert log.records == []


def test_default_logger(caplog: pytest.LogCaptureFixture) -> None:
    """The default logger is that of the package."""
    LoggingObserver().on_task_failed(
        make_event(TaskFailed, error=OSError(), duration=1, final=True)
    )
    assert [record.name for record in caplog.records] == ["background"]


def test_logger_instance(log: ListHandler) -> None:
    """A `logging.Logger` may be passed instead of its name."""
    observer = LoggingObserver(logging.getLogger("jobs"), failed="DEBUG")
    observer.on_task_failed(make_event(TaskFailed, error=OSError(), duration=1, final=True))
    assert [record.levelname for record in log.records] == ["DEBUG"]


@pytest.mark.parametrize("level", [0, -1, True, None, "", "info", "LOUD", "NOTSET", 10.0, b"INFO"])
@pytest.mark.parametrize("name", EVENTS)
def test_invalid_level(name: str, level: Any) -> None:
    """An invalid level is refused."""
    with pytest.raises(ValueError, match=rf"^{name} must be a level .*, not {level!r}$"):
        LoggingObserver(**{name: level})


def test_unknown_event() -> None:
    """A level for an unknown event is refused."""
    with pytest.raises(TypeError, match="no event finished; its events are added, started,"):
        LoggingObserver(finished=10)  # type: ignore[call-arg]


@pytest.mark.parametrize("logger", [None, 1, logging, logging.LoggerAdapter(logging.root, {})])
def test_invalid_logger(logger: Any) -> None:
    """An invalid logger is refused."""
    with pytest.raises(ValueError, match=r"^logger must be a logging\.Logger or the name of one"):
        LoggingObserver(logger)


async def test_failure_logged_once(
    observer: LoggingObserver, log: ListHandler, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure that the observer logs is not logged by the package, too."""
    async with Manager(observers=[observer]) as manager:
        handle = manager.run(broken)
        assert await handle.wait() is TaskStatus.FAILED
    assert log.of("failed after")
    assert [record for record in caplog.records if record.name == "background"] == []


async def test_escaped_unreported_failure(caplog: pytest.LogCaptureFixture) -> None:
    """The package's own record of an unreported failure is escaped."""
    async with Manager() as manager:
        manager.run_task(Task(broken, name=EVIL, id=EVIL))
    (record,) = caplog.records
    assert record.getMessage().isprintable()
