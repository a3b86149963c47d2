"""Edge cases of the event loop: native cancellation, shutdown, and signals."""

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


def find_native_task(name: str) -> asyncio.Task[Any]:
    (task,) = (task for task in asyncio.all_tasks() if task.get_name() == name)
    return task


async def test_generator_exit_of_closed_coroutine() -> None:
    """`GeneratorExit` ends a coroutine only if it is closed outside its own task."""
    backend = current_backend()
    assert not backend.ends(backend.current_task(), GeneratorExit())
    assert backend.ends(object(), GeneratorExit())


def test_backend_outside_event_loop(anyio_backend: Any) -> None:
    """A backend used outside its event loop has no current task and is not running."""

    async def main() -> Any:
        return current_backend()

    name, options = anyio_backend
    backend = anyio.run(main, backend=name, backend_options=options)
    assert backend.current_task() is None
    assert not backend.is_current()
    assert backend.ends(object(), GeneratorExit())


@pytest.mark.realtime
async def test_without_sniffio(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Submission from a thread works without sniffio, which only trio installs."""
    monkeypatch.delitem(sys.modules, "sniffio", raising=False)

    async def work() -> str:
        return "done"

    async with Manager() as manager:
        handle: TaskHandle[str] = await anyio.to_thread.run_sync(manager.run, work)
        assert await handle == "done"


@pytest.mark.parametrize("kind", TaskKind)
def test_two_cancellations_before_first_step(kind: TaskKind) -> None:
    """A task cancelled by the manager and by asyncio before its first step ends once."""
    recorder = RecordingObserver()

    async def main() -> None:
        async with Manager(observers=[recorder]) as manager:
            handle = manager.run_task(Task(anyio.sleep_forever, kind=kind, name="early"))
            assert handle.cancel("first")
            find_native_task("early").cancel()
            await handle.wait()
            assert not manager._entered().scheduler._cancel(state_of(handle), "late")
            await checkpoint()
        assert recorder.names() == ["added", "cancelled", "closing", "closed"]

    asyncio.run(main())


async def test_failed_service(manager: Manager, caplog: pytest.LogCaptureFixture) -> None:
    """An error of a service is logged, and does not end the program."""

    async def fail() -> None:
        raise RuntimeError("wrong")

    manager._entered().services.start("fail", fail)
    await manager.run(checkpoint)
    (record,) = caplog.records
    assert record.getMessage() == "a service of the manager failed"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "wrong"


async def test_service_started_during_stop() -> None:
    """A service that starts while services are stopped is stopped, too."""

    class Late(Observer):
        async def watch(self, manager: Manager) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                manager._entered().services.start("late", wait_forever)

    ended: list[str] = []

    async def wait_forever() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("late")

    async with Manager(observers=[Late()]) as manager:
        await manager.run(checkpoint)
    assert ended == ["late"]


async def test_grace_outlasts_closing() -> None:
    """The end of the grace period does not cancel the body if it need not end the process."""
    async with Manager(grace=10) as manager:
        manager.request_shutdown()
        await manager.close()
        await anyio.sleep(100)
        manager.request_shutdown()
        await checkpoint()


async def test_body_cancelled_after_grace(
    anyio_backend: object,
) -> None:
    """A shutdown that ends the process cancels the body after grace and cancel timeout."""
    began = anyio.current_time()
    async with Manager(grace=10, cancel_timeout=5) as manager:
        manager._entered().shutdown.request(ends_process=True)
        await manager.close()
        await anyio.sleep(1000)
    assert anyio.current_time() - began == 15


def test_native_cancellation_of_closing() -> None:
    """Closing completes when asyncio cancels it while it waits for observers."""

    class Slow(Observer):
        async def on_task_succeeded(self, event: object) -> None:
            await anyio.sleep_forever()

    recorder = RecordingObserver()

    async def main() -> None:
        async with Manager(observers=[Slow(), recorder], cancel_timeout=0.1) as manager:
            handle = manager.run(checkpoint)
            closing = asyncio.create_task(manager.close())
            await recorder.wait_for(ManagerClosed)
            find_native_task("background closing").cancel()
            report = await closing
            assert report.succeeded == (handle,)
        assert recorder.names().count("closed") == 1

    asyncio.run(main())


def test_native_cancellation_of_grace() -> None:
    """The manager stays open when asyncio cancels the grace period before its first step."""

    async def main() -> None:
        async with Manager() as manager:
            manager.request_shutdown()
            find_native_task("background grace").cancel()
            await checkpoint()
            assert await manager.run(str, 1) == "1"

    asyncio.run(main())


def test_native_cancellation_twice() -> None:
    """A task that asyncio cancels twice before its first step ends as cancelled once."""
    recorder = RecordingObserver()

    async def main() -> None:
        async with Manager(observers=[recorder]) as manager:
            handle = manager.run(checkpoint)
            native_task = find_native_task(handle.name)
            native_task.cancel()
            native_task.cancel()
            assert await handle.wait() is TaskStatus.CANCELLED
        assert recorder.names(handle.id) == ["added", "cancelled"]

    asyncio.run(main())


def get_wakeup_descriptor() -> int:
    """Return the file descriptor that Python writes signal numbers to, or -1."""
    descriptor = signal.set_wakeup_fd(-1)
    if descriptor != -1:
        signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
    return descriptor


@pytest.mark.realtime
async def test_signal_wakeup_descriptor() -> None:
    """A wakeup descriptor is set while signals are handled, and the previous one is restored."""
    before = get_wakeup_descriptor()
    async with Manager(signals={signal.SIGTERM}) as manager:
        await manager.run(checkpoint)
        assert get_wakeup_descriptor() != -1
        if before != -1:
            assert get_wakeup_descriptor() == before
    assert get_wakeup_descriptor() == before


def test_foreign_wakeup_descriptor() -> None:
    """The manager does not replace a wakeup descriptor that other code has set."""
    writing, reading = socket.socketpair()

    async def main() -> None:
        async with Manager(signals={signal.SIGTERM}) as manager:
            await manager.run(checkpoint)
            writing.setblocking(False)
            signal.set_wakeup_fd(writing.fileno())
        assert signal.set_wakeup_fd(-1) == writing.fileno()

    with writing, reading:
        asyncio.run(main())


def test_closed_wakeup_descriptor() -> None:
    """A closed wakeup descriptor is treated as not set."""
    reading, writing = socket.socketpair()
    closed, closed_peer = socket.socketpair()
    with reading, writing:
        for sock in (reading, writing, closed):
            sock.setblocking(False)
        signal.set_wakeup_fd(closed.fileno())
        closed.close()
        closed_peer.close()
        try:
            assert not _replace(writing.fileno(), reading)
            assert get_wakeup_descriptor() == writing.fileno()
            assert not _replace(writing.fileno(), reading)
        finally:
            signal.set_wakeup_fd(-1)


def test_signal_during_descriptor_exchange() -> None:
    """A signal that arrives while descriptors are exchanged is passed on to the foreign one."""
    reading, writing = socket.socketpair()
    foreign, foreign_peer = socket.socketpair()
    with reading, writing, foreign, foreign_peer:
        for sock in (reading, writing, foreign, foreign_peer):
            sock.setblocking(False)
        signal.set_wakeup_fd(foreign.fileno())
        try:
            writing.send(b"\x0f")
            assert _replace(writing.fileno(), reading)
            assert foreign_peer.recv(9) == b"\x0f"
            assert get_wakeup_descriptor() == foreign.fileno()
        finally:
            signal.set_wakeup_fd(-1)
