"""Ids of test parameters that are the same in every process, as pytest-xdist requires."""

from __future__ import annotations

import re


def label(value: object) -> str:
    """Return the value as text, without memory addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
