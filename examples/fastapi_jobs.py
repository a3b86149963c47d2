"""A FastAPI service whose requests enqueue jobs that outlive it, and which works them off itself.

    python examples/fastapi_jobs.py [port]        or        uvicorn examples.fastapi_jobs:app

    curl -X POST localhost:8000/receipts/1
    curl localhost:8000/jobs/<id>
    curl -X DELETE localhost:8000/jobs/<id>

Jobs are in the file service.db, or where the variable JOBS_URL says: redis://…, nats://…. Start it
as often as you like: each process takes what there is, and what one leaves, another finishes.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from background import Manager
from background.observers import LoggingObserver
from background.queues import BrokerUnavailableError, DuplicateJobError, JobQueue

logging.basicConfig(level=logging.INFO, format="%(levelname)s:     %(message)s")

jobs = JobQueue.from_url(os.environ.get("JOBS_URL", "sqlite:///service.db"))


# A name of its own, or else it would depend on how this module was started.
@jobs.handler(name="send_receipt", queue="mail", retry=5, timeout=30)
async def send_receipt(order: int) -> str:
    await anyio.sleep(0.5)
    return f"the receipt of order {order} is out"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # The server's own handlers run too. Signals are for the main thread: a TestClient has another.
    in_main_thread = threading.current_thread() is threading.main_thread()
    async with (
        Manager(
            observers=[LoggingObserver()],
            signals={signal.SIGINT, signal.SIGTERM} if in_main_thread else (),
            grace=20,  # then jobs that still run are handed back, and another process has them
        ) as manager,
        jobs,
    ):
        await jobs.start(manager, concurrency=20)
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/receipts/{order}", status_code=202)
async def post_receipt(order: int) -> dict[str, str]:
    # The id makes it one receipt for each order, however often a client asks.
    job = await send_receipt.options(id=f"receipt-{order}").enqueue(order)
    return {"id": job.id}


@app.get("/jobs/{id}")
async def get_job(id: str) -> dict[str, Any]:
    info = await jobs.get(id)
    if info is None:
        raise HTTPException(404, "no such job is known: there was none, or it is long over")
    return {"state": info.state, "attempt": info.attempt, "result": info.result}


@app.delete("/jobs/{id}")
async def delete_job(id: str) -> dict[str, bool]:
    return {"cancelled": await jobs.cancel(id)}


@app.exception_handler(DuplicateJobError)
async def conflict(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 409)


@app.exception_handler(BrokerUnavailableError)
async def unavailable(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "5"})


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]) if sys.argv[1:] else 8000)
