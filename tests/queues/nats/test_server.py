"""NATS servers: versions, permissions, limits and rare answers."""

from __future__ import annotations

import asyncio
import functools
from secrets import token_hex
from typing import Any

import pytest
from support.brokers.nats import (
    Crash,
    finish,
    in_real_time,
    message,
    messages,
    opened,
    returned,
    state_of,
    virtual,
)
from support.brokers.nats_servers import (
    nats_server,
    remove_streams,
    served_nats_broker,
    shared_server,
    with_real_time,
)

from background.queues._errors import BrokerUnavailableError, PayloadTooLargeError
from background.queues._states import JobState
from background.queues.abc import LeaseStatus, MaintenanceStats
from background.queues.nats import NatsBroker
from background.queues.nats.requests import Answers, Request

# The server


@in_real_time
async def test_no_server() -> None:
    """Opening fails without a server, with an error that contains no password."""
    broker = NatsBroker("nats://me:secret@127.0.0.1:1,127.0.0.1:2")
    with pytest.raises(BrokerUnavailableError, match=r"nats://127\.0\.0\.1:1,.*onnect") as caught:
        await broker.open()
    assert "secret" not in str(caught.value)
    with pytest.raises(BrokerUnavailableError, match="is not open"):
        await broker.get("one")
    await broker.close()


@in_real_time
async def test_no_jetstream() -> None:
    """A server without JetStream is rejected."""
    with nats_server(jetstream=False) as server:
        broker = NatsBroker(server.url)
        with pytest.raises(BrokerUnavailableError, match="JetStream is not available"):
            await broker.open()


@pytest.mark.parametrize("version", ["2.8.4", "1.4", "", "0.0.1", "strange"])
@virtual
async def test_old_server(version: str) -> None:
    """A server older than 2.9, or with an unknown version, is rejected."""
    async with served_nats_broker() as broker:
        requests: Any = broker._requests
        await with_real_time(requests.connection.close())
        requests.version = functools.partial(returned, version)
        with pytest.raises(BrokerUnavailableError, match=r"2\.9 or later is needed"):
            await with_real_time(broker.open())
        for newer in ("2.9.0", "v2.12.0-RC.1", "3.0.0-dev"):
            requests.version = functools.partial(returned, newer)
            await with_real_time(broker.open())
            await with_real_time(requests.connection.close())
        await with_real_time(broker.open())


@in_real_time
async def test_stream_settings() -> None:
    """A stream that exists with different settings is rejected."""
    server = shared_server()
    async with opened(server, storage="memory") as broker:
        prefix = broker._layout.prefix
        second = NatsBroker(server.url, prefix=prefix)
        expected = f"stream KV_{prefix}-jobs has other settings .*: storage is 'memory' instead of"
        with pytest.raises(BrokerUnavailableError, match=expected):
            await second.open()
        await remove_streams(broker)


@in_real_time
async def test_concurrent_open() -> None:
    """Several brokers can create the same streams and consumers at the same time."""
    server = shared_server()
    prefix = f"test-{token_hex(8)}"
    brokers: list[Any] = [NatsBroker(server.url, prefix=prefix) for _ in range(8)]
    await asyncio.gather(*(broker.open() for broker in brokers), brokers[0].open())
    await asyncio.gather(*(broker.claim(["q"], 1, lease=30) for broker in brokers))
    assert await brokers[0].enqueue([message()]) == [True]
    claims = await asyncio.gather(*(broker.claim(["q"], 1, lease=30) for broker in brokers))
    assert sorted(map(len, claims)) == [0] * 7 + [1]
    await remove_streams(brokers[0])
    await asyncio.gather(*(broker.close() for broker in brokers))


# Sizes


@virtual
async def test_job_too_large() -> None:
    """Messages and intermediate results that are too large are rejected.

    A final result that is too large makes the job dead.
    """
    async with served_nats_broker() as broker:
        most = await broker._api.max_record()
        with pytest.raises(PayloadTooLargeError, match="max_payload"):
            await broker.enqueue([message(), message("two", body=b"x" * most)])
        assert await broker.count() == 0
        half = b"x" * (most // 2)
        sent = [message(body=half), message("two"), message("both", depends_on=("one", "two"))]
        await broker.enqueue(sent)
        one, two = await broker.claim(["q"], 2, lease=30)
        with pytest.raises(PayloadTooLargeError):
            await broker.save("one", one.token, half)
        assert await finish(broker, [one], result=half) == [True]
        job = await broker.get("one")
        assert job is not None
        assert (job.state, job.result) == (JobState.DEAD, None)
        assert job.error is not None
        assert job.error["type"] == "background.queues.PayloadTooLargeError"
        assert await state_of(broker, "both") is JobState.DEAD
        await finish(broker, [two])


@virtual
async def test_largest_job() -> None:
    """A record of the largest size can be claimed, renewed, cancelled and settled."""
    async with served_nats_broker() as broker:
        size = await broker._api.max_record()
        while True:
            try:
                await broker.enqueue([message(body=b"x" * size)])
            except PayloadTooLargeError:
                size -= 1
            else:
                break
        claims = await broker.claim(["q"], 1, lease=30)
        assert await broker.renew(claims, lease=30) == [LeaseStatus.HELD]
        assert await broker.cancel("one") is JobState.RUNNING
        assert await finish(broker, claims, error={"type": "E", "message": "no"}) == [True]


@virtual
async def test_dependency_results_too_large() -> None:
    """A job is dead if the results of its dependencies are too large together."""
    async with served_nats_broker() as broker:
        half = b"x" * ((await broker._api.max_record()) // 2)
        await broker.enqueue([message("a"), message("b"), message("all", depends_on=("a", "b"))])
        assert await finish(broker, await broker.claim(["q"], 2, lease=30), result=half)
        job = await broker.get("all")
        assert job is not None
        assert job.state is JobState.DEAD
        assert job.error is not None
        assert "jobs that it depends on are too large" in job.error["message"]


@virtual
async def test_large_records() -> None:
    """Records that are too large for a hint are read by the claim."""
    async with served_nats_broker() as broker:
        sent = [message("a", body=b"x" * 100_000), message("b"), message("c", body=b"y" * 50_000)]
        await broker.enqueue(sent)
        claims = await broker.claim(["q"], 5, lease=30)
        assert [claim.message for claim in claims] == sent


# Rare answers


@virtual
async def test_answer_before_connection_loss() -> None:
    """The loss of the connection fails only requests without an answer."""
    answered, pending = Answers(Request("a"), 1), Answers(Request("b"), 1)
    answered.end()
    for answers in (answered, pending):
        answers.lose()
        assert answers.done.done()
    assert (answered.lost, pending.lost) == (False, True)


@virtual
async def test_concurrent_stream_creation() -> None:
    """The settings of a stream that another process has just created are checked."""
    async with served_nats_broker() as broker:
        streams: Any = broker._streams
        asked: list[str] = []
        ask = streams._ask

        async def ask_too_early(subject: str, **body: Any) -> Any:
            asked.append(subject)
            if len(asked) == 1:
                return {"error": {"code": 404}}
            return await ask(subject, **body)

        streams._ask = ask_too_early
        name = broker._layout.jobs
        broker._layout.streams[name]["max_msgs_per_subject"] = 2
        with pytest.raises(BrokerUnavailableError, match="max_msgs_per_subject is 1 instead of 2"):
            await streams.ensure()
        assert asked == [f"STREAM.INFO.{name}", f"STREAM.CREATE.{name}", f"STREAM.INFO.{name}"]


@virtual
async def test_unreadable_clock() -> None:
    """Reading the server's clock fails if its message was deleted."""
    async with served_nats_broker() as broker:
        api: Any = broker._api
        publish = api.publish_all

        async def publish_and_lose(requests: Any) -> Any:
            sequences = await publish(requests)
            await api.delete_all(broker._layout.timers, sequences)
            return sequences

        api.publish_all = publish_and_lose
        with pytest.raises(BrokerUnavailableError, match="the server's time can't be read"):
            await broker._clock.read()


@virtual
async def test_partial_claim() -> None:
    """Jobs that were claimed before an error are returned, and the next call raises it."""
    async with served_nats_broker() as broker:
        await broker.enqueue([message(), message("two", queue="r")])
        ready: Any = broker._ready
        take = ready.take

        async def take_or_fail(queue: str, most: int) -> Any:
            if queue == "r":
                raise BrokerUnavailableError("lost")
            return await take(queue, most)

        ready.take = take_or_fail
        claims = await broker.claim(["q", "r"], 5, lease=30)
        assert [claim.message.id for claim in claims] == ["one"]
        with pytest.raises(BrokerUnavailableError, match="lost"):
            await broker.claim(["r"], 5, lease=30)


@virtual
async def test_timer_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timers are stored and processed in chunks."""
    monkeypatch.setattr("background.queues.nats.timer_wheel._CHUNK", 3)
    async with served_nats_broker() as broker:
        for number in range(10):
            await broker.enqueue([message(str(number), delay=10)])
        await broker.enqueue(messages(10, delay=10))
        await asyncio.sleep(11)
        assert await broker.maintain() == MaintenanceStats(due=20)


@virtual
async def test_cost_of_cancel_many() -> None:
    """A job of which many cancelled jobs are dependencies is read once, not for each of them."""
    async with served_nats_broker() as broker:
        members = messages(300)
        ids = [member.id for member in members]
        await broker.enqueue([*members, message("all", depends_on=tuple(ids), handler=None)])
        requests = Crash(broker)
        states = await broker.cancel_many(["all", *ids])
        assert states == [JobState.SCHEDULED, *[JobState.READY] * 300]
        assert requests.sent < 3 * len(ids) + 20  # a read, a write, and the deletion of the hint
