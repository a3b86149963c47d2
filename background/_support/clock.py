"""The wall clock, and hooks that make virtual time wait for calls in threads."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Seconds since the epoch. Call it as `clock.wall()`, because tests replace it.
wall = time.time

#: Called with 1 when a sync function starts in a thread and with -1 when it ends. Call it as
#: `clock.on_thread()`.
on_thread: Callable[[int], None] = lambda change: None  # noqa: E731

#: The same for input and output in a thread, which needs no other code to finish.
on_io: Callable[[int], None] = lambda change: None  # noqa: E731
