"""A manager in the lifespan of an application served by uvicorn."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from support.processes.process import PATIENCE, PROGRAMS, Process, running

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="no process can be sent SIGINT or SIGTERM on Windows"
)

SCRIPT = PROGRAMS / "served.py"


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def requests() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


@contextmanager
def serving(*options: str) -> Iterator[tuple[Process, httpx.Client]]:
    """Run the server, and a client for it when it accepts requests."""
    with running(SCRIPT, *options) as server:
        url = server.wait_for("Uvicorn running on").split()[4]
        with httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as client:
            yield server, client


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 0)]
)
def test_graceful_shutdown(
    loop: str, number: signal.Signals, status: int, requests: ThreadPoolExecutor
) -> None:
    """A signal lets requests and their tasks finish.

    The exit status is uvicorn's: it raises SIGTERM again, and swallows the KeyboardInterrupt of
    SIGINT.
    """
    with serving(loop) as (server, client):
        assert client.post("/async/first").status_code == 202
        assert client.post("/plain/second").status_code == 202
        slow = requests.submit(client.post, "/slow")
        server.wait_for("slow request begins")
        server.send(number)
        assert slow.result().status_code == 202
        assert server.wait() == status
    assert "shutdown requested, manager is stopping" in server.lines
    assert {"first done", "second done", "slow job done"} < set(server.lines)
    assert "loop stopped" in server.lines
    assert "closing: the block was left" in server.lines
    assert "the server's handlers restored: True" in server.lines
    assert ("default handlers restored: True" in server.lines) == (number == signal.SIGINT)
    assert "Traceback" not in server.output


def test_report_before_application_shutdown(loop: str) -> None:
    """The manager's report is emitted before the application has shut down."""
    with serving(loop) as (server, client):
        client.post("/endless")
        server.send(signal.SIGTERM)
        server.wait_for("closing: the block was left")
        server.send(signal.SIGTERM)
        assert server.wait_for("report:") == "report: 1 cancelled"
        server.wait_for("Application shutdown complete")
        assert server.wait() == -signal.SIGTERM


def test_second_sigint_cancels(loop: str) -> None:
    """A second SIGINT cancels the tasks; uvicorn itself can't abort a lifespan that is exiting."""
    with serving(loop) as (server, client):
        client.post("/endless")
        server.send(signal.SIGINT)
        server.wait_for("Waiting for application shutdown")
        server.wait_for("closing: the block was left")
        server.send(signal.SIGINT)
        server.wait_for("endless cancelled: shutdown")
        assert server.wait() == 0
    assert "default handlers restored: True" in server.lines
    assert "Traceback" not in server.output


def test_leave_timeout(loop: str) -> None:
    """A server whose manager handles no signals ends although a task never ends."""
    with serving(loop, "--without-signals", "--leave-timeout") as (server, client):
        client.post("/endless")
        server.send(signal.SIGTERM)
        assert server.wait() == -signal.SIGTERM
    assert "endless cancelled: shutdown" in server.lines
    assert "Traceback" not in server.output


@pytest.mark.parametrize("options", [(), ("--without-signals",)])
def test_second_sigint_during_request(loop: str, options: tuple[str, ...]) -> None:
    """A second SIGINT during a request cancels the lifespan's task with all others.

    From Python 3.12 on, uvicorn does so when the client has disconnected.
    """
    with serving(loop, *options) as (server, client):
        client.post("/endless")
        with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
            connection.sendall(b"POST /too-late HTTP/1.1\r\nHost: test\r\n\r\n")
            server.wait_for("too late request begins")
            server.send(signal.SIGINT)
            server.wait_for("Waiting for connections to close")
            server.send(signal.SIGINT)
        assert server.wait() == 0
    assert any(line.startswith("endless cancelled: ") for line in server.lines)
    assert "default handlers restored: True" in server.lines
    assert "refused: manager 'background' is closed and accepts no more tasks" in server.lines


def test_submission_while_closing(loop: str, requests: ThreadPoolExecutor) -> None:
    """A task that a request's thread submits while the manager closes is refused.

    A second SIGTERM closes the manager before the requests have ended.
    """
    with serving(loop) as (server, client):
        client.post("/endless")
        late = requests.submit(client.post, "/late")
        server.wait_for("late request begins")
        server.send(signal.SIGTERM)
        server.wait_for("shutdown requested")
        server.send(signal.SIGTERM)
        assert late.result().status_code == 503
        assert server.wait() == -signal.SIGTERM
    assert any(line.startswith("refused: manager 'background' is clos") for line in server.lines)
    assert "closing: a second shutdown request" in server.lines
    assert "late job done" not in server.lines
