"""Spans and metrics of `OpenTelemetryObserver`, as the SDK receives them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import Span, SpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.semconv._incubating.attributes.messaging_attributes import (
    MESSAGING_DESTINATION_NAME,
    MESSAGING_MESSAGE_ID,
    MESSAGING_OPERATION_NAME,
    MESSAGING_OPERATION_TYPE,
    MESSAGING_SYSTEM,
)
from opentelemetry.semconv.attributes.code_attributes import CODE_FUNCTION_NAME, CODE_STACKTRACE
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.exception_attributes import (
    EXCEPTION_MESSAGE,
    EXCEPTION_STACKTRACE,
    EXCEPTION_TYPE,
)
from opentelemetry.trace import SpanKind, StatusCode
from support.outcomes import (
    JOBS,
    LOOP,
    SCENARIOS,
    TWICE,
    Flaky,
    JobScenario,
    Scenario,
    broken,
    fine,
    nap,
    play,
    play_job,
)
from support.processes.process import PROGRAMS, running
from support.telemetry import Telemetry, attributes, ids
from tenacity import AsyncRetrying, retry_if_result, stop_after_attempt, wait_fixed

from background import JobRef, Manager, Observer, Task, TaskKind, TaskStarted, every
from background.observers.otel import OpenTelemetryObserver
from background.queues import JobQueue
from background.queues.memory import MemoryBroker
from background.testing import virtual_wall_clock


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture
def observer(telemetry: Telemetry) -> OpenTelemetryObserver:
    return telemetry.observer()


async def test_span_of_run(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """A run has a span with the task's name and outcome, in a trace of its own."""
    async with Manager(observers=[observer]) as manager:
        await manager.run_task(Task(fine, id="7", name="send mail"))
        await manager.run(fine)
    span, next_span = telemetry.spans
    assert (span.name, next_span.name) == ("send mail", "fine")
    own = {name: value for name, value in attributes(span).items() if "." not in name}
    assert own == {
        "id": "7",
        "kind": "one-off",
        "queue_time": 0.0,
        "attempts": 1,
        "outcome": "succeeded",
    }
    assert span.kind is SpanKind.INTERNAL
    assert span.status.status_code is StatusCode.UNSET
    assert (span.events, span.links, span.parent) == ((), (), None)
    assert span.context.trace_id != next_span.context.trace_id
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "background"


async def test_function_name(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """A span has the qualified name of the function, whatever the task's name."""
    async with Manager(observers=[observer]) as manager:
        for fn in (fine, partial(nap, 1), Flaky(0)):
            await manager.run_task(Task(fn, name="send mail"))
    named = [attributes(span)[CODE_FUNCTION_NAME] for span in telemetry.spans]
    assert named == [f"support.outcomes.{name}" for name in ("fine", "nap", "Flaky")]


async def test_spans_of_iterations(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """Iterations have sibling spans with their own outcomes."""
    async with Manager(observers=[observer]) as manager:
        with telemetry.tracer.start_as_current_span("request"):
            manager.run_task(Task(Flaky(1), kind=LOOP, schedule=every(10)))
        await anyio.sleep(25)
    request, *iterations = telemetry.spans
    outcomes = [(attributes(span)["iteration"], attributes(span)["outcome"]) for span in iterations]
    assert outcomes == [(1, "failed"), (2, "succeeded"), (3, "succeeded")]
    assert {attributes(span)["kind"] for span in iterations} == {"loop"}
    assert {ids(span.parent) for span in iterations} == {ids(request.context)}


async def test_iteration_of_stopped_loop(
    telemetry: Telemetry, observer: OpenTelemetryObserver
) -> None:
    """The outcome of an iteration does not change if its loop is stopped afterwards."""
    await play(SCENARIOS["loop stopped in an iteration"], observer)  # type: ignore[arg-type]
    assert [attributes(span)["outcome"] for span in telemetry.spans] == ["succeeded"] * 2
    assert all("cancel_reason" not in attributes(span) for span in telemetry.spans)


async def test_failure(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """The span of a failed run has the status error and one event with the exception."""
    async with Manager(observers=[observer]) as manager:
        await manager.run(broken).wait()
    span = telemetry.span
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "ValueError: broken"
    assert attributes(span)["outcome"] == "failed"
    assert attributes(span)[ERROR_TYPE] == "ValueError"
    (event,) = span.events
    assert event.name == "exception"
    assert event.attributes is not None
    assert event.attributes[EXCEPTION_TYPE] == "ValueError"
    assert event.attributes[EXCEPTION_MESSAGE] == "broken"
    assert 'raise ValueError("broken")' in str(event.attributes[EXCEPTION_STACKTRACE])


class CustomError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


async def test_unprintable_error(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """An error whose `__str__` raises is recorded with a placeholder."""

    async def fail() -> None:
        raise CustomError

    async with Manager(observers=[observer]) as manager:
        await manager.run_task(Task(fail, retry=TWICE)).wait()
    span = telemetry.span
    name = f"{__name__}.CustomError"
    assert attributes(span)[ERROR_TYPE] == name
    assert span.status.description == f"{name}: (can't be printed)"
    assert span.events[0].attributes is not None
    assert span.events[0].attributes[EXCEPTION_MESSAGE] == "(can't be printed)"


async def test_retries(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """A retry is an event of the span, and does not change the span's status."""
    async with Manager(observers=[observer]) as manager:
        await manager.run_task(Task(Flaky(2), retry=AsyncRetrying(wait=wait_fixed(5))))
    span = telemetry.span
    assert [event.name for event in span.events] == ["background.task.retry"] * 2
    assert [attributes(event) for event in span.events] == [
        {"attempt": attempt, "delay": 5.0, EXCEPTION_TYPE: "ValueError", EXCEPTION_MESSAGE: "flaky"}
        for attempt in (1, 2)
    ]
    assert attributes(span)["attempts"] == 3
    assert attributes(span)["outcome"] == "succeeded"
    assert span.status.status_code is StatusCode.UNSET


async def test_last_error(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """Only the error of the last attempt is recorded as an exception."""
    async with Manager(observers=[observer]) as manager:
        await manager.run_task(Task(broken, retry=TWICE)).wait()
    names = [event.name for event in telemetry.span.events]
    assert names == ["background.task.retry", "exception"]


async def test_refused_result(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """A retry after a refused result has no error."""
    policy = AsyncRetrying(stop=stop_after_attempt(2), retry=retry_if_result(bool))
    async with Manager(observers=[observer]) as manager:
        await manager.run_task(Task(fine, retry=policy)).wait()
    retry, _ = telemetry.span.events
    assert attributes(retry) == {"attempt": 1, "delay": 0.0}
    assert telemetry.values("retries") == {("fine", "one-off"): 1}
    assert attributes(telemetry.span)[ERROR_TYPE] == "tenacity.RetryError"


@pytest.mark.parametrize("reason", ["enough", None])
async def test_cancellation(
    reason: str | None, telemetry: Telemetry, observer: OpenTelemetryObserver
) -> None:
    """A cancellation is an outcome with a reason, not an error."""
    async with Manager(observers=[observer]) as manager:
        handle = manager.run(nap)
        await anyio.sleep(1)
        handle.cancel(reason)
    span = telemetry.span
    assert attributes(span)["outcome"] == "cancelled"
    assert attributes(span).get("cancel_reason") == reason
    assert ERROR_TYPE not in attributes(span)
    assert (span.status.status_code, span.events) == (StatusCode.UNSET, ())


async def test_cancellation_in_own_span(telemetry: Telemetry) -> None:
    """A span that an observer of the application makes around a task is no error, either."""

    class Spans(Observer):
        def around_task(self, event: TaskStarted) -> AbstractContextManager[object]:
            return telemetry.tracer.start_as_current_span(event.name)

    async with Manager(observers=[Spans()]) as manager:
        manager.run(nap)
        await anyio.sleep(1)
        await manager.close(timeout=0)
    span = telemetry.span
    assert (span.status.status_code, span.events) == (StatusCode.UNSET, ())


async def test_expiry(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """The end of the lifespan is an error without an exception."""
    async with Manager(observers=[observer]) as manager:
        manager.run_task(Task(nap, lifespan=2))
    span = telemetry.span
    assert attributes(span)["outcome"] == attributes(span)[ERROR_TYPE] == "expired"
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "outlived its lifespan of 2 s"
    assert span.events == ()


async def test_stall(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """A stall is an event of the span, with the stack."""

    async def hang() -> None:
        await anyio.sleep(10)  # hangs here

    async with Manager(observers=[observer]) as manager:
        handle = manager.run(hang)
        await anyio.sleep(3)
        manager.report_stall(handle.id, elapsed=3)
    (event,) = telemetry.span.events
    assert event.name == "background.task.stalled"
    assert attributes(event)["attempt"] == 1
    assert attributes(event)["elapsed"] == 3.0
    assert "await anyio.sleep(10)  # hangs here" in attributes(event)[CODE_STACKTRACE]


async def test_current_span(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """Spans and tasks that a function creates are children of its task's span."""

    async def work() -> None:
        with telemetry.tracer.start_as_current_span("query"):
            await anyio.sleep(1)
        manager.after(5, fine)

    async with Manager(observers=[observer]) as manager:
        await manager.run_task(Task(work, name="work"))
        await manager.wait()
    spans = {span.name: span for span in telemetry.spans}
    assert ids(spans["query"].parent) == ids(spans["fine"].parent) == ids(spans["work"].context)


@pytest.mark.realtime
async def test_current_span_in_thread(
    telemetry: Telemetry, observer: OpenTelemetryObserver
) -> None:
    """The span is current in the thread of a sync function."""

    def work() -> tuple[int, int]:
        return ids(trace.get_current_span().get_span_context())

    async with Manager(observers=[observer]) as manager:
        seen = await manager.run(work)
    assert seen == ids(telemetry.span.context)


@pytest.mark.parametrize("kind", ["run", "after", "retry"])
async def test_parent_has_ended(
    kind: str, telemetry: Telemetry, observer: OpenTelemetryObserver
) -> None:
    """A span is a child of the submitter's span, even if that has ended."""
    async with Manager(observers=[observer]) as manager:
        with telemetry.tracer.start_as_current_span("request"):
            if kind == "run":
                manager.run(fine)
            elif kind == "after":
                manager.after(50, fine)
            else:
                manager.run_task(Task(Flaky(1), retry=TWICE))
        assert [span.name for span in telemetry.spans] == ["request"]
        await manager.wait()
    request, span = telemetry.spans
    assert ids(span.parent) == ids(request.context)
    assert span.context.trace_id == request.context.trace_id
    assert span.links == ()
    assert span.start_time is not None
    assert request.end_time is not None
    assert span.start_time > request.end_time


async def test_linked_span(telemetry: Telemetry) -> None:
    """A linked span has its own trace, a link to the submitter's span, and its baggage."""

    async def work() -> object:
        return baggage.get_baggage("user")

    async with Manager(observers=[telemetry.observer(linked=True)]) as manager:
        token = context.attach(baggage.set_baggage("user", "ada"))
        with telemetry.tracer.start_as_current_span("request"):
            handle = manager.after(50, work)
        context.detach(token)
        assert await handle == "ada"
    request, span = telemetry.spans
    (link,) = span.links
    assert ids(link.context) == ids(request.context)
    assert span.parent is None
    assert span.context.trace_id != request.context.trace_id


class StartRecorder(SpanProcessor):
    """Records the contexts in which spans start."""

    def __init__(self) -> None:
        self.contexts: list[context.Context | None] = []

    def on_start(self, span: Span, parent_context: context.Context | None = None) -> None:
        self.contexts.append(parent_context)


async def test_baggage_at_start_of_linked_span(telemetry: Telemetry) -> None:
    """Span processors receive the submitter's baggage when a linked span starts."""
    starts = StartRecorder()
    telemetry.tracers.add_span_processor(starts)
    async with Manager(observers=[telemetry.observer(linked=True)]) as manager:
        token = context.attach(baggage.set_baggage("user", "ada"))
        manager.run(fine)
        context.detach(token)
    assert [baggage.get_baggage("user", parent) for parent in starts.contexts] == ["ada"]


class LinkRecorder(Sampler):
    """Records the links with which spans are created."""

    def __init__(self) -> None:
        self.links: list[Sequence[trace.Link] | None] = []

    def should_sample(
        self,
        parent_context: context.Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Any = None,
        links: Sequence[trace.Link] | None = None,
        trace_state: trace.TraceState | None = None,
    ) -> SamplingResult:
        self.links.append(links)
        return SamplingResult(Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "links"


async def test_linked_span_without_submitter(telemetry: Telemetry) -> None:
    """A linked span has no link if the submitter has no span."""
    sampler = telemetry.tracers.sampler = LinkRecorder()
    async with Manager(observers=[telemetry.observer(linked=True)]) as manager:
        await manager.run(fine)
    assert telemetry.span.parent is None
    assert [list(links or ()) for links in sampler.links] == [[]]


async def test_context_of_other_observers(observer: OpenTelemetryObserver) -> None:
    """The current span of an outer observer is the same before and after the run."""
    seen: list[trace.Span] = []

    class Outer(Observer):
        @contextmanager
        def around_task(self, event: TaskStarted) -> Iterator[None]:
            seen.append(trace.get_current_span())
            yield
            seen.append(trace.get_current_span())

    async with Manager(observers=[Outer(), observer]) as manager:
        await manager.run(fine)
    assert seen == [trace.INVALID_SPAN] * 2


async def test_span_of_submitter(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """The submitter's current span does not change."""
    async with Manager(observers=[observer]) as manager:
        with telemetry.tracer.start_as_current_span("request") as request:
            await manager.run(fine)
            assert trace.get_current_span() is request
        assert trace.get_current_span() is trace.INVALID_SPAN


async def test_observer_of_task(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """An observer of a single task records that task only."""
    async with Manager() as manager:
        await manager.run_task(Task(fine, observers=(observer,)))
        await manager.run(fine)
    assert telemetry.span.name == "fine"
    assert telemetry.values("finished") == {("fine", "one-off", "succeeded"): 1}


async def test_shared_observer(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """Two managers can share an observer."""
    async with (
        Manager(observers=[observer]) as first,
        Manager(observers=[observer]) as second,
    ):
        first.run(nap, 3)
        second.run(broken)
    outcomes = {span.name: attributes(span)["outcome"] for span in telemetry.spans}
    assert outcomes == {"nap": "succeeded", "broken": "failed"}


# Metrics


async def test_counters(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """Added and finished tasks and retries are counted by name, kind, outcome and error."""
    async with Manager(observers=[observer]) as manager:
        await manager.run(fine)
        await manager.run(fine)
        await manager.run_task(Task(broken, retry=TWICE)).wait()
        await manager.run_task(Task(nap, lifespan=1)).wait()
        manager.after(5, nap).cancel()
        manager.every(10, fine)
        await anyio.sleep(15)
    assert telemetry.values("added") == {
        ("fine", "one-off"): 2,
        ("broken", "one-off"): 1,
        ("nap", "one-off"): 2,
        ("fine", "loop"): 1,
    }
    assert telemetry.values("finished") == {
        ("fine", "one-off", "succeeded"): 2,
        ("broken", "one-off", "failed", "ValueError"): 1,
        ("nap", "one-off", "expired", "expired"): 1,
        ("nap", "one-off", "cancelled"): 1,
        ("fine", "loop", "cancelled"): 1,
    }
    assert telemetry.values("retries") == {("broken", "one-off", "ValueError"): 1}


async def test_durations(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """The duration of a run or iteration includes retries; a task that never ran has none."""
    async with Manager(observers=[observer]) as manager:
        manager.run(nap, 3)
        manager.run(nap, 4)
        manager.run_task(Task(broken, retry=TWICE))
        manager.after(100, fine).cancel()
        manager.run_task(Task(nap, args=(2,), name="loop", kind=LOOP, schedule=every(10)))
        await anyio.sleep(21)
        assert manager.tasks()[-1].cancel()
    measured = {
        key: (point.count, round(point.sum, 3))
        for key, point in telemetry.points("duration").items()
    }
    assert measured == {
        ("nap", "one-off", "succeeded"): (2, 7),
        ("broken", "one-off", "failed", "ValueError"): (1, 5),
        ("loop", "loop", "succeeded"): (2, 4),
        ("loop", "loop", "cancelled"): (1, 1),
    }


async def test_queue_times(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """The queue time excludes the task's delay."""
    async with Manager(limit=1, observers=[observer]) as manager:
        manager.run(nap, 10)
        manager.run(nap, 1)
        manager.after(2, fine)
        await manager.wait()
    measured = {key: round(point.sum, 3) for key, point in telemetry.points("queue_time").items()}
    assert measured == {("nap", "one-off"): 10, ("fine", "one-off"): 9}
    queue_times = {round(attributes(span)["queue_time"], 3) for span in telemetry.spans}
    assert queue_times == {0, 10, 9}


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
async def test_every_outcome(scenario: Scenario, telemetry: Telemetry) -> None:
    """Every outcome is measured once, and no run remains active."""
    observer = telemetry.observer()
    handle = await play(scenario, observer)  # type: ignore[arg-type]
    assert sum(telemetry.values("added").values()) == sum(telemetry.values("finished").values())
    ended = [key for key in telemetry.values("finished") if key[0] == handle.name]
    assert handle.status in {key[2] for key in ended}
    if telemetry.spans:
        assert set(telemetry.values("active").values()) == {0}
        runs = sum(point.count for point in telemetry.points("duration").values())
        assert runs == len(telemetry.spans)
    for span in telemetry.spans:
        assert {"outcome", "attempts"} <= attributes(span).keys()
    assert observer._runs == {}


async def test_active_runs(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """The number of active runs includes one-offs and iterations in progress."""
    async with Manager(limit=2, observers=[observer]) as manager:
        for _ in range(3):
            manager.run(nap, 10)
        manager.every(10, nap, 2)
        await anyio.sleep(1)
        assert telemetry.values("active") == {("nap", "one-off"): 2, ("nap", "loop"): 1}
        await anyio.sleep(4)
        assert telemetry.values("active") == {("nap", "one-off"): 2, ("nap", "loop"): 0}
        await manager.close()
        assert telemetry.values("active") == {("nap", "one-off"): 0, ("nap", "loop"): 0}


async def test_stuck_task(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """A stuck task is active until it ends."""
    released = anyio.Event()

    async def stubborn() -> None:
        with anyio.CancelScope(shield=True):
            await released.wait()

    async with Manager(observers=[observer], cancel_timeout=1) as manager:
        handle = manager.run_task(Task(stubborn, name="stubborn"))
        await anyio.sleep(1)
        await manager.close(timeout=0)
        assert telemetry.values("active") == {("stubborn", "one-off"): 1}
        released.set()
        await handle.wait()
        await anyio.sleep(1)
    assert telemetry.values("active") == {("stubborn", "one-off"): 0}
    assert attributes(telemetry.span)["outcome"] == handle.status


async def test_units(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """Durations are in seconds, in suitable buckets; other metrics are counts."""
    async with Manager(observers=[observer]) as manager:
        await manager.run_task(Task(Flaky(1), retry=TWICE))
    units = {
        name: telemetry.metric(name).unit
        for name in ("added", "finished", "retries", "active", "duration", "queue_time")
    }
    assert units == {
        "added": "{task}",
        "finished": "{task}",
        "retries": "{retry}",
        "active": "{task}",
        "duration": "s",
        "queue_time": "s",
    }
    for name in ("duration", "queue_time"):
        (point,) = telemetry.points(name).values()
        assert (point.explicit_bounds[0], point.explicit_bounds[-1]) == (0.005, 3600)
    for metric in units:
        for point in telemetry.metric(metric).data.data_points:
            names = [name.removeprefix("background.task.") for name in point.attributes]
            assert set(names) <= {"name", "kind", "outcome", ERROR_TYPE}


# Jobs


@pytest.mark.parametrize("scenario", JOBS.values(), ids=JOBS)
async def test_every_job_outcome(scenario: JobScenario, telemetry: Telemetry) -> None:
    """Every attempt of a job is a run with a consumer span, is measured once, and ends."""
    observer = telemetry.observer()
    id = await play_job(scenario, observer)
    assert sum(telemetry.values("added").values()) == sum(telemetry.values("finished").values())
    if telemetry.spans:
        assert set(telemetry.values("active").values()) == {0}
        runs = sum(point.count for point in telemetry.points("duration").values())
        assert runs == len(telemetry.spans)
    names = scenario.order.split()
    spans = [span for span in telemetry.spans if span.name == "job"]
    assert len(spans) == names.count("started")
    ends = [name for name in names if name in ("retrying", "succeeded", "failed", "cancelled")]
    if not scenario.queued:
        assert [attributes(span)["outcome"] for span in spans] == ends
    for number, span in enumerate(spans, 1):
        assert span.kind is SpanKind.CONSUMER
        of_job = {
            name.removeprefix("background.job."): value
            for name, value in attributes(span).items()
            if name.startswith("background.job.")
        }
        assert of_job == {"id": id, "handler": "job", "queue": "mail", "attempt": number}
    assert observer._runs == {}


async def test_job_metrics(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """Enqueued and dead jobs, and the outcomes of attempts, are counted by queue."""
    for scenario in ("succeeds", "succeeds at last", "gives up at last", "refused results"):
        await play_job(JOBS[scenario], observer)
    assert telemetry.values("job.enqueued") == {("job", "mail"): 4}
    assert telemetry.values("job.dead") == {
        ("job", "mail", "ValueError"): 1,
        ("job", "mail", "tenacity.RetryError"): 1,
    }
    assert telemetry.values("finished") == {
        ("job", "one-off", "mail", "succeeded"): 2,
        ("job", "one-off", "mail", "retrying", "ValueError"): 2,
        ("job", "one-off", "mail", "retrying"): 1,
        ("job", "one-off", "mail", "failed", "ValueError"): 1,
        ("job", "one-off", "mail", "failed", "tenacity.RetryError"): 1,
    }
    assert telemetry.values("retries") == {
        ("job", "one-off", "mail", "ValueError"): 2,
        ("job", "one-off", "mail"): 1,
    }
    units = {name: telemetry.metric(f"job.{name}").unit for name in ("enqueued", "dead")}
    assert units == {"enqueued": "{job}", "dead": "{job}"}


async def test_job_attempt_before_retry(
    telemetry: Telemetry, observer: OpenTelemetryObserver
) -> None:
    """The span of an attempt that is retried has its error, and its duration is measured."""
    jobs = JobQueue(MemoryBroker())
    slow = jobs.handler(name="slow", retry=TWICE, timeout=3)(nap)
    async with Manager(observers=[observer]) as manager, jobs:
        await jobs.start(manager)
        await (await slow.enqueue(100)).wait()
    first, second = telemetry.spans
    assert [event.name for event in first.events] == ["background.task.retry", "exception"]
    assert first.status.status_code is StatusCode.ERROR
    assert str(first.status.description).startswith("TimeoutError: an attempt of task 'slow' took")
    assert attributes(first)[ERROR_TYPE] == "TimeoutError"
    assert attributes(first)["attempts"] == 1
    assert attributes(first.events[0])["delay"] == 5.0
    assert [event.name for event in second.events] == ["exception"]
    durations = {key[3]: point.sum for key, point in telemetry.points("duration").items()}
    assert durations == {"retrying": pytest.approx(3), "failed": pytest.approx(3)}


async def test_refused_result_of_job(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """A refused result of a job that is retried is not an error."""
    await play_job(JOBS["refused results"], observer)
    first, _ = telemetry.spans
    assert [event.name for event in first.events] == ["background.task.retry"]
    assert first.status.status_code is StatusCode.UNSET
    assert ERROR_TYPE not in attributes(first)


async def test_job_queue_time(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """A job's queue time lasts from enqueueing to its first attempt, its delay included."""
    jobs = JobQueue(MemoryBroker())
    handler = jobs.handler(name="job", retry=TWICE)(broken)
    with virtual_wall_clock(datetime(2030, 1, 1, tzinfo=UTC)):
        async with Manager(observers=[observer]) as manager, jobs:
            await handler.enqueue()
            job = await handler.options(delay=10).enqueue()
            await anyio.sleep(7)
            await jobs.start(manager)
            await job.wait()
            await manager.wait()
    (point,) = telemetry.points("job.queue_time").values()
    assert (point.count, round(point.sum, 3)) == (2, 17)
    assert (point.explicit_bounds[0], point.explicit_bounds[-1]) == (0.005, 3600)
    assert telemetry.metric("job.queue_time").unit == "s"
    assert sum(point.count for point in telemetry.points("queue_time").values()) == 4


async def test_enqueuer_clock_ahead(telemetry: Telemetry) -> None:
    """A job's queue time is not negative if the enqueuer's clock is ahead.

    The SDK would refuse a negative value with a warning.
    """
    job = JobRef(id="7", handler="send", queue="mail", attempt=1, enqueued_at=100.0)
    names = [field.name for field in dataclasses.fields(TaskStarted)]
    fields: dict[str, Any] = {**dict.fromkeys(names), "id": "7", "name": "send", "job": job}
    fields |= {"kind": TaskKind.ONE_OFF, "time": 40.0, "queued_for": 0.0, "fn": fine}
    with telemetry.observer().around_task(TaskStarted(**fields)):
        pass
    (point,) = telemetry.points("job.queue_time").values()
    assert (point.count, point.sum) == (1, 0)


class DroppingSampler(Sampler):
    """Drops root spans."""

    def should_sample(
        self, parent_context: context.Context | None, *args: Any, **kwargs: Any
    ) -> SamplingResult:
        is_root = not trace.get_current_span(parent_context).get_span_context().is_valid
        return SamplingResult(Decision.DROP if is_root else Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "no roots"


@pytest.mark.parametrize("origin", ["parent", "link", None])
@pytest.mark.parametrize("linked", [False, True])
async def test_trace_of_job(origin: Any, linked: bool, telemetry: Telemetry) -> None:
    """A job belongs to its enqueuer's trace, or has a link to it, or neither, as `trace` says."""
    broker = MemoryBroker()
    enqueuing, processing = JobQueue(broker), JobQueue(broker)
    processing.handler(name="send", retry=TWICE)(Flaky(1))
    async with enqueuing:
        with telemetry.tracer.start_as_current_span("request"):
            job = await enqueuing.enqueue("send")
    worker_telemetry = Telemetry()
    observer = worker_telemetry.observer(linked=linked, trace=origin)
    async with Manager(observers=[observer]) as manager, processing:
        await processing.start(manager)
        await processing.handle(job.id).wait()
    (request,) = telemetry.spans
    for attempt in worker_telemetry.spans:
        parent = ids(attempt.parent) if attempt.parent is not None else None
        assert parent == (ids(request.context) if origin == "parent" else None)
        assert [ids(link.context) for link in attempt.links] == (
            [ids(request.context)] if origin == "link" else []
        )
        same_trace = attempt.context.trace_id == request.context.trace_id
        assert same_trace == (origin == "parent")
    assert len(worker_telemetry.spans) == 2


@pytest.mark.parametrize("origin", ["link", None])
async def test_sampling_of_job(origin: Any, telemetry: Telemetry) -> None:
    """The sampling of the enqueuer's trace does not apply to a job with a trace of its own."""
    jobs = JobQueue(MemoryBroker())
    handler = jobs.handler(name="send")(fine)
    sampled = trace.SpanContext(0xA, 0xB, is_remote=True, trace_flags=trace.TraceFlags(1))
    telemetry.tracers.sampler = DroppingSampler()
    async with Manager(observers=[telemetry.observer(trace=origin)]) as manager, jobs:
        await jobs.start(manager)
        with trace.use_span(trace.NonRecordingSpan(sampled)):
            job = await handler.enqueue()
        await job.wait()
    assert telemetry.spans == []


def test_invalid_arguments() -> None:
    """The error of an invalid argument begins with its name."""
    for value in ("root", "", False, 1):
        with pytest.raises(ValueError, match=r"^trace must be 'parent', 'link' or None, not"):
            OpenTelemetryObserver(trace=value)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^linked must be True or False, not"):
        OpenTelemetryObserver(linked="link")  # type: ignore[arg-type]


async def test_messaging_attributes(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """Enqueueing and an attempt have spans with the attributes of the messaging conventions."""
    jobs = JobQueue(MemoryBroker())
    handler = jobs.handler(name="send", queue="mail")(fine)
    async with Manager(observers=[observer]) as manager, jobs:
        await jobs.start(manager)
        with telemetry.tracer.start_as_current_span("request"):
            job = await handler.enqueue()
        await job.wait()
    (producer,) = telemetry.producers
    spans = {span.name: span for span in telemetry.spans}
    request, consumer = spans["request"], spans["send"]
    assert (producer.name, producer.kind) == ("enqueue mail", SpanKind.PRODUCER)
    assert ids(producer.parent) == ids(consumer.parent) == ids(request.context)
    expected = {
        MESSAGING_SYSTEM: "background",
        MESSAGING_DESTINATION_NAME: "mail",
        MESSAGING_MESSAGE_ID: job.id,
        "background.job.id": job.id,
        "background.job.handler": "send",
        "background.job.queue": "mail",
    }
    assert producer.attributes == {
        **expected,
        MESSAGING_OPERATION_NAME: "enqueue",
        MESSAGING_OPERATION_TYPE: "send",
    }
    expected |= {MESSAGING_OPERATION_NAME: "process", MESSAGING_OPERATION_TYPE: "process"}
    assert consumer.kind is SpanKind.CONSUMER
    assert consumer.attributes is not None
    assert expected.items() <= consumer.attributes.items()


async def test_job_without_trace(telemetry: Telemetry) -> None:
    """A job that was enqueued outside of a trace starts one, wherever its worker was started."""
    jobs = JobQueue(MemoryBroker())
    handler = jobs.handler(name="send")(fine)
    async with Manager(observers=[telemetry.observer()]) as manager, jobs:
        with telemetry.tracer.start_as_current_span("startup"):
            await jobs.start(manager)
        await (await handler.enqueue()).wait()
    spans = {span.name: span for span in telemetry.spans}
    assert spans["send"].parent is None
    assert spans["send"].context.trace_id != spans["startup"].context.trace_id


async def test_job_enqueued_by_job(telemetry: Telemetry, observer: OpenTelemetryObserver) -> None:
    """A job that a job enqueues belongs to the latter's trace."""
    jobs = JobQueue(MemoryBroker())
    inner = jobs.handler(name="inner")(fine)

    @jobs.handler(name="outer")
    async def outer() -> None:
        await inner.enqueue()

    async with Manager(observers=[observer]) as manager, jobs:
        await jobs.start(manager)
        await outer.enqueue()
        await anyio.sleep(1)
    spans = {span.name: span for span in telemetry.spans}
    assert ids(spans["inner"].parent) == ids(spans["outer"].context)


def test_trace_across_processes(tmp_path: Path) -> None:
    """A job belongs to the trace of its enqueuer in another process."""
    script = PROGRAMS / "traced_job.py"
    url = f"sqlite:///{tmp_path.as_posix()}/jobs.db"
    with running(script, "enqueue", url) as enqueuer:
        trace_id, span_id = enqueuer.wait_for("enqueued").split()[1:]
        assert enqueuer.wait() == 0
    with running(script, "work", url) as worker:
        assert worker.wait_for("worked") == f"worked {trace_id} {span_id} CONSUMER"
        assert worker.wait() == 0


# Without the SDK


@pytest.mark.parametrize("linked", [False, True])
async def test_remote_parent_without_sdk(linked: bool) -> None:
    """A task belongs to its submitter's trace without the SDK, too."""
    remote = trace.SpanContext(0x1234, 0x5678, is_remote=True)

    async def work() -> int:
        return trace.get_current_span().get_span_context().trace_id

    async with Manager(observers=[OpenTelemetryObserver(linked=linked)]) as manager:
        with trace.use_span(trace.NonRecordingSpan(remote)):
            handle = manager.run(work)
        assert await handle == (0 if linked else 0x1234)


def run_program(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


PROGRAM = """
    import sys
    {before}
    import anyio
    from background import Manager, Task
    from background.observers.otel import OpenTelemetryObserver

    calls = []

    def work():
        calls.append("work")
        if len(calls) < 3:
            raise ValueError("flaky")
        return "done"

    async def main():
        observers = [OpenTelemetryObserver(), OpenTelemetryObserver(linked=True)]
        {between}
        async with Manager(observers=observers) as manager:
            handle = manager.run_task(Task(work, retry=3, name="work"))
            manager.loop(anyio.sleep, 0)
            print(await handle)
            await anyio.sleep(0)
            manager.report_stall(manager.run(anyio.sleep_forever).id, elapsed=1)
            await manager.close(timeout=0)

    anyio.run(main)
    {after}
"""


def test_api_without_sdk() -> None:
    """The observer works without the SDK, and nothing is printed."""
    program = PROGRAM.format(
        before="sys.modules['opentelemetry.sdk'] = None",
        between="",
        after="print([name for name in sys.modules if name.startswith('opentelemetry.s')])",
    )
    assert run_program(program) == "done\n['opentelemetry.sdk']\n"


def test_global_providers_set_later() -> None:
    """Global providers may be set after the observer was created."""
    program = PROGRAM.format(
        before="""
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    exporter, reader, tracers = InMemorySpanExporter(), InMemoryMetricReader(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    """,
        between="trace.set_tracer_provider(tracers); "
        "metrics.set_meter_provider(MeterProvider([reader]))",
        after="""
    print([span.name for span in exporter.get_finished_spans()].count("work"))
    (resource,) = reader.get_metrics_data().resource_metrics
    print(sorted(metric.name for metric in resource.scope_metrics[0].metrics))
    """,
    )
    names = ["active", "added", "duration", "finished", "queue_time", "retries"]
    expected = [f"background.task.{name}" for name in names]
    assert run_program(program) == f"done\n2\n{expected}\n"
