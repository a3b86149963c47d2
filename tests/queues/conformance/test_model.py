"""Random scripts of calls, compared with the memory broker's state machine after every call."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from support.brokers.kinds import KINDS, cases, elapse

from background.queues import JobState
from background.queues._states import FINAL
from background.queues.abc import Broker, Claim, Message, Settlement, StoredJob
from background.queues.memory.jobs import MemoryJobs
from background.testing import virtual_time

EXAMPLES = 15
EXHAUSTIVE_EXAMPLES = 100
LEASE = 20.0

ids = st.sampled_from("abcdef")
queues = st.sampled_from(["q", "r"])
payloads = st.sampled_from([b"1", b'"two"'])
errors = st.sampled_from([None, {"type": "ValueError", "message": "no"}])

messages = st.builds(
    Message,
    id=ids,
    handler=st.sampled_from(["h", "h", "h", None]),
    queue=queues,
    body=payloads,
    retention=st.sampled_from([5.0, 25.0, 1000.0]),
    dead_retention=st.sampled_from([45.0, 1000.0]),
    delay=st.sampled_from([0.0, 0.0, 15.0, 35.0]),
    expires=st.sampled_from([None, None, 25.0]),
    depends_on=st.lists(ids, max_size=2).map(tuple),
)


class Run:
    """A broker and its model, on which a script makes the same calls.

    Args:
        broker: The broker.
        ordered: Whether the broker claims the oldest job of a queue first.
    """

    def __init__(self, broker: Broker, *, ordered: bool) -> None:
        self.broker = broker
        self.ordered = ordered
        self.model = MemoryJobs()
        self.now = 0.0
        self.claims: list[tuple[Claim, Claim]] = []  # the broker's and the model's

    async def enqueue(self, batch: list[Message]) -> None:
        try:
            expected: list[bool] | None = self.model.enqueue(batch, self.now)
        except ValueError:
            expected = None
        try:
            assert await self.broker.enqueue(batch) == expected
        except ValueError:
            assert expected is None

    async def claim(self, queues: list[str], most: int) -> None:
        if not self.ordered:
            most = 10  # all jobs
        claims = await self.broker.claim(queues, most, lease=LEASE)
        token = f"model-{len(self.claims)}"
        expected = self.model.claim(queues, most, token, self.now, LEASE)
        if not self.ordered:
            claims.sort(key=lambda claim: claim.message.id)
            expected.sort(key=lambda claim: claim.message.id)
        assert [claim_fields(claim) for claim in claims] == [
            claim_fields(claim) for claim in expected
        ]
        self.claims += zip(claims, expected, strict=True)

    async def renew(self, index: int) -> None:
        for claim, expected in self.claim_at(index):
            statuses = await self.broker.renew([claim], lease=LEASE)
            assert statuses == self.model.renew([expected], self.now, LEASE)

    async def settle(
        self,
        index: int,
        state: JobState,
        delay: float,
        result: Any,
        error: Any,
        has_begun: bool,
    ) -> None:
        result = result if state is JobState.SUCCEEDED else None
        for claim, expected in self.claim_at(index):
            settlement, modelled = (
                Settlement(held.message.id, held.token, state, delay, result, error, has_begun)
                for held in (claim, expected)
            )
            accepted = await self.broker.settle([settlement])
            assert accepted == self.model.settle([modelled], self.now)

    async def save(self, index: int, result: bytes) -> None:
        for claim, expected in self.claim_at(index):
            id = claim.message.id
            saved = await self.broker.save(id, claim.token, result)
            assert saved == self.model.save(id, expected.token, result)

    async def cancel(self, id: str) -> None:
        assert await self.broker.cancel(id) == self.model.cancel(id, self.now)

    async def requeue(self, id: str) -> None:
        assert await self.broker.requeue(id) == self.model.requeue(id, self.now)

    async def purge(self, state: JobState | None) -> None:
        assert await self.broker.purge(state=state) == self.model.purge(state, self.now)

    async def sleep(self, seconds: float) -> None:
        await elapse(self.broker, seconds)
        self.now += seconds

    def claim_at(self, index: int) -> list[tuple[Claim, Claim]]:
        """Return one of the claims so far in a list, or an empty list if there is none."""
        return [self.claims[index % len(self.claims)]] if self.claims else []

    async def compare(self) -> None:
        """Apply changes that are due to both, and compare all jobs."""
        await self.broker.maintain()
        self.model.advance(self.now)
        stored = [job_fields(job) async for job in self.broker.scan()]
        assert stored == [job_fields(job.stored(0.0)) for job in self.model.select(None, None)]
        for id in "abcdef":
            job, expected = await self.broker.get(id), self.model.stored(id)
            assert (job and job_fields(job)) == (expected and job_fields(expected))


def claim_fields(claim: Claim) -> tuple[Any, ...]:
    """Return the fields of a claim without its token and times."""
    return (
        claim.message,
        claim.attempt,
        (claim.crashes, claim.unconfirmed),
        claim.previous,
        claim.error,
    )


def job_fields(job: StoredJob) -> tuple[Any, ...]:
    """Return the fields of a job; of its times, only whether they are set."""
    times = (job.started_at is None, job.finished_at is None)
    results = (job.result, job.previous)
    lost = [(claim.attempt, claim.confirmed) for claim in job.lost]
    return job.message, job.state, job.attempt, times, job.error, results, lost


indexes = st.integers(0, 10)
Call = Callable[[Run], Coroutine[Any, Any, None]]


def calls(method: Callable[..., Any], *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(st.just(method), *arguments)


scripts = st.lists(
    st.one_of(
        calls(Run.enqueue, st.lists(messages, min_size=1, max_size=4)),
        calls(Run.enqueue, st.lists(messages, min_size=1, max_size=4)),
        calls(Run.claim, st.permutations(["q", "r"]), st.integers(1, 3)),
        calls(Run.claim, st.permutations(["q", "r"]), st.integers(1, 3)),
        calls(Run.renew, indexes),
        calls(
            Run.settle,
            indexes,
            st.sampled_from([state for state in JobState if state is not JobState.RUNNING]),
            st.sampled_from([0.0, 15.0]),
            st.one_of(st.none(), payloads),
            errors,
            st.booleans(),
        ),
        calls(Run.save, indexes, payloads),
        calls(Run.cancel, ids),
        calls(Run.requeue, ids),
        calls(Run.purge, st.sampled_from([None, *FINAL])),
        calls(Run.sleep, st.sampled_from([10.0, 20.0, 40.0])),
    ),
    max_size=25,
)


async def run_script(kind: str, script: list[tuple[Any, ...]], folder: Path) -> None:
    broker_kind = KINDS[kind]
    async with broker_kind.opened(broker_kind.make(folder)) as broker:
        run = Run(broker, ordered="nats" not in kind)
        for method, *arguments in script:
            await method(run, *arguments)
            await run.compare()


@pytest.mark.parametrize(
    ("kind", "backend"), [case for case in cases(conformance=True) if case[1] != "virtual-trio"]
)
def test_model(kind: str, backend: str, request: pytest.FixtureRequest) -> None:
    """A broker returns and stores the same as the state machine of the memory broker."""
    number = request.config.getoption("--hypothesis-seed") or random.randrange(2**32)
    print(f"to repeat this: --hypothesis-seed={number}")
    exhaustive = request.config.getoption("--exhaustive")

    @seed(int(number))
    @settings(
        max_examples=EXHAUSTIVE_EXAMPLES if exhaustive else EXAMPLES,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(script=scripts)
    def check(script: list[tuple[Any, ...]]) -> None:
        library, options = (
            virtual_time(backend.removeprefix("virtual-"))
            if backend.startswith("virtual-")
            else ("asyncio", {"use_uvloop": backend == "uvloop"})
        )
        with tempfile.TemporaryDirectory() as folder:
            anyio.run(
                run_script, kind, script, Path(folder), backend=library, backend_options=options
            )

    check()
