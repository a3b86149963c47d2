"""What other people wrote, made safe for a line of a log."""

from __future__ import annotations

from collections.abc import Sequence
from traceback import FrameSummary


def quoted(text: str) -> str:
    """Return the text as `repr()` does, in which nothing breaks a line or hides what it says."""
    return str.__repr__(text)


def escaped(value: object) -> str:
    """Return the value as text, escaped as in `quoted` but without the quotes; never raises."""
    try:
        text = str(value)
    except Exception:
        text = f"<{type(value).__qualname__} that can't be printed>"
    return quoted(text)[1:-1]


def described(error: BaseException) -> str:
    """Return an error's class and message."""
    return f"{escaped(type(error).__qualname__)}: {escaped(error)}"


def stack_lines(stack: Sequence[FrameSummary]) -> str:
    """Return a stack in the manner of a traceback, indented."""
    lines: list[str] = []
    for frame in stack:
        lines.append(
            f'  File "{escaped(frame.filename)}", line {frame.lineno}, in {escaped(frame.name)}'
        )
        if frame.line:
            lines.append(f"    {escaped(frame.line)}")
    return "\n".join(lines) or "  (no frame of its own)"
