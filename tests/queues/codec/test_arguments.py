"""Encoding of arguments and results by their annotations."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import PurePath
from types import ModuleType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NewType,
    Protocol,
    TypedDict,
    TypeVar,
)
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
from support.annotated_types import (
    Cat,
    Circle,
    Colour,
    Dog,
    Holder,
    Identity,
    Model,
    Node,
    Order,
    Pet,
    Point,
    Point3,
    Secret,
    Strictly,
    Talkative,
    TalkativeModel,
    Tree,
)

from background.queues import InvalidPayloadError
from background.queues._codec.arguments import Signature
from background.queues._codec.json_data import decode, encode

if TYPE_CHECKING:
    from nowhere import Missing  # type: ignore[import-not-found]


def roundtrip(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the arguments with which a worker would call the function."""
    signature = Signature(fn)
    dumped = dict(zip(("args", "kwargs"), signature.dump(args, kwargs), strict=True))
    sent = encode("job", dumped, 1_000_000, checked=True)
    assert sent == encode("job", dumped, 1_000_000)  # as dump() has checked everything
    body = decode("job", sent, 1_000_000)
    return signature.load(body["args"], body["kwargs"])


def rejection(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(InvalidPayloadError) as caught:
        Signature(fn).dump(args, kwargs)
    return str(caught.value)


def send_email(to: str, subject: str = "none", *, urgent: bool = False) -> str:
    return to


def schedule(
    when: datetime, /, point: Point, *pets: Pet, models: Sequence[Model] = (), **ids: Colour
) -> dict[Colour, Point]:
    return {}


def test_plain_arguments() -> None:
    """Plain arguments are encoded unchanged."""
    assert Signature(send_email).dump(("a@b.c",), {"urgent": True}) == (["a@b.c"], {"urgent": True})
    assert roundtrip(send_email, "a@b.c", urgent=True) == (["a@b.c"], {"urgent": True})


def test_parameter_kinds() -> None:
    """Arguments for every kind of parameter are encoded by its annotation."""
    args = datetime(2030, 1, 2, tzinfo=UTC), Point(1), Pet("Rex"), Pet("Tom", age=3)
    kwargs = {"models": [Model(id=1)], "first": Colour.RED, "when": Colour.BLUE}
    dumped = Signature(schedule).dump(args, kwargs)
    assert dumped == (
        ["2030-01-02T00:00:00Z", {"x": 1, "y": 0}, {"name": "Rex"}, {"name": "Tom", "age": 3}],
        {"models": [{"id": 1, "name": "?"}], "first": "red", "when": "blue"},
    )
    assert roundtrip(schedule, *args, **kwargs) == (list(args), kwargs)


def test_result() -> None:
    """A result is encoded, decoded and checked by the return annotation."""
    signature = Signature(schedule)
    assert signature.dump_result({Colour.RED: Point(1, 2)}) == {"red": {"x": 1, "y": 2}}
    assert signature.load_result({"red": {"x": 1, "y": 2}}) == {Colour.RED: Point(1, 2)}
    with pytest.raises(InvalidPayloadError, match=r"^the result: Expected `int`, got `str` - at "):
        signature.dump_result({Colour.RED: Point("1")})  # type: ignore[arg-type]
    with pytest.raises(InvalidPayloadError, match=r"^the result: Invalid enum value - at `key` in"):
        signature.load_result({"pink": {"x": 1}})


def test_awaitable_result() -> None:
    """A result annotated as an awaitable is decoded as the awaited type."""

    def fn() -> Awaitable[Point]: ...  # type: ignore[empty-body]

    assert Signature(fn).load_result({"x": 1}) == Point(1)


def test_none_result() -> None:
    """A function annotated to return None has no other result."""

    def fn() -> None: ...

    assert Signature(fn).dump_result(None) is None
    assert Signature(fn).load_result(None) is None
    with pytest.raises(InvalidPayloadError, match=r"^the result: Expected `null`, got `int`$"):
        Signature(fn).dump_result(1)


@pytest.mark.parametrize(
    ("args", "kwargs", "reason"),
    [
        ((), {}, r"send_email\(\): missing a required argument: 'to'"),
        (("a", "b", True), {}, r"send_email\(\): too many positional arguments"),
        (("a",), {"to": "b"}, r"send_email\(\): multiple values for argument 'to'"),
        (("a",), {"cc": "b"}, r"send_email\(\): got an unexpected keyword argument 'cc'"),
    ],
)
def test_mismatched_call(args: Any, kwargs: Any, reason: str) -> None:
    """Arguments that don't fit are a TypeError if dumped, and an invalid payload if loaded.

    The caller made a mistake, or no worker could run the job.
    """
    with pytest.raises(TypeError, match=reason):
        Signature(send_email).dump(args, kwargs)
    with pytest.raises(InvalidPayloadError, match=reason):
        Signature(send_email).load([*args], kwargs)


@pytest.mark.parametrize(("args", "kwargs"), [({}, {}), ([], []), (None, {}), ("ab", {}), (1, 2)])
def test_argument_containers(args: Any, kwargs: Any) -> None:
    """Loaded arguments have to be a list and a dict."""
    with pytest.raises(InvalidPayloadError, match=r"^the arguments are not a list and a dict$"):
        Signature(send_email).load(args, kwargs)


TALKATIVE = Talkative.__new__(Talkative)
TALKATIVE.word = "hunter2"

# Annotation, value, and the beginning of the error.
REFUSED: list[tuple[Any, Any, str]] = [
    (str, 1, "Expected `str`, got `int`"),
    (int, "1", "Expected `int`, got `str`"),
    (int, True, "Expected `int`, got `bool`"),
    (int, 1.0, "Expected `int`, got `float`"),
    (bool, 1, "Expected `bool`, got `int`"),
    (float, 2**53 + 1, "a int would come back as a float; annotate"),
    (str, None, "Expected `str`, got `null`"),
    (datetime, "2030-01-01T00:00:00Z", "a str would come back as a datetime; annotate"),
    (str, datetime(2030, 1, 1), "a datetime would come back as a str; annotate"),
    (date, datetime(2030, 1, 1), "Invalid RFC3339 encoded date"),
    (Point, {"x": 1}, "a dict would come back as a Point; annotate"),
    (Point, Point3(1), "a Point3 would come back as a Point; annotate"),
    (dict, Point(1), "a Point would come back as a dict; annotate"),
    (dict[str, int], {1: 1}, "a dict would come back changed; annotate"),
    (dict[Any, Any], {(1, 2): 1}, "Only dicts with str-like or number-like keys"),
    (list[Any], [{1}], "a list would come back changed; annotate"),
    (list[int], [1, "2"], "Expected `int`, got `str` - at `$[1]`"),
    (list[int], {1}, "a set would come back as a list; annotate"),
    (list[Colour], ["red"], "a list would come back changed; annotate"),
    (Colour, "hunter2", "Invalid enum value"),
    (list[Colour], ["hunter2 - at `$"], "Invalid enum value - at `$[0]`"),
    (Literal["a"], "hunter2", "Invalid enum value"),
    (Cat | Dog, {"type": "hunter2"}, "Invalid value - at `$.type`"),
    (Strictly, {"hunter2": 1}, "Object contains unknown field"),
    (dict[str, int], {"hunter2": "1"}, "Expected `int`, got `str` - at `$[...]`"),
    (dict[Any, Any], {"a": {("hunter2", 1): 2}}, "Only dicts with str-like or number-like keys"),
    (Any, {("hunter2", 1): 1}, "argument 'x' holds a dict with a key of type tuple"),
    (Talkative, TALKATIVE, "ValueError"),
    (list[Talkative], [TALKATIVE], "ValueError - at `$[0]`"),
    (TalkativeModel, TalkativeModel.model_construct(word="hunter2"), "word: value_error"),
    (TalkativeModel, {"hunter2": 1}, "word: Field required; …: Extra inputs are not permitted"),
    (
        dict[str, TalkativeModel],
        {"a": {"words": {"hunter2": 1}}},
        "word: Field required; words.…: ",
    ),
    (Literal["a", 1], True, "Expected `int | str`, got `bool`"),
    (Annotated[int, msgspec.Meta(ge=0)], -1, "Expected `int` >= 0"),
    (Model, Secret(token="hunter2"), "id: Field required"),
    (Secret, Secret(token="hunter2"), "a Secret would come back changed; annotate"),
    (Model, Model.model_construct(id="hunter2"), "id: Input should be a valid integer"),
    (list[Model], [1], "Input should be a valid dictionary or instance of Model - at `$[0]`"),
    (list[Any], [Circle(-1)], "Circle can't be sent"),
    (Iterable[int], object(), "object can't be sent"),
    (datetime, datetime(1850, 1, 1, tzinfo=ZoneInfo("Europe/Prague")), "a datetime would come b"),
    (Any, Point(1), "argument 'x' holds a Point: only str"),
    (Any, [[datetime.max]], "argument 'x' holds a datetime: only str"),
    (Any, float("nan"), "argument 'x' holds nan, which JSON can't express"),
]


@pytest.mark.parametrize(("annotation", "value", "reason"), REFUSED)
def test_rejected_values(annotation: Any, value: Any, reason: str) -> None:
    """A value that doesn't match its annotation is rejected, without its secrets in the error."""

    def fn(x: Any) -> None: ...

    fn.__annotations__["x"] = annotation
    message = rejection(fn, value)
    prefix = "" if reason.startswith("argument") else "argument 'x': "
    assert message.startswith(prefix + reason)
    assert "hunter2" not in message


def test_unannotated_parameters() -> None:
    """Unannotated parameters take plain data, and the error suggests an annotation."""

    def fn(x, *rest, **options: Any) -> None:  # type: ignore  # noqa: ANN001, ANN002
        ...

    assert roundtrip(fn, [1, {"a": None}], 2.5, b="x") == ([[1, {"a": None}], 2.5], {"b": "x"})
    assert rejection(fn, UTC).endswith(
        "can be sent; annotate it with its type to send more than that"
    )
    assert rejection(fn, 1, {1: 1}).startswith(
        "argument 'rest' holds a dict with a key of type int"
    )
    assert rejection(fn, 1, b={1}).startswith("argument 'options' holds a set: only")


def test_unresolved_annotation() -> None:
    """A parameter whose annotation can't be resolved takes plain data, and the error says so."""

    def fn(x: Missing, y: datetime) -> None: ...

    args = [1], datetime(2030, 1, 1)
    assert roundtrip(fn, *args) == ([*args], {})
    assert rejection(fn, {1}, args[1]).endswith(
        "; its annotation can't be resolved: NameError: name 'Missing' is not defined"
    )


def test_forward_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names in annotations, and in their types' annotations, can be defined after the handler."""
    module = ModuleType("half_loaded")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    names = vars(module)
    names["dataclass"] = dataclass
    exec("@dataclass\nclass Outer:\n    it: 'Inner'\ndef fn(x: 'Outer', y: 'Inner'): ...", names)
    early, late = Signature(names["fn"]), Signature(names["fn"])
    with pytest.raises(
        InvalidPayloadError, match=r"can't be resolved: name 'Inner' is not defined$"
    ):
        early.dump((names["Outer"](1), 1), {})
    exec("@dataclass\nclass Inner:\n    n: int", names)
    outer = names["Outer"](names["Inner"](1))
    assert late.dump((outer, outer.it), {}) == ([{"it": {"n": 1}}, {"n": 1}], {})
    for use in (late.load, Signature(names["fn"]).load):
        assert use([{"it": {"n": 1}}], {"y": {"n": 1}}) == ([outer], {"y": outer.it})


def test_late_ambiguous_annotation() -> None:
    """A parameter whose forward reference turns out to be ambiguous takes plain data."""
    names: dict[str, Any] = {"Point": Point}
    exec("def fn(x: 'Point | Later') -> 'Point | Later': ...", names)
    signatures = [Signature(names["fn"]) for _ in range(3)]
    names["Later"] = Point3
    assert signatures[0].load([1], {}) == ([1], {})
    assert signatures[1].dump_result(1) == 1
    assert signatures[2].load_result(1) == 1


@pytest.mark.parametrize(
    "annotation",
    [
        "Point | Pet | Point3",
        "str | datetime",
        "Model | str",
        "list[Circle | int]",
        "complex | int",
    ],
)
def test_ambiguous_annotations(annotation: str) -> None:
    """A union whose members look alike in JSON is rejected when the handler is declared."""

    def of_argument(ok: int, x: Any) -> None: ...
    def of_result(ok: int) -> Any: ...

    of_argument.__annotations__["x"] = of_result.__annotations__["return"] = annotation
    with pytest.raises(
        TypeError, match=r"of_argument\(\): the annotation of argument 'x' can't be used"
    ):
        Signature(of_argument)
    with pytest.raises(
        TypeError, match=r"of_result\(\): the annotation of the result can't be used"
    ):
        Signature(of_result)


def test_optional_argument_of_unknown_type() -> None:
    """A parameter's type needs an encoding only if an argument must be sent for it."""

    def fn(to: str, circle: Circle | None = None) -> None: ...

    assert roundtrip(fn, "a@b.c") == (["a@b.c"], {})
    with pytest.raises(InvalidPayloadError, match=r"^argument 'circle': Expected `Circle"):
        Signature(fn).load(["a@b.c", {"radius": 1}], {})
    assert rejection(fn, "a@b.c", Circle(1)) == "argument 'circle': Circle can't be sent"


@dataclass
class OptionalCircle:
    n: int
    circle: Circle | None = None
    circles: list[Circle] = field(default_factory=list)


@dataclass
class Branch:
    branches: list[Branch]


class Closable(Protocol):
    def close(self) -> None: ...


@dataclass
class RequiredCircle:
    circle: Circle
    next: RequiredCircle | None = None


@pytest.mark.parametrize(
    ("annotation", "unknown"),
    [
        (Circle, "Circle"),
        (Circle | None, "Circle"),
        (list[tuple[int, Circle]], "Circle"),
        (dict[str, RequiredCircle], "Circle"),
        (complex, "complex"),
        (re.Pattern[str], "Pattern"),
        (Callable[[], int], "Callable"),
        (type[int], "type"),
        (Closable, "Closable"),
    ],
)
def test_unknown_type(annotation: Any, unknown: str) -> None:
    """A parameter whose values can't be sent is refused at the declaration, by its name."""

    def fn(ok: int, x: Any) -> None: ...
    def of_result() -> Any: ...

    fn.__annotations__["x"] = of_result.__annotations__["return"] = annotation
    with pytest.raises(
        TypeError,
        match=rf"fn\(\): the annotation of argument 'x' can't be used: {unknown} can't be s",
    ):
        Signature(fn)
    with pytest.raises(
        TypeError, match=rf"annotation of the result can't be used: {unknown} can't"
    ):
        Signature(of_result)
    Signature(of_result, sends_result=False)


def test_known_types() -> None:
    """A type is accepted if values without those of unknown types can be sent."""

    def fn(x: OptionalCircle, y: Iterable[int], z: Sized, b: Branch) -> None: ...

    sent = OptionalCircle(1)
    assert roundtrip(fn, sent, [1], [2], Branch([])) == ([sent, [1], [2], Branch([])], {})
    assert "Circle can't be" in rejection(fn, OptionalCircle(1, Circle(1)), [1], [2], Branch([]))


def test_repeated_hour() -> None:
    """Datetimes in the repeated hour of a clock change can be sent.

    PEP 495 makes them unequal to all times in another zone, and so to the decoded ones.
    """

    def fn(when: datetime, x: list[Node] | None = None) -> None: ...

    prague = ZoneInfo("Europe/Prague")
    for fold in (0, 1):
        sent = datetime(2030, 10, 27, 2, 30, tzinfo=prague, fold=fold)
        again = roundtrip(fn, sent, [Node(when=sent, parts=(1,))])
        assert again[0][0].isoformat() == sent.isoformat()
        assert again[0][0].utcoffset() == sent.utcoffset() == timedelta(hours=2 - fold)
        assert again[0][1][0].when.timestamp() == sent.timestamp()


def test_type_without_equality() -> None:
    """Values whose type defines no equality are compared by their fields."""

    def fn(x: list[Identity]) -> None: ...

    assert roundtrip(fn, [Identity(n=1)])[0][0][0].n == 1
    assert "come back changed" in rejection(fn, [Identity(n=1, more={1})])


def test_sequences() -> None:
    """A tuple can be sent for a sequence, and comes back as a list."""

    def fn(x: Sequence[int], y: Holder) -> None: ...

    sent = Holder(parts=(3,), model=Order(parts=(4,)))
    sent.cache = {1}  # a field with compare=False
    again = roundtrip(fn, (1, 2), sent)
    assert again == ([[1, 2], Holder(parts=[3], model=Order(parts=[4]))], {})
    assert again[0][1].model.parts == [4]
    assert "come back changed" in rejection(fn, (1,), Holder((), Order.model_construct(parts={4})))


def test_methods_that_raise() -> None:
    """A value is invalid if its type's methods raise errors."""

    def fn(x: RaisingType) -> None: ...

    assert rejection(fn, RaisingType(1)) == "argument 'x': KeyError"
    with pytest.raises(InvalidPayloadError, match=r"^argument 'x': KeyError$"):
        Signature(fn).load([{"n": -1}], {})


@dataclass
class RaisingType:
    n: int

    def __post_init__(self) -> None:
        if self.n < 0:
            raise KeyError

    def __eq__(self, other: object) -> bool:
        raise KeyError


def deep(depth: int, wrap: Callable[[Any], Any]) -> Any:
    value = wrap(None)
    for _ in range(depth):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    "annotation", [list, Tree, dict, "list[Tree]", str, list[list[int]], Model]
)
def test_deep_nesting(annotation: Any) -> None:
    """A value that is nested too deep is invalid when dumped and when loaded.

    It is loaded unchanged if the annotation doesn't describe its contents.
    """

    def fn(x: Any) -> Any: ...

    fn.__annotations__ |= {"x": annotation, "return": annotation}
    signature = Signature(fn)
    for value in (
        deep(100_000, lambda inner: [inner]),
        deep(100_000, lambda inner: {"next": inner}),
        deep(100_000, lambda inner: {"next": [inner]}),
    ):
        with pytest.raises(InvalidPayloadError, match=r"^argument 'x': "):
            signature.dump((value,), {})
        with pytest.raises(InvalidPayloadError, match=r"^the result: "):
            signature.dump_result(value)
        if type(value) is annotation:
            assert signature.load([value], {})[0][0].__class__ is annotation
            assert signature.load_result(value).__class__ is annotation
            continue
        with pytest.raises(InvalidPayloadError, match=r"^argument 'x': "):
            signature.load([value], {})
        with pytest.raises(InvalidPayloadError, match=r"^the result: "):
            signature.load_result(value)


def test_circular_reference() -> None:
    """A value that contains itself is invalid."""

    def fn(x: list[Any], y: Tree | None = None) -> None: ...

    circle: list[Any] = []
    circle.append(circle)
    assert "recursion" in rejection(fn, circle)
    tree = Tree()
    tree.next = tree
    assert "recursion" in rejection(fn, [], tree)


def test_error_without_msgspec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without msgspec, the error of a value names the extra that encodes it."""
    monkeypatch.setitem(sys.modules, "msgspec", None)
    assert roundtrip(send_email, 1, urgent=[2.5]) == ([1], {"urgent": [2.5]})
    assert rejection(send_email, UTC).endswith(
        "; anyio-background[msgspec] would encode it, if it is annotated"
    )


@dataclass
class Box:
    n: int


class Sizes(TypedDict):
    width: int


Id = NewType("Id", int)
T = TypeVar("T")


@pytest.mark.parametrize(
    "annotation",
    [PurePath, datetime, Box, list[Box], dict[str, bytes], UUID | None, Annotated[set[int], "ids"]],
)
def test_types_without_msgspec(annotation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without msgspec, a handler is refused if it takes or returns more than plain data."""
    monkeypatch.setitem(sys.modules, "msgspec", None)

    def takes(x: Any) -> None: ...

    def collects(*x: Any) -> None: ...

    def returns() -> Any: ...

    def defaults(x: Any = None) -> None: ...

    for fn in (takes, collects, defaults):
        fn.__annotations__["x"] = annotation
    returns.__annotations__["return"] = annotation
    expected = r"can't be sent without the extra msgspec, .* anyio-background\[msgspec\]$"
    for fn in (takes, collects, returns):
        with pytest.raises(TypeError, match=expected):
            Signature(fn)
    assert Signature(defaults).dump((), {}) == ([], {})
    assert Signature(returns, sends_result=False).dump((), {}) == ([], {})


@pytest.mark.parametrize(
    "annotation",
    [
        *(int, None, str | None, list[dict[str, float | bool]], tuple[int, ...], Id, Sizes),
        *(Sequence[int], Mapping[str, Any], Iterable, Literal["a"], Annotated[int, UUID], T),
    ],
)
def test_plain_types_without_msgspec(annotation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without msgspec, annotations of plain data are accepted."""
    monkeypatch.setitem(sys.modules, "msgspec", None)

    def fn(x: Any) -> None: ...

    fn.__annotations__["x"] = annotation
    assert Signature(fn).dump((1,), {}) == ([1], {})


WITHOUT = """
import sys
sys.modules["msgspec"] = None
from datetime import datetime
from background.queues import InvalidPayloadError
from background.queues._codec.arguments import Signature

def fn(to: str, when: datetime | str | None = None, **options: int) -> int: ...

signature = Signature(fn)
assert signature.dump(("a", [1]), {"b": "x"}) == (["a", [1]], {"b": "x"})
assert signature.load(["a", [1]], {"b": "x"}) == (["a", [1]], {"b": "x"})
assert signature.dump_result("x") == signature.load_result("x") == "x"
for use in (lambda: signature.dump(("a", datetime.max), {}), lambda: signature.load([], {})):
    try:
        use()
    except InvalidPayloadError as error:
        print(error)
try:
    signature.dump((), {})
except TypeError as error:
    print(error)
assert "pydantic" not in sys.modules
"""


def test_without_msgspec() -> None:
    """Without msgspec, plain data is sent without a check of its types."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        (
            "argument 'when' holds a datetime: only str, int, float, bool, None, and lists and "
            "dicts of them can be sent; anyio-background[msgspec] would encode it, if it is "
            "annotated"
        ),
        "fn(): missing a required argument: 'to'",
        "fn(): missing a required argument: 'to'",
    ]


def test_pydantic_not_imported() -> None:
    """Types that are no pydantic models are encoded without importing pydantic."""
    code = (
        "import sys, datetime, background.queues\n"
        "assert 'msgspec' not in sys.modules\n"
        "from background.queues._codec.arguments import Signature\n"
        "def fn(x: datetime.date | None, y: complex = 0): ...\n"
        "print(Signature(fn).load(['2030-01-01'], {})[0])\n"
        "try: Signature(fn).dump((None, 1j), {})\n"
        "except ValueError as error: print(error)\n"
        "assert 'pydantic' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "[datetime.date(2030, 1, 1)]",
        "argument 'y': complex can't be sent",
    ]
