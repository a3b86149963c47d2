"""Declarations of handlers: which functions they take."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from anyio import to_thread

from background import InvalidTaskError, Manager, every, retry_on
from background.queues import JobQueue, chain, group
from background.queues.memory import MemoryBroker
from background.testing import RecordingObserver


@pytest.fixture
def jobs() -> JobQueue:
    return JobQueue(MemoryBroker())


def logged(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await fn(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize("decorator", [lambda fn: fn, logged], ids=["plain", "wrapped"])
def test_method(jobs: JobQueue, decorator: Callable[..., Any]) -> None:
    """A method in the body of its class is refused, with what to do."""
    with pytest.raises(TypeError, match=r"Mailer\.send is a method, .* no self .*mailer\.send"):

        class Mailer:
            @jobs.handler()
            @decorator
            async def send(self, to: str) -> None: ...

    with pytest.raises(TypeError, match=r"Maker\.make is a method, and a job has no cls to"):

        class Maker:
            @classmethod
            @jobs.handler()
            @decorator
            async def make(cls, to: str) -> None: ...


class Sender:
    def __init__(self, host: str) -> None:
        self.host = host

    async def send(self, to: str) -> str:
        return f"{to} at {self.host}"


async def test_functions_that_are_no_methods(jobs: JobQueue, manager: Manager) -> None:
    """Functions that need no object of a class are handlers, whatever their parameters' names."""

    class Owner:
        @jobs.handler(name="inside")
        @staticmethod
        async def inside(to: str) -> str:
            return to

        @staticmethod
        @jobs.handler(name="outside")
        async def outside(to: str) -> str:
            return to

    @jobs.handler(name="local")
    async def local(self: str) -> str:
        return self

    @jobs.handler(name="unannotated")
    async def unannotated(self) -> str:  # type: ignore[no-untyped-def]  # noqa: ANN001
        return str(self)

    bound = jobs.handler(name="bound")(Sender("here").send)
    async with jobs:
        await jobs.start(manager)
        handlers: list[Any] = [Owner.inside, Owner.outside, local, unannotated]
        assert [await (await handler.enqueue("a")).result() for handler in handlers] == ["a"] * 4
        assert await (await bound.enqueue("a")).result() == "a at here"


async def test_decorator_without_parentheses(jobs: JobQueue, manager: Manager) -> None:
    """`@jobs.handler` without parentheses makes a handler with the default options."""

    @jobs.handler
    async def double(number: int) -> int:
        return 2 * number

    assert double.name == f"{__name__}.test_decorator_without_parentheses.double"
    async with jobs:
        await jobs.start(manager)
        assert await (await double.enqueue(2)).result() == 4
    with pytest.raises(InvalidTaskError, match=r"^fn must be a function, not str$"):
        jobs.handler("mail")  # type: ignore[call-overload]


class Payload:
    def __repr__(self) -> str:
        return "s3cr3t"


async def test_payload_in_errors(manager: Manager, jobs: JobQueue) -> None:
    """Errors about an argument of the wrong type have its type, and not its value."""
    payload: Any = Payload()

    async def handle(payload: Any) -> None: ...

    job = jobs.handler(name="handle")(handle).job(1)
    calls: list[Callable[[], Any]] = [
        lambda: manager.run(payload),
        lambda: manager.run_task(payload),
        lambda: retry_on(payload),
        lambda: jobs.handler(functools.partial(handle, payload)),
        lambda: jobs.schedule(payload, job),
        lambda: jobs.schedule(every(60), payload),
        lambda: chain(job, payload),
        lambda: group(job, payload),
        lambda: jobs.register_type(payload, repr, str),
        lambda: jobs.enqueue_many_sync(payload),
        lambda: jobs.enqueue_many_sync([payload]),
    ]
    async with jobs:
        for call in calls:
            with pytest.raises((TypeError, ValueError)) as caught:
                await to_thread.run_sync(call)
            assert "s3cr3t" not in str(caught.value)


async def test_single_observer(manager: Manager) -> None:
    """A single observer of a queue or a handler can be given instead of a collection."""
    of_queue, of_handler = RecordingObserver(), RecordingObserver()
    jobs = JobQueue(MemoryBroker(), observers=of_queue)

    @jobs.handler(observers=of_handler)
    async def work() -> None: ...

    async with jobs:
        await jobs.start(manager)
        await (await work.enqueue()).result()
    for observer in (of_queue, of_handler):
        assert observer.names() == ["enqueued", "added", "started", "succeeded"]


@dataclass
class Mail:
    to: str

    async def send(self: Mail) -> str:
        return self.to


async def test_method_of_data(jobs: JobQueue, manager: Manager) -> None:
    """A method whose `self` is annotated as data takes its object from the job."""
    handler = jobs.handler()(Mail.send)
    async with jobs:
        await jobs.start(manager)
        assert await (await handler.enqueue(Mail("a"))).result() == "a"
