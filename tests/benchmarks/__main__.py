"""What the library costs, as ratios within one run: `nox -s bench`.

python tests/benchmarks [--quick] [--goals] [PART …]
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable

import delayed
import growth
import imports
import loops
import memory
import spawn
from measure import clock
from table import Row, table

PARTS: dict[str, Callable[..., list[Row]]] = {
    "spawn": spawn.rows,
    "memory": memory.rows,
    "growth": growth.rows,
    "delayed": delayed.rows,
    "loops": loops.rows,
    "imports": imports.rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description="Print one table.")
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all")
    parser.add_argument("--quick", action="store_true", help="only see that everything works")
    parser.add_argument("--goals", action="store_true", help="print only what has a goal")
    chosen = parser.parse_args()
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    found: list[Row] = []
    for part in chosen.parts or PARTS:
        began = clock()
        found += PARTS[part](quick=chosen.quick)
        print(f"{part}: {clock() - began:.0f} s", file=sys.stderr)
    worth = "; with --quick the figures mean nothing" if chosen.quick else ""
    print(f"Python {platform.python_version()}, {platform.system()}{worth}", file=sys.stderr)
    print(table([row for row in found if row.has_goal or not chosen.goals]))


if __name__ == "__main__":
    main()
