"""Turns a claimed job into an attempt; the attempt of an unusable job fails with the reason."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import inf
from types import MappingProxyType
from typing import Any

from tenacity import AsyncRetrying

from ..._observer import Observer
from ..._support.frozen import EMPTY
from ..._task import Task, unchecked
from .._client import previous
from .._codec import json_data
from .._codec.body import Body, decode
from .._enqueue.handler import Handler
from .._errors import PayloadTooLargeError, UnknownHandlerError, WorkerDiedError
from .._names import listed
from ..abc import Claim
from .attempt import JobAttempt, WorkerContext
from .policy import job_policy

_MOST_NAMES = 20  # in a message
_UNKNOWN = "unknown handler"  # one name of tasks, because the jobs' own come from outside
_NO_BODY = Body(args=[], kwargs={})


class Preparation:
    """Prepares the attempts of one worker.

    Args:
        worker: The resources that all attempts of the worker share.
        handlers: The queue's handlers, by name.
        observers: The queue's observers.
        max_crashes: A job is dead when this many workers have died while they ran it.
    """

    def __init__(
        self,
        worker: WorkerContext,
        handlers: Mapping[str, Handler[..., Any, Any]],
        observers: tuple[Observer, ...],
        max_crashes: int,
    ) -> None:
        self._worker = worker
        self._handlers = handlers
        self._observers = observers
        self._max_crashes = max_crashes

    @property
    def handler_names(self) -> str:
        """The names of the handlers, for messages."""
        return listed(sorted(self._handlers), _MOST_NAMES)

    def prepare(self, claim: Claim, held_until: float) -> tuple[JobAttempt, Mapping[str, str]]:
        """Return an attempt of a job, and the trace context that is stored with the job."""
        message = claim.message
        handler = self._handlers.get(message.handler or "")
        if handler is None:
            text = f"no handler {message.handler!r} for a job in the queue {message.queue!r}"
            unknown = UnknownHandlerError(text)
            return self._refuse(claim, held_until, unknown, self._observers, is_misfit=True)
        observers = self._observers + handler.config.observers
        if claim.crashes >= self._max_crashes:
            error = WorkerDiedError(f"its worker died {claim.crashes} times while it ran the job")
            return self._refuse(claim, held_until, error, observers)
        try:
            body = decode(f"job {message.id}", message.body, self._worker.client.max_payload)
        except Exception as failure:
            too_large = isinstance(failure, PayloadTooLargeError)
            return self._refuse(claim, held_until, failure, observers, is_misfit=too_large)
        try:
            args, kwargs = handler.signature.load(body.args, body.kwargs)
        except Exception as failure:
            return self._refuse(claim, held_until, failure, observers, is_misfit=True)
        try:
            attempt = self._prepare(claim, held_until, handler, body, args, kwargs, observers)
        except Exception as failure:
            return self._refuse(claim, held_until, failure, observers)
        return attempt, body.trace

    def _prepare(
        self,
        claim: Claim,
        held_until: float,
        handler: Handler[..., Any, Any],
        body: Body,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        observers: tuple[Observer, ...],
    ) -> JobAttempt:
        config, id = handler.config, claim.message.id
        task = unchecked(
            handler.fn,
            tuple(args),
            kwargs,
            handler.name,
            timeout=config.timeout if body.timeout is None else body.timeout,
            id=id,
            meta=MappingProxyType(body.meta) if body.meta else EMPTY,
            observers=observers,
        )
        retry = config.retry if body.retry is None else body.retry
        results = None
        if body.previous is not None:
            results = previous(id, body.previous, claim.previous)
        saved = None
        if claim.saved is not None:
            saved = json_data.decode(f"a value of job {id}", claim.saved, inf)
        return self._attempt(
            claim,
            task,
            held_until,
            policy=job_policy(self._worker.host.config.retry if retry is None else retry),
            dump_result=handler.signature.dump_result,
            stores_result=config.stores_result,
            passes_result=body.passes,
            previous=results,
            saved=saved,
        )

    def _refuse(
        self,
        claim: Claim,
        held_until: float,
        error: Exception,
        observers: tuple[Observer, ...],
        *,
        is_misfit: bool = False,
    ) -> tuple[JobAttempt, Mapping[str, str]]:
        message = claim.message
        handler = self._handlers.get(message.handler or "")
        name = _UNKNOWN if handler is None else handler.name
        task = unchecked(_raising(error), (), EMPTY, name, id=message.id, observers=observers)
        misfit = error if is_misfit else None
        return self._attempt(claim, task, held_until, misfit=misfit), _NO_BODY.trace

    def _attempt(
        self,
        claim: Claim,
        task: Task[Any],
        held_until: float,
        policy: AsyncRetrying | None = None,
        dump_result: Callable[[Any], Any] = lambda value: value,
        stores_result: bool = False,
        passes_result: bool = False,
        previous: Any = None,
        saved: Any = None,
        misfit: Exception | None = None,
    ) -> JobAttempt:
        return JobAttempt(
            self._worker,
            claim,
            task,
            policy,
            dump_result,
            stores_result,
            passes_result,
            previous,
            held_until,
            saved,
            misfit,
        )


def _raising(error: Exception) -> Callable[[], Awaitable[None]]:
    async def refuse() -> None:
        raise error

    return refuse
