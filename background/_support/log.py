"""The logger of this package, whose errors are suppressed.

Names, ids, errors and answers of servers may contain anything. They are escaped, so that they can't
forge a line or control a terminal, and shortened.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from traceback import format_exception

_LONGEST = 1000  # characters of an argument
_LONGEST_TRACEBACK = 10_000
_HEADER = "Traceback (most recent call last):"

_logger = logging.getLogger("background")


def log(level: int, message: str, *args: object, error: BaseException | None = None) -> None:
    """Log a message, with the traceback of an error if there is one; never raise."""
    try:
        if not _logger.isEnabledFor(level):
            return
        shown = tuple(arg if isinstance(arg, (int, float)) else _printable(arg) for arg in args)
        # A tuple, because logging asks an error for its truth value, which may raise.
        exc_info = None if error is None else (type(error), error, error.__traceback__)
        path, line, function, _ = _logger.findCaller(stacklevel=2)
        record = _logger.makeRecord(
            _logger.name, level, path, line, message, shown, exc_info, function
        )
        if error is not None:
            record.exc_text = _traceback(error)
        _logger.handle(record)
    except Exception:  # from a filter, or from a handler that lets its errors escape
        with suppress(Exception):
            record = logging.LogRecord(_logger.name, level, __file__, 0, message, args, None)
            logging.Handler().handleError(record)


def log_failure(name: str, id: str, error: BaseException | None) -> None:
    """Log the failure of a task that reached no observer and no waiter."""
    log(logging.ERROR, "task '%s' ('%s') failed", name, id, error=error)


def _printable(value: object) -> str:
    try:
        text = str(value)
    except Exception:
        text = f"<{type(value).__qualname__} that can't be printed>"
    return escaped(shortened(text, _LONGEST))


def _traceback(error: BaseException) -> str | None:
    """Return the traceback of an error as text, or `None` if the handlers can format it."""
    try:
        chunks = format_exception(type(error), error, error.__traceback__)
    except Exception:  # from attributes of the error
        return None
    text = "".join(chunks).rstrip("\n").expandtabs()
    safe = "\n".join(_lines(chunks)).rstrip("\n").expandtabs()
    shown = "\n".join(escaped(line) for line in shortened(safe, _LONGEST_TRACEBACK).split("\n"))
    return None if shown == text else shown


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a formatted traceback; further lines of messages, and notes, are indented.

    Python writes them as they are, so a message could contain a line that looks like a record.
    """
    is_expected = True  # whether the first line of an error's message is yet to come
    for chunk in chunks:
        first, *rest = chunk.removesuffix("\n").split("\n")
        if rest and not first:  # "The above exception was the direct cause …"
            yield from (first, *rest)
            is_expected = True
            continue
        is_frame = first.startswith(" ")  # or of a group, whose lines are all indented
        yield first if is_expected or is_frame else f"  {first}"
        for line in rest:
            yield line if not line or (is_frame and line.startswith(" ")) else f"  {line}"
        is_expected = is_expected and (is_frame or first == _HEADER)


def shortened(text: str, most: int) -> str:
    """Return a text without its middle if it is longer than `most` characters."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} … {text[-half:]}"


def escaped(text: str) -> str:
    """Return a text with escapes instead of characters that are not printable."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
