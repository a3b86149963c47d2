"""Sets and mappings whose elements have equal hashes, which would take too long to make.

The attacks are counted: an element is hashed once, and no set of them is made.
"""

from __future__ import annotations

import collections
import json
import sys
import typing
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar
from uuid import UUID

import msgspec
import pydantic
import pydantic_core
import pytest
from support.annotated_types import Colour

from background.queues import InvalidPayloadError
from background.queues._codec.arguments import Signature
from background.queues._codec.collisions import _MOST_EQUAL

PRIME = sys.hash_info.modulus
MANY = 2 * _MOST_EQUAL
EQUAL = [(n + 1) * PRIME for n in range(MANY)]
TEXTS = [str(number) for number in EQUAL]
T = TypeVar("T")
Number = NewType("Number", int)


@dataclass(frozen=True)
class Counted:
    """An element that counts how often it is hashed and compared."""

    n: int
    hashed = compared = 0

    def __hash__(self) -> int:
        Counted.hashed += 1
        return hash(self.n)

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return isinstance(other, Counted) and self.n == other.n


@dataclass(frozen=True)
class Box(Generic[T]):
    it: T


class Pair(NamedTuple):
    first: int
    second: int = 0


class Options(TypedDict, total=False):
    ids: set[int]


class Tagged(msgspec.Struct, tag=True, rename="camel"):
    some_ids: set[int]


class Listed(msgspec.Struct, tag=True, rename="camel"):
    some_ids: list[str]


class Array(msgspec.Struct, array_like=True):
    n: int
    ids: set[int]


class TaggedArray(msgspec.Struct, array_like=True, tag=True):
    ids: set[int]


class ListedArray(msgspec.Struct, array_like=True, tag=True):
    ids: list[int]


class Node(msgspec.Struct):
    ids: set[int] = set()
    next: Node | None = None


class Model(pydantic.BaseModel):
    ids: set[int] = set()
    texts: set[str] = set()
    weights: dict[int, float] = {}
    more: list[frozenset[int] | Colour] = []
    other: set[int] | list[str] | dict[int, str] = pydantic.Field([], alias="others")
    last: set[int] = pydantic.Field(
        set(), validation_alias=pydantic.AliasChoices("final", pydantic.AliasPath("a", 1))
    )
    deep: list[Annotated[set[int] | list[str], pydantic.Field(description="deep")]] = []
    tuples: list[tuple[set[int] | list[str], ...]] = []
    keyed: dict[int, set[int] | list[str]] = {}
    sets: set[int | Literal[1]] | list[str] | set[str] = set()
    strange: pydantic.Json[Any] | type[int] | list[str] | set[str] | None = None
    pairs: set[tuple[int, pydantic.PositiveInt]] = set()


@dataclass
class Renamed:
    ids: Annotated[set[int], pydantic.Field(alias="numbers")]


@dataclass
class UnknownPart:
    part: Missing  # type: ignore[name-defined]  # noqa: F821

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: object) -> Any:
        return pydantic_core.core_schema.no_info_plain_validator_function(lambda value: value)


class Unusual(pydantic.BaseModel, extra="allow"):
    __pydantic_extra__: dict[str, set[int]]

    root: int = 0
    path: set[int] = pydantic.Field(set(), validation_alias=pydantic.AliasPath("a", "b", 0))
    json_: pydantic.Json[list[set[int]]] = []
    counter: typing.Counter[int] = collections.Counter()
    ordered: list[collections.OrderedDict[Number, int]] = []
    iterable: Iterable[tuple[set[int], ...]] = ()
    pair: tuple[int, collections.deque[set[int]]] | None = None
    renamed: Renamed | None = None
    note: set[int] | str = ""
    unknown: UnknownPart | None = None


def make_local_model() -> Any:
    ids = set[int]

    class Local(pydantic.BaseModel, extra="allow"):
        __pydantic_extra__: dict[str, ids]

    return Local


class Root(pydantic.RootModel[set[int]]): ...


def refusal(annotation: Any, data: Any) -> str:
    """Return the error with which a worker refuses an argument."""

    def fn(x: Any) -> None: ...

    fn.__annotations__["x"] = annotation
    with pytest.raises(InvalidPayloadError) as info:
        Signature(fn).load([data], {})
    return str(info.value)


def load(annotation: Any, data: Any) -> Any:
    def fn(x: Any) -> None: ...

    fn.__annotations__["x"] = annotation
    return Signature(fn).load([data], {})[0][0]


ATTACKS: dict[str, tuple[Any, Any]] = {
    "set of ints": (set[int], EQUAL),
    "frozenset of floats": (frozenset[int | float], EQUAL),
    "set of anything": (set, EQUAL),
    "abstract set": (AbstractSet[int], EQUAL),
    "set of decimals": (set[Decimal], TEXTS),
    "set of fractions": (set[Fraction], TEXTS),
    "set of uuids": (set[UUID], [str(UUID(int=number)) for number in EQUAL]),
    "set of numbers or texts": (set[int | str | None], EQUAL),
    "set of pairs": (set[tuple[int, int]], [[number, 1] for number in EQUAL]),
    "set of tuples": (set[tuple[int, ...]], [[number] for number in EQUAL]),
    "set of named tuples": (set[Pair], [[number, 1] for number in EQUAL]),
    "set of frozensets": (set[frozenset[int]], [[number] for number in EQUAL]),
    "set of dataclasses": (set[Counted], [{"n": number} for number in EQUAL]),
    "set of generic dataclasses": (set[Box[Decimal]], [{"it": text} for text in TEXTS]),
    "frozenset in a set": (set[frozenset[int]], [EQUAL]),
    "keys of a dict": (dict[int, int], dict.fromkeys(TEXTS, 1)),
    "keys of a mapping": (Mapping[Decimal, int], dict.fromkeys(TEXTS, 1)),
    "values of a dict": (dict[str, set[int]], {"a": EQUAL}),
    "set in a list": (list[set[int]], [[1], EQUAL]),
    "set in a tuple": (tuple[int, set[int]], [1, EQUAL]),
    "set or None": (set[int] | None, EQUAL),
    "annotated set": (Annotated[set[int], msgspec.Meta(title="ids")], EQUAL),
    "typed dict": (Options, {"ids": EQUAL}),
    "tagged struct": (Listed | Tagged, {"type": "Tagged", "someIds": EQUAL}),
    "struct like an array": (Array, [1, EQUAL]),
    "tagged struct like an array": (ListedArray | TaggedArray, ["TaggedArray", EQUAL]),
    "recursive struct": (Node, {"next": {"next": {"ids": EQUAL}}}),
    "model": (Model, {"ids": EQUAL}),
    "model with lax values": (Model, {"ids": TEXTS}),
    "dict in a model": (list[Model], [{}, {"weights": dict.fromkeys(TEXTS, 1)}]),
    "union in a model": (Model, {"more": [EQUAL]}),
    "alias in a model": (Model, {"others": EQUAL}),
    "dict under an alias in a model": (Model, {"others": dict.fromkeys(TEXTS, "a")}),
    "deep union in a model": (Model, {"deep": [EQUAL]}),
    "keys of a union in a model": (Model, {"keyed": {text: [1] for text in TEXTS}}),
    "several aliases in a model": (Model, {"final": EQUAL}),
    "path in a model": (Unusual, {"a": {"b": [EQUAL]}}),
    "JSON in a model": (Unusual, {"json_": json.dumps([EQUAL])}),
    "counter in a model": (Unusual, {"counter": dict.fromkeys(TEXTS, 1)}),
    "ordered dict in a model": (Unusual, {"ordered": [dict.fromkeys(TEXTS, 1)]}),
    "iterable in a model": (Unusual, {"iterable": [[EQUAL]]}),
    "deque in a model": (Unusual, {"pair": [1, [EQUAL]]}),
    "alias of a dataclass in a model": (Unusual, {"renamed": {"numbers": EQUAL}}),
    "extra value of a model": (Unusual, {"more": EQUAL}),
    "extra value of a local model": (make_local_model(), {"more": EQUAL}),
    "root model": (Root, EQUAL),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name: str) -> None:
    """Elements with equal hashes are refused before a set or a dict is made of them."""
    annotation, data = ATTACKS[name]
    message = refusal(annotation, data)
    assert f"{MANY} elements have equal hashes, and at most {_MOST_EQUAL} may have" in message


def test_cost_of_attack() -> None:
    """Every element of an attack is hashed once, and compared with none."""
    Counted.hashed = Counted.compared = 0
    refusal(set[Counted], [{"n": number} for number in EQUAL])
    assert (Counted.hashed, Counted.compared) == (MANY, 0)


def test_invalid_element_after_attack() -> None:
    """Elements with equal hashes get into no set, even if the last element is not valid."""
    Counted.hashed = 0
    data = [*({"n": number} for number in EQUAL), {"n": "x"}]
    assert "Expected `int`, got `str`" in refusal(set[Counted], data)
    assert Counted.hashed == 0


def test_unreadable_elements_of_models() -> None:
    """Elements that only pydantic can convert are limited in number."""
    words = [[number, "1"] for number in range(1, 900)]
    assert len(load(Model, {"pairs": words}).pairs) == 899
    assert "1001 elements have equal" in refusal(Model, {"pairs": [[1, "x"]] * 1001})


HARMLESS: dict[str, tuple[Any, Any]] = {
    "few": (set[int], EQUAL[:_MOST_EQUAL]),
    "many ints": (set[int], [*range(50_000)]),
    "large ints": (set[int], [number << 40 for number in range(20_000)]),
    "texts": (set[str], ["a"] * MANY),
    "texts as keys": (dict[str, int], dict.fromkeys(TEXTS, 1)),
    "any keys": (dict[Any, int], dict.fromkeys(TEXTS, 1)),
    "times": (
        set[datetime],
        [(datetime.now(UTC) + timedelta(seconds=n)).isoformat() for n in range(5000)],
    ),
    "float keys": (dict[float, int], {str(n / 7): 1 for n in range(5000)}),
    "enums": (set[Colour], ["red", "blue"]),
    "list": (list[int], EQUAL),
    "list in a struct with a set": (Array | None, [1, [2]]),
    "tagged struct with a list": (Listed | Tagged, {"type": "Listed", "someIds": TEXTS}),
    "tagged array with a list": (ListedArray | TaggedArray, ["ListedArray", EQUAL]),
    "model": (
        Model,
        {
            "others": ["a"] * MANY,
            "texts": TEXTS,
            "strange": "[1]",
            "tuples": [[["a"]]],
            "unknown": EQUAL,
        },
    ),
    "unusual model": (
        Unusual,
        {
            "a": {"b": [[1]]},
            "json_": "[[1]]",
            "counter": {"1": 2},
            "iterable": [[[1]]],
            "pair": [1, [[1]]],
            "renamed": {"numbers": [1]},
            "more": [1],
            "note": "{",
            "unknown": EQUAL,
        },
    ),
    "path that leads nowhere": (list[Model], [{"a": []}, {"a": None}]),
    "local model": (make_local_model(), {"more": [1]}),
    "literals": (set[Literal[tuple(range(MANY))]], [*range(MANY)]),  # type: ignore[misc]
    "annotated ints": (set[Annotated[int, msgspec.Meta(title="id")]], [*range(MANY)]),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_data(name: str) -> None:
    """Many elements with different hashes, and lists of any elements, are accepted."""
    annotation, data = HARMLESS[name]
    assert load(annotation, data) is not None


def test_refused_when_enqueued() -> None:
    """A set that no worker would accept is refused when it is enqueued."""

    def fn(x: set[int]) -> None: ...

    with pytest.raises(InvalidPayloadError, match="elements have equal hashes"):
        Signature(fn).dump(({*EQUAL},), {})
