"""The edges where the event loop, not the manager, decides."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from background import Manager, ManagerClosed, Observer, Task, TaskHandle, TaskKind, TaskStatus
from background._eventloop._asyncio import _replace
from background._eventloop.running import current_backend
from background._execution.handle import state_of
from background.testing import RecordingObserver


def native(name: str) -> asyncio.Task[Any]:
    (task,) = (each for each in asyncio.all_tasks() if each.get_name() == name)
    return task


async def test_only_a_coroutine_that_is_thrown_away_has_to_let_generator_exit_pass() -> None:
    backend = current_backend()
    assert not backend.ends(backend.current_task(), GeneratorExit())
    assert backend.ends(object(), GeneratorExit())


def test_outside_of_any_loop_there_is_no_current_task(anyio_backend: Any) -> None:
    async def main() -> Any:
        return current_backend()

    name, options = anyio_backend
    backend = anyio.run(main, backend=name, backend_options=options)
    assert backend.current_task() is None
    assert not backend.is_running()
    assert backend.ends(object(), GeneratorExit())


@pytest.mark.realtime
async def test_without_sniffio_nothing_has_to_be_told_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which is there only where trio is installed."""
    monkeypatch.delitem(sys.modules, "sniffio", raising=False)

    async def fine() -> str:
        return "fine"

    async with Manager() as manager:
        handle: TaskHandle[str] = await anyio.to_thread.run_sync(manager.run, fine)
        assert await handle == "fine"


@pytest.mark.parametrize("kind", TaskKind)
def test_cancelled_by_the_manager_and_by_the_loop_before_the_first_step(kind: TaskKind) -> None:
    recorder = RecordingObserver()

    async def main() -> None:
        async with Manager(observers=[recorder]) as manager:
            handle = manager.run_task(Task(anyio.sleep_forever, kind=kind, name="early"))
            assert handle.cancel("mine")
            native("early").cancel()
            await handle.wait()
            assert not manager._entered().scheduler._cancel(state_of(handle), "late")
            await checkpoint()
        assert recorder.names() == ["added", "cancelled", "closing", "closed"]

    asyncio.run(main())


async def test_a_service_that_starts_while_they_are_stopped_is_stopped_too() -> None:
    class Late(Observer):
        async def watch(self, manager: Manager) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                manager._entered().services.start("late", never)

    ended: list[str] = []

    async def never() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("late")

    async with Manager(observers=[Late()]) as manager:
        await manager.run(checkpoint)
    assert ended == ["late"]


async def test_grace_that_outlasts_the_closing_leaves_the_body_alone() -> None:
    """Somebody else owns the process, or nobody asked for its end."""
    async with Manager(grace=10) as manager:
        manager.request_shutdown()
        await manager.close()
        await anyio.sleep(100)
        manager.request_shutdown()
        await checkpoint()


async def test_body_that_stays_is_ended_when_nobody_else_ends_the_process(
    anyio_backend: object,
) -> None:
    """After the grace, the closing, and time to clean up."""
    began = anyio.current_time()
    async with Manager(grace=10, cancel_timeout=5) as manager:
        manager._entered().shutdown.request(ends_process=True)
        await manager.close()
        await anyio.sleep(1000)
    assert anyio.current_time() - began == 15


def test_closing_that_the_loop_cancels_while_observers_catch_up_still_ends() -> None:
    class Slow(Observer):
        async def on_task_succeeded(self, event: object) -> None:
            await anyio.sleep_forever()

    recorder = RecordingObserver()

    async def main() -> None:
        async with Manager(observers=[Slow(), recorder], cancel_timeout=0.1) as manager:
            handle = manager.run(checkpoint)
            closing = asyncio.create_task(manager.close())
            await recorder.wait_for(ManagerClosed)
            native("background closing").cancel()
            report = await closing
            assert report.succeeded == (handle,)
        assert recorder.names().count("closed") == 1

    asyncio.run(main())


def test_grace_that_the_loop_cancels_before_it_counts_is_no_more() -> None:
    async def main() -> None:
        async with Manager() as manager:
            manager.request_shutdown()
            native("background grace").cancel()
            await checkpoint()
            assert await manager.run(str, 1) == "1"

    asyncio.run(main())


def test_cancelled_twice_by_the_loop_before_the_first_step() -> None:
    recorder = RecordingObserver()

    async def main() -> None:
        async with Manager(observers=[recorder]) as manager:
            handle = manager.run(checkpoint)
            child = native(handle.name)
            child.cancel()
            child.cancel()
            assert await handle.wait() is TaskStatus.CANCELLED
        assert recorder.names(handle.id) == ["added", "cancelled"]

    asyncio.run(main())


def wakeup_descriptor() -> int:
    """Return where Python writes the numbers of signals now; -1 is nowhere."""
    descriptor = signal.set_wakeup_fd(-1)
    if descriptor != -1:
        signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
    return descriptor


@pytest.mark.realtime
async def test_a_loop_that_waits_is_woken_by_signals() -> None:
    """By itself, or by the manager, which puts back what it found."""
    before = wakeup_descriptor()
    async with Manager(signals={signal.SIGTERM}) as manager:
        await manager.run(checkpoint)
        assert wakeup_descriptor() != -1
        if before != -1:
            assert wakeup_descriptor() == before
    assert wakeup_descriptor() == before


def test_somebody_elses_wakeup_descriptor_is_left_alone() -> None:
    theirs, other = socket.socketpair()

    async def main() -> None:
        async with Manager(signals={signal.SIGTERM}) as manager:
            await manager.run(checkpoint)
            theirs.setblocking(False)
            signal.set_wakeup_fd(theirs.fileno())
        assert signal.set_wakeup_fd(-1) == theirs.fileno()

    with theirs, other:
        asyncio.run(main())


def test_a_wakeup_descriptor_that_was_closed_counts_as_none() -> None:
    reading, writing = socket.socketpair()
    gone, other = socket.socketpair()
    with reading, writing:
        for each in (reading, writing, gone):
            each.setblocking(False)
        signal.set_wakeup_fd(gone.fileno())
        gone.close()
        other.close()
        try:
            assert not _replace(writing.fileno(), reading)
            assert wakeup_descriptor() == writing.fileno()
            assert not _replace(writing.fileno(), reading)
        finally:
            signal.set_wakeup_fd(-1)


def test_a_signal_that_comes_while_descriptors_are_exchanged_is_handed_on() -> None:
    reading, writing = socket.socketpair()
    theirs, other = socket.socketpair()
    with reading, writing, theirs, other:
        for each in (reading, writing, theirs, other):
            each.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno())
        try:
            writing.send(b"\x0f")
            assert _replace(writing.fileno(), reading)
            assert other.recv(9) == b"\x0f"
            assert wakeup_descriptor() == theirs.fileno()
        finally:
            signal.set_wakeup_fd(-1)
