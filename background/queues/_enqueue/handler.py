"""Handlers: the functions that process jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar, Unpack, cast

from ..._eventloop.interruption import ki_protected
from ..._observer import Observer
from ..._retry import Retry, make_policy
from ..._support import validation
from .._codec.arguments import Signature
from .enqueuer import Enqueuer
from .handle import JobHandle
from .messages import Terms, message, messages
from .options import NO_OPTIONS, CheckedOptions, JobOptions, check
from .steps import Single, Step

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class HandlerConfig:
    """The checked settings of a handler.

    Args:
        terms: The settings of all its jobs.
        retry: The policy of its jobs.
        timeout: Seconds for one attempt.
        stores_result: Whether results are stored.
        observers: Observers of its jobs only.
    """

    terms: Terms
    retry: Retry
    timeout: float | None
    stores_result: bool
    observers: tuple[Observer, ...]

    def __post_init__(self) -> None:
        make_policy(self.retry)
        validation.optional(validation.seconds, "timeout", self.timeout, above=0)
        validation.optional(validation.seconds, "expires", self.terms.expires, above=0)


@ki_protected
class JobSubmission(Generic[P, T]):
    """The ways to enqueue jobs of a handler; `Handler.options()` returns one with options."""

    def __init__(
        self,
        enqueuer: Enqueuer,
        signature: Signature,
        config: HandlerConfig,
        options: CheckedOptions,
    ) -> None:
        self._enqueuer = enqueuer
        self._signature = signature
        self._config = config
        self._options = options

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[T]:
        """Enqueue a job.

        Args:
            *args: Positional arguments of the handler.
            **kwargs: Keyword arguments of the handler.

        Returns:
            The job's handle.

        Raises:
            TypeError: The handler does not take these arguments.
            InvalidPayloadError: An argument can't be encoded.
            PayloadTooLargeError: The job is larger than `max_payload`.
            DuplicateJobError: A job with the same id is stored.
            BrokerUnavailableError: The broker can't be reached.
            QueueError: The queue is not open.
        """
        config, options, enqueuer = self._config, self._options, self._enqueuer
        plain = self._dump(args, kwargs)
        made = message(config.terms, *plain, options, enqueuer.max_payload)
        await enqueuer.enqueue([made], options, config.observers)
        return enqueuer.handle(made.id)

    def enqueue_sync(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[T]:
        """Enqueue a job from sync code, as `enqueue()` does; see `JobQueue.enqueue_sync()`.

        Args:
            *args: Positional arguments of the handler.
            **kwargs: Keyword arguments of the handler.

        Returns:
            The job's handle; it can be awaited in an event loop in which the queue is open.

        Raises:
            BrokerUnavailableError: The broker can't be reached, or does not answer within the
                queue's `sync_timeout`.
            QueueError: The call would block the event loop in which the queue is open.
            Exception: The errors of `enqueue()`.
        """
        return self._enqueuer.sync.run(partial(self.enqueue, *args, **kwargs))

    async def enqueue_many(
        self, calls: Iterable[Sequence[Any] | Mapping[str, Any]]
    ) -> list[JobHandle[T]]:
        """Enqueue several jobs with one call of the broker.

        After `BrokerUnavailableError` none, some or all of the jobs may be stored. A repeated call
        enqueues them again, because it makes new ids.

        Args:
            calls: For each job a tuple of positional arguments, or a mapping of keyword arguments.

        Returns:
            The handles of the jobs.

        Raises:
            ValueError: The options have an id, which several jobs can't share.
            TypeError: The handler does not take some of the arguments.
            InvalidPayloadError: An argument can't be encoded.
            PayloadTooLargeError: A job is larger than `max_payload`.
            BrokerUnavailableError: The broker can't be reached.
            QueueError: The queue is not open.

        Example:
            ```python
            await send_email.enqueue_many([("a@b.c", "hi"), {"to": "d@e.f", "subject": "hi"}])
            ```
        """
        if self._options.id is not None:
            raise ValueError("id can't be given to enqueue_many(): each job needs its own")
        config, options, enqueuer = self._config, self._options, self._enqueuer
        plain = (self._dump(*_split(call)) for call in calls)
        made = messages(config.terms, plain, options, enqueuer.max_payload)
        await enqueuer.enqueue(made, options, config.observers)
        return [enqueuer.handle(enqueued.id) for enqueued in made]

    def enqueue_many_sync(
        self, calls: Iterable[Sequence[Any] | Mapping[str, Any]]
    ) -> list[JobHandle[T]]:
        """Enqueue several jobs from sync code, as `enqueue_many()` does.

        See `JobQueue.enqueue_sync()`, whose errors it raises, too.

        Args:
            calls: For each job a tuple of positional arguments, or a mapping of keyword arguments.

        Returns:
            The handles of the jobs.

        Raises:
            Exception: The errors of `enqueue_many()`.
        """
        # An iterator of sync code may not work in the thread of an event loop.
        return self._enqueuer.sync.run(partial(self.enqueue_many, list(calls)))

    def job(self, *args: P.args, **kwargs: P.kwargs) -> Step[T]:
        """Make a job that is not enqueued yet.

        Args:
            *args: Positional arguments of the handler.
            **kwargs: Keyword arguments of the handler.

        Returns:
            A step for `JobQueue.enqueue()`, `JobQueue.schedule()`, `chain()` and `group()`.

        Raises:
            ValueError: The options have an id.
            TypeError: The handler does not take these arguments.
            InvalidPayloadError: An argument can't be encoded.
        """
        if self._options.id is not None:
            raise ValueError("id can't be given to a step: pass it to jobs.enqueue(step, id=…)")
        plain, config = self._dump(args, kwargs), self._config
        load_result = self._signature.load_result
        return Single(config.terms, *plain, self._options, config.observers, load_result)

    def _dump(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        try:
            return self._signature.dump(args, kwargs)
        except TypeError as error:
            raise TypeError(f"{error}{_hint(error, kwargs)}") from None

    def __repr__(self) -> str:
        return f"<JobSubmission of {self._config.terms.name!r} with {self._options!r}>"


class Handler(JobSubmission[P, T], Generic[P, R, T]):
    """A function that processes jobs; calling the handler calls the function.

    Made by `JobQueue.handler()`.
    """

    def __init__(
        self, enqueuer: Enqueuer, fn: Callable[P, R], signature: Signature, config: HandlerConfig
    ) -> None:
        update_wrapper(self, fn)  # first, because it copies the function's attributes
        super().__init__(enqueuer, signature, config, NO_OPTIONS)
        self.fn = fn
        self.signature = signature
        self.config = config

    @property
    def name(self) -> str:
        """The name by which workers find the handler."""
        return self.config.terms.name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.fn(*args, **kwargs)

    def options(self, **options: Unpack[JobOptions]) -> JobSubmission[P, T]:
        """Return the ways to enqueue jobs, with options for the jobs.

        Args:
            **options: `delay`: seconds until the job may start; `at`: when it may start, as a
                `datetime` with a time zone or in seconds since the epoch; `id`: the job's id, which
                no stored job may have, and which has no `..`; `queue`, `expires` (seconds until it
                must have started), `timeout` (seconds for one attempt): instead of the handler's;
                `retry`: a number of attempts instead of the handler's policy, with waits from 5
                seconds to an hour; `meta`: plain data for observers and `JobContext.meta`.

        Returns:
            An object with `enqueue`, `enqueue_many`, both with `_sync`, and `job`.

        Raises:
            ValueError: An option is not valid; the message names it.
            TypeError: There is no such option.

        Example:
            ```python
            await send_email.options(delay=60, id="welcome-7").enqueue("a@b.c", subject="hi")
            ```
        """
        return JobSubmission(self._enqueuer, self.signature, self.config, check(options))

    def __repr__(self) -> str:
        return f"<Handler {self.name!r}>"


def _hint(error: TypeError, kwargs: Mapping[str, Any]) -> str:
    """Return the advice for options that were passed as arguments, or an empty string."""
    options = [name for name in kwargs if name in JobOptions.__annotations__]
    if not any(f"'{name}'" in str(error) for name in options):
        return ""
    return "; options go before the arguments, as in handler.options(delay=5).enqueue(…)"


def _split(call: object) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(call, (tuple, list)):
        return cast(Sequence[Any], call), {}
    if isinstance(call, Mapping):
        return (), cast(Mapping[str, Any], call)
    raise TypeError(
        "calls must contain tuples of arguments or mappings of keyword arguments, not a "
        f"{type(call).__qualname__}"
    )
