"""Arguments of functions, which are checked when a task is submitted."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from inspect import signature
from typing import Any
from unittest.mock import AsyncMock, Mock, create_autospec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from background import InvalidTaskError, Manager, Task, every, task
from background._support.calls import _function_of, check_call
from background.testing import RecordingObserver


async def fetch(url: str, *, retries: int = 0) -> str:
    return url


def compute(first: int, second: int = 0) -> int:
    return first + second


@task(name="decorated")
async def decorated(url: str) -> str:
    return url


Submit = Callable[..., Any]

SUBMISSIONS: dict[str, Callable[[Manager], Submit]] = {
    "run": lambda manager: manager.run,
    "after": lambda manager: functools.partial(manager.after, 5),
    "loop": lambda manager: manager.loop,
    "every": lambda manager: functools.partial(manager.every, 5),
    "cron": lambda manager: functools.partial(manager.cron, "0 3 * * *"),
    "schedule": lambda manager: functools.partial(manager.schedule, every(5)),
    "options run": lambda manager: manager.options(timeout=5).run,
    "options after": lambda manager: functools.partial(manager.options(timeout=5).after, 5),
    "options loop": lambda manager: manager.options(timeout=5).loop,
    "options cron": lambda manager: functools.partial(manager.options(timeout=5).cron, "@daily"),
    "run_task": lambda manager: (
        lambda fn, *args, **kwargs: manager.run_task(Task(fn, args=args, kwargs=kwargs))
    ),
    "submit": lambda manager: (
        lambda fn, *args, **kwargs: manager.submit(Task(fn, args=args, kwargs=kwargs))
    ),
}


@pytest.mark.parametrize("submission", SUBMISSIONS)
@pytest.mark.parametrize("fn", [fetch, compute, decorated])
async def test_refused_arguments(
    manager: Manager, recorder: RecordingObserver, submission: str, fn: Any
) -> None:
    """Every method refuses arguments that the function does not take, and submits no task."""
    submit = SUBMISSIONS[submission](manager)
    calls: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((), {}, "missing a required argument"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"depth": 1}, "got an unexpected keyword argument 'depth'"),
    ]
    for args, kwargs, reason in calls:
        with pytest.raises(InvalidTaskError, match=rf"^fn: {fn.__name__}\(\) .*{reason}.*") as info:
            result = submit(fn, *args, **kwargs)
            if isinstance(result, Awaitable):
                await result
        assert "; for" not in str(info.value)
    assert manager.count() == 0
    assert recorder.events == []


@pytest.mark.parametrize(
    ("submission", "name", "advice"),
    [
        ("run", "retry", "for retry use manager.options(retry=…)"),
        ("every", "jitter", "for jitter use manager.schedule(every(…, jitter=…), …)"),
        ("cron", "tz", "for tz use manager.schedule(cron(…, tz=…), …)"),
        ("after", "timeout", "for timeout use manager.options(timeout=…)"),
        ("options loop", "max_failures", "for max_failures use manager.options(max_failures=…)"),
        ("run_task", "name", "for name use manager.options(name=…)"),
    ],
)
async def test_option_as_argument(
    manager: Manager, submission: str, name: str, advice: str
) -> None:
    """An option that is passed to the function by mistake is refused with where it belongs."""
    with pytest.raises(InvalidTaskError) as info:
        SUBMISSIONS[submission](manager)(fetch, "a", **{name: 5})
    assert str(info.value).endswith(f"unexpected keyword argument '{name}'; {advice}")
    with pytest.raises(InvalidTaskError) as info:
        SUBMISSIONS[submission](manager)(fetch, **{name: 5})
    assert str(info.value).endswith(f"missing a required argument: 'url'; {advice}")


async def test_function_with_parameter_of_that_name(manager: Manager) -> None:
    """An argument that the function takes is passed to it, even if it is named like an option."""

    async def connect(*, timeout: float) -> float:
        return timeout

    assert await manager.run(connect, timeout=5) == 5


class Service:
    async def method(self, url: str) -> str:
        return url

    @classmethod
    async def of_class(cls, url: str) -> str:
        return url

    @staticmethod
    async def static(url: str) -> str:
        return url

    async def __call__(self, url: str) -> str:
        return url


@functools.wraps(fetch)
async def wrapper(*args: Any, **kwargs: Any) -> str:
    return await fetch("a")


ACCEPTED: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "method": (Service().method, ("a",), {}),
    "class method": (Service.of_class, ("a",), {}),
    "static method": (Service.static, ("a",), {}),
    "callable object": (Service(), ("a",), {}),
    "partial": (functools.partial(fetch, "a"), (), {"retries": 1}),
    "partial of a partial": (functools.partial(functools.partial(fetch), "a"), (), {}),
    "partial with a keyword that is replaced": (functools.partial(fetch, url="b"), (), {"url": 1}),
    "partial of a method": (functools.partial(Service().method, "a"), (), {}),
    "wrapper of a function that takes less": (wrapper, (1, 2, 3), {"depth": 1}),
    "wrapper of a function that takes more": (wrapper, (), {}),
    "function without a signature": (dict[str, int]().update, ({"a": 1},), {}),
    "builtin": (sum, ([1, 2],), {}),
    "class": (complex, (1, 2), {}),
    "type without a signature": (int, ("1",), {}),
    "mock": (AsyncMock(), (1, 2), {"depth": 1}),
    "specified mock": (create_autospec(fetch), ("a",), {}),
}


@pytest.mark.parametrize("case", ACCEPTED)
@pytest.mark.realtime
async def test_accepted_callable(manager: Manager, case: str) -> None:
    """Arguments that a callable of any kind takes are accepted."""
    fn, args, kwargs = ACCEPTED[case]
    await manager.run(fn, *args, **kwargs)


REFUSED: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "method": (Service().method, ("a", "b"), {}),
    "class method": (Service.of_class, (), {}),
    "static method": (Service.static, (), {}),
    "callable object": (Service(), (), {}),
    "partial": (functools.partial(fetch, "a"), ("b",), {}),
    "partial of a keyword": (functools.partial(fetch, url="a"), ("b",), {}),
    "builtin": (sum, (), {}),
    "class": (Service, (1,), {}),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_refused_callable(manager: Manager, case: str) -> None:
    """Arguments that a callable of any kind does not take are refused."""
    fn, args, kwargs = REFUSED[case]
    with pytest.raises(InvalidTaskError, match=r"^fn: .* does not take these arguments: "):
        manager.run(fn, *args, **kwargs)


def test_strange_attributes() -> None:
    """A callable takes any arguments if its attributes raise errors."""

    class Strange:
        __call__ = Mock()

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError

    check_call(Strange(), (1, 2), {"depth": 3}, {})


def test_wrong_signature_attribute() -> None:
    """A function with a `__signature__` is checked by its real parameters."""

    async def fn() -> None: ...

    fn.__signature__ = signature(fetch)  # type: ignore[attr-defined]
    check_call(fn, (), {}, {})
    with pytest.raises(InvalidTaskError, match=r"arguments: they do not fit its parameters$"):
        check_call(fn, ("a",), {}, {})


def test_placeholders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Placeholders of a `partial`, which Python 3.14 has, are filled by arguments."""
    place = object()
    monkeypatch.setattr("background._support.calls._PLACEHOLDER", place)
    filled = functools.partial(compute, place, 2)
    check_call(filled, (1,), {}, {})
    with pytest.raises(InvalidTaskError):
        check_call(filled, (1, 3), {}, {})
    assert _function_of(filled, 0, {}) is None


def test_template() -> None:
    """A `Task` without its arguments is a valid template."""
    assert Task(fetch).args == ()


def make_function(
    by_position: int, by_both: int, optional: int, by_name: list[str], rest: bool, others: bool
) -> Callable[..., None]:
    """Make a function with parameters of all kinds, named from a to f."""
    listed = [*"abcd"[: by_position + by_both]]
    first = max(0, len(listed) - optional)
    parameters = listed[:first] + [f"{name}=0" for name in listed[first:]]
    if by_position:
        parameters.insert(by_position, "/")
    if rest or by_name:
        parameters.append("*rest" if rest else "*")
    parameters += [f"{name}{default}" for name, default in zip("ef", by_name, strict=False)]
    if others:
        parameters.append("**others")
    names: dict[str, Any] = {}
    exec(f"def fn({', '.join(parameters)}): pass", names)
    fn: Callable[..., None] = names["fn"]
    return fn


counts = st.integers(0, 2)
functions = st.builds(
    make_function,
    counts,
    counts,
    st.integers(0, 4),
    st.lists(st.sampled_from(["", "=0"]), max_size=2),
    st.booleans(),
    st.booleans(),
)


@given(
    functions,
    st.lists(st.just(1), max_size=5),
    st.dictionaries(st.sampled_from("abcdefg"), st.just(1), max_size=4),
    st.sampled_from(["function", "partial", "method", "object"]),
)
def test_same_as_call(
    fn: Callable[..., None], args: list[int], kwargs: dict[str, int], form: str
) -> None:
    """Exactly those arguments are refused with which a call of the function raises a TypeError."""
    called: Any = fn
    if form == "partial":
        called = functools.partial(fn, *args[:1], **dict([*kwargs.items()][:1]))
    elif form == "method":
        called = fn.__get__(1)  # type: ignore[attr-defined]
    elif form == "object":
        called = type("Callable", (), {"__call__": fn})()
    try:
        called(*args, **kwargs)
    except TypeError:
        with pytest.raises(InvalidTaskError):
            check_call(called, tuple(args), kwargs, {})
    else:
        check_call(called, tuple(args), kwargs, {})
