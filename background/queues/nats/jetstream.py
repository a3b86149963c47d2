"""JetStream's API, as far as the NATS broker uses it.

Subjects, JSON fields and status codes are those of
https://docs.nats.io/reference/reference-protocols/nats_api_reference; error codes are those of
`server/errors.json` in the server's repository.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from nats.aio.msg import Msg

from .._errors import BrokerUnavailableError, PayloadTooLargeError
from .requests import Request, Requests
from .streams import Streams

_NOT_FOUND = 404
_WRONG_LAST = (10071, 10164)  # the latest message is not the expected one
_NO_SEQUENCE = (10043, 10037, 10057)  # there is no message of this sequence

_SUBJECTS = 16_384  # the most bytes of a message's subject and reply subject
_HEADERS = 256  # bytes of a message that are reserved for its headers
_GROWTH = 1024  # bytes of a record that are reserved for claims, timers and dependent jobs

_FETCHED_BYTES = 4 * 1024 * 1024  # of the messages of one fetch, if none of them is larger
_EXPECT = "Nats-Expected-Last-Subject-Sequence"


class JetStream:
    """Requests to JetStream; methods named `post…` do not wait for an answer.

    The other methods raise `BrokerUnavailableError` if there is no answer, or an unexpected error.

    Args:
        requests: Sends the requests to the server.
        streams: Repeats requests whose stream had to be created.
    """

    def __init__(self, requests: Requests, streams: Streams) -> None:
        self.requests = requests
        self._streams = streams

    async def _ask(self, subject: str, **body: Any) -> dict[str, Any]:
        payload = json.dumps(body).encode() if body else b""
        (answer,) = await self._streams.call([Request(f"$JS.API.{subject}", payload)])
        return answer

    def _check(self, answer: dict[str, Any]) -> dict[str, Any]:
        return self._streams.check(answer)

    async def ensure_consumer(self, stream: str, name: str, settings: dict[str, Any]) -> None:
        """Create a durable consumer, unless there is one with these settings."""
        found = await self._ask(f"CONSUMER.INFO.{stream}.{name}")
        if found.get("error", {}).get("code") == _NOT_FOUND:
            found = await self._ask(
                f"CONSUMER.DURABLE.CREATE.{stream}.{name}", stream_name=stream, config=settings
            )
        self._streams.compare(f"consumer {name} of stream {stream}", settings, found)

    async def pending(self, stream: str, name: str) -> tuple[int, int] | None:
        """Return the numbers of a consumer's undelivered and of its unacknowledged messages.

        Returns:
            Both numbers, or `None` if there is no such consumer.
        """
        found = await self._ask(f"CONSUMER.INFO.{stream}.{name}")
        if found.get("error", {}).get("code") == _NOT_FOUND:
            return None
        self._check(found)
        return found["num_pending"], found["num_ack_pending"]

    async def fetch(
        self, stream: str, name: str, most: int, patience: float = 0.0
    ) -> list[Msg] | None:
        """Fetch messages from a pull consumer, which are at most a few megabytes in total.

        Args:
            stream: The consumer's stream.
            name: The consumer.
            most: The most messages to fetch.
            patience: Seconds to wait for a message if there is none.

        Returns:
            The messages, or `None` if there is no such consumer.
        """
        expires = int(patience * 1e9)
        # Subjects are counted, too, and the server delivers nothing if one message has more bytes.
        most_bytes = max(_FETCHED_BYTES, await self.requests.max_payload() + _SUBJECTS)
        settings = {"batch": most, "no_wait": True, "expires": expires, "max_bytes": most_bytes}
        body = json.dumps(settings).encode()
        request = Request(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}", body)
        return await self.requests.fetch(f"{stream}.{name}", request, most)

    async def read_all(self, stream: str, **more: object) -> tuple[str, int]:
        """Create a temporary consumer of all messages of a stream.

        Args:
            stream: The stream.
            **more: More settings of the consumer.

        Returns:
            The consumer's name, and the number of its messages.
        """
        settings = {
            "ack_policy": "none",
            "deliver_policy": "all",
            "replay_policy": "instant",
            "inactive_threshold": 30_000_000_000,
            "mem_storage": True,
            "num_replicas": 1,
            **more,
        }
        answer = await self._ask(f"CONSUMER.CREATE.{stream}", stream_name=stream, config=settings)
        return self._check(answer)["name"], answer["num_pending"]

    def post_delete_consumer(self, stream: str, name: str) -> None:
        """Delete a consumer, unless the connection is lost."""
        self.requests.post(f"$JS.API.CONSUMER.DELETE.{stream}.{name}")

    async def subjects(self, stream: str, pattern: str) -> list[str]:
        """Return the subjects that have messages in a stream and match a pattern."""
        subjects: set[str] = set()
        offset, total = 0, 1
        while offset < total:  # one answer has up to 100,000 of them
            request = {"subjects_filter": pattern, "offset": offset}
            answer = self._check(await self._ask(f"STREAM.INFO.{stream}", **request))
            page = answer["state"].get("subjects") or ()
            subjects.update(page)
            offset += len(page)
            total = answer.get("total", 0) if page else 0
        return list(subjects)

    async def get_next(self, stream: str, subject: str, sequence: int) -> dict[str, Any] | None:
        """Return the first message of a subject that has this sequence or a later one."""
        answer = await self._ask(f"STREAM.MSG.GET.{stream}", seq=sequence, next_by_subj=subject)
        return self._message(answer)

    async def get_last(
        self, stream: str, subjects: Sequence[str], largest: int | None = None
    ) -> list[dict[str, Any] | None]:
        """Return the latest message of each subject.

        Args:
            stream: The stream.
            subjects: The subjects.
            largest: The most bytes of a message, by default the server's `max_payload`.
        """
        if largest is None:
            largest = await self.requests.max_payload()
        answers = await self._streams.call(
            [
                Request(
                    f"$JS.API.STREAM.MSG.GET.{stream}",
                    json.dumps({"last_by_subj": subject}).encode(),
                )
                for subject in subjects
            ],
            largest_answer=largest * 4 // 3 + _SUBJECTS,  # in base64
        )
        return [self._message(answer) for answer in answers]

    def _message(self, answer: dict[str, Any]) -> dict[str, Any] | None:
        if answer.get("error", {}).get("code") == _NOT_FOUND:
            return None
        message: dict[str, Any] = self._check(answer)["message"]
        return message

    async def publish_all(self, requests: Sequence[Request]) -> list[int]:
        """Store messages, and return their sequences."""
        return [self._check(answer)["seq"] for answer in await self._streams.call(requests)]

    async def max_record(self) -> int:
        """Return the most bytes that a record can have when a job or a result is stored in it."""
        return await self.requests.max_payload() - _HEADERS - _GROWTH

    def check_size(self, record: bytes, most: int) -> None:
        """Refuse a record that is larger than `most` bytes.

        Raises:
            PayloadTooLargeError: It is larger.
        """
        if len(record) > most:
            raise PayloadTooLargeError(
                f"a job's record, which holds its arguments and its result, has {len(record):,} "
                f"bytes; {self.requests.shown} accepts at most {most:,} (its setting max_payload)"
            )

    async def replace(self, records: Sequence[tuple[str, bytes, int]]) -> list[int | None]:
        """Store records by compare-and-set.

        Args:
            records: Subjects, records, and the sequence that the latest message of the subject must
                have; 0 if the subject must have none.

        Returns:
            For each record its sequence, or `None` if the subject had another latest message.

        Raises:
            PayloadTooLargeError: A record exceeds the server's limit; none was stored.
        """
        most = await self.max_record()
        for _, record, last in records:
            self.check_size(record, most + _GROWTH if last else most)
        answers = await self._streams.call(
            [Request(subject, record, {_EXPECT: str(last)}) for subject, record, last in records]
        )
        sequences: list[int | None] = []
        for answer in answers:
            if answer.get("error", {}).get("err_code") in _WRONG_LAST:
                sequences.append(None)
            else:
                sequences.append(self._check(answer)["seq"])
        return sequences

    async def delete_all(self, stream: str, sequences: Sequence[int]) -> list[bool]:
        """Delete messages, and return for each whether it was there."""
        answers = await self._streams.call([_deletion(stream, sequence) for sequence in sequences])
        deleted: list[bool] = []
        for answer in answers:
            if answer.get("error", {}).get("err_code") in _NO_SEQUENCE:
                deleted.append(False)
            else:
                deleted.append(bool(self._check(answer)["success"]))
        return deleted

    def post_delete(self, stream: str, sequence: int) -> None:
        """Delete a message, unless the connection is lost."""
        request = _deletion(stream, sequence)
        self.requests.post(request.subject, request.payload)

    async def purge(self, stream: str, subjects: Sequence[str]) -> None:
        """Delete all messages of subjects or patterns."""
        answers = await self._streams.call(
            [
                Request(f"$JS.API.STREAM.PURGE.{stream}", json.dumps({"filter": subject}).encode())
                for subject in subjects
            ]
        )
        for answer in answers:
            self._check(answer)

    async def time(self, stream: str, subject: str) -> float:
        """Return the server's time in seconds since the epoch: the timestamp of a new message."""
        (sequence,) = await self.publish_all([Request(subject)])
        answer = self._message(await self._ask(f"STREAM.MSG.GET.{stream}", seq=sequence))
        self.post_delete(stream, sequence)
        if answer is None:
            raise BrokerUnavailableError(
                f"{self.requests.shown}: the server's time can't be read, because the message "
                "that was stored for it has been deleted"
            )
        return _seconds(answer["time"])


def _deletion(stream: str, sequence: int) -> Request:
    body = {"seq": sequence, "no_erase": True}
    return Request(f"$JS.API.STREAM.MSG.DELETE.{stream}", json.dumps(body).encode())


def _seconds(text: str) -> float:
    """Return a timestamp of the server in seconds; its fraction may have any number of digits."""
    whole, fraction = re.fullmatch(r"([^.Z]+)(\.\d+)?Z", text).groups()  # type: ignore[union-attr]
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(fraction or 0)
