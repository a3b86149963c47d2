"""A service as process 1 of a namespace, as in a container: `python container.py SIGNALS`.

It prints "ready" when it can receive a signal, "alive" at SIGUSR1, and "left" after its block.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import anyio

from background import Manager

NAMESPACE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def answer(number: int, frame: FrameType | None) -> None:
    say("alive")


async def main(signals: bool) -> None:
    signal.signal(signal.SIGUSR1, answer)
    async with Manager(signals=signals) as manager:
        manager.run(anyio.sleep_forever)
        say("ready as", os.getpid())
        await manager.shutdown_requested()
        await manager.close(timeout=0)
    say("left")


if __name__ == "__main__":
    if os.getpid() != 1:
        os.execvp(NAMESPACE[0], [*NAMESPACE, sys.executable, *sys.argv])
    anyio.run(main, sys.argv[1] == "True")
