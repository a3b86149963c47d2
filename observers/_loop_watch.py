"""A thread that notices when the event loop does not turn."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread, get_ident
from time import monotonic
from traceback import FrameSummary, StackSummary
from types import FrameType
from typing import Any, cast

from anyio.lowlevel import current_token

from ._log_text import quoted, stack_lines

_PARTS = 4  # of the time after which a loop counts as blocked
_LATE = 0.1  # seconds that the thread may be late besides the part itself
_MOST_FRAMES = 30
_LIBRARY = __name__.partition(".")[0]

_logger = logging.getLogger("background")


class LoopWatch:
    """Logs that the running event loop is blocked, with the stack of its thread, and its end.

    A daemon thread asks the loop for an answer, four times in the time after which it counts as
    blocked. Time in which this thread could not run does not count: the process was suspended then.

    Args:
        manager: The name of the manager, for the log.
        blocked: Seconds without an answer after which the loop is blocked.
        clock: Returns seconds, for the thread.
    """

    def __init__(
        self, manager: str, blocked: float, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._manager = manager
        self._blocked = blocked
        self._part = self._pause = blocked / _PARTS
        self._clock = clock
        self._loop_thread = get_ident()
        self._native = cast(Any, current_token().native_token)
        is_asyncio = hasattr(self._native, "call_soon_threadsafe")
        self._post: Callable[[Callable[[], object]], object] = (
            self._native.call_soon_threadsafe if is_asyncio else self._native.run_sync_soon
        )
        self._is_asyncio = is_asyncio
        self._answers: SimpleQueue[bool] = SimpleQueue()  # whether to continue
        self.thread = Thread(target=self._run, name="background watch of the loop", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def stop(self) -> None:
        """Let the thread end, without waiting for it."""
        self._answers.put(False)

    def _run(self) -> None:
        goes_on: bool | None = True
        while goes_on:
            asked = self._clock()
            try:
                self._post(partial(self._answers.put, True))
            except RuntimeError:  # the loop has ended
                return
            goes_on = self._wait()
            if goes_on is None:
                self._report_block()
                goes_on = self._answers.get()
                self._report_end(self._clock() - asked)
            if goes_on:
                goes_on = self._next_answer(self._pause) is None

    def _wait(self) -> bool | None:
        """Wait for an answer; return `None` if the loop is blocked."""
        waited = 0
        while waited < _PARTS:
            began = self._clock()
            answer = self._next_answer(self._part)
            if answer is not None:
                return answer
            if self._clock() - began < 2 * self._part + _LATE:
                waited += 1
        return None

    def _next_answer(self, timeout: float) -> bool | None:
        try:
            return self._answers.get(timeout=timeout)
        except Empty:
            return None

    def _report_block(self) -> None:
        stack, task = self._stack(), self._task_name()
        _logger.warning(
            "event loop of manager %s has been blocked for %g s%s\n%s",
            quoted(self._manager),
            self._blocked,
            "" if task is None else f" by task {quoted(task)}",
            stack_lines(stack),
        )

    def _report_end(self, seconds: float) -> None:
        text = "event loop of manager %s turns again; it was blocked for at least %.3g s"
        _logger.warning(text, quoted(self._manager), seconds)

    def _task_name(self) -> str | None:
        """Return the name of the running task; trio does not give it to other threads."""
        if not self._is_asyncio:
            return None
        import asyncio

        task = asyncio.current_task(self._native)
        return None if task is None else task.get_name()

    def _stack(self) -> list[FrameSummary]:
        """Return the frames of the loop's thread below those of this library, outermost first."""
        frames: list[tuple[FrameType, int]] = []
        frame = sys._current_frames().get(self._loop_thread)  # pyright: ignore[reportPrivateUsage]
        while frame is not None and not (frames and _is_ours(frame)):
            frames.append((frame, frame.f_lineno))
            frame = frame.f_back
        return StackSummary.extract(reversed(frames[:_MOST_FRAMES]))


def _is_ours(frame: FrameType) -> bool:
    package: object = frame.f_globals.get("__package__")
    return isinstance(package, str) and package.partition(".")[0] == _LIBRARY
