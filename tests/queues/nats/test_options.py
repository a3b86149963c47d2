"""The options of the NATS broker."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from support.brokers.nats import (
    message,
    virtual,
)
from support.brokers.nats_servers import (
    served_nats_broker,
)

from background.queues._errors import BrokerUnavailableError
from background.queues.nats import NatsBroker
from background.queues.nats.layout import Layout, encode


@pytest.mark.parametrize(
    "options",
    [{"prefix": "a.b"}, {"prefix": ""}, {"replicas": 0}, {"replicas": True}, {"storage": "disk"}],
)
def test_invalid_options(options: Any) -> None:
    """An invalid option is rejected with an error that contains its name."""
    (name,) = options
    with pytest.raises(ValueError, match=name):
        NatsBroker("nats://h", **options)


def test_encoded_names() -> None:
    """Names are encoded as distinct tokens without characters that subjects reserve."""
    names = ["a.b", "a:b", "a=b", "a-b_C", "." * 128, ":" * 128]
    tokens = [encode(name) for name in names]
    assert len(set(tokens)) == len(names)
    assert not [token for token in tokens if set(token) & set(".:*> ")]
    layout = Layout("p", 1, "file")
    consumers = [layout.consumer(name, again=True)[0] for name in names]
    assert len(set(consumers)) == len(names)
    assert max(map(len, consumers)) < 200


@virtual
async def test_unusual_names() -> None:
    """Ids and queues can contain punctuation and be 128 characters long."""
    async with served_nats_broker() as broker:
        sent = [message(id, queue=id) for id in ("a.b", "a:b", "." * 128, "-:-")]
        assert await broker.enqueue(sent) == [True] * 4
        for job in sent:
            (claim,) = await broker.claim([job.queue], 2, lease=30)
            assert claim.message == job
        assert [job.message async for job in broker.scan()] == sent


def test_asyncio_only(anyio_backend_name: str) -> None:
    """Opening a broker on Trio raises RuntimeError."""

    async def main() -> None:
        await NatsBroker("nats://127.0.0.1:1").open()

    expected = RuntimeError if anyio_backend_name == "trio" else BrokerUnavailableError
    with pytest.raises(expected):
        anyio.run(main, backend=anyio_backend_name)
