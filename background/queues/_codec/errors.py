"""The encoding of errors as text."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from .._errors import JobFailedError

MOST_KEPT = 20  #: failed attempts that are stored with an error

_LONGEST_KEPT = 500  # characters of the message of such an attempt
_LONGEST = 10_000  # characters of a message or a traceback; longer texts lose their middle


@dataclass(slots=True)
class FailedAttempt:
    """A failed attempt, as it is stored with the job's error.

    Args:
        number: The number of the attempt.
        started_at: When it began, in seconds since the epoch.
        finished_at: When it ended.
        token: The token of its claim.
        type: The class of its error.
        message: The message of its error, or its beginning.
    """

    number: int
    started_at: float
    finished_at: float
    token: str
    type: str
    message: str

    def __post_init__(self) -> None:
        self.message = self.message[:_LONGEST_KEPT]


def describe(error: BaseException, *, with_traceback: bool = True) -> dict[str, Any]:
    """Return an error's class, message and traceback as texts."""
    described = {
        "type": _shortened(_text(error, _name)),
        "message": _shortened(_text(error, str)),
    }
    if with_traceback:
        described["traceback"] = _shortened(_text(error, _trace))
    return described


def earlier_attempts(error: Mapping[str, Any] | None) -> list[FailedAttempt]:
    """Return the failed attempts that are stored with an error, which may have any content."""
    stored: object = (error or {}).get("attempts")
    attempts: list[FailedAttempt] = []
    for entry in cast(list[object], stored) if isinstance(stored, list) else ():
        match entry:
            case [
                int() as number,
                int() | float() as started_at,
                int() | float() as finished_at,
                str() as token,
                str() as kind,
                str() as message,
            ]:
                failed = FailedAttempt(number, started_at, finished_at, token, kind, message)
                attempts.append(failed)
            case _:  # pyright: ignore[reportUnknownVariableType]
                pass
    return attempts


def failed(id: str, error: Mapping[str, Any] | None) -> JobFailedError:
    """Return the error that the handle of a dead job raises.

    Args:
        id: The job's id.
        error: The stored error, which may have any content.
    """
    stored: Mapping[str, Any] = error or {}
    if "type" not in stored and isinstance(stored.get("postponed"), Mapping):
        stored = stored["postponed"]  # no attempt has failed
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
