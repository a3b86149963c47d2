"""The wall clock, in one place so that virtual time can stand in for it."""

from __future__ import annotations

import time

#: Seconds since the epoch. Call it as `_clock.wall()`, never by a name of your own.
wall = time.time
