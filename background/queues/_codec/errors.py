"""The encoding of errors as text."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any

from .._errors import JobFailedError

_LONGEST = 10_000  # characters of a message or a traceback; longer texts lose their middle


def describe(error: BaseException) -> dict[str, Any]:
    """Return an error's class, message and traceback as texts."""
    return {
        "type": _shortened(_text(error, _name)),
        "message": _shortened(_text(error, str)),
        "traceback": _shortened(_text(error, _trace)),
    }


def failed(id: str, error: Mapping[str, Any] | None) -> JobFailedError:
    """Return the error that the handle of a dead job raises.

    Args:
        id: The job's id.
        error: The stored error, which may have any content.
    """
    stored = error or {}
    texts = (stored.get(name) for name in ("type", "message", "traceback"))
    kind, message, trace = (text if isinstance(text, str) else "" for text in texts)
    return JobFailedError(id, kind or "unknown", message, trace)


def _name(error: BaseException) -> str:
    module, name = type(error).__module__, type(error).__qualname__
    return name if module == "builtins" else f"{module}.{name}"


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _text(error: BaseException, of: Callable[[BaseException], str]) -> str:
    try:
        return of(error)
    except Exception:  # from methods and attributes of the error's class
        return "(can't be printed)"


def _shortened(text: str) -> str:
    text = text.encode(errors="backslashreplace").decode()  # lone surrogates can't be encoded
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]}\n…\n{text[-half:]}"
