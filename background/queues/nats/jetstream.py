"""What the NATS broker asks of JetStream, by the names of its API."""

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
_WRONG_LAST = (10071, 10164)  # somebody has written meanwhile
_NO_SEQUENCE = (10043, 10037, 10057)

_HEADERS = 256  # bytes that are left to the headers of a message

_EXPECT = "Nats-Expected-Last-Subject-Sequence"


class JetStream:
    """JetStream's API, over a link. All of it raises `BrokerUnavailableError`."""

    def __init__(self, link: Requests, streams: Streams) -> None:
        self.link = link
        self._streams = streams

    async def _ask(self, subject: str, **body: Any) -> dict[str, Any]:
        payload = json.dumps(body).encode() if body else b""
        (answer,) = await self._streams.call([Request(f"$JS.API.{subject}", payload)])
        return answer

    def _check(self, answer: dict[str, Any]) -> dict[str, Any]:
        return self._streams.check(answer)

    async def ensure_consumer(self, stream: str, name: str, settings: dict[str, Any]) -> None:
        """Make a consumer unless it is there, with these settings."""
        found = await self._ask(f"CONSUMER.INFO.{stream}.{name}")
        if found.get("error", {}).get("code") == _NOT_FOUND:
            found = await self._ask(
                f"CONSUMER.DURABLE.CREATE.{stream}.{name}", stream_name=stream, config=settings
            )
        self._streams.compare(f"consumer {name} of stream {stream}", settings, found)

    async def pending(self, stream: str, name: str) -> tuple[int, int] | None:
        """Return how many messages a consumer has, and how many of these are handed out."""
        found = await self._ask(f"CONSUMER.INFO.{stream}.{name}")
        if found.get("error", {}).get("code") == _NOT_FOUND:
            return None
        self._check(found)
        return found["num_pending"], found["num_ack_pending"]

    async def fetch(
        self, stream: str, name: str, most: int, patience: float = 0.0
    ) -> list[Msg] | None:
        """Take up to so many messages that are there; `None` if there is no such consumer.

        If there are none, it waits for so many seconds.
        """
        expires = int(patience * 1e9)
        body = json.dumps({"batch": most, "no_wait": True, "expires": expires}).encode()
        request = Request(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}", body)
        return await self.link.fetch(f"{stream}.{name}", request, most)

    async def read_all(self, stream: str) -> tuple[str, int]:
        """Make a consumer of all that is in a stream, for a short time; return its size too."""
        settings = {
            "ack_policy": "none",
            "deliver_policy": "all",
            "replay_policy": "instant",
            "inactive_threshold": 30_000_000_000,
            "mem_storage": True,
            "num_replicas": 1,
        }
        answer = await self._ask(f"CONSUMER.CREATE.{stream}", stream_name=stream, config=settings)
        return self._check(answer)["name"], answer["num_pending"]

    def post_delete_consumer(self, stream: str, name: str) -> None:
        self.link.post(f"$JS.API.CONSUMER.DELETE.{stream}.{name}")

    async def subjects(self, stream: str, pattern: str) -> list[str]:
        """Return the subjects of which a stream has messages."""
        answer = self._check(await self._ask(f"STREAM.INFO.{stream}", subjects_filter=pattern))
        return list(answer["state"].get("subjects") or ())

    async def get_next(self, stream: str, subject: str, sequence: int) -> dict[str, Any] | None:
        """Return a subject's first message from a sequence on."""
        answer = await self._ask(f"STREAM.MSG.GET.{stream}", seq=sequence, next_by_subj=subject)
        return self._message(answer)

    async def get_last(self, stream: str, subjects: Sequence[str]) -> list[dict[str, Any] | None]:
        """Return the latest message of each subject."""
        answers = await self._streams.call(
            [
                Request(
                    f"$JS.API.STREAM.MSG.GET.{stream}",
                    json.dumps({"last_by_subj": subject}).encode(),
                )
                for subject in subjects
            ]
        )
        return [self._message(each) for each in answers]

    def _message(self, answer: dict[str, Any]) -> dict[str, Any] | None:
        if answer.get("error", {}).get("code") == _NOT_FOUND:
            return None
        message: dict[str, Any] = self._check(answer)["message"]
        return message

    async def publish_all(self, requests: Sequence[Request]) -> list[int]:
        """Store messages; return their sequences."""
        return [self._check(each)["seq"] for each in await self._streams.call(requests)]

    async def max_record(self) -> int:
        """Return how many bytes a record may have."""
        return await self.link.max_payload() - _HEADERS

    async def replace(self, records: Sequence[tuple[str, bytes, int]]) -> list[int | None]:
        """Store records in place of others, by subject and the sequence that is to be replaced.

        Returns the new sequences, `None` where another one is the latest.
        """
        most = await self.max_record()
        for _, record, _ in records:
            if len(record) > most:
                raise PayloadTooLargeError(
                    f"a job's record, which holds its arguments and its result, has {len(record):,}"
                    f" bytes; {self.link.shown} takes {most:,} (see max_payload in its settings)"
                )
        answers = await self._streams.call(
            [Request(subject, record, {_EXPECT: str(last)}) for subject, record, last in records]
        )
        found: list[int | None] = []
        for each in answers:
            if each.get("error", {}).get("err_code") in _WRONG_LAST:
                found.append(None)
            else:
                found.append(self._check(each)["seq"])
        return found

    async def delete_all(self, stream: str, sequences: Sequence[int]) -> list[bool]:
        """Delete messages; `False` for those that are not there."""
        answers = await self._streams.call([_deletion(stream, each) for each in sequences])
        found: list[bool] = []
        for each in answers:
            if each.get("error", {}).get("err_code") in _NO_SEQUENCE:
                found.append(False)
            else:
                found.append(bool(self._check(each)["success"]))
        return found

    def post_delete(self, stream: str, sequence: int) -> None:
        """Delete a message, soon, unless the connection is lost."""
        request = _deletion(stream, sequence)
        self.link.post(request.subject, request.payload)

    async def purge(self, stream: str, subjects: Sequence[str]) -> None:
        """Delete all messages of subjects."""
        answers = await self._streams.call(
            [
                Request(f"$JS.API.STREAM.PURGE.{stream}", json.dumps({"filter": each}).encode())
                for each in subjects
            ]
        )
        for each in answers:
            self._check(each)

    async def time(self, stream: str, subject: str) -> float:
        """Return the server's time, by storing a message."""
        (sequence,) = await self.publish_all([Request(subject)])
        answer = self._message(await self._ask(f"STREAM.MSG.GET.{stream}", seq=sequence))
        self.post_delete(stream, sequence)
        if answer is None:
            raise BrokerUnavailableError(
                f"{self.link.shown}: a message is gone that was just stored"
            )
        return _seconds(answer["time"])


def _deletion(stream: str, sequence: int) -> Request:
    body = {"seq": sequence, "no_erase": True}
    return Request(f"$JS.API.STREAM.MSG.DELETE.{stream}", json.dumps(body).encode())


def _seconds(text: str) -> float:
    """Return a time of the server's, whose fractions can be of any length."""
    whole, fraction = re.fullmatch(r"([^.Z]+)(\.\d+)?Z", text).groups()  # type: ignore[union-attr]
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(fraction or 0)
