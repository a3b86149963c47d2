"""A FastAPI service that answers immediately, and does the work afterwards.

    python examples/fastapi_app.py [port]        or        uvicorn examples.fastapi_app:app

    curl -X POST localhost:8000/receipts/1
    curl -X POST localhost:8000/invoices/1
    curl localhost:8000/tasks/<id>
    curl localhost:8000/health

On SIGTERM and Ctrl-C the server answers the open requests, finishes their tasks, logs the outcome,
and ends. A second Ctrl-C cancels the tasks that are left.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any

import anyio
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from background import Manager, ManagerClosedError, ManagerFullError, task
from background.observers import LoggingObserver

logging.basicConfig(level=logging.INFO, format="%(levelname)s:     %(message)s")


@task(retry=3, timeout=10)
async def send_receipt(order: int) -> None:
    await anyio.sleep(0.5)


def make_invoice(order: int) -> None:
    time.sleep(0.5)  # a sync function runs in a thread


async def refresh_prices() -> None:
    await anyio.sleep(0.1)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with Manager(
        observers=[LoggingObserver()],
        capacity=1000,
        signals=True,  # in addition to the server's own handlers
        grace=20,  # Kubernetes gives 30 seconds, open requests included
    ) as manager:
        manager.every(5, refresh_prices)
        yield {"manager": manager}


app = FastAPI(lifespan=lifespan)


async def get_manager(request: Request) -> Manager:
    return request.state.manager


Background = Annotated[Manager, Depends(get_manager)]


@app.post("/receipts/{order}", status_code=202)
async def post_receipt(order: int, manager: Background) -> dict[str, str]:
    return {"id": manager.run(send_receipt, order).id}


@app.post("/invoices/{order}", status_code=202)
def post_invoice(order: int, manager: Background) -> dict[str, str]:
    # This endpoint runs in a thread, from which tasks can be submitted, too.
    return {"id": manager.run(make_invoice, order).id}


@app.get("/tasks/{id}")
async def get_task(id: str, manager: Background) -> dict[str, Any]:
    handle = manager.get(id)
    if handle is None:
        raise HTTPException(404, "no such task is outstanding")
    return {"name": handle.name, "status": handle.status, "attempt": handle.attempt}


@app.get("/health")
async def get_health(manager: Background, response: Response) -> dict[str, Any]:
    health = manager.health()
    response.status_code = 200 if health.ok else 503
    return asdict(health)


@app.exception_handler(ManagerFullError)
@app.exception_handler(ManagerClosedError)
async def unavailable(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "5"})


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]) if sys.argv[1:] else 8000)
