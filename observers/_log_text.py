"""Untrusted text, escaped for log lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from traceback import FrameSummary, format_exception

_LONGEST = 1000  # characters of a text
_LONGEST_TRACEBACK = 10_000
_HEADER = "Traceback (most recent call last):"


def quoted(text: str) -> str:
    """Return the text as `repr()` does: quoted, with control characters escaped; cut if long."""
    return str.__repr__(_shortened(text, _LONGEST))


def escaped(value: object) -> str:
    """Return the value as text, escaped as by `quoted` but without the quotes; never raise."""
    try:
        text = str(value)
    except Exception:
        text = f"<{type(value).__qualname__} that can't be printed>"
    return quoted(text)[1:-1]


def described(error: BaseException) -> str:
    """Return an error's class and message."""
    return f"{escaped(type(error).__qualname__)}: {escaped(error)}"


def stack_lines(stack: Sequence[FrameSummary]) -> str:
    """Return a stack formatted like a traceback, with every line indented."""
    lines: list[str] = []
    for frame in stack:
        lines.append(
            f'  File "{escaped(frame.filename)}", line {frame.lineno}, in {escaped(frame.name)}'
        )
        if frame.line:
            lines.append(f"    {escaped(frame.line)}")
    return "\n".join(lines) or "  (no stack frames)"


def printable_traceback(error: BaseException) -> str | None:
    """Return the traceback of an error as text, or `None` if the handlers can format it.

    They can't if it is very long, has a message of several lines, or has characters that control a
    terminal, or that a file can't store. A lone surrogate would lose the whole record.
    """
    try:
        chunks = format_exception(type(error), error, error.__traceback__)
    except Exception:  # from attributes of the error
        return None
    text = "".join(chunks).rstrip("\n").expandtabs()
    safe = "\n".join(_lines(chunks)).rstrip("\n").expandtabs()
    lines = _shortened(safe, _LONGEST_TRACEBACK).split("\n")
    shown = "\n".join(line if line.isprintable() else _unprintable(line) for line in lines)
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


def _unprintable(line: str) -> str:
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in line
    )


def _shortened(text: str, most: int) -> str:
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} … {text[-half:]}"
