"""What is to be done for a claimed job, or why nothing can be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any

from tenacity import AsyncRetrying

from ..._observer import Observer
from ..._retry import make_policy
from ..._support.frozen import EMPTY, empty, maker, record
from .._client import previous
from .._codec.body import decode
from .._enqueue.handler import Handler
from .._errors import QueueError, UnknownHandlerError
from ..abc import Claim


class WorkerDiedError(QueueError):
    """Every worker that ran the job has died while it did."""


@record
class Plan:
    """How to run a job, and what to do with its result.

    - `stores`: whether its result is kept; `passes`: whether other jobs need it.
    """

    name: str
    fn: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=empty)
    meta: Mapping[str, Any] = field(default_factory=empty)
    trace: Mapping[str, str] = field(default_factory=empty)
    previous: Any = None
    timeout: float | None = None
    policy: AsyncRetrying | None = None
    observers: tuple[Observer, ...] = ()
    dump_result: Callable[[Any], Any] | None = None
    stores: bool = False
    passes: bool = False


_make = maker(Plan)


class Planner:
    """Makes the plans of one worker."""

    def __init__(
        self,
        handlers: Mapping[str, Handler[..., Any, Any]],
        observers: tuple[Observer, ...],
        policy: AsyncRetrying | None,
        *,
        max_payload: int,
        max_crashes: int,
    ) -> None:
        self._handlers = handlers
        self._observers = observers
        self._policy = policy
        self._max_payload = max_payload
        self._max_crashes = max_crashes

    def plan(self, claim: Claim) -> Plan:
        """Plan a run; one that only raises, for a job that can't be run."""
        message = claim.message
        handler = self._handlers.get(message.handler or "")
        if handler is None:
            error: QueueError = UnknownHandlerError(
                f"no handler {message.handler!r} here, for a job of the queue {message.queue!r}"
            )
            return self._refuse(claim, error, self._observers)
        observers = self._observers + handler.settings.observers
        if claim.crashes >= self._max_crashes:
            error = WorkerDiedError(f"its worker died {claim.crashes} times while it ran the job")
            return self._refuse(claim, error, observers)
        try:
            return self._plan(claim, handler, observers)
        except Exception as failure:
            return self._refuse(claim, failure, observers)

    def _plan(
        self, claim: Claim, handler: Handler[..., Any, Any], observers: tuple[Observer, ...]
    ) -> Plan:
        message = claim.message
        body = decode(f"job {message.id}", message.body, self._max_payload)
        args, kwargs = handler.signature.load(body.args, body.kwargs)
        settings = handler.settings
        retry = settings.retry if body.retry is None else body.retry
        return _make(
            handler.name,
            handler.fn,
            tuple(args),
            kwargs,
            MappingProxyType(body.meta) if body.meta else EMPTY,
            body.trace,
            None if body.previous is None else previous(message.id, body.previous, claim.previous),
            settings.timeout if body.timeout is None else body.timeout,
            self._policy if retry is None else make_policy(retry),
            observers,
            handler.signature.dump_result,
            settings.stores,
            body.passes,
        )

    def _refuse(self, claim: Claim, error: Exception, observers: tuple[Observer, ...]) -> Plan:
        return Plan(
            name=claim.message.handler or claim.message.id,
            fn=_raising(error),
            observers=observers,
        )


def _raising(error: Exception) -> Callable[[], Awaitable[None]]:
    async def refuse() -> None:
        raise error

    return refuse
