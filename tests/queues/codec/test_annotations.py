"""Types of parameters and results, taken from annotations."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypedDict, TypeVar, Unpack
from uuid import UUID

import pytest

from background.queues._codec.signatures import (
    NOTHING,
    Hint,
    hint_of_result,
    hints_of_parameters,
    shown,
    signature_of,
)

if TYPE_CHECKING:
    from nowhere import Missing  # type: ignore[import-not-found]

P = ParamSpec("P")
T = TypeVar("T")


class Options(TypedDict):
    subject: str


def plain(when: datetime, id: UUID | None = None) -> list[UUID]:
    return []


class Mailer:
    def send(self, when: datetime, id: UUID | None = None) -> list[UUID]:
        return []

    def __call__(self, when: datetime, id: UUID | None = None) -> list[UUID]:
        return []


@functools.wraps(plain)
def wrapped(*args: Any, **kwargs: Any) -> Any: ...


CALLABLES: dict[str, Callable[..., Any]] = {
    "a function": plain,
    "a method": Mailer().send,
    "a callable": Mailer(),
    "a partial": functools.partial(plain),
    "a partial of a method": functools.partial(functools.partial(Mailer().send)),
    "a function that wraps another": wrapped,
}


def hints(fn: Callable[..., Any]) -> dict[str, Any]:
    fn, _ = shown(fn)
    return {name: hint.type for name, hint in hints_of_parameters(fn, signature_of(fn)).items()}


@pytest.mark.parametrize("fn", CALLABLES.values(), ids=CALLABLES)
def test_callables(fn: Callable[..., Any]) -> None:
    """Methods, callable objects, partials and wrappers have the types of the function."""
    assert hints(fn) == {"when": datetime, "id": UUID | None}
    fn, _ = shown(fn)
    assert hint_of_result(fn, signature_of(fn)).type == list[UUID]


def test_class() -> None:
    """A class has the types of its constructor."""

    class Job:
        def __init__(self, when: datetime) -> None: ...

    assert hints(Job) == {"when": datetime}


def test_partial_arguments() -> None:
    """A partial has no types of the arguments that it provides."""
    assert hints(functools.partial(plain, datetime.max)) == {"id": UUID | None}


def test_no_signature() -> None:
    """A callable without a signature takes any arguments."""
    assert hints(dict) == {"args": NOTHING, "kwargs": NOTHING}


def test_unresolved_annotations() -> None:
    """An annotation that can't be resolved doesn't affect the remaining ones."""

    def fn(a: Missing, b: list[Missing], c: datetime, d: 1 / 0) -> Missing: ...  # type: ignore

    found = hints_of_parameters(fn, signature_of(fn))
    unknown = Hint(unresolved="NameError: name 'Missing' is not defined")
    assert found == {
        "a": unknown,
        "b": unknown,
        "c": Hint(type=datetime),
        "d": Hint(unresolved="ZeroDivisionError: division by zero"),
    }
    assert hint_of_result(fn, signature_of(fn)) == unknown


def test_type_parameters() -> None:
    """An annotation can contain the function's type parameters."""

    def fn(x: list[X]) -> None: ...  # type: ignore  # noqa: F821

    fn.__type_params__ = (TypeVar("X"),)  # as Python has them since 3.12
    assert hints(fn) == {"x": list[fn.__type_params__[0]]}


def test_annotations_without_type() -> None:
    """Annotations such as Any, object and NoReturn have no type to check."""

    def fn(a, b: Any, c: object, *args: P.args, **kwargs: P.kwargs) -> NoReturn:  # type: ignore  # noqa: ANN001
        raise NotImplementedError

    def variadic(*args: *tuple[int, str], **kwargs: Unpack[Options]) -> None: ...

    assert set(hints(fn).values()) == set(hints(variadic).values()) == {NOTHING}
    assert hint_of_result(fn, signature_of(fn)).type is NOTHING
    assert hint_of_result(variadic, signature_of(variadic)).type is type(None)


def test_awaitable_result() -> None:
    """The type of a sync function's awaitable result is that of the awaited value."""

    def awaitable(x: int) -> Awaitable[UUID]: ...  # type: ignore[empty-body]
    def coroutine(x: int) -> Coroutine[Any, Any, UUID]: ...  # type: ignore[empty-body]
    async def plain_async(x: int) -> UUID: ...  # type: ignore[empty-body]
    async def nested_async(x: int) -> Awaitable[UUID]: ...  # type: ignore[empty-body]

    functions = (awaitable, coroutine, plain_async, nested_async)
    found = [hint_of_result(fn, signature_of(fn)).type for fn in functions]
    assert found == [UUID, UUID, UUID, Awaitable[UUID]]
