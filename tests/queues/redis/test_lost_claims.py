"""Claims whose answers were lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import anyio
import pytest
from redis import Redis
from support.brokers.jobs import claim_one, claimed, message, settle, state_of
from support.brokers.kinds import elapse
from support.brokers.redis import Relay, messages, open_broker, until
from support.brokers.redis_servers import Server
from support.time import SOON

from background.queues import BrokerUnavailableError, JobState
from background.queues.redis import RedisBroker, lost_claims

LONG = 1000.0


@pytest.fixture
async def relay(server: Server, anyio_backend: object) -> AsyncIterator[Relay]:
    async with Relay(server.port) as relay:
        yield relay


@pytest.fixture
async def remote(broker: RedisBroker, relay: Relay) -> AsyncIterator[RedisBroker]:
    """Open a broker with the same jobs, behind the relay."""
    async with open_broker(relay.url, prefix=broker.prefix) as remote:
        yield remote


async def lose_claim(remote: RedisBroker, relay: Relay, most: int = 10, **options: Any) -> None:
    """Make a claim that is executed, and whose answer is lost."""
    relay.cuts = "answers"
    with pytest.raises(BrokerUnavailableError):
        await remote.claim(["q"], most, **{"lease": LONG, **options})
    relay.cuts = ""


async def test_release(broker: RedisBroker, remote: RedisBroker, relay: Relay) -> None:
    """What a lost claim took is ready again with the next call that gets through, uncounted."""
    await broker.enqueue([message("one"), message("two"), message("three"), message("four")])
    first = (await broker.claim(["q"], 1, lease=LONG))[0]
    await settle(broker, first, JobState.SCHEDULED)
    await broker.claim(["q"], 1, lease=LONG)
    await lose_claim(remote, relay)
    assert await claimed(broker) == []
    assert await state_of(remote, "two") is JobState.READY
    claims = await broker.claim(["q"], 10, lease=LONG)
    found = [(claim.message.id, claim.attempt) for claim in claims]
    assert found == [("two", 1), ("three", 1), ("four", 1)]
    assert {(claim.crashes, claim.unconfirmed) for claim in claims} == {(0, 0)}
    assert await state_of(broker) is JobState.RUNNING


async def test_release_before_claim(broker: RedisBroker, remote: RedisBroker, relay: Relay) -> None:
    """The next claim gets the jobs of several lost ones, and a call releases them only once."""
    await broker.enqueue(messages(30))
    for number in range(3):
        await lose_claim(remote, relay, 5, lease=LONG + number)
    assert len(await claimed(remote, most=30)) == 30
    assert await claimed(remote, most=30) == []


async def test_no_release_after_lease(
    broker: RedisBroker, remote: RedisBroker, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost claim whose lease has ended is forgotten."""
    await broker.enqueue([message()])
    await lose_claim(remote, relay)
    monkeypatch.setattr(lost_claims, "monotonic", lambda: monotonic() + LONG)
    assert await state_of(remote) is JobState.RUNNING
    assert remote._lost_claims == []


async def test_release_in_outage(broker: RedisBroker, remote: RedisBroker, relay: Relay) -> None:
    """A release that does not get through is repeated."""
    await broker.enqueue([message()])
    await lose_claim(remote, relay)
    for _ in range(2):
        relay.cuts = "requests"
        with pytest.raises(BrokerUnavailableError):
            await remote.get("one")
        relay.cuts = ""
    await remote.get("one")
    assert (await claim_one(broker)).attempt == 1


async def test_release_wakes_waiters(
    broker: RedisBroker, remote: RedisBroker, relay: Relay
) -> None:
    """A worker that waits for work is notified of the released jobs."""
    await broker.enqueue([message()])
    await lose_claim(remote, relay)
    with anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            group.start_soon(broker.wait_for_work, ["q"], LONG)
            await remote.get("one")
    assert (await claim_one(broker)).attempt == 1


async def test_release_cancelled_job(
    broker: RedisBroker, remote: RedisBroker, relay: Relay
) -> None:
    """A job that was cancelled meanwhile is cancelled, not ready."""
    await broker.enqueue([message()])
    await lose_claim(remote, relay)
    await broker.cancel("one")
    assert await state_of(remote) is JobState.CANCELLED


async def test_release_after_cancellation(broker: RedisBroker, server: Server) -> None:
    """A claim whose caller was cancelled is released by the next call."""
    connection: Any = broker._session.connection
    scope = anyio.CancelScope()
    assert await claimed(broker) == []  # the server then has the script
    await broker.enqueue([message()])

    async def claim() -> None:
        with scope:
            await broker.claim(["q"], 1, lease=LONG)

    with Redis.from_url(server.url) as client:
        async with anyio.create_task_group() as group:
            client.client_pause(10_000, all=False)
            group.start_soon(claim)
            await until(lambda: len(connection._sent) == 1)
            scope.cancel()
            client.client_unpause()
    assert scope.cancelled_caught
    assert (await claim_one(broker)).attempt == 1


async def test_lease_of_lost_claim_expired(
    broker: RedisBroker, remote: RedisBroker, relay: Relay
) -> None:
    """A lost claim whose lease has expired is not released; the job may be claimed again."""
    await broker.enqueue([message()])
    await lose_claim(remote, relay, lease=0.1)
    await elapse(broker, 1)
    (claim,) = await broker.claim(["q"], 1, lease=LONG)
    assert (claim.attempt, claim.crashes, claim.unconfirmed) == (2, 0, 1)
    calls = len(remote._lost_claims)
    await remote.get("one")
    assert (calls, len(remote._lost_claims)) == (1, 0)
    assert await settle(broker, claim, JobState.SUCCEEDED)


async def test_release_of_damaged_key(
    broker: RedisBroker, remote: RedisBroker, relay: Relay, server: Server
) -> None:
    """A release that the server refuses does not stop other calls."""
    await broker.enqueue([message()])
    await lose_claim(remote, relay)
    key = f"{{{broker.prefix}}}:changing"
    with Redis.from_url(server.url) as client:
        client.set(key, "other")
        assert await remote.get("one") is not None
        client.delete(key)
    assert not remote._lost_claims
