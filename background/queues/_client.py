"""Access to the broker and the store of results, with retries after lost answers."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from math import inf
from typing import Any

import anyio

from .._eventloop.interruption import ki_protected
from .._support.log import log
from ._attempts import attempts_of, worker_of
from ._backoff import Outages, wait_for_broker
from ._codec import errors, json_data
from ._codec.body import Body, decode, pick
from ._errors import BrokerUnavailableError, DuplicateJobError, InvalidPayloadError, QueueError
from ._info import JobInfo
from ._queue_loop import QueueLoop, not_open
from ._states import FINAL, JobState
from .abc import Broker, Message, Results, StoredJob

_PAUSES = (0.0, 0.1, 0.4)  # seconds before an enqueue whose answer was lost is repeated
_PATIENCE = 30.0  # seconds without a broker after which a wait for a job fails
_CLOSING = 1.0  # seconds that disconnecting may take


@ki_protected
class Client:
    """A broker and a store of results, for one event loop.

    Methods that a queue's users reach raise `QueueError` outside of the event loop in which the
    queue is open.

    Args:
        broker: The broker.
        results: The store of results, if it is not the broker.
        max_payload: The most bytes of a job's arguments or its result.

    Attributes:
        outages: The logged outages of the broker.
        result_outages: Those of the store of results.
    """

    def __init__(self, broker: Broker, results: Results | None, max_payload: int) -> None:
        self.broker = broker
        self.results = results
        self.max_payload = max_payload
        self.outages = Outages()
        self.result_outages = Outages()
        self.loop: QueueLoop | None = None  # while the queue is open

    def check(self) -> None:
        """Check that the queue is open, in the caller's event loop.

        Raises:
            QueueError: It is not.
        """
        if self.loop is None:
            raise not_open()
        self.loop.check()

    async def open(self, wait: float) -> None:
        """Connect to the broker and the store of results, or to neither.

        Args:
            wait: Seconds for which to try again while one of them can't be reached.

        Raises:
            BrokerUnavailableError: One of them can't be reached.
        """
        await wait_for_broker(self._open, wait)

    async def _open(self) -> None:
        await self.broker.open()
        try:
            if self.results is not None:
                await self.results.open()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.broker.close()
            raise

    async def close(self) -> None:
        """Disconnect from both; log what does not end in time."""
        try:
            await self._close(self.broker)
        finally:
            if self.results is not None:
                await self._close(self.results)

    async def _close(self, store: Broker | Results) -> None:
        with anyio.move_on_after(_CLOSING) as closing:
            await store.close()
        if closing.cancelled_caught:
            log(logging.WARNING, "%r did not close within %g s", store, _CLOSING)

    async def enqueue(self, messages: Sequence[Message]) -> None:
        """Store jobs, all or none; repeat the call if its answer is lost.

        Raises:
            DuplicateJobError: A job with the same id is stored.
            BrokerUnavailableError: The broker can't be reached.
            QueueError: The queue is not open here.
        """
        self.check()
        new, repeated = await self._enqueue_until_answered(messages)
        if all(new):
            return
        if repeated and messages[-1].handler is None and not new[-1]:
            # The steps of another chain or group with this id may be equal. The job that represents
            # it has a nonce, and differs.
            repeated = await self._is_ours(messages[-1])
        taken = [
            message.id
            for message, is_new in zip(messages, new, strict=True)
            if not is_new and not (repeated and await self._is_ours(message))
        ]
        if taken:
            # A chain or group must not run partially.
            ours = [message.id for message in reversed(messages) if message.id not in taken]
            await self.broker.cancel_many(ours)
            raise DuplicateJobError(
                f"a job with the id {taken[0]!r} is stored; the id can be reused after its "
                "retention"
            )

    async def _enqueue_until_answered(self, messages: Sequence[Message]) -> tuple[list[bool], bool]:
        repeated = False
        for pause in _PAUSES:
            try:
                return await self.broker.enqueue(messages), repeated
            except BrokerUnavailableError as error:
                if error.changed_nothing:
                    raise
                repeated = True
                await anyio.sleep(pause)
        return await self.broker.enqueue(messages), repeated

    async def _is_ours(self, message: Message) -> bool:
        stored = await self.broker.get(message.id)
        return stored is not None and stored.message.body == message.body

    async def wait(self, id: str, timeout: float) -> StoredJob:
        """Wait until a job has ended, and return it.

        Raises:
            TimeoutError: The job has not ended in time.
            QueueError: The job is not stored, or the queue is not open here.
            BrokerUnavailableError: The broker could not be reached for 30 seconds.
        """
        self.check()
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
                raise QueueError(f"job {id} is not stored: it never was, or is past its retention")
            if job.state in FINAL:
                return job
            if now >= deadline:
                raise TimeoutError(f"job {id} was {job.state} after {timeout:g} s")

    async def cancel(self, id: str) -> bool:
        """Cancel a job, or all jobs of a chain or group; return whether any had not ended."""
        self.check()
        job = await self.broker.get(id)
        if job is None or job.state is JobState.SUCCEEDED:
            return False
        members = self._body(job).members if job.message.handler is None else ()
        states = await self.broker.cancel_many([id, *reversed(members)])
        return any(state is not None and state not in FINAL for state in states)

    async def requeue(self, id: str) -> bool:
        """Make an ended job ready again; return whether the job had ended.

        Raises:
            QueueError: The id is that of a chain or group, or the queue is not open here.
        """
        self.check()
        job = await self.broker.get(id)
        if job is None or job.state not in FINAL:
            return False
        if job.message.handler is None:
            raise QueueError(
                f"{id} is a chain or group, which has no code to run: requeue the job that failed, "
                "or enqueue the chain or group again"
            )
        if self.results is not None:
            await self.results.delete(result_key(id, job.attempt))
        return await self.broker.requeue(id)

    async def info(self, id: str) -> JobInfo | None:
        """Return information about a job, or `None` if it is not stored."""
        self.check()
        job = await self.broker.get(id)
        return None if job is None else await self._info(job)

    async def infos(self, queue: str | None, state: JobState | None) -> AsyncIterator[JobInfo]:
        """Iterate over jobs, oldest first."""
        self.check()
        async for job in self.broker.scan(queue=queue, state=state):
            yield await self._info(job)

    async def count(self, queue: str | None, state: JobState | None) -> int:
        """Return the number of jobs."""
        self.check()
        return await self.broker.count(queue=queue, state=state)

    async def advance_schedule(
        self, name: str, expected: float | None, tick: float, retention: float
    ) -> float:
        """Store up to which tick a schedule is enqueued, as the broker does."""
        self.check()
        return await self.broker.advance_schedule(name, expected, tick, retention=retention)

    async def purge(self, state: JobState | None, older_than: float) -> int:
        """Delete jobs that ended at least `older_than` seconds ago; return their number."""
        self.check()
        return await self.broker.purge(state=state, older_than=older_than)

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
            pass  # no result is stored
        return JobInfo(
            id=message.id,
            handler=message.handler,
            queue=message.queue,
            state=job.state,
            attempt=job.attempt,
            enqueued_at=job.enqueued_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            worker=worker_of(job.token) or None,
            error=errors.failed(message.id, job.error) if job.error else None,
            attempts=attempts_of(job),
            result=result,
            args=None if body is None else body.args,
            kwargs=None if body is None else body.kwargs,
            meta={} if body is None else body.meta,
            payload=message.body,
        )

    def _body(self, job: StoredJob) -> Body:
        return decode(f"job {job.message.id}", job.message.body, inf)

    async def result(self, job: StoredJob) -> Any:
        """Return a job's result as plain data.

        Raises:
            QueueError: No result is stored.
        """
        id = job.message.id
        if job.message.handler is None and job.state is JobState.SUCCEEDED:
            return previous(id, self._body(job).previous, job.previous)
        encoded = job.result
        if self.results is not None and job.state is JobState.SUCCEEDED:
            encoded = await self.results.get(result_key(id, job.attempt))
        if encoded is None:
            raise QueueError(f"job {id} is {job.state}, and no result of it is stored")
        return json_data.decode(f"the result of job {id}", encoded, inf)

    async def failure(self, job: StoredJob) -> Exception:
        """Return the error of a dead job, or of the job that made it dead."""
        while (cause := await self._cause(job)) is not None:
            job = cause
        return errors.failed(job.message.id, job.error)

    async def _cause(self, job: StoredJob) -> StoredJob | None:
        for id in job.message.depends_on:
            dependency = await self.broker.get(id)
            if dependency is not None and dependency.state is JobState.DEAD:
                return dependency
        return None


def result_key(id: str, attempt: int) -> str:
    """Return the key of an attempt's result in a store of results."""
    return f"{id}.{attempt}"


def previous(id: str, shape: Any, results: Sequence[bytes | None]) -> Any:
    """Return the results of a job's dependencies.

    Args:
        id: The job's id, for messages.
        shape: The structure of the results, from the job's body.
        results: The encoded results of the dependencies, in order.

    Raises:
        InvalidPayloadError: The results do not fit the shape.
    """
    decoded = [
        None if result is None else json_data.decode(f"a result for job {id}", result, inf)
        for result in results
    ]
    try:
        return pick(shape, decoded)
    except IndexError:
        raise InvalidPayloadError(
            f"job {id} asks for results of more jobs than it depends on"
        ) from None
