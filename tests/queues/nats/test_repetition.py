"""Requests that are sent again because nothing is answered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from nats.aio.msg import Msg
from support.brokers.nats import finish, in_real_time, message, opened, state_of, virtual
from support.brokers.nats_servers import remove_streams, shared_server

from background.queues._states import JobState
from background.queues.abc import LeaseStatus
from background.queues.nats.requests import Answers, Repetition, Request


def lose_first_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lose the first answer to each request, but no message that was fetched."""
    add, lost = Answers.add, set[int]()
    kept: list[Answers] = []  # so that no two of them have the same identity

    def lose(answers: Answers, received: Any) -> None:
        kept.append(answers)
        if id(answers) in lost or "MSG.NEXT" in answers.request.subject:
            add(answers, received)
        lost.add(id(answers))

    monkeypatch.setattr(Answers, "add", lose)


def lose_first_requests(broker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lose each request when it is sent for the first time."""
    client = broker._requests.connection.current
    publish, sent = client.publish, set[str]()

    async def lose(subject: str, payload: bytes, reply: str = "", headers: Any = None) -> None:
        if not reply or reply in sent:
            await publish(subject, payload, reply, headers)
        sent.add(reply)

    monkeypatch.setattr(client, "publish", lose)


@pytest.mark.parametrize("lost", ["requests", "answers"])
@in_real_time
async def test_lost_requests_and_answers(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls return what they did, whether a request or its answer was lost with a leader."""
    async with opened(shared_server()) as broker:
        monkeypatch.setattr("background.queues.nats.requests._REPEAT", 0.02)
        if lost == "requests":
            lose_first_requests(broker, monkeypatch)
        else:
            lose_first_answers(monkeypatch)
        assert await broker.enqueue([message(), message("then", depends_on=("one",))]) == [True] * 2
        assert await broker.enqueue([message()]) == [False]
        claims = await broker.claim(["q"], 1, lease=30)
        assert [claim.message.id for claim in claims] == ["one"]
        assert await broker.renew(claims, lease=60) == [LeaseStatus.HELD]
        assert await broker.save("one", claims[0].token, b"half")
        assert await finish(broker, claims) == [True]
        assert await broker.cancel("then") is JobState.READY
        assert await broker.requeue("then")
        (claim,) = await broker.claim(["q"], 1, lease=30)
        assert await finish(broker, [claim]) == [True]
        assert await broker.advance_schedule("s", None, 5.0, retention=60) == 5.0
        assert await broker.advance_schedule("s", 5.0, 6.0, retention=60) == 6.0
        await broker.maintain()
        monkeypatch.undo()
        assert await state_of(broker, "then") is JobState.SUCCEEDED
        assert await broker.purge() == 2
        await remove_streams(broker)


@virtual
async def test_no_repetition_during_answers() -> None:
    """Requests are not sent again while others are answered, as by a server that is slow."""
    waiting = {token: Answers(Request(token), 1) for token in ("a", "b", "c")}
    sent: list[str] = []
    repetition = Repetition(sent.append, waiting)
    for token in ("a", "b"):
        await asyncio.sleep(0.9)
        waiting[token].add(Msg(_client=None, data=b"x"))  # type: ignore[arg-type]
        assert sent == []
    await asyncio.sleep(1.5)  # nothing is answered from 2 to 3 seconds after the start
    assert sent == ["c"]
    await asyncio.sleep(1.0)
    assert sent == ["c", "c"]
    repetition.stop()
    await asyncio.sleep(5.0)
    assert sent == ["c", "c"]
