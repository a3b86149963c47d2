"""The NATS broker beyond the contract: its server, its connection, and what a crash leaves."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import signal
import ssl
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import Any

import anyio
import pytest
import trustme
from support.time import SOON
from support.cancellation.injection import How, Point, World
from support.brokers.nats_servers import (
    NatsServer,
    held,
    nats_server,
    remove_streams,
    served_nats_broker,
    shared_server,
)
from support.processes.process import PROGRAMS, running
from support.cancellation.stepping import When

from background import Manager
from background._support import clock as system_clock
from background.queues import JobQueue
from background.queues._errors import BrokerUnavailableError, PayloadTooLargeError
from background.queues._states import FINAL, JobState
from background.queues.abc import Claim, LeaseStatus, MaintenanceStats, Message, Settlement
from background.queues.nats import NatsBroker, timer_wheel
from background.queues.nats.codec import decode
from background.queues.nats.connection import NatsConnection
from background.queues.nats.layout import Layout, encode
from background.queues.nats.requests import Answers, Request
from background.queues.nats.timer_wheel import of_lease
from background.testing import VirtualTimeLoop

SCRIPT = PROGRAMS / "nats_worker.py"

Test = Callable[..., Coroutine[Any, Any, None]]


def real(test: Test) -> Callable[..., None]:
    """Run a test on asyncio in real time, as connections that fail do so in their own time."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        anyio.run(_limited, functools.partial(test, *args, **kwargs))

    return run


async def _limited(test: Test) -> None:
    async with asyncio.timeout(4 * SOON):
        await test()


def virtual(test: Test) -> Callable[..., None]:
    """Run a test in virtual time."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        options = {"loop_factory": VirtualTimeLoop}
        anyio.run(functools.partial(test, *args, **kwargs), backend_options=options)

    return run


def message(id: str = "one", **options: Any) -> Message:
    return Message(
        **{
            "id": id,
            "handler": "h",
            "queue": "q",
            "body": b"{}",
            "retention": 60,
            "dead_retention": 60,
            **options,
        }
    )


def messages(count: int, **options: Any) -> list[Message]:
    return [message(f"{number:04}", **options) for number in range(count)]


async def finish(broker: NatsBroker, claims: list[Claim], **options: Any) -> list[bool]:
    return await broker.settle(
        [
            Settlement(id=each.message.id, token=each.token, state=JobState.SUCCEEDED, **options)
            for each in claims
        ]
    )


async def state_of(broker: NatsBroker, id: str = "one") -> JobState | None:
    job = await broker.get(id)
    return None if job is None else job.state


@asynccontextmanager
async def opened(server: NatsServer, **options: Any) -> AsyncIterator[Any]:
    """Give a broker that is open, for real time."""
    options.setdefault("prefix", f"test-{token_hex(8)}")
    broker: Any = NatsBroker(options.pop("url", server.url), **options)
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


async def stored(broker: Any) -> dict[str, int]:
    """How many messages there are in each stream."""
    names = broker._layout.streams
    infos = [await broker._api._ask(f"STREAM.INFO.{name}") for name in names]
    return {
        name.removeprefix(broker._layout.prefix + "-"): info["state"]["messages"]
        for name, info in zip(("jobs", "ready", "timers"), infos, strict=True)
    }


EMPTY = {"jobs": 0, "ready": 0, "timers": 0}


# What it is made with


@pytest.mark.parametrize(
    "url", ["", "redis://h", "nats://", "nats://h:port", "nats://h:99999", "nats://h,x://y"]
)
def test_a_url_that_can_not_be_used(url: str) -> None:
    with pytest.raises(ValueError, match="url must be like nats://user:password@host:4222"):
        NatsBroker(url)


@pytest.mark.parametrize(
    "options",
    [{"prefix": "a.b"}, {"prefix": ""}, {"replicas": 0}, {"replicas": True}, {"storage": "disk"}],
)
def test_options_that_can_not_be_used(options: Any) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=name):
        NatsBroker("nats://h", **options)


def test_secrets_are_not_shown() -> None:
    broker = NatsBroker("nats://me:secret@h:1,tls://token@[::1]")
    assert repr(broker) == "<NatsBroker nats://h:1,tls://[::1]:4222 prefix='background'>"
    with pytest.raises(ValueError, match="url must be") as caught:
        NatsBroker("nats://me:secret@h:port")
    assert "secret" not in repr(caught.value)


def test_names_as_tokens_of_subjects() -> None:
    names = ["a.b", "a:b", "a=b", "a-b_C", "." * 128, ":" * 128]
    tokens = [encode(name) for name in names]
    assert len(set(tokens)) == len(names)
    assert not [each for each in tokens if set(each) & set(".:*> ")]
    names_of = Layout("p", 1, "file")
    consumers = [names_of.consumer(name, again=True)[0] for name in names]
    assert len(set(consumers)) == len(names)
    assert max(map(len, consumers)) < 200


@virtual
async def test_names_of_all_kinds() -> None:
    async with served_nats_broker() as broker:
        sent = [message(id, queue=id) for id in ("a.b", "a:b", "." * 128, "-:-")]
        assert await broker.enqueue(sent) == [True] * 4
        for each in sent:
            (claim,) = await broker.claim([each.queue], 2, lease=30)
            assert claim.message == each
        assert [job.message async for job in broker.scan()] == sent


def test_asyncio_only(anyio_backend_name: str) -> None:
    async def main() -> None:
        await NatsBroker("nats://127.0.0.1:1").open()

    expected = RuntimeError if anyio_backend_name == "trio" else BrokerUnavailableError
    with pytest.raises(expected):
        anyio.run(main, backend=anyio_backend_name)


# The server


@real
async def test_no_server() -> None:
    broker = NatsBroker("nats://me:secret@127.0.0.1:1,nats://127.0.0.1:2")
    with pytest.raises(BrokerUnavailableError, match=r"nats://127\.0\.0\.1:1,.*onnect") as caught:
        await broker.open()
    assert "secret" not in str(caught.value)
    with pytest.raises(BrokerUnavailableError, match="is not open"):
        await broker.get("one")
    await broker.close()


@real
async def test_no_jetstream() -> None:
    with nats_server(jetstream=False) as server:
        broker = NatsBroker(server.url)
        with pytest.raises(BrokerUnavailableError, match="has no JetStream to keep jobs in"):
            await broker.open()


@pytest.mark.parametrize("version", ["2.8.4", "1.4", "", "0.0.1", "strange"])
@virtual
async def test_old_servers_are_refused(version: str) -> None:
    async with served_nats_broker() as broker:
        link: Any = broker._link
        await held(link.connection.close())
        link.version = functools.partial(_later, version)
        with pytest.raises(BrokerUnavailableError, match=r"2\.9 or later is needed"):
            await held(broker.open())
        for newer in ("2.9.0", "v2.12.0-RC.1", "3.0.0-dev"):
            link.version = functools.partial(_later, newer)
            await held(broker.open())
            await held(link.connection.close())
        await held(broker.open())


async def _later(value: Any) -> Any:
    return value


@real
async def test_streams_with_other_settings_are_refused() -> None:
    server = shared_server()
    async with opened(server, storage="memory") as broker:
        prefix = broker._layout.prefix
        other = NatsBroker(server.url, prefix=prefix)
        expected = f"stream KV_{prefix}-jobs has other settings .*: storage is 'memory' instead of"
        with pytest.raises(BrokerUnavailableError, match=expected):
            await other.open()
        await remove_streams(broker)


@real
async def test_opened_by_many_at_once() -> None:
    server = shared_server()
    prefix = f"test-{token_hex(8)}"
    brokers: list[Any] = [NatsBroker(server.url, prefix=prefix) for _ in range(8)]
    await asyncio.gather(*(each.open() for each in brokers), brokers[0].open())
    await asyncio.gather(*(each.claim(["q"], 1, lease=30) for each in brokers))
    assert await brokers[0].enqueue([message()]) == [True]
    claims = await asyncio.gather(*(each.claim(["q"], 1, lease=30) for each in brokers))
    assert sorted(map(len, claims)) == [0] * 7 + [1]
    await remove_streams(brokers[0])
    await asyncio.gather(*(each.close() for each in brokers))


@pytest.mark.parametrize(
    ("config", "right", "wrong"),
    [
        ("user: 'me', password: 's3cret'", "me:s3cret", "me:wr0ng"),
        ("token: 's3cret'", "s3cret", "wr0ng"),
    ],
)
@real
async def test_credentials(config: str, right: str, wrong: str) -> None:
    with nats_server(f"authorization {{ {config} }}") as server:
        url = server.url.replace("//", f"//{right}@")
        async with opened(server, url=url) as broker:
            assert await broker.count() == 0
            assert "s3cret" not in repr(broker)
        broker = NatsBroker(server.url.replace("//", f"//{wrong}@"))
        with pytest.raises(BrokerUnavailableError, match="Authorization") as caught:
            await broker.open()
        assert "wr0ng" not in str(caught.value)


@real
async def test_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert"))
    paths = f"cert_file: {str(tmp_path / 'cert')!r}, key_file: {str(tmp_path / 'key')!r}"
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with nats_server(f"tls {{ {paths} }}") as server:
        url = server.url.replace("nats:", "tls:")
        async with opened(server, url=url, tls=context) as broker:
            assert await broker.enqueue([message()]) == [True]
        with pytest.raises(BrokerUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            await NatsBroker(url).open()


# Streams that are gone


@asynccontextmanager
async def kept_in_memory() -> AsyncGenerator[tuple[NatsServer, Any]]:
    """Give a server and a broker that keeps its jobs in the server's memory."""
    with nats_server() as server:
        async with opened(server, storage="memory") as broker:
            yield server, broker


async def restarted(server: NatsServer) -> None:
    await asyncio.to_thread(server.restart)


def calls_of(broker: NatsBroker, claims: list[Claim]) -> dict[str, tuple[Any, Any]]:
    """Every call, with what it is to say when there is nothing any more."""
    new = [message("new"), message("after", depends_on=("new",))]
    return {
        "enqueue": (lambda: broker.enqueue(new), [True] * 2),
        "claim": (lambda: broker.claim(["q"], 1, lease=30), []),
        "wait_for_work": (lambda: broker.wait_for_work(["q"], 0.01), None),
        "renew": (lambda: broker.renew(claims, lease=30), [LeaseStatus.LOST]),
        "settle": (lambda: finish(broker, claims), [False]),
        "save": (lambda: broker.save("one", claims[0].token, b"1"), False),
        "get": (lambda: broker.get("one"), None),
        "wait": (lambda: broker.wait("one", 10), None),
        "cancel": (lambda: broker.cancel("one"), None),
        "requeue": (lambda: broker.requeue("one"), False),
        "count": (broker.count, 0),
        "purge": (broker.purge, 0),
        "maintain": (broker.maintain, MaintenanceStats()),
        "clock": (broker._clock.read, None),
    }


async def goes_on(broker: NatsBroker) -> None:
    """See that everything works."""
    assert await broker.enqueue([message("two", queue="r")]) == [True]
    (claim,) = await broker.claim(["r"], 1, lease=30)
    assert await finish(broker, [claim]) == [True]
    assert await state_of(broker, "two") is JobState.SUCCEEDED


@real
async def test_what_was_kept_in_memory_is_gone_with_the_server_and_all_goes_on() -> None:
    """At the first call after the server has been started again."""
    async with kept_in_memory() as (server, broker):
        claims: list[Claim] = []
        for name in ("enqueue", "claim", "wait_for_work", "maintain"):
            call, expected = calls_of(broker, claims)[name]
            assert await broker.enqueue([message()]) == [True]
            await restarted(server)
            assert await call() == expected
            await goes_on(broker)
            await remove_streams(broker)


@pytest.mark.parametrize("number", range(14))
@virtual
async def test_streams_that_somebody_deletes_are_made_again(number: int) -> None:
    async with served_nats_broker() as broker:
        claims: list[Claim] = []
        call, expected = list(calls_of(broker, claims).values())[number]
        await broker.enqueue([message()])
        claims[:] = await broker.claim(["q"], 1, lease=30)
        await remove_streams(broker)
        assert await despite_old_files(call) == expected
        await goes_on(broker)


async def despite_old_files(call: Callable[[], Awaitable[Any]]) -> Any:
    """Call again where the server has not removed a stream's files yet, and can't make another."""
    for _ in range(50):
        try:
            return await call()
        except BrokerUnavailableError as error:
            if "error creating store" not in str(error):
                raise
    return await call()


@real
@pytest.mark.usefixtures("renewing_often")
async def test_a_worker_goes_on_when_its_streams_are_made_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with nats_server() as server:
        jobs = JobQueue(NatsBroker(server.url, storage="memory"))
        began, gate = asyncio.Event(), asyncio.Event()

        @jobs.handler()
        async def add(a: int, b: int) -> int:
            return a + b

        @jobs.handler()
        async def hold() -> None:
            began.set()
            await gate.wait()

        async with Manager() as manager, jobs:
            worker = await jobs.start(manager)
            assert await (await add.enqueue(1, 2)).result() == 3
            await hold.enqueue()
            await began.wait()
            await restarted(server)
            later = await eventually(lambda: add.enqueue(3, 4))
            assert await later.result() == 7
            while worker.in_flight:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert not gate.is_set()
    assert "it has been made again" in caplog.text


@real
async def test_who_waits_for_work_goes_on_when_streams_are_made_again() -> None:
    async with kept_in_memory() as (server, broker):
        waiting = asyncio.create_task(eventually(lambda: broker.wait_for_work(["q"], 1000)))
        while not broker._link._listeners:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await restarted(server)
        async with opened(server, storage="memory", prefix=broker._layout.prefix) as other:
            await eventually(lambda: other.enqueue([message()]))
            await waiting
        assert len(await broker.claim(["q"], 5, lease=30)) == 1


@real
async def test_what_was_known_of_a_job_that_is_gone_changes_no_other() -> None:
    """Neither one with the same id, nor the timer of another, at the same place as before."""
    prefix = f"test-{token_hex(8)}"
    options: Any = {"storage": "memory", "prefix": prefix}
    with nats_server() as server:
        async with opened(server, **options) as broker, opened(server, **options) as other:
            await other.enqueue([message()])
            old = await broker.claim(["q"], 1, lease=30)
            await restarted(server)
            assert await eventually(lambda: other.enqueue([message()])) == [True]
            new = await eventually(lambda: other.claim(["q"], 1, lease=30))
            assert (await stored(other))["timers"] == 1
            assert await eventually(lambda: finish(broker, old)) == [False]
            broker._claims._leases.drop(["one"])
            assert await broker.renew(old, lease=30) == [LeaseStatus.LOST]
            assert (await stored(other))["timers"] == 1
            assert await finish(other, new, result=b"new") == [True]
            assert (await broker.get("one")).result == b"new"


@pytest.mark.parametrize("gone", [["ready"], ["timers"], ["ready", "timers"]])
@virtual
async def test_jobs_outlive_the_streams_that_are_only_about_them(gone: list[str]) -> None:
    async with served_nats_broker() as broker, served_nats_broker(like=broker) as other:
        await broker.enqueue(
            [*messages(3), message("late", delay=100), message("old", retention=1)]
        )
        await broker.enqueue(
            [message("then", depends_on=("old",)), message("expires", expires=200)]
        )
        (first, *done) = await broker.claim(["q"], 4, lease=30)
        assert [each.message.id for each in done] == ["0001", "0002", "old"]
        await finish(broker, done)
        for each in gone:
            await broker._api._ask(f"STREAM.DELETE.{broker._layout.prefix}-{each}")
        await other.enqueue([message("new")])
        await other.claim(["none"], 1, lease=30)
        seen: list[str] = []
        for _ in range(12):
            await asyncio.sleep(10)
            await other.maintain()
            claims = await other.claim(["q"], 9, lease=1000)
            seen += [each.message.id for each in claims]
            await finish(other, claims)
        assert first.message.id == "0000"
        assert sorted(seen) == ["0000", "expires", "late", "new", "then"]
        await asyncio.sleep(200)
        await other.maintain()
        assert await stored(other) == EMPTY


@virtual
async def test_making_streams_again_is_completed_when_it_was_cut() -> None:
    """At each request in turn."""
    cut = 0
    async with served_nats_broker() as broker:
        for left in range(20):
            await broker.enqueue([message(str(left))])
            await broker._api._ask(f"STREAM.DELETE.{broker._layout.ready}")
            crash = Crash(broker)
            crash.left = left
            try:
                await broker.claim(["q"], 1, lease=30)
            except BrokerUnavailableError:
                cut += 1
            crash.left = float("inf")
            await broker.count()
            await broker.maintain()
            claims: list[Claim] = []
            async with asyncio.timeout(5):
                while not claims:
                    claims = await broker.claim(["q"], 9, lease=30)
                    await asyncio.sleep(0.1)
            assert [each.message.id for each in claims] == [str(left)]
            await finish(broker, claims)
            await asyncio.sleep(100)
            await broker.maintain()
    assert 5 < cut < 20


@virtual
async def test_what_was_under_way_when_timers_were_made_again_is_looked_at_later() -> None:
    async with served_nats_broker() as broker, served_nats_broker(like=broker) as other:
        records: Any = broker._records
        write = records.write

        async def write_late(some: Any) -> Any:
            await broker._api._ask(f"STREAM.DELETE.{broker._layout.timers}")
            await other.maintain()
            return await write(some)

        records.write = write_late
        await broker.enqueue([message(delay=5)])
        await asyncio.sleep(30)
        assert await other.maintain() == MaintenanceStats()
        await asyncio.sleep(31)
        assert await other.maintain() == MaintenanceStats(due=1)


@virtual
async def test_streams_that_are_gone_though_they_have_been_made_again() -> None:
    async with served_nats_broker() as broker:
        await remove_streams(broker)
        streams: Any = broker._streams
        streams.ensure, ensure = functools.partial(_later, []), streams.ensure
        with pytest.raises(BrokerUnavailableError, match="stream not found"):
            await broker.get("one")
        with pytest.raises(BrokerUnavailableError, match="has no JetStream"):
            await broker.enqueue([message()])
        streams.ensure = ensure
        with pytest.raises(BrokerUnavailableError, match="invalid subject"):
            await broker._api._ask("no subject")


@real
async def test_streams_that_can_not_be_made_again() -> None:
    """A call fails, as anybody else's would; the next one finds what it needs."""
    async with opened(shared_server()) as broker:
        await broker.enqueue([message()])
        await remove_streams(broker)
        settings = broker._layout.streams[broker._layout.ready]
        settings["num_replicas"] = 3
        for call in (broker.count, lambda: broker.claim(["q"], 1, lease=30), broker.maintain):
            with pytest.raises(BrokerUnavailableError, match="replicas > 1 not supported"):
                await call()
        settings["num_replicas"] = 1
        assert await broker.enqueue([message()]) == [True]
        assert len(await broker.claim(["q"], 1, lease=30)) == 1
        await remove_streams(broker)


# The connection


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("background.queues.nats.connection.PATIENCE", 0.3)


@pytest.fixture
def server() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


async def eventually(call: Callable[[], Awaitable[Any]]) -> Any:
    """Call again and again, for as long as the broker is not available."""
    async with asyncio.timeout(3 * SOON):
        while True:
            try:
                return await call()
            except BrokerUnavailableError:
                await asyncio.sleep(0.01)


@real
async def test_a_server_that_is_killed_and_started_again(server: NatsServer) -> None:
    """Nothing that was acknowledged is lost; calls fail meanwhile, and are not done later."""
    async with opened(server) as broker:
        await broker.enqueue(messages(20))
        claims = await broker.claim(["q"], 10, lease=30)
        assert await finish(broker, claims[:5]) == [True] * 5
        waiting = asyncio.create_task(broker.wait("0005", 60))
        connection = broker._link.connection
        connection.patience, patience = 0.2, connection.patience
        await asyncio.to_thread(server.kill)
        connection._changed.clear()
        try:
            for call in (
                lambda: broker.enqueue([message("lost")]),
                lambda: broker.claim(["q"], 1, lease=30),
                lambda: waiting,
            ):
                with pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1"):
                    await call()
            with pytest.raises(BrokerUnavailableError, match="buffer"):
                await broker._link._send(broker._link.connection._client, Request("lost"), 1, {})
            broker._link._waiting.clear()
        finally:
            connection.patience = patience
        await asyncio.to_thread(server.start)
        assert await eventually(lambda: broker.count(state=JobState.SUCCEEDED)) == 5
        assert await broker.get("lost") is None
        assert await finish(broker, claims[5:]) == [True] * 5
        rest = await broker.claim(["q"], 50, lease=30)
        assert [each.message.id for each in rest] == [f"{number:04}" for number in range(10, 20)]


@pytest.mark.skipif(sys.platform == "win32", reason="can't stop a process for a while")
@real
async def test_a_server_that_does_not_answer(server: NatsServer, impatient: None) -> None:
    async with opened(server) as broker:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(BrokerUnavailableError, match=r"did not answer within 0\.3 s"):
                await broker.enqueue([message()])
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await eventually(lambda: broker.enqueue([message()]))
        assert await eventually(broker.count) == 1
        assert not broker._link._waiting


@real
async def test_a_client_that_has_given_up_is_replaced() -> None:
    async with opened(shared_server()) as broker:
        await broker._link.connection._client.close()
        assert await broker.enqueue([message()]) == [True]
        assert len(await broker.claim(["q"], 1, lease=30)) == 1
        await remove_streams(broker)


@real
async def test_word_comes_at_once() -> None:
    """Long before anybody would look for himself."""
    async with opened(shared_server()) as broker:
        async with opened(shared_server(), prefix=broker._layout.prefix) as other:
            await broker.enqueue([message("first", queue="r")])
            loop = asyncio.get_running_loop()
            broker_module = sys.modules[NatsBroker.__module__]
            broker_module._POLL, poll = 1000.0, broker_module._POLL  # type: ignore[attr-defined]
            try:
                for wait, act in (
                    (lambda: broker.wait_for_work(["q"], 1000), lambda: other.enqueue([message()])),
                    (lambda: broker.wait("first", 1000), lambda: other.cancel("first")),
                ):
                    task = loop.create_task(wait())
                    while not broker._link._listeners:  # noqa: ASYNC110
                        await asyncio.sleep(0)
                    await broker.get("first")
                    await act()
                    async with asyncio.timeout(SOON):
                        await task
            finally:
                broker_module._POLL = poll  # type: ignore[attr-defined]
            assert not broker._link._listeners
        await remove_streams(broker)


@real
async def test_closed_while_somebody_connects() -> None:
    """Nothing is left open, and who wanted a connection hears that it is closed."""
    clients: list[Any] = []
    going_on = asyncio.Event()

    async def prepare(client: Any) -> None:
        clients.append(client)
        if len(clients) == 2:
            await going_on.wait()

    url = shared_server().url
    connection = NatsConnection(url, None, prepare, lambda: None)
    await connection.open()
    await clients[0].close()
    connecting = asyncio.create_task(connection.connected())
    while len(clients) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await connection.close()
    going_on.set()
    with pytest.raises(BrokerUnavailableError, match="is not open"):
        await connecting
    assert connection.current is None
    while not clients[1].is_closed:  # noqa: ASYNC110
        await asyncio.sleep(0)


@virtual
async def test_who_reads_all_jobs_hears_if_that_can_not_be_done() -> None:
    """Instead of counting those that have been read, as if they were all."""
    async with served_nats_broker() as broker:
        await broker.enqueue(messages(3))
        api: Any = broker._api
        read_all = api.read_all

        async def interrupted(stream: str) -> tuple[str, int]:
            name, size = await read_all(stream)
            await api._ask(f"CONSUMER.DELETE.{stream}.{name}")
            return name, size

        async def emptied(stream: str) -> tuple[str, int]:
            name, size = await read_all(stream)
            await api._ask(f"STREAM.PURGE.{stream}")
            return name, size

        api.read_all = interrupted
        with pytest.raises(BrokerUnavailableError, match="can't be read to their end"):
            await broker.count()
        api.read_all = read_all
        assert await broker.count() == 3
        api.read_all = emptied
        assert await broker.count() == 0


@virtual
async def test_closed_while_somebody_waits() -> None:
    async with served_nats_broker() as broker:
        waiting = asyncio.create_task(broker.wait_for_work(["q"], 80_000))
        await asyncio.sleep(5)
        await held(broker._link.connection.close())
        with pytest.raises(BrokerUnavailableError, match="is not open"):
            await waiting
        await held(broker.open())


def test_another_event_loop_is_refused() -> None:
    broker: Any = NatsBroker(shared_server().url, prefix=f"test-{token_hex(8)}")

    async def use() -> None:
        with pytest.raises(BrokerUnavailableError, match="opened in another event loop"):
            await broker.count()

    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(broker.open())
        second.run(use())
        first.run(remove_streams(broker))
        first.run(broker.close())


@real
async def test_calls_of_many_tasks_at_once() -> None:
    async with opened(shared_server()) as broker:
        await asyncio.gather(*(broker.enqueue([message(str(n))]) for n in range(50)))
        claims = await asyncio.gather(*(broker.claim(["q"], 5, lease=30) for _ in range(20)))
        ids = [each.message.id for some in claims for each in some]
        assert sorted(ids) == sorted(str(n) for n in range(50))
        accepted = await asyncio.gather(*(finish(broker, some) for some in claims))
        assert all(all(some) for some in accepted)
        assert not broker._link._waiting
        assert not broker._link._fetching
        await remove_streams(broker)


# Time


@virtual
async def test_a_wrong_clock_of_a_host_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    wall = system_clock.wall
    async with served_nats_broker() as broker:
        monkeypatch.setattr(system_clock, "wall", lambda: wall() + 3600)
        await broker.enqueue([message(), message("late", delay=30)])
        claims = await broker.claim(["q"], 5, lease=30)
        assert [each.message.id for each in claims] == ["one"]
        assert abs(claims[0].enqueued_at - wall()) < SOON
        assert await broker.renew(claims, lease=30) == [LeaseStatus.HELD]
        assert await broker.maintain() == MaintenanceStats()


@virtual
async def test_the_servers_clock_is_read_again_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with served_nats_broker() as broker:
        clock: Any = broker._clock
        clock._ahead += 500
        await broker.maintain()
        assert clock.now() > system_clock.wall() + 400
        monkeypatch.setattr("background.queues.nats.clock._REFRESH", -1)
        await broker.maintain()
        assert abs(clock.now() - system_clock.wall()) < SOON


@virtual
async def test_timers_of_far_away_times_come_nearer() -> None:
    delays = {"minutes": 600.0, "hours": 20_000.0, "days": 300_000.0, "months": 9_000_000.0}
    async with served_nats_broker() as broker:
        await broker.enqueue(
            [message(id, delay=delay, retention=9) for id, delay in delays.items()]
        )
        began = asyncio.get_running_loop().time()
        for id, delay in delays.items():
            claims: list[Claim] = []
            while not claims:
                await asyncio.sleep(delay / 100)
                claims = await broker.claim(["q"], 5, lease=30)
            took = asyncio.get_running_loop().time() - began
            assert [each.message.id for each in claims] == [id]
            assert delay <= took < delay * 1.02 + 2
            await finish(broker, claims)
        await asyncio.sleep(100)
        await broker.maintain()
        assert await stored(broker) == EMPTY


@virtual
async def test_many_timers_that_are_due_at_once() -> None:
    async with served_nats_broker() as broker:
        for part in range(3):
            await broker.enqueue([message(f"{part}-{n}", delay=10) for n in range(400)])
        await asyncio.sleep(11)
        assert await broker.maintain() == MaintenanceStats(due=1200)
        assert await broker.count(state=JobState.READY) == 1200


@virtual
async def test_nobody_takes_more_timers_than_can_be_seen_to_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("background.queues.nats.timer_wheel._AT_A_TIME", 4)
    async with served_nats_broker() as broker:
        for number in range(6):
            await broker.enqueue([message(str(number), delay=10)])
        await asyncio.sleep(11)
        await broker.claim(["none"], 1, lease=30)
        assert await broker.maintain() == MaintenanceStats(due=2)


def test_others_wait_for_who_has_taken_a_timer_no_longer_than_for_a_lease() -> None:
    covers = [of_lease(100 + lease, "one", 100).cover for lease in (0.01, 1.5, 30)]
    assert covers == [0.25, 1.5, timer_wheel.COVER]


@virtual
async def test_a_clock_that_is_set_back_hides_no_timers() -> None:
    async with served_nats_broker() as broker:
        await broker.claim(["q"], 1, lease=30)
        broker._clock._ahead -= 50
        async with served_nats_broker(like=broker) as other:
            other._clock._ahead -= 50
            await other.enqueue([message(delay=5)])
        await asyncio.sleep(6)
        assert await broker.maintain() == MaintenanceStats(due=1)


@virtual
async def test_timers_that_several_take_at_once() -> None:
    """Each is seen to by one of them."""
    async with served_nats_broker() as broker, served_nats_broker(like=broker) as other:
        for number in range(5):
            await broker.enqueue([message(f"{number}-{n}", delay=10) for n in range(3)])
        await asyncio.sleep(11)
        done = await asyncio.gather(broker.maintain(), other.maintain())
        assert sum(each.due for each in done) == 15
        assert await stored(broker) == {"jobs": 15, "ready": 15, "timers": 0}
        for number in range(5):
            await broker.enqueue([message(f"r-{number}", delay=10)])
        await asyncio.sleep(11)
        both: list[Any] = [broker._timers, other._timers]
        taken = await asyncio.gather(*(each.take() for each in both))
        ids = [timer.id for some in taken for timer in some.timers]
        assert sorted(ids) == [f"r-{number}" for number in range(5)]


# Sizes


@virtual
async def test_a_job_that_is_too_large() -> None:
    async with served_nats_broker() as broker:
        most = await broker._api.max_record()
        with pytest.raises(PayloadTooLargeError, match="max_payload"):
            await broker.enqueue([message(), message("two", body=b"x" * most)])
        assert await broker.count() == 0
        half = b"x" * (most // 2)
        sent = [message(body=half), message("two"), message("both", depends_on=("one", "two"))]
        await broker.enqueue(sent)
        one, two = await broker.claim(["q"], 2, lease=30)
        with pytest.raises(PayloadTooLargeError):
            await broker.save("one", one.token, half)
        assert await finish(broker, [one], result=half) == [True]
        job = await broker.get("one")
        assert job is not None
        assert (job.state, job.result) == (JobState.DEAD, None)
        assert job.error is not None
        assert job.error["type"] == "PayloadTooLargeError"
        assert await state_of(broker, "both") is JobState.DEAD
        await finish(broker, [two])


@virtual
async def test_results_that_are_too_large_together() -> None:
    async with served_nats_broker() as broker:
        half = b"x" * ((await broker._api.max_record()) // 2)
        await broker.enqueue([message("a"), message("b"), message("all", depends_on=("a", "b"))])
        assert await finish(broker, await broker.claim(["q"], 2, lease=30), result=half)
        job = await broker.get("all")
        assert job is not None
        assert job.state is JobState.DEAD
        assert job.error is not None
        assert "results that it depends on are too large" in job.error["message"]


@virtual
async def test_large_records_are_read_when_they_are_claimed() -> None:
    async with served_nats_broker() as broker:
        sent = [message("a", body=b"x" * 100_000), message("b"), message("c", body=b"y" * 50_000)]
        await broker.enqueue(sent)
        claims = await broker.claim(["q"], 5, lease=30)
        assert [each.message for each in claims] == sent


# Records and consumers that others have changed


@virtual
async def test_records_of_a_newer_version_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with served_nats_broker() as broker:
        await broker.enqueue([message(), message("two"), message("three", delay=5)])
        api: Any = broker._api
        for id in ("one", "three"):
            (known,) = await broker._records.load([id])
            newer = known.record.replace(b'"v":1', b'"v":2')
            await api.replace([(broker._layout.job(id), newer, known.revision)])
        claims = await broker.claim(["q"], 5, lease=30)
        assert [each.message.id for each in claims] == ["two"]
        assert await broker.enqueue([message(), message("four")]) == [False, True]
        with pytest.raises(
            BrokerUnavailableError, match="by this version of the library: version 2"
        ):
            await broker.get("one")
        assert await broker.count() == 2
        await asyncio.sleep(6)
        assert await broker.maintain() == MaintenanceStats()
        (known,) = await broker._records.load(["three"])
        old = known.record.replace(b'"v":2', b'"v":1')
        await api.replace([(broker._layout.job("three"), old, known.revision)])
        await asyncio.sleep(11)
        assert await broker.maintain() == MaintenanceStats(due=1)
    assert "version 2" in caplog.text


def test_what_is_no_record() -> None:
    for record in (b"", b"[]", b"{}\n", b'{"v":1}\n', b"\xff"):
        with pytest.raises(BrokerUnavailableError, match="revision 7"):
            decode(record, 7)


@pytest.mark.parametrize("looking", [True, False])
@virtual
async def test_consumers_that_are_gone_are_made_again(looking: bool) -> None:
    async with served_nats_broker() as broker:
        await broker.enqueue([message()])
        await broker.claim(["q"], 1, lease=30)
        await broker.enqueue([message("two")])
        for again in (True, False):
            name, _ = broker._layout.consumer("q", again=again)
            await broker._api._ask(f"CONSUMER.DELETE.{broker._layout.ready}.{name}")
        if looking:
            await broker.wait_for_work(["q"], 100)
        claims = await broker.claim(["q"], 5, lease=30)
        assert [each.message.id for each in claims] == ["two"]


@virtual
async def test_consumers_with_other_settings_are_refused() -> None:
    async with served_nats_broker() as broker:
        name, settings = broker._layout.consumer("q", again=True)
        other = {**settings, "ack_wait": 5_000_000_000}
        await broker._api.ensure_consumer(broker._layout.ready, name, other)
        with pytest.raises(BrokerUnavailableError, match="ack_wait is 5000000000 instead of"):
            await broker.claim(["q"], 1, lease=30)


@virtual
async def test_what_was_just_stored_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though a consumer hears of it a moment after whoever has stored it."""
    monkeypatch.setattr("background.queues.nats.ready_queue._EXPECTED", 2)
    async with served_nats_broker() as broker:
        for number in range(100):
            await broker.enqueue([message(f"{number}-{n}") for n in range(3)])
            claims = await broker.claim(["q"], 2, lease=30)
            claims += await broker.claim(["q"], 1, lease=30)
            assert [each.message.id for each in claims] == [f"{number}-{n}" for n in range(3)]
            await finish(broker, claims)
        assert not broker._ready._expected


@virtual
async def test_what_was_taken_last_is_there_while_there_is_more() -> None:
    """Or else what a claim costs would grow with the number of jobs that are ready."""
    async with served_nats_broker() as broker:
        await broker.enqueue(messages(9))
        for most, left in ((2, 9), (2, 7)):
            await broker.claim(["q"], most, lease=30)
            await broker.get("0000")
            assert await ready_at_last(broker, left) == left
        await asyncio.sleep(0.2)  # after which nobody is expected to take more
        assert await ready_at_last(broker, 5) == 5
        assert len(await broker.claim(["q"], 9, lease=30)) == 5
        assert await ready_at_last(broker, 0) == 0


async def ready_at_last(broker: NatsBroker, expected: int) -> int:
    """How many jobs are offered once the server has seen to what it was told, or in the end."""
    for _ in range(500):
        left = (await stored(broker))["ready"]
        if left <= expected:
            break
    return left


@virtual
async def test_two_that_take_at_the_same_time() -> None:
    async with served_nats_broker() as broker:
        await broker.enqueue(messages(9))
        ready = broker._ready
        for offers in [await ready.take("q", 2), await ready.take("q", 2)]:
            ready.done(offers)
        assert await ready_at_last(broker, 9) == 9
        await asyncio.sleep(0.2)
        assert await ready_at_last(broker, 5) == 5


@virtual
async def test_settlements_of_the_same_job_in_one_call() -> None:
    async with served_nats_broker() as broker:
        await broker.enqueue([message()])
        claims = await broker.claim(["q"], 1, lease=30)
        assert await finish(broker, claims * 2) == [True, False]


@virtual
async def test_changes_by_others_while_it_is_held() -> None:
    async with served_nats_broker() as broker, served_nats_broker(like=broker) as other:
        await broker.enqueue([message()])
        claims = await broker.claim(["q"], 1, lease=30)
        assert await other.renew(claims, lease=60) == [LeaseStatus.HELD]
        assert await other.save("one", claims[0].token, b"half")
        assert await broker.renew(claims, lease=90) == [LeaseStatus.HELD]
        await asyncio.sleep(80)
        await other.maintain()
        assert await finish(broker, claims, result=b"1") == [True]
        assert await finish(other, claims) == [False]


@virtual
async def test_leases_that_nobody_settled_are_not_remembered() -> None:
    async with served_nats_broker() as broker:
        await broker.enqueue(messages(3))
        (first, *_) = await broker.claim(["q"], 3, lease=30)
        await finish(broker, [first])
        await asyncio.sleep(31)
        assert await broker.maintain() == MaintenanceStats(reclaimed=2)
        leases: Any = broker._claims._leases
        assert not leases._leases
        assert not leases._covered
        assert not leases._covering


@virtual
async def test_a_delay_that_is_longer_than_the_lease() -> None:
    async with served_nats_broker() as broker:
        await broker.enqueue([message()])
        (claim,) = await broker.claim(["q"], 1, lease=30)
        again = Settlement(id="one", token=claim.token, state=JobState.SCHEDULED, delay=100)
        assert await broker.settle([again]) == [True]
        await asyncio.sleep(101)
        assert await broker.maintain() == MaintenanceStats(due=1)


@virtual
async def test_what_could_not_be_claimed_is_left_to_others_at_once() -> None:
    async with served_nats_broker() as broker, served_nats_broker(like=broker) as other:
        await other.enqueue(messages(3))
        jobs: Any = broker._jobs
        jobs.change = functools.partial(_fail, "lost")
        with pytest.raises(BrokerUnavailableError, match="lost"):
            await broker.claim(["q"], 3, lease=30)
        seen: list[str] = []
        async with asyncio.timeout(SOON):
            while len(seen) < 3:
                seen += [each.message.id for each in await other.claim(["q"], 3, lease=30)]
        assert seen == ["0000", "0001", "0002"]


async def _fail(message: str, *args: Any, **options: Any) -> None:
    raise BrokerUnavailableError(message)


# Nothing is left


@virtual
async def test_nothing_is_left_of_leases_once_all_of_a_claim_are_settled() -> None:
    async with served_nats_broker() as broker:
        await broker.enqueue(messages(3, retention=0))
        one, two, three = await broker.claim(["q"], 9, lease=30)
        await finish(broker, [one, three])
        assert await stored(broker) == {"jobs": 1, "ready": 0, "timers": 1}
        await finish(broker, [two])
        async with asyncio.timeout(SOON):
            while await stored(broker) != EMPTY:
                pass


@virtual
async def test_nothing_grows() -> None:
    """Whatever becomes of jobs, nothing is left once they are forgotten."""
    async with served_nats_broker() as broker:
        await broker.enqueue(messages(20, expires=50))
        await broker.enqueue([message("late", delay=20), message("never", delay=500, expires=5)])
        await broker.enqueue([message("gone", queue="r"), message("old", expires=9, queue="s")])
        await broker.enqueue(
            [message("a", retention=0), message("b", depends_on=("a",)), message("c")]
        )
        await broker.cancel("gone")
        claims = await broker.claim(["q"], 12, lease=30)
        await finish(broker, claims[:8])
        back = [
            Settlement(id=each.message.id, token=each.token, state=state, delay=delay)
            for each, (state, delay) in zip(
                claims[8:],
                [
                    (JobState.READY, 0),
                    (JobState.SCHEDULED, 40),
                    (JobState.DEAD, 0),
                    (JobState.CANCELLED, 0),
                ],
                strict=True,
            )
        ]
        assert await broker.settle(back) == [True] * 4
        assert await broker.requeue(claims[0].message.id)
        await broker.maintain()
        for round in range(6):
            held = await broker.claim(["q"], 50, lease=30)
            await broker.renew(held, lease=45)
            await finish(broker, held[round < 5 :])  # of one, the worker dies
            await asyncio.sleep(100)
            await broker.maintain()
        await asyncio.sleep(700)
        await broker.maintain()
        assert await stored(broker) == EMPTY


# What a crash leaves


class Crash:
    """Lets a broker's process die at the n-th request, before it is sent."""

    def __init__(self, broker: Any) -> None:
        self.left: float = float("inf")
        self.sent = 0
        self._link = broker._link
        self._call, self._post, self._fetch = self._link._call, self._link.post, self._link.fetch
        self._link._call, self._link.post, self._link.fetch = self.call, self.post, self.fetch

    def _die(self) -> None:
        raise BrokerUnavailableError("the process has died")

    async def call(self, requests: Any) -> Any:
        if self.left < len(requests):
            if self.left > 0:
                await self._call(requests[: int(self.left)])
            self.left = 0
            self._die()
        self.left -= len(requests)
        self.sent += len(requests)
        return await self._call(requests)

    async def fetch(self, *args: Any) -> Any:
        if self.left < 1:
            self._die()
        self.left -= 1
        self.sent += 1
        return await self._fetch(*args)

    def post(self, *args: Any) -> None:
        if self.left >= 1:
            self._post(*args)


async def enqueues(broker: NatsBroker, claims: list[Claim]) -> None:
    await broker.enqueue(
        [
            message("new"),
            message("later", delay=50),
            message("then", depends_on=("new", "0000")),
            message("none", handler=None),
            message("all", depends_on=("none", "then"), handler=None),
        ]
    )


async def claims_some(broker: NatsBroker, claims: list[Claim]) -> None:
    await broker.claim(["q"], 3, lease=30)


async def finishes(broker: NatsBroker, claims: list[Claim]) -> None:
    await finish(broker, claims, result=b"1")


async def hands_back(broker: NatsBroker, claims: list[Claim]) -> None:
    states = [JobState.READY, JobState.SCHEDULED, JobState.DEAD]
    await broker.settle(
        [
            Settlement(id=each.message.id, token=each.token, state=state, delay=5)
            for each, state in zip(claims, states, strict=True)
        ]
    )


async def cancels(broker: NatsBroker, claims: list[Claim]) -> None:
    await broker.cancel("0004")
    await broker.cancel("0000")


async def requeues(broker: NatsBroker, claims: list[Claim]) -> None:
    await finish(broker, claims[:1])
    await broker.requeue("0000")


async def waits_and_maintains(broker: NatsBroker, claims: list[Claim]) -> None:
    await asyncio.sleep(31)
    await broker.maintain()


ACTS = [enqueues, claims_some, finishes, hands_back, cancels, requeues, waits_and_maintains]


@pytest.mark.parametrize(("act", "keep"), [*((act, 60) for act in ACTS), (finishes, 0)])
@virtual
async def test_what_a_crash_leaves_is_put_right_by_others(act: Any, keep: float) -> None:
    """At each request in turn: every job that was stored runs or ends, and nothing is left."""
    tried = 0
    async with served_nats_broker() as other:
        for number in count():
            async with served_nats_broker(like=other) as broker:
                await other.enqueue(
                    [
                        *messages(6, retention=keep),
                        message("d", depends_on=("0000", "0001")),
                        message("e", depends_on=("d",)),
                    ]
                )
                await other.enqueue([message("x", expires=31), message("s", delay=31)])
                claims = await broker.claim(["q"], 3, lease=30)
                crash = Crash(broker)
                crash.left = number
                try:
                    await act(broker, claims)
                except BrokerUnavailableError as error:
                    assert str(error) == "the process has died"  # noqa: PT017
                    tried += 1
                    died = True
                else:
                    died = False
                crash.left = 0
                await recover(other)
                assert [job async for job in other.scan() if job.state not in FINAL] == []
                await asyncio.sleep(700)
                await other.maintain()
                assert await stored(other) == EMPTY, number
                crash.left = float("inf")
            if not died:
                break
    assert tried > 3


async def claims_briefly(broker: NatsBroker, claims: list[Claim]) -> None:
    await broker.claim(["q"], 3, lease=LEASE)


async def sweeps(broker: NatsBroker, claims: list[Claim]) -> None:
    await asyncio.sleep(LEASE + 0.01)
    await broker.maintain()


LEASE = 1.0  # less than what others are given for what they have begun
SWEEP = LEASE / 3

#: What a process may die of, and within how many seconds others have done it then.
IN_TIME = {
    claims_briefly: LEASE,
    finishes: LEASE,
    hands_back: LEASE,
    sweeps: LEASE,
    enqueues: timer_wheel.COVER + 0.1,
    cancels: timer_wheel.COVER,
    requeues: timer_wheel.COVER,
}


@pytest.mark.parametrize("act", IN_TIME)
@virtual
async def test_what_a_crash_leaves_is_put_right_in_time(act: Any) -> None:
    """Within a lease and a sweep of the last one that died of it, at whichever request."""
    tried = 0
    async with served_nats_broker() as other:
        for number in count():
            async with served_nats_broker(like=other) as broker:
                sent = [*messages(6), message("d", depends_on=("0000", "0001"))]
                await other.enqueue([*sent, message("e", depends_on=("d",))])
                claims = await broker.claim(["q"], 3, lease=LEASE)
                crash = Crash(broker)
                crash.left = number
                died = True
                try:
                    await act(broker, claims)
                except BrokerUnavailableError:
                    tried += 1
                else:
                    died = False
                crash.left = 0
                await redeliver(other)
                until = other._clock.now() + IN_TIME[act] + SWEEP
                while other._clock.now() + SWEEP <= until + 0.01:
                    await asyncio.sleep(SWEEP)
                    await other.maintain()
                    while some := await other.claim(["q"], 10, lease=30):
                        assert all(await finish(other, some))
                assert await left_over(other) == [], number
                await recover(other)
                await other.purge()
                crash.left = float("inf")
            if not died:
                break
    assert tried > 3


async def left_over(broker: Any) -> list[str]:
    """The jobs that could have been run, and have not been."""
    left: list[str] = []
    async for stored in broker.scan():
        job = await broker._records.get(stored.message.id)
        later = job.state is JobState.SCHEDULED and (job.unmet or job.due > broker._clock.now())
        if job.state not in FINAL and not later:
            left.append(f"{job.message.id} {job.state}")
    return left


async def recover(broker: NatsBroker) -> list[str]:
    """Do as a worker does, for as long as there may be anything to do; return the jobs' ids."""
    await redeliver(broker)
    seen: list[str] = []
    idle = 0
    while idle < 4:
        await broker.maintain()
        claims = await broker.claim(["q"], 10, lease=30)
        assert all(await finish(broker, claims, result=b"2"))
        seen += [each.message.id for each in claims]
        idle = 0 if claims else idle + 1
        await asyncio.sleep(15)
    return seen


async def redeliver(broker: Any) -> None:
    """Have what a process took that has died handed out again, without waiting for it."""
    broker._ready.forget()
    for again in (True, False):
        name, _ = broker._layout.consumer("q", again=again)
        await broker._api._ask(f"CONSUMER.DELETE.{broker._layout.ready}.{name}")


@virtual
async def test_what_a_process_enqueues_that_stalls_for_long() -> None:
    """At each request in turn: others may have run the first jobs before the last are stored."""
    async with served_nats_broker() as other:
        for number in count():
            async with served_nats_broker(like=other) as broker:
                call, sent = broker._link._call, count()

                async def stalling(requests: Any, at: int = number, call: Any = call) -> Any:
                    answers: list[Any] = []
                    for each in requests:
                        if next(sent) == at:  # noqa: B023
                            await recover(other)
                        answers += await call([each])
                    return answers

                broker._link._call = stalling  # type: ignore[method-assign]
                large = {"body": b"[]" * 10_000, "retention": 10_000, "dead_retention": 10_000}
                a, b = message("a", **large), message("b", depends_on=("a",), **large)
                await broker.enqueue([a, b, message("c", depends_on=("a", "b"), **large)])
                stalled = next(sent) > number
                await recover(other)
                states = [await state_of(other, id) for id in ("a", "b", "c")]
                assert states == [JobState.SUCCEEDED] * 3, number
                assert await other.purge() == 3
            if not stalled:
                break
    assert number > 4


@virtual
async def test_enqueued_again_after_a_crash_all_jobs_are_there() -> None:
    """However many had been taken when the connection was lost."""
    async with served_nats_broker() as other:
        for number in count():
            async with served_nats_broker(like=other) as broker:
                crash = Crash(broker)
                crash.left = number
                try:
                    await enqueues(broker, await needed(other))
                except BrokerUnavailableError:
                    await enqueues(other, [])
                    died = True
                else:
                    died = False
                states = [await state_of(other, id) for id in ("new", "then", "none", "all")]
                assert states == [
                    JobState.READY,
                    JobState.SCHEDULED,
                    JobState.SUCCEEDED,
                    JobState.SCHEDULED,
                ]
                await asyncio.sleep(51)
                assert sorted(await recover(other)) == ["later", "new", "then"]
                await asyncio.sleep(700)
                await other.maintain()
                assert await stored(other) == EMPTY
                crash.left = float("inf")
            if not died:
                break
    assert number > 10


async def needed(broker: NatsBroker) -> list[Claim]:
    await broker.enqueue([message("0000", queue="r", retention=30)])
    await finish(broker, await broker.claim(["r"], 1, lease=30))
    return []


@pytest.mark.parametrize("number", range(10))
@virtual
async def test_cancelled_at_any_point_a_call_is_done_or_not(number: int) -> None:
    """At each suspension in turn, and nothing is stuck afterwards."""
    async with served_nats_broker() as broker:
        claims: list[Claim] = []
        calls: list[Callable[[], Any]] = [
            lambda: broker.enqueue([*messages(3), message("x", depends_on=("0000",))]),
            lambda: broker.claim(["q", "r"], 3, lease=30),
            lambda: broker.wait_for_work(["q", "r"], 1),
            lambda: broker.renew(claims, lease=30),
            lambda: finish(broker, claims),
            lambda: broker.cancel("held"),
            lambda: broker.wait("held", 1),
            lambda: broker.purge(),
            lambda: waits_and_maintains(broker, claims),
            lambda: broker.count(),
        ]
        points = 0
        for how in How:
            for when in When:
                for suspension in range(1, 100):
                    await broker.enqueue([message("held", queue="s")])
                    claims[:] = await broker.claim(["s"], 1, lease=30)
                    world = World(Point(suspension, when, how))
                    outcome = await world.drive(calls[number]())
                    assert outcome.cancelled or outcome.error is None
                    await recover_all(broker)
                    assert not broker._link._waiting
                    if world.injected_at is None:
                        break
                    points += 1
                else:
                    raise AssertionError("there is no end to the suspensions")
        assert points > 3
        await asyncio.sleep(200)
        await broker.maintain()
        assert await stored(broker) == EMPTY


async def recover_all(broker: NatsBroker) -> None:
    """Let all jobs end, and be forgotten."""
    await asyncio.sleep(35)
    await broker.maintain()
    while claims := await broker.claim(["q", "r", "s"], 50, lease=30):
        await finish(broker, claims)
    await asyncio.sleep(12)
    await broker.maintain()
    assert [job.message.id async for job in broker.scan() if job.state not in FINAL] == []
    await broker.purge()


@pytest.mark.parametrize("how", How)
@pytest.mark.parametrize("action", ["open", "close"])
@real
async def test_cancelled_while_opening_or_closing(action: str, how: How) -> None:
    """No task of the client's is left, and the broker can be opened again."""
    tasks = asyncio.all_tasks()
    prefix = f"test-{token_hex(8)}"
    for when in When:
        for suspension in range(1, 100):
            broker: Any = NatsBroker(shared_server().url, prefix=prefix)
            if action == "close":
                await broker.open()
            world = World(Point(suspension, when, how))
            await world.drive(getattr(broker, action)())
            await broker.close()
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == tasks
            if world.injected_at is None:
                break
        assert 1 < suspension < 99
    await broker.open()
    await remove_streams(broker)
    await broker.close()


@real
async def test_what_a_process_took_that_died_is_handed_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("background.queues.nats.layout.ACK_WAIT", 0.2)
    monkeypatch.setattr("background.queues.nats.broker.ACK_WAIT", 0.2)
    monkeypatch.setattr("background.queues.nats.broker._POLL", 0.05)
    async with opened(shared_server()) as broker:
        await broker.enqueue([message()])
        assert len(await broker._ready.take("q", 1)) == 1
        assert await broker.claim(["q"], 1, lease=30) == []
        claims: list[Claim] = []
        while not claims:
            await broker.wait_for_work(["q"], 1000)
            claims = await broker.claim(["q"], 1, lease=30)
        assert (claims[0].attempt, claims[0].crashes) == (1, 0)
        await remove_streams(broker)


# Other processes


@real
async def test_each_job_goes_to_one_process() -> None:
    ids = [f"{number:04}" for number in range(100)]
    async with opened(shared_server()) as broker:
        command = SCRIPT, "work", shared_server().url, broker._layout.prefix
        with running(*command) as one, running(*command) as two:
            for process in (one, two):
                await asyncio.to_thread(process.wait_for, "ready")
            await broker.enqueue(messages(100))
            await broker.enqueue([message(f"end-{number}", queue="end") for number in range(2)])
            seen: list[str] = []
            for process in (one, two):
                line = await asyncio.to_thread(process.wait_for, "claimed ")
                seen += json.loads(line.removeprefix("claimed "))
                assert await asyncio.to_thread(process.wait) == 0
        assert sorted(seen) == [*ids, "end-0", "end-1"]
        assert await broker.count(state=JobState.SUCCEEDED) == 102
        await remove_streams(broker)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no forking")
def test_after_a_fork_the_child_is_refused() -> None:
    prefix = f"test-{token_hex(8)}"
    with running(SCRIPT, "fork", shared_server().url, prefix) as process:
        assert process.wait() == 0
    assert process.lines[0] == "ready"
    assert re.fullmatch(
        r"refused: .* was opened by another process, before a fork.*", process.lines[1]
    )
    assert process.lines[2:] == ["child counts 0", "parent counts 0", "done"]


@real
async def test_what_another_process_has_opened_is_let_go() -> None:
    async with opened(shared_server()) as broker:
        link, client = broker._link, broker._link.connection._client
        link.connection._process = 0
        with pytest.raises(BrokerUnavailableError, match="before a fork"):
            await broker.count()
        await broker.close()
        link.post("nobody")
        assert client.is_connected
        await client.close()
        await broker.open()
        assert await broker.count() == 0
        await remove_streams(broker)


# Answers that are seldom


@virtual
async def test_an_answer_that_came_is_not_lost_with_the_connection() -> None:
    came, missing = Answers(1), Answers(1)
    came.end()
    for each in (came, missing):
        each.lose()
        assert each.done.done()
    assert (came.lost, missing.lost) == (False, True)


@virtual
async def test_a_stream_that_somebody_makes_at_the_same_time() -> None:
    async with served_nats_broker() as broker:
        streams: Any = broker._streams
        asked: list[str] = []
        ask = streams._ask

        async def too_early(subject: str, **body: Any) -> Any:
            asked.append(subject)
            if len(asked) == 1:
                return {"error": {"code": 404}}
            return await ask(subject, **body)

        streams._ask = too_early
        name = broker._layout.jobs
        broker._layout.streams[name]["max_msgs_per_subject"] = 2
        with pytest.raises(BrokerUnavailableError, match="max_msgs_per_subject is 1 instead of 2"):
            await streams.ensure()
        assert asked == [f"STREAM.INFO.{name}", f"STREAM.CREATE.{name}", f"STREAM.INFO.{name}"]


@virtual
async def test_a_clock_that_can_not_be_read() -> None:
    async with served_nats_broker() as broker:
        api: Any = broker._api
        publish = api.publish_all

        async def publish_and_lose(requests: Any) -> Any:
            sequences = await publish(requests)
            await api.delete_all(broker._layout.timers, sequences)
            return sequences

        api.publish_all = publish_and_lose
        with pytest.raises(BrokerUnavailableError, match="a message is gone that was just stored"):
            await broker._clock.read()


@virtual
async def test_what_was_claimed_before_the_connection_was_lost_is_not_lost() -> None:
    async with served_nats_broker() as broker:
        await broker.enqueue([message(), message("two", queue="r")])
        ready: Any = broker._ready
        take = ready.take

        async def take_or_fail(queue: str, most: int) -> Any:
            if queue == "r":
                raise BrokerUnavailableError("lost")
            return await take(queue, most)

        ready.take = take_or_fail
        claims = await broker.claim(["q", "r"], 5, lease=30)
        assert [each.message.id for each in claims] == ["one"]
        with pytest.raises(BrokerUnavailableError, match="lost"):
            await broker.claim(["r"], 5, lease=30)


@virtual
async def test_timers_are_dealt_with_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("background.queues.nats.timer_wheel._CHUNK", 3)
    async with served_nats_broker() as broker:
        for number in range(10):
            await broker.enqueue([message(str(number), delay=10)])
        await broker.enqueue(messages(10, delay=10))
        await asyncio.sleep(11)
        assert await broker.maintain() == MaintenanceStats(due=20)
