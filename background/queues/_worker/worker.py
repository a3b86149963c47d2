"""A worker: claims jobs, and has a manager run them."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial

import anyio
from opentelemetry import context as trace_context

from ..._errors import DuplicateTaskError
from ..._eventloop.protection import uninterrupted
from ..._execution.runner import current_handle
from ..._lifecycle.runtime import Lifecycle
from ..._states import ManagerState
from ..._support import validation
from ..._support.log import log
from ..._task import make as make_task
from .._backoff import Outage
from .._client import Client
from .._codec import trace
from ..abc import Claim
from .attempt import JobRun, Means
from .completer import Settler
from .heartbeat import Leases
from .preparation import Planner
from .selection import Selection

_IDLE = 30.0  # seconds after which a worker looks for work though the broker has told of none
_SWEEP = 5.0  # seconds between two passes of maintenance, at most


class Worker:
    """Works jobs off, as tasks of a manager; made by `JobQueue.start()`.

    - `queues`: which queues, and in which order.
    - `concurrency`: most jobs that it has at once, those that are being settled included.
    - `in_flight`: how many it has.
    """

    def __init__(
        self,
        life: Lifecycle,
        client: Client,
        planner: Planner,
        queues: Selection,
        *,
        concurrency: int,
        lease: float,
        cancel_timeout: float,
    ) -> None:
        self.queues = queues
        self.concurrency = concurrency
        self._broker = client.broker
        self._settler = Settler(client.broker, life.engine.event)
        self._now = life.engine.now
        self._means = Means(
            backend=life.engine._backend,
            client=client,
            settler=self._settler,
            now=self._now,
            release=self._release,
        )
        self._life = life
        self._planner = planner
        self._lease = lease
        self._cancel_timeout = cancel_timeout
        self._leases = Leases(self._broker, lease, self._now)
        self._context = copy_context()
        self._context.run(trace_context.attach, trace_context.Context())
        self._runs = self._leases.held
        self._changed = anyio.Event()  # when there are fewer jobs, or no more will come
        self._waiting = False  # for that
        self._stopped = False
        self._claiming = True
        self._closing: Counter[JobRun | None] = Counter()  # who is in close(), how often
        self._ending = False
        self._stuck: set[JobRun] = set()
        self._closed = False
        self._pause: anyio.CancelScope | None = None  # which a stop cuts short
        self._scopes: set[anyio.CancelScope] = set()

    @property
    def _is_closed(self) -> bool:
        return self._closed and not self._runs

    @property
    def in_flight(self) -> int:
        return len(self._runs)

    def _start(self) -> None:
        """Begin to claim."""
        self._life.engine.on_loops_stopped.add(self._stop)
        self._serve("settling", self._settler.run)
        self._serve("leases", self._leases.run)
        self._serve("sweeping", self._sweep)
        self._serve("claiming", self._claim_jobs)
        self._serve("noticing the end", self._notice_end)

    def _serve(self, name: str, fn: Callable[[], Awaitable[None]]) -> None:
        again = partial(self._serve, name, fn)  # unlike the manager, it can't do without
        self._life.services.start(f"background {name}", partial(self._until_closed, fn), again)

    async def _until_closed(self, fn: Callable[[], Awaitable[None]]) -> None:
        if not self._closed:
            with anyio.CancelScope() as scope:
                self._scopes.add(scope)
                try:
                    await fn()
                finally:
                    self._scopes.discard(scope)

    def _stop(self) -> None:
        """Claim no more; what has been claimed goes on."""
        self._stopped = True
        if self._pause is not None:
            self._pause.cancel()

    @uninterrupted
    async def close(self, *, timeout: float | None = None) -> None:
        """Claim no more, and wait for the jobs that run.

        - `timeout`: seconds after which they are cancelled and handed back; by default they end
          when they do, or the manager's grace time does after a shutdown request.

        Raises `ValueError` for a timeout below 0. Can be called again, and by several at once.
        """
        validation.optional(validation.seconds, "timeout", timeout, at_least=0)
        self._stop()
        mine = _current_run()
        self._closing[mine] += 1
        self._tell_change()
        try:
            with anyio.move_on_after(timeout):
                await self._idle(mine)
            for run in self._others(mine):
                run.hand_back()
            with anyio.move_on_after(self._cancel_timeout):
                await self._idle(mine)
                await self._settler.drain()
            self._stuck = self._others(mine)
        finally:
            self._closing[mine] -= 1
        self._ending = True
        self._end_services()

    def _end_services(self) -> None:
        """Stop for good, once nothing is left to be settled that will be."""
        if not self._closed and self._runs <= self._stuck:
            self._closed = True
            self._life.engine.on_loops_stopped.discard(self._stop)
            self._settler.close()
            for scope in list(self._scopes):
                scope.cancel()

    def _cancel(self, id: str) -> None:
        """End the run of a job that has been cancelled, if it is here."""
        for run in list(self._runs):
            if run.job.id == id:
                run.cancel()

    def _others(self, mine: JobRun | None) -> set[JobRun]:
        """Return the jobs that a caller waits for: not its own, nor others that wait likewise."""
        if mine is None:
            return set(self._runs)
        return {run for run in self._runs if not self._closing[run]}

    async def _idle(self, mine: JobRun | None) -> None:
        """Wait until there are no other jobs, and no more to come."""
        while self._others(mine) or self._claiming:
            if self._life.shutdown.state is ManagerState.CLOSED:
                return  # the manager waits no longer either, for jobs that are stuck
            await self._change()

    async def _notice_end(self) -> None:
        try:
            await self._life.shutdown.wait()
        finally:
            self._tell_change()

    async def _change(self) -> None:
        self._waiting = True
        await self._changed.wait()

    def _tell_change(self) -> None:
        if self._waiting:
            self._waiting = False
            changed, self._changed = self._changed, self._life.engine.event()
            changed.set()

    async def _claim_jobs(self) -> None:
        outage = Outage("claiming jobs")
        self._claiming = True
        try:
            while not self._stopped:
                with anyio.CancelScope() as self._pause:
                    while len(self._runs) >= self.concurrency:
                        await self._change()
                    try:
                        await self._claim_some()
                        outage.over()
                    except Exception as error:
                        await outage.failed(error)
        finally:
            self._claiming = False
            self._tell_change()

    async def _claim_some(self) -> None:
        room = self.concurrency - len(self._runs)
        queues = self.queues.draw()
        began = self._now()
        with anyio.CancelScope(shield=True):  # or jobs would wait for the ends of their leases
            for claim in await self._broker.claim(queues, room, lease=self._lease):
                self._take(claim, began + self._lease)
                room -= 1
        if room:
            await self._broker.wait_for_work(queues, _IDLE)

    def _take(self, claim: Claim, held_until: float) -> None:
        run = JobRun(self._means, claim, self._planner.plan(claim), held_until)
        if claim.crashes:
            text = "job %s of %s: its worker died, or lost its lease; this is attempt %d"
            log(logging.WARNING, text, run.job.id, run.job.handler, claim.attempt)
        self._runs.add(run)
        if self._stopped or self._now() >= held_until:  # as the answer took so long
            run.drop(None)
            return
        try:
            self._run(run)
        except Exception as error:  # its lease ends, and it is tried again; but not for ever
            log(logging.ERROR, "job %s can't be started", claim.message.id, error=error)
            self._release(run)

    def _run(self, run: JobRun) -> None:
        plan = run.plan
        context = self._context.copy()
        trace.attach(context, plan.trace)
        task = make_task(
            plan.fn,
            plan.args,
            plan.kwargs,
            timeout=plan.timeout,
            id=run.job.id,
            name=plan.name,
            meta=plan.meta,
            observers=plan.observers,
        )
        add = partial(self._life.engine.add, context=context, reserved=True, job=run.job)
        try:
            run.handle = add(task, durable=run)
        except DuplicateTaskError:  # it is still at an attempt of the same job, whose lease it lost
            run.handle = add(dataclasses.replace(task, id=None), durable=run)
        if run.is_cancelled:  # by an observer, when there was no handle yet
            run.cancel()

    def _release(self, run: JobRun) -> None:
        """Have room for another job in a run's place."""
        self._runs.discard(run)
        self._tell_change()
        if self._ending:
            self._end_services()

    async def _sweep(self) -> None:
        outage = Outage("looking after jobs")
        interval = min(self._lease / 3, _SWEEP)
        while True:
            try:
                await self._broker.maintain()
                outage.over()
            except Exception as error:
                await outage.failed(error)
            await anyio.sleep(interval * random.uniform(0.5, 1))

    def __repr__(self) -> str:
        return f"<Worker of {self.queues!r}, {self.in_flight} of {self.concurrency}>"


def _current_run() -> JobRun | None:
    handle = current_handle.get()
    run = None if handle is None else handle._durable
    return run if isinstance(run, JobRun) else None
