"""Chains and groups, whose jobs depend on other jobs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar, overload

from ..._observer import Observer
from ..._support.redacted import kind_of
from .._codec.body import DEEPEST, Shape
from .._names import RESERVED
from ..abc import Message
from .messages import Place, Terms, last_message, message
from .options import CheckedOptions

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_SHOWN = 10  # steps in the `repr()` of a chain or group


class Step(ABC, Generic[T_co]):
    """One or several jobs that are not enqueued yet; the parameter is the type of the result.

    Made by `handler.job()`, `chain()` and `group()`, for `JobQueue.enqueue()`.
    """

    __slots__ = ("depth",)

    depth: int

    @abstractmethod
    def load_result(self, plain: Any) -> T_co:
        """Convert the plain data of a result by the annotations of the handlers."""


class Single(Step[T_co]):
    """One job."""

    __slots__ = ("_load_result", "args", "kwargs", "observers", "options", "terms")

    def __init__(
        self,
        terms: Terms,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: CheckedOptions,
        observers: tuple[Observer, ...],
        load_result: Callable[[Any], T_co],
    ) -> None:
        self.depth = 0
        self.terms = terms
        self.args = args
        self.kwargs = kwargs
        self.options = options
        self.observers = observers
        self._load_result = load_result

    def load_result(self, plain: Any) -> T_co:
        return self._load_result(plain)

    def __repr__(self) -> str:
        return f"<job of {self.terms.name!r}>"

    def message(self, id: str | None, max_payload: int) -> Message:
        """Return the job's message."""
        options = self.options if id is None else replace(self.options, id=id)
        return message(self.terms, self.args, self.kwargs, options, max_payload)


class Steps(Step[T_co]):
    """Several steps that are one: a chain or a group."""

    __slots__ = ("steps",)

    def __init__(self, steps: Sequence[Step[Any]]) -> None:
        name = type(self).__name__.lower()
        if not steps:
            raise ValueError(f"{name}() needs at least one step")
        for step in steps:
            if not isinstance(step, Step):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(
                    f"a step of {name}() must be made by handler.job(), chain() or group(), "
                    f"not {kind_of(step)}; pass several as {name}(*steps)"
                )
        self.steps = steps
        self.depth = 1 + max(step.depth for step in steps)
        if self.depth > DEEPEST:
            raise ValueError(f"chains and groups can be nested at most {DEEPEST} deep")

    def __repr__(self) -> str:
        listed = [repr(step) for step in self.steps[:_SHOWN]]
        if len(self.steps) > _SHOWN:
            listed.append(f"… {len(self.steps) - _SHOWN} more")
        return f"{type(self).__name__.lower()}({', '.join(listed)})"


class Chain(Steps[T_co]):
    """Steps that run one after the other."""

    __slots__ = ()

    def load_result(self, plain: Any) -> Any:
        return self.steps[-1].load_result(plain)


class Group(Steps[T_co]):
    """Steps that run at the same time."""

    __slots__ = ()

    def load_result(self, plain: Any) -> Any:
        return [step.load_result(part) for step, part in zip(self.steps, plain, strict=True)]


@overload
def chain(*steps: *tuple[*tuple[Step[Any], ...], Step[T]]) -> Step[T]: ...
@overload
def chain(*steps: Step[T]) -> Step[T]: ...  # pyright: ignore[reportOverlappingOverload]  # chain(*steps)
def chain(*steps: Step[Any]) -> Step[Any]:  # type: ignore[misc]  # they are the same
    """Run every step after the previous one has succeeded; the result is that of the last step.

    A step reads the result of the previous step from `JobContext.previous`. If a step fails, all
    later steps are dead. Steps may be chains and groups. `JobContext.previous` is plain data, which
    is not converted by annotations.

    Args:
        *steps: The steps, in order.

    Returns:
        A step for `JobQueue.enqueue()`, `chain()` and `group()`.

    Raises:
        ValueError: There are no steps, or they are nested more than 50 deep.
        TypeError: An argument is not a step.

    Example:
        ```python
        job = await jobs.enqueue(chain(fetch.job(url), parse.job(), store.job(table="pages")))
        ```
    """
    return Chain(steps)


def group(*steps: Step[T]) -> Step[list[T]]:
    """Run steps at the same time; the result is the list of their results, in this order.

    It succeeds when all of them do. A step after a group in a chain reads the list from
    `JobContext.previous`.

    Args:
        *steps: The steps.

    Returns:
        A step for `JobQueue.enqueue()`, `chain()` and `group()`.

    Raises:
        ValueError: There are no steps, or they are nested more than 50 deep.
        TypeError: An argument is not a step.

    Example:
        ```python
        job = await jobs.enqueue(group(*[fetch.job(url) for url in urls]))
        ```
    """
    return Group(steps)


#: The jobs whose results make up a step's result: one, or a list.
Exits = str | list["Exits"]


class Compiler:
    """Makes the messages of a chain or group, in the order of their dependencies.

    `steps` are the single jobs of the messages, except for the last message, which represents the
    chain or group.

    Args:
        id: The id of the chain or group.
        terms: The queue and the retention of the job that represents it.
        max_payload: The most bytes of a body.
    """

    def __init__(self, id: str, terms: Terms, max_payload: int) -> None:
        self.steps: list[Single[Any]] = []
        self._id = id
        self._terms = terms
        self._max_payload = max_payload
        self._messages: list[Message] = []

    def compile(self, step: Step[Any]) -> list[Message]:
        """Return the messages; the last one represents the chain or group."""
        depends_on, shape = _numbered(self._add(step, (), None))
        members = [made.id for made in self._messages]
        terms = replace(
            self._terms,
            retention=max(self._terms.retention, *(made.retention for made in self._messages)),
        )
        last = last_message(terms, self._id, depends_on, shape, members, self._max_payload)
        return [*self._messages, last]

    def _add(self, step: Step[Any], depends_on: tuple[str, ...], shape: Shape | None) -> Exits:
        """Add the jobs of a step; return the jobs whose results make up its result."""
        if isinstance(step, Group):
            return [self._add(member, depends_on, shape) for member in step.steps]
        if isinstance(step, Chain):
            exits: Exits = []
            for member in step.steps:
                exits = self._add(member, depends_on, shape)
                depends_on, shape = _numbered(exits)
            return exits
        assert isinstance(step, Single)
        id = f"{self._id}{RESERVED}{len(self._messages) + 1}"
        place = Place(id=id, depends_on=depends_on, previous=shape)
        made = message(step.terms, step.args, step.kwargs, step.options, self._max_payload, place)
        self._messages.append(made)
        self.steps.append(step)
        return made.id


def _numbered(exits: Exits) -> tuple[tuple[str, ...], Shape]:
    """Return the ids of the jobs, and the structure of their results."""
    ids: list[str] = []

    def number(exit: Exits) -> Shape:
        if isinstance(exit, str):
            ids.append(exit)
            return len(ids) - 1
        return [number(inner) for inner in exit]

    shape = number(exits)
    return tuple(ids), shape
