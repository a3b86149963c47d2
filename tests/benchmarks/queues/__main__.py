"""Costs of durable jobs compared with peers in the same run: `nox -s bench_queues`.

python tests/benchmarks/queues [--quick] [--goals] [--peers FOLDER] [PART …]
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

import backlog
import latency
import peers
import throughput
from entries import entries
from measure import clock
from servers import is_available, redis
from table import Row, table

PARTS: dict[str, Callable[..., list[Row]]] = {
    "throughput": throughput.rows,
    "latency": latency.rows,
    "backlog": backlog.rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="queues", description="Print one table.")
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all")
    parser.add_argument("--quick", action="store_true", help="only check that everything works")
    parser.add_argument("--goals", action="store_true", help="print only rows with a goal")
    parser.add_argument(
        "--peers",
        metavar="FOLDER",
        type=Path,
        help="environments of the peers; installed if missing",
    )
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown part: {', '.join(sorted(unknown))}; parts: {', '.join(PARTS)}")
    pythons = peers.pythons(options.peers) if options.peers else {}
    rows: list[Row] = []
    with redis() if is_available("redis") else nullcontext("") as server:
        contenders = entries(server, pythons)
        for part in options.parts or PARTS:
            began = clock()
            rows += PARTS[part](contenders, quick=options.quick)
            print(f"{part}: {clock() - began:.0f} s", file=sys.stderr)
    note = "; with --quick the figures mean nothing" if options.quick else ""
    print(f"Python {platform.python_version()}, {platform.system()}{note}", file=sys.stderr)
    print(table([row for row in rows if row.has_goal or not options.goals]))


if __name__ == "__main__":
    main()
