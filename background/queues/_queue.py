"""The queue of durable jobs."""

from __future__ import annotations

from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, cast, overload

import anyio
from anyio.lowlevel import checkpoint

from .._config import ManagerOptions
from .._errors import LoopsStoppedError
from .._eventloop.interruption import ki_protected, run_shielded
from .._manager import Manager, host_of
from .._observer import Observer
from .._retry import Retry
from .._schedule import Schedule
from .._support import callables, validation
from .._support.redacted import kind_of
from ._client import Client
from ._codec import json_data
from ._codec.arguments import Signature
from ._codec.custom import CustomTypes
from ._enqueue.enqueuer import Enqueuer, checked_observers
from ._enqueue.handle import JobHandle
from ._enqueue.handler import Handler, HandlerConfig, JobSubmission
from ._enqueue.messages import Terms, message
from ._enqueue.options import NO_OPTIONS, JobOptions, check
from ._enqueue.schedules import JobSchedule
from ._enqueue.steps import Single, Step
from ._enqueue.ticker import Missed
from ._errors import BrokerUnavailableError, QueueError
from ._info import JobInfo
from ._names import check_name, handler_name
from ._queue_loop import QueueLoop, not_open
from ._states import JobState
from ._sync import Home, SyncCalls
from ._urls import make_broker
from ._worker.pool import WorkerPool
from ._worker.selection import Ordered, Selection
from ._worker.worker import Worker
from .abc import Broker, Results

P = ParamSpec("P")
T = TypeVar("T")
B = TypeVar("B", bound=Broker)

List = list  # JobQueue has a method of this name

_FLUSH = 5.0  # seconds that observers get to catch up when a queue is closed
_SYNC_FLUSH = 1.0  # seconds that calls of sync code get to end when a queue is left
_URL_OF_BROKER = "JobQueue.from_url(…), or a broker such as RedisBroker(…), takes a URL"


class QueueOptions(TypedDict, total=False):
    """The arguments of `JobQueue` except for the broker."""

    results: Results | None
    observers: Observer | Iterable[Observer]
    lease: float
    max_payload: int
    max_crashes: int
    retention: float
    dead_retention: float
    unknown_for: float
    wait: float
    sync_timeout: float
    baggage: bool


class HandlerDecorator(Protocol):
    """The decorator that `JobQueue.handler()` returns."""

    @overload
    def __call__(self, fn: Callable[P, Awaitable[T]], /) -> Handler[P, Awaitable[T], T]: ...
    @overload
    def __call__(self, fn: Callable[P, T], /) -> Handler[P, T, T]: ...


@ki_protected
class JobQueue:
    """Durable jobs: enqueued here, and processed by workers in any process.

    An async context manager, which connects to the broker and disconnects. A process that only
    enqueues needs nothing else. The queue, its handlers and its handles work in the event loop
    that entered it; in any other one they raise `QueueError`. It may be left in another task.

    Args:
        broker: The broker that stores the jobs. It belongs to this queue, which opens and closes
            it.
        results: The store of results, if it is not the broker.
        observers: Observers of these jobs, one or several, in addition to a manager's.
        lease: Seconds after which another worker can claim the job of a worker that does not
            respond.
        max_payload: The most bytes of a job's arguments, and of its result.
        max_crashes: A job is dead when this many workers have died while they ran it.
        retention: Seconds for which a job and its result are stored after its end.
        dead_retention: The same for a dead job.
        unknown_for: Seconds for which a job is left for other workers if a worker has no handler
            for it, or the handler does not take its arguments; then it is dead. It counts from the
            first worker that could not run the job, and again after an attempt.
        wait: Seconds for which opening tries again while the broker can't be reached, because a
            service may start before its broker.
        sync_timeout: Seconds that `enqueue_sync` and `enqueue_many_sync` wait for the broker.
        baggage: Whether the OpenTelemetry baggage of the enqueuer is stored with jobs, and attached
            when they run. The trace context always is.

    Raises:
        ValueError: An argument is not valid; the message names it.

    Example:
        ```python
        jobs = JobQueue(SQLiteBroker("jobs.db"))

        @jobs.handler(queue="mail", retry=5, timeout=30)
        async def send_email(to: str, subject: str) -> str: ...

        async with jobs, Manager(signals=True) as manager:
            await jobs.start(manager)
            job = await send_email.enqueue("a@b.c", subject="hi")
            print(await job.result(timeout=10))
        ```
    """

    def __init__(
        self,
        broker: Broker,
        *,
        results: Results | None = None,
        observers: Observer | Iterable[Observer] = (),
        lease: float = 30.0,
        max_payload: int = 1_048_576,
        max_crashes: int = 3,
        retention: float = 86_400.0,
        dead_retention: float = 2_592_000.0,
        unknown_for: float = 86_400.0,
        wait: float = 0.0,
        sync_timeout: float = 25.0,
        baggage: bool = False,
    ) -> None:
        validation.instances("broker", (broker,), Broker, hint=_URL_OF_BROKER)
        if results is not None:
            validation.instances("results", (results,), Results, hint="RedisResults(…) takes a URL")
        validation.seconds("lease", lease, at_least=0.1)
        validation.count("max_payload", max_payload)
        validation.count("max_crashes", max_crashes)
        validation.seconds("retention", retention, at_least=0)
        validation.seconds("dead_retention", dead_retention, at_least=0)
        validation.seconds("unknown_for", unknown_for, at_least=0)
        validation.seconds("wait", wait, at_least=0)
        validation.seconds("sync_timeout", sync_timeout, above=0)
        validation.instances("baggage", (baggage,), bool)
        self._observers = checked_observers(observers)
        self._lease = lease
        self._max_crashes = max_crashes
        self._unknown_for = unknown_for
        self._wait = wait
        self._client = Client(broker, results, max_payload)
        self._terms = Terms("", "default", retention, dead_retention, with_baggage=baggage)
        connect = partial(self._connect, is_private=True)
        self._sync = SyncCalls(connect, self._disconnect, sync_timeout)
        self._enqueuer = Enqueuer(
            self._client, self._sync, self._terms, self._observers, self._load_result
        )
        self._handlers: dict[str, Handler[..., Any, Any]] = {}
        self._types = CustomTypes()
        self._schedules: List[JobSchedule] = []
        self._pool: WorkerPool | None = None  # while the queue is open
        self._home: Home

    @classmethod
    def from_url(
        cls, url: str, *, prefix: str | None = None, **options: Unpack[QueueOptions]
    ) -> JobQueue:
        """Make a queue whose broker a URL names.

        Args:
            url: `memory://`; `sqlite:///jobs.db` for a file here, or `sqlite:////data/jobs.db` for
                one anywhere, with `?synchronous=FULL` if wanted; `redis://`, `rediss://`,
                `valkey://`, `valkeys://` or `unix://`, `redis+sentinel://`, `redis+cluster://`;
                `nats://` or `tls://`. The guide on connections has all options.
            prefix: The beginning of all names on a server, by default `background`. Applications
                that share a server need different ones.
            **options: The other arguments of `JobQueue`.

        Returns:
            The queue.

        Raises:
            ValueError: The URL or an argument is not valid.
            ImportError: An extra is not installed.
        """
        return cls(make_broker(url, prefix), **options)

    def __repr__(self) -> str:
        state = "not open" if self._pool is None else "open"
        results = "" if self._client.results is None else f", results in {self._client.results!r}"
        return f"<JobQueue in {self._client.broker!r}{results}, {state}>"

    async def __aenter__(self) -> JobQueue:
        """Connect to the broker and the store of results.

        If sync code has opened the queue, it is closed there first.

        Raises:
            QueueError: The queue is open already, or was before a fork.
            BrokerUnavailableError: The broker can't be reached within `wait` seconds.
            BrokerRefusedError: The broker can't be used as it is.
            RuntimeError: The broker does not support this event loop.
        """
        home = await self._sync.enter()
        try:
            loop = await self._connect(is_private=False)
        except BaseException as error:
            home.end(error)
            if isinstance(error, BrokerUnavailableError):  # its message says all
                raise error.with_traceback(None) from None
            raise
        self._pool = WorkerPool(
            self._client,
            self._enqueuer,
            self._handlers,
            self._observers,
            lease=self._lease,
            max_crashes=self._max_crashes,
            unknown_for=self._unknown_for,
            with_baggage=self._terms.with_baggage,
        )
        self._home = home
        home.opened.set_result(loop)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Let workers finish their jobs, and disconnect.

        When the block ends by return or by an `Exception`, jobs that run end by themselves. They
        are released at the end of the manager's `leave_timeout`, or of its grace time after a
        shutdown request. When the block is cancelled, they are released at once.
        """
        if self._pool is not None and self._home.is_inherited and exc is not None:
            return
        pool = self._opened()
        try:
            await pool.close(at_once=not isinstance(exc, Exception | None))
        finally:
            self._pool = None
            try:
                patience = 0.0 if pool.gave_up else _SYNC_FLUSH
                interrupted = await run_shielded(partial(self._disconnect, patience))
            finally:
                self._home.end()
            if interrupted is not None:
                raise interrupted

    async def open(self) -> None:
        """Do what entering the block does, for start and stop hooks, fixtures and notebooks.

        `close()` ends it, in any task of the event loop.

        Raises:
            QueueError: The queue is open already.
            BrokerUnavailableError: The broker can't be reached within `wait` seconds.
            BrokerRefusedError: The broker can't be used as it is.
            RuntimeError: The broker does not support this event loop.
        """
        await self.__aenter__()

    async def close(self) -> None:
        """Let workers finish their jobs, and disconnect, as leaving the block does.

        Raises:
            QueueError: The queue is not open.
        """
        await self.__aexit__(None, None, None)

    @contextmanager
    def override(self, broker: B) -> Generator[B]:
        """Replace the broker in tests; a context manager.

        Enter it before the queue, and leave it after the queue. It also applies to `enqueue_sync`.
        The broker stores results, too, even if the queue has a store of results.

        Args:
            broker: The broker instead of the queue's.

        Yields:
            The broker.

        Raises:
            ValueError: `broker` is not a broker.
            QueueError: The queue is open at the beginning or the end of the block.

        Example:
            ```python
            with jobs.override(MemoryBroker()):
                async with jobs:
                    await send_email.enqueue("a@b.c", subject="hi")
            ```
        """
        validation.instances("broker", (broker,), Broker, hint=_URL_OF_BROKER)
        self._close_for_override("enter")
        client = self._client
        replaced = client.broker, client.results
        client.broker, client.results = broker, None
        try:
            yield broker
        except BaseException:
            with suppress(QueueError):  # it would hide the error
                self._close_for_override("leave")
            raise
        else:
            self._close_for_override("leave")
        finally:
            client.broker, client.results = replaced

    def _close_for_override(self, verb: str) -> None:
        """Close the queue where sync code has opened it.

        Raises:
            QueueError: The queue was entered.
        """
        self._sync.close()
        if self._pool is not None:
            raise QueueError(f"the queue is open: close it before you {verb} override()")

    async def _connect(self, *, is_private: bool) -> QueueLoop:
        """Open the queue in the running event loop."""
        await self._client.open(self._wait)
        self._enqueuer.open()
        self._client.loop = QueueLoop(is_private=is_private)
        return self._client.loop

    async def _disconnect(self, patience: float = _FLUSH) -> None:
        """Close the queue; it can be called again if the event loop interrupts it.

        Args:
            patience: Seconds that calls of sync code get to end.
        """
        try:
            if self._client.loop is not None:
                await self._client.loop.close(patience)
            await self._enqueuer.close(_FLUSH)
        finally:
            self._client.loop = None
            await self._client.close()

    def _opened(self) -> WorkerPool:
        if self._pool is None:
            raise not_open()
        self._client.check()
        return self._pool

    # Handlers

    @overload
    def handler(self, fn: Callable[P, Awaitable[T]], /) -> Handler[P, Awaitable[T], T]: ...
    @overload
    def handler(self, fn: Callable[P, T], /) -> Handler[P, T, T]: ...
    @overload
    def handler(
        self,
        /,
        *,
        queue: str = ...,
        name: str | None = ...,
        aliases: Collection[str] = ...,
        retry: Retry = ...,
        timeout: float | None = ...,
        expires: float | None = ...,
        retention: float | None = ...,
        store_result: bool = ...,
        observers: Observer | Iterable[Observer] = ...,
    ) -> HandlerDecorator: ...
    def handler(
        self,
        fn: Any = None,
        /,
        *,
        queue: str = "default",
        name: str | None = None,
        aliases: Collection[str] = (),
        retry: Retry = None,
        timeout: float | None = None,
        expires: float | None = None,
        retention: float | None = None,
        store_result: bool = True,
        observers: Observer | Iterable[Observer] = (),
    ) -> Any:
        """Make a function a handler of jobs; it stays callable as before.

        A `def` function runs in a thread.

        Args:
            fn: The function, if the decorator is used without parentheses.
            queue: The queue of its jobs.
            name: The name by which workers find it; by default its module and qualified name.
            aliases: Earlier names, whose jobs it processes, too.
            retry: A `tenacity.AsyncRetrying`, or a number of attempts, with waits that grow
                fourfold from 5 seconds to an hour, ± 20 %; by default the policy of the manager
                that runs the job, or one attempt. Between two attempts the job is stored in the
                broker.
            timeout: Seconds for one attempt.
            expires: Seconds until a job must have started.
            retention: Seconds for which a job and its result are stored after its end, instead of
                the queue's.
            store_result: Whether results are stored.
            observers: Observers of its jobs only, one or several, in addition to the queue's.

        Returns:
            A decorator, or the handler.

        Raises:
            TypeError: From the decorator: an annotation can't be used, or the function is a method
                in the body of its class.
            ValueError: An argument is not valid; from the decorator: the object is not a function,
                or the name is in use.
        """
        validation.optional(validation.seconds, "retention", retention, at_least=0)
        validation.instances("store_result", (store_result,), bool)
        earlier = [
            check_name("aliases", alias) for alias in validation.collected("aliases", aliases)
        ]
        terms = replace(
            self._terms,
            name="" if name is None else check_name("name", name),
            queue=check_name("queue", queue),
            retention=self._terms.retention if retention is None else retention,
            expires=expires,
        )
        config = HandlerConfig(
            terms=terms,
            retry=retry,
            timeout=timeout,
            stores_result=store_result,
            observers=checked_observers(observers),
        )

        def decorate(fn: Callable[..., Any]) -> Handler[..., Any, Any]:
            callables.check(fn)
            chosen = terms.name or handler_name(fn)
            names = dict.fromkeys([chosen, *earlier])
            for taken in names.keys() & self._handlers.keys():
                raise ValueError(f"name: there is a handler {taken!r} already")
            named = replace(config, terms=replace(terms, name=chosen))
            signature = Signature(fn, self._types, sends_result=store_result)
            made: Handler[..., Any, Any] = Handler(self._enqueuer, fn, signature, named)
            self._handlers.update(dict.fromkeys(names, made))
            return made

        return decorate if fn is None else decorate(fn)

    def register_type(
        self, cls: type[T], encode: Callable[[T], Any], decode: Callable[[Any], T]
    ) -> None:
        """Let handlers that are declared later take and return objects of a class.

        Needs the extra `msgspec`.

        Args:
            cls: The class, as annotations name it.
            encode: Converts an object to plain data, or to other data that can be sent.
            decode: Converts decoded plain data to an object, which must equal the first one by `==`
                or, if the class has no `__eq__`, by what `encode` returns.

        Raises:
            ValueError: `cls` is not a class, can be sent without that, or is registered already.
            ImportError: The extra is not installed.

        Example:
            ```python
            jobs.register_type(Colour, Colour.to_hex, Colour.from_hex)
            ```
        """
        self._types.register(cls, encode, decode)

    # Jobs

    @overload
    async def enqueue(
        self,
        what: str,
        args: Sequence[Any] = ...,
        kwargs: Mapping[str, Any] | None = ...,
        **options: Unpack[JobOptions],
    ) -> JobHandle[Any]: ...
    @overload
    async def enqueue(self, what: Step[T], *, id: str | None = ...) -> JobHandle[T]: ...
    async def enqueue(
        self,
        what: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> JobHandle[Any]:
        """Enqueue a job by the name of its handler, or a step.

        With a name, the handler may be in another process; the arguments must then be plain data.

        Args:
            what: The name of a handler, or a step from `job()`, `chain()` or `group()`.
            args: Positional arguments, with a name.
            kwargs: Keyword arguments, with a name.
            **options: With a name, those of `Handler.options()`; with a step, `id`.

        Returns:
            The handle of the job, or of the whole chain or group.

        Raises:
            ValueError: An argument is not valid.
            TypeError: A handler of this queue does not take these arguments.
            InvalidPayloadError: An argument can't be encoded.
            PayloadTooLargeError: A job is larger than `max_payload`.
            DuplicateJobError: A job with the same id is stored.
            BrokerUnavailableError: The broker can't be reached.
            QueueError: The queue is not open.
        """
        if isinstance(what, Step):
            step: Step[Any] = what  # pyright: ignore[reportUnknownVariableType]
            if args or kwargs or options.keys() - {"id"}:
                raise ValueError("a step has its arguments and options; only id can be given here")
            id = check(cast(JobOptions, options)).id
            return await self._enqueuer.enqueue_step(step, id)
        if isinstance(what, JobSubmission):
            raise TypeError("a handler enqueues its own jobs: write handler.enqueue(…)")
        name = check_name("name", what)
        _check_call(args, kwargs)
        chosen = check(cast(JobOptions, options)) if options else NO_OPTIONS
        handler = self._handlers.get(name)
        named = dict(kwargs or {})
        if handler is not None:
            plain = handler.signature.dump(args, named)
            terms, observers = handler.config.terms, handler.config.observers
        else:
            plain = [*args], named
            json_data.check(f"an argument for {name}", plain)
            terms, observers = replace(self._terms, name=name), ()
        made = message(terms, *plain, chosen, self._enqueuer.max_payload)
        await self._enqueuer.enqueue([made], chosen, observers)
        return self.handle(made.id)

    async def enqueue_many(self, steps: Sequence[Step[Any]]) -> List[JobHandle[Any]]:
        """Enqueue jobs of any handlers with one call of the broker.

        After `BrokerUnavailableError` none, some or all of the jobs may be stored. A repeated call
        enqueues them again, because it makes new ids.

        Args:
            steps: Steps from `handler.job()`.

        Returns:
            The handles of the jobs.

        Raises:
            TypeError: A value was not made by `handler.job()`.
            PayloadTooLargeError: A job is larger than `max_payload`.
            BrokerUnavailableError: The broker can't be reached.
            QueueError: The queue is not open.

        Example:
            ```python
            await jobs.enqueue_many([resize.job("a.png"), send_email.job("a@b.c", "hi")])
            ```
        """
        singles: List[Single[Any]] = []
        if not isinstance(steps, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"steps must be a list of steps, not {kind_of(steps)}")
        for step in steps:
            if not isinstance(step, Single):
                raise TypeError(f"steps must be made by handler.job(), not {kind_of(step)}")
            singles.append(step)
        return await self._enqueuer.enqueue_steps(singles)

    @overload
    def enqueue_sync(
        self,
        what: str,
        args: Sequence[Any] = ...,
        kwargs: Mapping[str, Any] | None = ...,
        **options: Unpack[JobOptions],
    ) -> JobHandle[Any]: ...
    @overload
    def enqueue_sync(self, what: Step[T], *, id: str | None = ...) -> JobHandle[T]: ...
    def enqueue_sync(self, what: Any, *args: Any, **options: Any) -> JobHandle[Any]:
        """Enqueue a job or a step from sync code, as `enqueue()` does.

        It may be called in any thread but that of the event loop in which the queue is open. If the
        queue is not open in this process, the first call opens it in a private event loop, in a
        daemon thread. It is closed by `close_sync()`, when the queue is entered, before a fork,
        and at the end of the process.

        Args:
            what: The name of a handler, or a step from `job()`, `chain()` or `group()`.
            *args: The positional and keyword arguments, with a name.
            **options: Those of `enqueue()`.

        Returns:
            The handle of the job; it can be awaited in an event loop in which the queue is open.

        Raises:
            BrokerUnavailableError: The broker can't be reached, or does not answer within
                `sync_timeout`.
            QueueError: The call would block the event loop in which the queue is open.
            Exception: The errors of `enqueue()`.
        """
        return self._sync.run(partial(self.enqueue, what, *args, **options))

    def enqueue_many_sync(self, steps: Sequence[Step[Any]]) -> List[JobHandle[Any]]:
        """Enqueue jobs from sync code, as `enqueue_many()` does.

        See `enqueue_sync()`, whose errors it raises, too.

        Args:
            steps: Steps from `handler.job()`.

        Returns:
            The handles of the jobs.

        Raises:
            TypeError: A value was not made by `handler.job()`.
            PayloadTooLargeError: A job is larger than `max_payload`.
        """
        return self._sync.run(partial(self.enqueue_many, steps))

    def close_sync(self) -> None:
        """Close the queue where sync code has opened it; the next sync call opens it again.

        There is no effect on a queue that was entered with `async with`.

        Raises:
            QueueError: It takes more than ten seconds.
        """
        self._sync.close()

    def handle(self, id: str) -> JobHandle[Any]:
        """Return the handle of a job by its id.

        Raises:
            ValueError: `id` is not valid.
        """
        return self._enqueuer.handle(check_name("id", id))

    def _load_result(self, name: str | None, result: Any) -> Any:
        handler = self._handlers.get(name or "")
        return result if handler is None else handler.signature.load_result(result)

    async def get(self, id: str) -> JobInfo | None:
        """Return information about a job, or `None` if it is not stored.

        Raises:
            ValueError: `id` is not valid.
            BrokerUnavailableError: The broker can't be reached.
        """
        return await self._client.info(check_name("id", id))

    async def count(self, *, queue: str | None = None, state: JobState | None = None) -> int:
        """Return the number of jobs.

        Args:
            queue: Only jobs of this queue.
            state: Only jobs in this state.

        Raises:
            ValueError: An argument is not valid.
            BrokerUnavailableError: The broker can't be reached.
        """
        return await self._client.count(_queue(queue), _state(state))

    def list(
        self, *, queue: str | None = None, state: JobState | None = None
    ) -> AsyncIterator[JobInfo]:
        """Iterate over jobs, oldest first.

        Args:
            queue: Only jobs of this queue.
            state: Only jobs in this state.

        Raises:
            ValueError: An argument is not valid.
            BrokerUnavailableError: The broker can't be reached.
        """
        return self._client.infos(_queue(queue), _state(state))

    async def cancel(self, id: str) -> bool:
        """Cancel a job: at once if it has not started; if it runs, within two seconds.

        Args:
            id: The id of the job, or of a chain or group.

        Returns:
            Whether the job had not ended.

        Raises:
            ValueError: `id` is not valid.
            BrokerUnavailableError: The broker can't be reached.
        """
        id, pool = check_name("id", id), self._opened()
        cancelled = await self._client.cancel(id)
        pool.cancel_job(id)
        return cancelled

    async def requeue(self, id: str) -> bool:
        """Make an ended job ready again, and reset its attempts.

        A step of a chain or group runs by itself; `JobContext.previous` is what it was before, and
        later steps are not requeued.

        Args:
            id: The job's id.

        Returns:
            Whether the job was stored and had ended.

        Raises:
            QueueError: The id is that of a chain or group.
            ValueError: `id` is not valid.
            BrokerUnavailableError: The broker can't be reached.
        """
        return await self._client.requeue(check_name("id", id))

    async def purge(self, *, state: JobState | None = None, older_than: float | None = None) -> int:
        """Delete jobs that have ended.

        At least one of the arguments must be given.

        Args:
            state: Only jobs in this state.
            older_than: Only jobs that ended at least this many seconds ago.

        Returns:
            The number of deleted jobs.

        Raises:
            ValueError: No argument is given, or one is not valid.
            BrokerUnavailableError: The broker can't be reached.
        """
        if state is None and older_than is None:
            raise ValueError("purge() needs state or older_than; older_than=0 deletes all")
        validation.optional(validation.seconds, "older_than", older_than, at_least=0)
        return await self._client.purge(_state(state), older_than or 0.0)

    # Workers

    async def start(
        self,
        manager: Manager,
        queues: Selection | Sequence[str] | None = None,
        *,
        concurrency: int = 10,
    ) -> Worker:
        """Process jobs in a manager, and enqueue the jobs of schedules.

        After a shutdown request, or when the manager's loops stop, the worker claims no more jobs.
        Running jobs continue, until they end or are cancelled with the manager's other tasks and
        released.

        Args:
            manager: The manager.
            queues: The queues to claim from: a list in order of priority, or `Ordered` or
                `Weighted`. By default the queues of all handlers, in the order of declaration.
            concurrency: The most jobs at once.

        Returns:
            The worker.

        Raises:
            ValueError: An argument is not valid.
            QueueError: The queue is not open.
            ManagerNotRunningError: The manager was not entered.
            LoopsStoppedError: The manager shuts down.
        """
        pool = self._opened()
        validation.instances("manager", (manager,), Manager)
        validation.count("concurrency", concurrency)
        chosen = self._selection(queues)
        await checkpoint()
        loops = [schedule.describe_loop for schedule in self._schedules]
        return pool.start(manager, chosen, concurrency, loops)

    async def work(
        self,
        queues: Selection | Sequence[str] | None = None,
        *,
        concurrency: int = 10,
        **options: Unpack[ManagerOptions],
    ) -> None:
        """Run a worker process: enter a manager, process jobs, and wait for a shutdown signal.

        Args:
            queues: The queues to claim from: a list in order of priority, or `Ordered` or
                `Weighted`. By default the queues of all handlers, in the order of declaration.
            concurrency: The most jobs at once.
            **options: The arguments of `Manager`; `signals` is `True` by default.

        Raises:
            ValueError: An argument is not valid.
            QueueError: The queue is open already.
            BrokerUnavailableError: The broker can't be reached.

        Example:
            ```python
            anyio.run(jobs.work)
            ```
        """
        options.setdefault("signals", True)
        async with Manager(**options) as manager, AsyncExitStack() as stack:
            with suppress(LoopsStoppedError):  # the signal came while the broker was opened
                await self._open_until_shutdown(manager, stack)
                await self.start(manager, queues, concurrency=concurrency)
            await manager.shutdown_requested()

    async def _open_until_shutdown(self, manager: Manager, stack: AsyncExitStack) -> None:
        """Enter the queue, unless a shutdown of the manager is requested before.

        Raises:
            LoopsStoppedError: It was requested.
        """
        host = host_of(manager, "work")
        host.require_running()
        with anyio.CancelScope() as scope:
            unregister = host.on_stopping(scope.cancel)
            try:
                await stack.enter_async_context(self)
            finally:
                unregister()
        host.require_running()

    def _selection(self, queues: Selection | Sequence[str] | None) -> Selection:
        if queues is None:
            handlers = self._handlers.values()
            used = dict.fromkeys(handler.config.terms.queue for handler in handlers)
            if not used:
                raise ValueError("queues must be given, because there are no handlers")
            return Ordered(*used)
        if isinstance(queues, Selection):
            return queues
        if isinstance(queues, (str, bytes)) or not isinstance(queues, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"queues must be a list, Ordered(…) or Weighted(…), not {queues!r}")
        return Ordered(*queues)

    def schedule(
        self,
        schedule: Schedule,
        job: Step[Any],
        *,
        missed: Missed = "latest",
        grace: float = 3600.0,
    ) -> None:
        """Enqueue a job on a schedule.

        Every process with a worker takes part. A tick is enqueued once if the `repr()` of arguments
        and options is equal in all processes, which is not so for a set. A tick that all processes
        missed, because none ran or the broker could not be reached, is made up by the next process
        that can. A tick that is at most a minute late does not count as missed.

        A schedule begins when a process first starts it. Its ticks, handler, arguments and options
        identify it; if one of them changes, it is a new schedule. The ticks of `every()` are the
        multiples of its seconds since the epoch, at least a tenth of a second apart. A tick's job
        is stored for at least an hour more than `grace` after its end.

        Args:
            schedule: A schedule from `background.every` or `background.cron`.
            job: A step from `handler.job()`.
            missed: Which missed ticks are made up: the latest, all in order, or none (`"skip"`).
            grace: The most seconds by which a tick is made up.

        Raises:
            ValueError: An argument is not valid.
            TypeError: The job was not made by `handler.job()`.

        Example:
            ```python
            jobs.schedule(cron("0 3 * * *", tz="Europe/Prague"), clean_up.job())
            ```
        """
        made = JobSchedule(self._client, self._enqueuer, schedule, job, missed, grace)
        self._schedules.append(made)
        if self._pool is not None:
            self._pool.add_schedule(made.describe_loop)


def broker_of(jobs: JobQueue) -> Broker:
    """Return the broker of a queue."""
    return jobs._client.broker  # pyright: ignore[reportPrivateUsage]


def handlers_of(jobs: JobQueue) -> Mapping[str, Handler[..., Any, Any]]:
    """Return the handlers of a queue, by name and alias."""
    return jobs._handlers  # pyright: ignore[reportPrivateUsage]


def pool_of(jobs: JobQueue) -> WorkerPool:
    """Return the workers of an open queue.

    Raises:
        QueueError: The queue is not open, or in another event loop.
    """
    return jobs._opened()  # pyright: ignore[reportPrivateUsage]


def _check_call(args: object, kwargs: object) -> None:
    if isinstance(args, (str, bytes, bytearray)) or not isinstance(args, Sequence):
        raise ValueError(f"args must be a list of arguments, not a {type(args).__qualname__}")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        kind = type(kwargs).__qualname__
        raise ValueError(f"kwargs must be a mapping of arguments by name, not a {kind}")


def _queue(name: str | None) -> str | None:
    return None if name is None else check_name("queue", name)


def _state(state: JobState | None) -> JobState | None:
    if state is not None and state not in list(JobState):
        raise ValueError(f"state must be one of {', '.join(JobState)}, not {state!r}")
    return None if state is None else JobState(state)
