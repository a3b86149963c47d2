"""SQLite files that are locked, full, damaged or replaced."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from support.brokers.sqlite import Gate, finish, message, messages, other_connection, thread_of

from background.queues._errors import BrokerUnavailableError
from background.queues._states import JobState
from background.queues.abc import Settlement
from background.queues.sqlite import SQLiteBroker, schema
from background.queues.sqlite.thread import _data_version


async def test_locked_for_too_long(
    path: Path, monkeypatch: pytest.MonkeyPatch, anyio_backend: object
) -> None:
    monkeypatch.setattr("background.queues.sqlite.schema.BUSY_TIMEOUT", 0.02)
    broker = SQLiteBroker(path)
    await broker.open()
    with other_connection(path) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(BrokerUnavailableError, match=r"jobs\.db: database is locked"):
            await broker.enqueue([message()])
        assert await broker.get("one") is None
        db.execute("ROLLBACK")
        assert await broker.enqueue([message()]) == [True]
    await broker.close()


async def test_locked_while_it_is_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes may open a new file at once."""
    broker = SQLiteBroker(path)
    with other_connection(path) as db:
        db.execute("CREATE TABLE other (x)")
        db.execute("BEGIN IMMEDIATE")
        with monkeypatch.context() as patch:
            patch.setattr("background.queues.sqlite.schema.BUSY_TIMEOUT", -1)
            with pytest.raises(BrokerUnavailableError, match="locked"):
                await broker.open()
        tries: list[float] = []

        def give_way(seconds: float) -> None:
            tries.append(seconds)
            db.execute("ROLLBACK")

        with monkeypatch.context() as patch:
            patch.setattr(schema.time, "sleep", give_way)
            await broker.open()
    assert len(tries) == 1
    assert await broker.count() == 0
    await broker.close()


@contextmanager
def full_disk(broker: SQLiteBroker, path: Path) -> Iterator[Callable[[int], Awaitable[None]]]:
    """Give a function that leaves room for so many pages more."""

    async def leave(pages: int) -> None:
        def limit(db: sqlite3.Connection) -> None:
            (used,) = db.execute("PRAGMA page_count").fetchone()
            db.execute(f"PRAGMA max_page_count = {used + pages}")

        await thread_of(broker).call(limit, writes=False)

    yield leave
    with other_connection(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_a_full_disk(broker: SQLiteBroker, path: Path) -> None:
    """Enqueueing raises, nothing accepted is lost, and it goes on once there is room."""
    with full_disk(broker, path) as leave:
        await leave(20)
        accepted = 0
        with pytest.raises(BrokerUnavailableError, match=r"jobs\.db: database or disk is full"):
            while await broker.enqueue(messages(accepted + 5, body=b"x" * 1000)):
                accepted += 5
        assert accepted
        assert await broker.count() == accepted
        claims = await broker.claim(["q"], accepted, lease=30)
        assert len(claims) == accepted
        assert all(await finish(broker, claims))
        await leave(1000)
        assert await broker.enqueue([message("more")]) == [True]
    assert await broker.count() == accepted + 1


@pytest.mark.parametrize("what", ["job", "result"])
async def test_a_full_disk_spoils_nothing_for_calls_that_need_no_room(
    broker: SQLiteBroker, path: Path, what: str
) -> None:
    """Though SQLite may take back the whole transaction that they shared."""
    refused: list[BrokerUnavailableError] = []
    accepted: list[bool] = []
    large = b"x" * 1_000_000
    await broker.enqueue([message("held")])
    (claim,) = await broker.claim(["q"], 1, lease=30)
    success = Settlement(id="held", token=claim.token, state=JobState.SUCCEEDED, result=large)

    async def enqueue_large() -> None:
        with pytest.raises(BrokerUnavailableError) as caught:
            if what == "job":
                await broker.enqueue([message("large", body=large)])
            else:
                await broker.settle([success])
        refused.append(caught.value)

    async def enqueue_small(id: str) -> None:
        accepted.extend(await broker.enqueue([message(id)]))

    with full_disk(broker, path) as leave:
        await leave(3)
        await Gate(broker).run(
            lambda: enqueue_small("a"), enqueue_large, lambda: enqueue_small("b")
        )
    assert len(refused) == 1
    assert accepted == [True, True]
    assert sorted([job.message.id async for job in broker.scan()]) == ["a", "b", "held"]
    assert await broker.count(state=JobState.RUNNING) == 1


async def test_a_file_that_is_damaged(broker: SQLiteBroker, path: Path) -> None:
    await broker.enqueue([message()])
    with other_connection(path) as db:
        db.execute("DROP TABLE jobs")
    with pytest.raises(BrokerUnavailableError, match="no such table"):
        await broker.enqueue([message()])


@pytest.mark.skipif(sys.platform == "win32", reason="it keeps files that are open")
@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_that_is_taken_away(broker: SQLiteBroker, path: Path, replaced: bool) -> None:
    """Nothing is acknowledged that nobody would find."""
    take_away(path, replaced=replaced)
    for call in (broker.enqueue([message("a")]), broker.get("a"), broker.maintain()):
        with pytest.raises(BrokerUnavailableError, match="removed or replaced"):
            await call
    await broker.close()
    take_away(path, replaced=False)
    await broker.open()
    assert await broker.enqueue([message("a")]) == [True]


def take_away(path: Path, *, replaced: bool) -> None:
    for each in path.parent.glob(f"{path.name}*"):
        each.unlink()
    if replaced:
        path.touch()


async def test_others_that_can_not_be_looked_out_for_at_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Exception] = [sqlite3.OperationalError("busy")]

    def ask(db: sqlite3.Connection) -> int:
        if answers:
            raise answers.pop()
        return _data_version(db)

    monkeypatch.setattr("background.queues.sqlite.thread._data_version", ask)
    broker = SQLiteBroker(path)
    await broker.open()
    assert await broker.enqueue([message()]) == [True]
    await broker.close()


async def test_others_that_can_not_be_looked_out_for(broker: SQLiteBroker) -> None:
    """What is done here is noticed all the same."""

    def refuse(db: sqlite3.Connection) -> None:
        denied = {sqlite3.SQLITE_PRAGMA: sqlite3.SQLITE_DENY}
        db.set_authorizer(lambda action, *_: denied.get(action, sqlite3.SQLITE_OK))

    await thread_of(broker).call(refuse, writes=False)
    began = anyio.current_time()
    async with anyio.create_task_group() as group:
        group.start_soon(broker.wait_for_work, ["q"], 80_000)
        await anyio.sleep(1)
        await broker.enqueue([message()])
    assert anyio.current_time() - began < 2
