"""Types for the annotations of handlers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, IntEnum
from typing import Annotated, Any, Generic, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import msgspec
import pydantic

T = TypeVar("T")


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Point:
    x: int
    y: int = 0


@dataclass
class Point3(Point):
    z: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    start: Point
    end: Point | None = None
    labels: dict[str, list[UUID]] = field(default_factory=dict)


class Pet(msgspec.Struct, omit_defaults=True):
    name: str
    age: int | None = None


class Cat(msgspec.Struct, tag=True, frozen=True):
    lives: int = 9


class Dog(msgspec.Struct, tag=True, frozen=True):
    barks: bool = True


class Pair(NamedTuple):
    key: str
    value: float = 1.0


class Options(TypedDict, total=False):
    when: datetime
    colours: list[Colour]


@dataclass
class Box(Generic[T]):
    it: T


class Model(pydantic.BaseModel):
    id: int
    name: str = "?"


class Aliased(pydantic.BaseModel, extra="forbid"):
    """A model whose fields have aliases and which forbids extra fields."""

    a: int = pydantic.Field(alias="b")
    c: int = pydantic.Field(validation_alias="d", serialization_alias="e")
    inner: list[Aliased] = pydantic.Field(default=[], alias="more")

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> int:
        return self.a + self.c


class Strict(pydantic.BaseModel, extra="allow"):
    when: datetime
    ids: set[UUID] = set()
    raw: Annotated[bytes, pydantic.Field(max_length=10)] = b""
    colour: Colour = Colour.RED


class Secret(pydantic.BaseModel):
    token: pydantic.SecretStr


class Strictly(msgspec.Struct, forbid_unknown_fields=True):
    """A Struct that refuses other fields."""

    n: int = 0


@dataclass
class Talkative:
    """A class whose error quotes its value."""

    word: str

    def __post_init__(self) -> None:
        raise ValueError(f"{self.word} is not allowed")


class TalkativeModel(pydantic.BaseModel, extra="forbid"):
    """A model whose error quotes its value."""

    word: str
    words: dict[str, str] = {}

    @pydantic.field_validator("word")
    @classmethod
    def refuse(cls, word: str) -> str:
        raise ValueError(f"{word} is not allowed")


class Order(pydantic.BaseModel):
    parts: Sequence[int]


@dataclass
class Holder:
    parts: Sequence[int]
    model: Order
    cache: Any = field(default=None, compare=False)


class Identity(msgspec.Struct, eq=False):
    n: int
    more: Any = None


class Node(msgspec.Struct):
    when: datetime
    parts: Sequence[int] = ()


@dataclass
class Tree:
    next: Tree | list[Tree] | None = None


class Circle:
    """A class that no codec can serialize."""

    def __init__(self, radius: int) -> None:
        self.radius = radius
