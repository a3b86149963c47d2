"""The metrics of the OpenTelemetry observer."""

from __future__ import annotations

from opentelemetry.metrics import Histogram, Meter

# OpenTelemetry's conventions recommend 5 ms to 10 s for HTTP durations; tasks may take longer:
# https://opentelemetry.io/docs/specs/semconv/http/http-metrics/#metric-httpserverrequestduration
_SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0),
)


class Instruments:
    """The instruments of one meter.

    A run is one run of a one-off, one attempt of a job, or one iteration of a loop.
    """

    def __init__(self, meter: Meter) -> None:
        self.added = meter.create_counter(
            "background.task.added", "{task}", "Number of tasks that were submitted."
        )
        self.finished = meter.create_counter(
            "background.task.finished", "{task}", "Number of tasks that ended."
        )
        self.retries = meter.create_counter(
            "background.task.retries", "{retry}", "Number of attempts that followed a failed one."
        )
        self.active = meter.create_up_down_counter(
            "background.task.active", "{task}", "Number of runs in progress."
        )
        self.duration = _histogram(
            meter, "background.task.duration", "Duration of runs, including retries."
        )
        self.queue_time = _histogram(
            meter, "background.task.queue_time", "Time from when a run was due to its start."
        )
        self.jobs_enqueued = meter.create_counter(
            "background.job.enqueued", "{job}", "Number of jobs that this process enqueued."
        )
        self.jobs_dead = meter.create_counter(
            "background.job.dead", "{job}", "Number of jobs that became dead in this process."
        )
        self.job_queue_time = _histogram(
            meter, "background.job.queue_time", "Time from enqueueing a job to its first attempt."
        )


def _histogram(meter: Meter, name: str, description: str) -> Histogram:
    return meter.create_histogram(
        name, "s", description, explicit_bucket_boundaries_advisory=_SECONDS
    )
