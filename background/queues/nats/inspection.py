"""Reading and deleting all records, on a connection of its own.

The records may have many bytes, and take long to read. Requests of leases and settlements do not
wait for them, and continue if this connection is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from .._errors import BrokerUnavailableError
from .address import NatsAddress
from .codec import UnreadableRecordError, decode
from .jetstream import JetStream
from .job import NatsJob
from .layout import Layout
from .requests import Requests
from .streams import Streams

T = TypeVar("T")

_PAGE = 256  # the most records that are fetched at once


class Inspection:
    """The records of one prefix as a whole.

    Args:
        address: The servers.
        layout: The names of the stream and its subjects.
        report: Called for each record that this version of the library can't read.
    """

    def __init__(
        self,
        address: NatsAddress,
        layout: Layout,
        report: Callable[[UnreadableRecordError], None],
    ) -> None:
        self.requests = Requests(address)
        self._api = JetStream(self.requests, Streams(self.requests, layout))
        self._stream = layout.jobs
        self._report = report

    async def ids(self) -> list[str]:
        """Return the ids of all jobs, oldest first."""
        ages = await self.read_all(lambda job: job.age)
        return sorted(ages, key=ages.__getitem__)

    async def read_all(self, extract: Callable[[NatsJob], T]) -> dict[str, T]:
        """Read all records, and return by id what `extract` returns for each job.

        Records that this version of the library can't read are reported and left out.
        """
        name, left = await self._api.read_all(self._stream)
        found: dict[str, T] = {}
        try:
            while left > 0:
                messages = await self._api.fetch(self._stream, name, _PAGE)
                if messages is None:
                    raise BrokerUnavailableError(
                        f"{self.requests.shown}: only a part of the jobs was read, because "
                        "the server has deleted the consumer"
                    )
                if not messages:
                    break
                left -= len(messages)
                for message in messages:
                    try:
                        job = decode(message.data, message.metadata.sequence.stream)
                    except UnreadableRecordError as error:
                        self._report(error)
                    else:
                        found[job.message.id] = extract(job)
        finally:
            self._api.post_delete_consumer(self._stream, name)
        return found

    async def delete(self, revisions: Sequence[int]) -> int:
        """Delete the records that still have these revisions, and return their number."""
        return sum(await self._api.delete_all(self._stream, revisions))
