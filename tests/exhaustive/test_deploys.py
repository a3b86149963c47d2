"""Two versions of a service that process the jobs of one queue."""

from __future__ import annotations

import sys
from random import Random, randrange

import pytest
from support.processes.workers import Cluster

pytestmark = [
    pytest.mark.filterwarnings("ignore:several connections"),
    pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals"),
]

JOBS = 1000


def test_two_versions(name: str, cluster: Cluster) -> None:
    """No job is lost or dead, or counts an attempt, of a version that can't run it."""
    seed = randrange(10**6)
    random = Random(seed)
    calls = [("changed", (1,)), ("changed", (1, 2)), ("only_old", ()), ("only_new", ())]
    with cluster.client() as client:
        for version in ("old", "new"):
            cluster.start(version=version, concurrency=16)
        ids = []
        for _ in range(JOBS // 50):
            handler, args = random.choice(calls)
            ids += client.enqueue_many(handler, [args] * 50)
        assert set(client.wait(*ids)) == {"succeeded"}, f"seed {seed}"
        history = cluster.history(client)
        history.check()
        ends = client.ends()
    assert {end.attempt for end in ends.values()} == {1}, f"seed {seed}"
    print(f"\n{name}: {len(ids)} jobs of two versions: lost {len(history.lost)}, seed {seed}")
