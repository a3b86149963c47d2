"""Retries: attempts, policies, timeouts, and errors that are never retried."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, Self

import anyio
import pytest
import tenacity
from anyio.lowlevel import checkpoint
from support.labels import label
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    RetryError,
    TryAgain,
    retry_if_exception,
    retry_if_exception_message,
    retry_if_exception_type,
    retry_if_not_exception_type,
    retry_if_not_result,
    retry_if_result,
    retry_unless_exception_type,
    stop_after_attempt,
    stop_after_delay,
    stop_any,
    stop_before_delay,
    stop_never,
    wait_chain,
    wait_exponential,
    wait_fixed,
    wait_incrementing,
    wait_none,
)

from background import (
    InvalidTaskError,
    Manager,
    Task,
    TaskCancelled,
    TaskCancelledError,
    TaskExpiredError,
    TaskFailed,
    TaskHandle,
    TaskKind,
    TaskRetrying,
    TaskStatus,
    TaskSucceeded,
    every,
)
from background.testing import RecordingObserver


class Flaky:
    """An async function that fails a number of times and records the times of its calls."""

    def __init__(self, failures: float = float("inf"), error: type[Exception] = ValueError) -> None:
        self.calls: list[float] = []
        self._failures = failures
        self._error = error

    async def __call__(self) -> int:
        self.calls.append(anyio.current_time())
        await checkpoint()
        if len(self.calls) <= self._failures:
            raise self._error(f"attempt {len(self.calls)}")
        return len(self.calls)

    def gaps(self) -> list[float]:
        """Return the seconds between consecutive calls."""
        pairs = zip(self.calls, self.calls[1:], strict=False)
        return [pytest.approx(later - earlier) for earlier, later in pairs]


def quick_policy(**options: Any) -> AsyncRetrying:
    return AsyncRetrying(**{"wait": wait_none(), "stop": stop_after_attempt(3), **options})


# Numbers of attempts


async def test_no_policy(manager: Manager, recorder: RecordingObserver) -> None:
    """A task without a policy has one attempt."""
    flaky = Flaky()
    handle = manager.run(flaky)
    with pytest.raises(ValueError, match="attempt 1"):
        await handle
    assert len(flaky.calls) == handle.attempt == 1
    assert recorder.names() == ["added", "started", "failed"]


@pytest.mark.parametrize("attempts", [1, 2, 5])
async def test_number_of_attempts(manager: Manager, attempts: int) -> None:
    """A number as the policy is the number of attempts."""
    flaky = Flaky()
    handle = manager.run_task(Task(flaky, retry=attempts))
    with pytest.raises(ValueError, match=f"attempt {attempts}"):
        await handle
    assert len(flaky.calls) == handle.attempt == attempts


async def test_default_wait(manager: Manager) -> None:
    """A number of attempts uses exponential backoff with jitter."""
    flaky = Flaky()
    await manager.run_task(Task(flaky, retry=12)).wait()
    gaps = [later - earlier for earlier, later in zip(flaky.calls, flaky.calls[1:], strict=False)]
    for number, gap in enumerate(gaps, 1):
        assert 0.1 - 1e-6 <= gap <= min(30, max(0.1, 0.2 * 2 ** (number - 1))) + 1e-6
    assert len(set(gaps[2:])) > 5


async def test_success_after_failures(manager: Manager, recorder: RecordingObserver) -> None:
    """A task that succeeds after failed attempts has no error."""
    flaky = Flaky(failures=2)
    handle = manager.run_task(Task(flaky, retry=5))
    assert await handle == 3
    assert handle.attempt == 3
    assert handle.error is None
    assert recorder.names() == ["added", "started", "retrying", "retrying", "succeeded"]


async def test_success_at_first_attempt(manager: Manager) -> None:
    """A task that succeeds immediately has one attempt."""
    flaky = Flaky(failures=0)
    assert await manager.run_task(Task(flaky, retry=5)) == 1


# Policies of managers and of tasks


async def test_policy_of_manager() -> None:
    """The policy of the manager is the default of its tasks."""
    async with Manager(retry=3) as manager:
        flaky = Flaky()
        await manager.run(flaky).wait()
        assert len(flaky.calls) == 3


async def test_policy_of_task() -> None:
    """The policy of a task replaces the manager's."""
    async with Manager(retry=3) as manager:
        flaky = Flaky()
        await manager.run_task(Task(flaky, retry=5)).wait()
        assert len(flaky.calls) == 5


@pytest.mark.parametrize("off", [1, AsyncRetrying(enabled=False)], ids=["1", "enabled=False"])
async def test_policy_disabled_by_task(off: Any) -> None:
    """A task can disable the policy of the manager."""
    async with Manager(retry=3) as manager:
        flaky = Flaky()
        with pytest.raises(ValueError, match="attempt 1"):
            await manager.run_task(Task(flaky, retry=off))
        assert len(flaky.calls) == 1


async def test_disabled_policy_of_manager() -> None:
    """A disabled policy of the manager permits one attempt."""
    async with Manager(retry=AsyncRetrying(enabled=False)) as manager:
        flaky = Flaky()
        await manager.run(flaky).wait()
        assert len(flaky.calls) == 1


# Strategies of tenacity: wait, stop, retry


@pytest.mark.parametrize(
    ("wait", "gaps"),
    [
        (wait_none(), [0, 0, 0]),
        (wait_fixed(7), [7, 7, 7]),
        (wait_incrementing(start=1, increment=2), [1, 3, 5]),
        (wait_exponential(multiplier=1), [1, 2, 4]),
        (wait_chain(wait_fixed(1), wait_fixed(5)), [1, 5, 5]),
        (wait_fixed(1) + wait_fixed(2), [3, 3, 3]),
        (lambda state: state.attempt_number, [1, 2, 3]),
    ],
    ids=["none", "fixed", "incrementing", "exponential", "chain", "sum", "function"],
)
async def test_wait_strategies(manager: Manager, wait: Any, gaps: list[float]) -> None:
    """Wait strategies of tenacity determine the pauses between attempts."""
    flaky = Flaky()
    policy = AsyncRetrying(stop=stop_after_attempt(4), wait=wait)
    await manager.run_task(Task(flaky, retry=policy)).wait()
    assert flaky.gaps() == gaps


async def test_negative_wait(manager: Manager) -> None:
    """A negative wait is treated as zero."""
    flaky = Flaky()
    handle = manager.run_task(Task(flaky, retry=quick_policy(wait=lambda state: -1)))
    with pytest.raises(ValueError, match="attempt 3"):
        await handle


@pytest.mark.parametrize(
    ("stop", "calls"),
    [
        (stop_after_attempt(2), 2),
        (stop_after_delay(25), 4),
        (stop_before_delay(25), 3),
        (stop_any(stop_after_attempt(9), stop_after_delay(5)), 2),
        (stop_after_attempt(2) | stop_never, 2),
        (lambda state: state.attempt_number == 3, 3),
    ],
    ids=["attempts", "after delay", "before delay", "any", "or", "function"],
)
async def test_stop_strategies(manager: Manager, stop: Any, calls: int) -> None:
    """Stop strategies of tenacity limit the attempts; delays use the event loop's clock."""
    flaky = Flaky()
    policy = AsyncRetrying(stop=stop, wait=wait_fixed(10))
    await manager.run_task(Task(flaky, retry=policy)).wait()
    assert len(flaky.calls) == calls


async def test_stop_delay_starts_at_first_attempt(manager: Manager) -> None:
    """The delay of a stop strategy starts at the first attempt, not at the submission."""
    flaky = Flaky()
    policy = AsyncRetrying(stop=stop_after_delay(25), wait=wait_fixed(10))
    await manager.run_task(Task(flaky, delay=1000, retry=policy)).wait()
    assert len(flaky.calls) == 4


@pytest.mark.parametrize(
    ("retry", "calls"),
    [
        (retry_if_exception_type(), 3),
        (retry_if_exception_type(ValueError), 3),
        (retry_if_exception_type(OSError), 1),
        (retry_if_not_exception_type(ValueError), 1),
        (retry_if_not_exception_type(OSError), 3),
        (retry_unless_exception_type(ValueError), 1),
        (retry_if_exception(lambda error: "attempt 1" in str(error)), 2),
        (retry_if_exception_message(match="attempt [12]"), 3),
        (retry_if_exception_type(OSError) | retry_if_exception_type(ValueError), 3),
        (retry_if_exception_type(OSError) & retry_if_exception_type(ValueError), 1),
        (tenacity.asyncio.retry_if_exception(lambda error: return_after_checkpoint(True)), 3),
        (tenacity.asyncio.retry_if_exception(lambda error: return_after_checkpoint(False)), 1),
        (lambda state: state.attempt_number < 2, 2),
        (tenacity.retry_never, 1),
        (tenacity.retry_always, 3),
    ],
    ids=label,
)
async def test_retry_predicates(manager: Manager, retry: Any, calls: int) -> None:
    """Retry predicates of tenacity decide which errors are retried."""
    flaky = Flaky()
    handle = manager.run_task(Task(flaky, retry=quick_policy(retry=retry)))
    with pytest.raises(ValueError, match=f"attempt {calls}"):
        await handle
    assert len(flaky.calls) == calls


async def return_after_checkpoint(value: Any) -> Any:
    await checkpoint()
    return value


@pytest.mark.parametrize(
    "retry",
    [
        retry_if_result(lambda value: value < 3),
        retry_if_not_result(lambda value: value == 3),
        retry_if_result(lambda value: value < 3) | retry_if_exception_type(OSError),
        tenacity.asyncio.retry_if_result(lambda value: return_after_checkpoint(value < 3)),
        retry_unless_exception_type(LookupError),
    ],
    ids=["result", "not result", "or", "async", "unless exception"],
)
async def test_result_predicates(manager: Manager, recorder: RecordingObserver, retry: Any) -> None:
    """Result predicates of tenacity decide which results are retried.

    `retry_unless_exception_type` retries results until an attempt raises such an error.
    """
    counting = Flaky(failures=0)
    endless = isinstance(retry, retry_unless_exception_type)
    handle = manager.run_task(Task(counting, retry=quick_policy(retry=retry)))
    if endless:
        with pytest.raises(RetryError):
            await handle
    else:
        assert await handle == 3
    assert len(counting.calls) == 3
    assert [event.error for event in recorder.of(TaskRetrying)] == [None, None]


async def test_rejected_result(manager: Manager) -> None:
    """A result that the policy still rejects after the last attempt raises `RetryError`."""
    counting = Flaky(failures=0)
    handle = manager.run_task(
        Task(counting, retry=quick_policy(retry=retry_if_result(lambda v: True)))
    )
    with pytest.raises(RetryError) as info:
        await handle
    assert info.value.last_attempt.result() == 3
    assert handle.status is TaskStatus.FAILED
    assert handle.error is info.value


async def test_error_after_rejected_result(manager: Manager) -> None:
    """An error after a rejected result ends the task if the policy does not retry it."""
    calls = 0

    async def work() -> str:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise LookupError("second")
        return "refused"

    policy = quick_policy(retry=retry_if_result(lambda value: value == "refused"))
    with pytest.raises(LookupError, match="second"):
        await manager.run_task(Task(work, retry=policy))
    assert calls == 2


async def test_try_again(manager: Manager) -> None:
    """`TryAgain` causes another attempt regardless of the predicate."""
    flaky = Flaky(failures=2, error=TryAgain)
    policy = quick_policy(retry=retry_if_exception_type(OSError))
    assert await manager.run_task(Task(flaky, retry=policy)) == 3


async def test_try_again_on_last_attempt(manager: Manager) -> None:
    """`TryAgain` on the last attempt is the task's error."""
    flaky = Flaky(error=TryAgain)
    with pytest.raises(TryAgain, match="attempt 3"):
        await manager.run_task(Task(flaky, retry=quick_policy()))


# Hooks


@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
async def test_hook_order(manager: Manager, is_async: bool) -> None:
    """Hooks of a policy are called in the order that tenacity documents."""
    calls: list[str] = []

    def make_hook(name: str, result: Callable[[RetryCallState], Any]) -> Callable[..., Any]:
        def sync_hook(state: RetryCallState) -> Any:
            calls.append(f"{name} {state.attempt_number}")
            return result(state)

        async def async_hook(state: RetryCallState) -> Any:
            await checkpoint()
            return sync_hook(state)

        return async_hook if is_async else sync_hook

    policy = AsyncRetrying(
        before=make_hook("before", lambda state: None),
        retry=make_hook("retry", lambda state: state.outcome.failed),
        after=make_hook("after", lambda state: None),
        wait=make_hook("wait", lambda state: 0),
        stop=make_hook("stop", lambda state: False),
        before_sleep=make_hook("before_sleep", lambda state: None),
    )
    assert await manager.run_task(Task(Flaky(failures=1), retry=policy)) == 2
    steps = ("before", "retry", "after", "wait", "stop", "before_sleep")
    assert calls == [*(f"{step} 1" for step in steps), "before 2", "retry 2"]


async def test_before_hook_without_retry(manager: Manager) -> None:
    """The `before` hook is called for a task that succeeds immediately."""
    attempts: list[int] = []
    policy = AsyncRetrying(before=lambda state: attempts.append(state.attempt_number))
    assert await manager.run_task(Task(Flaky(failures=0), retry=policy)) == 1
    assert attempts == [1]


async def test_retry_call_state(manager: Manager) -> None:
    """Hooks get a complete `RetryCallState`."""
    states: list[dict[str, Any]] = []

    async def work(first: int, *, second: int) -> None:
        await anyio.sleep(3)
        raise ValueError(first + second)

    def record_state(state: RetryCallState) -> None:
        assert state.outcome is not None
        assert state.next_action is not None
        states.append(
            {
                "fn": state.fn,
                "args": state.args,
                "kwargs": state.kwargs,
                "attempt": state.attempt_number,
                "sleep": state.next_action.sleep,
                "upcoming": state.upcoming_sleep,
                "since": state.seconds_since_start,
                "idle": state.idle_for,
                "error": str(state.outcome.exception()),
                "policy": state.retry_object is policy,
            }
        )

    policy = quick_policy(wait=wait_fixed(10), before_sleep=record_state)
    task = Task(work, args=(1,), kwargs={"second": 2}, retry=policy)
    await manager.run_task(task).wait()
    common = {"fn": work, "args": (1,), "kwargs": {"second": 2}, "error": "3", "policy": True}
    assert states == [
        {**common, "attempt": 1, "sleep": 10, "upcoming": 10, "since": 3, "idle": 10},
        {**common, "attempt": 2, "sleep": 10, "upcoming": 10, "since": 16, "idle": 20},
    ]


async def test_logging_hooks(manager: Manager, caplog: pytest.LogCaptureFixture) -> None:
    """Logging hooks of tenacity log every attempt."""
    logger = logging.getLogger("policy")
    caplog.set_level(logging.DEBUG, logger="policy")
    policy = quick_policy(
        before=tenacity.before_log(logger, logging.DEBUG),
        after=tenacity.after_log(logger, logging.DEBUG),
        before_sleep=tenacity.before_sleep_log(logger, logging.DEBUG),
    )
    flaky = Flaky()
    await manager.run_task(Task(flaky, retry=policy)).wait()
    assert [record.name for record in caplog.records].count("policy") == 3 + 3 + 2


@pytest.mark.parametrize("hook", ["before", "retry", "after", "wait", "stop", "before_sleep"])
@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
async def test_hook_raises(
    manager: Manager, recorder: RecordingObserver, hook: str, is_async: bool
) -> None:
    """A hook that raises fails the task only; the attempt's error is the context of its error."""

    def sync_hook(state: RetryCallState) -> Any:
        raise LookupError("hook")

    async def async_hook(state: RetryCallState) -> Any:
        raise LookupError("hook")

    policy = quick_policy(**{hook: async_hook if is_async else sync_hook})
    handle = manager.run_task(Task(Flaky(), retry=policy))
    with pytest.raises(LookupError, match="hook") as info:
        await handle
    assert recorder.names() == ["added", "started", "failed"]
    if hook != "before":
        assert isinstance(info.value.__context__, ValueError)
    assert await manager.run(return_after_checkpoint, 1) == 1


async def test_wait_returns_non_number(manager: Manager) -> None:
    """A wait strategy that does not return a number fails the task."""
    policy = quick_policy(wait=lambda state: "soon")
    with pytest.raises(ValueError, match="soon"):
        await manager.run_task(Task(Flaky(), retry=policy))


# Outcomes


@pytest.mark.parametrize("reraise", [False, True])
async def test_error_of_last_attempt(
    manager: Manager, recorder: RecordingObserver, reraise: bool
) -> None:
    """The error of a failed task is that of its last attempt, with and without `reraise`."""
    handle = manager.run_task(Task(Flaky(), retry=quick_policy(reraise=reraise)))
    with pytest.raises(ValueError, match="attempt 3") as info:
        await handle
    assert handle.error is info.value
    assert recorder.of(TaskFailed)[0].error is info.value


class GaveUp(RetryError):
    pass


async def test_retry_error_class(manager: Manager) -> None:
    """A custom `retry_error_cls` is raised from the error of the last attempt."""
    handle = manager.run_task(Task(Flaky(), retry=quick_policy(retry_error_cls=GaveUp)))
    with pytest.raises(GaveUp) as info:
        await handle
    assert isinstance(info.value.__cause__, ValueError)
    assert info.value.last_attempt.failed


async def test_reraise_over_retry_error_class(manager: Manager) -> None:
    """`reraise` takes precedence over `retry_error_cls`."""
    policy = quick_policy(retry_error_cls=GaveUp, reraise=True)
    with pytest.raises(ValueError, match="attempt 3"):
        await manager.run_task(Task(Flaky(), retry=policy))


async def test_retry_error_class_for_rejected_result(manager: Manager) -> None:
    """A custom `retry_error_cls` is raised for a rejected result."""
    policy = quick_policy(retry=retry_if_result(lambda value: True), retry_error_cls=GaveUp)
    with pytest.raises(GaveUp):
        await manager.run_task(Task(Flaky(failures=0), retry=policy))


async def test_retry_error_class_without_retry(
    manager: Manager,
) -> None:
    """A custom `retry_error_cls` is not used for an error that is not retried."""
    policy = quick_policy(retry=retry_if_exception_type(OSError), retry_error_cls=GaveUp)
    with pytest.raises(ValueError, match="attempt 1"):
        await manager.run_task(Task(Flaky(), retry=policy))


@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
async def test_retry_error_callback(
    manager: Manager, recorder: RecordingObserver, is_async: bool
) -> None:
    """The value of `retry_error_callback` becomes the task's result."""

    def sync_hook(state: RetryCallState) -> str:
        assert state.outcome is not None
        return f"instead of {state.outcome.exception()}"

    async def async_hook(state: RetryCallState) -> str:
        return sync_hook(state)

    policy = quick_policy(retry_error_callback=async_hook if is_async else sync_hook)
    handle = manager.run_task(Task(Flaky(), retry=policy))
    assert await handle == "instead of attempt 3"
    assert handle.status is TaskStatus.SUCCEEDED
    assert recorder.names()[-1] == "succeeded"


async def test_retry_error_callback_raises(manager: Manager) -> None:
    """An error raised by `retry_error_callback` is the task's error."""

    def raise_error(state: RetryCallState) -> None:
        raise LookupError("callback")

    with pytest.raises(LookupError, match="callback"):
        await manager.run_task(Task(Flaky(), retry=quick_policy(retry_error_callback=raise_error)))


@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
async def test_custom_sleep(manager: Manager, is_async: bool) -> None:
    """The `sleep` function of a policy, sync or async, replaces the default pause."""
    pauses: list[float] = []

    async def async_sleep(seconds: float) -> None:
        pauses.append(seconds)
        await anyio.sleep(2 * seconds)

    flaky = Flaky()
    policy = quick_policy(wait=wait_fixed(10), sleep=async_sleep if is_async else pauses.append)
    await manager.run_task(Task(flaky, retry=policy)).wait()
    assert pauses == [10, 10]
    assert flaky.gaps() == ([20, 20] if is_async else [0, 0])


async def test_sleep_without_wait(manager: Manager) -> None:
    """A task can be cancelled although neither its function nor its policy ever waits."""

    async def fail() -> None:
        if handle.attempt == 1000:
            raise KeyError("no other task ran")
        raise ValueError

    def is_value_error(error: BaseException) -> bool:
        return isinstance(error, ValueError)

    policy = AsyncRetrying(sleep=lambda seconds: None, retry=retry_if_exception(is_value_error))
    handle = manager.run_task(Task(fail, retry=policy))
    manager.run(checkpoint)
    await checkpoint()
    await checkpoint()
    handle.cancel()
    assert await handle.wait() is TaskStatus.CANCELLED


@pytest.mark.realtime
async def test_retry_sync_function(anyio_backend: object) -> None:
    """A sync function is retried."""
    calls = 0

    def fail() -> int:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise ValueError
        return calls

    async with Manager(retry=quick_policy()) as manager:
        assert await manager.run(fail) == 3


# State of policies


def copy_state(policy: AsyncRetrying) -> dict[str, Any]:
    state = {key: value for key, value in vars(policy).items() if key != "_local"}
    return {**state, "statistics": dict(policy.statistics), "local": dict(vars(policy._local))}


async def test_shared_policy_is_stateless(manager: Manager) -> None:
    """A policy shared by concurrent tasks keeps no state of them."""
    policy = AsyncRetrying(stop=stop_after_attempt(4), wait=wait_fixed(10))
    policy.statistics["custom"] = 1
    before = copy_state(policy)
    functions = [Flaky(failures=number % 5) for number in range(1000)]
    handles: list[TaskHandle[int]] = []
    for function in functions:
        handles.append(manager.run_task(Task(function, retry=policy)))
        await checkpoint()
    for number, handle in enumerate(handles):
        if number % 5 == 4:
            with pytest.raises(ValueError, match="attempt 4"):
                await handle
        else:
            assert await handle == number % 5 + 1
    for number, function in enumerate(functions):
        assert function.gaps() == [10] * min(3, number % 5)
    assert copy_state(policy) == before


# Cancellation


POLICIES = {
    "every exception": quick_policy(retry=retry_if_exception(lambda error: True)),
    "not of a type": quick_policy(retry=retry_if_not_exception_type(ZeroDivisionError)),
    "base exceptions": quick_policy(retry=retry_if_exception_type(BaseException)),
    "always": quick_policy(retry=tenacity.retry_always),
    "a number": 3,
}
eager_policies = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


@eager_policies
@pytest.mark.parametrize("kind", TaskKind)
async def test_cancellation_not_retried(
    manager: Manager, recorder: RecordingObserver, policy: Any, kind: TaskKind
) -> None:
    """A cancelled task is not retried, regardless of the policy."""
    calls = 0

    async def work() -> None:
        nonlocal calls
        calls += 1
        await anyio.sleep_forever()

    handle = manager.run_task(Task(work, retry=policy, kind=kind))
    await anyio.sleep(1)
    assert handle.cancel("enough")
    with pytest.raises(TaskCancelledError, match="enough"):
        await handle
    await anyio.sleep(100)
    assert calls == 1
    assert recorder.names() == ["added", "started", "cancelled"]


@eager_policies
async def test_cleanup_error_not_retried(
    manager: Manager, recorder: RecordingObserver, policy: Any
) -> None:
    """An error in the clean-up of a cancelled task is not retried."""

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("clean-up")

    handle = manager.run_task(Task(work, retry=policy))
    await anyio.sleep(1)
    handle.cancel()
    with pytest.raises(ValueError, match="clean-up"):
        await handle
    assert recorder.names() == ["added", "started", "failed"]


@eager_policies
async def test_expiry_not_retried(
    manager: Manager, recorder: RecordingObserver, policy: Any
) -> None:
    """An expired task is not retried."""
    handle = manager.run_task(Task(anyio.sleep_forever, retry=policy, lifespan=5))
    with pytest.raises(TaskExpiredError):
        await handle
    assert recorder.names() == ["added", "started", "expired"]


@eager_policies
async def test_shutdown_not_retried(policy: Any) -> None:
    """A task cancelled by a shutdown is not retried."""
    async with Manager(retry=policy) as manager:
        handle = manager.run(anyio.sleep_forever)
        await anyio.sleep(1)
        report = await manager.close(timeout=0)
        assert report.cancelled == (handle,)
        assert handle.attempt == 1


async def test_cancel_in_hook(manager: Manager) -> None:
    """A hook of the policy can cancel its task."""
    flaky = Flaky()
    policy = quick_policy(after=lambda state: handle.cancel("in a hook") and None)
    handle = manager.run_task(Task(flaky, retry=policy))
    with pytest.raises(TaskCancelledError, match="in a hook"):
        await handle
    assert len(flaky.calls) == 1


async def test_own_timeout_is_retried(manager: Manager) -> None:
    """A timeout set by the function itself is an ordinary error and is retried."""

    async def work() -> None:
        with anyio.fail_after(1):
            await anyio.sleep_forever()

    handle = manager.run_task(Task(work, retry=quick_policy()))
    with pytest.raises(TimeoutError):
        await handle
    assert handle.attempt == 3


# Timeouts


async def test_timeout(manager: Manager, recorder: RecordingObserver) -> None:
    """An attempt that exceeds its timeout fails with a `TimeoutError`."""
    handle = manager.run_task(Task(anyio.sleep_forever, name="slow", timeout=5))
    with pytest.raises(TimeoutError, match=r"'slow'.* 5 s"):
        await handle
    assert handle.status is TaskStatus.FAILED
    assert recorder.of(TaskFailed)[0].duration == pytest.approx(5)


async def asks_slowly(requests: int) -> None:
    for _ in range(requests):
        await anyio.sleep(3)


async def asks_in_group(requests: int) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(asks_slowly, requests)


async def asks_with_clean_up(requests: int) -> None:
    try:
        await asks_slowly(requests)
    finally:
        await clean_up_slowly()


async def clean_up_slowly() -> None:
    with anyio.CancelScope(shield=True):
        await anyio.sleep(1)


class Client:
    """A client whose connection is closed by code that awaits."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await checkpoint()

    async def get(self) -> None:
        await anyio.sleep(100)


async def asks_client(requests: int) -> None:
    async with Client() as client:
        await client.get()


async def asks_in_exit_stack(requests: int) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(Client())
        stack.push_async_callback(checkpoint)
        await asks_slowly(requests)


async def asks_with_interrupted_clean_up(requests: int) -> None:
    try:
        await asks_slowly(requests)
    finally:
        try:
            await anyio.sleep(1)
        finally:
            await checkpoint()


async def asks_after_error(requests: int) -> None:
    try:
        with anyio.fail_after(1):
            await asks_slowly(requests)
    except TimeoutError:
        await anyio.sleep(100)


async def asks_in_circle(requests: int) -> None:
    try:
        await asks_slowly(requests)
    except BaseException as error:
        error.__context__ = error
        raise


def line_of(fn: Callable[..., Any], offset: int) -> str:
    return f"test_retry.py:{fn.__code__.co_firstlineno + offset} in {fn.__qualname__}"


@pytest.mark.parametrize(
    ("fn", "place"),
    [
        (asks_slowly, line_of(asks_slowly, 2)),
        (asks_in_group, line_of(asks_in_group, 1)),
        (asks_with_clean_up, line_of(asks_slowly, 2)),
        (asks_client, line_of(Client.get, 1)),
        (asks_in_exit_stack, line_of(asks_slowly, 2)),
        (asks_with_interrupted_clean_up, line_of(asks_slowly, 2)),
        (asks_after_error, line_of(asks_after_error, 5)),
        (asks_in_circle, line_of(asks_slowly, 2)),
    ],
)
async def test_place_of_timeout(manager: Manager, fn: Callable[..., Any], place: str) -> None:
    """The error of a timeout says where the application's code waited."""
    with pytest.raises(TimeoutError) as caught:
        await manager.options(name="slow", timeout=5).run(fn, 9)
    expected = "an attempt of task 'slow' took longer than its timeout of 5 s; it waited at "
    assert str(caught.value) == expected + place


async def test_place_in_library(manager: Manager) -> None:
    """The error of a timeout names the task's function if no code of the application waited."""
    with pytest.raises(TimeoutError, match=r"5 s; it waited at \S+\.py:\d+ in sleep_forever$"):
        await manager.options(timeout=5).run(anyio.sleep_forever)


async def test_error_before_timeout(manager: Manager) -> None:
    """An error before the timeout is raised as it is."""
    with pytest.raises(ValueError, match=r"^attempt 1$"):
        await manager.options(timeout=5).run(Flaky())


async def test_timeout_per_attempt(manager: Manager) -> None:
    """The timeout applies to every attempt separately."""
    calls: list[float] = []

    async def work() -> str:
        calls.append(anyio.current_time())
        await anyio.sleep(100 if len(calls) < 3 else 4)
        return "in time"

    policy = AsyncRetrying(wait=wait_fixed(10), stop=stop_after_attempt(3))
    assert await manager.run_task(Task(work, timeout=5, retry=policy)) == "in time"
    assert [calls[1] - calls[0], calls[2] - calls[1]] == [pytest.approx(15)] * 2


async def test_timeout_not_retried(manager: Manager) -> None:
    """A policy can exclude timeouts from retries."""
    policy = quick_policy(retry=retry_if_not_exception_type(TimeoutError))
    handle = manager.run_task(Task(anyio.sleep_forever, timeout=5, retry=policy))
    with pytest.raises(TimeoutError):
        await handle
    assert handle.attempt == 1


async def test_timeout_excludes_backoff(manager: Manager) -> None:
    """The timeout does not include the backoff."""
    flaky = Flaky(failures=1)
    policy = AsyncRetrying(wait=wait_fixed(100), stop=stop_after_attempt(2))
    assert await manager.run_task(Task(flaky, timeout=5, retry=policy)) == 2


async def test_cancel_before_timeout(manager: Manager) -> None:
    """A task cancelled before its timeout ends as cancelled."""
    handle = manager.run_task(Task(anyio.sleep_forever, timeout=5, retry=3))
    await anyio.sleep(4)
    handle.cancel()
    assert await handle.wait() is TaskStatus.CANCELLED


async def test_cleanup_error_after_timeout(
    manager: Manager,
) -> None:
    """An error in the clean-up after a timeout replaces the `TimeoutError`."""

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise LookupError("clean-up")

    with pytest.raises(LookupError):
        await manager.run_task(Task(work, timeout=5))


async def test_timeout_of_iteration(manager: Manager, recorder: RecordingObserver) -> None:
    """An iteration that exceeds the timeout fails, and the loop continues."""
    loop = manager.run_task(
        Task(anyio.sleep_forever, kind=TaskKind.LOOP, schedule=every(10), timeout=5)
    )
    await anyio.sleep(33)
    assert [type(event.error) for event in recorder.of(TaskFailed)] == [TimeoutError] * 3
    assert loop.iteration == 4


# Backoff


async def test_retrying_event(manager: Manager, recorder: RecordingObserver) -> None:
    """The retrying event contains the attempt, its error and the delay."""
    task = Task(Flaky(failures=2), retry=quick_policy(wait=wait_incrementing(1, 2)), meta={"a": 1})
    handle = manager.run_task(task)
    await handle
    events = recorder.of(TaskRetrying)
    assert [(event.attempt, str(event.error), event.delay) for event in events] == [
        (1, "attempt 1", 1),
        (2, "attempt 2", 3),
    ]
    for event in events:
        assert event.id == handle.id
        assert event.name == handle.name
        assert event.meta == {"a": 1}
        assert event.iteration == 0
    assert recorder.of(TaskSucceeded)[0].attempt == 3
    assert recorder.of(TaskSucceeded)[0].duration == pytest.approx(4)


async def test_status_during_backoff(manager: Manager) -> None:
    """A task in backoff has the status "retrying" and no stack."""
    seen: list[TaskStatus] = []

    async def work() -> None:
        seen.append(handle.status)
        raise ValueError

    handle = manager.run_task(Task(work, retry=quick_policy(wait=wait_fixed(10))))
    await anyio.sleep(5)
    assert handle.status is TaskStatus.RETRYING
    assert handle.stack() == []
    await handle.wait()
    assert seen == [TaskStatus.RUNNING] * 3


async def test_cancel_during_backoff(manager: Manager, recorder: RecordingObserver) -> None:
    """A task cancelled during backoff ends immediately."""
    flaky = Flaky()
    handle = manager.run_task(Task(flaky, retry=quick_policy(wait=wait_fixed(10))))
    await anyio.sleep(5)
    assert handle.cancel("enough")
    began = anyio.current_time()
    with pytest.raises(TaskCancelledError, match="enough"):
        await handle
    assert anyio.current_time() == began
    assert len(flaky.calls) == 1
    assert recorder.names() == ["added", "started", "retrying", "cancelled"]
    assert recorder.of(TaskCancelled)[0].duration == pytest.approx(5)


async def test_expiry_during_backoff(manager: Manager, recorder: RecordingObserver) -> None:
    """A task expires during backoff."""
    flaky = Flaky()
    began = anyio.current_time()
    handle = manager.run_task(Task(flaky, retry=quick_policy(wait=wait_fixed(10)), lifespan=5))
    with pytest.raises(TaskExpiredError, match="5 s"):
        await handle
    assert anyio.current_time() - began == pytest.approx(5)
    assert len(flaky.calls) == 1
    assert recorder.names() == ["added", "started", "retrying", "expired"]


async def test_lifespan_includes_all_attempts(manager: Manager) -> None:
    """The lifespan includes all attempts and pauses."""
    flaky = Flaky()
    policy = AsyncRetrying(wait=wait_fixed(10))
    handle = manager.run_task(Task(flaky, retry=policy, lifespan=35))
    assert await handle.wait() is TaskStatus.EXPIRED
    assert len(flaky.calls) == 4


# Loops


async def test_policy_per_iteration(manager: Manager, recorder: RecordingObserver) -> None:
    """The policy applies to every iteration of a loop separately."""
    flaky = Flaky()
    loop = manager.run_task(
        Task(
            flaky,
            kind=TaskKind.LOOP,
            schedule=every(100),
            retry=quick_policy(wait=wait_fixed(1)),
            id="l",
        )
    )
    await anyio.sleep(250)
    assert loop.cancel()
    iteration = ["started", "retrying", "retrying", "failed"]
    assert recorder.names("l") == ["added", *iteration, *iteration, *iteration, "cancelled"]
    assert [event.iteration for event in recorder.of(TaskFailed)] == [1, 2, 3]
    assert [event.attempt for event in recorder.of(TaskRetrying)] == [1, 2] * 3
    assert not any(event.final for event in recorder.of(TaskFailed))
    assert flaky.gaps() == [1, 1, 98, 1, 1, 98, 1, 1]


async def test_iteration_succeeds_after_retry(
    manager: Manager, recorder: RecordingObserver
) -> None:
    """An iteration that succeeds after retries does not count as failed."""
    loop = manager.run_task(
        Task(Flaky(failures=2), kind=TaskKind.LOOP, schedule=every(100), retry=quick_policy())
    )
    await anyio.sleep(150)
    assert loop.error is None
    assert [event.attempt for event in recorder.of(TaskSucceeded)] == [3, 1]


async def test_stop_during_backoff(manager: Manager, recorder: RecordingObserver) -> None:
    """A loop that is stopped during the backoff of an iteration ends immediately."""
    flaky = Flaky()
    loop = manager.run_task(
        Task(flaky, kind=TaskKind.LOOP, retry=AsyncRetrying(wait=wait_fixed(1000)))
    )
    await anyio.sleep(5)
    began = anyio.current_time()
    await manager.stop_loops()
    assert anyio.current_time() == began
    assert loop.status is TaskStatus.CANCELLED
    assert recorder.names() == ["added", "started", "retrying", "failed", "cancelled"]
    assert recorder.of(TaskFailed)[0].error is loop.error
    assert recorder.of(TaskCancelled)[0].reason == "stopped"


async def test_stop_during_attempt(manager: Manager, recorder: RecordingObserver) -> None:
    """The attempt that runs when loops stop is the last one of its iteration."""
    calls = 0

    async def work() -> None:
        nonlocal calls
        calls += 1
        await anyio.sleep(10)
        raise ValueError

    manager.run_task(Task(work, kind=TaskKind.LOOP, retry=5))
    await anyio.sleep(5)
    await manager.stop_loops()
    assert calls == 1
    assert recorder.names() == ["added", "started", "failed", "cancelled"]


async def test_one_off_retried_after_stop_loops(manager: Manager) -> None:
    """A one-off task is still retried after loops have stopped."""
    flaky = Flaky(failures=2)
    handle = manager.run_task(Task(flaky, retry=quick_policy(wait=wait_fixed(10))))
    await anyio.sleep(5)
    await manager.stop_loops()
    assert await handle == 3


async def test_one_off_retried_during_closing() -> None:
    """A one-off task is still retried while the manager closes."""
    async with Manager() as manager:
        handle = manager.run_task(Task(Flaky(failures=2), retry=quick_policy(wait=wait_fixed(10))))
        await anyio.sleep(5)
        report = await manager.close()
    assert report.succeeded == (handle,)
    assert handle.attempt == 3


# Invalid policies


@pytest.mark.parametrize(
    "retry",
    [0, -1, True, False, 2.0, "3", tenacity.Retrying(), AsyncRetrying, stop_after_attempt(3)],
    ids=label,
)
def test_invalid_policy(retry: Any) -> None:
    """A value that is not a policy is rejected by tasks and managers."""
    with pytest.raises(InvalidTaskError, match=r"^retry must be "):
        Task(checkpoint, retry=retry)
    with pytest.raises(InvalidTaskError, match=r"^retry must be "):
        Manager(retry=retry)


async def test_error_of_loop_stopped_in_backoff(
    manager: Manager, recorder: RecordingObserver
) -> None:
    """A loop stopped during backoff reports the error of its last attempt."""
    error = ValueError("wrong")

    async def work() -> None:
        raise error

    policy = AsyncRetrying(wait=wait_fixed(60))
    handle = manager.run_task(Task(work, kind=TaskKind.LOOP, retry=policy))
    await anyio.sleep(1)
    await manager.stop_loops()
    (event,) = recorder.of(TaskFailed)
    assert event.error is error
    assert handle.error is error
    assert recorder.names() == ["added", "started", "retrying", "failed", "cancelled"]
