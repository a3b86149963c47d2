"""Costs of tasks as ratios within one run: `nox -s bench`.

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
    parser.add_argument("--quick", action="store_true", help="only check that everything works")
    parser.add_argument("--goals", action="store_true", help="print only rows with a goal")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown part: {', '.join(sorted(unknown))}; parts: {', '.join(PARTS)}")
    rows: list[Row] = []
    for part in options.parts or PARTS:
        began = clock()
        rows += PARTS[part](quick=options.quick)
        print(f"{part}: {clock() - began:.0f} s", file=sys.stderr)
    note = "; with --quick the figures mean nothing" if options.quick else ""
    print(f"Python {platform.python_version()}, {platform.system()}{note}", file=sys.stderr)
    print(table([row for row in rows if row.has_goal or not options.goals]))


if __name__ == "__main__":
    main()
