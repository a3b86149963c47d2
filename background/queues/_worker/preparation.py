"""Turns a claimed job into an attempt; the attempt of an unusable job fails with the reason."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

from tenacity import AsyncRetrying

from ..._observer import Observer
from ..._retry import make_policy
from ..._support.frozen import EMPTY
from ..._task import Task, unchecked
from .._client import previous
from .._codec.body import Body, decode
from .._enqueue.handler import Handler
from .._errors import UnknownHandlerError, WorkerDiedError
from ..abc import Claim
from .attempt import JobAttempt, WorkerContext

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

    def prepare(self, claim: Claim, held_until: float) -> tuple[JobAttempt, Mapping[str, str]]:
        """Return an attempt of a job, and the trace context that is stored with the job."""
        message = claim.message
        handler = self._handlers.get(message.handler or "")
        if handler is None:
            text = f"no handler {message.handler!r} for a job in the queue {message.queue!r}"
            return self._refuse(claim, held_until, UnknownHandlerError(text), self._observers)
        observers = self._observers + handler.config.observers
        if claim.crashes >= self._max_crashes:
            error = WorkerDiedError(f"its worker died {claim.crashes} times while it ran the job")
            return self._refuse(claim, held_until, error, observers)
        try:
            body = decode(f"job {message.id}", message.body, self._worker.client.max_payload)
            return self._prepare(claim, held_until, handler, body, observers), body.trace
        except Exception as failure:
            return self._refuse(claim, held_until, failure, observers)

    def _prepare(
        self,
        claim: Claim,
        held_until: float,
        handler: Handler[..., Any, Any],
        body: Body,
        observers: tuple[Observer, ...],
    ) -> JobAttempt:
        config, id = handler.config, claim.message.id
        args, kwargs = handler.signature.load(body.args, body.kwargs)
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
        return self._attempt(
            claim,
            task,
            held_until,
            policy=self._worker.host.config.policy if retry is None else make_policy(retry),
            dump_result=handler.signature.dump_result,
            stores_result=config.stores_result,
            passes_result=body.passes,
            previous=results,
        )

    def _refuse(
        self,
        claim: Claim,
        held_until: float,
        error: Exception,
        observers: tuple[Observer, ...],
    ) -> tuple[JobAttempt, Mapping[str, str]]:
        message = claim.message
        name = message.handler or message.id
        task = unchecked(_raising(error), (), EMPTY, name, id=message.id, observers=observers)
        return self._attempt(claim, task, held_until), _NO_BODY.trace

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
        )


def _raising(error: Exception) -> Callable[[], Awaitable[None]]:
    async def refuse() -> None:
        raise error

    return refuse
