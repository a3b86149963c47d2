"""Enqueues jobs, chains and groups, and notifies observers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextvars import copy_context
from typing import Any, TypeVar

from ..._eventloop.running import current_backend
from ..._eventloop.services import Services
from ..._events import JobEnqueued, JobRef
from ..._lifecycle.host import WorkerHost
from ..._notify.dispatcher import Dispatcher
from ..._observer import Observer, check_observers, collected, overrides
from ..._support import clock
from .._client import Client
from .._errors import DuplicateJobError
from .._names import new_id
from .._sync import SyncCalls
from ..abc import Message
from .handle import JobHandle
from .messages import Terms
from .options import NO_OPTIONS, CheckedOptions
from .steps import Compiler, Single, Step

T = TypeVar("T")

_LONGEST_ID = 120  # characters of a chain's or group's id; its jobs get a number after it


class Enqueuer:
    """Enqueues jobs for a queue and its handlers.

    It notifies the queue's observers, those of the handlers, and those of the managers that run
    workers of the queue.

    Args:
        client: The broker and the store of results.
        sync: Runs calls of sync code.
        terms: The settings of jobs without a handler in this process.
        observers: The queue's observers.
        load_result: Converts a result to the type of the handler's annotation.
    """

    def __init__(
        self,
        client: Client,
        sync: SyncCalls,
        terms: Terms,
        observers: tuple[Observer, ...],
        load_result: Callable[[str | None, Any], Any],
    ) -> None:
        self.sync = sync
        self.terms = terms
        self.max_payload = client.max_payload
        self._client = client
        self._observers = observers
        self._load_result = load_result
        self._own: tuple[Dispatcher, Services] | None = None  # while the queue is open
        self._hosts: list[WorkerHost] = []
        self._fatal: list[BaseException] = []

    def open(self) -> None:
        """Prepare to notify observers, in the running event loop."""
        backend = current_backend()
        services = Services(backend, copy_context())
        dispatcher = Dispatcher(self._observers, backend, services, self._fatal.append)
        self._own = dispatcher, services

    async def close(self, timeout: float) -> None:
        """Let `async def` hooks catch up for at most `timeout` seconds.

        It can be called again if the event loop interrupts it.

        Raises:
            BaseException: The error of a hook that must end the program.
        """
        if self._own is None:
            return
        dispatcher, services = self._own
        self._hosts.clear()
        await dispatcher.flush(timeout)
        dispatcher.close()
        await services.stop(timeout)
        self._own = None
        self._raise_fatal()

    def join(self, host: WorkerHost) -> None:
        """Notify a manager's observers, too."""
        self._hosts = [*(joined for joined in self._hosts if not joined.is_closed), host]

    async def enqueue(
        self,
        messages: Sequence[Message],
        options: CheckedOptions,
        observers: tuple[Observer, ...],
    ) -> None:
        """Enqueue messages, all or none, and notify observers.

        Raises:
            QueueError: The queue is not open.
            DuplicateJobError: An id is stored already.
            BrokerUnavailableError: The broker can't be reached.
        """
        await self._client.enqueue(messages)
        self._notify(messages, options, observers)

    async def enqueue_step(self, step: Step[T], id: str | None) -> JobHandle[T]:
        """Enqueue a job, chain or group.

        Args:
            step: The job, chain or group.
            id: Its id; `None` for a new id.

        Raises:
            ValueError: `id` is too long for a chain or group.
            DuplicateJobError: A job with the same id is stored.
            BrokerUnavailableError: The broker can't be reached.
            QueueError: The queue is not open.
        """
        self._client.check()
        if isinstance(step, Single):
            message = step.message(id, self.max_payload)
            await self.enqueue([message], step.options, step.observers)
            return self.handle(message.id)
        if id is None:
            id = new_id()
        elif len(id) > _LONGEST_ID:
            raise ValueError(
                f"id of a chain or group can have {_LONGEST_ID} characters, not {len(id)}"
            )
        elif await self._client.broker.get(id) is not None:  # its steps may be deleted already
            raise DuplicateJobError(f"a job with the id {id!r} is stored")
        compiler = Compiler(id, self.terms, self.max_payload)
        messages = compiler.compile(step)
        await self._client.enqueue(messages)
        for message, single in zip(messages, compiler.steps, strict=False):
            self._notify([message], single.options, single.observers)
        self._notify(messages[-1:], NO_OPTIONS, ())
        return JobHandle(id, self._client, lambda _, plain: step.load_result(plain))

    async def enqueue_steps(self, steps: Sequence[Single[Any]]) -> list[JobHandle[Any]]:
        """Enqueue single jobs with one call of the broker.

        Raises:
            PayloadTooLargeError: A job is larger than `max_payload`.
            BrokerUnavailableError: The broker can't be reached.
            QueueError: The queue is not open.
        """
        messages = [step.message(None, self.max_payload) for step in steps]
        await self._client.enqueue(messages)
        for message, step in zip(messages, steps, strict=True):
            self._notify([message], step.options, step.observers)
        return [self.handle(message.id) for message in messages]

    async def stored(self, id: str) -> Message | None:
        """Return the message of a stored job, or `None`.

        Raises:
            BrokerUnavailableError: The broker can't be reached.
        """
        job = await self._client.broker.get(id)
        return None if job is None else job.message

    def handle(self, id: str) -> JobHandle[Any]:
        """Return the handle of a job."""
        return JobHandle(id, self._client, self._load_result)

    def _notify(
        self,
        messages: Sequence[Message],
        options: CheckedOptions,
        observers: tuple[Observer, ...],
    ) -> None:
        guests = self._observers + observers
        if self._own is None:  # the queue was closed meanwhile
            return
        own, _ = self._own
        dispatchers = [host.dispatcher for host in self._hosts if not host.is_closed] or [own]
        notified: set[int] = set()  # ids of observers, which several managers may share
        for dispatcher in dispatchers:
            hooks = dispatcher.add_task_observers(guests) if guests else dispatcher.hooks
            wanted = tuple(
                hook
                for hook in hooks.on_job_enqueued
                if id(hook.subscriber.observer) not in notified
            )
            for message in messages if wanted else ():
                hooks.deliver(wanted, _event(message, options))
            notified.update(id(hook.subscriber.observer) for hook in wanted)
            if guests:
                dispatcher.remove_task_observers(guests)
            guests = ()  # the first dispatcher has notified them
        self._raise_fatal()

    def _raise_fatal(self) -> None:
        """Raise the error of a hook that must end the program."""
        if self._fatal:
            raise self._fatal.pop()


def _event(message: Message, options: CheckedOptions) -> JobEnqueued:
    now = clock.wall()
    delay = message.delay if message.at is None else max(0.0, message.at - now)
    job = JobRef(
        id=message.id,
        handler=message.handler or "",
        queue=message.queue,
        attempt=0,
        enqueued_at=now,
    )
    return JobEnqueued(job=job, meta=options.meta or {}, time=now, delay=delay)


def checked_observers(observers: Observer | Iterable[Observer]) -> tuple[Observer, ...]:
    """Return the observers of a queue or a handler.

    Raises:
        ValueError: A value is not an observer, or an observer implements `watch()`.
    """
    made = collected(observers)
    check_observers(made, ValueError)
    for observer in made:
        if overrides(observer, "watch"):
            raise ValueError(
                f"observers: {type(observer).__name__} implements watch(): pass it to "
                "Manager(observers=…)"
            )
    return made
