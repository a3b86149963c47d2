"""Interleaved measurements."""

from __future__ import annotations

import gc
import random
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter as clock
from typing import TypeVar

__all__ = ["clock", "interleave"]

T = TypeVar("T")


async def interleave(
    contenders: Mapping[str, Callable[[], Awaitable[T]]], rounds: int
) -> dict[str, list[T]]:
    """Measure every contender once per round, in random order.

    A temporary slowdown of the machine then affects all contenders, and none always runs after the
    same one.
    """
    samples: dict[str, list[T]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            gc.collect()
            samples[name].append(await contenders[name]())
    return samples
