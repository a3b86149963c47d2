"""Untrusted text, escaped for log lines."""

from __future__ import annotations

from collections.abc import Sequence
from traceback import FrameSummary


def quoted(text: str) -> str:
    """Return the text as `repr()` does: quoted, with control characters escaped."""
    return str.__repr__(text)


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
