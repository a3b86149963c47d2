"""Chains and groups: jobs that start when others have succeeded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from ..._observer import Observer
from .._codec.body import DEEPEST, Shape
from ..abc import Message
from .messages import Place, Terms, end, message
from .options import Options

T = TypeVar("T")


class Step(Generic[T]):
    """A job, or several, not yet enqueued; `T` is the type of the result.

    Made by `handler.job()`, `chain()` and `group()`, for `JobQueue.enqueue()`.
    """

    __slots__ = ("depth",)

    depth: int


class Single(Step[T]):
    """One job."""

    __slots__ = ("args", "kwargs", "observers", "options", "terms")

    def __init__(
        self,
        terms: Terms,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Options,
        observers: tuple[Observer, ...],
    ) -> None:
        self.depth = 0
        self.terms = terms
        self.args = args
        self.kwargs = kwargs
        self.options = options
        self.observers = observers


class Composite(Step[T]):
    """What `chain()` and `group()` make."""

    __slots__ = ("steps",)

    def __init__(self, steps: Sequence[Step[Any]]) -> None:
        name = type(self).__name__.lower()
        if not steps:
            raise ValueError(f"{name}() needs at least one step")
        for step in steps:
            if not isinstance(step, Step):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(
                    f"a step of {name}() must be made by handler.job(), chain() or group(), "
                    f"not {step!r}; several are given as {name}(*steps)"
                )
        self.steps = steps
        self.depth = 1 + max(step.depth for step in steps)
        if self.depth > DEEPEST:
            raise ValueError(f"chains and groups can be nested {DEEPEST} deep, and no deeper")


class Chain(Composite[T]):
    """Steps one after the other."""

    __slots__ = ()


class Group(Composite[T]):
    """Steps beside each other."""

    __slots__ = ()


def chain(*steps: Step[Any]) -> Step[Any]:
    """Let each step start when the one before it has succeeded; the result is that of the last.

    A step reads the result of the one before it from `JobContext.previous`. If a step fails, those
    after it are dead. Steps may be chains and groups themselves.

        job = await jobs.enqueue(chain(fetch.job(url), parse.job(), store.job(table="pages")))

    Results that pass from step to step, and the whole's, are plain data: nothing is made of them
    by the annotations of a step.

    Raises `ValueError` without steps and for more than 50 levels, `TypeError` for what is no step.
    """
    return Chain(steps)


def group(*steps: Step[T]) -> Step[list[T]]:
    """Let steps run beside each other; the result is the list of theirs, in this order.

    It succeeds when all of them do. A step after a group in a chain reads the list from
    `JobContext.previous`. Raises as `chain()`.

        job = await jobs.enqueue(group(*[fetch.job(url) for url in urls]))
    """
    return Group(steps)


#: Jobs whose results make up one: a single one's, or a list of such.
Exits = str | list["Exits"]


class Compiler:
    """Makes the messages of a composite, each after those that it needs.

    `steps` are what they were made of, but for the last one, which stands for the composite.
    """

    def __init__(self, id: str, queue: str, keep: float, max_payload: int) -> None:
        self._id = id
        self._queue = queue
        self._keep = keep
        self._max_payload = max_payload
        self._messages: list[Message] = []
        self.steps: list[Single[Any]] = []

    def compile(self, composite: Step[Any]) -> list[Message]:
        """Return the messages; the last one is what stands for the composite."""
        needs, shape = _numbered(self._add(composite, (), None))
        members = [each.id for each in self._messages]
        keep = max(self._keep, *(each.keep for each in self._messages))
        last = end(self._id, self._queue, keep, needs, shape, members, self._max_payload)
        return [*self._messages, last]

    def _add(self, step: Step[Any], needs: tuple[str, ...], shape: Shape | None) -> Exits:
        """Add what a step consists of; return the jobs whose results are its own."""
        if isinstance(step, Group):
            return [self._add(each, needs, shape) for each in step.steps]
        if isinstance(step, Chain):
            exits: Exits = []
            for each in step.steps:
                exits = self._add(each, needs, shape)
                needs, shape = _numbered(exits)
            return exits
        assert isinstance(step, Single)
        place = Place(id=f"{self._id}.{len(self._messages) + 1}", needs=needs, previous=shape)
        made = message(step.terms, step.args, step.kwargs, step.options, self._max_payload, place)
        self._messages.append(made)
        self.steps.append(step)
        return made.id


def _numbered(exits: Exits) -> tuple[tuple[str, ...], Shape]:
    """Return the jobs in a row, and how their results go together."""
    ids: list[str] = []

    def number(each: Exits) -> Shape:
        if isinstance(each, str):
            ids.append(each)
            return len(ids) - 1
        return [number(inner) for inner in each]

    shape = number(exits)
    return tuple(ids), shape
