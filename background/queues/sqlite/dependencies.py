"""Dependencies between jobs in SQLite, of which chains and groups consist."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from math import inf

from .._dependencies import missing_dependency, outside_dependencies
from .._unreadable import DECODING_ERRORS, describe, report
from ..abc import Message
from . import statements as sql
from .library import Connection


def check(db: Connection, messages: Sequence[Message], now: float) -> None:
    """Check that all dependencies of new jobs are stored.

    Raises:
        ValueError: A job depends on a job that is not stored.
    """
    for id, dependant in outside_dependencies(messages).items():
        if db.execute(sql.STATE, (id, now)).fetchone() is None:
            raise missing_dependency(id, dependant)


def add(db: Connection, number: int, message: Message, now: float) -> None:
    """Store the dependencies of a new job."""
    db.executemany(
        sql.ADD_DEPENDENCY, ((number, place, id) for place, id in enumerate(message.depends_on))
    )
    # Only dependencies that have ended: any other may have thousands of dependants.
    ended = [
        id
        for id in dict.fromkeys(message.depends_on)
        if db.execute(sql.HAS_ENDED, (id,)).fetchone() is not None
    ]
    ended_jobs(db, ended, now)


def previous(db: Connection, number: int) -> tuple[bytes | None, ...]:
    """Return the results of a job's dependencies, in order."""
    return tuple(result for (result,) in db.execute(sql.PREVIOUS, (number,)))


def ended_jobs(db: Connection, ids: Iterable[str], now: float) -> bool:
    """Update the jobs that depend on ended jobs, and the dependants of those that end thereby.

    Returns:
        Whether any job depends on the ended jobs.
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
                error = json.dumps({"type": "background.queues.JobFailedError", "message": text})
                db.execute(sql.DROP_DEPENDENCIES, (number,))
                rows = db.execute(sql.DIES_OF_DEPENDENCY, (now, now, error, number)).fetchall()
                ended += (dead for (dead,) in rows)
    return has_dependants


def _unblock(db: Connection, number: int, now: float) -> list[str]:
    """Count a succeeded dependency; return the ids of jobs that ended, if any."""
    row = db.execute(sql.UNBLOCK, (number,)).fetchone()
    return [] if row is None or row[0] else schedule(db, number, now)


def set_aside(db: Connection, number: int, reason: BaseException, now: float) -> list[str]:
    """Make a job dead that can't be read; return its id."""
    row = (now, json.dumps(describe(reason)), now, number)
    ((id,),) = db.execute(sql.SET_ASIDE, row).fetchall()
    report(id, reason)
    return [id]


def schedule(db: Connection, number: int, now: float) -> list[str]:
    """Make a job ready after its delay; return the ids of jobs that ended, if any."""
    id, handler, delay, at, expires_at = db.execute(sql.UNBLOCKED, (number,)).fetchone()
    try:
        due = now + delay if at is None else float(at)
    except DECODING_ERRORS as error:
        return set_aside(db, number, error, now)
    if due > now:
        changes_at = min(due, inf if expires_at is None else expires_at)
        db.execute(sql.SCHEDULE, ("scheduled", changes_at, number))
    elif handler is not None:
        db.execute(sql.SCHEDULE, ("ready", expires_at, number))
    else:
        db.execute(sql.ENDS_BY_TIME, ("succeeded", now, now, number))
        return [id]
    return []
