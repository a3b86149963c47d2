"""The log records of a worker's start and end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..._support.log import log
from .._enqueue.handler import Handler
from .._names import listed
from ..abc import Broker
from .selection import Selection, Weighted

_MOST_NAMES = 5  # in a record


def worker_started(
    broker: Broker,
    queues: Selection,
    handlers: Mapping[str, Handler[..., Any, Any]],
    *,
    concurrency: int,
    lease: float,
    schedules: int,
) -> None:
    """Log that a worker starts, and a warning about queues that no handler uses."""
    log(
        logging.INFO,
        "worker started: %s; queues%s: %s; handlers (%d): %s; concurrency: %d; lease: %g s; "
        "schedules: %d",
        broker,
        " by weight" if isinstance(queues, Weighted) else "",
        listed(queues.names, _MOST_NAMES),
        len(handlers),
        listed(sorted(handlers), _MOST_NAMES),
        concurrency,
        lease,
        schedules,
    )
    used = {handler.config.terms.queue for handler in handlers.values()}
    if unused := [name for name in queues.names if name not in used]:
        log(
            logging.WARNING,
            "worker: no handler here belongs to the queues %s; the handlers' queues are %s",
            listed(unused, _MOST_NAMES),
            listed(sorted(used), _MOST_NAMES),
        )


def worker_stopped(queues: Selection) -> None:
    """Log that a worker has ended."""
    log(logging.INFO, "worker stopped; queues: %s", listed(queues.names, _MOST_NAMES))
