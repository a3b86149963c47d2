"""The logger of this package, whose errors are suppressed."""

from __future__ import annotations

import logging
from contextlib import suppress

_logger = logging.getLogger("background")


def log(level: int, message: str, *args: object, error: BaseException | None = None) -> None:
    """Log a message, with the traceback of an error if there is one; never raise."""
    # A tuple, because logging asks an error for its truth value, which may raise.
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    try:
        _logger.log(level, message, *args, exc_info=exc_info, stacklevel=2)
    except Exception:  # from a filter, or from a handler that lets its errors escape
        with suppress(Exception):
            record = logging.LogRecord(_logger.name, level, __file__, 0, message, args, None)
            logging.Handler().handleError(record)


def log_failure(name: str, id: str, error: BaseException | None) -> None:
    """Log the failure of a task that reached no observer and no waiter."""
    log(logging.ERROR, "task %r (%r) failed", name, id, error=error)
