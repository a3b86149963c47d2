"""Exceptions by which a handler decides what happens to its job."""

from __future__ import annotations

from typing import Any

from .._support import validation


class Verdict(Exception):  # noqa: N818
    """The root of the exceptions that end an attempt without the job's policy."""


class Snooze(Verdict):
    """Run the job again later; the attempt does not count.

    Args:
        seconds: Seconds until the job is ready again.

    Raises:
        ValueError: `seconds` is not valid.

    Example:
        ```python
        @jobs.handler()
        async def sync_account(id: int) -> None:
            if await is_locked(id):
                raise Snooze(60)
        ```
    """

    def __init__(self, seconds: float) -> None:
        validation.seconds("seconds", seconds, at_least=0)
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"snoozed for {self.seconds:g} s"


class Discard(Verdict):
    """Make the job dead without further attempts.

    Args:
        reason: The message of the job's error.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class Cancel(Verdict):
    """Cancel the job.

    Args:
        reason: The reason, for observers and `JobInfo.error`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


def unwrapped(error: BaseException | None) -> BaseException | None:
    """Return the verdict in an exception group with nothing else in it, or the error itself."""
    leaf: Any = error
    while isinstance(leaf, BaseExceptionGroup) and len(leaf.exceptions) == 1:  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        (leaf,) = leaf.exceptions  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return leaf if isinstance(leaf, Verdict) else error
