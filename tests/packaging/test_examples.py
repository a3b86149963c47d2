"""The example programs."""

from __future__ import annotations

import json
import signal
import sys
from ast import literal_eval
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from support.processes.process import PATIENCE, Process, running

from background.queues import JobInfo, JobQueue
from background.testing import drain

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

needs_posix_signals = pytest.mark.skipif(
    sys.platform == "win32", reason="no process can be sent SIGINT or SIGTERM on Windows"
)


def test_all_examples_are_tested() -> None:
    """Every example has a test."""
    tested = {
        "custom_observer.py",
        "fastapi_app.py",
        "fastapi_jobs.py",
        "graceful_shutdown.py",
        "jobs.py",
        "otel.py",
        "quickstart.py",
    }
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


def test_quickstart() -> None:
    """The quickstart sends all receipts, retries, and ends by itself."""
    with running(EXAMPLES / "quickstart.py") as process:
        assert process.wait() == 0
    for order in (1, 2, 3, 4, 5):
        assert process.output.count(f"the receipt of order {order} is out") == 1
    assert "the invoice of order 1 has 15 bytes" in process.output
    assert "and retries in" in process.output
    assert "ValueError: message 2 makes no sense" in process.lines
    assert "loop 'read_message'" in process.output.partition("makes no sense")[2]
    assert process.lines[-1].endswith("1 succeeded, 2 loops stopped")


@needs_posix_signals
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_quickstart_interrupted(number: signal.Signals) -> None:
    """A signal ends the quickstart, and the delayed receipt is not started."""
    with running(EXAMPLES / "quickstart.py") as process:
        process.wait_for("the invoice of order 1 has")
        process.send(number)
        assert process.wait() == (0 if number == signal.SIGINT else -number)
    assert "the receipt of order 4 is out" not in process.output
    assert "the receipt of order 5 is out" in process.output
    assert "KeyboardInterrupt" not in process.output
    assert process.lines[-1].endswith("1 not started")


def test_custom_observer() -> None:
    """The custom observer prints prefixes, an alert, a gauge and counts."""
    with running(EXAMPLES / "custom_observer.py") as process:
        assert process.wait() == 0
    assert "[resize cat] resizing cat.png" in process.lines
    assert process.lines.count("[upload cat] uploading cat.png") == 2
    alert = "ALERT storage: upload cat failed: ConnectionError('no route to host')"
    assert process.lines.count(alert) == 1
    assert any(line.startswith("gauge: ") for line in process.lines)
    assert any(line.endswith(": 1 succeeded, 1 failed") for line in process.lines)
    counts = literal_eval(process.lines[-1])
    assert counts == {"retried": 1, "failed": 1, "succeeded": 1}


def parse_documents(text: str) -> Iterator[dict[str, Any]]:
    """Yield the concatenated JSON documents of a text."""
    decoder = json.JSONDecoder()
    while text := text.strip():
        document, end = decoder.raw_decode(text)
        yield document
        text = text[end:]


def test_otel() -> None:
    """The OpenTelemetry example exports spans with their parents, and metrics."""
    with running(EXAMPLES / "otel.py") as process:
        assert process.wait() == 0
    *spans, metrics = parse_documents(process.output)
    by_name = {span["name"]: span for span in spans}
    assert by_name.keys() == {"POST /orders", "charge", "payment provider", "make_invoice"}

    def is_child(child: str, parent: str) -> bool:
        return by_name[child]["parent_id"] == by_name[parent]["context"]["span_id"]

    assert is_child("charge", "POST /orders")
    assert is_child("make_invoice", "POST /orders")
    assert is_child("payment provider", "charge")
    assert by_name["make_invoice"]["status"]["status_code"] == "ERROR"
    names = {
        metric["name"]
        for resource in metrics["resource_metrics"]
        for scope in resource["scope_metrics"]
        for metric in scope["metrics"]
    }
    assert {"background.task.duration", "background.task.finished"} <= names


RECEIPTS = [f"the receipt of order {order} is out" for order in range(1, 7)]


def test_jobs(tmp_path: Path) -> None:
    """The jobs example runs twice on the same file, which has no open jobs between the runs."""
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    for _ in range(2):
        with running(EXAMPLES / "jobs.py", url) as process:
            assert process.wait() == 0
        assert "0 jobs are left from before" in process.lines
        assert [line for line in process.lines if line in RECEIPTS] == RECEIPTS
        assert "306 sales in the first quarter" in process.lines
        assert "failed attempt 1 and returns to its queue" in process.output


def test_jobs_of_other_programs(tmp_path: Path) -> None:
    """The jobs example leaves the jobs of other programs in its file as they are."""
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    jobs = JobQueue.from_url(url)

    @jobs.handler(name="archive")
    async def archive(number: int) -> int:
        return number

    async def enqueue() -> None:
        async with jobs:
            await archive.enqueue(1)
            await drain(jobs)
            await archive.enqueue(2)

    async def stored() -> list[JobInfo]:
        async with jobs:
            return [info async for info in jobs.list() if info.handler == "archive"]

    anyio.run(enqueue)
    before = anyio.run(stored)
    assert [info.state for info in before] == ["succeeded", "ready"]
    with running(EXAMPLES / "jobs.py", url) as process:
        assert process.wait() == 0
    assert "0 jobs are left from before" in process.lines
    assert anyio.run(stored) == before


def test_jobs_after_kill(tmp_path: Path) -> None:
    """The jobs of a killed process are finished by the next one."""
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    with running(EXAMPLES / "jobs.py", url) as process:
        process.wait_for(RECEIPTS[1])
        process.send(signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
        process.wait()
    with running(EXAMPLES / "jobs.py", url) as process:
        line = process.wait_for("are left from before")
        assert process.wait() == 0
    assert int(line.split()[0]) > 0
    assert [line for line in process.lines if line in RECEIPTS] == RECEIPTS


# Ctrl-Break is the only signal that a process on Windows can receive.
SIGNALS = [signal.CTRL_BREAK_EVENT] if sys.platform == "win32" else [signal.SIGINT, signal.SIGTERM]
EXIT_STATUS = {number: 3 if sys.platform == "win32" else -number for number in SIGNALS}


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_graceful_shutdown(backend: str, number: signal.Signals) -> None:
    """A signal lets the accepted jobs finish, and no more are accepted."""
    with running(EXAMPLES / "graceful_shutdown.py", backend) as process:
        process.wait_for("job 2 is taken")
        process.send(number)
        assert process.wait() == EXIT_STATUS[number]
    taken = {line.split()[1] for line in process.lines if line.endswith("is taken")}
    ended = {line.split()[1] for line in process.lines if line.endswith("is done")}
    assert ended == taken >= {"1", "2"}
    after = process.output.partition("no more jobs are taken")[2]
    assert "is taken" not in after
    assert f"closed: {after.count('is done')} succeeded" in after


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_graceful_shutdown_twice(backend: str) -> None:
    """A second signal cancels the running job."""
    number = SIGNALS[0]
    with running(EXAMPLES / "graceful_shutdown.py", backend) as process:
        process.wait_for("job 1 is taken")
        process.send(number)
        process.wait_for("closing")
        process.send(number)
        assert process.wait() == EXIT_STATUS[number]
    assert "job 1 is cut short" in process.lines
    assert "closed: 1 cancelled" in process.lines


def make_client(server: Process) -> httpx.Client:
    """Wait until the server accepts requests, and return a client."""
    words = server.wait_for("Uvicorn running on").split()
    url = next(word for word in words if word.startswith("http://"))
    return httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False)


@needs_posix_signals
def test_fastapi_app() -> None:
    """The application runs tasks, shows their state, and finishes them on SIGTERM."""
    with running(EXAMPLES / "fastapi_app.py", "0") as server, make_client(server) as client:
        receipt = client.post("/receipts/1")
        invoice = client.post("/invoices/1")
        assert receipt.status_code == invoice.status_code == 202
        task = client.get(f"/tasks/{receipt.json()['id']}")
        assert task.json() == {"name": "send_receipt", "status": "running", "attempt": 1}
        assert client.get("/tasks/unknown").status_code == 404
        health = client.get("/health")
        assert health.status_code == 200
        assert health.json()["running"] == 2
        server.send(signal.SIGTERM)
        assert server.wait() == -signal.SIGTERM
    assert "task 'send_receipt'" in server.output
    assert "task 'make_invoice'" in server.output
    assert "manager 'background' closed in" in server.output
    assert "2 succeeded" in server.output
    assert "Traceback" not in server.output


@needs_posix_signals
def test_fastapi_app_by_name() -> None:
    """The application can be served by its import name."""
    options = ("--port", "0", "--app-dir", ROOT)
    with (
        running("-m", "uvicorn", "examples.fastapi_app:app", *options) as server,
        make_client(server) as client,
    ):
        assert client.get("/health").json()["state"] == "running"
        server.send(signal.SIGINT)
        assert server.wait() == 0
    assert "manager 'background' closed in" in server.output


@needs_posix_signals
def test_fastapi_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that SIGTERM interrupts runs in the next process; no job runs twice."""
    monkeypatch.setenv("JOBS_URL", f"sqlite:///{tmp_path / 'jobs.db'}")
    with running(EXAMPLES / "fastapi_jobs.py", "0") as server, make_client(server) as client:
        first = client.post("/receipts/1")
        assert (first.status_code, first.json()) == (202, {"id": "receipt-1"})
        assert client.post("/receipts/1").status_code == 409
        assert client.post("/receipts/2").status_code == 202
        assert client.delete("/jobs/receipt-2").json() == {"cancelled": True}
        assert client.get("/jobs/unknown").status_code == 404
        server.send(signal.SIGTERM)
        assert server.wait() == -signal.SIGTERM
        assert "Traceback" not in server.output
    with running(EXAMPLES / "fastapi_jobs.py", "0") as server, make_client(server) as client:
        job = client.get("/jobs/receipt-1").json()
        assert job == {"state": "succeeded", "attempt": 1, "result": RECEIPTS[0]}
        assert client.get("/jobs/receipt-2").json()["state"] == "cancelled"
        server.send(signal.SIGINT)
        server.wait()


def test_fastapi_app_in_test_client() -> None:
    """The application runs in a test client.

    The client runs it outside the main thread, where signals can't be handled.
    """
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from examples.fastapi_app import app
from starlette.testclient import TestClient
with TestClient(app) as client:
    print("health:", client.get("/health").status_code)
    print("receipt:", client.post("/receipts/1").status_code)
"""
    with running("-c", code) as process:
        assert process.wait() == 0
    assert "health: 200" in process.lines
    assert "receipt: 202" in process.lines
    assert "closed in" in process.output


def test_fastapi_jobs_in_test_client() -> None:
    """The application with jobs can be tested with jobs in memory."""
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from background.queues.memory import MemoryBroker
from background.testing import enqueued
from examples.fastapi_jobs import app, jobs, send_receipt
from starlette.testclient import TestClient
with jobs.override(MemoryBroker()):
    with TestClient(app) as client:
        print("receipt:", client.post("/receipts/7").status_code)
        print("again:", client.post("/receipts/7").status_code)
    print("enqueued:", [(job.id, job.args) for job in enqueued(jobs, send_receipt)])
"""
    with running("-c", code) as process:
        assert process.wait() == 0
    assert {"receipt: 202", "again: 409", "enqueued: [('receipt-7', (7,))]"} < {*process.lines}
