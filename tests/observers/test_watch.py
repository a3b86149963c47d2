"""Services of observers: `watch()` runs beside the tasks for as long as the manager does."""

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
    """Keeps what its service sees."""

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


async def test_watch_runs_as_long_as_the_manager() -> None:
    """It is still there while the manager closes, and is cancelled and awaited after that."""
    observer = Watching(swallows=2)
    async with Manager(observers=[observer]) as manager:
        await observer.started.wait()
        assert observer.manager is manager
        manager.run(nap, 10)
        await manager.close()
        assert observer.log == [ManagerState.RUNNING]
    assert observer.log == [ManagerState.RUNNING, ManagerState.CLOSED, "ended"]


async def test_watch_is_cancelled_when_the_body_fails() -> None:
    observer = Watching()

    async def use() -> None:
        async with Manager(observers=[observer]):
            await observer.started.wait()
            raise ValueError("body")

    with pytest.raises(ValueError, match="body"):
        await use()
    assert observer.log[-1] == "ended"


async def test_watch_that_swallows_its_cancellation_does_not_hold_the_manager() -> None:
    observer = Watching(swallows=1000)
    began = anyio.current_time()
    async with Manager(observers=[observer], cancel_timeout=3):
        await observer.started.wait()
    assert anyio.current_time() - began == pytest.approx(3)
    assert "ended" not in observer.log


async def test_watch_may_return() -> None:
    returned = anyio.Event()

    class Brief(Observer):
        async def watch(self, manager: Manager) -> None:
            returned.set()

    async with Manager(observers=[Brief()]) as manager:
        await returned.wait()
        assert await manager.run(fine) == "fine"
    assert manager.health().hook_errors == 0


async def test_watch_starts_from_the_context_of_the_manager() -> None:
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


async def test_watch_can_submit_look_and_cancel(recorder: RecordingObserver) -> None:
    """A service has the whole manager, and reports stalls by it."""

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


async def test_watch_may_close_the_manager(recorder: RecordingObserver) -> None:
    class Closing(Observer):
        async def watch(self, manager: Manager) -> None:
            await anyio.sleep(5)
            await manager.close(timeout=0)

    async with Manager(observers=[Closing(), recorder]) as manager:
        handle = manager.run(nap, 1000)
        await manager.shutdown_requested()
    assert recorder.names(handle.id) == ["added", "started", "cancelled"]


async def test_no_service_without_watch() -> None:
    """The base class's `watch` is not even called."""
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
async def test_wrong_kind_of_hook_is_refused(hook: str) -> None:
    async def asynchronous(self: Observer, event: object) -> None:
        pass

    def plain(self: Observer, event: object) -> None:
        pass

    function = plain if hook == "watch" else asynchronous
    wrong = type("Wrong", (Observer,), {hook: function})()
    with pytest.raises(ValueError, match=rf"^observers: Wrong\.{hook} must be an? "):
        Manager(observers=[wrong])


def test_watching_observer_of_a_task_is_refused() -> None:
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
    """Raises `after` so many seconds, or when it is cancelled."""

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
async def test_raising_watch_harms_nothing(
    after: float, error: Callable[[], BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """The service ends there, and everything else goes on."""
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
async def test_interrupting_watch_ends_the_program_in_order(
    after: float, error: Callable[[], BaseException], recorder: RecordingObserver
) -> None:
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
