"""Names of queues, handlers and jobs, which become keys, subjects and file names."""

from __future__ import annotations

import re
from collections.abc import Collection
from inspect import unwrap
from os import getpid, urandom
from pathlib import Path
from socket import gethostname
from time import time_ns
from typing import Any, TypeGuard

from .._support.redacted import kind_of

_MAIN = ("__main__", "__mp_main__")  # the second one in processes of multiprocessing

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}", re.ASCII)

#: In the ids of ticks, and of the steps of chains and groups, which the library makes.
RESERVED = ".."


def is_name(name: object) -> TypeGuard[str]:
    """Return whether every broker can store a name."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def check_name(argument: str, name: object) -> str:
    """Return the name as a plain `str`, because a member of an `Enum` prints differently.

    Raises:
        ValueError: The name has characters that not every broker can store, or too many.
    """
    if not is_name(name):
        raise ValueError(
            f"{argument} must be 1 to 128 letters, digits and any of '_.:-', not {name!r}"
        )
    return str.__str__(name)


def check_new_id(id: object) -> str:
    """Return the id that a user gives to a new job as a plain `str`.

    Raises:
        ValueError: The id is not a name, or is one that only the library gives.
    """
    checked = check_name("id", id)
    if RESERVED in checked:
        raise ValueError(
            f"id can't contain {RESERVED!r}, which marks the ids of ticks and steps, but it is "
            f"{checked!r}"
        )
    return checked


def handler_name(fn: object) -> str:
    """Return a function's default name as a handler: its module and its qualified name.

    A script has the name by which workers import it, so that both give the same name.

    Raises:
        ValueError: The function has no such name.
    """
    module, qualname = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str):
        raise ValueError(f"name must be given, because a {kind_of(fn)} has no name")
    if module in _MAIN:
        module = _script(fn)
    name = f"{module}.{qualname.replace('<locals>.', '')}"
    return check_name("name", name)


def _script(fn: Any) -> str:
    """Return the name by which other processes import the script that defines a function."""
    # Not those of `sys.modules`, where profilers and debuggers are the main module.
    names: dict[str, Any] = getattr(unwrap(fn), "__globals__", {})
    spec = names.get("__spec__")
    if spec is not None and spec.name not in _MAIN:  # python -m name
        return str(spec.name)
    if names.get("__file__") is None:  # an interactive interpreter
        return "__main__"
    path = Path(names["__file__"])
    return path.parent.stem if path.stem == "__main__" else path.stem


def process_name() -> str:
    """Return a name for this process: its host, its id, and a random part.

    The random part makes it unique, because containers often share host names and process ids.
    """
    host = re.sub(r"[^A-Za-z0-9_.:]", "_", gethostname())[:64]
    return f"{host}.{getpid()}.{urandom(4).hex()}"


def listed(names: Collection[str], most: int) -> str:
    """Return names for a message, at most `most` of them."""
    shown = ", ".join([*names][:most]) or "none"
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def new_id() -> str:
    """Return a unique id for a job.

    Ids begin with the time. New ids are therefore neighbours in a broker's index, which keeps the
    index fast.
    """
    return f"{time_ns() >> 10:014x}{urandom(8).hex()}"


def new_ids(count: int) -> list[str]:
    """Return several ids; faster than repeated calls of `new_id`."""
    now, random = f"{time_ns() >> 10:014x}", urandom(8 * count).hex()
    return [now + random[place : place + 16] for place in range(0, 16 * count, 16)]
