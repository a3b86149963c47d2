"""The options of a single job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, TypedDict

from ..._support import redacted, validation
from .._names import check_name, check_new_id


class JobOptions(TypedDict, total=False):
    """The options of a job, as `Handler.options()` takes them."""

    delay: float
    at: float | datetime | None
    id: str | None
    queue: str | None
    expires: float | None
    retry: int | None
    timeout: float | None
    meta: Mapping[str, Any] | None


@dataclass(slots=True, repr=False)
class CheckedOptions:
    """The checked options of a job; `at` is in seconds since the epoch."""

    delay: float = 0.0
    at: float | None = None
    id: str | None = None
    queue: str | None = None
    expires: float | None = None
    retry: int | None = None
    timeout: float | None = None
    meta: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        """Return the options that are not the defaults, without values of the metadata."""
        given = {name: getattr(self, name) for name in _NAMES}
        return redacted.options({name: value for name, value in given.items() if value})


NO_OPTIONS = CheckedOptions()
_NAMES = tuple(field.name for field in fields(CheckedOptions))


def check(given: JobOptions) -> CheckedOptions:
    """Check options, and return them.

    Raises:
        TypeError: There is no such option.
        ValueError: An option is not valid; the message names it.
    """
    if unknown := given.keys() - set(_NAMES):
        raise TypeError(
            f"a job has no option {', '.join(sorted(unknown))}, only {', '.join(_NAMES)}"
        )
    at = given.get("at")
    if isinstance(at, datetime):
        if at.utcoffset() is None:
            raise ValueError(f"at must have a time zone, such as UTC, but {at} has none")
        at = at.timestamp()
    values: dict[str, Any] = {**given, "at": at}
    if values.get("id") is not None:
        values["id"] = check_new_id(values["id"])
    if values.get("queue") is not None:
        values["queue"] = check_name("queue", values["queue"])
    options = CheckedOptions(**values)
    validation.seconds("delay", options.delay, at_least=0)
    validation.optional(validation.seconds, "at", options.at)
    if options.at is not None and options.delay:
        raise ValueError("delay and at can't both be given: both say when the job may start")
    for argument in ("expires", "timeout"):
        validation.optional(validation.seconds, argument, getattr(options, argument), above=0)
    if options.retry is not None and not _is_count(options.retry):
        raise ValueError(
            f"retry must be a number of attempts of at least 1, not {options.retry!r}; a policy "
            "belongs to the handler, because it can't be stored with a job"
        )
    if options.meta is not None and not isinstance(options.meta, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"meta must be a mapping, not a {type(options.meta).__qualname__}")
    return options


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
