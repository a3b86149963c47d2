"""What the SQLite broker says to SQLite.

A job is known until `changes_at` once it has ended, and held until then while it runs.
"""

from __future__ import annotations

MESSAGE = "id, handler, queue, body, delay, at, expires, keep, needs"
_STORED = f"{MESSAGE}, state, attempt, enqueued_at, started_at, finished_at, error, result"
_KNOWN = "(finished_at IS NULL OR changes_at > ?)"
_HELD = "id = ? AND token = ? AND changes_at > ?"

INSERT = f"""
    INSERT INTO jobs ({MESSAGE}, blocked, state, changes_at, expires_at, enqueued_at)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING
    RETURNING number
"""
FORGET = "DELETE FROM jobs WHERE id = ? AND finished_at IS NOT NULL AND changes_at <= ?"
CLAIM = f"""
    UPDATE jobs SET state = 'running', token = ?, changes_at = ?, expires_at = NULL,
        started_at = ?, attempt = attempt + 1
    WHERE number IN (
        SELECT number FROM jobs
        WHERE state = 'ready' AND queue = ? AND (expires_at IS NULL OR expires_at > ?)
        ORDER BY number LIMIT ?
    )
    RETURNING number, attempt, crashes, enqueued_at, error, {MESSAGE}
"""
RENEW = f"UPDATE jobs SET changes_at = ? WHERE {_HELD} RETURNING cancelled"
END = f"""
    UPDATE jobs SET state = ?, finished_at = ?, changes_at = ? + keep, expires_at = NULL,
        token = NULL, result = iif(? = 'succeeded', ?, result), error = coalesce(?, error)
    WHERE {_HELD}
"""
SAVE = f"UPDATE jobs SET result = ? WHERE {_HELD}"
GIVE_BACK = f"""
    UPDATE jobs SET state = ?, changes_at = ?, token = NULL, attempt = attempt - ?,
        error = coalesce(?, error)
    WHERE {_HELD} AND NOT cancelled
"""
GET = f"SELECT changes_at, number, {_STORED} FROM jobs WHERE id = ? AND {_KNOWN}"
STATE = f"SELECT state FROM jobs WHERE id = ? AND {_KNOWN}"
CANCEL_RUNNING = "UPDATE jobs SET cancelled = 1 WHERE id = ?"
CANCEL_WAITING = """
    UPDATE jobs SET state = 'cancelled', finished_at = ?, changes_at = ? + keep, expires_at = NULL
    WHERE id = ?
"""
REQUEUE = """
    UPDATE jobs SET state = 'ready', attempt = 0, crashes = 0, cancelled = 0, blocked = 0,
        finished_at = NULL, result = NULL, changes_at = NULL
    WHERE id = ? AND finished_at IS NOT NULL AND changes_at > ?
    RETURNING number, handler
"""
HAS_READY = "SELECT 1 FROM jobs WHERE state = 'ready' AND queue = ? LIMIT 1"
NEXT_CHANGE = """
    SELECT changes_at FROM jobs WHERE finished_at IS NULL AND changes_at IS NOT NULL
    ORDER BY changes_at LIMIT 1
"""
CHANGING = """
    SELECT number, id, handler, state, cancelled, expires_at <= ? FROM jobs
    WHERE finished_at IS NULL AND changes_at <= ? ORDER BY changes_at LIMIT ?
"""
BECOMES_READY = "UPDATE jobs SET state = 'ready', changes_at = expires_at WHERE number = ?"
LOSES_ITS_LEASE = """
    UPDATE jobs SET state = 'ready', changes_at = NULL, token = NULL, crashes = crashes + 1
    WHERE number = ?
"""
ENDS_BY_TIME = """
    UPDATE jobs SET state = ?, finished_at = ?, changes_at = ? + keep, expires_at = NULL,
        token = NULL, crashes = crashes + ?
    WHERE number = ?
"""
FORGET_SOME = """
    DELETE FROM jobs WHERE number IN (
        SELECT number FROM jobs WHERE finished_at IS NOT NULL AND changes_at <= ?
        ORDER BY changes_at LIMIT ?
    )
"""
PAGE_END = "SELECT number FROM jobs WHERE number > ? ORDER BY number LIMIT 1 OFFSET ?"
_CHOSEN = "(? IS NULL OR queue = ?) AND (? IS NULL OR state = ?)"
PAGE = f"""
    SELECT number, {_STORED} FROM jobs WHERE number > ? AND number <= ? AND {_CHOSEN} AND {_KNOWN}
    ORDER BY number
"""
PURGE_SOME = """
    DELETE FROM jobs WHERE number > ? AND number <= ? AND finished_at <= ?
        AND (? IS NULL OR state = ?)
"""
COUNT_READY = "SELECT count(*) FROM jobs WHERE state = 'ready' AND queue = ?"
COUNT = f"SELECT count(*) FROM jobs WHERE {_CHOSEN} AND {_KNOWN}"

ADD_NEED = "INSERT INTO needs (job, place, needed) VALUES (?, ?, ?)"
PREVIOUS = "SELECT result FROM needs WHERE job = ? ORDER BY place"
OUTCOME = "SELECT state, result FROM jobs WHERE id = ? AND finished_at IS NOT NULL"
HAS_ENDED = "SELECT 1 FROM jobs WHERE id = ? AND finished_at IS NOT NULL"
WHO_NEEDS = "SELECT job, place FROM needs WHERE needed = ? AND NOT met"
MEET_NEED = "UPDATE needs SET met = 1, result = ? WHERE job = ? AND place = ?"
DROP_NEEDS = "UPDATE needs SET met = 1 WHERE job = ?"
DIES_BY_NEED = """
    UPDATE jobs SET state = 'dead', finished_at = ?, changes_at = ? + keep, expires_at = NULL,
        error = ?
    WHERE number = ? AND state = 'scheduled' AND blocked
    RETURNING id
"""
UNBLOCK = """
    UPDATE jobs SET blocked = blocked - 1 WHERE number = ? AND state = 'scheduled' AND blocked
    RETURNING blocked
"""
RELEASING = "SELECT id, handler, delay, at, expires_at FROM jobs WHERE number = ?"
RELEASE = "UPDATE jobs SET state = ?, changes_at = ? WHERE number = ?"
