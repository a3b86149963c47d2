"""Arguments of handlers that are wrapped with `functools.wraps`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import pytest

from background import Manager
from background.queues import InvalidPayloadError, JobQueue
from background.queues._codec.arguments import Signature
from background.queues.memory import MemoryBroker

WHEN = datetime(2030, 1, 2, tzinfo=UTC)
Function = Callable[..., Any]


class Session:
    """A resource that a decorator supplies."""


async def send(session: Session, to: str, when: datetime | None = None) -> datetime | None:
    assert isinstance(session, Session)
    return when


async def save(to: str, when: datetime | None = None, *, session: Session) -> datetime | None:
    assert isinstance(session, Session)
    return when


def supply_explicitly(fn: Function) -> Function:
    @functools.wraps(fn)
    async def wrapper(to: str, when: datetime | None = None) -> Any:
        return await fn(Session(), to, when)

    return wrapper


def supply_by_name(fn: Function) -> Function:
    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await fn(*args, session=Session(), **kwargs)

    return wrapper


def pass_on(fn: Function) -> Function:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


def roundtrip(fn: Function, *args: Any, **kwargs: Any) -> Any:
    """Return the arguments with which a worker would call the function."""
    signature = Signature(fn)
    return signature.load(*signature.dump(args, kwargs))


@pytest.mark.parametrize(
    "fn",
    [supply_explicitly(send), supply_by_name(save), pass_on(supply_explicitly(send))],
    ids=["explicitly", "by name", "in two steps"],
)
async def test_supplied_argument(manager: Manager, fn: Function) -> None:
    """A handler is enqueued without the argument that a decorator supplies."""
    jobs = JobQueue(MemoryBroker())
    handler = jobs.handler(name="handler")(fn)
    async with jobs:
        await jobs.start(manager)
        for job in (await handler.enqueue("a", WHEN), await handler.enqueue(to="a", when=WHEN)):
            assert await job.result() == WHEN


def test_own_parameters() -> None:
    """A wrapper with parameters of its own takes exactly those."""
    fn = supply_explicitly(send)
    assert roundtrip(fn, "a", WHEN) == (["a", WHEN], {})
    with pytest.raises(TypeError, match=r"send\(\): missing a required argument: 'to'"):
        Signature(fn).dump((), {})
    with pytest.raises(TypeError, match=r"send\(\): got an unexpected keyword argument 'session'"):
        Signature(fn).dump(("a",), {"session": 1})
    with pytest.raises(InvalidPayloadError, match=r"^argument 'to': Expected `str`, got `int`"):
        Signature(fn).dump((1,), {})


@pytest.mark.parametrize(
    "fn",
    [
        pass_on(save),
        pass_on(pass_on(save)),
        functools.partial(pass_on(save)),
        pass_on(functools.partial(save)),
    ],
    ids=["wrapper", "wrapper of a wrapper", "partial of a wrapper", "wrapper of a partial"],
)
def test_any_arguments(fn: Function) -> None:
    """A wrapper that takes any arguments converts those that fit, and takes other plain data."""
    assert roundtrip(fn, "a", WHEN) == (["a", WHEN], {})
    assert roundtrip(fn, when=WHEN) == ([], {"when": WHEN})
    assert roundtrip(fn, 1, 2, [3], more=4) == ([1, 2, [3]], {"more": 4})
    assert roundtrip(fn, 1, when=2) == ([1], {"when": 2})
    with pytest.raises(InvalidPayloadError, match=r"^argument 'to' holds a Session: only str"):
        Signature(fn).dump((Session(),), {})


def test_ambiguous_value() -> None:
    """A value that would be converted by the worker is refused, whatever takes the argument."""
    with pytest.raises(InvalidPayloadError, match=r"^argument 'when': a str would come back as a "):
        Signature(pass_on(save)).dump(("a", "2030-01-02T00:00:00Z"), {})


def test_result_of_wrapper() -> None:
    """A result that does not fit the wrapped function's annotation is plain data."""
    signature = Signature(pass_on(save))
    assert signature.load_result(signature.dump_result(WHEN)) == WHEN
    assert signature.load_result(signature.dump_result({"took": 1.5})) == {"took": 1.5}
    with pytest.raises(InvalidPayloadError, match=r"^the result holds a Session: only str"):
        signature.dump_result(Session())


def test_unusable_annotation_of_wrapped_function() -> None:
    """An annotation that can't be used does not matter if another function has the parameter."""

    def fn(x: str | datetime) -> None: ...

    with pytest.raises(TypeError, match="annotation of argument 'x' can't be used"):
        Signature(fn)
    assert roundtrip(pass_on(fn), "a") == (["a"], {})


@pytest.mark.parametrize("wrap", [functools.lru_cache, staticmethod])
def test_wrapper_without_signature(wrap: Any) -> None:
    """A wrapper written in C takes what the wrapped function takes."""

    def fn(to: str, when: datetime) -> None: ...

    wrapped = wrap(fn)
    assert roundtrip(wrapped, "a", WHEN) == (["a", WHEN], {})
    with pytest.raises(TypeError, match="missing a required argument: 'when'"):
        Signature(wrapped).dump(("a",), {})
    with pytest.raises(InvalidPayloadError, match=r"^argument 'to': Expected `str`, got `int`"):
        Signature(wrapped).dump((1, WHEN), {})


def test_method_of_wrapper() -> None:
    """A bound method has the parameters of the wrapped method without `self`."""

    class Sender:
        @pass_on
        def send(self, when: datetime) -> None: ...

    assert roundtrip(Sender().send, WHEN) == ([WHEN], {})
    assert roundtrip(functools.partial(Sender().send), when=WHEN) == ([], {"when": WHEN})


def test_annotations_of_wrapper() -> None:
    """A wrapper's own annotations are resolved in its own module."""
    module = ModuleType("wrappers")
    module.__dict__.update(functools=functools, Time=datetime)
    exec(
        "def parse(fn):\n"
        "    @functools.wraps(fn, assigned=['__qualname__'])\n"
        "    def wrapper(when: 'Time') -> 'Time': return fn(str(when))\n"
        "    return wrapper",
        module.__dict__,
    )

    def fn(text: str) -> str:
        return text

    signature = Signature(module.parse(fn))
    assert signature.load(*signature.dump((WHEN,), {})) == ([WHEN], {})
    assert signature.load_result("2030-01-02T00:00:00Z") == WHEN


def test_parameters_named_like_those_of_wrapper() -> None:
    """Parameters of the wrapped function may be called `args` and `kwargs`."""

    def fn(args: datetime, kwargs: int, *rest: datetime) -> None: ...

    assert roundtrip(pass_on(fn), WHEN, 1, WHEN, kw=2) == ([WHEN, 1, WHEN], {"kw": 2})
