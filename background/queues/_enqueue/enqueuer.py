"""Enqueueing, however jobs are described, with those told who want to know."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..._observer import Observer
from .. import _names
from .._client import Client
from .._errors import DuplicateJobError
from ..abc import Message
from .announcer import Announcer
from .composites import Compiler, Single, Step
from .handle import JobHandle
from .messages import message
from .options import NONE_GIVEN, Options

T = TypeVar("T")

_LONGEST_ID = 120  # characters of a composite's, as its jobs get a number after it


class Sender:
    """Enqueues jobs for a queue and its handlers.

    - `announcer`: gives who tells observers; raises `QueueError` while the queue is not open.
    - `convert`: makes of a result what the handler's annotation says.
    """

    def __init__(
        self,
        client: Client,
        announcer: Callable[[], Announcer],
        convert: Callable[[str | None, Any], Any],
    ) -> None:
        self.max_payload = client.max_payload
        self._client = client
        self._announcer = announcer
        self._convert = convert

    async def send(
        self, messages: Sequence[Message], options: Options, observers: tuple[Observer, ...]
    ) -> None:
        """Enqueue messages, all or none, and tell of it."""
        announcer = self._announcer()
        await self._client.enqueue(messages)
        announcer.tell(messages, options, observers)

    async def send_step(self, step: Step[T], id: str | None) -> JobHandle[T]:
        """Enqueue what `job()`, `chain()` or `group()` made, by this id if one is given."""
        announcer = self._announcer()
        if isinstance(step, Single):
            options = step.options if id is None else dataclasses.replace(step.options, id=id)
            made = message(step.terms, step.args, step.kwargs, options, self.max_payload)
            await self.send([made], options, step.observers)
            return self.handle(made.id)
        if id is None:
            id = _names.new_id()
        elif len(id) > _LONGEST_ID:
            raise ValueError(f"id of a composite can have {_LONGEST_ID} characters, not {len(id)}")
        elif await self._client.broker.get(id) is not None:  # its steps may be forgotten already
            raise DuplicateJobError(f"there is a job with the id {id!r}")
        compiler = Compiler(id, "default", self._client.keep, self.max_payload)
        messages = compiler.compile(step)
        await self._client.enqueue(messages)
        for made, single in zip(messages, compiler.steps, strict=False):
            announcer.tell([made], single.options, single.observers)
        announcer.tell(messages[-1:], NONE_GIVEN, ())
        return self.handle(id)

    def handle(self, id: str) -> JobHandle[Any]:
        return JobHandle(id, self._client, self._convert)
