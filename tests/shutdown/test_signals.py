"""Shutdown signals: what they do to programs, and whose handler runs when."""

from __future__ import annotations

import asyncio
import io
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from support.processes.process import PATIENCE, PROGRAMS, Process, running

from background import Manager, ManagerMisuseError, ManagerState, TaskCancelledError, TaskStatus
from background._lifecycle.runtime import _is_from_shutdown
from background._lifecycle.signals import SignalHandlers

posix = pytest.mark.skipif(
    sys.platform == "win32", reason="no process can be sent SIGINT or SIGTERM on Windows"
)
realtime = pytest.mark.realtime

SCRIPT = PROGRAMS / "signalled.py"
INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[INT, TERM])
def number(request: pytest.FixtureRequest) -> signal.Signals:
    return request.param


def start(backend: str, program: str) -> Any:
    return running(SCRIPT, backend, program)


def signalled(backend: str, program: str, number: signal.Signals) -> tuple[int, Process]:
    """Run a program, send it the signal once it is ready, and see it end."""
    with start(backend, program) as process:
        process.wait_for("ready")
        process.send(number)
        return process.wait(), process


# Programs. How a program ends after SIGINT is KeyboardInterrupt's business: what comes after the
# block still runs up to its next await on asyncio, and not at all on trio.


@posix
def test_first_signal_drains(backend: str, number: signal.Signals) -> None:
    """Loops stop, one-offs are still accepted and finished, and the signal has its way at last."""
    status, process = signalled(backend, "drains", number)
    assert status == -number
    assert process.lines[:7] == [
        "ready",
        "manager is stopping",
        "no more loops",
        "loops left: 0",
        "job done",
        "job done",
        "background: 2 succeeded",
    ]
    assert ("KeyboardInterrupt" in process.output) == (number is INT)
    assert "after the next await" not in process.lines
    assert number is INT or process.lines[7:] == []


@posix
def test_second_signal_cancels(backend: str, number: signal.Signals) -> None:
    """Tasks at once, and a body that does not leave by itself."""
    with start(backend, "stays") as process:
        process.wait_for("ready")
        process.send(number)
        process.wait_for("shutdown requested, manager is stopping")
        process.send(number)
        assert process.wait() == -number
    assert {"job cancelled", "body cancelled", "background: 1 cancelled"} < set(process.lines)


@posix
def test_another_second_signal_has_its_own_way() -> None:
    with start("asyncio", "stays") as process:
        process.wait_for("ready")
        process.send(INT)
        process.wait_for("shutdown requested")
        process.send(TERM)
        assert process.wait() == -TERM
    assert "background: 1 cancelled" in process.lines


@posix
def test_grace_runs_out(backend: str, number: signal.Signals) -> None:
    status, process = signalled(backend, "stays_with_grace", number)
    assert status == -number
    assert {"job cancelled", "body cancelled", "background: 1 cancelled"} < set(process.lines)


@posix
def test_body_that_stays_although_the_manager_has_closed(backend: str) -> None:
    """It is the only thing left, and has to be ended all the same."""
    status, process = signalled(backend, "stays_after_close", TERM)
    assert status == -TERM
    assert process.lines == ["background: nothing was left", "ready", "body cancelled"]


@posix
def test_signal_while_closing(backend: str) -> None:
    """The deadline counts for `close()` too, which still returns the report."""
    status, process = signalled(backend, "closes", TERM)
    assert status == -TERM
    assert process.lines == [
        "ready, manager is closing",
        "job cancelled",
        "report: 1 cancelled",
    ]


@posix
def test_handler_of_before_is_called(backend: str, number: signal.Signals) -> None:
    """It had taken over the process, which is not ended then."""
    status, process = signalled(backend, "has_python_handler", number)
    assert status == 0
    assert process.lines == [
        "ready",
        f"previous handler called with {number:d}",
        "manager is stopping",
        "background: nothing was left",
        "restored: True",
    ]


@posix
@pytest.mark.parametrize("backend", ["asyncio", "uvloop"])
def test_handler_of_the_event_loop_is_called(backend: str) -> None:
    status, process = signalled(backend, "has_loop_handler", TERM)
    assert status == 0
    assert process.lines[1:] == [
        "loop handler called, manager is stopping",
        "background: nothing was left",
        "restored: True",
    ]


@posix
def test_nested_managers(backend: str) -> None:
    status, process = signalled(backend, "is_nested", TERM)
    assert status == -TERM
    assert process.lines[1:] == [
        "outer is stopping, inner is stopping",
        "inner: nothing was left",
        "between the blocks",
        "outer: nothing was left",
    ]


@posix
def test_second_signal_to_nested_managers(backend: str) -> None:
    with start(backend, "is_nested_and_stays") as process:
        process.wait_for("ready")
        process.send(TERM)
        process.wait_for("shutdown requested")
        process.send(TERM)
        assert process.wait() == -TERM
    expected = {"body cancelled", "job cancelled", "inner: 1 cancelled", "outer: nothing was left"}
    assert expected < set(process.lines)


@posix
def test_signal_that_was_ignored(backend: str) -> None:
    """It is a request to shut down, as was asked for, but never ends the process."""
    status, process = signalled(backend, "ignores_sigint", INT)
    assert status == 0
    assert process.lines[1:] == [
        "manager is stopping",
        "background: nothing was left",
        "restored: True",
    ]


@posix
@pytest.mark.parametrize("program", ["has_stuck_thread", "has_stubborn_task"])
def test_stuck_task_does_not_keep_the_process(
    backend: str, program: str, number: signal.Signals
) -> None:
    """Neither a thread that never returns nor a coroutine that swallows its cancellation.

    After SIGINT, event loops and the interpreter itself would wait for them.
    """
    status, process = signalled(backend, program, number)
    assert status == -number
    assert "background: 1 stuck" in process.lines
    assert any(line.endswith("is still at") for line in process.lines)


@posix
def test_blocked_event_loop_does_not_keep_the_process(backend: str, number: signal.Signals) -> None:
    """It hears no signal. The third one goes past it, or the next: asyncio's own SIGINT asks its
    main task first."""
    with start(backend, "blocks_the_loop") as process:
        process.wait_for("ready")
        for sent in range(1, 3 if number is TERM or backend == "trio" else 4):
            process.send(number)
            process.wait_for(f"signals that are pending: {sent}")
        process.send(number)
        assert process.wait() == -number


@posix
def test_manager_in_a_child_task(backend: str) -> None:
    """SIGINT ends the whole program, not only the task that the manager is in."""
    status, process = signalled(backend, "is_in_a_child_task", INT)
    assert "background: nothing was left" in process.lines
    assert "sibling cancelled" in process.lines
    assert "KeyboardInterrupt" in process.output
    assert status == (1 if backend == "trio" else -INT)  # trio's comes in an exception group


@posix
def test_error_of_the_body_comes_first(backend: str) -> None:
    status, process = signalled(backend, "fails", TERM)
    assert status == 1
    assert process.lines[-1] == "RuntimeError: the body's own"


@posix
def test_event_loop_torn_down_as_closing_begins(backend: str) -> None:
    """asyncio cancels the closing before its first step; nobody who waits for it may hang."""
    with start(backend, "ends_as_closing_begins") as process:
        assert process.wait() == (1 if backend == "trio" else 3)
    assert "background: nothing was left" in process.lines


# The handlers, in this process. Its own dispositions are put back by the fixtures.

Seen = list[int]


@pytest.fixture
def dispositions() -> Iterator[None]:
    """Put back what a test does to the signals; the event loop starts after this."""
    numbers = [INT, TERM, *([signal.SIGWINCH] if sys.platform != "win32" else [])]
    before = {each: signal.getsignal(each) for each in numbers}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture
def seen(dispositions: None) -> Seen:
    """The signals that a handler of before has seen; it stands for a server's."""
    numbers: Seen = []

    def handle(number: int, frame: FrameType | None) -> None:
        numbers.append(number)

    for each in (INT, TERM):
        signal.signal(each, handle)
    return numbers


def handlers() -> tuple[Any, Any]:
    return signal.getsignal(INT), signal.getsignal(TERM)


@realtime
async def test_signal_requests_a_shutdown(seen: Seen) -> None:
    before = handlers()
    async with Manager(signals={INT, TERM}) as manager:
        loop = manager.every(3600, checkpoint)
        assert manager.state is ManagerState.RUNNING
        signal.raise_signal(TERM)
        await manager.shutdown_requested()
        assert manager.state is ManagerState.STOPPING
        assert await loop.wait() is TaskStatus.CANCELLED
        assert await manager.run(int) == 0
    assert seen == [TERM]
    assert handlers() == before


@realtime
async def test_second_signal_cancels_tasks_but_not_the_body_of_a_server(seen: Seen) -> None:
    """The handler of before is to end it, as it has its own way."""
    async with Manager(signals={INT, TERM}) as manager:
        handle = manager.run(anyio.sleep_forever)
        signal.raise_signal(INT)
        await manager.shutdown_requested()
        assert handle.status in (TaskStatus.WAITING, TaskStatus.RUNNING)
        signal.raise_signal(TERM)
        assert await handle.wait() is TaskStatus.CANCELLED
        report = await manager.close()
        await checkpoint()
    assert handle in (*report.cancelled, *report.not_started)
    assert seen == [INT, TERM]


@realtime
async def test_signals_that_were_not_asked_for_are_left_alone(seen: Seen) -> None:
    sigint, sigterm = handlers()
    async with Manager(signals=[TERM]) as manager:
        assert handlers()[0] is sigint
        signal.raise_signal(INT)
        await checkpoint()
        assert manager.state is ManagerState.RUNNING
    async with Manager():
        assert handlers() == (sigint, sigterm)


@realtime
async def test_handler_of_somebody_else_is_left_to_them(seen: Seen) -> None:
    """What was put over the manager's handler while it ran is not the manager's to remove."""
    sigint, _ = handlers()

    def other(number: int, frame: FrameType | None) -> None:
        raise AssertionError("not to be called")

    async with Manager(signals={INT, TERM}):
        signal.signal(TERM, other)
    assert handlers() == (sigint, other)


@realtime
async def test_handler_put_back_after_leaving_only_passes_on(seen: Seen) -> None:
    """As by a manager, or anything else, that was entered within and left later."""
    async with Manager(signals=[TERM]) as manager:
        ours = signal.getsignal(TERM)
    signal.signal(TERM, ours)
    signal.raise_signal(TERM)
    assert seen == [TERM]
    assert manager.state is ManagerState.CLOSED


@posix
@realtime
async def test_default_disposition_is_met_after_closing(dispositions: None) -> None:
    """With a signal whose default is to do nothing, to be seen here."""
    number = signal.SIGWINCH
    signal.signal(number, signal.SIG_DFL)
    async with Manager(signals=[number]) as manager:
        ours = signal.getsignal(number)
        signal.raise_signal(number)
        await manager.shutdown_requested()
        assert manager.state is ManagerState.STOPPING
        assert signal.getsignal(number) is ours
    assert signal.getsignal(number) is signal.SIG_DFL
    signal.signal(number, ours)
    signal.raise_signal(number)
    assert signal.getsignal(number) is signal.SIG_DFL


@posix
@realtime
async def test_second_signal_cancels_the_body_where_nothing_else_does(dispositions: None) -> None:
    number = signal.SIGWINCH
    signal.signal(number, signal.SIG_DFL)
    async with Manager(signals=[number]) as manager:
        signal.raise_signal(number)
        await manager.shutdown_requested()
        signal.raise_signal(number)
        await anyio.sleep_forever()
    assert manager.state is ManagerState.CLOSED


@posix
@realtime
async def test_default_disposition_is_met_with_stuck_tasks(dispositions: None) -> None:
    number = signal.SIGWINCH
    signal.signal(number, signal.SIG_DFL)
    running, released = anyio.Event(), threading.Event()

    def work() -> None:
        anyio.from_thread.run_sync(running.set)
        released.wait()

    try:
        async with Manager(signals=[number], grace=0, cancel_timeout=0) as manager:
            handle = manager.run(work)
            await running.wait()
            signal.raise_signal(number)
            report = await manager.close()
    finally:
        released.set()
    assert report.stuck == (handle,)
    assert signal.getsignal(number) is signal.SIG_DFL


@realtime
async def test_keyboard_interrupt_comes_after_closing(dispositions: None) -> None:
    signal.signal(INT, signal.default_int_handler)
    manager = Manager(signals=[INT])
    handles = []

    async def program() -> None:
        async with manager:
            signal.raise_signal(INT)
            await manager.shutdown_requested()
            handles.append(manager.run(checkpoint))

    with pytest.raises(KeyboardInterrupt):
        await program()
    assert handles[0].status is TaskStatus.SUCCEEDED
    assert manager.state is ManagerState.CLOSED
    assert signal.getsignal(INT) is signal.default_int_handler


@realtime
@pytest.mark.parametrize("closed", [False, True], ids=["none", "closed"])
async def test_keyboard_interrupt_without_output_streams(
    dispositions: None, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    """As under `pythonw`, where there is nothing to flush, or in a daemon that has closed them."""
    stream = io.TextIOWrapper(io.BytesIO()) if closed else None
    if stream is not None:
        stream.close()
    signal.signal(INT, signal.default_int_handler)
    manager = Manager(signals=[INT])

    async def program() -> None:
        async with manager:
            signal.raise_signal(INT)
            await manager.shutdown_requested()

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        with pytest.raises(KeyboardInterrupt):
            await program()
    assert manager.state is ManagerState.CLOSED


@realtime
async def test_ignored_signal_is_ignored_again(dispositions: None) -> None:
    signal.signal(INT, signal.SIG_IGN)
    async with Manager(signals=[INT]) as manager:
        ours = signal.getsignal(INT)
        signal.raise_signal(INT)
        await manager.shutdown_requested()
    assert signal.getsignal(INT) is signal.SIG_IGN
    signal.signal(INT, ours)
    signal.raise_signal(INT)
    assert manager.state is ManagerState.CLOSED


@realtime
async def test_nested_managers_that_are_left_in_the_wrong_order(seen: Seen) -> None:
    """The outer manager's handler comes back with the inner one's end, and is no obstacle."""
    outer, inner = Manager(signals=[TERM]), Manager(signals=[TERM])
    await outer.__aenter__()
    await inner.__aenter__()
    signal.raise_signal(TERM)
    await outer.shutdown_requested()
    await inner.shutdown_requested()
    assert seen == [TERM]
    await outer.close()
    await inner.close()
    await inner.__aexit__(None, None, None)
    await outer.__aexit__(None, None, None)
    signal.raise_signal(TERM)
    assert seen == [TERM, TERM]


@realtime
async def test_second_manager_with_the_same_signals(seen: Seen) -> None:
    """One after the other: nothing of the first is left in the way of the second."""
    before = handlers()
    for _ in range(3):
        async with Manager(signals={INT, TERM}) as manager:
            signal.raise_signal(TERM)
            await manager.shutdown_requested()
        assert handlers() == before
    assert seen == [TERM] * 3


async def test_grace_counts_from_the_signal(seen: Seen) -> None:
    """And ends the tasks even if nobody leaves the block."""
    async with Manager(signals=[TERM], grace=30) as manager:
        handle = manager.run(anyio.sleep_forever)
        await anyio.sleep(1)
        signal.raise_signal(TERM)
        await manager.shutdown_requested()
        began = anyio.current_time()
        assert await handle.wait() is TaskStatus.CANCELLED
        assert anyio.current_time() - began == pytest.approx(30)


def in_another_thread(program: Callable[[], Any]) -> Any:
    """Return what an async program returns or raises in the event loop of another thread."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(program()))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return outcome[0]


def test_signals_need_the_main_thread(seen: Seen) -> None:
    before = handlers()
    manager = Manager(signals={INT, TERM})

    async def program() -> None:
        async with manager:
            pass

    error = in_another_thread(program)
    assert isinstance(error, ManagerMisuseError)
    assert "main thread" in str(error)
    assert "request_shutdown()" in str(error)
    assert manager.state is ManagerState.NEW
    assert handlers() == before


def test_signal_for_a_manager_whose_event_loop_has_ended(seen: Seen) -> None:
    """It was never left: nobody listens, and the handler must not stand in the way."""
    left_behind = []

    async def program() -> None:
        left_behind.append(await Manager(signals=[TERM]).__aenter__())

    asyncio.run(program())
    signal.raise_signal(TERM)
    assert seen == [TERM]


async def test_signal_that_is_heard_after_leaving(seen: Seen) -> None:
    """What a handler asks of the event loop may have its turn only when the manager has gone."""
    asked: list[Callable[[], object]] = []
    async with Manager() as manager:
        handlers = SignalHandlers(
            [TERM], manager._runtime.shutdown.request, lambda ask, context: asked.append(ask)
        )
        handlers.install()
        signal.raise_signal(TERM)
        handlers.restore()
        for ask in asked:
            ask()
        assert manager.state is ManagerState.RUNNING
    assert len(asked) == 1


def test_signal_under_plain_asyncio(seen: Seen) -> None:
    """In a callback of an event loop that was not started by `anyio.run()`, as servers don't, anyio
    can't tell what it is in."""

    async def program() -> TaskStatus:
        async with asyncio.timeout(PATIENCE), Manager(signals=[TERM], grace=0) as manager:
            handle = manager.run(anyio.sleep_forever)
            signal.raise_signal(TERM)
            return await handle.wait()

    assert asyncio.run(program()) is TaskStatus.CANCELLED


def test_what_a_shutdown_does_to_a_body_that_waits_is_not_the_bodys_own_error() -> None:
    cancelled = TaskCancelledError("name", "id", "shutdown")
    assert _is_from_shutdown(cancelled)
    assert _is_from_shutdown(ExceptionGroup("two", [cancelled, ExceptionGroup("one", [cancelled])]))
    assert not _is_from_shutdown(ExceptionGroup("two", [cancelled, ValueError()]))
    assert not _is_from_shutdown(TaskCancelledError("name", "id", "enough"))
