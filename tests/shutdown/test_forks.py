"""Children that are forked inside the block of a manager or a queue."""

from __future__ import annotations

import os
import signal

import pytest
from support.processes.process import PROGRAMS, Process, running

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")

SCRIPT = PROGRAMS / "forked.py"


on_all_loops = pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])


def run(backend: str, program: str) -> Process:
    """Run a program to its end."""
    with running(SCRIPT, backend, program) as process:
        assert process.wait() == 0
    return process


@on_all_loops
def test_terminate(backend: str) -> None:
    """`terminate()` ends a child, and the parent's manager gets no shutdown request."""
    process = run(backend, "terminates_a_child")
    assert process.lines == [f"child ended with -{signal.SIGTERM:d}", "manager is running"]


def test_daemon() -> None:
    """A daemonic child does not keep the program alive."""
    assert run("asyncio", "leaves_a_daemon").lines == ["leaving"]


@on_all_loops
def test_default_dispositions(backend: str) -> None:
    """A child ends by the convention of each signal, as if there were no nested managers."""
    process = run(backend, "raises_in_child")
    assert process.lines == [
        f"child ended with -{signal.SIGTERM:d}",
        "child raised KeyboardInterrupt()",
        "child ended with 0",
        "manager is running",
    ]


def test_python_handler() -> None:
    """A handler that was installed before the manager's is the child's only handler."""
    assert run("asyncio", "has_python_handler").lines == [
        f"handler called with {signal.SIGTERM:d} in the child",
        "restored: True",
        "child ended with 0",
        "manager is running",
    ]


@pytest.mark.parametrize("backend", ["asyncio", "uvloop"])
def test_loop_handler(backend: str) -> None:
    """A signal of the child does not reach the parent's event loop."""
    process = run(backend, "has_loop_handler")
    assert process.lines == ["child ended with 0", "calls: 0 manager is running"]


def test_fork_after_leaving() -> None:
    """A manager that was left changes nothing in later children."""
    assert run("asyncio", "has_left").lines == ["same descriptor: True", "child ended with 0"]


@on_all_loops
def test_manager_in_child(backend: str) -> None:
    """The methods of a manager that was entered before the fork raise an error; it is not healthy.

    A manager of the child works.
    """
    refused = "raised ManagerMisuseError about a fork"
    methods = ["run", "every", "submit", "wait", "stop_loops", "close", "shutdown_requested"]
    methods += ["request_shutdown", "cancel", "result"]
    assert run(backend, "uses_the_manager").lines == [
        *(f"{method} {refused}" for method in methods),
        "health().ok returned False",
        "own returned None",
        "child ended with 0",
        "health().ok returned True",
        "cancel returned True",
    ]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_leaving_in_child(backend: str) -> None:
    """A block that a child leaves raises an error, or lets the error of the block through."""
    assert run(backend, "leaves_blocks").lines == [
        "child raised ManagerMisuseError",
        "child raised QueueError",
        "child raised KeyError",
        "child raised KeyError",
    ]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_queue_in_child(backend: str) -> None:
    """A queue that was opened before the fork raises an error; one that was not can be opened."""
    refused = "raised QueueError about a fork"
    methods = ["enqueue", "enqueue_many", "start", "get", "count", "cancel", "result", "open"]
    assert run(backend, "uses_the_queue").lines == [
        *(f"{method} {refused}" for method in methods),
        "child ended with 0",
        *("count returned 1", "count returned 1"),
        "child ended with 0",
    ]
