"""The streams of the NATS broker: created when it is opened, and again when they are missing.

A server that stores streams in memory loses them when it restarts, and an administrator can delete
a stream. A request to a missing stream changes nothing. It is sent again once the stream has been
created.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any

from ..._support import clock
from ..._support.log import log
from .._errors import BrokerRefusedError, BrokerUnavailableError
from .layout import ALL_JOBS, Layout, differences
from .requests import Request, Requests

# Codes of `server/errors.json` in the server's repository.
_NOT_FOUND = 404
_NO_STREAM = 10059
_EXISTS = 10058  # the stream exists, with other settings

#: Seconds within which a stream must have a leader; within which a stream that has one answers; and
#: between two requests. A stream of a cluster has no leader at first, and after the leader's death.
_PATIENCE, _ANSWER, _PAUSE = 10.0, 1.0, 0.1

#: The answer to a request: `None` if the server reports that there is no responder.
Answer = dict[str, Any] | None


class Streams:
    """The streams of one prefix; all methods raise `BrokerUnavailableError`.

    Args:
        requests: Sends the requests to the server.
        layout: The names and settings of the streams.
    """

    def __init__(self, requests: Requests, layout: Layout) -> None:
        self._requests = requests
        self._layout = layout
        self._incomplete = False  # hints or timers of jobs that are stored may be missing

    async def call(
        self, requests: Sequence[Request], largest_answer: int = 0
    ) -> list[dict[str, Any]]:
        """Return the answers to requests, in order; create streams that are missing."""
        answers = await self._send(requests, largest_answer)
        missing = [index for index, answer in enumerate(answers) if _has_no_stream(answer)]
        if missing or self._incomplete:
            await self._restore()
            deadline = asyncio.get_running_loop().time() + _PATIENCE
            while missing:
                repeated = [requests[index] for index in missing]
                again = await self._send(repeated, largest_answer)
                for index, answer in zip(missing, again, strict=True):
                    answers[index] = answer
                missing = [index for index in missing if _has_no_stream(answers[index])]
                if missing:
                    if asyncio.get_running_loop().time() >= deadline:
                        self._require_stream(answers[missing[0]])
                    await asyncio.sleep(_PAUSE)  # not all servers know its leader yet
        return [answer for answer in answers if answer is not None]

    async def ensure(self) -> list[str]:
        """Create the streams that are missing, and return their names.

        If hints or timers were lost but records were not, a timer is set that makes a process check
        all jobs. That restores their hints and timers.
        """
        created: list[str] = []
        for name, settings in self._layout.streams.items():
            self.compare(f"stream {name}", settings, await self._ensure(name, settings, created))
        if self._incomplete:
            payload = json.dumps([[0.0, ALL_JOBS]]).encode()
            (answer,) = await self._send([Request(self._layout.timer(1, 0), payload)])
            self._require_stream(answer)
            self._incomplete = False
        return created

    async def _restore(self) -> None:
        for name in await self.ensure():
            log(
                logging.WARNING,
                "%s: stream %s was missing, and has been created again without its contents",
                self._requests.shown,
                name,
            )

    async def _ensure(
        self, name: str, settings: dict[str, Any], created: list[str]
    ) -> dict[str, Any]:
        """Return a stream, which is created if it is missing, as soon as it has a leader."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PATIENCE
        while not _has_leader(found := await self._find_or_create(name, settings, created)):
            if loop.time() >= deadline:
                raise self._no_leader(f"stream {name}")
            await asyncio.sleep(_PAUSE)
        return found

    async def _find_or_create(
        self, name: str, settings: dict[str, Any], created: list[str]
    ) -> dict[str, Any]:
        found = await self._find(name)
        if found.get("error", {}).get("code") != _NOT_FOUND:
            return found
        if name != self._layout.schedules:
            self._incomplete |= self._layout.jobs not in (name, *created)
        # Sequences of the missing stream must not be used again, because other processes may still
        # remember them as revisions. Servers before 2.10 ignore `first_seq` and begin with 1.
        first = int(clock.wall() * 1_000_000)
        found = await self._ask(f"STREAM.CREATE.{name}", name=name, first_seq=first, **settings)
        if found.get("error", {}).get("err_code") == _EXISTS:  # another process has just created it
            return await self._find(name)
        created.append(name)
        return found

    async def _find(self, name: str) -> dict[str, Any]:
        """Return a stream, the server's error, or nothing if it has no leader that answers."""
        try:
            async with asyncio.timeout(_ANSWER):
                return await self._ask(f"STREAM.INFO.{name}")
        except TimeoutError:
            return {}

    async def _ask(self, subject: str, **body: Any) -> dict[str, Any]:
        payload = json.dumps(body).encode() if body else b""
        (answer,) = await self._send([Request(f"$JS.API.{subject}", payload)])
        if answer is None:
            raise self._no_jetstream()
        return answer

    async def _send(self, requests: Sequence[Request], largest_answer: int = 0) -> list[Answer]:
        answers = await self._requests.call(requests, largest_answer)
        return [None if answer is None else json.loads(answer.data) for answer in answers]

    def _require_stream(self, answer: Answer) -> None:
        """Raise `BrokerUnavailableError` if a stream is missing although it was just created."""
        if answer is None:
            raise self._no_leader("a stream")
        if _has_no_stream(answer):
            self.check(answer)

    def check(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return an answer, or raise `BrokerUnavailableError` if it is an error."""
        if "error" in answer:
            raise BrokerUnavailableError(
                f"{self._requests.shown}: {answer['error'].get('description')}"
            )
        return answer

    def compare(self, what: str, settings: dict[str, Any], found: dict[str, Any]) -> None:
        """Raise `BrokerRefusedError` if a stream or consumer has other settings."""
        if wrong := differences(settings, self.check(found)["config"]):
            raise BrokerRefusedError(
                f"{self._requests.shown}: {what} has other settings than this broker needs: "
                f"{', '.join(wrong)}; use another prefix, or change these settings"
            )

    def _no_jetstream(self) -> BrokerUnavailableError:
        return BrokerUnavailableError(
            f"{self._requests.shown}: JetStream is not available; enable it on the server and for "
            "this account, or wait until it has started"
        )

    def _no_leader(self, what: str) -> BrokerUnavailableError:
        return BrokerUnavailableError(
            f"{self._requests.shown}: {what} has no leader that answers; most of the servers that "
            f"store it must be running and connected{self._requests.because()}"
        )


def _has_leader(found: dict[str, Any]) -> bool:
    if "error" in found:
        return bool(found["error"].get("code") != _NOT_FOUND)  # another process is creating it
    return bool(found) and ("cluster" not in found or bool(found["cluster"].get("leader")))


def _has_no_stream(answer: Answer) -> bool:
    return answer is None or answer.get("error", {}).get("err_code") == _NO_STREAM
