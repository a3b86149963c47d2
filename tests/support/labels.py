"""Ids of parameters that are the same in every process, as pytest-xdist needs them."""

from __future__ import annotations

import re


def label(value: object) -> str:
    """Return the value as text, without addresses in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
