"""What can be asked of a single job beyond its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypedDict

from ..._support import validation
from ..._support.frozen import record
from .. import _names


class OptionsGiven(TypedDict, total=False):
    """The options of a job, as they are given."""

    delay: float
    at: float | datetime | None
    id: str | None
    queue: str | None
    expires: float | None
    retry: int | None
    timeout: float | None
    meta: Mapping[str, Any] | None


@record
class Options:
    """The options of a job, checked.

    - `delay`: seconds until it may start (default 0); `at`: or when, as a `datetime` with a time
      zone or in seconds since the epoch.
    - `id`: its name; a second job with the same one is refused for as long as the first is known.
    - `queue`, `expires` (seconds until it must have been started), `timeout` (seconds for one
      attempt): instead of the handler's.
    - `retry`: a number of attempts instead of the handler's policy. A policy itself can't travel.
    - `meta`: plain data for observers and `JobContext.meta`.
    """

    delay: float = 0.0
    at: float | None = None
    id: str | None = None
    queue: str | None = None
    expires: float | None = None
    retry: int | None = None
    timeout: float | None = None
    meta: Mapping[str, Any] | None = None


NONE_GIVEN = Options()


def check(given: OptionsGiven) -> Options:
    """Return options that can work. Raises `ValueError`, naming the one that can't.

    Raises `TypeError` for one that does not exist.
    """
    if unknown := given.keys() - Options.__dataclass_fields__.keys():
        raise TypeError(
            f"a job has no option {', '.join(sorted(unknown))}, only "
            f"{', '.join(Options.__dataclass_fields__)}"
        )
    at = given.get("at")
    if isinstance(at, datetime):
        if at.utcoffset() is None:
            raise ValueError(f"at must have a time zone, such as UTC, and {at} has none")
        at = at.timestamp()
    values: dict[str, Any] = {**given, "at": at}
    for argument in ("id", "queue"):
        if values.get(argument) is not None:
            values[argument] = _names.check(argument, values[argument])
    options = Options(**values)
    validation.seconds("delay", options.delay, at_least=0)
    validation.optional(validation.seconds, "at", options.at)
    if options.at is not None and options.delay:
        raise ValueError("delay and at can't both be given: each says when the job may start")
    for argument in ("expires", "timeout"):
        validation.optional(validation.seconds, argument, getattr(options, argument), above=0)
    if options.retry is not None and not _is_count(options.retry):
        raise ValueError(
            f"retry must be a number of attempts of at least 1, not {options.retry!r}; a policy "
            "belongs to the handler, as it can't travel with a job"
        )
    if options.meta is not None and not isinstance(options.meta, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"meta must be a mapping, not {options.meta!r}")
    return options


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
