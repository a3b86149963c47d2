"""Helpers for jobs of a broker without a queue."""

from __future__ import annotations

from typing import Any

from background.queues import JobState
from background.queues.abc import Broker, Claim, Message, Settlement

LEASE = 30.0


def message(id: str = "one", **options: Any) -> Message:
    """Return the message of a job, by default in the queue `q`."""
    defaults = {"handler": "h", "queue": "q", "body": b"{}", "retention": 60, "dead_retention": 60}
    return Message(id=id, **{**defaults, **options})


async def claim_one(broker: Broker, queue: str = "q") -> Claim:
    """Claim the only job of a queue."""
    (claim,) = await broker.claim([queue], 1, lease=LEASE)
    return claim


async def claimed(broker: Broker, *queues: str, most: int = 10) -> list[str]:
    """Claim jobs and return their ids."""
    claims = await broker.claim(queues or ["q"], most, lease=LEASE)
    return [claim.message.id for claim in claims]


def settlement(claim: Claim, state: JobState, **options: Any) -> Settlement:
    """Return a settlement of a claimed job."""
    return Settlement(id=claim.message.id, token=claim.token, state=state, **options)


async def settle(broker: Broker, claim: Claim, state: JobState, **options: Any) -> bool:
    """Settle a job and return whether the settlement was accepted."""
    (accepted,) = await broker.settle([settlement(claim, state, **options)])
    return accepted


async def state_of(broker: Broker, id: str = "one") -> JobState | None:
    """Return a job's state, or `None` if it is not stored."""
    job = await broker.get(id)
    return None if job is None else job.state
