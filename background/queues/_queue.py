"""The queue: what people hold in their hands."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Never, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

from anyio.lowlevel import checkpoint

from .. import _schedule
from .._eventloop.interruption import insist
from .._eventloop.protection import uninterrupted
from .._manager import Manager
from .._observer import Observer
from .._retry import Retry
from .._schedule import Cron, Schedule
from .._support import callables, validation
from . import _names
from ._client import Client
from ._codec import json_data
from ._codec.arguments import Signature
from ._enqueue.announcer import Announcer, checked
from ._enqueue.composites import Step
from ._enqueue.enqueuer import Sender
from ._enqueue.handle import JobHandle
from ._enqueue.handler import Handler, Sending, Settings, check_settings
from ._enqueue.messages import Terms, message
from ._enqueue.options import NONE_GIVEN, OptionsGiven, check
from ._enqueue.schedules import Aligned, Dated, describe_schedule
from ._errors import QueueError
from ._info import JobInfo
from ._states import JobState
from ._urls import make_broker
from ._worker.pool import Describe, Workforce
from ._worker.selection import Ordered, Selection
from ._worker.worker import Worker
from .abc import Broker, Results

P = ParamSpec("P")
T = TypeVar("T")

Items = list  # which is the name of a method here

_FLUSH = 5.0  # seconds that observers get to catch up when a queue is closed


class Decorator(Protocol):
    """What `JobQueue.handler()` returns."""

    @overload
    def __call__(self, fn: Callable[P, Awaitable[T]], /) -> Handler[P, Awaitable[T], T]: ...
    @overload
    def __call__(self, fn: Callable[P, T], /) -> Handler[P, T, T]: ...


class _Open(NamedTuple):
    """What there is of a queue while it is open."""

    announcer: Announcer
    workforce: Workforce


class JobQueue:
    """Durable jobs: enqueued here, and run by workers in whichever process.

    An async context manager, which connects to the broker and leaves it; where jobs are only
    enqueued, that is all it takes.

        jobs = JobQueue(SQLiteBroker("jobs.db"))

        @jobs.handler(queue="mail", retry=5, timeout=30)
        async def send_email(to: str, subject: str) -> str: ...

        async with Manager(signals={SIGTERM, SIGINT}) as manager, jobs:
            await jobs.start(manager)
            job = await send_email.enqueue("a@b.c", subject="hi")
            print(await job.result(timeout=10))

    - `broker`: where the jobs are; this queue's alone, which opens and closes it.
    - `results`: where their results are, if not there too.
    - `observers`: told of these jobs, beside a manager's own.
    - `lease`: seconds after which the job of a worker that gives no sign of life is another's
      (default 30).
    - `max_payload`: bytes that the arguments or the result of a job may take (default 1 MiB).
    - `max_crashes`: a job is dead when this many workers died while they ran it (default 3).
    - `keep`: seconds for which a job and its result are known after its end (default a day).

    Raises `ValueError` for an argument that can't work, naming it.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        results: Results | None = None,
        observers: Collection[Observer] = (),
        lease: float = 30.0,
        max_payload: int = 1_048_576,
        max_crashes: int = 3,
        keep: float = 86_400.0,
    ) -> None:
        validation.instances("broker", (broker,), Broker)
        if results is not None:
            validation.instances("results", (results,), Results)
        validation.seconds("lease", lease, at_least=0.1)
        validation.count("max_payload", max_payload)
        validation.count("max_crashes", max_crashes)
        validation.seconds("keep", keep, at_least=0)
        self._observers = checked(observers)
        self._lease = lease
        self._max_crashes = max_crashes
        self._client = Client(broker, results, max_payload=max_payload, keep=keep)
        self._sender = Sender(self._client, lambda: self._opened().announcer, self._convert)
        self._handlers: dict[str, Handler[..., Any, Any]] = {}
        self._schedules: Items[Describe] = []
        self._open: _Open | None = None
        self._opening = False

    @classmethod
    def from_url(cls, url: str, **options: Any) -> JobQueue:
        """Make a queue whose broker a URL names; takes the same keywords besides.

        `memory://`; `sqlite:///jobs.db` for a file here and `sqlite:////data/jobs.db` for one
        anywhere, with `?synchronous=FULL` if one likes; `redis://`, `rediss://` and `unix://`;
        `nats://` and `tls://`. Raises `ValueError`, and `ImportError` where the extra is missing.
        """
        return cls(make_broker(url), **options)

    @uninterrupted
    async def __aenter__(self) -> JobQueue:
        if self._open is not None or self._opening:
            raise QueueError("the queue is open already")
        self._opening = True
        try:
            announcer = Announcer(self._observers)
            await self._client.open()
        finally:
            self._opening = False
        workforce = Workforce(
            self._client,
            announcer,
            self._handlers,
            self._observers,
            lease=self._lease,
            max_crashes=self._max_crashes,
        )
        self._open = _Open(announcer, workforce)
        return self

    @uninterrupted
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Let workers finish what they have, and disconnect.

        By return or an `Exception`, jobs that run end when they do, or the manager's grace time
        does after a shutdown request; by cancellation they are handed back at once.
        """
        opened = self._opened()
        try:
            await opened.workforce.close(at_once=not isinstance(exc, Exception | None))
        finally:
            self._open = None
            await insist(partial(self._disconnect, opened.announcer))

    async def _disconnect(self, announcer: Announcer) -> None:
        try:
            await announcer.close(_FLUSH)
        finally:
            await self._client.close()

    def _opened(self) -> _Open:
        if self._open is None:
            raise QueueError("the queue is not open: enter it with `async with`")
        return self._open

    # Handlers

    def handler(
        self,
        *without_parentheses: Never,
        queue: str = "default",
        name: str | None = None,
        retry: Retry = None,
        timeout: float | None = None,
        expires: float | None = None,
        result_ttl: float | None = None,
        observers: Collection[Observer] = (),
    ) -> Decorator:
        """Make a function one that jobs can be for; it stays callable as before.

        - `queue`: where its jobs go (default `"default"`).
        - `name`: under which workers know it; default: its module and qualified name.
        - `retry`: a `tenacity.AsyncRetrying` or a number of attempts; default: the policy of the
          manager that runs it, or one attempt. Between two attempts the job is with the broker.
        - `timeout`: seconds for one attempt.
        - `expires`: seconds until a job must have been started.
        - `result_ttl`: seconds for which jobs and their results are known after their ends,
          instead of the queue's `keep`; 0 keeps no results.
        - `observers`: told of its jobs only, beside the queue's.

        A `def` function runs in a thread. Raises `ValueError` for what can't work, naming it; so
        does the decorator, for a coroutine, a generator function, and a name that is taken.
        """
        if without_parentheses:
            raise TypeError("handler() takes options only: write @jobs.handler(), or with options")

        validation.optional(validation.seconds, "result_ttl", result_ttl, at_least=0)
        terms = Terms(
            name="" if name is None else _names.check("name", name),
            queue=_names.check("queue", queue),
            keep=result_ttl or self._client.keep,
            expires=expires,
        )
        settings = Settings(
            terms=terms,
            retry=retry,
            timeout=timeout,
            stores=result_ttl is None or result_ttl > 0,
            observers=checked(observers),
        )
        check_settings(settings)

        def decorate(fn: Callable[..., Any]) -> Handler[..., Any, Any]:
            callables.check(fn)
            chosen = terms.name or _names.of_handler(fn)
            if chosen in self._handlers:
                raise ValueError(f"name: there is a handler {chosen!r} already")
            made: Handler[..., Any, Any] = Handler(
                self._sender, fn, Signature(fn), settings.named(chosen)
            )
            self._handlers[chosen] = made
            return made

        return decorate  # type: ignore[return-value]

    # Jobs

    @overload
    async def enqueue(
        self,
        what: str,
        args: Sequence[Any] = ...,
        kwargs: Mapping[str, Any] | None = ...,
        **options: Unpack[OptionsGiven],
    ) -> JobHandle[Any]: ...
    @overload
    async def enqueue(self, what: Step[T], *, id: str | None = ...) -> JobHandle[T]: ...
    @uninterrupted
    async def enqueue(
        self,
        what: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> JobHandle[Any]:
        """Enqueue a job by the name of its handler, or what `job()`, `chain()` or `group()` made.

        By name the handler may live in another process; arguments are plain data then, and
        `options` are those of `Handler.options()`. Of a chain or group, `id` names the whole.

        Raises as `Handler.enqueue()`, and `ValueError` for what can't work.
        """
        if isinstance(what, Step):
            step: Step[Any] = what  # pyright: ignore[reportUnknownVariableType]
            if args or kwargs or options.keys() - {"id"}:
                raise ValueError("a step has its arguments and options; only id can be given here")
            return await self._sender.send_step(step, check(cast(OptionsGiven, options)).id)
        if isinstance(what, Sending):
            raise TypeError("a handler has a way of its own: write handler.enqueue(…)")
        name = _names.check("name", what)
        _check_call(args, kwargs)
        chosen = check(cast(OptionsGiven, options)) if options else NONE_GIVEN
        handler = self._handlers.get(name)
        named = dict(kwargs or {})
        if handler is not None:
            plain = handler.signature.dump(args, named)
            terms, observers = handler.settings.terms, handler.settings.observers
        else:
            plain = [*args], named
            json_data.check(f"an argument for {name}", plain)
            terms, observers = Terms(name=name, queue="default", keep=self._client.keep), ()
        made = message(terms, *plain, chosen, self._sender.max_payload)
        await self._sender.send([made], chosen, observers)
        return self.handle(made.id)

    def handle(self, id: str) -> JobHandle[Any]:
        """Return the handle of a job whose id is known. Raises `ValueError` for what is no id."""
        return self._sender.handle(_names.check("id", id))

    def _convert(self, name: str | None, result: Any) -> Any:
        handler = self._handlers.get(name or "")
        return result if handler is None else handler.signature.load_result(result)

    @uninterrupted
    async def get(self, id: str) -> JobInfo | None:
        """Return a job as it is now; `None` if it is not known.

        Raises `BrokerUnavailableError`, and `ValueError` for what is no id.
        """
        return await self._client.info(_names.check("id", id))

    @uninterrupted
    async def count(self, queue: str | None = None, state: JobState | None = None) -> int:
        """Return how many jobs there are, of a queue and in a state.

        Raises as `get`, and `ValueError` for what is no name or no state.
        """
        return await self._client.broker.count(queue=_queue(queue), state=_state(state))

    def list(
        self, *, queue: str | None = None, state: JobState | None = None
    ) -> AsyncIterator[JobInfo]:
        """Go through the jobs of a queue, in a state, oldest first. Raises as `count`."""
        return self._client.infos(_queue(queue), _state(state))

    @uninterrupted
    async def dequeue(self, id: str) -> bool:
        """Cancel a job: at once if it has not started; if it runs, its worker hears of it.

        Returns `False` if there is no such job or it has ended. Raises as `get`.
        """
        id = _names.check("id", id)
        cancelled = await self._client.cancel(id)
        if self._open is not None:
            self._open.workforce.cancel(id)
        return cancelled

    @uninterrupted
    async def requeue(self, id: str) -> bool:
        """Make a job ready that has ended, its attempts counted anew; `False` if there is none.

        A step of a chain or group runs by itself then, with the results that it had when it ended.

        Raises `QueueError` for a chain or group, and as `get`.
        """
        return await self._client.requeue(_names.check("id", id))

    @uninterrupted
    async def purge(self, *, state: JobState | None = None, older_than: float = 0.0) -> int:
        """Forget jobs that ended at least `older_than` seconds ago; return how many."""
        validation.seconds("older_than", older_than, at_least=0)
        return await self._client.broker.purge(state=_state(state), older_than=older_than)

    # Workers

    @uninterrupted
    async def start(
        self, manager: Manager, queues: Selection | None = None, *, concurrency: int = 10
    ) -> Worker:
        """Have a manager's process work jobs off, and enqueue what schedules ask for.

        - `queues`: `Ordered(…)` or `Weighted(…)`; default: the queues of all handlers, in the order
          in which they were declared.
        - `concurrency`: most jobs that it has at once (default 10).

        At a shutdown request or when its loops stop, it claims no more; jobs that run end when they
        do, or are cancelled with the manager's other tasks and handed back at once.

        Raises `ValueError` for what can't work, `QueueError` where the queue is not open,
        `ManagerNotRunningError`, and `LoopsStoppedError` for a manager that is shutting down.
        """
        workforce = self._opened().workforce
        validation.instances("manager", (manager,), Manager)
        validation.count("concurrency", concurrency)
        chosen = self._selection(queues)
        await checkpoint()
        return workforce.start(manager, chosen, concurrency, self._schedules)

    def _selection(self, queues: Selection | None) -> Selection:
        if queues is None:
            used = dict.fromkeys(each.settings.terms.queue for each in self._handlers.values())
            if not used:
                raise ValueError("queues must be given, as there are no handlers to tell them")
            return Ordered(*used)
        if not isinstance(queues, Selection):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"queues must be Ordered(…) or Weighted(…), not {queues!r}")
        return queues

    def cron(
        self,
        expression: str,
        handler: Handler[..., Any, Any],
        *,
        tz: str = "UTC",
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Enqueue a job whenever a cron expression says so, read in the time zone `tz`.

        Each process with a worker looks after it, and each tick is enqueued once, if the arguments
        look the same in all of them: a set does not. Of the ticks that all of them miss the latest
        is made up for, within a minute.

            jobs.cron("0 3 * * *", clean_up, tz="Europe/Prague")

        Raises as `enqueue`, and `InvalidTaskError` for an expression or a zone that is wrong.
        """
        schedule = _schedule.cron(expression, tz=tz)
        assert isinstance(schedule, Cron)
        self._add_schedule(schedule, schedule, handler, args, kwargs)

    def every(
        self,
        seconds: float,
        handler: Handler[..., Any, Any],
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Enqueue a job every `seconds`, at the same times in all processes; else as `cron`.

        Ticks are the multiples of `seconds` since the epoch. Raises as `enqueue`, and `ValueError`
        for less than a tenth of a second.
        """
        validation.seconds("seconds", seconds, at_least=0.1)
        schedule = Aligned(seconds=seconds)
        self._add_schedule(schedule, schedule, handler, args, kwargs)

    def _add_schedule(
        self,
        schedule: Schedule,
        dated: Dated,
        handler: Handler[..., Any, Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
    ) -> None:
        validation.instances("handler", (handler,), Handler)
        _check_call(args, kwargs)
        describe = describe_schedule(self._sender, handler, schedule, dated, args, kwargs or {})
        self._schedules.append(describe)
        if self._open is not None:
            self._open.workforce.add_schedule(describe)


def _check_call(args: object, kwargs: object) -> None:
    if isinstance(args, (str, bytes, bytearray)) or not isinstance(args, Sequence):
        raise ValueError(f"args must be a list of arguments, not {args!r}")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ValueError(f"kwargs must be a mapping of arguments by name, not {kwargs!r}")


def _queue(name: str | None) -> str | None:
    return None if name is None else _names.check("queue", name)


def _state(state: JobState | None) -> JobState | None:
    if state is not None and state not in list(JobState):
        raise ValueError(f"state must be one of {', '.join(JobState)}, not {state!r}")
    return None if state is None else JobState(state)
