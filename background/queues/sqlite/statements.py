"""The SQL of the SQLite broker.

`changes_at` is the end of the lease for a running job, and the end of the retention for an ended
job.
"""

from __future__ import annotations

MESSAGE = "id, handler, queue, body, retention, dead_retention, delay, at, expires, depends_on"
_STORED = (
    f"{MESSAGE}, state, attempt, enqueued_at, started_at, finished_at, error, result, token, lost"
)
_RETAINED = "(finished_at IS NULL OR changes_at > ?)"
_HELD = "id = ? AND token = ? AND state = 'running' AND changes_at > ?"

INSERT = f"""
    INSERT INTO background_jobs ({MESSAGE}, blocked, state, changes_at, expires_at, enqueued_at)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING
    RETURNING number
"""
DELETE_IF_OLD = (
    "DELETE FROM background_jobs WHERE id = ? AND finished_at IS NOT NULL AND changes_at <= ?"
)
_READY = """
    FROM background_jobs
    WHERE state = 'ready' AND queue = ? AND (expires_at IS NULL OR expires_at > ?)
    ORDER BY number LIMIT ?
"""
SIZES = f"""
    SELECT ifnull(length(body), 0) + ifnull(length(result), 0) + (
        SELECT ifnull(sum(length(result)), 0) FROM background_dependencies WHERE job = number
    ) {_READY}
"""
CLAIM = f"""
    UPDATE background_jobs SET state = 'running', token = ?, changes_at = ?, started_at = ?,
        attempt = attempt + 1, confirmed = 0
    WHERE number IN (SELECT number {_READY})
    RETURNING number, attempt, crashes, unconfirmed, enqueued_at, error, result, {MESSAGE}
"""
RENEW = (
    f"UPDATE background_jobs SET changes_at = ?, confirmed = 1 WHERE {_HELD} RETURNING cancelled"
)
END = f"""
    UPDATE background_jobs SET state = ?, finished_at = ?,
        changes_at = ? + iif(? = 'dead', dead_retention, retention), expires_at = NULL,
        result = iif(? = 'succeeded', ?, result), error = coalesce(?, error)
    WHERE {_HELD}
"""
SAVE = f"UPDATE background_jobs SET result = ? WHERE {_HELD}"
_RELEASE = "UPDATE background_jobs SET state = ?, attempt = attempt - ?, error = coalesce(?, error)"
RELEASE_CLAIM = f"""
    {_RELEASE}, changes_at = ?, expires_at = NULL
    WHERE {_HELD} AND NOT cancelled
"""
#: For an attempt that has not begun, so the job can still expire.
UNDO_CLAIM = f"""
    {_RELEASE}, changes_at = min(coalesce(?, expires_at), coalesce(expires_at, ?))
    WHERE {_HELD} AND NOT cancelled
"""
GET = f"SELECT changes_at, number, {_STORED} FROM background_jobs WHERE id = ? AND {_RETAINED}"
STATE = f"SELECT state, number FROM background_jobs WHERE id = ? AND {_RETAINED}"
CANCEL_RUNNING = "UPDATE background_jobs SET cancelled = 1 WHERE id = ?"
CANCEL_WAITING = """
    UPDATE background_jobs SET state = 'cancelled', finished_at = ?, changes_at = ? + retention,
        expires_at = NULL
    WHERE id = ?
"""
REQUEUE = """
    UPDATE background_jobs SET state = 'ready', attempt = 0, crashes = 0, unconfirmed = 0,
        cancelled = 0, blocked = 0, finished_at = NULL, result = NULL, changes_at = NULL
    WHERE id = ? AND finished_at IS NOT NULL AND changes_at > ?
    RETURNING number, handler
"""
HAS_READY = "SELECT 1 FROM background_jobs WHERE state = 'ready' AND queue = ? LIMIT 1"
NEXT_CHANGE = """
    SELECT changes_at FROM background_jobs WHERE finished_at IS NULL AND changes_at IS NOT NULL
    ORDER BY changes_at LIMIT 1
"""
CHANGING = """
    SELECT number, id, handler, state, cancelled,
        expires_at <= ? AND NOT (state = 'running' AND confirmed)
    FROM background_jobs
    WHERE finished_at IS NULL AND changes_at <= ? ORDER BY changes_at LIMIT ?
"""
BECOMES_READY = (
    "UPDATE background_jobs SET state = 'ready', changes_at = expires_at WHERE number = ?"
)
LOSES_ITS_LEASE = """
    UPDATE background_jobs SET state = 'ready', changes_at = iif(confirmed, NULL, expires_at),
        expires_at = iif(confirmed, NULL, expires_at),
        crashes = crashes + confirmed, unconfirmed = unconfirmed + 1 - confirmed,
        lost = substr(
            coalesce(lost, '') || attempt || ' ' || token || ' ' || started_at || ' ' || ? || ' '
            || confirmed || char(10), -5000
        )
    WHERE number = ?
"""
ENDS_BY_TIME = """
    UPDATE background_jobs SET state = ?, finished_at = ?, changes_at = ? + retention,
        expires_at = NULL
    WHERE number = ?
"""
SET_ASIDE = """
    UPDATE background_jobs SET state = 'dead', finished_at = ?, error = ?, expires_at = NULL,
        changes_at = ? + iif(typeof(dead_retention) = 'real', dead_retention, 86400)
    WHERE number = ?
    RETURNING id
"""
DELETE_OLD = """
    DELETE FROM background_jobs WHERE number IN (
        SELECT number FROM background_jobs WHERE finished_at IS NOT NULL AND changes_at <= ?
        ORDER BY changes_at LIMIT ?
    )
"""
PAGE_END = "SELECT number FROM background_jobs WHERE number > ? ORDER BY number LIMIT 1 OFFSET ?"
_SELECTED = "(? IS NULL OR queue = ?) AND (? IS NULL OR state = ?)"
PAGE = f"""
    SELECT number, {_STORED} FROM background_jobs
    WHERE number > ? AND number <= ? AND {_SELECTED} AND {_RETAINED}
    ORDER BY number
"""
PURGE_PAGE = """
    DELETE FROM background_jobs WHERE number > ? AND number <= ? AND finished_at <= ?
        AND (? IS NULL OR state = ?)
"""
COUNT_READY = "SELECT count(*) FROM background_jobs WHERE state = 'ready' AND queue = ?"
COUNT = f"SELECT count(*) FROM background_jobs WHERE {_SELECTED} AND {_RETAINED}"

ADD_DEPENDENCY = "INSERT INTO background_dependencies (job, place, depends_on) VALUES (?, ?, ?)"
PREVIOUS = "SELECT result FROM background_dependencies WHERE job = ? ORDER BY place"
OUTCOME = "SELECT state, result FROM background_jobs WHERE id = ? AND finished_at IS NOT NULL"
HAS_ENDED = "SELECT 1 FROM background_jobs WHERE id = ? AND finished_at IS NOT NULL"
DEPENDANTS = "SELECT job, place FROM background_dependencies WHERE depends_on = ? AND NOT met"
MEET = "UPDATE background_dependencies SET met = 1, result = ? WHERE job = ? AND place = ?"
DROP_DEPENDENCIES = "UPDATE background_dependencies SET met = 1 WHERE job = ?"
DIES_OF_DEPENDENCY = """
    UPDATE background_jobs SET state = 'dead', finished_at = ?, changes_at = ? + dead_retention,
        expires_at = NULL, error = ?
    WHERE number = ? AND state = 'scheduled' AND blocked
    RETURNING id
"""
UNBLOCK = """
    UPDATE background_jobs SET blocked = blocked - 1
    WHERE number = ? AND state = 'scheduled' AND blocked
    RETURNING blocked
"""
UNBLOCKED = "SELECT id, handler, delay, at, expires_at FROM background_jobs WHERE number = ?"
SCHEDULE = "UPDATE background_jobs SET state = ?, changes_at = ? WHERE number = ?"
