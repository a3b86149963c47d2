"""Types that msgspec does not know: standard ones, and those that users register."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from ipaddress import IPv4Address, IPv4Network, IPv6Interface
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from support.annotated_types import Circle, Model, Point

from background import Manager
from background.queues import InvalidPayloadError, JobQueue
from background.queues._codec.arguments import Signature
from background.queues._codec.custom import CustomTypes
from background.queues.memory import MemoryBroker


class Money:
    """A class with an equality, and a subclass."""

    def __init__(self, cents: int) -> None:
        if cents < 0:
            raise ValueError(f"{cents} is too few")
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.cents == other.cents  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]


class Debt(Money): ...


@dataclass
class Bill:
    total: Money
    circles: list[Circle]


class Session: ...


@pytest.fixture
def types() -> CustomTypes:
    types = CustomTypes()
    types.register(Money, lambda money: money.cents, Money)
    types.register(Circle, lambda circle: {"radius": circle.radius}, lambda data: Circle(**data))
    return types


def make(annotation: Any, types: CustomTypes | None = None) -> Signature:
    def fn(x: Any) -> Any: ...

    fn.__annotations__ = dict.fromkeys(["x", "return"], annotation)
    return Signature(fn, types)


# Types of the standard library. `test_roundtrip` sends many values of them.


@pytest.mark.parametrize(
    ("annotation", "value", "text"),
    [
        (Path, Path("/a/b.c"), "/a/b.c"),
        (PurePosixPath, PurePosixPath("a"), "a"),
        (IPv4Address, IPv4Address("127.0.0.1"), "127.0.0.1"),
        (IPv4Network, IPv4Network("10.0.0.0/8"), "10.0.0.0/8"),
        (IPv6Interface, IPv6Interface("fe80::1%eth0/64"), "fe80::1%eth0/64"),
        (Fraction, Fraction(-1, 3), "-1/3"),
        (Fraction, Fraction(5), "5"),
    ],
)
def test_standard_types(annotation: Any, value: Any, text: str) -> None:
    """Paths, addresses and fractions are sent as texts."""
    signature = make(annotation)
    assert signature.dump((value,), {}) == ([text], {})
    assert signature.load([text], {}) == ([value], {})


@pytest.mark.parametrize(
    ("annotation", "data"),
    [
        (Path, 1),
        (IPv4Address, 1),
        (IPv4Address, "secret"),
        (IPv4Network, ["10.0.0.0", 8]),
        (Fraction, 0.5),
        (Fraction, "1/0"),
        (Fraction, "1e999999999"),
        (Fraction, "secret"),
    ],
)
def test_invalid_text(annotation: Any, data: Any) -> None:
    """Only the texts that are sent are decoded, and an error does not quote the text."""
    with pytest.raises(InvalidPayloadError, match=r"^argument 'x': ") as info:
        make(annotation).load([data], {})
    assert "secret" not in str(info.value)


# Registered types


def test_registered_types(types: CustomTypes) -> None:
    """Objects of registered types are sent, alone and inside others."""
    signature = make(Bill, types)
    plain, _ = signature.dump((Bill(Money(5), [Circle(1)]),), {})
    assert plain == [{"total": 5, "circles": [{"radius": 1}]}]
    (bill,) = signature.load(plain, {})[0]
    assert bill.total == Money(5)
    assert bill.circles[0].radius == 1
    assert make(Money | None, types).load_result(None) is None


def test_encoding_to_other_types(types: CustomTypes) -> None:
    """The function of a registered type may return data of types that can be sent."""
    types.register(type(UTC), lambda zone: {"zone": datetime.max}, lambda data: UTC)
    assert make(type(UTC), types).dump((UTC,), {})[0] == [{"zone": "9999-12-31T23:59:59.999999"}]


def test_registered_model(types: CustomTypes) -> None:
    """A registered function has precedence over the methods of a pydantic model."""
    types.register(Model, lambda model: model.id, lambda data: Model(id=data))
    assert make(Model, types).dump((Model(id=1),), {})[0] == [1]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Debt(1), "a Debt would come back as a Money; annotate"),
        (object(), "object can't be sent"),
        (Point(1), "Expected `Money`, got `Point`"),
    ],
)
def test_objects_of_other_types(types: CustomTypes, value: Any, reason: str) -> None:
    """An object of another type is refused."""
    if type(value) is Point:
        types = CustomTypes()
        types.register(Money, lambda money: 1, lambda data: Point(data))  # type: ignore[arg-type]
        value = Money(1)
    with pytest.raises(InvalidPayloadError, match=rf"^argument 'x': {reason}"):
        make(Money, types).dump((value,), {})


def test_lossy_functions() -> None:
    """An object that would come back differently is refused."""
    types = CustomTypes()
    types.register(Circle, lambda circle: circle.radius, lambda data: Circle(data + 1))
    with pytest.raises(InvalidPayloadError, match=r"^argument 'x': a Circle would come back chan"):
        make(Circle, types).dump((Circle(1),), {})


def test_functions_that_raise() -> None:
    """An error of a function is named without its text, which may contain values."""
    types = CustomTypes()
    types.register(Money, lambda money: money.cents, Money)
    types.register(Circle, lambda circle: circle.secret, lambda data: Circle(data["secret"]))
    with pytest.raises(
        InvalidPayloadError, match=r"^argument 'x': Circle can't be sent: AttributeError$"
    ):
        make(Circle, types).dump((Circle(1),), {})
    for annotation, data, place in [(Money, -1, ""), (list[Money], [-1], r" - at `\$\[0\]`")]:
        with pytest.raises(
            InvalidPayloadError, match=rf"^argument 'x': Money can't be decoded: ValueError{place}$"
        ):
            make(annotation, types).load([data], {})


async def test_register_type(manager: Manager) -> None:
    """`register_type()` lets later handlers take and return objects of a class."""
    jobs = JobQueue(MemoryBroker())
    with pytest.raises(TypeError, match=r"'money' can't be used: Money .* jobs\.register_type\(\)"):

        @jobs.handler(name="early")
        async def early(money: Money) -> None: ...

    jobs.register_type(Money, lambda money: money.cents, Money)

    @jobs.handler(name="double")
    async def double(money: Money) -> Money:
        return Money(2 * money.cents)

    async with jobs:
        await jobs.start(manager)
        assert await (await double.enqueue(Money(2))).result() == Money(4)


def test_invalid_registration(types: CustomTypes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that msgspec knows, and an object that is no class, are refused."""
    with pytest.raises(ValueError, match=r"^cls: msgspec encodes Point itself$"):
        types.register(Point, str, Point)
    with pytest.raises(ValueError, match=r"^cls must be a class, not "):
        types.register(list[Money], str, list)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "msgspec", None)
    with pytest.raises(ImportError, match=r"anyio-background\[msgspec\]"):
        types.register(Money, str, Money)


def test_second_registration(types: CustomTypes) -> None:
    """A class is registered once, because handlers use its first conversions."""
    with pytest.raises(ValueError, match=r"^cls: Money is registered already$"):
        types.register(Money, repr, Money)


@pytest.mark.parametrize("kind", ["*", "**"])
def test_variadic_argument(kind: str) -> None:
    """A function can't take any number of objects that can't be sent."""

    def listed(*items: Money) -> None: ...

    def named(**items: Money) -> None: ...

    with pytest.raises(TypeError, match=r"argument 'items' can't be used: Money can't be sent"):
        Signature(listed if kind == "*" else named)


# Wrappers


def test_argument_of_wrapper() -> None:
    """An argument of an unknown type is left out if a wrapper of any arguments can supply it."""

    async def send(session: Session, to: str, when: datetime) -> Session: ...  # type: ignore

    def supplied(fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            return await fn(Session(), *args, **kwargs)

        return wrapper

    signature = Signature(supplied(send))
    when = datetime(2030, 1, 1, tzinfo=UTC)
    args, kwargs = json.loads(json.dumps(signature.dump(("a", when), {"session": 1})))
    assert signature.load(args, kwargs) == (["a", when], {"session": 1})
    assert signature.load_result(signature.dump_result([1])) == [1]
