"""Shutdown signals: their effect on programs, and the order of handlers."""

from __future__ import annotations

import asyncio
import io
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from support.outcomes import fine
from support.processes.process import PATIENCE, PROGRAMS, Process, running

from background import Manager, ManagerMisuseError, ManagerState, TaskCancelledError, TaskStatus
from background._lifecycle.runtime import _is_from_shutdown
from background._lifecycle.signals import SignalHandlers

posix = pytest.mark.skipif(
    sys.platform == "win32", reason="a process cannot be sent SIGINT or SIGTERM on Windows"
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


def run_and_signal(backend: str, program: str, number: signal.Signals) -> tuple[int, Process]:
    """Run a program, send it the signal when it is ready, and wait for its end."""
    with start(backend, program) as process:
        process.wait_for("ready")
        process.send(number)
        return process.wait(), process


# Programs. SIGINT ends a program by KeyboardInterrupt: on asyncio the code after the block still
# runs up to its next await, on trio it does not run.


@posix
def test_first_signal(backend: str, number: signal.Signals) -> None:
    """The first signal stops the loops, waits for one-offs, and then ends the process."""
    status, process = run_and_signal(backend, "drains", number)
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
def test_second_signal(backend: str, number: signal.Signals) -> None:
    """A second signal cancels the tasks, and a body that does not end by itself."""
    with start(backend, "stays") as process:
        process.wait_for("ready")
        process.send(number)
        process.wait_for("shutdown requested, manager is stopping")
        process.send(number)
        assert process.wait() == -number
    assert {"job cancelled", "body cancelled", "background: 1 cancelled"} < set(process.lines)


@posix
def test_different_second_signal() -> None:
    """A second signal that differs from the first ends the process in its own way."""
    with start("asyncio", "stays") as process:
        process.wait_for("ready")
        process.send(INT)
        process.wait_for("shutdown requested")
        process.send(TERM)
        assert process.wait() == -TERM
    assert "background: 1 cancelled" in process.lines


@posix
def test_grace_ends(backend: str, number: signal.Signals) -> None:
    """The end of the grace cancels the tasks and the body."""
    status, process = run_and_signal(backend, "stays_with_grace", number)
    assert status == -number
    assert {"job cancelled", "body cancelled", "background: 1 cancelled"} < set(process.lines)


@posix
def test_body_outlives_manager(backend: str) -> None:
    """A signal cancels a body that continues after its manager has closed."""
    status, process = run_and_signal(backend, "stays_after_close", TERM)
    assert status == -TERM
    assert process.lines == ["background: nothing was left", "ready", "body cancelled"]


@posix
def test_signal_while_closing(backend: str) -> None:
    """A signal sets the deadline of a `close()` in progress, which returns its report."""
    status, process = run_and_signal(backend, "closes", TERM)
    assert status == -TERM
    assert process.lines == [
        "ready, manager is closing",
        "job cancelled",
        "report: 1 cancelled",
    ]


@posix
def test_previous_handler(backend: str, number: signal.Signals) -> None:
    """A handler that a program installed before is called, and the process is not ended."""
    status, process = run_and_signal(backend, "has_python_handler", number)
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
def test_event_loop_handler(backend: str) -> None:
    """A handler that was added to the event loop is called, and restored afterwards."""
    status, process = run_and_signal(backend, "has_loop_handler", TERM)
    assert status == 0
    assert process.lines[1:] == [
        "loop handler called, manager is stopping",
        "background: nothing was left",
        "restored: True",
    ]


@posix
def test_nested_managers(backend: str) -> None:
    """A signal shuts down all nested managers, which close from the inside out."""
    status, process = run_and_signal(backend, "is_nested", TERM)
    assert status == -TERM
    assert process.lines[1:] == [
        "outer is stopping, inner is stopping",
        "inner: nothing was left",
        "between the blocks",
        "outer: nothing was left",
    ]


@posix
def test_second_signal_to_nested_managers(backend: str) -> None:
    """A second signal cancels the tasks of nested managers and the body."""
    with start(backend, "is_nested_and_stays") as process:
        process.wait_for("ready")
        process.send(TERM)
        process.wait_for("shutdown requested")
        process.send(TERM)
        assert process.wait() == -TERM
    expected = {"body cancelled", "job cancelled", "inner: 1 cancelled", "outer: nothing was left"}
    assert expected < set(process.lines)


@posix
def test_ignored_signal(backend: str) -> None:
    """A signal that was ignored before requests a shutdown, but does not end the process."""
    status, process = run_and_signal(backend, "ignores_sigint", INT)
    assert status == 0
    assert process.lines[1:] == [
        "manager is stopping",
        "background: nothing was left",
        "restored: True",
    ]


@posix
@pytest.mark.parametrize("program", ["has_stuck_thread", "has_stubborn_task"])
def test_stuck_task(backend: str, program: str, number: signal.Signals) -> None:
    """A stuck thread or task does not keep the process alive.

    After SIGINT, the event loop and the interpreter would wait for it.
    """
    status, process = run_and_signal(backend, program, number)
    assert status == -number
    assert "background: 1 stuck" in process.lines
    assert any(line.endswith("is still at") for line in process.lines)


@posix
def test_blocked_event_loop(backend: str, number: signal.Signals) -> None:
    """The third signal ends a process whose event loop is blocked.

    With SIGINT on asyncio it is the fourth, because asyncio's handler cancels the main task
    first.
    """
    with start(backend, "blocks_the_loop") as process:
        process.wait_for("ready")
        for sent in range(1, 3 if number is TERM or backend == "trio" else 4):
            process.send(number)
            process.wait_for(f"signals that are pending: {sent}")
        process.send(number)
        assert process.wait() == -number


@posix
def test_manager_in_child_task(backend: str) -> None:
    """SIGINT ends the whole program, not only the task of the manager."""
    status, process = run_and_signal(backend, "is_in_a_child_task", INT)
    assert "background: nothing was left" in process.lines
    assert "sibling cancelled" in process.lines
    assert "KeyboardInterrupt" in process.output
    assert status == (1 if backend == "trio" else -INT)  # trio's comes in an exception group


@posix
def test_sibling_managers(backend: str, number: signal.Signals) -> None:
    """A signal ends the process when the last of several managers in sibling tasks has closed."""
    status, process = run_and_signal(backend, "siblings", number)
    steps = [line for line in process.lines if line.startswith(("job", "after"))]
    assert steps[:5] == ["job 0 done", "after block 0", "job 1 done", "after block 1", "job 2 done"]
    assert {f"{name}: 1 succeeded" for name in "012"} < set(process.lines)
    assert status == -number or (status == 1 and "KeyboardInterrupt" in process.output)


@posix
def test_sibling_manager_with_stuck_task(backend: str, number: signal.Signals) -> None:
    """A stuck task of a manager that was left before does not keep the process alive."""
    status, process = run_and_signal(backend, "siblings_and_stuck", number)
    assert status == -number
    assert any("1 stuck" in line for line in process.lines)


@posix
def test_sibling_manager_stays(backend: str) -> None:
    """A body that stays is cancelled at the end of the grace, although another was left before."""
    status, process = run_and_signal(backend, "siblings_and_stays", TERM)
    assert status == -TERM
    assert "body cancelled" in process.lines


@posix
def test_body_error(backend: str) -> None:
    """The program ends by an error of the body, not by the signal."""
    status, process = run_and_signal(backend, "fails", TERM)
    assert status == 1
    assert process.lines[-1] == "RuntimeError: the body's own"


@posix
def test_event_loop_ends_as_closing_begins(backend: str) -> None:
    """Nothing hangs if asyncio cancels the closing before its first step."""
    with start(backend, "ends_as_closing_begins") as process:
        assert process.wait() == (1 if backend == "trio" else 3)
    assert "background: nothing was left" in process.lines


# Handlers in this process. The fixtures restore its own.

Received = list[int]


@pytest.fixture
def dispositions() -> Iterator[None]:
    """Restore the dispositions of the signals; the event loop starts after this fixture."""
    numbers = [INT, TERM, *([signal.SIGWINCH] if sys.platform != "win32" else [])]
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def received(dispositions: None) -> Received:
    """Install a handler as a server does, and return the signals that it receives."""
    numbers: Received = []

    def handle(number: int, frame: FrameType | None) -> None:
        numbers.append(number)

    for number in (INT, TERM):
        signal.signal(number, handle)
    return numbers


def get_handlers() -> tuple[Any, Any]:
    return signal.getsignal(INT), signal.getsignal(TERM)


@realtime
async def test_signal_requests_shutdown(received: Received) -> None:
    """A signal requests a shutdown and reaches the previous handler, which is restored."""
    before = get_handlers()
    async with Manager(signals={INT, TERM}) as manager:
        loop = manager.every(3600, checkpoint)
        assert manager.state is ManagerState.RUNNING
        signal.raise_signal(TERM)
        await manager.shutdown_requested()
        assert manager.state is ManagerState.STOPPING
        assert await loop.wait() is TaskStatus.CANCELLED
        assert await manager.run(int) == 0
    assert received == [TERM]
    assert get_handlers() == before


@realtime
async def test_second_signal_with_previous_handler(received: Received) -> None:
    """A second signal does not cancel the body if a previous handler can end it."""
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
    assert received == [INT, TERM]


@realtime
async def test_records_of_signals(received: Received, caplog: pytest.LogCaptureFixture) -> None:
    """Each signal is logged, with what it does."""
    caplog.set_level(logging.INFO, "background")
    async with Manager(name="app", signals={INT, TERM}, grace=7) as manager:
        handle = manager.run(anyio.sleep_forever)
        signal.raise_signal(TERM)
        await manager.shutdown_requested()
        signal.raise_signal(INT)
        await handle.wait()
    async with Manager(signals={TERM}, grace=None) as manager:
        signal.raise_signal(TERM)
        await manager.shutdown_requested()
    assert [text for text in caplog.messages if "received" in text] == [
        "manager 'app' received SIGTERM: its loops stop, and its tasks have 7 s to end",
        "manager 'app' received SIGINT: its tasks are cancelled",
        "manager 'background' received SIGTERM: its loops stop",
    ]


@realtime
async def test_unselected_signals(received: Received) -> None:
    """Signals that are not in `signals` keep their handlers."""
    sigint, sigterm = get_handlers()
    async with Manager(signals=[TERM]) as manager:
        assert get_handlers()[0] is sigint
        signal.raise_signal(INT)
        await checkpoint()
        assert manager.state is ManagerState.RUNNING
    async with Manager():
        assert get_handlers() == (sigint, sigterm)


@realtime
async def test_foreign_handler(received: Received) -> None:
    """A handler that was installed over the manager's is not removed."""
    sigint, _ = get_handlers()

    def foreign(number: int, frame: FrameType | None) -> None:
        raise AssertionError("must not be called")

    async with Manager(signals={INT, TERM}):
        signal.signal(TERM, foreign)
    assert get_handlers() == (sigint, foreign)


@realtime
async def test_handler_reinstalled_after_leaving(received: Received) -> None:
    """The manager's handler only calls the previous one if it is installed again after leaving.

    Code that saved the handler inside the block and restores it later does this.
    """
    async with Manager(signals=[TERM]) as manager:
        installed = signal.getsignal(TERM)
    signal.signal(TERM, installed)
    signal.raise_signal(TERM)
    assert received == [TERM]
    assert manager.state is ManagerState.CLOSED


@posix
@realtime
async def test_default_disposition_after_leaving(dispositions: None) -> None:
    """The default disposition is restored, and applies if the manager's handler is set again.

    The default of SIGWINCH is to do nothing, so the test can raise it.
    """
    number = signal.SIGWINCH
    signal.signal(number, signal.SIG_DFL)
    async with Manager(signals=[number]) as manager:
        installed = signal.getsignal(number)
        signal.raise_signal(number)
        await manager.shutdown_requested()
        assert manager.state is ManagerState.STOPPING
        assert signal.getsignal(number) is installed
    assert signal.getsignal(number) is signal.SIG_DFL
    signal.signal(number, installed)
    signal.raise_signal(number)
    assert signal.getsignal(number) is signal.SIG_DFL


@posix
@realtime
async def test_second_signal_with_default_disposition(dispositions: None) -> None:
    """A second signal cancels the body if the signal has its default disposition."""
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
async def test_default_disposition_with_stuck_task(dispositions: None) -> None:
    """The default disposition is restored even if a task is stuck."""
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
async def test_keyboard_interrupt_after_closing(dispositions: None) -> None:
    """SIGINT raises `KeyboardInterrupt` after the manager has closed."""
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
async def test_keyboard_interrupt_without_streams(
    dispositions: None, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    """SIGINT raises `KeyboardInterrupt` even if the output streams are missing or closed.

    They are missing under `pythonw`, and some daemons close them.
    """
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
async def test_ignored_signal_after_leaving(dispositions: None) -> None:
    """A signal that was ignored before is ignored again after leaving."""
    signal.signal(INT, signal.SIG_IGN)
    async with Manager(signals=[INT]) as manager:
        installed = signal.getsignal(INT)
        signal.raise_signal(INT)
        await manager.shutdown_requested()
    assert signal.getsignal(INT) is signal.SIG_IGN
    signal.signal(INT, installed)
    signal.raise_signal(INT)
    assert manager.state is ManagerState.CLOSED


@realtime
async def test_nested_managers_closed_outer_first(received: Received) -> None:
    """Closing the outer manager first does not affect the previous handler."""
    outer, inner = Manager(signals=[TERM]), Manager(signals=[TERM])
    await outer.__aenter__()
    await inner.__aenter__()
    signal.raise_signal(TERM)
    await outer.shutdown_requested()
    await inner.shutdown_requested()
    assert received == [TERM]
    await outer.close()
    await inner.close()
    await inner.__aexit__(None, None, None)
    await outer.__aexit__(None, None, None)
    signal.raise_signal(TERM)
    assert received == [TERM, TERM]


@realtime
async def test_consecutive_managers(received: Received) -> None:
    """Consecutive managers can handle the same signals."""
    before = get_handlers()
    for _ in range(3):
        async with Manager(signals={INT, TERM}) as manager:
            signal.raise_signal(TERM)
            await manager.shutdown_requested()
        assert get_handlers() == before
    assert received == [TERM] * 3


async def test_grace_after_signal(received: Received) -> None:
    """The grace counts from the signal, and its end cancels tasks inside the block, too."""
    async with Manager(signals=[TERM], grace=30) as manager:
        handle = manager.run(anyio.sleep_forever)
        await anyio.sleep(1)
        signal.raise_signal(TERM)
        await manager.shutdown_requested()
        began = anyio.current_time()
        assert await handle.wait() is TaskStatus.CANCELLED
        assert anyio.current_time() - began == pytest.approx(30)


def run_in_thread(program: Callable[[], Any]) -> Any:
    """Run an async program in another thread; return its result or its exception."""
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


def test_optional_signals_in_thread(received: Received, caplog: pytest.LogCaptureFixture) -> None:
    """`signals=True` changes nothing in other threads, which is logged."""
    caplog.set_level(logging.INFO)
    before = get_handlers()

    async def program() -> str:
        async with Manager(signals=True, name="app") as manager:
            assert get_handlers() == before
            return await manager.run(fine)

    assert run_in_thread(program) == "fine"
    assert "manager 'app' handles no signals, as this is not the main thread" in caplog.text


def test_main_thread_required(received: Received) -> None:
    """Only a manager in the main thread can handle signals."""
    before = get_handlers()
    manager = Manager(signals={INT, TERM})

    async def program() -> None:
        async with manager:
            pass

    error = run_in_thread(program)
    assert isinstance(error, ManagerMisuseError)
    assert "main thread" in str(error)
    assert "request_shutdown()" in str(error)
    assert manager.state is ManagerState.NEW
    assert get_handlers() == before


def test_signal_after_event_loop_end(received: Received) -> None:
    """The handler of a manager that was never left only calls the previous one.

    Its event loop has ended, so no shutdown can be requested.
    """
    left_behind = []

    async def program() -> None:
        left_behind.append(await Manager(signals=[TERM]).__aenter__())

    asyncio.run(program())
    signal.raise_signal(TERM)
    assert received == [TERM]


async def test_callback_after_restore(received: Received) -> None:
    """A callback that a signal schedules has no effect after the handlers are restored."""
    scheduled: list[Callable[[], object]] = []
    async with Manager() as manager:
        handlers = SignalHandlers(
            [TERM],
            manager._runtime.shutdown.request,
            lambda callback, context: scheduled.append(callback),
            lambda number: None,
        )
        handlers.install()
        signal.raise_signal(TERM)
        handlers.restore()
        for callback in scheduled:
            callback()
        assert manager.state is ManagerState.RUNNING
    assert len(scheduled) == 1


def test_signal_under_plain_asyncio(received: Received) -> None:
    """A signal works in an event loop that was not started by `anyio.run()`.

    anyio cannot detect the event loop in callbacks of such a loop, and servers use such loops.
    """

    async def program() -> TaskStatus:
        async with asyncio.timeout(PATIENCE), Manager(signals=[TERM], grace=0) as manager:
            handle = manager.run(anyio.sleep_forever)
            signal.raise_signal(TERM)
            return await handle.wait()

    assert asyncio.run(program()) is TaskStatus.CANCELLED


def test_body_error_from_shutdown() -> None:
    """An error of the body comes from the shutdown if it consists of its cancellations only."""
    cancelled = TaskCancelledError("name", "id", "shutdown")
    assert _is_from_shutdown(cancelled)
    assert _is_from_shutdown(ExceptionGroup("two", [cancelled, ExceptionGroup("one", [cancelled])]))
    assert not _is_from_shutdown(ExceptionGroup("two", [cancelled, ValueError()]))
    assert not _is_from_shutdown(TaskCancelledError("name", "id", "enough"))
    nested: Exception = cancelled
    for _ in range(5_000):
        nested = ExceptionGroup("nested", [nested])
    assert _is_from_shutdown(nested)
