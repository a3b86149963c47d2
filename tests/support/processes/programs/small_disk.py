"""A broker on a disk of 12 MB, while a reader makes its log grow: `python small_disk.py FOLDER`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anyio

from background.queues import BrokerUnavailableError
from background.queues.sqlite import SQLiteBroker
from support.brokers.sqlite import message, other_connection

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


async def main(path: Path) -> None:
    broker = SQLiteBroker(path)
    await broker.open()
    accepted = 0
    with other_connection(path) as db:
        db.execute("BEGIN")
        db.execute("SELECT * FROM background_jobs").fetchall()
        try:
            while True:
                await broker.enqueue([message(str(accepted), body=b"x" * 100_000)])
                accepted += 1
        except BrokerUnavailableError as error:
            print("refused:", error)
        db.execute("COMMIT")
    await broker.maintain()
    await broker.get("0")  # the check follows the answer of a call
    assert await broker.enqueue([message("after")]) == [True]
    assert await broker.count() == accepted + 1
    await broker.close()


if __name__ == "__main__":
    folder = sys.argv[1]
    if len(sys.argv) == 2:
        os.execvp(NAMESPACE[0], [*NAMESPACE, sys.executable, *sys.argv, "mounted"])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder], check=True)
    anyio.run(main, Path(folder, "jobs.db"))
