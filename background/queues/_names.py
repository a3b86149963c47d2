"""Names of queues, handlers and jobs, which end up in keys, subjects and file names."""

from __future__ import annotations

import re
from os import urandom
from time import time_ns

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}", re.ASCII)


def check(argument: str, name: object) -> str:
    """Return the name as a plain `str`, which prints as what it is: a member of an `Enum` does not.

    Raises `ValueError` unless it is made of what every broker can take.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{argument} must be 1 to 128 letters, digits and any of '_.:-', not {name!r}"
        )
    return str.__str__(name)


def of_handler(fn: object) -> str:
    """Return a function's default name as a handler: its module and where it is in that.

    Raises `ValueError` for what has no such name.
    """
    module, qualname = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str):
        raise ValueError(f"name must be given for {fn!r}, which has none of its own")
    name = f"{module}.{qualname.replace('<locals>.', '')}"
    return check("name", name)


def new_id() -> str:
    """Return an id for a job that no other job has, in whichever process.

    Ids of about the same time are neighbours in a broker's index, which stays quick by that.
    """
    return f"{time_ns() >> 10:014x}{urandom(8).hex()}"


def new_ids(count: int) -> list[str]:
    """Return so many of them, which is less work than one by one."""
    now, random = f"{time_ns() >> 10:014x}", urandom(8 * count).hex()
    return [now + random[place : place + 16] for place in range(0, 16 * count, 16)]
