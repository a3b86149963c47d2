"""Messages that another program stores on the broker's subjects."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.brokers.jobs import LEASE, claimed, message
from support.brokers.nats import virtual
from support.brokers.nats_servers import served_nats_broker

from background.queues import JobState
from background.queues.nats.requests import Request

GARBAGE = (b"", b"x", b"[]", b"{}", b"[1]", b"[[1]]", b"\xff\xfe", b"null", b"[" * 5000)
TIMERS = (
    *(["x", "one", 0, 2.0], [1.0, "a b", 0, 2.0], [1.0, ">", 0, 2.0], [1.0, "one", "x", 2.0]),
    *([float("nan"), "one", 0, 2.0], [1e300, "one", 0, 2.0], [1.0, 5, 0, 2.0]),
    *([1.0, "one", 0, -1], [1.0, "one", 0, 1e9], [1.0, None, None, None]),
)


@virtual
async def test_damaged_timers(caplog: pytest.LogCaptureFixture) -> None:
    """A message without timers in a slot is deleted, and other timers are due."""
    async with served_nats_broker() as broker:
        api: Any = broker._api
        await broker.enqueue([message(), message("late", delay=5)])
        bodies = [*GARBAGE, *(json.dumps([timer]).encode() for timer in TIMERS)]
        subjects = ("timers.1.5", "timers.60.5", "timers.x.y", "timers.1", "timers.0.0")
        for subject in subjects:
            await api.publish_all(
                [Request(f"{broker._layout.prefix}.{subject}", b) for b in bodies]
            )
        assert await claimed(broker) == ["one"]
        await broker.maintain()
        left = await api.subjects(broker._layout.timers, broker._layout.all_timers)
        assert not {f"{broker._layout.prefix}.timers.{slot}" for slot in ("1.5", "60.5")} & set(
            left
        )
        await broker.wait_for_work(["q"], 10)
        assert await claimed(broker) == ["late"]
    assert "it has no timers" in caplog.text


@virtual
async def test_damaged_hints(caplog: pytest.LogCaptureFixture) -> None:
    """A message without a job among the hints is deleted, and other jobs are claimed."""
    async with served_nats_broker() as broker:
        api: Any = broker._api
        prefix = broker._layout.prefix
        await broker.enqueue([message()])
        requests = [
            Request(f"{prefix}.ready.q.{band}.{token}", body, headers)
            for band in ("new", "again")
            for token in ("x", "one", "%")
            for body in GARBAGE
            for headers in (
                {},
                {"Background-Job": "one"},
                {"Background-Job": token, "Background-Revision": "x"},
                {"Background-Job": token, "Background-Revision": "1"},
                {"Background-Job": token, "Background-Revision": "1", "Background-Size": "1"},
                {"Background-Job": token, "Background-Revision": "1" * 5000},
            )
        ]
        requests.append(Request(f"{prefix}.ready.q.new.no=djob", b"", {}))  # replaces no other
        await api.publish_all(requests)
        assert await claimed(broker) == ["one"]
        await broker.enqueue([message("two")])
        assert await claimed(broker) == ["two"]
    assert "it names no job" in caplog.text


@virtual
async def test_damaged_records(caplog: pytest.LogCaptureFixture) -> None:
    """A record that can't be read is shown as dead, and stops no other job."""
    async with served_nats_broker() as broker:
        api: Any = broker._api
        fields: dict[str, Any] = {
            "v": 1,
            "id": "one",
            "handler": "h",
            "queue": "q",
            "state": "ready",
            "at": None,
            "enqueued_at": 1.0,
            "retention": 60,
            "dead_retention": 60,
            "delay": 0,
            "expires": None,
            "sizes": [0, None],
        }
        damages: list[dict[str, Any]] = [
            *(
                {name: value}
                for name in fields
                for value in ("x", [], {}, -1.5)
                if name != "handler"
            ),
            *({"attempt": "x"}, {"crashes": []}, {"token": 5}, {"lease_ends": "x"}, {"error": 5}),
            *({"unmet": [0]}, {"dependants": ["a b"]}, {"depends_on": 5}, {"lost": [[1]]}),
        ]
        records = [*GARBAGE, *(json.dumps(fields | damage).encode() for damage in damages)]
        for number, record in enumerate(records):
            await broker.enqueue([message(f"damaged-{number}"), message(f"innocent-{number}")])
            (stored,) = await broker._records.load([f"damaged-{number}"])
            await api.replace([(broker._layout.job(f"damaged-{number}"), record, stored.revision)])
            innocent = f"innocent-{number}"
            assert innocent in await claimed(broker), record
            (claim,) = [
                entry
                for entry in await broker.claim(["q"], 10, lease=LEASE)
                if entry.message.id == innocent
            ] or [None]
            job = await broker.get(f"damaged-{number}")
            assert job is not None
            await broker.count()
            await broker.cancel(f"damaged-{number}")
            assert [job.message.id async for job in broker.scan() if job.message.id == innocent]
            assert claim is None
        unreadable = await broker.get("damaged-0")
        assert unreadable is not None
        assert unreadable.state is JobState.DEAD
        assert unreadable.message.body == GARBAGE[0]


@virtual
async def test_damaged_schedules(caplog: pytest.LogCaptureFixture) -> None:
    """Schedules begin again if their ticks can't be read, and strays stop no new schedule."""
    async with served_nats_broker() as broker:
        api: Any = broker._api
        bucket = f"$KV.{broker._layout.prefix}-schedules"
        ticks = (*GARBAGE, b'["x", 1]', b"[1e300, 1e12]", b"[Infinity, 1e12]", b"[NaN, 1e12]")
        for tick in ticks:
            subject = broker._layout.schedule("damaged")
            await api.publish_all([Request(subject, tick), Request(f"{bucket}.stray", tick)])
            caplog.clear()
            assert await broker.advance_schedule("damaged", None, 5.0, retention=60) == 5.0
            assert await broker.advance_schedule("damaged", None, 6.0, retention=60) == 5.0
            name = f"new-{ticks.index(tick)}"
            assert await broker.advance_schedule(name, None, 5.0, retention=60) == 5.0
            assert [record.levelname for record in caplog.records] == ["ERROR"]


@virtual
async def test_damaged_restoration() -> None:
    """A damaged time of the latest restoration stops neither maintenance nor the next pass."""
    async with served_nats_broker() as broker:
        api: Any = broker._api
        subject = broker._layout.schedule("=restoration")
        await api.publish_all([Request(subject, b"\xff\x00garbage")])
        await broker.enqueue([message("lost")])
        await api.purge(broker._layout.ready, [broker._layout.all_ready_jobs])
        await broker.maintain()
        assert await claimed(broker) == ["lost"]
