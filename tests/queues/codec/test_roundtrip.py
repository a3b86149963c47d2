"""Encoding and decoding of values of many annotated types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, NewType
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.annotated_types import (
    Aliased,
    Box,
    Cat,
    Colour,
    Dog,
    Level,
    Line,
    Model,
    Options,
    Pair,
    Pet,
    Point,
    Point3,
    Strict,
    Tree,
)

from background.queues import InvalidPayloadError
from background.queues._codec.arguments import Signature
from background.queues._codec.json_data import decode, encode

LIMIT = 1_000_000

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
floats = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
zones = st.none() | st.sampled_from(
    [UTC, timezone(timedelta(hours=-3, minutes=-30)), ZoneInfo("Europe/Prague"), ZoneInfo("UTC")]
)
# Without times that a clock change repeats or skips: they equal no time in another zone (PEP 495).
times = st.datetimes(min_value=datetime(1900, 1, 1), timezones=zones).filter(
    lambda when: when.replace(fold=0).utcoffset() == when.replace(fold=1).utcoffset()
)
ids = st.uuids()
colours = st.sampled_from(Colour)
points = st.builds(Point, st.integers(), st.integers())
models = st.builds(Model, id=st.integers(), name=texts)
pets = st.builds(Pet, texts, st.none() | st.integers())
trees = st.recursive(
    st.builds(Tree),
    lambda inner: st.builds(Tree, inner | st.lists(inner, max_size=2)),
    max_leaves=4,
)
aliased = st.builds(
    lambda a, c: Aliased(b=a, d=c, more=[Aliased(b=c, d=a)]), st.integers(), st.integers()
)
lines = st.builds(
    Line,
    start=points,
    end=st.none() | points,
    labels=st.dictionaries(texts, st.lists(ids, max_size=2), max_size=2),
)
Id = NewType("Id", int)

CASES: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "any plain data": (Any, plain),
    "list of plain data": (list, st.lists(plain, max_size=2)),
    "str": (str, texts),
    "int": (int, st.integers()),
    "float": (float, floats | st.integers(-(2**53), 2**53)),
    "bool or None": (bool | None, st.none() | st.booleans()),
    "a scalar": (int | float | str | bool | None, st.integers() | floats | texts | st.booleans()),
    "a new type": (Id, st.integers()),
    "limited": (Annotated[int, msgspec.Meta(ge=0)], st.integers(0, 2**62)),
    "literal": (Literal["a", "b", 1, None], st.sampled_from(["a", "b", 1, None])),
    "enum": (Colour, colours),
    "number enum": (Level, st.sampled_from(Level)),
    "bytes": (bytes, st.binary(max_size=5)),
    "datetime": (datetime, times),
    "date": (date, st.dates()),
    "time": (time, st.times()),
    "timedelta": (timedelta, st.timedeltas()),
    "decimal": (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    "uuid": (UUID | None, ids | st.none()),
    "tuple": (tuple[int, UUID, Colour], st.tuples(st.integers(), ids, colours)),
    "tuple of any length": (tuple[Point, ...], st.lists(points, max_size=3).map(tuple)),
    "set": (set[UUID], st.sets(ids, max_size=3)),
    "frozenset": (frozenset[Colour], st.frozensets(colours)),
    "abstract collections": (
        tuple[Sequence[date], AbstractSet[int], Mapping[UUID, str]],
        st.tuples(
            st.lists(st.dates(), max_size=2),
            st.sets(st.integers(), max_size=2),
            st.dictionaries(ids, texts, max_size=2),
        ),
    ),
    "dict keys": (
        tuple[dict[int, str], dict[datetime, int], dict[Colour, int], dict[float, int]],
        st.tuples(
            st.dictionaries(st.integers(-(2**63), 2**63), texts, max_size=2),
            st.dictionaries(times, st.integers(), max_size=2),
            st.dictionaries(colours, st.integers()),
            st.dictionaries(floats, st.integers(), max_size=2),
        ),
    ),
    "path": (
        Path,
        st.lists(st.sampled_from(["a", "..", "", "é b"])).map(lambda names: Path(*names)),
    ),
    "address": (IPv4Address, st.ip_addresses(v=4)),
    "addresses": (list[IPv6Address], st.lists(st.ip_addresses(v=6), max_size=2)),
    "fraction": (Fraction, st.fractions()),
    "standard types in containers": (
        tuple[dict[PurePath, Fraction], set[IPv4Address]],
        st.tuples(
            st.dictionaries(st.sampled_from([PurePath("a"), PurePath("b")]), st.fractions()),
            st.sets(st.ip_addresses(v=4), max_size=2),
        ),
    ),
    "dataclass": (Point, points),
    "subclass": (Point3, st.builds(Point3, st.integers(), st.integers(), st.integers())),
    "nested dataclass": (Line, lines),
    "recursive dataclass": (Tree, trees),
    "generic dataclass": (Box[Point], points.map(Box)),
    "struct": (Pet, pets),
    "tagged union": (list[Cat | Dog], st.lists(st.builds(Cat, st.integers()) | st.builds(Dog))),
    "named tuple": (Pair, st.builds(Pair, texts, floats)),
    "typed dict": (
        Options,
        st.fixed_dictionaries({}, optional={"when": times, "colours": st.lists(colours)}),
    ),
    "model": (Model, models),
    "model or None": (Model | None, st.none() | models),
    "model with aliases": (Aliased, aliased),
    "model with extra fields": (
        Strict,
        st.builds(
            Strict,
            when=times,
            ids=st.sets(ids, max_size=2),
            raw=st.binary(max_size=5).map(lambda raw: raw.hex()[:10].encode()),
            colour=colours,
            extra=texts,
        ),
    ),
    "nested models": (
        dict[str, list[Box[Model | None]]],
        st.dictionaries(texts, st.lists((st.none() | models).map(Box), max_size=2), max_size=2),
    ),
}


def signature_of(annotation: Any) -> Signature:
    def fn(x: Any, *args: Any, y: Any = None, **kwargs: Any) -> Any: ...

    fn.__annotations__ = dict.fromkeys(["x", "args", "y", "kwargs", "return"], annotation)
    return Signature(fn)


SIGNATURES = {name: signature_of(annotation) for name, (annotation, _) in CASES.items()}


@pytest.mark.parametrize("name", CASES)
@settings(derandomize=True, max_examples=15)
@given(data=st.data())
def test_roundtrip(name: str, data: st.DataObject) -> None:
    """Arguments and results come back equal, and can be sent again."""
    signature, values = SIGNATURES[name], CASES[name][1]
    args = data.draw(st.lists(values, min_size=1, max_size=2))
    kwargs = data.draw(st.dictionaries(st.sampled_from("yz"), values))
    for _ in range(2):
        body = encode("job", [signature.dump(args, kwargs)], LIMIT, checked=True)
        assert body == encode("job", [signature.dump(args, kwargs)], LIMIT)
        again = signature.load(*decode("job", body, LIMIT)[0])
        assert again == (args, kwargs)
        args, kwargs = again
        result = encode("result", signature.dump_result(args[0]), LIMIT)
        assert signature.load_result(decode("result", result, LIMIT)) == args[0]


@pytest.mark.parametrize("name", CASES)
@settings(derandomize=True, max_examples=15)
@given(value=plain | st.lists(plain, max_size=3))
def test_arbitrary_data(name: str, value: Any) -> None:
    """Arbitrary data is invalid, or is loaded as values that can be sent again."""
    signature = SIGNATURES[name]
    try:
        args, kwargs = signature.load([value], {"y": value})
    except InvalidPayloadError:
        with pytest.raises(InvalidPayloadError, match=r"^the result: "):
            signature.load_result(value)
    else:
        assert signature.load(*signature.dump(args, kwargs)) == (args, kwargs)


@pytest.mark.parametrize("name", CASES)
def test_deep_nesting(name: str) -> None:
    """Deeply nested data is loaded or invalid, and no part is checked more than once."""
    value: Any = None
    for _ in range(20_000):
        value = [{"next": value}]
    with suppress(InvalidPayloadError):
        assert SIGNATURES[name].load_result(value).__class__ is list


@settings(derandomize=True)
@given(
    st.sampled_from(sorted(CASES)),
    st.one_of(
        [values.map(lambda value, name=name: (name, value)) for name, (_, values) in CASES.items()]
    ),
)
def test_values_of_different_types(name: str, sent: tuple[str, Any]) -> None:
    """A value of a different type is accepted only if it comes back equal."""
    signature, value = SIGNATURES[name], sent[1]
    try:
        args, kwargs = signature.dump((value,), {})
    except InvalidPayloadError:
        assert sent[0] != name
    else:
        again = signature.load(args, kwargs)[0][0]
        assert again == (list(value) if type(again) is list else value)
