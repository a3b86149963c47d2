"""In which order a worker looks into its queues."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import log
from random import Random

from ..._support import validation
from .. import _names

_HEAVIEST = sys.float_info.max  # as an int may be more than a float can hold


class Selection(ABC):
    """What `Ordered` and `Weighted` have in common."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The queues that are looked into."""

    @abstractmethod
    def draw(self) -> tuple[str, ...]:
        """Return the queues in the order in which to look into them this time."""


class Ordered(Selection):
    """Always the first queue first: the next one gets its turn when that is empty.

        await jobs.start(manager, queues=Ordered("critical", "default"))

    Raises `ValueError` for no names, a name twice, and what is not the name of a queue.
    """

    def __init__(self, *names: str) -> None:
        self._names = _checked(names)

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    def draw(self) -> tuple[str, ...]:
        return self._names

    def __repr__(self) -> str:
        return f"Ordered({', '.join(map(repr, self._names))})"


class Weighted(Selection):
    """Each queue first with a chance of its weight among all weights, and so on for the rest.

        await jobs.start(manager, queues=Weighted({"high": 3, "low": 1}))

    - `weights`: by queue, numbers above 0.
    - `random`: where chance comes from (default: Python's own).

    Raises `ValueError` for no queues, for what is not the name of one, and for a weight that is not
    a finite number above 0.
    """

    def __init__(self, weights: Mapping[str, float], *, random: Random | None = None) -> None:
        if not isinstance(weights, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"weights must be a mapping of queues to numbers, not {weights!r}")
        self._names = _checked(tuple(weights))
        for name, weight in weights.items():
            number = isinstance(weight, (int, float)) and not isinstance(weight, bool)  # pyright: ignore[reportUnnecessaryIsInstance]
            if not (number and 0 < weight <= _HEAVIEST):
                raise ValueError(
                    f"weights: that of {name} must be a finite number above 0, not {weight!r}"
                )
        self._weights = dict(zip(self._names, weights.values(), strict=True))
        if random is not None:
            validation.instances("random", (random,), Random)
        self._random = Random() if random is None else random

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    def draw(self) -> tuple[str, ...]:
        # With keys of random() ** (1 / weight) the largest come first just as often as their
        # weights ask for: Efraimidis and Spirakis, https://doi.org/10.1016/j.ipl.2005.11.003
        # These are the keys' logarithms, of which no two are the same for small or large weights.
        keys = {
            name: log(1 - self._random.random()) / weight for name, weight in self._weights.items()
        }
        return tuple(sorted(keys, key=keys.__getitem__, reverse=True))

    def __repr__(self) -> str:
        return f"Weighted({self._weights})"


def _checked(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("queues: at least one is needed")
    names = tuple(_names.check("queues: the name of one", name) for name in names)
    if len(set(names)) < len(names):
        raise ValueError(f"queues: each can be named once only, not {', '.join(names)}")
    return names
