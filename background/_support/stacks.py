"""The stacks of coroutines and threads, without the frames of this library."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from traceback import FrameSummary, StackSummary, walk_tb
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any

import anyio

from .._errors import BackgroundError

_SUSPENDABLE: tuple[type[Any], ...] = (CoroutineType, GeneratorType, AsyncGeneratorType)
_LIBRARY = __name__.partition(".")[0]  # the package at the root
#: The folders of the standard library and of installed packages.
_INSTALLED = (str(Path(os.__file__).parent), str(Path(anyio.__file__).parents[1]))
_LONGEST_CHAIN = 100  # errors that are followed, because code can make a chain a circle
_WRAPPERS = {"coroutine_wrapper", "async_generator_asend", "async_generator_athrow"}


def of_coroutine(coroutine: Any) -> list[FrameSummary]:
    """Return the frames of a suspended or running coroutine, outermost first."""
    return _summarise(list(_awaited(coroutine)))


def of_thread(ident: int) -> list[FrameSummary]:
    """Return the frames of a thread from where this library called a function, outermost first.

    Empty once the function has returned.
    """
    frames: list[FrameType] = []
    frame = sys._current_frames().get(ident)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    frames.reverse()
    entry = next((place for place, item in enumerate(frames) if _is_ours(item)), len(frames))
    return _summarise(frames[entry:])


def place(stack: Sequence[FrameSummary]) -> str | None:
    """Return the file and the line of the innermost frame of the application.

    Of a stack that has only frames of libraries it is the outermost frame.
    """
    if not stack:
        return None
    own = [frame for frame in stack if not frame.filename.startswith(_INSTALLED)]
    frame = own[-1] if own else stack[0]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def place_of_cancellation(error: BaseException) -> str | None:
    """Return the file, line and function of the innermost frame of the application.

    In a traceback that has only frames of libraries it is the outermost frame.
    """
    oldest = _oldest_cancellation(error)
    frames = [item for item in walk_tb(oldest.__traceback__) if not _is_ours(item[0])]
    own = [item for item in frames if not item[0].f_code.co_filename.startswith(_INSTALLED)]
    places = [
        f"{Path(frame.f_code.co_filename).name}:{line} in {frame.f_code.co_qualname}"
        for frame, line in own[-1:] or frames[:1]
    ]
    return places[0] if places else None


def without_ours(error: BaseException) -> BaseException:
    """Remove this library's frames from the beginning of an error's traceback.

    If there are no others, they stay, because they may explain a fault of this library, unless the
    error is one that it raises on purpose.
    """
    traceback = error.__traceback__
    while traceback is not None and _is_ours(traceback.tb_frame):
        traceback = traceback.tb_next
    if traceback is None and not isinstance(error, (BackgroundError, TimeoutError)):
        return error
    return BaseException.with_traceback(error, traceback)


def _oldest_cancellation(error: BaseException) -> BaseException:
    """Return the cancellation that began a clean-up, if another one interrupted the clean-up."""
    cancelled = anyio.get_cancelled_exc_class()
    for _ in range(_LONGEST_CHAIN):
        # Other errors end the chain: a cancellation before a handled error has another reason.
        if not isinstance(error.__context__, cancelled):
            break
        error = error.__context__
    return error


def _awaited(suspended: Any) -> Iterator[FrameType]:
    while (suspended := _unwrapped(suspended)) is not None:
        kind = _kind(suspended)
        frame: FrameType | None = getattr(suspended, f"{kind}_frame")
        if frame is None:
            return
        yield frame
        if getattr(suspended, f"{kind}_running"):
            yield from _callees(frame)
            if kind != "ag":  # an async generator counts as running while it awaits, too
                return
        suspended = getattr(suspended, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")


def _kind(suspended: Any) -> str:
    if isinstance(suspended, CoroutineType):
        return "cr"
    return "gi" if isinstance(suspended, GeneratorType) else "ag"


def _unwrapped(awaited: Any) -> Any:
    if isinstance(awaited, _SUSPENDABLE):
        return awaited
    if type(awaited).__name__ not in _WRAPPERS:
        return None
    # Only the garbage collector has access to the wrapped objects.
    wrapped: list[Any] = gc.get_referents(awaited)
    return next((item for item in wrapped if isinstance(item, _SUSPENDABLE)), None)


def _callees(caller: FrameType) -> Iterator[FrameType]:
    inner: list[FrameType] = []
    frame: FrameType | None = sys._getframe()  # pyright: ignore[reportPrivateUsage]
    while frame is not None and frame is not caller:
        inner.append(frame)
        frame = frame.f_back
    if frame is caller:  # otherwise it runs in another thread
        yield from reversed(inner)


def _is_ours(frame: FrameType) -> bool:
    package: object = frame.f_globals.get("__package__")
    return isinstance(package, str) and package.partition(".")[0] == _LIBRARY


def _summarise(frames: Iterable[FrameType]) -> list[FrameSummary]:
    theirs = [(frame, frame.f_lineno) for frame in frames if not _is_ours(frame)]
    try:
        return list(StackSummary.extract(theirs))
    except Exception:  # from a module's own loader, when it is asked for the source
        return [
            FrameSummary(frame.f_code.co_filename, line, frame.f_code.co_name, line="")
            for frame, line in theirs
        ]
