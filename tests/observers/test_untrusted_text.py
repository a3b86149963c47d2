"""Text from outside in logs and telemetry: control characters, lone surrogates, great length."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support.brokers.faulty import FaultyBroker
from support.telemetry import Telemetry

from background import Manager, Task
from background.observers import LoggingObserver
from background.observers.otel import OpenTelemetryObserver
from background.queues import BrokerUnavailableError, JobQueue
from background.queues.abc import Message
from background.queues.memory import MemoryBroker
from background.testing import RecordingObserver

FORGED = "lost\n2030-01-01 CRITICAL forged \x1b[2K\r\u202e\ud800"
HUGE = "x" * 1_000_000


class LogFile:
    """A file in UTF-8, in memory."""

    def __init__(self) -> None:
        self._bytes = io.BytesIO()
        self.stream = io.TextIOWrapper(self._bytes, encoding="utf-8", write_through=True)

    @property
    def text(self) -> str:
        return self._bytes.getvalue().decode()


@pytest.fixture
def log_file() -> Iterator[LogFile]:
    """The records of the library's logger."""
    file = LogFile()
    handler = logging.StreamHandler(file.stream)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("background")
    logger.addHandler(handler)
    yield file
    logger.removeHandler(handler)


def fail(text: str, error: type[Exception] = ValueError) -> Any:
    async def broken() -> None:
        raise error(text)

    return broken


async def run_worker(broker: MemoryBroker, error: BrokerUnavailableError) -> None:
    """Run a worker whose first claim fails."""
    faulty = FaultyBroker(broker)
    faulty.fail("claim", error=error)
    async with Manager() as manager, JobQueue(faulty) as jobs:
        await jobs.start(manager, ["default"])
        await faulty.called("claim", 2)
        await manager.close(timeout=0)


async def test_server_text(log_file: LogFile) -> None:
    """The answer of a server forges no line in the library's log, and is cut."""
    await run_worker(MemoryBroker(), BrokerUnavailableError(FORGED))
    await run_worker(MemoryBroker(), BrokerUnavailableError(HUGE))
    lines = log_file.text.splitlines()
    assert [line for line in lines if line.startswith("2030")] == []
    (forged,) = [line for line in lines if "forged" in line]
    assert forged == (
        r"WARNING claiming jobs: lost\n2030-01-01 CRITICAL forged \x1b[2K\r\u202e\ud800; trying "
        "again"
    )
    assert max(map(len, lines)) < 1200


async def test_text_that_can_not_be_made(log_file: LogFile) -> None:
    """An error whose text can't be made is logged by its class."""

    class Odd(BrokerUnavailableError):
        def __str__(self) -> str:
            raise RuntimeError

    await run_worker(MemoryBroker(), Odd())
    assert "Odd that can't be printed>; trying again" in log_file.text


async def test_unreported_failure(log_file: LogFile) -> None:
    """Names, ids and tracebacks in the library's log can't control a terminal."""
    async with Manager() as manager:
        manager.run_task(Task(fail(FORGED), name=f"task {FORGED}", id=f"id {FORGED}"))
        await manager.wait()
    text = log_file.text
    first, *_, last = text.rstrip("\n").splitlines()
    assert first == (
        r"ERROR task 'task lost\n2030-01-01 CRITICAL forged \x1b[2K\r\u202e\ud800' "
        r"('id lost\n2030-01-01 CRITICAL forged \x1b[2K\r\u202e\ud800') failed"
    )
    assert last == r"  2030-01-01 CRITICAL forged \x1b[2K\r\u202e\ud800"
    assert "in broken" in text


async def fail_with_cause() -> None:
    try:
        raise OSError(FORGED) from KeyError(FORGED)  # the cause has no traceback
    except OSError as error:
        raise ValueError(f"{FORGED}\n\n  {FORGED}") from error


async def fail_in_group() -> None:
    raise ExceptionGroup(FORGED, [ValueError(FORGED), OSError(FORGED)])


async def fail_with_notes() -> None:
    error = ValueError("noted")
    error.add_note(f"Traceback (most recent call last):\n{FORGED}")
    error.add_note("2030-01-01 INFO also forged")
    raise error


async def fail_to_compile() -> None:
    raise SyntaxError(FORGED, (FORGED, 1, 1, f"text {FORGED}"))


async def fail_in_code() -> None:
    exec(compile("1 / 0", FORGED.replace("\ud800", ""), "exec"))


@pytest.mark.parametrize("observers", [[], [LoggingObserver()]], ids=["package", "observer"])
@pytest.mark.parametrize(
    "fn", [fail_with_cause, fail_in_group, fail_with_notes, fail_to_compile, fail_in_code]
)
async def test_lines_of_messages(
    log_file: LogFile, fn: Callable[[], Any], observers: list[LoggingObserver]
) -> None:
    """No line of a message, a note, a file name or code begins a line of a log."""
    async with Manager(observers=observers) as manager:
        manager.run(fn)
        await manager.wait()
    lines = log_file.text.splitlines()
    assert [line for line in lines if line.startswith("2030")] == []
    assert any(line.startswith("  ") and "forged" in line for line in lines)
    assert log_file.text.count("Traceback (most recent") >= 1


async def test_message_of_several_lines(log_file: LogFile) -> None:
    """The further lines of a message keep their form, two columns to the right."""
    async with Manager() as manager:
        manager.run(fail("1 error:\n\nname\n  is missing\n"))
        await manager.wait()
    assert log_file.text.endswith("\nValueError: 1 error:\n\n  name\n    is missing\n")


async def test_long_traceback(log_file: LogFile) -> None:
    """A traceback with a very long message is cut in its middle."""
    async with Manager() as manager:
        manager.run_task(Task(fail(HUGE), name="huge"))
        await manager.wait()
    text = log_file.text
    assert len(text) < 11_000
    assert "in broken" in text
    assert " … xxx" in text


async def test_disabled_logger(log_file: LogFile) -> None:
    """Nothing is formatted for a level that the logger ignores."""
    logger = logging.getLogger("background")
    logger.setLevel(logging.CRITICAL)
    try:
        async with Manager() as manager:
            manager.run(fail("unseen"))
            await manager.wait()
    finally:
        logger.setLevel(logging.NOTSET)
    assert log_file.text == ""


async def test_traceback_of_formatter(caplog: pytest.LogCaptureFixture) -> None:
    """An ordinary traceback is left to the handlers' formatters."""
    async with Manager(observers=[LoggingObserver()]) as manager:
        manager.run(fail("ordinary\ttext"))
        await manager.wait()
    (record,) = [record for record in caplog.records if record.exc_info]
    assert "ordinary" in str(record.exc_info)
    assert "ordinary        text" in record.exc_text or "ordinary\ttext" in record.exc_text


@pytest.mark.parametrize("text", [FORGED, HUGE], ids=["forged", "huge"])
async def test_logging_observer(log_file: LogFile, text: str) -> None:
    """LoggingObserver escapes and cuts messages and tracebacks, and loses no record."""
    async with Manager(observers=[LoggingObserver()]) as manager:
        manager.run_task(Task(fail(text), name=text, id=text))
        await manager.wait()
    logged = log_file.text
    assert not {"\x1b", "\r", "\u202e"} & {*logged}
    assert len(logged) < 20_000
    assert logged.splitlines()[0].startswith("ERROR task '")
    assert "in broken" in logged


async def test_traceback_that_can_not_be_made(log_file: LogFile) -> None:
    """A traceback that can't be made is left to the handlers."""

    class Odd(ValueError):
        __notes__ = property(lambda self: 1 / 0)  # type: ignore[assignment]

    async def broken() -> None:
        raise Odd("odd")

    for observers in ([], [LoggingObserver()]):
        async with Manager(observers=observers) as manager:
            manager.run(broken)
            await manager.wait()


def strings(value: Any) -> Iterator[str]:
    """Return all strings in an exported span or metric."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from strings(key)
            yield from strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings(item)


@pytest.mark.parametrize("text", [FORGED, HUGE], ids=["surrogate", "huge"])
async def test_telemetry(text: str) -> None:
    """Spans and metrics have text that exporters accept."""
    telemetry = Telemetry()
    observer = telemetry.observer()
    odd = type("Odd", (ValueError,), {"__qualname__": f"ValueError{FORGED}"})
    async with Manager(observers=[observer], retry=2) as manager:
        manager.run_task(Task(fail(text, odd), name=text, id=text))
        await manager.wait()
        stalled = manager.run(anyio.sleep_forever)
        while not stalled.started_at:
            await anyio.lowlevel.checkpoint()
        stalled.cancel(text)
    found: list[str] = []
    for span in telemetry.spans:
        found += [span.name, span.status.description or ""]
        found += strings(dict(span.attributes or {}))
        for event in span.events:
            found += strings(dict(event.attributes or {}))
    for name in ("added", "finished", "retries", "duration"):
        for point in telemetry.metric(name).data.data_points:
            found += strings(dict(point.attributes))
    for one in found:
        one.encode()
    assert max(map(len, found)) < 11_000
    assert any("ValueError" in one and "in broken" in one for one in found)


async def test_without_sdk() -> None:
    """Without a tracer provider, no traceback is made for a span that records nothing."""

    class Untouchable(ValueError):
        asked = 0

        def __str__(self) -> str:
            type(self).asked += 1
            return "text"

    async def broken() -> None:
        raise Untouchable

    async with Manager(observers=[OpenTelemetryObserver()]) as manager:
        manager.run(broken)
        await manager.wait()
    assert Untouchable.asked == 1  # for the status


async def test_unknown_handlers(recorder: RecordingObserver) -> None:
    """Names of unknown handlers make no metrics and no names of spans."""
    telemetry = Telemetry()
    broker = MemoryBroker()
    jobs = JobQueue(broker, unknown_for=0)
    jobs.handler(name="known")(fail("known"))
    async with Manager(observers=[telemetry.observer(), recorder]) as manager, jobs:
        for number in range(3):
            names = {"handler": f"foreign-{number}", "queue": "default"}
            times = {"retention": 60, "dead_retention": 60}
            await broker.enqueue([Message(id=str(number), body=b"{}", **names, **times)])  # type: ignore[arg-type]
        known = await jobs.enqueue("known")
        await jobs.start(manager)
        for id in ("0", "1", "2", known.id):
            await jobs.handle(id).wait()
        await manager.close()
    assert {span.name for span in telemetry.spans} == {"known", "unknown handler"}
    foreign = {
        span.attributes["background.job.handler"]
        for span in telemetry.spans
        if span.attributes and span.name == "unknown handler"
    }
    assert foreign == {"foreign-0", "foreign-1", "foreign-2"}
    for name in ("added", "finished", "active", "duration", "job.dead", "job.queue_time"):
        seen = {value for key in telemetry.points(name) for value in key}
        assert not {value for value in seen if str(value).startswith("foreign")}
        assert "unknown handler" in seen
