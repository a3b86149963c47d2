"""Rule 3: attempts, policies, and what no policy may retry."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

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
    """An async function that fails as often as it is told, and notes when it is called."""

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
        """Return the seconds between one call and the next."""
        pairs = zip(self.calls, self.calls[1:], strict=False)
        return [pytest.approx(later - earlier) for earlier, later in pairs]


def quick(**options: Any) -> AsyncRetrying:
    return AsyncRetrying(**{"wait": wait_none(), "stop": stop_after_attempt(3), **options})


# Numbers


async def test_one_attempt_without_a_policy(manager: Manager, recorder: RecordingObserver) -> None:
    flaky = Flaky()
    handle = manager.run(flaky)
    with pytest.raises(ValueError, match="attempt 1"):
        await handle
    assert len(flaky.calls) == handle.attempt == 1
    assert recorder.names() == ["added", "started", "failed"]


@pytest.mark.parametrize("attempts", [1, 2, 5])
async def test_a_number_is_so_many_attempts(manager: Manager, attempts: int) -> None:
    flaky = Flaky()
    handle = manager.run_task(Task(flaky, retry=attempts))
    with pytest.raises(ValueError, match=f"attempt {attempts}"):
        await handle
    assert len(flaky.calls) == handle.attempt == attempts


async def test_a_number_waits_exponentially_with_jitter(manager: Manager) -> None:
    flaky = Flaky()
    await manager.run_task(Task(flaky, retry=12)).wait()
    gaps = [later - earlier for earlier, later in zip(flaky.calls, flaky.calls[1:], strict=False)]
    for number, gap in enumerate(gaps, 1):
        assert 0.1 - 1e-6 <= gap <= min(30, max(0.1, 0.2 * 2 ** (number - 1))) + 1e-6
    assert len(set(gaps[2:])) > 5


async def test_success_ends_the_attempts(manager: Manager, recorder: RecordingObserver) -> None:
    flaky = Flaky(failures=2)
    handle = manager.run_task(Task(flaky, retry=5))
    assert await handle == 3
    assert handle.attempt == 3
    assert handle.error is None
    assert recorder.names() == ["added", "started", "retrying", "retrying", "succeeded"]


async def test_first_success_needs_one_attempt(manager: Manager) -> None:
    flaky = Flaky(failures=0)
    assert await manager.run_task(Task(flaky, retry=5)) == 1


# The manager's policy and a task's own


async def test_managers_policy_is_the_default() -> None:
    async with Manager(retry=3) as manager:
        flaky = Flaky()
        await manager.run(flaky).wait()
        assert len(flaky.calls) == 3


async def test_tasks_policy_replaces_the_managers() -> None:
    async with Manager(retry=3) as manager:
        flaky = Flaky()
        await manager.run_task(Task(flaky, retry=5)).wait()
        assert len(flaky.calls) == 5


@pytest.mark.parametrize("off", [1, AsyncRetrying(enabled=False)], ids=["1", "enabled=False"])
async def test_task_switches_the_managers_policy_off(off: Any) -> None:
    async with Manager(retry=3) as manager:
        flaky = Flaky()
        with pytest.raises(ValueError, match="attempt 1"):
            await manager.run_task(Task(flaky, retry=off))
        assert len(flaky.calls) == 1


async def test_managers_policy_can_be_disabled() -> None:
    async with Manager(retry=AsyncRetrying(enabled=False)) as manager:
        flaky = Flaky()
        await manager.run(flaky).wait()
        assert len(flaky.calls) == 1


# Strategies of tenacity


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
    flaky = Flaky()
    policy = AsyncRetrying(stop=stop_after_attempt(4), wait=wait)
    await manager.run_task(Task(flaky, retry=policy)).wait()
    assert flaky.gaps() == gaps


async def test_negative_wait_is_no_wait(manager: Manager) -> None:
    flaky = Flaky()
    handle = manager.run_task(Task(flaky, retry=quick(wait=lambda state: -1)))
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
    """Delays follow the event loop's clock, which in virtual time has nothing else to follow."""
    flaky = Flaky()
    policy = AsyncRetrying(stop=stop, wait=wait_fixed(10))
    await manager.run_task(Task(flaky, retry=policy)).wait()
    assert len(flaky.calls) == calls


async def test_delay_of_a_policy_counts_from_the_first_attempt(manager: Manager) -> None:
    """Neither the wait for the start nor that for a place in the queue is the policy's concern."""
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
        (tenacity.asyncio.retry_if_exception(lambda error: checkpointed(True)), 3),
        (tenacity.asyncio.retry_if_exception(lambda error: checkpointed(False)), 1),
        (lambda state: state.attempt_number < 2, 2),
        (tenacity.retry_never, 1),
        (tenacity.retry_always, 3),
    ],
    ids=label,
)
async def test_retry_predicates(manager: Manager, retry: Any, calls: int) -> None:
    flaky = Flaky()
    handle = manager.run_task(Task(flaky, retry=quick(retry=retry)))
    with pytest.raises(ValueError, match=f"attempt {calls}"):
        await handle
    assert len(flaky.calls) == calls


async def checkpointed(value: Any) -> Any:
    await checkpoint()
    return value


@pytest.mark.parametrize(
    "retry",
    [
        retry_if_result(lambda value: value < 3),
        retry_if_not_result(lambda value: value == 3),
        retry_if_result(lambda value: value < 3) | retry_if_exception_type(OSError),
        tenacity.asyncio.retry_if_result(lambda value: checkpointed(value < 3)),
        retry_unless_exception_type(LookupError),
    ],
    ids=["result", "not result", "or", "async", "unless exception"],
)
async def test_result_predicates(manager: Manager, recorder: RecordingObserver, retry: Any) -> None:
    """`retry_unless_exception_type` goes on until there is such an error."""
    counting = Flaky(failures=0)
    endless = isinstance(retry, retry_unless_exception_type)
    handle = manager.run_task(Task(counting, retry=quick(retry=retry)))
    if endless:
        with pytest.raises(RetryError):
            await handle
    else:
        assert await handle == 3
    assert len(counting.calls) == 3
    assert [event.error for event in recorder.of(TaskRetrying)] == [None, None]


async def test_refused_result_raises_retry_error(manager: Manager) -> None:
    counting = Flaky(failures=0)
    handle = manager.run_task(Task(counting, retry=quick(retry=retry_if_result(lambda v: True))))
    with pytest.raises(RetryError) as info:
        await handle
    assert info.value.last_attempt.result() == 3
    assert handle.status is TaskStatus.FAILED
    assert handle.error is info.value


async def test_error_after_a_refused_result(manager: Manager) -> None:
    calls = 0

    async def work() -> str:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise LookupError("second")
        return "refused"

    policy = quick(retry=retry_if_result(lambda value: value == "refused"))
    with pytest.raises(LookupError, match="second"):
        await manager.run_task(Task(work, retry=policy))
    assert calls == 2


async def test_try_again_asks_for_another_attempt_whatever_the_predicate(manager: Manager) -> None:
    flaky = Flaky(failures=2, error=TryAgain)
    policy = quick(retry=retry_if_exception_type(OSError))
    assert await manager.run_task(Task(flaky, retry=policy)) == 3


async def test_try_again_on_the_last_attempt(manager: Manager) -> None:
    flaky = Flaky(error=TryAgain)
    with pytest.raises(TryAgain, match="attempt 3"):
        await manager.run_task(Task(flaky, retry=quick()))


# Hooks


@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
async def test_hooks_in_the_order_that_tenacity_documents(manager: Manager, is_async: bool) -> None:
    told: list[str] = []

    def hook(name: str, answer: Callable[[RetryCallState], Any]) -> Callable[..., Any]:
        def plain(state: RetryCallState) -> Any:
            told.append(f"{name} {state.attempt_number}")
            return answer(state)

        async def slow(state: RetryCallState) -> Any:
            await checkpoint()
            return plain(state)

        return slow if is_async else plain

    policy = AsyncRetrying(
        before=hook("before", lambda state: None),
        retry=hook("retry", lambda state: state.outcome.failed),
        after=hook("after", lambda state: None),
        wait=hook("wait", lambda state: 0),
        stop=hook("stop", lambda state: False),
        before_sleep=hook("before_sleep", lambda state: None),
    )
    assert await manager.run_task(Task(Flaky(failures=1), retry=policy)) == 2
    steps = ("before", "retry", "after", "wait", "stop", "before_sleep")
    assert told == [*(f"{step} 1" for step in steps), "before 2", "retry 2"]


async def test_before_hook_is_told_of_a_first_success(manager: Manager) -> None:
    told: list[int] = []
    policy = AsyncRetrying(before=lambda state: told.append(state.attempt_number))
    assert await manager.run_task(Task(Flaky(failures=0), retry=policy)) == 1
    assert told == [1]


async def test_what_hooks_read_of_the_state(manager: Manager) -> None:
    states: list[dict[str, Any]] = []

    async def work(first: int, *, second: int) -> None:
        await anyio.sleep(3)
        raise ValueError(first + second)

    def look(state: RetryCallState) -> None:
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

    policy = quick(wait=wait_fixed(10), before_sleep=look)
    task = Task(work, args=(1,), kwargs={"second": 2}, retry=policy)
    await manager.run_task(task).wait()
    common = {"fn": work, "args": (1,), "kwargs": {"second": 2}, "error": "3", "policy": True}
    assert states == [
        {**common, "attempt": 1, "sleep": 10, "upcoming": 10, "since": 3, "idle": 10},
        {**common, "attempt": 2, "sleep": 10, "upcoming": 10, "since": 16, "idle": 20},
    ]


async def test_logging_hooks_of_tenacity(
    manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("policy")
    caplog.set_level(logging.DEBUG, logger="policy")
    policy = quick(
        before=tenacity.before_log(logger, logging.DEBUG),
        after=tenacity.after_log(logger, logging.DEBUG),
        before_sleep=tenacity.before_sleep_log(logger, logging.DEBUG),
    )
    flaky = Flaky()
    await manager.run_task(Task(flaky, retry=policy)).wait()
    assert [record.name for record in caplog.records].count("policy") == 3 + 3 + 2


@pytest.mark.parametrize("hook", ["before", "retry", "after", "wait", "stop", "before_sleep"])
@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
async def test_hook_that_raises_fails_the_task(
    manager: Manager, recorder: RecordingObserver, hook: str, is_async: bool
) -> None:
    """And nothing else; the attempt's own error is still to be seen beside it."""

    def plain(state: RetryCallState) -> Any:
        raise LookupError("hook")

    async def slow(state: RetryCallState) -> Any:
        raise LookupError("hook")

    policy = quick(**{hook: slow if is_async else plain})
    handle = manager.run_task(Task(Flaky(), retry=policy))
    with pytest.raises(LookupError, match="hook") as info:
        await handle
    assert recorder.names() == ["added", "started", "failed"]
    if hook != "before":
        assert isinstance(info.value.__context__, ValueError)
    assert await manager.run(checkpointed, 1) == 1


async def test_wait_that_is_no_number_fails_the_task(manager: Manager) -> None:
    policy = quick(wait=lambda state: "soon")
    with pytest.raises(ValueError, match="soon"):
        await manager.run_task(Task(Flaky(), retry=policy))


# How it ends


@pytest.mark.parametrize("reraise", [False, True])
async def test_error_is_the_attempts_own(
    manager: Manager, recorder: RecordingObserver, reraise: bool
) -> None:
    handle = manager.run_task(Task(Flaky(), retry=quick(reraise=reraise)))
    with pytest.raises(ValueError, match="attempt 3") as info:
        await handle
    assert handle.error is info.value
    assert recorder.of(TaskFailed)[0].error is info.value


class GaveUp(RetryError):
    pass


async def test_chosen_retry_error_class(manager: Manager) -> None:
    handle = manager.run_task(Task(Flaky(), retry=quick(retry_error_cls=GaveUp)))
    with pytest.raises(GaveUp) as info:
        await handle
    assert isinstance(info.value.__cause__, ValueError)
    assert info.value.last_attempt.failed


async def test_chosen_retry_error_class_gives_way_to_reraise(manager: Manager) -> None:
    policy = quick(retry_error_cls=GaveUp, reraise=True)
    with pytest.raises(ValueError, match="attempt 3"):
        await manager.run_task(Task(Flaky(), retry=policy))


async def test_chosen_retry_error_class_for_a_refused_result(manager: Manager) -> None:
    policy = quick(retry=retry_if_result(lambda value: True), retry_error_cls=GaveUp)
    with pytest.raises(GaveUp):
        await manager.run_task(Task(Flaky(failures=0), retry=policy))


async def test_chosen_retry_error_class_is_not_for_errors_that_are_not_retried(
    manager: Manager,
) -> None:
    policy = quick(retry=retry_if_exception_type(OSError), retry_error_cls=GaveUp)
    with pytest.raises(ValueError, match="attempt 1"):
        await manager.run_task(Task(Flaky(), retry=policy))


@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
async def test_retry_error_callback_gives_the_result(
    manager: Manager, recorder: RecordingObserver, is_async: bool
) -> None:
    def plain(state: RetryCallState) -> str:
        assert state.outcome is not None
        return f"instead of {state.outcome.exception()}"

    async def slow(state: RetryCallState) -> str:
        return plain(state)

    policy = quick(retry_error_callback=slow if is_async else plain)
    handle = manager.run_task(Task(Flaky(), retry=policy))
    assert await handle == "instead of attempt 3"
    assert handle.status is TaskStatus.SUCCEEDED
    assert recorder.names()[-1] == "succeeded"


async def test_retry_error_callback_that_raises(manager: Manager) -> None:
    def give_up(state: RetryCallState) -> None:
        raise LookupError("callback")

    with pytest.raises(LookupError, match="callback"):
        await manager.run_task(Task(Flaky(), retry=quick(retry_error_callback=give_up)))


@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
async def test_policys_own_sleep(manager: Manager, is_async: bool) -> None:
    slept: list[float] = []

    async def slow(seconds: float) -> None:
        slept.append(seconds)
        await anyio.sleep(2 * seconds)

    flaky = Flaky()
    policy = quick(wait=wait_fixed(10), sleep=slow if is_async else slept.append)
    await manager.run_task(Task(flaky, retry=policy)).wait()
    assert slept == [10, 10]
    assert flaky.gaps() == ([20, 20] if is_async else [0, 0])


async def test_sleep_that_does_not_wait_lets_others_run(manager: Manager) -> None:
    """A policy without a pause, around a function that never waits, can still be cancelled."""

    async def fail() -> None:
        if handle.attempt == 1000:
            raise KeyError("nobody else had a turn")
        raise ValueError

    def give_up(error: BaseException) -> bool:
        return isinstance(error, ValueError)

    policy = AsyncRetrying(sleep=lambda seconds: None, retry=retry_if_exception(give_up))
    handle = manager.run_task(Task(fail, retry=policy))
    manager.run(checkpoint)
    await checkpoint()
    await checkpoint()
    handle.cancel()
    assert await handle.wait() is TaskStatus.CANCELLED


@pytest.mark.realtime
async def test_sync_function_is_retried(anyio_backend: object) -> None:
    calls = 0

    def fail() -> int:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise ValueError
        return calls

    async with Manager(retry=quick()) as manager:
        assert await manager.run(fail) == 3


# A policy keeps no state


def state_of(policy: AsyncRetrying) -> dict[str, Any]:
    state = {key: value for key, value in vars(policy).items() if key != "_local"}
    return {**state, "statistics": dict(policy.statistics), "local": dict(vars(policy._local))}


async def test_policy_shared_by_a_thousand_tasks_keeps_no_state(manager: Manager) -> None:
    policy = AsyncRetrying(stop=stop_after_attempt(4), wait=wait_fixed(10))
    policy.statistics["mine"] = 1
    before = state_of(policy)
    flaky = [Flaky(failures=number % 5) for number in range(1000)]
    handles: list[TaskHandle[int]] = []
    for each in flaky:
        handles.append(manager.run_task(Task(each, retry=policy)))
        await checkpoint()
    for number, handle in enumerate(handles):
        if number % 5 == 4:
            with pytest.raises(ValueError, match="attempt 4"):
                await handle
        else:
            assert await handle == number % 5 + 1
    for number, each in enumerate(flaky):
        assert each.gaps() == [10] * min(3, number % 5)
    assert state_of(policy) == before


# Cancellation is never retried


POLICIES = {
    "every exception": quick(retry=retry_if_exception(lambda error: True)),
    "not of a type": quick(retry=retry_if_not_exception_type(ZeroDivisionError)),
    "base exceptions": quick(retry=retry_if_exception_type(BaseException)),
    "always": quick(retry=tenacity.retry_always),
    "a number": 3,
}
eager = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


@eager
@pytest.mark.parametrize("kind", TaskKind)
async def test_cancellation_is_never_retried(
    manager: Manager, recorder: RecordingObserver, policy: Any, kind: TaskKind
) -> None:
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


@eager
async def test_error_from_cleaning_up_after_cancellation_is_not_retried(
    manager: Manager, recorder: RecordingObserver, policy: Any
) -> None:
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


@eager
async def test_end_of_the_lifespan_is_not_retried(
    manager: Manager, recorder: RecordingObserver, policy: Any
) -> None:
    handle = manager.run_task(Task(anyio.sleep_forever, retry=policy, lifespan=5))
    with pytest.raises(TaskExpiredError):
        await handle
    assert recorder.names() == ["added", "started", "expired"]


@eager
async def test_shutdown_is_not_retried(policy: Any) -> None:
    async with Manager(retry=policy) as manager:
        handle = manager.run(anyio.sleep_forever)
        await anyio.sleep(1)
        report = await manager.close(timeout=0)
        assert report.cancelled == (handle,)
        assert handle.attempt == 1


async def test_cancellation_by_the_policys_own_hook(manager: Manager) -> None:
    flaky = Flaky()
    policy = quick(after=lambda state: handle.cancel("in a hook") and None)
    handle = manager.run_task(Task(flaky, retry=policy))
    with pytest.raises(TaskCancelledError, match="in a hook"):
        await handle
    assert len(flaky.calls) == 1


async def test_scope_that_a_function_cancels_itself_is_its_own_affair(manager: Manager) -> None:
    """What looks like a cancellation inside may well be an error outside, and is retried."""

    async def work() -> None:
        with anyio.fail_after(1):
            await anyio.sleep_forever()

    handle = manager.run_task(Task(work, retry=quick()))
    with pytest.raises(TimeoutError):
        await handle
    assert handle.attempt == 3


# Timeouts


async def test_attempt_that_takes_too_long_is_a_timeout_error(
    manager: Manager, recorder: RecordingObserver
) -> None:
    handle = manager.run_task(Task(anyio.sleep_forever, name="slow", timeout=5))
    with pytest.raises(TimeoutError, match=r"'slow'.* 5 s"):
        await handle
    assert handle.status is TaskStatus.FAILED
    assert recorder.of(TaskFailed)[0].duration == pytest.approx(5)


async def test_each_attempt_has_the_timeout_for_itself(manager: Manager) -> None:
    calls: list[float] = []

    async def work() -> str:
        calls.append(anyio.current_time())
        await anyio.sleep(100 if len(calls) < 3 else 4)
        return "in time"

    policy = AsyncRetrying(wait=wait_fixed(10), stop=stop_after_attempt(3))
    assert await manager.run_task(Task(work, timeout=5, retry=policy)) == "in time"
    assert [calls[1] - calls[0], calls[2] - calls[1]] == [pytest.approx(15)] * 2


async def test_policy_may_refuse_to_retry_a_timeout(manager: Manager) -> None:
    policy = quick(retry=retry_if_not_exception_type(TimeoutError))
    handle = manager.run_task(Task(anyio.sleep_forever, timeout=5, retry=policy))
    with pytest.raises(TimeoutError):
        await handle
    assert handle.attempt == 1


async def test_backoff_is_no_part_of_the_timeout(manager: Manager) -> None:
    flaky = Flaky(failures=1)
    policy = AsyncRetrying(wait=wait_fixed(100), stop=stop_after_attempt(2))
    assert await manager.run_task(Task(flaky, timeout=5, retry=policy)) == 2


async def test_cancellation_before_the_timeout_is_a_cancellation(manager: Manager) -> None:
    handle = manager.run_task(Task(anyio.sleep_forever, timeout=5, retry=3))
    await anyio.sleep(4)
    handle.cancel()
    assert await handle.wait() is TaskStatus.CANCELLED


async def test_error_of_the_clean_up_after_a_timeout_is_the_attempts_error(
    manager: Manager,
) -> None:
    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise LookupError("clean-up")

    with pytest.raises(LookupError):
        await manager.run_task(Task(work, timeout=5))


async def test_timeout_of_an_iteration(manager: Manager, recorder: RecordingObserver) -> None:
    loop = manager.run_task(
        Task(anyio.sleep_forever, kind=TaskKind.LOOP, schedule=every(10), timeout=5)
    )
    await anyio.sleep(33)
    assert [type(event.error) for event in recorder.of(TaskFailed)] == [TimeoutError] * 3
    assert loop.iteration == 4


# Backoff


async def test_what_observers_are_told_of_a_retry(
    manager: Manager, recorder: RecordingObserver
) -> None:
    task = Task(Flaky(failures=2), retry=quick(wait=wait_incrementing(1, 2)), meta={"a": 1})
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


async def test_status_of_a_task_in_backoff(manager: Manager) -> None:
    seen: list[TaskStatus] = []

    async def work() -> None:
        seen.append(handle.status)
        raise ValueError

    handle = manager.run_task(Task(work, retry=quick(wait=wait_fixed(10))))
    await anyio.sleep(5)
    assert handle.status is TaskStatus.RETRYING
    assert handle.stack() == []
    await handle.wait()
    assert seen == [TaskStatus.RUNNING] * 3


async def test_cancel_during_backoff(manager: Manager, recorder: RecordingObserver) -> None:
    flaky = Flaky()
    handle = manager.run_task(Task(flaky, retry=quick(wait=wait_fixed(10))))
    await anyio.sleep(5)
    assert handle.cancel("enough")
    began = anyio.current_time()
    with pytest.raises(TaskCancelledError, match="enough"):
        await handle
    assert anyio.current_time() == began
    assert len(flaky.calls) == 1
    assert recorder.names() == ["added", "started", "retrying", "cancelled"]
    assert recorder.of(TaskCancelled)[0].duration == pytest.approx(5)


async def test_lifespan_that_ends_during_backoff(
    manager: Manager, recorder: RecordingObserver
) -> None:
    flaky = Flaky()
    began = anyio.current_time()
    handle = manager.run_task(Task(flaky, retry=quick(wait=wait_fixed(10)), lifespan=5))
    with pytest.raises(TaskExpiredError, match="5 s"):
        await handle
    assert anyio.current_time() - began == pytest.approx(5)
    assert len(flaky.calls) == 1
    assert recorder.names() == ["added", "started", "retrying", "expired"]


async def test_lifespan_covers_all_attempts(manager: Manager) -> None:
    flaky = Flaky()
    policy = AsyncRetrying(wait=wait_fixed(10))
    handle = manager.run_task(Task(flaky, retry=policy, lifespan=35))
    assert await handle.wait() is TaskStatus.EXPIRED
    assert len(flaky.calls) == 4


# Loops


async def test_policy_applies_to_each_iteration(
    manager: Manager, recorder: RecordingObserver
) -> None:
    flaky = Flaky()
    loop = manager.run_task(
        Task(
            flaky, kind=TaskKind.LOOP, schedule=every(100), retry=quick(wait=wait_fixed(1)), id="l"
        )
    )
    await anyio.sleep(250)
    assert loop.cancel()
    one = ["started", "retrying", "retrying", "failed"]
    assert recorder.names("l") == ["added", *one, *one, *one, "cancelled"]
    assert [event.iteration for event in recorder.of(TaskFailed)] == [1, 2, 3]
    assert [event.attempt for event in recorder.of(TaskRetrying)] == [1, 2] * 3
    assert not any(event.final for event in recorder.of(TaskFailed))
    assert flaky.gaps() == [1, 1, 98, 1, 1, 98, 1, 1]


async def test_iteration_that_recovers_has_not_failed(
    manager: Manager, recorder: RecordingObserver
) -> None:
    loop = manager.run_task(
        Task(Flaky(failures=2), kind=TaskKind.LOOP, schedule=every(100), retry=quick())
    )
    await anyio.sleep(150)
    assert loop.error is None
    assert [event.attempt for event in recorder.of(TaskSucceeded)] == [3, 1]


async def test_loops_that_stop_cut_the_backoff_of_an_iteration_short(
    manager: Manager, recorder: RecordingObserver
) -> None:
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


async def test_no_further_attempt_of_an_iteration_once_the_loops_have_stopped(
    manager: Manager, recorder: RecordingObserver
) -> None:
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


async def test_one_off_in_backoff_keeps_its_policy_when_loops_stop(manager: Manager) -> None:
    flaky = Flaky(failures=2)
    handle = manager.run_task(Task(flaky, retry=quick(wait=wait_fixed(10))))
    await anyio.sleep(5)
    await manager.stop_loops()
    assert await handle == 3


async def test_one_off_in_backoff_keeps_its_policy_while_closing() -> None:
    async with Manager() as manager:
        handle = manager.run_task(Task(Flaky(failures=2), retry=quick(wait=wait_fixed(10))))
        await anyio.sleep(5)
        report = await manager.close()
    assert report.succeeded == (handle,)
    assert handle.attempt == 3


# What is no policy


@pytest.mark.parametrize(
    "retry",
    [0, -1, True, False, 2.0, "3", tenacity.Retrying(), AsyncRetrying, stop_after_attempt(3)],
    ids=label,
)
def test_what_is_no_policy_is_refused(retry: Any) -> None:
    with pytest.raises(InvalidTaskError, match=r"^retry must be "):
        Task(checkpoint, retry=retry)
    with pytest.raises(InvalidTaskError, match=r"^retry must be "):
        Manager(retry=retry)


async def test_stopping_a_loop_in_its_backoff_tells_of_the_attempts_own_error(
    manager: Manager, recorder: RecordingObserver
) -> None:
    """Its last attempt was the last one, and is what the iteration comes to."""
    error = ValueError("the attempt's own")

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
