"""In which order a worker claims from its queues."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import log
from random import Random

from ..._support import validation
from .._names import check_name

_HEAVIEST = sys.float_info.max  # an int may be more than a float can hold


class Selection(ABC):
    """The base of `Ordered` and `Weighted`."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The names of the queues."""

    @abstractmethod
    def draw(self) -> tuple[str, ...]:
        """Return the queues in the order in which to claim from them this time."""


class Ordered(Selection):
    """Claims from the first queue first; the next one has its turn when that is empty.

    Args:
        *names: The names of the queues.

    Raises:
        ValueError: There is no name, a name occurs twice, or one is not valid.

    Example:
        ```python
        await jobs.start(manager, queues=Ordered("critical", "default"))
        ```
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
    """Claims from each queue first with the chance of its weight among all weights.

    The same holds for the second place among the queues that are left, and so on.

    Args:
        weights: A number above 0 for each queue.
        random: The source of chance; by default Python's own.

    Raises:
        ValueError: There is no queue, a name is not valid, or a weight is no finite number above 0.

    Example:
        ```python
        await jobs.start(manager, queues=Weighted({"high": 3, "low": 1}))
        ```
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
        # The largest keys of random() ** (1 / weight) come first as often as the weights ask for:
        # Efraimidis and Spirakis, https://doi.org/10.1016/j.ipl.2005.11.003
        # These are the keys' logarithms, which stay distinct for small and large weights.
        keys = {
            name: log(1 - self._random.random()) / weight for name, weight in self._weights.items()
        }
        return tuple(sorted(keys, key=keys.__getitem__, reverse=True))

    def __repr__(self) -> str:
        return f"Weighted({self._weights})"


def _checked(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("queues: at least one is needed")
    names = tuple(check_name("queues: the name of one", name) for name in names)
    if len(set(names)) < len(names):
        raise ValueError(f"queues: each can be named once only, not {', '.join(names)}")
    return names
