"""The log of a day of a service, which `docs/guides/log.md` shows."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.brokers import redis_servers
from support.processes.process import PROGRAMS, running

from background.queues import JobQueue

SHOP = PROGRAMS / "shop.py"
PAGE = Path(__file__).parents[2] / "docs/guides/log.md"
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")

pytestmark = pytest.mark.skipif(not redis_servers.available(), reason="there is no server")


@pytest.fixture
def server() -> Iterator[redis_servers.Server]:
    server = redis_servers.Server(redis_servers.available()[-1], *DURABLE)
    yield server
    server.close()


def normalized(log: str) -> list[str]:
    """Return the lines of a log without times, ids, ports, durations and folders."""
    for pattern, text in (
        (r"(?m)^\d\d:\d\d:\d\d", "TIME"),
        (r"\((report:)?[0-9a-f]{8,}(-\d+|\.\.[0-9.]+)?\)", "(ID)"),
        (r"127\.0\.0\.1:\d+", "HOST"),
        (r"\d+\.\d+ s\b", "SECONDS"),
        (r'File ".*shop\.py"', 'File "shop.py"'),
        (r"(claiming|maintaining|settling) jobs: ", "CALLING: "),  # whichever is first
    ):
        log = re.sub(pattern, text, log)
    return log.strip().split("\n")


def day(server: redis_servers.Server, reports: Path) -> str:
    """Run the service for a day of some seconds, and return the log of its two versions."""
    jobs = JobQueue.from_url(server.url, prefix="shop")
    command = (SHOP, server.url, reports)
    with running(*command) as old:
        old.wait_for("'warm_cache'")
        jobs.enqueue_sync("confirm", [1])
        old.wait_for("'confirm'")
        jobs.enqueue_sync("charge", [1])
        old.wait_for("failed attempt 1")
        old.wait_for("'charge'")
        jobs.enqueue_sync("ship", ["Atlantis"])
        old.wait_for("ValueError")
        old.wait_for("'report'")
        jobs.enqueue_sync("wrap", [1])
        old.wait_for("'wrap'")
        with running(*command, "wrap") as new:
            new.wait_for("'warm_cache'")
            old.send(signal.SIGTERM)
            assert old.wait() == -signal.SIGTERM
            new.wait_for("'wrap'")
            server.kill()
            new.wait_for("trying again")
            server.start()
            new.wait_for("works again")
            jobs.enqueue_sync("pack", [60])
            jobs.enqueue_sync("pack", [0.1])
            new.wait_for("'pack'")
            new.send(signal.SIGTERM)
            assert new.wait() == -signal.SIGTERM
    return f"{old.output}\n{new.output}"


def test_page(server: redis_servers.Server, tmp_path: Path) -> None:
    """The page shows the log, with an explanation of each part."""
    log = day(server, tmp_path / "reports")
    shown = re.findall(r"```text\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert normalized(log) == normalized("".join(shown))
