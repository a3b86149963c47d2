"""Where a coroutine or a thread stands now."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from traceback import FrameSummary, StackSummary
from types import FrameType
from typing import Any


def of_coroutine(coroutine: Any) -> list[FrameSummary]:
    """Return the frames of a suspended or running coroutine, outermost first."""
    return _summarise(_awaited(coroutine))


def of_thread(ident: int) -> list[FrameSummary]:
    """Return the frames of a thread below this library's own, outermost first."""
    frames: list[FrameType] = []
    frame = sys._current_frames().get(ident)  # pyright: ignore[reportPrivateUsage]
    while frame is not None and not _is_ours(frame):
        frames.append(frame)
        frame = frame.f_back
    return _summarise(reversed(frames))


def _awaited(coroutine: Any) -> Iterator[FrameType]:
    while coroutine is not None:
        for kind in ("cr", "gi", "ag"):
            frame: FrameType | None = getattr(coroutine, f"{kind}_frame", None)
            if frame is not None:
                yield frame
                if getattr(coroutine, f"{kind}_running", False):
                    yield from _callees(frame)
                    return
                break
        else:
            return
        awaited = "gi_yieldfrom" if kind == "gi" else f"{kind}_await"
        coroutine = getattr(coroutine, awaited, None)


def _callees(caller: FrameType) -> Iterator[FrameType]:
    inner: list[FrameType] = []
    frame: FrameType | None = sys._getframe()  # pyright: ignore[reportPrivateUsage]
    while frame is not None and frame is not caller:
        inner.append(frame)
        frame = frame.f_back
    if frame is caller:  # else it runs in another thread
        yield from reversed(inner)


def _is_ours(frame: FrameType) -> bool:
    return frame.f_globals.get("__package__") == __package__


def _summarise(frames: Iterator[FrameType]) -> list[FrameSummary]:
    theirs = ((frame, frame.f_lineno) for frame in frames if not _is_ours(frame))
    return list(StackSummary.extract(theirs))
