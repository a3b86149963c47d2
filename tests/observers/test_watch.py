"""The `watch()` services of observers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar

import anyio
import pytest
from support.outcomes import fine, nap

from background import InvalidTaskError, Manager, ManagerState, Observer, Task, TaskStarted
from background.testing import RecordingObserver

flavour = ContextVar("flavour", default="none")


class Oops(BaseException):
    pass


class Watching(Observer):
    """Records the manager's states that its service sees."""

    def __init__(self, swallows: float = 0) -> None:
        self.log: list[object] = []
        self.manager: Manager | None = None
        self.started = anyio.Event()
        self._swallows = swallows

    async def watch(self, manager: Manager) -> None:
        self.manager = manager
        self.log.append(manager.state)
        self.started.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.log.append(manager.state)
            with anyio.CancelScope(shield=True):
                await anyio.sleep(self._swallows)
            self.log.append("ended")


async def test_lifetime() -> None:
    """A service runs until the manager has closed, and is then cancelled and awaited."""
    observer = Watching(swallows=2)
    async with Manager(observers=[observer]) as manager:
        await observer.started.wait()
        assert observer.manager is manager
        manager.run(nap, 10)
        await manager.close()
        assert observer.log == [ManagerState.RUNNING]
    assert observer.log == [ManagerState.RUNNING, ManagerState.CLOSED, "ended"]


async def test_body_fails() -> None:
    """A service is cancelled when the body fails."""
    observer = Watching()

    async def use() -> None:
        async with Manager(observers=[observer]):
            await observer.started.wait()
            raise ValueError("body")

    with pytest.raises(ValueError, match="body"):
        await use()
    assert observer.log[-1] == "ended"


async def test_service_ignores_cancellation() -> None:
    """A service that ignores its cancellation delays leaving by at most `cancel_timeout`."""
    observer = Watching(swallows=1000)
    began = anyio.current_time()
    async with Manager(observers=[observer], cancel_timeout=3):
        await observer.started.wait()
    assert anyio.current_time() - began == pytest.approx(3)
    assert "ended" not in observer.log


async def test_service_returns() -> None:
    """A service may return before the manager closes."""
    returned = anyio.Event()

    class Brief(Observer):
        async def watch(self, manager: Manager) -> None:
            returned.set()

    async with Manager(observers=[Brief()]) as manager:
        await returned.wait()
        assert await manager.run(fine) == "fine"
    assert manager.health().hook_errors == 0


async def test_context_variables() -> None:
    """A service starts with its own copy of the manager's context."""
    seen: list[str] = []

    class Tasting(Observer):
        async def watch(self, manager: Manager) -> None:
            seen.append(flavour.get())
            flavour.set("salt")

    flavour.set("sugar")
    async with Manager(observers=[Tasting(), Tasting()]) as manager:
        await manager.run(nap, 1)
    assert seen == ["sugar", "sugar"]
    assert flavour.get() == "sugar"


async def test_service_uses_manager(recorder: RecordingObserver) -> None:
    """A service can inspect, cancel and submit tasks, and report stalls."""

    class Impatient(Observer):
        async def watch(self, manager: Manager) -> None:
            await anyio.sleep(5)
            (handle,) = manager.tasks()
            manager.report_stall(handle.id, elapsed=5)
            handle.cancel("too slow")
            await manager.run(fine)

    async with Manager(observers=[Impatient(), recorder]) as manager:
        handle = manager.run(nap, 1000)
        await handle.wait()
        await manager.wait()
    assert recorder.names(handle.id) == ["added", "started", "stalled", "cancelled"]
    assert recorder.names().count("succeeded") == 1


async def test_service_closes_manager(recorder: RecordingObserver) -> None:
    """A service can close the manager."""

    class Closing(Observer):
        async def watch(self, manager: Manager) -> None:
            await anyio.sleep(5)
            await manager.close(timeout=0)

    async with Manager(observers=[Closing(), recorder]) as manager:
        handle = manager.run(nap, 1000)
        await manager.shutdown_requested()
    assert recorder.names(handle.id) == ["added", "started", "cancelled"]


async def test_not_overridden() -> None:
    """No service starts for an observer that does not override `watch()`."""
    called: list[object] = []

    class Plain(Observer):
        def on_task_started(self, event: TaskStarted) -> None:
            pass

    observer = Plain()
    before = Observer.watch
    async with Manager(observers=[observer]) as manager:
        Observer.watch = called.append  # type: ignore[method-assign, assignment]
        try:
            await manager.run(fine)
        finally:
            Observer.watch = before  # type: ignore[method-assign]
    assert called == []


@pytest.mark.parametrize("hook", ["watch", "around_task"])
async def test_wrong_kind_of_hook(hook: str) -> None:
    """A plain `watch` and an `async def around_task` are refused."""

    async def asynchronous(self: Observer, event: object) -> None:
        pass

    def plain(self: Observer, event: object) -> None:
        pass

    function = plain if hook == "watch" else asynchronous
    wrong = type("Wrong", (Observer,), {hook: function})()
    with pytest.raises(ValueError, match=rf"^observers: Wrong\.{hook} must be an? "):
        Manager(observers=[wrong])


def test_observer_of_task() -> None:
    """An observer with a `watch()` service is refused as an observer of a task."""
    with pytest.raises(InvalidTaskError, match=r"pass the Watching to Manager\(observers=…\)"):
        Task(fine, observers=(Watching(),))


HARMLESS: dict[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError("broken hook"),
    "BaseException": lambda: Oops("broken hook"),
    "CancelledError": lambda: asyncio.CancelledError("broken hook"),
    "GeneratorExit": GeneratorExit,
}
FATAL: dict[str, Callable[[], BaseException]] = {
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": lambda: SystemExit(3),
}


class RaisingWatch(Observer):
    """Raises after `after` seconds, or when it is cancelled."""

    def __init__(self, error: Callable[[], BaseException], after: float) -> None:
        self.error = error
        self.after = after

    async def watch(self, manager: Manager) -> None:
        try:
            await anyio.sleep(self.after)
        finally:
            raise self.error()


@pytest.mark.parametrize(
    ("error", "after"),
    [
        pytest.param(error, after, id=f"{name} after {after} s")
        for name, error in HARMLESS.items()
        for after in (0, 5, 1000)
        if (name, after) != ("CancelledError", 1000)  # that is how a cancelled service ends
    ],
)
async def test_raising_service(
    after: float, error: Callable[[], BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """An exception ends the service and affects nothing else."""
    recorder = RecordingObserver()
    async with Manager(observers=[RaisingWatch(error, after), recorder]) as manager:
        await manager.run(nap, 10)
        assert manager.health().hook_errors == (after < 10)
        assert await manager.run(fine) == "fine"
    assert recorder.names()[-1] == "closed"
    assert manager.health().hook_errors == 1
    (record,) = caplog.records
    assert "RaisingWatch.watch raised" in record.getMessage()
    assert record.exc_info is not None
    assert type(record.exc_info[1]) is type(error())


@pytest.mark.parametrize("error", FATAL.values(), ids=FATAL)
@pytest.mark.parametrize("after", [0, 5, 1000], ids=["at once", "later", "when cancelled"])
async def test_interrupting_service(
    after: float, error: Callable[[], BaseException], recorder: RecordingObserver
) -> None:
    """A service's `KeyboardInterrupt` or `SystemExit` is raised when all tasks have ended."""
    manager = Manager(observers=[RaisingWatch(error, after), recorder])

    async def use() -> None:
        async with manager:
            manager.run(nap, 10)
            await manager.wait()

    with pytest.raises(type(error())):
        await use()
    assert manager.state is ManagerState.CLOSED
    assert manager.count() == 0
    ended = "cancelled" if after < 10 else "succeeded"
    assert sorted(recorder.names()[-3:]) == sorted(["closing", ended, "closed"])
    assert "failed" not in recorder.names()
