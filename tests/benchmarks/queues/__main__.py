"""What a durable job costs, against named peers in the same run: `nox -s bench_queues`.

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
from servers import is_here, redis
from table import Row, table

PARTS: dict[str, Callable[..., list[Row]]] = {
    "throughput": throughput.rows,
    "latency": latency.rows,
    "backlog": backlog.rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="queues", description="Print one table.")
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all")
    parser.add_argument("--quick", action="store_true", help="only see that everything works")
    parser.add_argument("--goals", action="store_true", help="print only what has a goal")
    parser.add_argument(
        "--peers", metavar="FOLDER", type=Path, help="where peers are, or get installed"
    )
    chosen = parser.parse_args()
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    pythons = peers.pythons(chosen.peers) if chosen.peers else {}
    found: list[Row] = []
    with redis() if is_here("redis") else nullcontext("") as server:
        everybody = entries(server, pythons)
        for part in chosen.parts or PARTS:
            began = clock()
            found += PARTS[part](everybody, quick=chosen.quick)
            print(f"{part}: {clock() - began:.0f} s", file=sys.stderr)
    worth = "; with --quick the figures mean nothing" if chosen.quick else ""
    print(f"Python {platform.python_version()}, {platform.system()}{worth}", file=sys.stderr)
    print(table([row for row in found if row.has_goal or not chosen.goals]))


if __name__ == "__main__":
    main()
