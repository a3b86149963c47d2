"""The package's own log, which may break without harm to anything else."""

from __future__ import annotations

import logging
from contextlib import suppress

_logger = logging.getLogger("background")


def log(level: int, message: str, *args: object, error: BaseException | None = None) -> None:
    """Log a message, with the traceback of an error; never raises."""
    # A tuple, as logging asks the error itself whether it is true, which some are not.
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    try:
        _logger.log(level, message, *args, exc_info=exc_info, stacklevel=2)
    except Exception:  # of a filter, or of a handler that does not keep its errors to itself
        with suppress(Exception):
            record = logging.LogRecord(_logger.name, level, __file__, 0, message, args, None)
            logging.Handler().handleError(record)
