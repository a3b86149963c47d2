"""What annotations mean, and what becomes of those that mean nothing here."""

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


SAME: dict[str, Callable[..., Any]] = {
    "a function": plain,
    "a method": Mailer().send,
    "a callable": Mailer(),
    "a partial": functools.partial(plain),
    "a partial of a method": functools.partial(functools.partial(Mailer().send)),
    "a function that wraps another": wrapped,
}


def hints(fn: Callable[..., Any]) -> dict[str, Any]:
    return {name: each.type for name, each in hints_of_parameters(fn, signature_of(fn)).items()}


@pytest.mark.parametrize("fn", SAME.values(), ids=SAME)
def test_whatever_can_be_called_has_a_signature(fn: Callable[..., Any]) -> None:
    assert hints(fn) == {"when": datetime, "id": UUID | None}
    assert hint_of_result(fn, signature_of(fn)).type == list[UUID]


def test_a_class_takes_what_its_instances_are_made_of() -> None:
    class Job:
        def __init__(self, when: datetime) -> None: ...

    assert hints(Job) == {"when": datetime}


def test_what_a_partial_has_got_is_not_asked_for_again() -> None:
    assert hints(functools.partial(plain, datetime.max)) == {"id": UUID | None}


def test_what_tells_nothing_of_itself_takes_anything() -> None:
    assert hints(dict) == {"args": NOTHING, "kwargs": NOTHING}


def test_each_annotation_is_resolved_by_itself() -> None:
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


def test_type_parameters_are_known() -> None:
    def fn(x: list[X]) -> None: ...  # type: ignore  # noqa: F821

    fn.__type_params__ = (TypeVar("X"),)  # as Python has them since 3.12
    assert hints(fn) == {"x": list[fn.__type_params__[0]]}


def test_annotations_that_say_nothing() -> None:
    def fn(a, b: Any, c: object, *args: P.args, **kwargs: P.kwargs) -> NoReturn:  # type: ignore  # noqa: ANN001
        raise NotImplementedError

    def other(*args: *tuple[int, str], **kwargs: Unpack[Options]) -> None: ...

    assert set(hints(fn).values()) == set(hints(other).values()) == {NOTHING}
    assert hint_of_result(fn, signature_of(fn)).type is NOTHING
    assert hint_of_result(other, signature_of(other)).type is type(None)


def test_the_result_is_what_awaiting_gives() -> None:
    def sync(x: int) -> Awaitable[UUID]: ...  # type: ignore[empty-body]
    def sync_too(x: int) -> Coroutine[Any, Any, UUID]: ...  # type: ignore[empty-body]
    async def one(x: int) -> UUID: ...  # type: ignore[empty-body]
    async def two(x: int) -> Awaitable[UUID]: ...  # type: ignore[empty-body]

    found = [hint_of_result(fn, signature_of(fn)).type for fn in (sync, sync_too, one, two)]
    assert found == [UUID, UUID, UUID, Awaitable[UUID]]
