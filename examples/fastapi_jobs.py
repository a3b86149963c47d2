"""A FastAPI service that enqueues durable jobs, and processes them.

    python examples/fastapi_jobs.py [port]        or        uvicorn examples.fastapi_jobs:app

    curl -X POST localhost:8000/receipts/1
    curl localhost:8000/jobs/<id>
    curl -X DELETE localhost:8000/jobs/<id>

Jobs are stored in the file service.db, or where the variable JOBS_URL says: redis://…, nats://….
Several processes share the jobs, and finish the jobs of a process that was killed.
"""

from __future__ import annotations

import logging
import os
import sys
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


@jobs.handler(name="send_receipt", queue="mail", retry=5, timeout=30)
async def send_receipt(order: int) -> str:
    await anyio.sleep(0.5)
    return f"the receipt of order {order} is out"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # When the grace time ends, running jobs are released for other processes.
    async with jobs, Manager(observers=[LoggingObserver()], signals=True, grace=20) as manager:
        await jobs.start(manager, concurrency=20)
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/receipts/{order}", status_code=202)
async def post_receipt(order: int) -> dict[str, str]:
    # Because of the id, an order has one receipt, even if a client repeats the request.
    job = await send_receipt.options(id=f"receipt-{order}").enqueue(order)
    return {"id": job.id}


@app.get("/jobs/{id}")
async def get_job(id: str) -> dict[str, Any]:
    info = await jobs.get(id)
    if info is None:
        raise HTTPException(404, "no such job is stored")
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
