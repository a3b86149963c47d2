"""The thread of the SQLite broker, and cancelled calls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.brokers.sqlite import Gate, message, messages, other_connection, thread_of
from support.cancellation.injection import How, InjectedRun, Point
from support.cancellation.stepping import When
from support.time import SOON

from background.queues._errors import BrokerUnavailableError
from background.queues._states import JobState
from background.queues.sqlite import SQLiteBroker
from background.queues.sqlite.library import Connection
from background.testing import virtual_time


def threads_of(path: Path) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if str(path) in thread.name]


async def test_shared_transaction(broker: SQLiteBroker) -> None:
    """Queued calls share a transaction, and a failed call does not affect the others."""
    done: dict[str, Any] = {}
    statements: list[str] = []

    async def enqueue(*ids: str) -> None:
        try:
            done[ids[-1]] = await broker.enqueue([message(id) for id in ids])
        except UnicodeEncodeError as error:
            done[ids[-1]] = error

    def trace(db: Connection) -> None:
        db.set_trace_callback(statements.append)

    await thread_of(broker).call(trace, writes=False)
    await Gate(broker).run(
        lambda: enqueue("a"), lambda: enqueue("b", "\ud800"), lambda: enqueue("c")
    )
    assert (done["a"], done["c"]) == ([True], [True])
    assert isinstance(done["\ud800"], UnicodeEncodeError)
    assert statements.count("BEGIN IMMEDIATE") == 1
    assert [job.message.id async for job in broker.scan()] == ["a", "c"]


async def test_failed_call_is_rolled_back(broker: SQLiteBroker) -> None:
    """A failed call changes nothing."""
    with pytest.raises(UnicodeEncodeError):
        await broker.enqueue([message("a"), message("\ud800")])
    assert await broker.count() == 0


@pytest.mark.parametrize("patient_first", [True, False])
async def test_own_timeouts_at_lock(path: Path, patient_first: bool, anyio_backend: object) -> None:
    """Calls that wait for a lock together fail at their own timeouts, and readers do not wait."""
    broker = SQLiteBroker(path)
    await broker.open()
    thread: Any = thread_of(broker)
    results: dict[str, object] = {}

    async def enqueue(id: str) -> None:
        thread._timeout = 60.0 if id == "patient" else 0.02
        try:
            results[id] = await broker.enqueue([message(id)])
        except BrokerUnavailableError as error:
            results[id] = str(error)

    with other_connection(path) as db:
        db.execute("BEGIN IMMEDIATE")
        async with anyio.create_task_group() as group:
            for id in ("patient", "hasty") if patient_first else ("hasty", "patient"):
                group.start_soon(enqueue, id)
                await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(10):
                assert await broker.count() == 0
                while not results:
                    await broker.count()
            assert list(results) == ["hasty"]
            db.execute("ROLLBACK")
    assert results["patient"] == [True]
    assert "locked" in str(results["hasty"])
    await broker.close()


async def test_many_queued_calls(broker: SQLiteBroker) -> None:
    """More queued calls than fit in one transaction are all processed."""
    accepted: list[bool] = []

    async def enqueue() -> None:
        accepted.extend(await broker.enqueue([message(str(len(accepted)))]))

    await Gate(broker).run(*[enqueue] * 300)
    assert accepted.count(True) == 1
    assert accepted.count(False) == 299


@pytest.mark.parametrize("how", How)
@pytest.mark.parametrize("number", range(9))
async def test_cancel_call(
    broker: SQLiteBroker, how: How, number: int, anyio_backend_name: str
) -> None:
    """A call that is cancelled at any suspension takes full effect or none.

    The broker works afterwards.
    """
    if anyio_backend_name == "trio" and how is How.NATIVE:
        how = How.SCOPE
    calls: list[Callable[[], Any]] = [
        lambda: broker.enqueue(messages(3)),
        lambda: broker.claim(["q"], 3, lease=30),
        lambda: broker.wait_for_work(["q", "r"], 1),
        lambda: broker.renew([], lease=30),
        lambda: broker.settle([]),
        lambda: broker.cancel("0001"),
        lambda: broker.wait("0002", 1),
        lambda: broker.purge(),
        lambda: broker.maintain(),
    ]
    points = 0
    for when in When:
        for suspension in range(1, 50):
            run = InjectedRun(Point(suspension, when, how))
            outcome = await run.drive(calls[number]())
            assert outcome.cancelled or outcome.error is None
            assert await broker.count() in (0, 3)
            assert await broker.requeue("?") is False
            if run.injected_at is None:
                break
            points += 1
        else:
            raise AssertionError("the call was suspended 49 times")
    assert points
    assert await broker.enqueue([message("last", queue="s")]) == [True]
    assert len(await broker.claim(["s"], 1, lease=30)) == 1


async def test_cancel_claim(broker: SQLiteBroker) -> None:
    """A claim that is cancelled before its transaction begins claims no job."""
    await broker.enqueue([message()])
    gate, scope, cancelled = Gate(broker), anyio.CancelScope(), anyio.Event()

    async def claim() -> None:
        with scope:
            await broker.claim(["q"], 1, lease=30)
        cancelled.set()

    async def cancel() -> None:
        scope.cancel()
        await cancelled.wait()
        gate.opened.set()

    await gate.run(claim, cancel)
    assert await broker.count(state=JobState.READY) == 1


async def test_open_and_close_twice(path: Path) -> None:
    """A broker can be opened and closed repeatedly, also by concurrent calls."""
    broker = SQLiteBroker(path)
    await broker.close()
    threads = threading.active_count()
    for _ in range(2):
        async with anyio.create_task_group() as group:
            group.start_soon(broker.open)
            group.start_soon(broker.open)
        assert len(threads_of(path)) == 1
        async with anyio.create_task_group() as group:
            group.start_soon(broker.close)
            group.start_soon(broker.close)
        assert not threads_of(path)
        with pytest.raises(BrokerUnavailableError, match="not open"):
            await broker.count()
    assert threading.active_count() <= threads + 1  # anyio keeps an idle worker thread


@pytest.mark.parametrize("how", How)
@pytest.mark.parametrize("action", ["open", "close"])
async def test_cancel_open_and_close(
    path: Path, how: How, action: str, anyio_backend_name: str
) -> None:
    """A cancelled open or close leaves no thread, and the broker can be opened again."""
    if anyio_backend_name == "trio" and how is How.NATIVE:
        how = How.SCOPE
    for when in When:
        for suspension in range(1, 50):
            broker = SQLiteBroker(path)
            if action == "close":
                await broker.open()
            run = InjectedRun(Point(suspension, when, how))
            await run.drive(getattr(broker, action)())
            await broker.close()
            for thread in threads_of(path):
                await anyio.to_thread.run_sync(thread.join, SOON)
            assert not threads_of(path)
            await broker.open()
            assert await broker.count() == 0
            await broker.close()
            if run.injected_at is None:
                break
        assert 1 < suspension < 49


async def test_close_while_waiting(broker: SQLiteBroker) -> None:
    """Waiting for work fails when the broker is closed."""

    async def wait() -> None:
        with pytest.raises(BrokerUnavailableError, match="not open"):
            await broker.wait_for_work(["q"], 80_000)
        refused.append(True)

    refused: list[bool] = []
    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.sleep(1)
        await broker.close()
    assert refused == [True]


async def test_waiters_for_same_job(broker: SQLiteBroker) -> None:
    """The timeout of one waiter for a job does not affect the other waiters."""
    await broker.enqueue([message()])
    states: list[JobState] = []

    async def wait(timeout: float) -> None:
        job = await broker.wait("one", timeout)
        assert job is not None
        states.append(job.state)

    async with anyio.create_task_group() as group:
        group.start_soon(wait, 5)
        group.start_soon(wait, 80_000)
        group.start_soon(wait, 80_000)
        await anyio.sleep(10)
        await broker.cancel("one")
    assert states == [JobState.READY, JobState.CANCELLED, JobState.CANCELLED]
    assert not broker._ends


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_event_loop_ended(backend: Any, path: Path) -> None:
    """The thread processes calls whose event loop has ended, and ends."""
    broker = SQLiteBroker(path)

    async def main() -> None:
        await broker.open()
        await broker.enqueue([message()])

    name, options = virtual_time(backend)
    anyio.run(main, backend=name, backend_options=options)
    thread = thread_of(broker)
    thread._queue.put(
        thread._new_call(lambda db: db.execute("DELETE FROM background_jobs"), writes=True)
    )
    thread._queue.put(None)
    thread._thread.join(SOON)
    assert not thread._thread.is_alive()
    with other_connection(path) as db:
        assert db.execute("SELECT count(*) FROM background_jobs").fetchone() == (0,)


@pytest.mark.realtime
async def test_program_ended(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread ends when no other thread keeps the program alive."""
    monkeypatch.setattr("background.queues.sqlite.thread._IDLE", 0.01)
    broker, second = SQLiteBroker(path), SQLiteBroker(path.with_name("second.db"))
    await broker.open()
    await second.open()
    threads = [thread_of(broker)._thread, thread_of(second)._thread]
    with monkeypatch.context() as patch:
        ended = threading.Thread(target=int)
        patch.setattr(threading, "enumerate", lambda: [ended, *threads])
        for thread in threads:
            await anyio.to_thread.run_sync(thread.join, SOON)
    assert not any(thread.is_alive() for thread in threads)
    await broker.close()
    await second.close()
