"""Event loops, brokers and tiers of the tests.

An async test runs in virtual time on asyncio and trio. Marked `realtime`, it runs in real time on
asyncio, uvloop and trio, which threads, processes and sockets need. A test with a `broker_kind`
runs for the embedded brokers, and in `queues/conformance` for every broker.

The tiers are markers: `unit` for virtual time and pure functions, `integration` for real time and
servers, and `exhaustive` for sweeps over many points, seeds or faults. The sweeps, the tests of the
examples and those of the documents' snippets run with `--exhaustive`, or if their folder or file is
named; the tests of the benchmarks run if they are named. The tests of the Redis broker run on one
kind of server, and those of other parts not on uvloop, unless their folder or file is named, or
with `--exhaustive`.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import settings
from support.brokers import redis_servers
from support.brokers.kinds import KINDS, Kind, cases
from support.time import Clock

from background.testing import manager, recorder, virtual_time

__all__ = ["manager", "recorder"]  # fixtures

REAL = ["asyncio", "trio"] if sys.platform == "win32" else ["asyncio", "uvloop", "trio"]
VIRTUAL = ["virtual-asyncio", "virtual-trio"]
TESTS = Path(__file__).parent
EXHAUSTIVE = TESTS / "exhaustive"
BENCHMARKS = TESTS / "benchmarks"
PROGRAMS = [*TESTS.glob("packaging/test_example*.py"), TESTS / "packaging/test_snippets.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="run the exhaustive tests, too")


def pytest_configure(config: pytest.Config) -> None:
    """Restore SIGINT, which shells and some CI runners ignore in background jobs.

    Child processes would inherit that, and a test that interrupts one would wait for its end.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.register_profile("quick", max_examples=25, deadline=None)
    settings.register_profile("exhaustive", max_examples=400, deadline=None)
    settings.load_profile("exhaustive" if config.getoption("--exhaustive") else "quick")


def pytest_xdist_auto_num_workers() -> int:
    """Use one worker more than there are cores, because tests wait for processes."""
    return (os.cpu_count() or 1) + 1


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if collection_path not in (EXHAUSTIVE, BENCHMARKS, *PROGRAMS):
        return None
    if collection_path != BENCHMARKS and config.getoption("--exhaustive"):
        return None
    return None if is_named(collection_path, config) else True


def is_named(path: Path, config: pytest.Config) -> bool:
    """Return whether arguments of the command line name a path, or paths in it."""
    named = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    return any(argument.is_relative_to(path) for argument in named)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(tier(item))
    if not config.getoption("--exhaustive"):
        left = [item for item in items if not is_repeated(item, config)]
        config.hook.pytest_deselected(items=list({*items} - {*left}))
        items[:] = left


def is_repeated(item: pytest.Item, config: pytest.Config) -> bool:
    """Return whether a test without a broker runs on uvloop, though its folder is not named."""
    found = parameters(item)
    if "uvloop" not in found.values() or {"broker_kind", "redis_server"} & found.keys():
        return False
    named = {Path(argument.partition("::")[0]).resolve() for argument in config.args} - {TESTS}
    return not any(item.path.is_relative_to(path) for path in named)


def parameters(item: pytest.Item) -> dict[str, object]:
    return getattr(getattr(item, "callspec", None), "params", {})


def pytest_collection_finish() -> None:
    """Leave the test modules out of garbage collections, which many tests start."""
    gc.collect()
    gc.freeze()


def tier(item: pytest.Item) -> str:
    """Return the marker of a test's tier."""
    if EXHAUSTIVE in item.path.parents:
        return "exhaustive"
    if {"packaging", "redis", "nats"} & {*item.path.relative_to(TESTS).parts}:
        return "integration"
    virtual = parameters(item).get("anyio_backend", VIRTUAL[0]) in VIRTUAL
    has_server = parameters(item).get("broker_kind", "memory") not in ("memory", "sqlite")
    is_real = item.get_closest_marker("realtime") is not None
    return "unit" if virtual and not has_server and not is_real else "integration"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "broker_kind" in metafunc.fixturenames:
        wanted = cases(conformance=TESTS / "queues/conformance" in metafunc.definition.path.parents)
        if "results" in metafunc.fixturenames:
            wanted = [(kind, backend) for kind, backend in wanted if KINDS[kind].results]
        metafunc.parametrize(("broker_kind", "anyio_backend"), wanted, indirect=True)
    elif "redis_server" in metafunc.fixturenames:
        names = redis_servers.available()
        config = metafunc.config
        if not (config.getoption("--exhaustive") or is_named(TESTS / "queues/redis", config)):
            names = names[-1:]  # the conformance tests run on all
        wanted = [(name, backend) for name in names for backend in KINDS[name].backends]
        metafunc.parametrize(("redis_server", "anyio_backend"), wanted, indirect=True)
    elif "anyio_backend" in metafunc.fixturenames:
        real = metafunc.definition.get_closest_marker("realtime") is not None
        metafunc.parametrize("anyio_backend", REAL if real else VIRTUAL, indirect=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make captured text printable, as pytest-xdist can't send surrogates."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture
def broker_kind(request: pytest.FixtureRequest) -> Kind:
    """A kind of broker."""
    return KINDS[request.param]


@pytest.fixture
def redis_server(request: pytest.FixtureRequest) -> redis_servers.Server:
    """A Redis or Valkey server that all tests of this process share."""
    return redis_servers.server(request.param)


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    match request.param:
        case "asyncio":
            return "asyncio", {"debug": True}
        case "uvloop":
            return "asyncio", {"use_uvloop": True}
        case "trio":
            return "trio", {"restrict_keyboard_interrupt_to_checkpoints": True}
        case virtual:
            return virtual_time(virtual.removeprefix("virtual-"))


@pytest.fixture(scope="session", autouse=True)
def no_blocking_calls() -> Iterator[BlockBuster]:
    """Fail tests in which the package blocks the event loop."""
    with blockbuster_ctx("background") as guard:
        # coverage's collector waits for a lock for a moment.
        lock = guard.functions["threading.Lock.acquire"]
        lock.can_block_in("coverage/collector.py", "lock_data")
        yield guard


@pytest.fixture
def blocking_calls(no_blocking_calls: BlockBuster) -> Iterator[None]:
    """Let a test block its event loop."""
    no_blocking_calls.deactivate()
    yield
    no_blocking_calls.activate()


@pytest.fixture
async def clock(anyio_backend: object) -> Clock:
    """The time since the test began."""
    return Clock()
