"""What a run or an iteration came to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._handle import TaskHandle
from ._states import TaskStatus


class Outcome:
    """How a run or an iteration ended, after `duration` seconds, with a value or an error."""

    __slots__ = ("duration", "error", "status", "value")

    def __init__(
        self, status: TaskStatus, duration: float, value: Any, error: BaseException | None
    ) -> None:
        self.status = status
        self.duration = duration
        self.value = value
        self.error = error


Settle = Callable[[TaskHandle[Any], Outcome], None]
