"""The wall clock and busy threads, in one place so that virtual time can be told of them."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Seconds since the epoch. Call it as `_clock.wall()`, never by a name of your own.
wall = time.time

#: Told of each sync function that starts (1) or ends (-1) in a thread; likewise to be called as
#: `_clock.on_thread()`.
on_thread: Callable[[int], None] = lambda change: None  # noqa: E731

#: The same of what is done in a thread and ends whatever time it is, as reads and writes of a file.
on_io: Callable[[int], None] = lambda change: None  # noqa: E731
