"""The streams that the NATS broker keeps jobs in: made when it is opened, and when they are gone.

A server that keeps them in memory has none after a restart, and anybody may delete one. A request
that finds no stream has done nothing, so it is sent once more when they have been made again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

from ..._support import clock
from ..._support.log import log
from .._errors import BrokerUnavailableError
from .layout import EVERY, Layout, differences
from .requests import Request, Requests

_NOT_FOUND = 404
_NO_STREAM = 10059
_EXISTS = 10058  # a stream, with other settings

#: What a server says of a request: nothing, if nobody is there who would.
Answer = dict[str, Any] | None


class Streams:
    """The streams of a server. All of it raises `BrokerUnavailableError`."""

    def __init__(self, link: Requests, layout: Layout) -> None:
        self._link = link
        self._layout = layout
        self._incomplete = False  # of jobs that are there, something else may be gone

    async def call(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        """Return what the server says of requests, in order."""
        answers = await self._send(requests)
        gone = [place for place, each in enumerate(answers) if _is_gone(each)]
        if gone or self._incomplete:
            await self._restore()
            again = await self._send([requests[place] for place in gone])
            for place, answer in zip(gone, again, strict=True):
                self._found(answer)
                answers[place] = answer
        return [each for each in answers if each is not None]

    async def ensure(self) -> list[str]:
        """Make the streams that are not there; return their names."""
        made: list[str] = []
        for name, settings in self._layout.streams.items():
            self.compare(f"stream {name}", settings, await self._ensure(name, settings, made))
        if self._incomplete:
            every = Request(self._layout.timer(1, 0), json.dumps([[0.0, EVERY]]).encode())
            (answer,) = await self._send([every])
            self._found(answer)
            self._incomplete = False
        return made

    async def _restore(self) -> None:
        for name in await self.ensure():
            log(
                logging.WARNING,
                "%s: the stream %s was gone, with all that it held; it has been made again",
                self._link.shown,
                name,
            )

    async def _ensure(self, name: str, settings: dict[str, Any], made: list[str]) -> dict[str, Any]:
        found = await self._ask(f"STREAM.INFO.{name}")
        if found.get("error", {}).get("code") != _NOT_FOUND:
            return found
        self._incomplete |= self._layout.jobs not in (name, *made)
        # No sequence means anything else than it did in the stream that is gone, which somebody
        # may still have in mind. Servers before 2.10 begin with 1.
        first = int(clock.wall() * 1_000_000)
        found = await self._ask(f"STREAM.CREATE.{name}", name=name, first_seq=first, **settings)
        if found.get("error", {}).get("err_code") == _EXISTS:  # since a moment ago
            return await self._ask(f"STREAM.INFO.{name}")
        made.append(name)
        return found

    async def _ask(self, subject: str, **body: Any) -> dict[str, Any]:
        payload = json.dumps(body).encode() if body else b""
        (answer,) = await self._send([Request(f"$JS.API.{subject}", payload)])
        if answer is None:
            raise self._refused()
        return answer

    async def _send(self, requests: Sequence[Request]) -> list[Answer]:
        answers = await self._link.call(requests)
        return [None if each is None else json.loads(each.data) for each in answers]

    def _found(self, answer: Answer) -> None:
        """Raise `BrokerUnavailableError` if there was no stream, though it has been made."""
        if answer is None:
            raise self._refused()
        if _is_gone(answer):
            self.check(answer)

    def check(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Raise `BrokerUnavailableError` for an answer that tells of an error."""
        if "error" in answer:
            raise BrokerUnavailableError(
                f"{self._link.shown}: {answer['error'].get('description')}"
            )
        return answer

    def compare(self, what: str, settings: dict[str, Any], found: dict[str, Any]) -> None:
        """Raise `BrokerUnavailableError` for what is there and has other settings."""
        if wrong := differences(settings, self.check(found)["config"]):
            raise BrokerUnavailableError(
                f"{self._link.shown}: {what} has other settings than this broker: "
                f"{', '.join(wrong)}; use another prefix, or change it"
            )

    def _refused(self) -> BrokerUnavailableError:
        return BrokerUnavailableError(
            f"{self._link.shown} has no JetStream to keep jobs in: start it with JetStream, "
            f"enabled for this account too, or wait until it has started"
        )


def _is_gone(answer: Answer) -> bool:
    return answer is None or answer.get("error", {}).get("err_code") == _NO_STREAM
