"""Conformance of result stores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.brokers.kinds import Kind, elapse

from background.queues.abc import Results


@pytest.fixture
async def results(
    broker_kind: Kind, anyio_backend: object, tmp_path: Path
) -> AsyncIterator[Results]:
    assert broker_kind.results is not None
    async with broker_kind.opened(broker_kind.results(tmp_path)) as results:
        yield results


async def test_save_and_get(results: Results) -> None:
    """A saved result can be read; a key without a result has none."""
    assert await results.get("one") is None
    await results.save("one", b"\x00 1", retention=60)
    await results.save("two", b"", retention=60)
    assert await results.get("one") == b"\x00 1"
    assert await results.get("two") == b""


async def test_overwrite(results: Results) -> None:
    """A later result replaces the earlier one and its retention."""
    await results.save("one", b"1", retention=60)
    await results.save("one", b"2", retention=100)
    await elapse(results, 70)
    assert await results.get("one") == b"2"
    await elapse(results, 40)
    assert await results.get("one") is None


async def test_delete(results: Results) -> None:
    """A deleted result is gone, and its deletion can be repeated."""
    await results.save("one", b"1", retention=60)
    await results.save("two", b"2", retention=60)
    await results.delete("one")
    await results.delete("one")
    assert await results.get("one") is None
    assert await results.get("two") == b"2"


async def test_retention(results: Results) -> None:
    """A result is stored until its own retention ends."""
    await results.save("one", b"1", retention=60)
    await results.save("two", b"2", retention=100)
    await elapse(results, 50)
    assert await results.get("one") == b"1"
    await elapse(results, 20)
    assert await results.get("one") is None
    await results.save("three", b"3", retention=60)
    assert await results.get("two") == b"2"


async def test_unusual_keys(results: Results) -> None:
    """Keys can be long, consist of punctuation, or differ only in case."""
    keys = ["a" * 160, "A-b_c:d.1", "A-b_c:d.2", "a-b_c:d.1", "..", ":"]
    for key in keys:
        await results.save(key, key.encode(), retention=60)
    assert [await results.get(key) for key in keys] == [key.encode() for key in keys]
