"""The errors that this library raises."""

from __future__ import annotations


class BackgroundError(Exception):
    """The root of this library's errors."""


class ManagerMisuseError(BackgroundError, RuntimeError):
    """A manager was used where it can't work; the message says where it can."""


class ManagerNotRunningError(BackgroundError):
    """The manager has not been entered yet."""


class ManagerClosedError(BackgroundError):
    """The manager is closing or closed, and accepts no more tasks."""


class LoopsStoppedError(ManagerClosedError):
    """The manager's loops were stopped, and it accepts no more of them."""


class ManagerFullError(BackgroundError):
    """As many one-off tasks are outstanding as the manager's `capacity` allows."""


class DuplicateTaskError(BackgroundError):
    """An outstanding task has the same id."""


class InvalidTaskError(BackgroundError, ValueError):
    """A task can't be run as described; the message names the argument."""


class TaskCancelledError(BackgroundError):
    """The awaited task was cancelled.

    Args:
        name: The task's name.
        id: The task's id.
        reason: What was passed to `cancel()`; `"shutdown"` if the manager closed before the task
            ended; `"stopped"` for a loop that was stopped; `"cancelled from outside the manager"`,
            for example by the event loop; or `None`.
    """

    def __init__(self, name: str, id: str, reason: str | None) -> None:
        super().__init__(name, id, reason)
        self.name = name
        self.id = id
        self.reason = reason

    def __str__(self) -> str:
        because = f": {self.reason}" if self.reason else ""
        return f"task {self.name!r} ({self.id}) was cancelled{because}"


class TaskExpiredError(BackgroundError):
    """The awaited task's lifespan ended before the task did.

    Args:
        name: The task's name.
        id: The task's id.
        lifespan: The lifespan in seconds.
    """

    def __init__(self, name: str, id: str, lifespan: float) -> None:
        super().__init__(name, id, lifespan)
        self.name = name
        self.id = id
        self.lifespan = lifespan

    def __str__(self) -> str:
        return f"task {self.name!r} ({self.id}) outlived its lifespan of {self.lifespan:g} s"


def is_fatal(error: BaseException) -> bool:
    """Return whether the error must end the program, wherever it was raised."""
    # Not with `subgroup()`, which is recursive and calls methods of the group's class.
    left = [error]
    while left:
        part = left.pop()
        if isinstance(part, (KeyboardInterrupt, SystemExit)):
            return True
        if isinstance(part, BaseExceptionGroup):
            left.extend(part.exceptions)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    return False
