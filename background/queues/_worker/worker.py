"""The public object of a worker."""

from __future__ import annotations

from ..._support import validation
from .loops import WorkerLoops
from .selection import Selection


class Worker:
    """Processes jobs as tasks of a manager; made by `JobQueue.start()`."""

    def __init__(self, loops: WorkerLoops) -> None:
        self._loops = loops

    @property
    def queues(self) -> Selection:
        """The queues that it claims jobs from."""
        return self._loops.queues

    @property
    def concurrency(self) -> int:
        """The most jobs in flight, including jobs that are being settled."""
        return self._loops.concurrency

    @property
    def in_flight(self) -> int:
        """The number of jobs in flight."""
        return len(self._loops.in_flight)

    async def close(self, *, timeout: float | None = None) -> None:
        """Stop claiming jobs, and wait for the running ones.

        It may be called any number of times, concurrently, and in a job, for which it does not
        wait.

        Args:
            timeout: Seconds after which jobs that still run are cancelled and released. `None` for
                no bound but the manager's grace time after a shutdown request.

        Raises:
            ValueError: `timeout` is not valid.
            QueueError: The worker runs in another event loop.
        """
        validation.optional(validation.seconds, "timeout", timeout, at_least=0)
        await self._loops.close(timeout)

    def __repr__(self) -> str:
        return f"<Worker of {self.queues!r}, {self.in_flight} of {self.concurrency}>"
