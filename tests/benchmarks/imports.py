"""How long `import background` takes against importing what it depends on, and no more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable

import anyio
from measure import clock, interleaved
from table import Row, compared

GOAL = 1.3
NOTHING = "python -c pass"
DEPENDENCIES = "anyio, tenacity, opentelemetry"
NEEDED = "anyio, tenacity"
OURS = "background"
OBSERVERS = "background.observers"
TELEMETRY = "background.observers.otel"

STATEMENTS = {
    NOTHING: "pass",
    # `import anyio` alone puts off most of it; this much everybody needs who uses it.
    DEPENDENCIES: "import anyio.lowlevel, tenacity, opentelemetry.metrics, opentelemetry.trace",
    NEEDED: "import anyio.lowlevel, tenacity",
    OURS: "import background",
    OBSERVERS: "import background.observers",
    TELEMETRY: "import background.observers.otel",
}


def rows(*, quick: bool) -> list[Row]:
    """Compare new processes; what one takes that imports nothing is taken off."""
    if not quick:
        for statement in STATEMENTS.values():  # let what is not compiled yet be compiled
            python(statement)
    processes = {name: in_process(statement) for name, statement in STATEMENTS.items()}
    samples = anyio.run(interleaved, processes, 1 if quick else 15)
    net = {
        name: [time - idle for time, idle in zip(times, samples[NOTHING], strict=True)]
        for name, times in samples.items()
    }
    return [
        Row(what=NOTHING, figures=samples[NOTHING]),
        compared(net, OURS, DEPENDENCIES, "import", "", goal=GOAL),
        compared(net, OURS, NEEDED, "import", ""),
        compared(net, OBSERVERS, DEPENDENCIES, "import", ""),
        compared(net, TELEMETRY, DEPENDENCIES, "import", ""),
    ]


def in_process(statement: str) -> Callable[[], Awaitable[float]]:
    async def measured() -> float:
        began = clock()
        python(statement)
        return clock() - began

    return measured


def python(statement: str) -> None:
    # With compiled modules, which is how everybody but a developer's container runs.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run([sys.executable, "-c", statement], check=True, env=environment)
