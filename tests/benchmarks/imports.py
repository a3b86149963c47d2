"""Time of `import background` compare with importing its dependencies."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable

import anyio
from measure import clock, interleave
from table import Row, compare

GOAL = 1.3
NOTHING = "python -c pass"
DEPENDENCIES = "anyio, tenacity, opentelemetry"
NEEDED = "anyio, tenacity"
OURS = "background"
OBSERVERS = "background.observers"
TELEMETRY = "background.observers.otel"

STATEMENTS = {
    NOTHING: "pass",
    # `import anyio` alone defers most imports; every user of anyio needs these.
    DEPENDENCIES: "import anyio.lowlevel, tenacity, opentelemetry.metrics, opentelemetry.trace",
    NEEDED: "import anyio.lowlevel, tenacity",
    OURS: "import background",
    OBSERVERS: "import background.observers",
    TELEMETRY: "import background.observers.otel",
}


def rows(*, quick: bool) -> list[Row]:
    """Compare new processes, and subtract the time of one that imports nothing."""
    if not quick:
        for statement in STATEMENTS.values():  # compile all modules
            python(statement)
    processes = {name: in_process(statement) for name, statement in STATEMENTS.items()}
    samples = anyio.run(interleave, processes, 1 if quick else 15)
    net = {
        name: [time - idle for time, idle in zip(times, samples[NOTHING], strict=True)]
        for name, times in samples.items()
    }
    return [
        Row(title=NOTHING, figures=samples[NOTHING]),
        compare(net, OURS, DEPENDENCIES, "import", "", goal=GOAL),
        compare(net, OURS, NEEDED, "import", ""),
        compare(net, OBSERVERS, DEPENDENCIES, "import", ""),
        compare(net, TELEMETRY, DEPENDENCIES, "import", ""),
    ]


def in_process(statement: str) -> Callable[[], Awaitable[float]]:
    async def measure() -> float:
        began = clock()
        python(statement)
        return clock() - began

    return measure


def python(statement: str) -> None:
    # Containers may disable compiled modules, which installations use.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run([sys.executable, "-c", statement], check=True, env=environment)
