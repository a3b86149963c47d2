"""Handlers: functions that jobs are for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar, Unpack, cast

from ..._eventloop.protection import uninterrupted
from ..._observer import Observer
from ..._retry import Retry, make_policy
from ..._support import validation
from ..._support.frozen import record
from .._codec.arguments import Signature
from .composites import Single, Step
from .enqueuer import Sender
from .handle import JobHandle
from .messages import Terms, message, messages
from .options import NONE_GIVEN, Options, OptionsGiven, check

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


@record
class Settings:
    """What a handler was declared with, and what comes of it.

    - `terms`: what is agreed for its jobs.
    - `retry`, `timeout`: for its attempts; `observers`: of its jobs, beside the queue's.
    - `stores`: whether results are kept.
    """

    terms: Terms
    retry: Retry
    timeout: float | None
    stores: bool
    observers: tuple[Observer, ...]

    def named(self, name: str) -> Settings:
        """Return the same for a handler of this name."""
        return replace(self, terms=replace(self.terms, name=name))


def check_settings(settings: Settings) -> None:
    """Raise `ValueError` for what can't work, naming it."""
    make_policy(settings.retry)
    validation.optional(validation.seconds, "timeout", settings.timeout, above=0)
    validation.optional(validation.seconds, "expires", settings.terms.expires, above=0)


class Sending(Generic[P, T]):
    """The ways to enqueue jobs of one handler, with options of their own."""

    def __init__(
        self, sender: Sender, signature: Signature, settings: Settings, options: Options
    ) -> None:
        self._sender = sender
        self._signature = signature
        self._settings = settings
        self._options = options

    @uninterrupted
    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[T]:
        """Have the handler called with these arguments, in whichever process works it off.

        Raises `TypeError` for arguments that the handler does not take, `InvalidPayloadError` for what
        can't travel, `PayloadTooLargeError`, `DuplicateJobError` for an id that is known,
        `BrokerUnavailableError`, and `QueueError` where the queue is not open.
        """
        settings, options, sender = self._settings, self._options, self._sender
        made = message(settings.terms, *self._dump(args, kwargs), options, sender.max_payload)
        await sender.send([made], options, settings.observers)
        return sender.handle(made.id)

    @uninterrupted
    async def enqueue_many(
        self, calls: Iterable[Sequence[Any] | Mapping[str, Any]]
    ) -> list[JobHandle[T]]:
        """Enqueue a job for each of `calls`, all in one round trip.

        Each of them is a tuple of positional arguments or a mapping of keyword arguments.

            await send_email.enqueue_many([("a@b.c", "hi"), {"to": "d@e.f", "subject": "hi"}])

        Raises as `enqueue`, and then has enqueued none; `ValueError` where all would have one id.
        """
        if self._options.id is not None:
            raise ValueError("id can't be given to enqueue_many(): each job needs its own")
        settings, options, sender = self._settings, self._options, self._sender
        plain = (self._dump(*_split(call)) for call in calls)
        made = messages(settings.terms, plain, options, sender.max_payload)
        await sender.send(made, options, settings.observers)
        return [sender.handle(each.id) for each in made]

    def job(self, *args: P.args, **kwargs: P.kwargs) -> Step[T]:
        """Return a job that is not enqueued, for `chain()`, `group()` and `JobQueue.enqueue()`.

        Raises as `enqueue`; `ValueError` with an id, which a composite's jobs get from that.
        """
        if self._options.id is not None:
            raise ValueError("id can't be given to a step: give it to jobs.enqueue(step, id=…)")
        plain, settings = self._dump(args, kwargs), self._settings
        return Single(settings.terms, *plain, self._options, settings.observers)

    def _dump(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        try:
            return self._signature.dump(args, kwargs)
        except TypeError as error:
            raise TypeError(f"{error}{_hint(error, kwargs)}") from None


class Handler(Sending[P, T], Generic[P, R, T]):
    """A function that jobs are for; called, it is the plain function.

    `name` is what it is called in the broker; `fn` is the function.
    """

    def __init__(
        self, sender: Sender, fn: Callable[P, R], signature: Signature, settings: Settings
    ) -> None:
        update_wrapper(self, fn)  # first, as it brings the attributes of a function along
        super().__init__(sender, signature, settings, NONE_GIVEN)
        self.fn = fn
        self.name = settings.terms.name
        self.settings = settings
        self.signature = signature

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.fn(*args, **kwargs)

    def options(self, **options: Unpack[OptionsGiven]) -> Sending[P, T]:
        """Return the same ways to enqueue jobs, with options of their own.

        - `delay`: seconds until the job may start (default 0); `at`: or when, as a `datetime` with
          a time zone or in seconds since the epoch.
        - `id`: the job's name; a second one with the same is refused while the first is known.
        - `queue`, `expires`, `timeout`: instead of the handler's.
        - `retry`: a number of attempts instead of the handler's policy.
        - `meta`: plain data for observers and `JobContext.meta`.

            await send_email.options(delay=60, id="welcome-7").enqueue("a@b.c", subject="hi")

        Raises `ValueError`, naming the option that can't work, and `TypeError` for one that does
        not exist.
        """
        return Sending(self._sender, self._signature, self.settings, check(options))

    def __repr__(self) -> str:
        return f"<Handler {self.name!r}>"


def _hint(error: TypeError, kwargs: Mapping[str, Any]) -> str:
    """Say where options belong that were given among the arguments."""
    options = [name for name in kwargs if name in OptionsGiven.__annotations__]
    if not any(f"'{name}'" in str(error) for name in options):
        return ""
    return "; options go before the arguments, as in handler.options(delay=5).enqueue(…)"


def _split(call: object) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(call, (tuple, list)):
        return cast(Sequence[Any], call), {}
    if isinstance(call, Mapping):
        return (), cast(Mapping[str, Any], call)
    raise TypeError(
        "each of calls must be a tuple of arguments or a mapping of keyword arguments, "
        f"not {call!r}"
    )
