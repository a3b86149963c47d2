"""Jobs in SQLite that wait for others: what chains and groups are made of."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from math import inf

from ..abc import Message
from . import statements as sql


def check(db: sqlite3.Connection, messages: Sequence[Message], now: float) -> None:
    """Raise `ValueError` for a job that needs one which is not known."""
    new: set[str] = set()
    for message in messages:
        for need in message.needs:
            if need not in new and db.execute(sql.STATE, (need, now)).fetchone() is None:
                raise ValueError(f"job {message.id} needs the job {need}, which is not known")
        new.add(message.id)


def add(db: sqlite3.Connection, number: int, message: Message, now: float) -> None:
    """Let a new job, which is blocked by all that it needs, wait for that."""
    db.executemany(
        sql.ADD_NEED, ((number, place, need) for place, need in enumerate(message.needs))
    )
    # Who else waits for what has not ended is not looked at: that may be thousands, each time.
    ended = [
        need
        for need in dict.fromkeys(message.needs)
        if db.execute(sql.HAS_ENDED, (need,)).fetchone() is not None
    ]
    hear(db, ended, now)


def previous(db: sqlite3.Connection, number: int) -> tuple[bytes | None, ...]:
    """Return the results of what a job needed."""
    return tuple(result for (result,) in db.execute(sql.PREVIOUS, (number,)))


def hear(db: sqlite3.Connection, ids: Iterable[str], now: float) -> bool:
    """Let those know who wait for jobs, if these have ended; and who waits for them, and so on.

    Returns whether anybody does.
    """
    ended = list(ids)
    heard = False
    while ended:
        id = ended.pop()
        who = db.execute(sql.WHO_NEEDS, (id,)).fetchall()
        outcome = db.execute(sql.OUTCOME, (id,)).fetchone() if who else None
        if outcome is None:
            continue
        heard = True
        state, result = outcome
        for number, place in who:
            if state == "succeeded":
                db.execute(sql.MEET_NEED, (result, number, place))
                ended += _unblock(db, number, now)
            else:
                error = {
                    "type": "JobFailedError",
                    "message": f"job {id}, which it needs, is {state}",
                }
                values = (now, now, json.dumps(error), number)
                db.execute(sql.DROP_NEEDS, (number,))
                ended += (each for (each,) in db.execute(sql.DIES_BY_NEED, values).fetchall())
    return heard


def _unblock(db: sqlite3.Connection, number: int, now: float) -> list[str]:
    """Take note that a need was met; return the job's id if it has ended by that."""
    row = db.execute(sql.UNBLOCK, (number,)).fetchone()
    return [] if row is None or row[0] else release(db, number, now)


def release(db: sqlite3.Connection, number: int, now: float) -> list[str]:
    """Let a job that nothing blocks be ready once it is due; return its id if it has ended."""
    id, handler, delay, at, expires_at = db.execute(sql.RELEASING, (number,)).fetchone()
    due = now + delay if at is None else at
    if due > now:
        changes_at = min(due, inf if expires_at is None else expires_at)
        db.execute(sql.RELEASE, ("scheduled", changes_at, number))
    elif handler is not None:
        db.execute(sql.RELEASE, ("ready", expires_at, number))
    else:
        db.execute(sql.ENDS_BY_TIME, ("succeeded", now, now, 0, number))
        return [id]
    return []
