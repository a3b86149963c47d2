"""What the SQLite broker does to jobs, each function a part of one transaction.

Times are seconds since the epoch. What time has done to jobs is made up for first, so that no
function takes a job for something that it no longer is.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from math import inf
from typing import Any

from ..._support.frozen import maker
from .._states import FINAL, JobState
from ..abc import Claim, LeaseStatus, MaintenanceStats, Message, Settlement, StoredJob
from . import dependencies as needs
from . import statements as sql

CHUNK = 500  # rows that one transaction changes or reads at most, where there may be millions

_FIELDS = tuple(sql.MESSAGE.split(", "))
_make_claim = maker(Claim)


def enqueue(db: sqlite3.Connection, messages: Sequence[Message], now: float) -> list[bool]:
    needs.check(db, messages, now)
    return [_insert(db, each, now) for each in messages]


def _insert(db: sqlite3.Connection, message: Message, now: float) -> bool:
    due = now + message.delay if message.at is None else float(message.at)
    expires_at = None if message.expires is None else now + message.expires
    blocked = bool(message.needs) or message.handler is None
    waits = due > now and not blocked
    row = (
        message.id,
        message.handler,
        message.queue,
        message.body,
        float(message.delay),  # whole numbers may be larger than SQLite's
        None if message.at is None else float(message.at),
        None if message.expires is None else float(message.expires),
        float(message.keep),
        json.dumps(message.needs),
        len(message.needs),
        "scheduled" if waits or blocked else "ready",
        min(due, inf if expires_at is None else expires_at) if waits else expires_at,
        expires_at,
        now,
    )
    inserted = db.execute(sql.INSERT, row).fetchone()
    if inserted is None and db.execute(sql.FORGET, (message.id, now)).rowcount:
        inserted = db.execute(sql.INSERT, row).fetchone()
    if inserted is None:
        return False
    number: int = inserted[0]
    if message.needs:
        needs.add(db, number, message, now)
    elif blocked:
        needs.release(db, number, now)
    return True


def claim(
    db: sqlite3.Connection, queues: Sequence[str], most: int, token: str, now: float, lease: float
) -> tuple[list[Claim], bool]:
    """Claim jobs; tell also whether time has changed any."""
    changed = advance(db, now) != MaintenanceStats()
    claims: list[Claim] = []
    for queue in queues:
        if len(claims) < most:
            values = (token, now + lease, now, queue, now, most - len(claims))
            rows = db.execute(sql.CLAIM, values).fetchall()
            rows.sort()  # by number, of which no two are the same
            claims += (_claim(db, token, *row) for row in rows)
    return claims, changed


def _claim(
    db: sqlite3.Connection,
    token: str,
    number: int,
    attempt: int,
    crashes: int,
    enqueued_at: float,
    error: str | None,
    *values: Any,
) -> Claim:
    message = _message(values)
    previous = needs.previous(db, number) if message.needs else ()
    failed = None if error is None else json.loads(error)
    return _make_claim(message, token, attempt, crashes, enqueued_at, previous, failed)


def renew(
    db: sqlite3.Connection, claims: Sequence[Claim], now: float, lease: float
) -> list[LeaseStatus]:
    return [_renew(db, each, now, lease) for each in claims]


def _renew(db: sqlite3.Connection, claim: Claim, now: float, lease: float) -> LeaseStatus:
    rows = db.execute(sql.RENEW, (now + lease, claim.message.id, claim.token, now)).fetchall()
    if not rows:
        return LeaseStatus.LOST
    return LeaseStatus.CANCELLED if rows[0][0] else LeaseStatus.KEPT


def settle(
    db: sqlite3.Connection, settlements: Sequence[Settlement], now: float
) -> tuple[list[bool], bool]:
    """Settle jobs; tell of each whether it was held, and whether other jobs change by that."""
    accepted = [_settle(db, each, now) for each in settlements]
    ended = (each.id for each, done in zip(settlements, accepted, strict=True) if done)
    return accepted, needs.hear(db, ended, now)


def _settle(db: sqlite3.Connection, settlement: Settlement, now: float) -> bool:
    state = settlement.state
    error = None if settlement.error is None else json.dumps(dict(settlement.error))
    held = (settlement.id, settlement.token, now)
    if state not in FINAL:
        delayed = settlement.delay > 0
        back = (
            "scheduled" if delayed else "ready",
            now + settlement.delay if delayed else None,
            state is JobState.READY,
            error,
        )
        if db.execute(sql.GIVE_BACK, (*back, *held)).rowcount:
            return True
        state = JobState.CANCELLED  # unless it is no longer held
    end = (state.value, now, now, state.value, settlement.result, error)
    return bool(db.execute(sql.END, (*end, *held)).rowcount)


def save(db: sqlite3.Connection, id: str, token: str, result: bytes, now: float) -> bool:
    return bool(db.execute(sql.SAVE, (result, id, token, now)).rowcount)


def cancel(db: sqlite3.Connection, id: str, now: float) -> JobState | None:
    advance(db, now)
    row = db.execute(sql.STATE, (id, now)).fetchone()
    if row is None:
        return None
    state = JobState(row[0])
    if state is JobState.RUNNING:
        db.execute(sql.CANCEL_RUNNING, (id,))
    elif state not in FINAL:
        db.execute(sql.CANCEL_WAITING, (now, now, id))
        needs.hear(db, [id], now)
    return state


def requeue(db: sqlite3.Connection, id: str, now: float) -> bool:
    advance(db, now)
    row = db.execute(sql.REQUEUE, (id, now)).fetchone()
    if row is None:
        return False
    db.execute(sql.DROP_NEEDS, (row[0],))
    if row[1] is None:
        db.execute(sql.ENDS_BY_TIME, ("succeeded", now, now, 0, row[0]))
        needs.hear(db, [id], now)
    return True


def get(db: sqlite3.Connection, id: str, now: float) -> tuple[StoredJob | None, float]:
    """Return a job, and when time will change it."""
    row = db.execute(sql.GET, (id, now)).fetchone()
    if row is None:
        return None, inf
    return _stored(db, *row[1:]), inf if row[0] is None else row[0]


def _message(values: Sequence[Any]) -> Message:
    fields: dict[str, Any] = dict(zip(_FIELDS, values, strict=True))
    fields["needs"] = tuple(json.loads(fields["needs"]))
    return Message(**fields)


def _stored(db: sqlite3.Connection, number: int, *row: Any) -> StoredJob:
    state, attempt, enqueued_at, started_at, finished_at, error, result = row[9:]
    message = _message(row[:9])
    return StoredJob(
        message=message,
        state=JobState(state),
        attempt=attempt,
        enqueued_at=enqueued_at,
        started_at=started_at,
        finished_at=finished_at,
        error=None if error is None else json.loads(error),
        result=result,
        previous=needs.previous(db, number) if message.needs else (),
    )


def look(db: sqlite3.Connection, queues: Sequence[str]) -> float:
    """Return when there may be work: in 0 seconds since the epoch if there is some now."""
    if any(db.execute(sql.HAS_READY, (queue,)).fetchone() for queue in queues):
        return 0.0
    row = db.execute(sql.NEXT_CHANGE).fetchone()
    return inf if row is None else row[0]


def page(
    db: sqlite3.Connection, after: int, queue: str | None, state: str | None, now: float
) -> tuple[list[StoredJob], int | None]:
    """Return the jobs chosen of the next so many, and the number of the last of these."""
    last = _page_end(db, after)
    upto = 2**63 - 1 if last is None else last
    rows = db.execute(sql.PAGE, (after, upto, queue, queue, state, state, now)).fetchall()
    return [_stored(db, *row) for row in rows], last


def _page_end(db: sqlite3.Connection, after: int) -> int | None:
    row = db.execute(sql.PAGE_END, (after, CHUNK - 1)).fetchone()
    return None if row is None else row[0]


def count(db: sqlite3.Connection, queue: str | None, state: str | None, now: float) -> int:
    if queue is not None and state == "ready":
        row = db.execute(sql.COUNT_READY, (queue,)).fetchone()
    else:
        row = db.execute(sql.COUNT, (queue, queue, state, state, now)).fetchone()
    return int(row[0])


def purge(
    db: sqlite3.Connection, after: int, state: str | None, before: float
) -> tuple[int, int | None]:
    """Forget those chosen of the next so many; return how many, and the last one's number."""
    last = _page_end(db, after)
    upto = 2**63 - 1 if last is None else last
    return db.execute(sql.PURGE_SOME, (after, upto, before, state, state)).rowcount, last


def maintain(db: sqlite3.Connection, now: float) -> tuple[MaintenanceStats, bool]:
    """Do a part of what is due; tell whether it was all of it."""
    changed = advance(db, now)
    forgotten = db.execute(sql.FORGET_SOME, (now, CHUNK)).rowcount
    done = MaintenanceStats(
        due=changed.due,
        reclaimed=changed.reclaimed,
        expired=changed.expired,
        forgotten=forgotten,
    )
    return done, forgotten < CHUNK and changed.due + changed.reclaimed + changed.expired < CHUNK


def advance(db: sqlite3.Connection, now: float) -> MaintenanceStats:
    """Do what time has done to jobs that have not ended."""
    rows = db.execute(sql.CHANGING, (now, now, CHUNK)).fetchall()
    if not rows:
        return MaintenanceStats()
    ends: dict[str, list[tuple[int, str]]] = {"cancelled": [], "expired": [], "succeeded": []}
    due: list[tuple[int]] = []
    lost: list[tuple[int]] = []
    for number, id, handler, state, is_cancelled, has_expired in rows:
        if state == "running":
            if is_cancelled:
                ends["cancelled"].append((number, id))
            else:
                lost.append((number,))
        elif has_expired:
            ends["expired"].append((number, id))
        elif handler is None:
            ends["succeeded"].append((number, id))
        else:
            due.append((number,))
    db.executemany(sql.BECOMES_READY, due)
    db.executemany(sql.LOSES_ITS_LEASE, lost)
    for state, jobs in ends.items():
        crashes = int(state == "cancelled")
        db.executemany(sql.ENDS_BY_TIME, ((state, now, now, crashes, number) for number, _ in jobs))
        needs.hear(db, (id for _, id in jobs), now)
    return MaintenanceStats(
        due=len(due) + len(ends["succeeded"]),
        reclaimed=len(lost) + len(ends["cancelled"]),
        expired=len(ends["expired"]),
    )
