"""Backends for the tests.

An async test runs in virtual time on asyncio and trio. Marked `realtime`, it runs in real time on
asyncio, uvloop and trio: for threads, processes and sockets, and for what does not wait. Where it
has a `broker_kind`, it runs on what those need; marked `virtual`, for those in virtual time alone.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from support.brokers import redis_servers as servers
from blockbuster import blockbuster_ctx
from support.brokers.kinds import KINDS, Kind, cases
from support.time import Clock

from background.testing import manager, recorder, virtual_time

__all__ = ["manager", "recorder"]  # fixtures

REAL = ["asyncio", "trio"] if sys.platform == "win32" else ["asyncio", "uvloop", "trio"]
VIRTUAL = ["virtual-asyncio", "virtual-trio"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "broker_kind" in metafunc.fixturenames:
        virtual = metafunc.definition.get_closest_marker("virtual") is not None
        wanted = cases(metafunc.module.__name__)
        if virtual:
            wanted = [case for case in wanted if case[1] in VIRTUAL]
        if "results" in metafunc.fixturenames:
            wanted = [case for case in wanted if KINDS[case[0]].results is not None]
        metafunc.parametrize(("broker_kind", "anyio_backend"), wanted, indirect=True)
    elif "redis_server" in metafunc.fixturenames:
        wanted = [
            (name, backend) for name in servers.available() for backend in KINDS[name].backends
        ]
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
    """A kind of broker, for what has to hold for each of them."""
    return KINDS[request.param]


@pytest.fixture
def redis_server(request: pytest.FixtureRequest) -> servers.Server:
    """A server that all tests share, for what has to hold with each of them."""
    return servers.server(request.param)


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


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[None]:
    """Fail a test in which the package blocks the event loop."""
    with blockbuster_ctx("background") as guard:
        lock = guard.functions["threading.Lock.acquire"]
        lock.can_block_in("coverage/collector.py", "lock_data")
        yield


@pytest.fixture
async def clock(anyio_backend: object) -> Clock:
    """The time since the test began."""
    return Clock()
