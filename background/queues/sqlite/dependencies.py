"""Jobs in SQLite that depend on others: what chains and groups consist of."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from math import inf

from ..abc import Message
from . import statements as sql


def check(db: sqlite3.Connection, messages: Sequence[Message], now: float) -> None:
    """Refuse a job that depends on one that is not stored.

    Raises:
        ValueError: There is such a job.
    """
    new: set[str] = set()
    for message in messages:
        for id in message.depends_on:
            if id not in new and db.execute(sql.STATE, (id, now)).fetchone() is None:
                raise ValueError(f"job {message.id} depends on job {id}, which is not stored")
        new.add(message.id)


def add(db: sqlite3.Connection, number: int, message: Message, now: float) -> None:
    """Let a new job wait for the jobs that it depends on."""
    db.executemany(
        sql.ADD_DEPENDENCY, ((number, place, id) for place, id in enumerate(message.depends_on))
    )
    # Only jobs that have ended are handled: others may have thousands of dependants.
    ended = [
        id
        for id in dict.fromkeys(message.depends_on)
        if db.execute(sql.HAS_ENDED, (id,)).fetchone() is not None
    ]
    ended_jobs(db, ended, now)


def previous(db: sqlite3.Connection, number: int) -> tuple[bytes | None, ...]:
    """Return the results of the jobs that a job depends on."""
    return tuple(result for (result,) in db.execute(sql.PREVIOUS, (number,)))


def ended_jobs(db: sqlite3.Connection, ids: Iterable[str], now: float) -> bool:
    """Handle the end of jobs in those that depend on them, and so on.

    Returns:
        Whether any job depends on them.
    """
    ended = list(ids)
    has_dependants = False
    while ended:
        id = ended.pop()
        dependants = db.execute(sql.DEPENDANTS, (id,)).fetchall()
        outcome = db.execute(sql.OUTCOME, (id,)).fetchone() if dependants else None
        if outcome is None:
            continue
        has_dependants = True
        state, result = outcome
        for number, place in dependants:
            if state == "succeeded":
                db.execute(sql.MEET, (result, number, place))
                ended += _unblock(db, number, now)
            else:
                text = f"job {id}, which it depends on, is {state}"
                error = json.dumps({"type": "JobFailedError", "message": text})
                db.execute(sql.DROP_DEPENDENCIES, (number,))
                rows = db.execute(sql.DIES_OF_DEPENDENCY, (now, now, error, number)).fetchall()
                ended += (dead for (dead,) in rows)
    return has_dependants


def _unblock(db: sqlite3.Connection, number: int, now: float) -> list[str]:
    """Count a dependency that was met; return the job's id if the job has ended by that."""
    row = db.execute(sql.UNBLOCK, (number,)).fetchone()
    return [] if row is None or row[0] else schedule(db, number, now)


def schedule(db: sqlite3.Connection, number: int, now: float) -> list[str]:
    """Let a job become ready after its delay; return its id if it has ended instead."""
    id, handler, delay, at, expires_at = db.execute(sql.UNBLOCKED, (number,)).fetchone()
    due = now + delay if at is None else at
    if due > now:
        changes_at = min(due, inf if expires_at is None else expires_at)
        db.execute(sql.SCHEDULE, ("scheduled", changes_at, number))
    elif handler is not None:
        db.execute(sql.SCHEDULE, ("ready", expires_at, number))
    else:
        db.execute(sql.ENDS_BY_TIME, ("succeeded", now, now, 0, number))
        return [id]
    return []
