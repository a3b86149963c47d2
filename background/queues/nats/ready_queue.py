"""Which jobs are ready, for whoever asks first: messages that name them, one consumer a queue.

A message is only a hint: the job's record says whether it is ready. It brings along a small record,
which spares a look at it. Jobs that were waiting for something, or were handed back, go before new
ones, which are younger: so there are two consumers a queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nats.aio.msg import Msg

from .._errors import BrokerUnavailableError
from .jetstream import JetStream
from .job import NatsJob
from .layout import Layout
from .requests import Request

_A_WHILE = 0.1  # seconds until nobody is expected to take more
_SMALL = 16_384  # bytes of a record that a message brings along
_LATENESS = 0.01  # seconds by which consumers may be behind what is stored
_EXPECTED = 1_000  # jobs that are looked out for at most
_REVISION = "Background-Revision"
_ID = "Background-NatsJob"


class Offer(NamedTuple):
    """A job that may be ready, and what its record was when it was said to be."""

    id: str
    record: bytes
    revision: int
    message: Msg


class ReadyQueue:
    """The jobs that are ready."""

    def __init__(self, api: JetStream, layout: Layout) -> None:
        self._api = api
        self._layout = layout
        self._known: set[str] = set()  # queues with consumers
        self._expected: dict[tuple[str, bool], set[str]] = {}
        self._done: list[str] = []  # where to say so of offers that are
        self._saying: asyncio.TimerHandle | None = None
        self._more = False  # there may be more offers than were taken

    def forget(self) -> None:
        self._say_done()
        self._known.clear()
        self._expected.clear()

    async def put(self, jobs: Sequence[tuple[NatsJob, bytes, int]], *, again: bool) -> None:
        """Say of jobs, with their records and the revisions of these, that they are ready."""
        if not jobs:
            return
        for job, _, _ in jobs:
            self._expect(job.message.queue, job.message.id, again=again)
        requests: list[Request] = []
        for job, record, revision in jobs:
            headers = {_ID: job.message.id, _REVISION: str(revision)}
            subject = self._layout.ready_job(job.message.queue, job.message.id, again=again)
            requests.append(Request(subject, record if len(record) <= _SMALL else b"", headers))
        await self._api.publish_all(requests)
        for queue in {job.message.queue for job, _, _ in jobs}:
            self._api.link.post(self._layout.woken(queue))

    async def take(self, queue: str, most: int) -> list[Offer]:
        """Take up to so many offers, which have to be done or declined."""
        offers: list[Offer] = []
        try:
            for again in (True, False):
                if len(offers) < most:
                    await self._take(queue, most, offers, again=again)
        except BaseException as error:
            self.decline(offers)
            if isinstance(error, BrokerUnavailableError):
                self._known.discard(queue)  # old servers say nothing at all if there is no consumer
            raise
        self._more = len(offers) >= most
        self._say_done()
        return offers

    async def _take(self, queue: str, most: int, offers: list[Offer], *, again: bool) -> None:
        await self._ensure(queue)
        name, settings = self._layout.consumer(queue, again=again)
        stream = self._layout.ready
        messages = await self._api.fetch(stream, name, most - len(offers))
        if messages is None:  # gone, as nobody had asked for long
            await self._api.ensure_consumer(stream, name, settings)
            messages = await self._api.fetch(stream, name, most - len(offers))
        offers += map(_offer, messages or ())
        expected = self._expected.pop((queue, again), set())
        if len(offers) < most and expected.difference(each.id for each in offers):
            late = await self._api.fetch(stream, name, most - len(offers), _LATENESS)
            offers += map(_offer, late or ())

    def _expect(self, queue: str, id: str, *, again: bool) -> None:
        """Take note of a job that was put here: a consumer may not know yet of what is stored."""
        if queue in self._known:
            expected = self._expected.setdefault((queue, again), set())
            if len(expected) < _EXPECTED:
                expected.add(id)

    async def _ensure(self, queue: str) -> None:
        if queue not in self._known:
            for again in (True, False):
                name, settings = self._layout.consumer(queue, again=again)
                await self._api.ensure_consumer(self._layout.ready, name, settings)
            self._known.add(queue)

    def done(self, offers: Iterable[Offer]) -> None:
        """Have offers forgotten: at once, or while there are more of them, after the next take.

        Servers look through all of a stream's subjects for a consumer that is to have the first
        message there is: ever longer, the more jobs are ready. So what was taken last stays there.
        """
        self._done += [each.message.reply for each in offers]
        if not self._more:
            self._say_done()
        elif self._saying is None:
            self._saying = asyncio.get_running_loop().call_later(_A_WHILE, self._say_done)

    def _say_done(self) -> None:
        if self._saying is not None:
            self._saying.cancel()
            self._saying = None
        replies, self._done = self._done, []
        for each in replies:
            self._api.link.post(each, b"+ACK")

    def decline(self, offers: Iterable[Offer], delay: float = 0.0) -> None:
        self._api.link.decline((each.message for each in offers), delay)

    async def look(self, queues: Sequence[str]) -> tuple[bool, bool]:
        """Tell whether there are offers, and whether there may be some that others have taken."""
        taken = False
        for queue in queues:
            await self._ensure(queue)
            for again in (True, False):
                name, _ = self._layout.consumer(queue, again=again)
                found = await self._api.pending(self._layout.ready, name)
                if found is None:
                    self._known.discard(queue)
                elif found[0]:
                    return True, taken
                else:
                    taken = taken or found[1] > 0
        return False, taken

    async def drop(self, jobs: Sequence[NatsJob]) -> None:
        """Forget that jobs were ready, which are no longer."""
        if jobs:
            await self._api.purge(
                self._layout.ready,
                [self._layout.any_ready_job(job.message.queue, job.message.id) for job in jobs],
            )


def _offer(message: Msg) -> Offer:
    headers = message.headers or {}
    return Offer(headers[_ID], message.data, int(headers[_REVISION]), message)
