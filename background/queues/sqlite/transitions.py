"""The operations of the SQLite broker; each function runs inside a transaction.

Times are seconds since the epoch. Every function makes the transitions that are due before it reads
jobs, or ignores the jobs whose transition is due.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import inf
from typing import Any

from .._states import FINAL, JobState
from .._unreadable import (
    DECODING_ERRORS,
    check_claim,
    check_message,
    check_number,
    check_outcome,
    unreadable_job,
)
from ..abc import (
    MOST_LOST,
    Claim,
    LeaseStatus,
    LostClaim,
    MaintenanceStats,
    Message,
    Settlement,
    StoredJob,
)
from . import dependencies
from . import statements as sql
from .library import Connection

#: The most rows that one transaction reads or changes.
CHUNK = 500

_MOST_BYTES = 4_000_000  # of jobs and results, after which a claim or a page ends

_FIELDS = len(sql.MESSAGE.split(", "))


def enqueue(db: Connection, messages: Sequence[Message], now: float) -> list[bool]:
    """Store jobs; return for each job whether its id was new."""
    dependencies.check(db, messages, now)
    return [_insert(db, message, now) for message in messages]


def _insert(db: Connection, message: Message, now: float) -> bool:
    due = now + message.delay if message.at is None else float(message.at)
    expires_at = None if message.expires is None else now + message.expires
    blocked = bool(message.depends_on) or message.handler is None
    waits = due > now and not blocked
    row = (
        message.id,
        message.handler,
        message.queue,
        message.body,
        float(message.retention),  # an int may be too large for SQLite
        float(message.dead_retention),
        float(message.delay),
        None if message.at is None else float(message.at),
        None if message.expires is None else float(message.expires),
        json.dumps(message.depends_on),
        len(message.depends_on),
        "scheduled" if waits or blocked else "ready",
        min(due, inf if expires_at is None else expires_at) if waits else expires_at,
        expires_at,
        now,
    )
    inserted = db.execute(sql.INSERT, row).fetchone()
    if inserted is None and db.execute(sql.DELETE_IF_OLD, (message.id, now)).rowcount:
        inserted = db.execute(sql.INSERT, row).fetchone()
    if inserted is None:
        return False
    number: int = inserted[0]
    if message.depends_on:
        dependencies.add(db, number, message, now)
    elif blocked:
        dependencies.schedule(db, number, now)
    return True


def claim(
    db: Connection, queues: Sequence[str], most: int, token: str, now: float, lease: float
) -> tuple[list[Claim], bool]:
    """Claim ready jobs; return the claims, and whether other jobs changed because of the time."""
    changed = advance(db, now) != MaintenanceStats()
    claims: list[Claim] = []
    size = 0
    for queue in queues:
        wanted, size = _fitting(db, queue, most - len(claims), size, now)
        if not wanted:
            continue
        rows = db.execute(sql.CLAIM, (token, now + lease, now, queue, now, wanted)).fetchall()
        rows.sort()  # by number, which is unique; RETURNING has no defined order
        for row in rows:
            try:
                claims.append(_claim(db, token, *row))
            except DECODING_ERRORS as error:
                _set_aside(db, row[0], error, now)
    return claims, changed


def _fitting(db: Connection, queue: str, most: int, size: int, now: float) -> tuple[int, int]:
    """Return how many jobs a claim takes, up to the one that brings it to 4 MB, and its size."""
    count = 0
    for (more,) in db.execute(sql.SIZES, (queue, now, most)):
        if size >= _MOST_BYTES:
            break
        count += 1
        size += more
    return count, size


def _claim(
    db: Connection,
    token: str,
    number: int,
    attempt: int,
    crashes: int,
    unconfirmed: int,
    enqueued_at: float,
    error: str | None,
    saved: bytes | None,
    *values: Any,
) -> Claim:
    message = _message(values)
    previous = dependencies.previous(db, number) if message.depends_on else ()
    failed = None if error is None else json.loads(error)
    return check_claim(
        Claim(message, token, attempt, crashes, unconfirmed, enqueued_at, previous, failed, saved)
    )


def _set_aside(db: Connection, number: int, reason: Exception, now: float) -> None:
    """Make a job dead that can't be read, and then its dependants."""
    dependencies.ended_jobs(db, dependencies.set_aside(db, number, reason, now), now)


def renew(db: Connection, claims: Sequence[Claim], now: float, lease: float) -> list[LeaseStatus]:
    """Renew leases; return the status of each claim."""
    return [_renew(db, claim, now, lease) for claim in claims]


def _renew(db: Connection, claim: Claim, now: float, lease: float) -> LeaseStatus:
    rows = db.execute(sql.RENEW, (now + lease, claim.message.id, claim.token, now)).fetchall()
    if not rows:
        return LeaseStatus.LOST
    return LeaseStatus.CANCELLED if rows[0][0] else LeaseStatus.HELD


def settle(
    db: Connection, settlements: Sequence[Settlement], now: float
) -> tuple[list[bool], bool]:
    """Settle jobs; return for each whether its claim was held, and whether any has dependants."""
    accepted = [_settle(db, settlement, now) for settlement in settlements]
    outcomes = zip(settlements, accepted, strict=True)
    ended = (settlement.id for settlement, is_accepted in outcomes if is_accepted)
    return accepted, dependencies.ended_jobs(db, ended, now)


def _settle(db: Connection, settlement: Settlement, now: float) -> bool:
    state = settlement.state
    error = None if settlement.error is None else json.dumps(dict(settlement.error))
    held = (settlement.id, settlement.token, now)
    if state not in FINAL:
        is_delayed = settlement.delay > 0
        released = ("scheduled" if is_delayed else "ready", state is JobState.READY, error)
        due = now + settlement.delay if is_delayed else None
        if settlement.has_begun:
            cursor = db.execute(sql.RELEASE_CLAIM, (*released, due, *held))
        else:
            cursor = db.execute(sql.UNDO_CLAIM, (*released, due, due, *held))
        if cursor.rowcount:
            return True
        state = JobState.CANCELLED  # requested meanwhile, or the lease is lost
    end = (state.value, now, now, state.value, state.value, settlement.result, error)
    return bool(db.execute(sql.END, (*end, *held)).rowcount)


def save(db: Connection, id: str, token: str, result: bytes, now: float) -> bool:
    """Store an intermediate result; return whether the claim holds the job."""
    return bool(db.execute(sql.SAVE, (result, id, token, now)).rowcount)


def cancel(db: Connection, id: str, now: float) -> JobState | None:
    """Cancel a job; return the state before."""
    advance(db, now)
    row = db.execute(sql.STATE, (id, now)).fetchone()
    if row is None:
        return None
    try:
        state = JobState(row[0])
    except ValueError as error:
        _set_aside(db, row[1], error, now)
        return JobState.DEAD
    if state is JobState.RUNNING:
        db.execute(sql.CANCEL_RUNNING, (id,))
    elif state not in FINAL:
        db.execute(sql.CANCEL_WAITING, (now, now, id))
        dependencies.ended_jobs(db, [id], now)
    return state


def requeue(db: Connection, id: str, now: float) -> bool:
    """Make an ended job ready again; return whether the job had ended."""
    advance(db, now)
    row = db.execute(sql.REQUEUE, (id, now)).fetchone()
    if row is None:
        return False
    db.execute(sql.DROP_DEPENDENCIES, (row[0],))
    if row[1] is None:
        db.execute(sql.ENDS_BY_TIME, ("succeeded", now, now, row[0]))
        dependencies.ended_jobs(db, [id], now)
    return True


def get(db: Connection, id: str, now: float) -> tuple[StoredJob | None, float]:
    """Return a job, and the time of its next change."""
    row = db.execute(sql.GET, (id, now)).fetchone()
    if row is None:
        return None, inf
    return _stored(db, *row[1:]), row[0] if isinstance(row[0], float) else inf


def _message(values: Sequence[Any]) -> Message:
    *plain, depends_on = values
    fields: list[Any] = [*plain, tuple(json.loads(depends_on))]
    return Message(*fields)


def _stored(db: Connection, number: int, *row: Any) -> StoredJob:
    try:
        return _readable(db, number, *row)
    except DECODING_ERRORS as error:
        return unreadable_job(str(row[0]), repr(row).encode(errors="replace"), error)


def _readable(db: Connection, number: int, *row: Any) -> StoredJob:
    state, attempt, enqueued_at, started_at, finished_at, error, result, token, lost = row[_FIELDS:]
    message = check_message(_message(row[:_FIELDS]))
    for value in (attempt, enqueued_at, started_at or 0.0, finished_at or 0.0):
        check_number(value)
    described = None if error is None else json.loads(error)
    previous = dependencies.previous(db, number) if message.depends_on else ()
    check_outcome(described, result, *previous)
    return StoredJob(
        message=message,
        state=JobState(state),
        attempt=attempt,
        enqueued_at=enqueued_at,
        started_at=started_at,
        finished_at=finished_at,
        error=described,
        result=result,
        previous=previous,
        token=token or "",
        lost=() if lost is None else _lost(lost),
    )


def _lost(lines: str) -> tuple[LostClaim, ...]:
    claims: list[LostClaim] = []
    for line in lines.splitlines()[-MOST_LOST:]:
        attempt, token, started_at, ended_at, confirmed = line.split(" ")
        times = float(started_at), float(ended_at)
        claims.append(LostClaim(int(attempt), token, *times, confirmed == "1"))
    return tuple(claims)


def next_work(db: Connection, queues: Sequence[str]) -> float:
    """Return the time when there may be work, or 0 if a job is ready."""
    if any(db.execute(sql.HAS_READY, (queue,)).fetchone() for queue in queues):
        return 0.0
    row = db.execute(sql.NEXT_CHANGE).fetchone()
    return row[0] if row is not None and isinstance(row[0], float) else inf


def page(
    db: Connection, after: int, queue: str | None, state: str | None, now: float
) -> tuple[list[StoredJob], int | None]:
    """Return the selected jobs of the next page, and its end.

    The end is the number of the page's last job, or `None` for the last page.
    """
    last = _page_end(db, after)
    upto = 2**63 - 1 if last is None else last
    jobs: list[StoredJob] = []
    size = 0
    for row in db.execute(sql.PAGE, (after, upto, queue, queue, state, state, now)):
        job = _stored(db, *row)
        jobs.append(job)
        size += sum(map(len, filter(None, (job.message.body, job.result, *job.previous))))
        if size >= _MOST_BYTES:
            return jobs, row[0]
    return jobs, last


def _page_end(db: Connection, after: int) -> int | None:
    row = db.execute(sql.PAGE_END, (after, CHUNK - 1)).fetchone()
    return None if row is None else row[0]


def count(db: Connection, queue: str | None, state: str | None, now: float) -> int:
    """Return the number of selected jobs."""
    if queue is not None and state == "ready":
        row = db.execute(sql.COUNT_READY, (queue,)).fetchone()
    else:
        row = db.execute(sql.COUNT, (queue, queue, state, state, now)).fetchone()
    return int(row[0])


def purge(db: Connection, after: int, state: str | None, before: float) -> tuple[int, int | None]:
    """Delete the selected ended jobs of the next page; return their number and the page's end."""
    last = _page_end(db, after)
    upto = 2**63 - 1 if last is None else last
    return db.execute(sql.PURGE_PAGE, (after, upto, before, state, state)).rowcount, last


def maintain(db: Connection, now: float) -> tuple[MaintenanceStats, bool]:
    """Do a part of the maintenance; return also whether nothing is left to do."""
    stats = advance(db, now)
    changed = stats.due + stats.reclaimed + stats.expired
    stats.deleted = db.execute(sql.DELETE_OLD, (now, CHUNK)).rowcount
    return stats, stats.deleted < CHUNK and changed < CHUNK


def advance(db: Connection, now: float) -> MaintenanceStats:
    """Make due transitions of jobs that have not ended, for up to `CHUNK` jobs."""
    rows = db.execute(sql.CHANGING, (now, now, CHUNK)).fetchall()
    if not rows:
        return MaintenanceStats()
    ends: dict[str, list[tuple[int, str]]] = {"cancelled": [], "expired": [], "succeeded": []}
    due: list[tuple[int]] = []
    lost: list[tuple[float, int]] = []
    expired = 0
    for number, id, handler, state, is_cancelled, has_expired in rows:
        if state == "running":
            lost.append((now, number))
            if is_cancelled or has_expired:
                ends["cancelled" if is_cancelled else "expired"].append((number, id))
        elif has_expired:
            expired += 1
            ends["expired"].append((number, id))
        elif handler is None:
            ends["succeeded"].append((number, id))
        else:
            due.append((number,))
    db.executemany(sql.BECOMES_READY, due)
    db.executemany(sql.LOSES_ITS_LEASE, lost)
    for state, jobs in ends.items():
        db.executemany(sql.ENDS_BY_TIME, ((state, now, now, number) for number, _ in jobs))
        dependencies.ended_jobs(db, (id for _, id in jobs), now)
    return MaintenanceStats(
        due=len(due) + len(ends["succeeded"]),
        reclaimed=len(lost),
        expired=expired,
    )
