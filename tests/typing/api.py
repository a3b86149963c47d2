"""Type checks of the public API; this module never runs.

Expected errors are ignored; both checkers report an ignored error that does not occur.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import functools
import signal
from collections.abc import Awaitable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from traceback import FrameSummary
from typing import Any, assert_type

import tenacity
from tenacity import AsyncRetrying

from background import (
    CloseReport,
    Health,
    JobDead,
    JobEnqueued,
    JobRef,
    Manager,
    ManagerClosed,
    ManagerClosing,
    ManagerState,
    Observer,
    Retry,
    Schedule,
    Submission,
    Task,
    TaskAdded,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
    TaskHandle,
    TaskKind,
    TaskRetrying,
    TaskStalled,
    TaskStarted,
    TaskStatus,
    TaskSucceeded,
    cron,
    every,
    retry_on,
    task,
)
from background.testing import RecordingObserver, virtual_time, virtual_wall_clock

# Functions of tasks


async def fetch(url: str, *, retries: int = 0) -> bytes:
    return url.encode()


def resize(width: int, height: int = 0) -> str:
    return f"{width}x{height}"


async def nothing() -> None: ...


def returns_awaitable(url: str) -> Awaitable[bytes]:
    return fetch(url)


class Client:
    async def get(self, url: str) -> bytes:
        return await fetch(url)

    def close(self) -> None: ...

    async def __call__(self, number: int) -> float:
        return float(number)


client = Client()


# run, after: the type of the result of async and sync functions


async def results(manager: Manager) -> None:
    assert_type(manager.run(fetch, "a"), TaskHandle[bytes])
    assert_type(manager.run(fetch, "a", retries=2), TaskHandle[bytes])
    assert_type(manager.run(resize, 1, height=2), TaskHandle[str])
    assert_type(manager.run(nothing), TaskHandle[None])
    assert_type(manager.run(returns_awaitable, "a"), TaskHandle[bytes])
    assert_type(manager.run(lambda: fetch("a")), TaskHandle[bytes])
    assert_type(manager.run(lambda: resize(1)), TaskHandle[str])
    assert_type(manager.run(lambda: 1), TaskHandle[int])
    assert_type(manager.run(client.get, "a"), TaskHandle[bytes])
    assert_type(manager.run(client.close), TaskHandle[None])
    assert_type(manager.run(client, 1), TaskHandle[float])
    assert_type(manager.run(functools.partial(fetch, "a")), TaskHandle[bytes])
    assert_type(manager.run(functools.partial(resize, height=2), 1), TaskHandle[str])

    assert_type(manager.after(1, fetch, "a"), TaskHandle[bytes])
    assert_type(manager.after(0.5, resize, 1), TaskHandle[str])
    assert_type(manager.after(1, lambda: fetch("a")), TaskHandle[bytes])


async def handles(manager: Manager) -> None:
    handle = manager.run(fetch, "a")
    assert_type(await handle, bytes)
    assert_type(await handle.result(), bytes)
    assert_type(await handle.wait(), TaskStatus)
    assert_type(handle.cancel(), bool)
    assert_type(handle.cancel("why"), bool)
    assert_type(handle.id, str)
    assert_type(handle.name, str)
    assert_type(handle.kind, TaskKind)
    assert_type(handle.task, Task[bytes])
    assert_type(handle.status, TaskStatus)
    assert_type(handle.attempt, int)
    assert_type(handle.iteration, int)
    assert_type(handle.submitted_at, float)
    assert_type(handle.started_at, float | None)
    assert_type(handle.finished_at, float | None)
    assert_type(handle.error, BaseException | None)
    assert_type(await asyncio.gather(handle, manager.run(resize, 1)), tuple[bytes, str])


# Wrong calls


def wrong_calls(manager: Manager) -> None:
    manager.run(fetch)  # type: ignore[call-overload]
    manager.run(fetch, 1)  # type: ignore[call-overload]
    manager.run(resize, "1")  # type: ignore[call-overload]
    manager.run(resize, 1, depth=2)  # type: ignore[arg-type, call-arg]
    manager.run(fetch("a"))  # type: ignore[call-overload]
    manager.run(1)  # type: ignore[call-overload]
    manager.after(1, fetch)  # type: ignore[call-overload]
    manager.after(1, resize, "1")  # type: ignore[call-overload]
    manager.after("1", fetch, "a")  # type: ignore[call-overload]
    manager.after(fetch, "a")  # type: ignore[call-overload]
    manager.loop(fetch)  # type: ignore[call-arg]
    manager.loop(resize, "1")  # type: ignore[arg-type]
    manager.every(60, fetch, 1)  # type: ignore[arg-type]
    manager.every("60", nothing)  # type: ignore[arg-type]
    manager.cron("* * * * *", fetch)  # type: ignore[call-arg]
    manager.cron(60, nothing)  # type: ignore[arg-type]
    manager.run_task(fetch)  # type: ignore[arg-type]
    manager.cancel(1)  # type: ignore[arg-type]


# loop, every, cron: no result


async def loops(manager: Manager) -> None:
    assert_type(manager.loop(nothing), TaskHandle[None])
    assert_type(manager.loop(fetch, "a", retries=1), TaskHandle[None])
    assert_type(manager.loop(resize, 1), TaskHandle[None])
    assert_type(manager.every(60, fetch, "a"), TaskHandle[None])
    assert_type(manager.every(0.5, resize, 1, height=2), TaskHandle[None])
    assert_type(manager.cron("0 3 * * *", fetch, "a"), TaskHandle[None])
    assert_type(manager.schedule(every(60), fetch, "a", retries=1), TaskHandle[None])
    assert_type(manager.schedule(cron("0 3 * * *"), resize, 1), TaskHandle[None])


# options


async def submissions(manager: Manager) -> None:
    options = manager.options(retry=3, timeout=10, id="one", meta={"user": 7})
    assert_type(options, Submission)
    assert_type(options.run(fetch, "a", retries=2), TaskHandle[bytes])
    assert_type(options.run(resize, 1), TaskHandle[str])
    assert_type(options.after(1, resize, 1), TaskHandle[str])
    assert_type(options.loop(nothing), TaskHandle[None])
    assert_type(options.every(60, fetch, "a"), TaskHandle[None])
    assert_type(options.cron("0 3 * * *", nothing), TaskHandle[None])
    assert_type(options.schedule(every(60), nothing), TaskHandle[None])
    manager.options(retry=retry_on(OSError, TimeoutError, attempts=None, timeout=None))
    manager.options(retry="3")  # type: ignore[arg-type]
    manager.options(color="red")  # type: ignore[call-arg]
    manager.options(delay="1")  # type: ignore[arg-type]
    options.run(fetch, 1)  # type: ignore[call-overload]
    options.every(60, fetch, 1)  # type: ignore[arg-type]
    manager.schedule(60, nothing)  # type: ignore[arg-type]
    manager.schedule(every(60), fetch)  # type: ignore[call-arg]
    retry_on("OSError")  # type: ignore[arg-type]


# Task, run_task, submit


async def tasks(manager: Manager) -> None:
    assert_type(Task(fetch, args=("a",)), Task[bytes])
    assert_type(Task(resize, args=(1,)), Task[str])
    assert_type(Task(nothing), Task[None])
    assert_type(Task(returns_awaitable, args=("a",)), Task[bytes])
    assert_type(Task(lambda: 1), Task[int])
    assert_type(Task(lambda: fetch("a")), Task[bytes])
    assert_type(manager.run_task(Task(fetch, args=("a",))), TaskHandle[bytes])
    assert_type(manager.run_task(Task(resize, args=(1,))), TaskHandle[str])
    assert_type(manager.run_task(Task(lambda: fetch("a"))), TaskHandle[bytes])
    assert_type(await manager.submit(Task(fetch, args=("a",))), TaskHandle[bytes])
    assert_type(await manager.submit(Task(resize, args=(1,))), TaskHandle[str])
    assert_type(await manager.run_task(Task(fetch, args=("a",))), bytes)
    assert_type(await (await manager.submit(Task(resize, args=(1,)))), str)


def options(manager: Manager, context: contextvars.Context) -> None:
    described_task = Task(
        fetch,
        args=("a",),
        kwargs={"retries": 1},
        kind=TaskKind.LOOP,
        schedule=every(60, jitter=5),
        delay=1,
        timeout=10,
        lifespan=3600.5,
        retry=3,
        id="one",
        name="fetching",
        meta={"user": 7},
        observers=(RecordingObserver(),),
        critical=True,
        max_failures=3,
        stall_after=60,
        context=context,
    )
    assert_type(described_task, Task[bytes])
    assert_type(described_task.args, tuple[Any, ...])
    assert_type(described_task.kwargs, Mapping[str, Any])
    assert_type(described_task.meta, Mapping[str, Any])
    assert_type(described_task.schedule, Schedule | None)
    assert_type(described_task.retry, AsyncRetrying | int | None)
    assert_type(described_task.timeout, float | None)
    assert_type(dataclasses.replace(described_task, delay=2), Task[bytes])


def wrong_options(described_task: Task[bytes]) -> None:
    Task()  # type: ignore[call-overload]
    Task(1)  # type: ignore[call-overload]
    Task(fetch, ("a",))  # type: ignore[call-overload]
    Task(fetch, kind="loop")  # type: ignore[call-overload]
    Task(fetch, delay="1")  # type: ignore[call-overload]
    Task(fetch, retry="3")  # type: ignore[call-overload]
    Task(fetch, schedule=60)  # type: ignore[call-overload]
    Task(fetch, repeat=True)  # type: ignore[call-overload]
    described_task.delay = 2  # type: ignore[misc]


# @task: the type of the function is unchanged


@task(retry=3, timeout=10)
async def decorated(url: str) -> bytes:
    return await fetch(url)


@task(name="resizing", meta={"user": 7})
def decorated_sync(width: int) -> str:
    return resize(width)


@task(schedule=every(60), max_failures=3)
async def decorated_loop() -> None: ...


@task
async def decorated_only(url: str) -> bytes:
    return await fetch(url)


class Service:
    @task(critical=True)
    async def serve(self, port: int) -> None: ...


async def decorating(manager: Manager) -> None:
    assert_type(await decorated("a"), bytes)
    assert_type(decorated_sync(1), str)
    assert_type(await decorated_only("a"), bytes)
    assert_type(manager.run(decorated_only, "a"), TaskHandle[bytes])
    assert_type(manager.run(decorated, "a"), TaskHandle[bytes])
    assert_type(manager.run(decorated_sync, 1), TaskHandle[str])
    assert_type(manager.loop(decorated_loop), TaskHandle[None])
    assert_type(manager.run(Service().serve, 80), TaskHandle[None])
    await decorated(1)  # type: ignore[arg-type]
    manager.run(decorated)  # type: ignore[call-overload]
    manager.run(Service().serve, "80")  # type: ignore[call-overload]


def wrong_decorating() -> None:
    task(repeat=True)  # type: ignore[call-overload]
    task(retry="3")  # type: ignore[call-overload]
    task(5)  # type: ignore[call-overload]


# Schedules


def schedules() -> None:
    assert_type(every(60), Schedule)
    assert_type(every(0.5, jitter=0.1), Schedule)
    assert_type(cron("0 3 * * *"), Schedule)
    assert_type(cron("0 3 * * *", tz="Europe/Prague"), Schedule)
    every("60")  # type: ignore[arg-type]
    every(60, 5)  # type: ignore[call-arg]
    cron("0 3 * * *", "Europe/Prague")  # type: ignore[call-arg]


# The manager


def retries() -> None:
    policies: list[Retry] = [
        None,
        3,
        AsyncRetrying(),
        AsyncRetrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(1)),
    ]
    for policy in policies:
        Manager(retry=policy)
        Task(fetch, retry=policy)
    Manager(retry="3")  # type: ignore[arg-type]
    Manager(retry=3.5)  # type: ignore[arg-type]
    Manager(retry=tenacity.Retrying())  # type: ignore[arg-type]


async def managing() -> None:
    async with Manager(
        name="mail",
        observers=[RecordingObserver(), Everything()],
        limit=10,
        capacity=1000,
        loop_backoff=tenacity.wait_fixed(1),
        threads=4,
        signals=(signal.SIGTERM, signal.SIGINT),
        grace=None,
        leave_timeout=1.5,
        cancel_timeout=1,
    ) as manager:
        assert_type(manager, Manager)
        assert_type(manager.name, str)
        assert_type(manager.state, ManagerState)
        assert_type(manager.get("one"), TaskHandle[Any] | None)
        assert_type(manager.tasks(), list[TaskHandle[Any]])
        assert_type(manager.count(TaskKind.LOOP), int)
        assert_type(manager.health(), Health)
        assert_type(manager.cancel("one", reason="why"), bool)
        assert_type(await manager.open(), None)
        assert_type(await manager.close(), CloseReport)
        assert_type(await manager.close(timeout=None), CloseReport)
        assert_type(await manager.close(timeout=1.5), CloseReport)
        assert_type(await manager.close(timeout="grace"), CloseReport)
        await manager.close(timeout="never")  # type: ignore[arg-type]
    Manager("mail")  # type: ignore[call-arg]
    Manager(observers=RecordingObserver())
    Manager(observers=5)  # type: ignore[arg-type]
    Task(fetch, observers=RecordingObserver())
    Manager(observers=[object()])  # type: ignore[list-item]
    Manager(signals=True)
    Manager(signals=[15])  # type: ignore[list-item]


# Observers


class Everything(Observer):
    """Implements every hook, some with `def` and some with `async def`."""

    def on_task_added(self, event: TaskAdded) -> None:
        assert_type(event.delay, float)
        assert_type(event.id, str)
        assert_type(event.kind, TaskKind)
        assert_type(event.meta, Mapping[str, Any])
        assert_type(event.iteration, int)
        assert_type(event.attempt, int)
        assert_type(event.time, float)
        assert_type(event.job, JobRef | None)

    async def on_task_started(self, event: TaskStarted) -> None:
        assert_type(event.queued_for, float)

    def on_task_retrying(self, event: TaskRetrying) -> None:
        assert_type(event.error, Exception | None)
        assert_type(event.delay, float)

    async def on_task_succeeded(self, event: TaskSucceeded) -> None:
        assert_type(event.duration, float)
        assert_type(event.final, bool)

    def on_task_failed(self, event: TaskFailed) -> Awaitable[None]:
        assert_type(event.error, BaseException)
        return nothing()

    def on_task_cancelled(self, event: TaskCancelled) -> Awaitable[None] | None:
        assert_type(event.reason, str | None)
        assert_type(event.duration, float | None)
        return None if event.duration is None else nothing()

    async def on_task_expired(self, event: TaskExpired) -> None:
        assert_type(event.lifespan, float)

    def on_task_stalled(self, event: TaskStalled) -> None:
        assert_type(event.elapsed, float)
        assert_type(event.stack, tuple[FrameSummary, ...])

    def on_job_enqueued(self, event: JobEnqueued) -> None:
        assert_type(event.job, JobRef)
        assert_type(event.job.enqueued_at, float)
        assert_type(event.delay, float)

    async def on_job_dead(self, event: JobDead) -> None:
        assert_type(event.job.attempt, int)
        assert_type(event.error, BaseException)
        assert_type(event.meta, Mapping[str, Any])

    async def on_manager_closing(self, event: ManagerClosing) -> None:
        assert_type(event.reason, str)
        assert_type(event.outstanding, int)

    def on_manager_closed(self, event: ManagerClosed) -> None:
        assert_type(event.report, CloseReport)
        assert_type(event.report.failed, tuple[TaskHandle[Any], ...])

    def around_task(self, event: TaskStarted) -> AbstractContextManager[object]:
        return self.span(event)

    @contextmanager
    def span(self, event: TaskStarted) -> Generator[int]:
        yield event.attempt

    async def watch(self, manager: Manager) -> None:
        await manager.shutdown_requested()


class Spans(Observer):
    @contextmanager
    def around_task(self, event: TaskStarted) -> Generator[None]:
        yield


class Wrong(Observer):
    def on_task_added(self, event: TaskFailed) -> None: ...  # type: ignore[override]

    def on_task_started(self, event: TaskStarted) -> int:  # type: ignore[override]
        return 1

    async def around_task(self, event: TaskStarted) -> None: ...  # type: ignore[override]

    def watch(self, manager: Manager) -> None: ...  # type: ignore[override]


# background.testing


async def recording() -> None:
    recorder = RecordingObserver()
    assert_type(recorder.names("one"), list[str])
    assert_type(recorder.of(TaskFailed), list[TaskFailed])
    assert_type(await recorder.wait_for(TaskSucceeded, id="one", count=2), TaskSucceeded)
    assert_type(virtual_time("trio"), tuple[str, dict[str, Any]])
    virtual_time("curio")  # type: ignore[arg-type]
    with virtual_wall_clock(datetime.now(UTC)):
        pass
