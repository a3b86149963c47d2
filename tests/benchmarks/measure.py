"""Repetitions: who comes when."""

from __future__ import annotations

import gc
import random
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter as clock
from typing import TypeVar

__all__ = ["clock", "interleaved"]

T = TypeVar("T")


async def interleaved(
    contenders: Mapping[str, Callable[[], Awaitable[T]]], rounds: int
) -> dict[str, list[T]]:
    """Have each contender measure itself once a round, in a new order each time.

    What slows the machine down for a while slows all of them down, and nobody always comes after
    the same other one.
    """
    samples: dict[str, list[T]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            gc.collect()
            samples[name].append(await contenders[name]())
    return samples
