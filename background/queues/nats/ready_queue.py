"""Hints about ready jobs: a work-queue stream, with two pull consumers for each queue.

A hint says that a job may be ready. Only the job's record says whether it is, so a hint may be
outdated or delivered twice. A hint contains the record if it is small, so that a worker can claim
the job without reading the record first.

A queue's hints are in two bands, one for each consumer. Jobs that were ready when they were
enqueued are in the band `new`. Jobs that became ready later, after a delay, a retry, a release or
the end of a dependency, are in the band `again`. That band is fetched first, because its jobs are
older.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nats.aio.msg import Msg

from ..._support.log import log
from .._errors import BrokerUnavailableError
from .._names import is_name
from .jetstream import JetStream
from .job import NatsJob
from .layout import Layout, decode, encode
from .requests import Request

_ACK_DELAY = 0.1  # seconds after which delayed acknowledgements are sent without another fetch
_MAX_INLINE = 16_384  # the most bytes of a record that is part of a hint
_CONSUMER_LAG = 0.01  # seconds by which a consumer may lag behind its stream
_EXPECTED = 1_000  # the most hints of a band to wait for
_REVISION, _SIZE, _ID = "Background-Revision", "Background-Size", "Background-Job"
_NUMBER = re.compile(r"\d{1,19}", re.ASCII)


class Offer(NamedTuple):
    """A hint that was fetched.

    Args:
        id: The job's id.
        record: The job's record when it became ready; empty if it is large.
        revision: The revision of that record.
        size: The bytes of that record.
        again: The band.
        message: The message to acknowledge.
    """

    id: str
    record: bytes
    revision: int
    size: int
    again: bool
    message: Msg


class ReadyQueue:
    """The hints of one prefix.

    Args:
        api: JetStream.
        layout: The names of the stream, its subjects and its consumers.
    """

    def __init__(self, api: JetStream, layout: Layout) -> None:
        self._api = api
        self._layout = layout
        self._ensured: set[str] = set()  # queues whose consumers exist
        self._expected: dict[tuple[str, bool], set[str]] = {}
        self._acks: list[str] = []  # reply subjects of hints to acknowledge
        self._ack_timer: asyncio.TimerHandle | None = None
        self._more = False  # there may be more hints than were fetched

    def reset(self) -> None:
        """Send delayed acknowledgements, and drop the known state of consumers."""
        self._send_acks()
        self._ensured.clear()
        self._expected.clear()

    async def put(self, jobs: Sequence[tuple[NatsJob, bytes, int]], *, again: bool) -> None:
        """Publish hints, and notify waiting workers.

        Args:
            jobs: The jobs, with their records and revisions, in the order of delivery.
            again: Whether the jobs became ready after they were enqueued.
        """
        if not jobs:
            return
        for job, _, _ in jobs:
            self._expect(job.message.queue, job.message.id, again=again)
        requests: list[Request] = []
        for job, record, revision in jobs:
            size = str(len(record))
            headers = {_ID: job.message.id, _REVISION: str(revision), _SIZE: size}
            subject = self._layout.ready_job(job.message.queue, job.message.id, again=again)
            inline = record if len(record) <= _MAX_INLINE else b""
            requests.append(Request(subject, inline, headers))
        await self._api.publish_all(requests)
        for queue in {job.message.queue for job, _, _ in jobs}:
            self._api.requests.post(self._layout.woken(queue))

    async def take(self, queue: str, most: int) -> list[Offer]:
        """Fetch up to `most` hints; pass each of them to `done` or to `decline`."""
        offers: list[Offer] = []
        try:
            for again in (True, False):
                if len(offers) < most:
                    await self._take(queue, most, offers, again=again)
        except BaseException as error:
            self.decline(offers)
            if isinstance(error, BrokerUnavailableError):
                # Old servers do not answer a fetch from a consumer that does not exist.
                self._ensured.discard(queue)
            raise
        self._more = len(offers) >= most
        self._send_acks()
        return offers

    async def _take(self, queue: str, most: int, offers: list[Offer], *, again: bool) -> None:
        await self._ensure(queue)
        name, settings = self._layout.consumer(queue, again=again)
        stream = self._layout.ready
        messages = await self._api.fetch(stream, name, most - len(offers))
        if messages is None:  # the server has deleted the consumer, because it was not used
            await self._api.ensure_consumer(stream, name, settings)
            messages = await self._api.fetch(stream, name, most - len(offers))
        offers += self._offers(messages or (), again=again)
        expected = self._expected.pop((queue, again), set())
        if len(offers) < most and expected.difference(offer.id for offer in offers):
            late = await self._api.fetch(stream, name, most - len(offers), _CONSUMER_LAG)
            offers += self._offers(late or (), again=again)

    def _offers(self, messages: Iterable[Msg], *, again: bool) -> list[Offer]:
        """Return the hints in messages; acknowledge those that name no job."""
        offers: list[Offer] = []
        for message in messages:
            offer = _offer(message, again=again)
            if is_name(offer.id):
                offers.append(offer)
            else:
                text = "a message on %s is deleted, because it names no job"
                log(logging.ERROR, text, message.subject)
                self._api.requests.post(message.reply, b"+ACK")
        return offers

    def _expect(self, queue: str, id: str, *, again: bool) -> None:
        """Remember a hint that is about to be delivered: the next fetch waits if it is missing.

        A consumer may deliver a message only a moment after the stream has stored it.
        """
        if queue in self._ensured:
            expected = self._expected.setdefault((queue, again), set())
            if len(expected) < _EXPECTED:
                expected.add(id)

    async def _ensure(self, queue: str) -> None:
        if queue not in self._ensured:
            for again in (True, False):
                name, settings = self._layout.consumer(queue, again=again)
                await self._api.ensure_consumer(self._layout.ready, name, settings)
            self._ensured.add(queue)

    def done(self, offers: Iterable[Offer]) -> None:
        """Acknowledge hints, which deletes them.

        While there may be more hints, acknowledgements are delayed until the next fetch. If the
        first message of the stream is the next one for a consumer, the server goes through all
        subjects to find it, which takes longer the more jobs are ready. The hints of the latest
        fetch stay in the stream to avoid that.
        """
        self._acks += [offer.message.reply for offer in offers]
        if not self._more:
            self._send_acks()
        elif self._ack_timer is None:
            loop = asyncio.get_running_loop()
            self._ack_timer = loop.call_later(_ACK_DELAY, self._send_acks)

    def _send_acks(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        replies, self._acks = self._acks, []
        for reply in replies:
            self._api.requests.post(reply, b"+ACK")

    def decline(self, offers: Iterable[Offer], delay: float = 0.0) -> None:
        """Let hints be delivered again, after a delay in seconds."""
        self._api.requests.decline((offer.message for offer in offers), delay)

    def put_back(self, queue: str, offers: Iterable[Offer]) -> None:
        """Let hints be delivered again to the next fetch, of this process or another one."""
        for offer in offers:
            self.decline([offer])
            self._expect(queue, offer.id, again=offer.again)

    async def status(self, queues: Sequence[str]) -> tuple[bool, bool]:
        """Return whether there are undelivered hints, and whether any are unacknowledged.

        The second value is only complete if the first one is false.
        """
        unacknowledged = False
        for queue in queues:
            await self._ensure(queue)
            if any((queue, again) in self._expected for again in (True, False)):
                return True, unacknowledged  # hints that were put back count as unacknowledged
            for again in (True, False):
                name, _ = self._layout.consumer(queue, again=again)
                pending = await self._api.pending(self._layout.ready, name)
                if pending is None:
                    self._ensured.discard(queue)
                elif pending[0]:
                    return True, unacknowledged
                else:
                    unacknowledged = unacknowledged or pending[1] > 0
        return False, unacknowledged

    async def drop(self, jobs: Sequence[NatsJob]) -> None:
        """Delete the hints of jobs that are not ready any more."""
        if jobs:
            await self._api.purge(
                self._layout.ready,
                [self._layout.any_ready_job(job.message.queue, job.message.id) for job in jobs],
            )


def _offer(message: Msg, *, again: bool) -> Offer:
    headers = message.headers or {}
    id, revision, size = headers.get(_ID), headers.get(_REVISION, ""), headers.get(_SIZE, "")
    token = message.subject.rpartition(".")[2]
    if id is None or encode(id) != token or not all(map(_NUMBER.fullmatch, (revision, size))):
        return Offer(decode(token), b"", 0, 0, again, message)  # the record decides
    return Offer(id, message.data, int(revision), int(size), again, message)
