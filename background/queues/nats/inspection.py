"""Reading all that is stored, and deleting records, on a connection of its own.

The records may have many bytes, and take long to read. Requests of leases and settlements do not
wait for them, and continue if this connection is lost.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TypeVar

from nats.aio.msg import Msg

from .._errors import BrokerUnavailableError, QueueError
from .._names import is_name
from .._unreadable import DECODING_ERRORS
from .address import NatsAddress
from .codec import NewerRecordError, UnreadableRecordError, decode
from .jetstream import JetStream
from .job import NatsJob
from .layout import Layout, name_in
from .requests import Requests
from .streams import Streams
from .timer_wheel import JobTimer, timers_of

T = TypeVar("T")

_PAGE = 256  # the most records that are fetched at once


class Inspection:
    """What is stored under one prefix.

    Args:
        address: The servers.
        layout: The names of the streams and their subjects.
        report: Called for each record that this version of the library can't read.
    """

    def __init__(
        self,
        address: NatsAddress,
        layout: Layout,
        report: Callable[[UnreadableRecordError], None],
    ) -> None:
        self.requests = Requests(address, "inspection")
        self.report = report
        self._api = JetStream(self.requests, Streams(self.requests, layout))
        self._layout = layout

    async def read_all(
        self, extract: Callable[[NatsJob], T], *, newer: bool = False
    ) -> dict[str, T]:
        """Read all records, and return by id what `extract` returns for each job.

        Records that can't be read are reported and left out.

        Args:
            extract: Called with each job.
            newer: Whether records of a newer version of the library are left out, too.

        Raises:
            QueueError: There are such records.
        """
        found: dict[str, T] = {}
        async with aclosing(self._messages(self._layout.jobs)) as messages:
            async for message in messages:
                try:
                    job = decode(message.data, message.metadata.sequence.stream)
                except UnreadableRecordError as error:
                    if isinstance(error, NewerRecordError) and not newer:
                        raise QueueError(f"{self.requests.shown}: {error}") from None
                    self.report(error)
                else:
                    found[job.message.id] = extract(job)
        return found

    async def records(self) -> dict[str, tuple[int, int]]:
        """Return by id the revision and the bytes of each record, without reading the records."""
        found: dict[str, tuple[int, int]] = {}
        async with aclosing(self._messages(self._layout.jobs, headers_only=True)) as messages:
            async for message in messages:
                if is_name(id := name_in(message.subject)):
                    size = int((message.headers or {}).get("Nats-Msg-Size", 0))
                    found[id] = message.metadata.sequence.stream, size
        return found

    async def timers(self) -> AsyncGenerator[list[JobTimer]]:
        """Yield the timers of each message; messages without timers are left out."""
        settings = {"filter_subject": self._layout.all_timers}
        async with aclosing(self._messages(self._layout.timers, **settings)) as messages:
            async for message in messages:
                try:
                    timers = timers_of(message.data)
                except DECODING_ERRORS:
                    continue  # the wheel deletes it when its slot begins
                yield timers

    async def hinted(self) -> set[str]:
        """Return the ids of the jobs that have a hint."""
        subjects = await self._api.subjects(self._layout.ready, self._layout.all_ready_jobs)
        return {name_in(subject) for subject in subjects}

    async def load(self, sizes: Mapping[str, int]) -> AsyncGenerator[tuple[str, bytes, int]]:
        """Yield the ids, records and revisions of jobs.

        Args:
            sizes: The bytes of each job's record, by id, as far as they are known.
        """
        ids = list(sizes)
        for start in range(0, len(ids), _PAGE):
            page = ids[start : start + _PAGE]
            subjects = [self._layout.job(id) for id in page]
            largest = max(sizes[id] for id in page)
            found = await self._api.get_last(self._layout.jobs, subjects, largest)
            for id, message in zip(page, found, strict=True):
                if message is not None:
                    yield id, b64decode(message.get("data", "")), message["seq"]

    async def _messages(self, stream: str, **settings: object) -> AsyncGenerator[Msg]:
        """Yield the messages of a stream.

        Args:
            stream: The stream.
            **settings: More settings of the consumer that reads it.
        """
        name, left = await self._api.read_all(stream, **settings)
        try:
            while left > 0:
                messages = await self._api.fetch(stream, name, _PAGE)
                if messages is None:
                    raise BrokerUnavailableError(
                        f"{self.requests.shown}: only a part of stream {stream} was read, because "
                        "the server has deleted the consumer"
                    )
                if not messages:
                    break
                left -= len(messages)
                for message in messages:
                    yield message
        finally:
            self._api.post_delete_consumer(stream, name)

    async def delete(self, revisions: Sequence[int]) -> int:
        """Delete the records that still have these revisions, and return their number."""
        return sum(await self._api.delete_all(self._layout.jobs, revisions))
