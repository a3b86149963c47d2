"""An application served by uvicorn: `python served.py LOOP [--without-signals] [--leave-timeout]`.

All tasks and requests wait for a stage of the shutdown, so no test depends on timing.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from background import (
    Manager,
    ManagerClosed,
    ManagerClosedError,
    ManagerClosing,
    Observer,
    TaskAdded,
    TaskCancelled,
    TaskKind,
)

SIGNALS = () if "--without-signals" in sys.argv else (signal.SIGINT, signal.SIGTERM)
LEAVE_TIMEOUT = 0.1 if "--leave-timeout" in sys.argv else None

closing = threading.Event()
served = threading.Event()


def say(*words: object) -> None:
    """Print with a single write, as several threads may print."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")


class Reporter(Observer):
    async def on_task_added(self, event: TaskAdded) -> None:
        pass

    def on_task_cancelled(self, event: TaskCancelled) -> None:
        if event.kind is TaskKind.LOOP and event.iteration:
            say("loop", event.reason)
        else:
            say(event.name, "cancelled:", event.reason)

    async def on_manager_closing(self, event: ManagerClosing) -> None:
        say("closing:", event.reason)
        closing.set()

    def on_manager_closed(self, event: ManagerClosed) -> None:
        say("report:", event.report)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        async with Manager(
            observers=[Reporter()], signals=SIGNALS, grace=20, leave_timeout=LEAVE_TIMEOUT
        ) as manager:
            manager.every(0.01, anyio.lowlevel.checkpoint)
            manager.run(print_shutdown_request, manager)
            yield {"manager": manager}
    finally:
        after = {number: signal.getsignal(number) for number in before}
        say("the server's handlers restored:", before == after)


app = FastAPI(lifespan=lifespan)


async def print_shutdown_request(manager: Manager) -> None:
    await manager.shutdown_requested()
    say("shutdown requested, manager is", manager.state)


async def job(manager: Manager, name: str) -> None:
    await manager.shutdown_requested()
    say(f"{name} done")


async def endless() -> None:
    await anyio.sleep_forever()


@app.post("/async/{name}", status_code=202)
async def post_async(name: str, request: Request) -> None:
    request.state.manager.run(job, request.state.manager, name)


@app.post("/plain/{name}", status_code=202)
def post_plain(name: str, request: Request) -> None:
    request.state.manager.run(job, request.state.manager, name)


@app.post("/endless", status_code=202)
async def post_endless(request: Request) -> None:
    request.state.manager.run(endless)


@app.post("/slow", status_code=202)
async def post_slow(request: Request) -> None:
    """Submit a task after the shutdown was requested."""
    say("slow request begins")
    manager = request.state.manager
    await manager.shutdown_requested()
    manager.run(job, manager, "slow job")


@app.post("/late", status_code=202)
def post_late(request: Request) -> None:
    """Submit a task from a thread while the manager closes."""
    say("late request begins")
    closing.wait()
    request.state.manager.run(job, request.state.manager, "late job")


@app.post("/too-late", status_code=202)
def post_too_late(request: Request) -> None:
    """Submit a task from a thread that outlives the event loop."""
    say("too late request begins")
    served.wait()
    try:
        request.state.manager.run(job, request.state.manager, "too late job")
    except ManagerClosedError as error:
        say("refused:", error)


@app.exception_handler(ManagerClosedError)
async def refuse(request: Request, error: ManagerClosedError) -> JSONResponse:
    say("refused:", error)
    return JSONResponse({"detail": str(error)}, 503)


if __name__ == "__main__":
    try:
        uvicorn.run(app, loop=sys.argv[1], port=0)
    finally:
        served.set()
    default = (signal.default_int_handler, signal.SIG_DFL)
    left = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    say("default handlers restored:", left == default)
