"""Calls in forked child processes.

A forked child has copies of its parent's objects, without the threads and event loops that they
depend on, and shares its parent's sockets.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakMethod

_methods: dict[WeakMethod[Callable[[], Any]], None] = {}


def call_in_child(method: Callable[[], Any]) -> None:
    """Call a bound method in each forked child for as long as its object exists.

    Methods that were registered later are called earlier.
    """
    _methods[WeakMethod(method, _methods.pop)] = None


def _call_methods() -> None:
    found = (reference() for reference in reversed(list(_methods)))
    for method in [method for method in found if method is not None]:
        method()


with suppress(AttributeError):  # there is no fork on Windows
    os.register_at_fork(after_in_child=_call_methods)
