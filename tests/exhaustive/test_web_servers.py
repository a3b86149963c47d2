"""Queues in applications that real servers run, with the snippets of the guides."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import anyio
import httpx
import pytest
from support.brokers import redis_servers
from support.processes.process import PATIENCE, Process, running

from background.queues import JobQueue

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gunicorn does not run on Windows")

GUIDES = Path(__file__).parents[2] / "docs/guides"
REQUESTS = 40


def snippet(guide: str, text: str) -> str:
    """Return the snippet of a guide that contains a text."""
    page = (GUIDES / f"{guide}.md").read_text("utf-8")
    (found,) = (
        code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if text in code
    )
    return found


@contextmanager
def serving(*command: str, announced: str) -> Iterator[tuple[Process, httpx.Client]]:
    """Run a server, and a client for it when it accepts requests."""
    with running("-m", *command) as server:
        match = re.search(r"http://127\.0\.0\.1:\d+", server.wait_for(announced))
        assert match is not None
        limits = httpx.Limits(max_keepalive_connections=0)  # servers close idle connections
        options = {"timeout": PATIENCE, "trust_env": False, "limits": limits}
        with httpx.Client(base_url=match[0], **options) as client:
            yield server, client


def post(client: httpx.Client, path: str) -> set[str]:
    """Post many requests at the same time, and return the ids of the jobs."""
    with ThreadPoolExecutor(8) as threads:
        answers = threads.map(client.post, [f"{path}{number}" for number in range(REQUESTS)])
        return {answer.raise_for_status().json()["task"] for answer in answers}


def stored() -> set[str]:
    """Return the ids of the stored jobs."""
    jobs = JobQueue.from_url("sqlite:///jobs.db")

    async def find() -> set[str]:
        async with jobs:
            return {info.id async for info in jobs.list()}

    return anyio.run(find)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # gunicorn's control socket is in it
    return tmp_path


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("preload", [False, True])
@pytest.mark.parametrize("text", ["import Flask", "import get_wsgi_application"])
def test_gunicorn(folder: Path, text: str, preload: bool, threads: int) -> None:
    """Several workers enqueue, even if the application was loaded, and has enqueued, before."""
    program = snippet("sync", text) + '\njobs.enqueue_sync("loaded")\n'
    (folder / "service.py").write_text(program, "utf-8")
    options = ["--workers=2", f"--threads={threads}", "--bind=127.0.0.1:0", "service:app"]
    command = ["gunicorn", *options, *(["--preload"] if preload else [])]
    with serving(*command, announced="Listening at") as (server, client):
        ids = post(client, "/users/")
        server.send(signal.SIGTERM)
        assert server.wait() == 0
    assert "Traceback" not in server.output
    assert len(ids) == REQUESTS
    assert ids < stored()
    assert len(stored()) == REQUESTS + (1 if preload else 2)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_uvicorn(folder: Path, loop: str) -> None:
    """`def` endpoints enqueue in the application's event loop, whose worker runs the jobs."""
    program = snippet("frameworks", "enqueue_sync").replace("service.db", "jobs.db")
    (folder / "service.py").write_text(program, "utf-8")
    command = ["uvicorn", "service:app", "--port=0", f"--loop={loop}"]
    with serving(*command, announced="Uvicorn running on") as (server, client):
        ids = post(client, "/guests/") | post(client, "/users/")
        server.send(signal.SIGTERM)
        assert server.wait() == -signal.SIGTERM
    assert "Traceback" not in server.output
    assert ids == stored()
    assert len(ids) == 2 * REQUESTS


def test_uvicorn_with_second_loop(folder: Path) -> None:
    """An endpoint that enqueues in an event loop of its own gets an error, and the server stops."""
    program = snippet("frameworks", "enqueue_sync").replace("service.db", "jobs.db")
    program = program.replace(
        "send_welcome.enqueue_sync(user)", "asyncio.run(send_welcome.enqueue(user))"
    )
    (folder / "service.py").write_text(f"import asyncio\n{program}", "utf-8")
    command = ["uvicorn", "service:app", "--port=0"]
    with serving(*command, announced="Uvicorn running on") as (server, client):
        assert client.post("/guests/ada").status_code == 500
        assert client.post("/users/ada").status_code == 200
        server.send(signal.SIGTERM)
        assert server.wait() == -signal.SIGTERM
    assert "QueueError: the queue is open in another event loop or thread" in server.output
    assert len(stored()) == 1


@pytest.mark.parametrize("name", redis_servers.available())
def test_uvicorn_before_broker(folder: Path, name: str) -> None:
    """An application that starts before its broker waits for it, and then works."""
    broker = redis_servers.Server(name)
    broker.kill()
    program = snippet("frameworks", "enqueue_sync")
    program = program.replace('"sqlite:///service.db"', f'"{broker.url}", wait={PATIENCE}')
    (folder / "service.py").write_text(program, "utf-8")
    try:
        with running("-m", "uvicorn", "service:app", "--port=0") as server:
            server.wait_for(f"waiting up to {PATIENCE:g} s for the broker")
            broker.start()
            server.wait_for("Application startup complete")
            server.send(signal.SIGTERM)
            assert server.wait() == -signal.SIGTERM
    finally:
        broker.close()
    assert "Traceback" not in server.output


APPLICATION = """
from contextlib import asynccontextmanager

import anyio
from background import Manager, Observer
from fastapi import FastAPI, Request

class Closing(Observer):
    def on_manager_closing(self, event):
        app.state.closing.set()

@asynccontextmanager
async def lifespan(app):
    app.state.closing = anyio.Event()
    async with Manager(signals=True, grace=10, observers=[Closing()]) as manager:
        yield {"manager": manager}
    print("lifespan left", flush=True)

app = FastAPI(lifespan=lifespan)

async def finish():
    await app.state.closing.wait()
    print("task done", flush=True)

@app.post("/")
async def slow(request: Request):
    async for part in request.stream():
        print("received", part, flush=True)
    return {"task": request.state.manager.run(finish).id}
"""


# Without workers hypercorn does not handle SIGTERM on trio: the block is cancelled after `grace`.
@pytest.mark.parametrize(
    ("loop", "workers"), [("asyncio", 0), ("asyncio", 1), ("uvloop", 0), ("uvloop", 1), ("trio", 1)]
)
def test_hypercorn(folder: Path, loop: str, workers: int) -> None:
    """SIGTERM lets a request and its task end; a worker in a process of its own gets no signal."""
    (folder / "service.py").write_text(APPLICATION, "utf-8")
    options = ["--bind=127.0.0.1:0", f"--worker-class={loop}", f"--workers={workers}"]
    with serving("hypercorn", *options, "service:app", announced="Running on") as (server, client):

        def body() -> Iterator[bytes]:
            yield b"begin"
            server.wait_for("received b'begin'")
            server.send(signal.SIGTERM)
            yield b"end"

        assert client.post("/", content=body()).status_code == 200
        assert server.wait() == 0
    assert "received b'end'" in server.output
    assert server.lines[-2:] == ["task done", "lifespan left"]
    assert "Traceback" not in server.output
