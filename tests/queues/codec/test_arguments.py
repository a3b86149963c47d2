"""Arguments and results come back as they are annotated, or are refused before they are sent."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal
from zoneinfo import ZoneInfo

import msgspec
import pytest
from support.annotated_types import (
    Circle,
    Colour,
    Holder,
    Identity,
    Model,
    Node,
    Order,
    Pet,
    Point,
    Point3,
    Secret,
    Tree,
)

from background.queues import InvalidPayloadError
from background.queues._codec.arguments import Signature
from background.queues._codec.json_data import decode, encode

if TYPE_CHECKING:
    from nowhere import Missing  # type: ignore[import-not-found]


def there_and_back(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what a worker would call the function with."""
    signature = Signature(fn)
    dumped = dict(zip(("args", "kwargs"), signature.dump(args, kwargs), strict=True))
    sent = encode("job", dumped, 1_000_000, checked=True)
    assert sent == encode("job", dumped, 1_000_000)  # so nothing was left to be checked
    body = decode("job", sent, 1_000_000)
    return signature.load(body["args"], body["kwargs"])


def refusal(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(InvalidPayloadError) as caught:
        Signature(fn).dump(args, kwargs)
    return str(caught.value)


def send_email(to: str, subject: str = "none", *, urgent: bool = False) -> str:
    return to


def schedule(
    when: datetime, /, point: Point, *pets: Pet, models: Sequence[Model] = (), **ids: Colour
) -> dict[Colour, Point]:
    return {}


def test_plain_arguments_travel_as_they_are() -> None:
    assert Signature(send_email).dump(("a@b.c",), {"urgent": True}) == (["a@b.c"], {"urgent": True})
    assert there_and_back(send_email, "a@b.c", urgent=True) == (["a@b.c"], {"urgent": True})


def test_every_kind_of_parameter() -> None:
    args = datetime(2030, 1, 2, tzinfo=UTC), Point(1), Pet("Rex"), Pet("Tom", age=3)
    kwargs = {"models": [Model(id=1)], "first": Colour.RED, "when": Colour.BLUE}
    dumped = Signature(schedule).dump(args, kwargs)
    assert dumped == (
        ["2030-01-02T00:00:00Z", {"x": 1, "y": 0}, {"name": "Rex"}, {"name": "Tom", "age": 3}],
        {"models": [{"id": 1, "name": "?"}], "first": "red", "when": "blue"},
    )
    assert there_and_back(schedule, *args, **kwargs) == (list(args), kwargs)


def test_a_result_travels_by_the_return_annotation() -> None:
    signature = Signature(schedule)
    assert signature.dump_result({Colour.RED: Point(1, 2)}) == {"red": {"x": 1, "y": 2}}
    assert signature.load_result({"red": {"x": 1, "y": 2}}) == {Colour.RED: Point(1, 2)}
    with pytest.raises(InvalidPayloadError, match=r"^the result: Expected `int`, got `str` - at "):
        signature.dump_result({Colour.RED: Point("1")})  # type: ignore[arg-type]
    with pytest.raises(InvalidPayloadError, match=r"^the result: Invalid enum value 'pink'"):
        signature.load_result({"pink": {"x": 1}})


def test_a_result_that_is_awaited() -> None:
    def fn() -> Awaitable[Point]: ...  # type: ignore[empty-body]

    assert Signature(fn).load_result({"x": 1}) == Point(1)


def test_a_result_that_is_none_of() -> None:
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
def test_a_call_that_does_not_fit(args: Any, kwargs: Any, reason: str) -> None:
    """It is the caller's mistake, or else a job that no worker could run."""
    with pytest.raises(TypeError, match=reason):
        Signature(send_email).dump(args, kwargs)
    with pytest.raises(InvalidPayloadError, match=reason):
        Signature(send_email).load([*args], kwargs)


@pytest.mark.parametrize(("args", "kwargs"), [({}, {}), ([], []), (None, {}), ("ab", {}), (1, 2)])
def test_arguments_are_a_list_and_a_dict(args: Any, kwargs: Any) -> None:
    with pytest.raises(InvalidPayloadError, match=r"^the arguments are not a list and a dict$"):
        Signature(send_email).load(args, kwargs)


# What is annotated, what is sent, and what is wrong with it.
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
    (Colour, "pink", "Invalid enum value 'pink'"),
    (Literal["a", 1], True, "Expected `int | str`, got `bool`"),
    (Annotated[int, msgspec.Meta(ge=0)], -1, "Expected `int` >= 0"),
    (Model, Secret(token="hunter2"), "id: Field required"),
    (Secret, Secret(token="hunter2"), "a Secret would come back changed; annotate"),
    (Model, Model.model_construct(id="hunter2"), "id: Input should be a valid integer"),
    (list[Model], [1], "Input should be a valid dictionary or instance of Model - at `$[0]`"),
    (Circle, Circle(-1), "Circle can't be sent"),
    (Circle | None, object(), "object can't be sent"),
    (datetime, datetime(1850, 1, 1, tzinfo=ZoneInfo("Europe/Prague")), "a datetime would come b"),
    (Any, Point(1), "argument 'x' holds a Point: only str"),
    (Any, [[datetime.max]], "argument 'x' holds a datetime: only str"),
    (Any, float("nan"), "argument 'x' holds nan, which JSON can't express"),
]


@pytest.mark.parametrize(("annotation", "value", "reason"), REFUSED)
def test_what_the_annotation_does_not_admit(annotation: Any, value: Any, reason: str) -> None:
    def fn(x: Any) -> None: ...

    fn.__annotations__["x"] = annotation
    message = refusal(fn, value)
    prefix = "" if reason.startswith("argument") else "argument 'x': "
    assert message.startswith(prefix + reason)
    assert "hunter2" not in message


def test_what_is_unannotated_takes_plain_data_and_says_so() -> None:
    def fn(x, *rest, **others: Any) -> None:  # type: ignore  # noqa: ANN001, ANN002
        ...

    assert there_and_back(fn, [1, {"a": None}], 2.5, b="x") == ([[1, {"a": None}], 2.5], {"b": "x"})
    assert refusal(fn, UTC).endswith(
        "can be sent; annotate it with its type to send more than that"
    )
    assert refusal(fn, 1, {1: 1}).startswith("argument 'rest' holds a dict with the key 1, which")
    assert refusal(fn, 1, b={1}).startswith("argument 'others' holds a set: only")


def test_names_that_are_not_known_leave_a_parameter_unannotated() -> None:
    def fn(x: Missing, y: datetime) -> None: ...

    args = [1], datetime(2030, 1, 1)
    assert there_and_back(fn, *args) == ([*args], {})
    assert refusal(fn, {1}, args[1]).endswith(
        "; its annotation can't be resolved: NameError: name 'Missing' is not defined"
    )


def test_names_may_be_defined_below_the_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both in its own annotations and inside of what these name."""
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


def test_what_turns_out_to_be_ambiguous_stays_unannotated() -> None:
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
def test_a_type_that_json_can_not_tell_is_refused_when_the_handler_is_made(annotation: str) -> None:
    def first(ok: int, x: Any) -> None: ...
    def second(ok: int) -> Any: ...

    first.__annotations__["x"] = second.__annotations__["return"] = annotation
    with pytest.raises(TypeError, match=r"first\(\): the annotation of argument 'x' can't be used"):
        Signature(first)
    with pytest.raises(TypeError, match=r"second\(\): the annotation of the result can't be used"):
        Signature(second)


def test_what_is_never_sent_may_be_of_any_type() -> None:
    def fn(to: str, circle: Circle | None = None) -> None: ...

    assert there_and_back(fn, "a@b.c") == (["a@b.c"], {})
    with pytest.raises(InvalidPayloadError, match=r"^argument 'circle': Expected `Circle"):
        Signature(fn).load(["a@b.c", {"radius": 1}], {})


def test_times_in_the_hour_that_is_repeated() -> None:
    """By Python's rules they equal no time of another zone, so not what comes back either."""

    def fn(when: datetime, x: list[Node] | None = None) -> None: ...

    prague = ZoneInfo("Europe/Prague")
    for fold in (0, 1):
        sent = datetime(2030, 10, 27, 2, 30, tzinfo=prague, fold=fold)
        again = there_and_back(fn, sent, [Node(when=sent, parts=(1,))])
        assert again[0][0].isoformat() == sent.isoformat()
        assert again[0][0].utcoffset() == sent.utcoffset() == timedelta(hours=2 - fold)
        assert again[0][1][0].when.timestamp() == sent.timestamp()


def test_what_has_no_equality_of_its_own_is_compared_by_its_fields() -> None:
    def fn(x: list[Identity]) -> None: ...

    assert there_and_back(fn, [Identity(n=1)])[0][0][0].n == 1
    assert "come back changed" in refusal(fn, [Identity(n=1, more={1})])


def test_a_tuple_is_what_a_sequence_admits() -> None:
    def fn(x: Sequence[int], y: Holder) -> None: ...

    sent = Holder(parts=(3,), model=Order(parts=(4,)))
    sent.cache = {1}  # which its class says is no part of the value
    again = there_and_back(fn, (1, 2), sent)
    assert again == ([[1, 2], Holder(parts=[3], model=Order(parts=[4]))], {})
    assert again[0][1].model.parts == [4]
    assert "come back changed" in refusal(fn, (1,), Holder((), Order.model_construct(parts={4})))


def test_values_whose_own_methods_fail_are_invalid() -> None:
    def fn(x: Nasty) -> None: ...

    assert refusal(fn, Nasty(1)) == "argument 'x': KeyError"
    with pytest.raises(InvalidPayloadError, match=r"^argument 'x': KeyError$"):
        Signature(fn).load([{"n": -1}], {})


@dataclass
class Nasty:
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
def test_what_is_nested_too_deep_is_invalid_on_both_sides(annotation: Any) -> None:
    """Or left as it is, where the annotation does not say what is in it."""

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


def test_a_circle_is_invalid() -> None:
    def fn(x: list[Any], y: Tree | None = None) -> None: ...

    circle: list[Any] = []
    circle.append(circle)
    assert "recursion" in refusal(fn, circle)
    tree = Tree()
    tree.next = tree
    assert "recursion" in refusal(fn, [], tree)


def test_without_msgspec_it_is_said_what_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    assert there_and_back(send_email, 1, urgent=[2.5]) == ([1], {"urgent": [2.5]})
    assert refusal(send_email, UTC).endswith(
        "; anyio-background[msgspec] would encode it, if it is annotated"
    )


WITHOUT = """
import sys
sys.modules["msgspec"] = None
from datetime import datetime
from background.queues import InvalidPayloadError
from background.queues._codec.arguments import Signature

def fn(to: str, when: datetime | str | None = None, **others: int) -> int: ...

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


def test_without_msgspec_plain_data_travels_unchecked() -> None:
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


def test_pydantic_is_not_imported_for_others() -> None:
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
