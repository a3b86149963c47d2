"""The broker as the rest uses it: results that may be elsewhere, limits, and lost connections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from math import inf
from typing import Any

import anyio

from .._eventloop.protection import uninterrupted
from ._codec import errors, json_data
from ._codec.body import Body, decode, pick
from ._errors import BrokerUnavailableError, DuplicateJobError, InvalidPayloadError, QueueError
from ._info import JobInfo
from ._states import FINAL, JobState
from .abc import Broker, Message, Results, StoredJob

_PAUSES = (0.0, 0.1, 0.4)  # seconds before an enqueue whose answer was lost is repeated
_PATIENCE = 30.0  # seconds without a broker until those who wait for a job are told


class Client:
    """What handles and handlers ask of a broker and a store of results."""

    def __init__(
        self, broker: Broker, results: Results | None, *, max_payload: int, keep: float
    ) -> None:
        self.broker = broker
        self.results = results
        self.max_payload = max_payload
        self.keep = keep

    async def open(self) -> None:
        """Connect to both, or to none."""
        await self.broker.open()
        try:
            if self.results is not None:
                await self.results.open()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.broker.close()
            raise

    async def close(self) -> None:
        try:
            await self.broker.close()
        finally:
            if self.results is not None:
                await self.results.close()

    async def enqueue(self, messages: Sequence[Message]) -> None:
        """Have jobs taken, all or none; one whose answer was lost is asked for again.

        Raises `DuplicateJobError` for an id that is known, and `BrokerUnavailableError`.
        """
        new, repeated = await self._insist(messages)
        if all(new):
            return
        if repeated and messages[-1].handler is None and not new[-1]:
            # Steps of another composite with this id may look the same; what stands for it can't.
            repeated = await self._is_ours(messages[-1])
        taken = [
            message.id
            for message, is_new in zip(messages, new, strict=True)
            if not is_new and not (repeated and await self._is_ours(message))
        ]
        if taken:
            for message in reversed(messages):  # of a composite, which must not run in part
                if message.id not in taken:
                    await self.broker.cancel(message.id)
            raise DuplicateJobError(
                f"there is a job with the id {taken[0]!r}; ids can be used again when the job is "
                "no longer kept"
            )

    async def _insist(self, messages: Sequence[Message]) -> tuple[list[bool], bool]:
        repeated = False
        for pause in _PAUSES:
            try:
                return await self.broker.enqueue(messages), repeated
            except BrokerUnavailableError:
                repeated = True
                await anyio.sleep(pause)
        return await self.broker.enqueue(messages), repeated

    async def _is_ours(self, message: Message) -> bool:
        stored = await self.broker.get(message.id)
        return stored is not None and stored.message.body == message.body

    async def wait(self, id: str, timeout: float) -> StoredJob:
        """Return a job when it has ended.

        Raises `TimeoutError`, `QueueError` for one that is not known, and `BrokerUnavailableError`.
        """
        now = anyio.current_time()
        deadline, given_up = now + timeout, now + _PATIENCE
        while True:
            try:
                job = await self.broker.wait(id, min(deadline - now, _PATIENCE))
            except BrokerUnavailableError:
                now = anyio.current_time()
                if now >= min(given_up, deadline):
                    raise
                await anyio.sleep(0.1)
                now = anyio.current_time()
                continue
            now = anyio.current_time()
            given_up = now + _PATIENCE
            if job is None:
                raise QueueError(f"job {id} is not known: it never was, or is no longer kept")
            if job.state in FINAL:
                return job
            if now >= deadline:
                raise TimeoutError(f"job {id} was {job.state} after {timeout:g} s")

    async def cancel(self, id: str) -> bool:
        """Cancel a job, or all of those of a composite; tell whether there was anything left."""
        job = await self.broker.get(id)
        if job is None or job.state is JobState.SUCCEEDED:
            return False
        # Each before what it needs, with which it would fail instead of being cancelled.
        members = self._body(job).members if job.message.handler is None else ()
        states = [await self.broker.cancel(each) for each in (id, *reversed(members))]
        return any(state is not None and state not in FINAL for state in states)

    async def requeue(self, id: str) -> bool:
        """Make a job ready again that has ended. Raises `QueueError` for a composite."""
        job = await self.broker.get(id)
        if job is None or job.state not in FINAL:
            return False
        if job.message.handler is None:
            raise QueueError(
                f"{id} is a chain or group, which runs no code that could be run again: requeue "
                "the job that failed, or enqueue it anew"
            )
        if self.results is not None:
            await self.results.delete(key(id, job.attempt))
        return await self.broker.requeue(id)

    async def save(self, id: str, attempt: int, token: str, result: bytes, keep: float) -> bool:
        """Keep an intermediate result; `False` if the lease was lost."""
        if self.results is None:
            return await self.broker.save(id, token, result)
        await self.results.save(key(id, attempt), result, keep=keep)
        return True

    async def info(self, id: str) -> JobInfo | None:
        job = await self.broker.get(id)
        return None if job is None else await self._info(job)

    @uninterrupted
    async def infos(self, queue: str | None, state: JobState | None) -> AsyncIterator[JobInfo]:
        async for job in self.broker.scan(queue=queue, state=state):
            yield await self._info(job)

    async def _info(self, job: StoredJob) -> JobInfo:
        message = job.message
        body = result = None
        with suppress(InvalidPayloadError):
            body = self._body(job)
        try:
            result = await self.result(job)
        except BrokerUnavailableError:
            raise
        except QueueError:
            pass  # there is none
        return JobInfo(
            id=message.id,
            handler=message.handler,
            queue=message.queue,
            state=job.state,
            attempt=job.attempt,
            enqueued_at=job.enqueued_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            error=None if job.error is None else errors.failed(message.id, job.error),
            result=result,
            args=None if body is None else body.args,
            kwargs=None if body is None else body.kwargs,
            meta={} if body is None else body.meta,
            payload=message.body,
        )

    def _body(self, job: StoredJob) -> Body:
        return decode(f"job {job.message.id}", job.message.body, inf)

    async def result(self, job: StoredJob) -> Any:
        """Return a job's result as plain data. Raises `QueueError` if none is kept."""
        id = job.message.id
        if job.message.handler is None and job.state is JobState.SUCCEEDED:
            return previous(id, self._body(job).previous, job.previous)
        encoded = job.result
        if self.results is not None:
            encoded = await self.results.get(key(id, job.attempt))
        if encoded is None:
            raise QueueError(f"job {id} is {job.state}, and no result of it is kept")
        return json_data.decode(f"the result of job {id}", encoded, inf)

    async def failure(self, job: StoredJob) -> Exception:
        """Return the error of a job that is dead, or of the one because of which it is."""
        while (cause := await self._cause(job)) is not None:
            job = cause
        return errors.failed(job.message.id, job.error)

    async def _cause(self, job: StoredJob) -> StoredJob | None:
        for need in job.message.needs:
            needed = await self.broker.get(need)
            if needed is not None and needed.state is JobState.DEAD:
                return needed
        return None


def key(id: str, attempt: int) -> str:
    """Return under which key an attempt's result is stored apart from the job."""
    return f"{id}.{attempt}"


def previous(id: str, shape: Any, results: Sequence[bytes | None]) -> Any:
    """Return the results of what a job needed. Raises `InvalidPayloadError`."""
    decoded = [
        None if each is None else json_data.decode(f"a result that job {id} needs", each, inf)
        for each in results
    ]
    try:
        return pick(shape, decoded)
    except IndexError:
        raise InvalidPayloadError(f"job {id} asks for results of more jobs than it needs") from None
