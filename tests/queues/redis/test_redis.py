"""The Redis broker beyond the contract: its connection, its keys, and servers that fail."""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import re
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.brokers import redis_servers as servers
import trustme
from support.brokers.kinds import KINDS, elapse, make_redis, make_redis_results
from support.time import SOON
from support.cancellation.injection import How, Point, World
from support.processes.process import PROGRAMS, running
from redis import Redis
from support.brokers.redis_servers import Server
from support.cancellation.stepping import When
from support.brokers.jobs import LEASE, claim_one, claimed, message, settle, settlement, state_of

from background.queues._errors import BrokerUnavailableError
from background.queues._states import JobState
from background.queues.abc import Claim, LeaseStatus, MaintenanceStats, Message
from background.queues.redis import RedisBroker, RedisResults, script
from background.queues.redis import broker as module
from background.queues.redis.script import KEYS, Script
from background.testing import virtual_time

SCRIPT = PROGRAMS / "redis_fork.py"
SECRET = "s3cr3t/p@ss"
QUOTED = "s3cr3t%2Fp%40ss"


@pytest.fixture
def server(redis_server: Server) -> Server:
    return redis_server


@pytest.fixture
async def broker(server: Server, anyio_backend: object, tmp_path: Path) -> AsyncIterator[Any]:
    kind = KINDS[server.name]
    async with kind.opened(kind.make(tmp_path)) as broker:
        yield broker


@contextmanager
def own_server(name: str, *options: str) -> Iterator[Server]:
    server = Server(name, *options)
    try:
        yield server
    finally:
        server.close()


@asynccontextmanager
async def open_broker(url: str, **options: Any) -> AsyncIterator[RedisBroker]:
    broker = RedisBroker(url, **options)
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


def messages(count: int, **options: Any) -> list[Message]:
    return [message(f"{number:04}", **options) for number in range(count)]


async def finish(broker: RedisBroker, claims: list[Claim]) -> list[bool]:
    return await broker.settle([settlement(each, JobState.SUCCEEDED) for each in claims])


async def until(holds: Callable[[], Any]) -> None:
    """Return once something holds."""
    with anyio.fail_after(SOON):
        while True:
            if holds():
                return
            await anyio.sleep(0.001)


def waiting(broker: Any) -> int:
    """Return for how many queues and jobs somebody waits."""
    return len(broker._session.notifications._events)


def keys(server: Server, broker: RedisBroker) -> dict[str, int]:
    """Return the names of a broker's keys with the bytes that each takes."""
    with Redis.from_url(server.url) as client:
        names = client.keys(f"{{{broker.prefix}}}:*")
        return {
            each.decode().partition(":")[2]: client.memory_usage(each, samples=0) for each in names
        }


class Relay:
    """Passes bytes between a broker and its server, until it is told not to."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._port = port
        self._tls = tls
        self._listening: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.swallows = False
        self.connected = 0

    async def __aenter__(self) -> Relay:
        self._listening = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        scheme = "rediss" if self._tls else "redis"
        self.url = f"{scheme}://127.0.0.1:{self._listening.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def _accept(self, reader: Any, writer: Any) -> None:
        self.connected += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, other_writer}
        with suppress(OSError):
            await asyncio.gather(
                self._pass_on(reader, other_writer), self._pass_on(other_reader, writer)
            )

    async def _pass_on(self, reader: Any, writer: Any) -> None:
        while data := await reader.read(65536):
            if not self.swallows:
                writer.write(data)
        writer.close()


@contextmanager
def what_a_loop_complains_of() -> Iterator[list[dict[str, Any]]]:
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    try:
        yield complaints
    finally:
        loop.set_exception_handler(handler)


# URLs, secrets and versions


def test_every_server_that_can_be_had_here_is_tested() -> None:
    """As a kind of broker that is left out is not seen to be missing."""
    if sys.platform in ("linux", "darwin"):
        assert "valkey" in servers.available()
    if (sys.platform, platform.machine()) == ("linux", "x86_64") and sys.version_info < (3, 12):
        assert servers.available() == ["redis", "valkey"]


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{SECRET}@host",
        f"redis://:{SECRET}@host:port",
        "redis://host?db=x",
        f"redis://host?secret={SECRET}",
        f"rediss://host?ssl_cert_reqs={SECRET}",
        "",
    ],
)
def test_urls_that_can_not_be(url: str) -> None:
    with pytest.raises(ValueError, match="url must be like redis://") as caught:
        RedisBroker(url)
    assert "s3cr3t" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("make", [RedisBroker, RedisResults])
@pytest.mark.parametrize("timeout", [0, -1, float("inf"), "5", None])
def test_timeouts_that_can_not_be(make: Any, timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout must be"):
        make("redis://host", timeout=timeout)


def test_prefixes_that_can_not_be() -> None:
    with pytest.raises(ValueError, match="prefix"):
        RedisBroker("redis://host", prefix="{a}")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://", "redis://localhost:6379/0"),
        (f"redis://user:{QUOTED}@host:1/2", "redis://host:1/2"),
        (f"rediss://:{QUOTED}@host?ssl_password={QUOTED}", "rediss://host:6379/0"),
        (f"unix://user:{QUOTED}@/path?db=3", "unix:///path?db=3"),
    ],
)
def test_secrets_are_not_shown(url: str, text: str) -> None:
    assert repr(RedisBroker(url, prefix="p")) == f"<RedisBroker {text}, prefix 'p'>"


def test_options_on_waiting_and_retrying_are_its_own() -> None:
    url = "redis://host?retry_on_timeout=yes&socket_timeout=99&decode_responses=yes&protocol=3"
    connection = RedisBroker(url, timeout=7)._address.connection()
    assert connection.socket_timeout is None
    assert connection.socket_connect_timeout == 7
    assert connection.retry.get_retries() == 0
    assert connection.protocol == 2
    assert not connection.encoder.decode_responses


def test_on_trio_it_says_what_it_needs() -> None:
    name, options = virtual_time("trio")
    with pytest.raises(RuntimeError, match="on asyncio only"):
        anyio.run(RedisBroker("redis://").open, backend=name, backend_options=options)


async def test_a_password_and_a_database(
    server: Server, caplog: pytest.LogCaptureFixture, anyio_backend: object
) -> None:
    caplog.set_level(0)
    with own_server(server.name, "--requirepass", SECRET) as own:
        right = own.url.replace("//", f"//:{QUOTED}@") + "/3"
        async with open_broker(right) as broker:
            assert await broker.enqueue([message()]) == [True]
        async with open_broker(f"unix://:{QUOTED}@{own.socket}?db=3") as broker:
            assert await broker.count() == 1
        for wrong in (own.url, own.url.replace("//", f"//:x{QUOTED}@")):
            with pytest.raises(BrokerUnavailableError) as caught:
                await RedisBroker(wrong).open()
            assert re.search(r"/0: .*(auth|invalid|password)", str(caught.value), re.IGNORECASE)
            assert "s3cr3t" not in repr(caught.value)
    assert "s3cr3t" not in caplog.text


async def test_a_user_who_may_not_do_all_that_it_takes(
    server: Server, anyio_backend: object
) -> None:
    with own_server(server.name) as own, Redis.from_url(own.url) as client:
        rights = "on", ">p", "resetchannels", "~{jobs}:*", "&{jobs}:*", "+@all", "-@dangerous"
        client.execute_command("ACL", "SETUSER", "user", *rights)
        url = own.url.replace("//", "//user:p@")
        async with open_broker(url, prefix="jobs") as broker:
            await broker.enqueue([message()])
            assert await claimed(broker) == ["one"]
        with pytest.raises(BrokerUnavailableError, match=r"NOPERM .*permission"):
            await RedisBroker(url, prefix="other").open()


async def test_tls(tmp_path: Path, server: Server, anyio_backend: object) -> None:
    """With certificates of both sides; no server comes with TLS, so a relay has it."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    ca, pem = str(tmp_path / "ca"), str(tmp_path / "pem")
    authority.cert_pem.write_to_path(ca)
    certificate.private_key_and_cert_chain_pem.write_to_path(pem)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca)
    tls.load_cert_chain(pem)
    tls.verify_mode = ssl.CERT_REQUIRED
    prefix = make_redis(server.name, Path()).prefix
    async with Relay(server.port, tls) as relay:
        trusting = f"{relay.url}?ssl_ca_certs={ca}"
        url = f"{trusting}&ssl_certfile={pem}&ssl_keyfile={pem}"
        async with open_broker(url, prefix=prefix) as broker:
            assert await broker.enqueue([message()]) == [True]
            await broker.wait_for_work(["q"], 1)
            assert await claimed(broker) == ["one"]
        with what_a_loop_complains_of() as complaints:
            for wrong in (trusting, relay.url, relay.url.replace("rediss", "redis")):
                with pytest.raises(BrokerUnavailableError, match=r"rediss?://127"):
                    await RedisBroker(wrong, timeout=1).open()
        assert all(isinstance(each["exception"], OSError) for each in complaints)  # of the relay
    del broker
    gc.collect()  # nothing was left open, which would be a warning


async def test_a_server_that_is_too_old(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("background.queues.redis.session._OLDEST", (99,))
    with pytest.raises(BrokerUnavailableError, match=r"/0: Redis \d.* is too old: 6.2 is needed"):
        await RedisBroker(server.url).open()


async def test_a_server_that_is_far_too_old(server: Server, anyio_backend: object) -> None:
    """Before 6.0 there was no such command as HELLO."""
    refused = pytest.raises(
        BrokerUnavailableError, match=r"Redis 6\.2 .* needed; .* unknown command"
    )
    with own_server(server.name, "--rename-command", "HELLO", "") as own, refused:
        await RedisBroker(own.url).open()


async def test_jobs_of_a_newer_version_are_refused(broker: RedisBroker, server: Server) -> None:
    with Redis.from_url(server.url) as client:
        assert client.get(f"{{{broker.prefix}}}:version") == b"1"
        client.set(f"{{{broker.prefix}}}:version", 99)
    with pytest.raises(BrokerUnavailableError, match="have version 99, from a newer version"):
        await RedisBroker(server.url, prefix=broker.prefix).open()


# Jobs


async def test_ids_that_would_not_fit(broker: RedisBroker) -> None:
    for wrong in ("a b", "a\nb", "a\0b"):
        for bad in (message(wrong), message(queue=wrong), message(handler=wrong)):
            with pytest.raises(ValueError, match="ids and names"):
                await broker.enqueue([message("fits"), bad])
    assert await broker.count() == 0


async def test_nothing_at_all(broker: RedisBroker, server: Server) -> None:
    assert await broker.enqueue([]) == []
    assert set(keys(server, broker)) == {"version"}


async def test_numbers_come_back_as_they_were(broker: RedisBroker) -> None:
    sent = message(retention=1e9 + 1 / 3, delay=-0.1, at=1 / 3, expires=float("inf"), handler="-")
    await broker.enqueue([sent])
    assert (await claim_one(broker)).message == sent


async def test_large_numbers_are_dealt_with_in_parts(
    broker: RedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no script keeps others waiting."""
    monkeypatch.setattr(module, "_CHUNK", 4)
    monkeypatch.setattr("background.queues.redis.codec._MOST_AT_ONCE", 3)
    await broker.enqueue([*messages(10, delay=5), message("z", queue="r")])
    assert [job.message.id async for job in broker.scan(queue="r")] == ["z"]
    assert len([job async for job in broker.scan()]) == 11
    await elapse(broker, 6)
    assert await broker.maintain() == MaintenanceStats(due=10)
    claims = [each for _ in range(3) for each in await broker.claim(["q"], 10, lease=30)]
    assert [each.message.id for each in claims] == [f"{number:04}" for number in range(10)]
    assert await broker.renew(claims, lease=30) == [LeaseStatus.HELD] * 10
    assert await finish(broker, claims) == [True] * 10
    assert await broker.purge(state=JobState.DEAD) == 0
    await elapse(broker, 61)
    assert await broker.maintain() == MaintenanceStats(deleted=10)
    await broker.enqueue(messages(12))
    while claims := await broker.claim(["q"], 12, lease=30):
        await finish(broker, claims)
    assert await broker.purge(state=JobState.SUCCEEDED) == 12
    assert await broker.count() == 1


async def test_of_many_messages_none_is_enqueued_that_needs_an_unknown_job(
    broker: RedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("background.queues.redis.codec._MOST_AT_ONCE", 3)
    chain = [message("0"), *(message(str(n), depends_on=(str(n - 1), "0")) for n in range(1, 8))]
    with pytest.raises(ValueError, match="job x depends on job y, which is not stored"):
        await broker.enqueue([*chain, message("x", depends_on=("3", "y"))])
    assert await broker.count() == 0
    assert await broker.enqueue(chain) == [True] * 8
    more = [message(f"x{n}", depends_on=(str(n), "0")) for n in range(8)]
    assert await broker.enqueue([*chain, *more]) == [False] * 8 + [True] * 8
    assert (
        await broker.enqueue([message(f"y{n}", depends_on=(str(n),)) for n in range(8)])
        == [True] * 8
    )


async def test_what_is_over_is_unknown_even_before_it_is_forgotten(broker: RedisBroker) -> None:
    await broker.enqueue([message(retention=5), message("two", expires=5)])
    await finish(broker, await broker.claim(["q"], 1, lease=30))
    await elapse(broker, 6)
    assert await broker.get("one") is None
    assert await broker.cancel("one") is None
    assert not await broker.requeue("one")
    assert await broker.claim(["q"], 1, lease=30) == []
    assert [job.message.id async for job in broker.scan()] == ["two"]
    assert await broker.purge() == 1
    with pytest.raises(ValueError, match="depends on job one"):
        await broker.enqueue([message("three", depends_on=("one",))])


async def test_ids_that_are_new_known_or_known_no_more_in_one_call(broker: RedisBroker) -> None:
    await broker.enqueue(
        [message("over", retention=5), message("ready"), message("later", delay=50)]
    )
    await finish(broker, await broker.claim(["q"], 1, lease=30))
    await elapse(broker, 6)
    needs = ("over", "ready", "new")
    sent = [
        *(message("ready", body=b"other"), message("over", body=b"again"), message("later")),
        *(message("new"), message("new", body=b"other"), message("all", depends_on=needs)),
    ]
    assert await broker.enqueue(sent) == [False, True, False, True, False, True]
    claims = await broker.claim(["q"], 9, lease=30)
    bodies = {each.message.id: each.message.body for each in claims}
    assert bodies == {"ready": message().body, "over": b"again", "new": message().body}
    await finish(broker, claims)
    assert await claimed(broker) == ["all"]
    assert await broker.count() == 5
    assert await broker.enqueue(sent) == [False] * 6


async def test_a_job_can_need_one_that_is_over_within_the_same_call(broker: RedisBroker) -> None:
    nothing = message("nothing", handler=None, retention=0)
    assert await broker.enqueue([nothing, message(depends_on=("nothing",))]) == [True, True]
    assert await claimed(broker) == ["one"]
    assert await broker.get("nothing") is None


async def test_more_that_has_expired_than_one_script_ends(broker: RedisBroker) -> None:
    """It is not handed out all the same."""
    await broker.enqueue([*messages(150, expires=5), message("last")])
    await elapse(broker, 6)
    assert await claimed(broker) == ["last"]
    assert await broker.count(state=JobState.EXPIRED) == 150


async def test_large_jobs_are_scanned_in_parts(
    broker: RedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And enqueued so."""
    monkeypatch.setattr("background.queues.redis.codec._MOST_BYTES", 5_000_000)
    answers: list[int] = []
    ask = broker._ask

    async def watch(*args: Any) -> bytes:
        answer = await ask(*args)
        answers.append(len(answer))
        return answer

    monkeypatch.setattr(broker, "_ask", watch)
    assert await broker.enqueue(messages(20, body=b"x" * 900_000)) == [True] * 20
    assert answers == [5] * 4
    answers.clear()
    found = [job.message.id async for job in broker.scan()]
    assert found == [each.id for each in messages(20)]
    assert len(answers) == 4
    assert max(answers) < 6_000_000


async def test_a_job_handed_back_can_be_delayed(broker: RedisBroker) -> None:
    await broker.enqueue([message()])
    assert await settle(broker, await claim_one(broker), JobState.READY, delay=10)
    assert await claimed(broker) == []
    await elapse(broker, 11)
    assert (await claim_one(broker)).attempt == 1


async def test_waiting_for_a_job_that_expires(broker: RedisBroker) -> None:
    """Nobody else has to do maintenance for that."""
    await broker.enqueue([message(expires=0.05)])
    job = await broker.wait("one", SOON)
    assert job is not None
    assert job.state is JobState.EXPIRED


async def test_who_needs_a_job_twice_waits_for_it_once(broker: RedisBroker) -> None:
    await broker.enqueue([message("a", retention=0), message("b", depends_on=("a", "a"))])
    claim = await claim_one(broker)
    assert await settle(broker, claim, JobState.SUCCEEDED, result=b"1")
    assert (await claim_one(broker)).previous == (b"1", b"1")


# Keys


async def use_everything(broker: RedisBroker, server: Server) -> None:
    """Leave something in every key."""
    sent = [*messages(50), *messages(50, delay=100)]
    await broker.enqueue(sent)
    await broker.enqueue([message("early", expires=1000), message("later", delay=1000)])
    needs = tuple(each.id for each in messages(50))
    await broker.enqueue(
        [message("all", depends_on=needs), message("other", depends_on=("all", "later"))]
    )
    claims = await broker.claim(["q"], 20, lease=LEASE)
    for claim in claims:
        await broker.save(claim.message.id, claim.token, b"half")
        end = JobState.DEAD if claim is claims[-1] else JobState.SUCCEEDED
        assert await settle(broker, claim, end, result=b"x" * 50, error={"type": "E"})
    await broker.enqueue([message("more", depends_on=("0000", "later"))])
    assert await broker.requeue("0001")
    for claim in await broker.claim(["q"], 100, lease=LEASE):
        await settle(broker, claim, JobState.SCHEDULED, delay=50, error={"type": "E"})
    await wait_in_vain(broker, server)
    await broker.wait("later", 0.01)
    await broker.enqueue([message("ready")])


async def test_nothing_is_left_when_jobs_are_forgotten(broker: RedisBroker, server: Server) -> None:
    """But the number of the latest, and for a while who waits."""
    await use_everything(broker, server)
    assert set(keys(server, broker)) == set(KEYS)
    assert await broker.count() == 56
    async for job in broker.scan():
        await broker.cancel(job.message.id)
    assert set(keys(server, broker)) >= {"jobs", "messages", "kept", "order", "counts"}
    assert not {"needs", "ready", "changing"} & set(keys(server, broker))
    await elapse(broker, 61)
    assert (await broker.maintain()).deleted == 56
    left = keys(server, broker)
    assert set(left) == {"version", "number", "idle"}
    assert left["number"] < 200
    with Redis.from_url(server.url) as client:
        assert 0 < client.pttl(f"{{{broker.prefix}}}:idle") <= 10_000
        assert client.pttl(f"{{{broker.prefix}}}:number") == -1


async def test_nothing_is_left_when_jobs_are_purged(broker: RedisBroker, server: Server) -> None:
    await use_everything(broker, server)
    async for job in broker.scan():
        await broker.cancel(job.message.id)
    assert await broker.purge() == 56
    assert set(keys(server, broker)) == {"version", "number", "idle"}


async def test_nothing_is_left_of_jobs_that_are_not_kept(
    broker: RedisBroker, server: Server
) -> None:
    await broker.enqueue([message(retention=0), message("two", retention=0, handler=None)])
    claim = await claim_one(broker)
    await broker.save("one", claim.token, b"half")
    assert await settle(broker, claim, JobState.SUCCEEDED, result=b"1", error={"type": "E"})
    assert set(keys(server, broker)) == {"version", "number"}


def test_scripts_touch_no_keys_but_those_they_name() -> None:
    """Which is what a cluster asks for."""
    scripts = [each for each in vars(script).values() if isinstance(each, Script)]
    assert len(scripts) == 15
    for each in scripts:
        commands = re.findall(r"\b(?:call|each)\('(\w+)'(, KEYS\[\d+\])?", each.text.decode())
        assert len(commands) > 20
        assert {name for name, key in commands if not key} == {"TIME", "PUBLISH"}


async def test_who_waits_for_whom_is_forgotten_once_it_is_settled(
    broker: RedisBroker, server: Server
) -> None:
    needs = f"{{{broker.prefix}}}:dependants"
    await broker.enqueue([message("a"), message("b"), message("c", depends_on=("a", "b"))])
    with Redis.from_url(server.url) as client:
        await settle(broker, await claim_one(broker), JobState.SUCCEEDED)
        assert client.zrange(needs, 0, -1) == [b"b c 2"]
        await broker.cancel("c")
        assert client.zrange(needs, 0, -1) == []


async def test_jobs_of_which_somebody_removed_a_part(broker: RedisBroker, server: Server) -> None:
    """They are in nobody's way."""
    await broker.enqueue([message("a"), message("b"), message("c", delay=5), message("d")])
    await settle(broker, await claim_one(broker), JobState.SUCCEEDED)
    with Redis.from_url(server.url) as client:
        for name in ("jobs", "messages"):
            client.hdel(f"{{{broker.prefix}}}:{name}", "a", "b", "c")
        assert await claimed(broker) == ["d"]
        client.zadd(f"{{{broker.prefix}}}:changing", {"c": 1})
        client.zadd(f"{{{broker.prefix}}}:kept", {"a": 1})
    await broker.maintain()
    assert await broker.maintain() == MaintenanceStats()
    assert [job.message.id async for job in broker.scan()] == ["d"]


# Who waits


async def test_work_from_another_broker_is_noticed(
    broker: RedisBroker, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and so is the end of a job."""
    monkeypatch.setattr(module, "_POLL", 1000.0)
    async with open_broker(server.url, prefix=broker.prefix) as other:
        await broker.enqueue([message("first", queue="r")])
        with anyio.fail_after(SOON):
            async with anyio.create_task_group() as group:
                group.start_soon(broker.wait_for_work, ["q", "s"], 1000)
                await waits(server, broker, "q")
                await other.enqueue([message()])
            async with anyio.create_task_group() as group:
                group.start_soon(broker.wait_for_work, ["t"], 1000)
                await waits(server, broker, "t")
                await other.enqueue([message("soon", queue="t", delay=0.05)])
            assert await claimed(broker, "t") == ["soon"]
            async with anyio.create_task_group() as group:
                group.start_soon(broker.wait, "first", 1000)
                await until(lambda: waiting(broker))
                await broker.get("first")  # which comes after the wait's own call
                await other.cancel("first")


async def waits(server: Server, broker: RedisBroker, queue: str) -> None:
    """Return once somebody waits for work of this queue, and the server knows."""
    with Redis.from_url(server.url) as client:
        await until(lambda: client.hexists(f"{{{broker.prefix}}}:idle", queue))


async def wait_in_vain(broker: RedisBroker, server: Server) -> None:
    """Wait for work until the server has been told so."""
    async with anyio.create_task_group() as group:
        group.start_soon(broker.wait_for_work, ["r", "s"], 1000)
        await waits(server, broker, "s")
        group.cancel_scope.cancel()


async def test_each_job_goes_to_one_broker(broker: RedisBroker, server: Server) -> None:
    seen: list[str] = []

    async def work(each: RedisBroker) -> None:
        while claims := await each.claim(["q"], 3, lease=30):
            seen.extend(claim.message.id for claim in claims)
            assert all(await finish(each, claims))

    async with open_broker(server.url, prefix=broker.prefix) as other:
        await broker.enqueue(messages(300))
        async with anyio.create_task_group() as group:
            for each in (broker, other, broker, other):
                group.start_soon(work, each)
    assert sorted(seen) == [each.id for each in messages(300)]


async def test_who_waits_for_the_same_job(broker: RedisBroker) -> None:
    """One leaves early, the others hear of the end."""
    await broker.enqueue([message()])
    states: list[JobState] = []
    left = anyio.Event()

    async def wait(timeout: float) -> None:
        job = await broker.wait("one", timeout)
        assert job is not None
        states.append(job.state)
        left.set()

    async with anyio.create_task_group() as group:
        group.start_soon(wait, 0.05)
        group.start_soon(wait, 1000)
        group.start_soon(wait, 1000)
        await left.wait()
        await broker.cancel("one")
    assert states == [JobState.READY, JobState.CANCELLED, JobState.CANCELLED]
    assert waiting(broker) == 0


async def test_without_news_who_waits_looks(
    broker: RedisBroker, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the connection that listens is lost, which is made anew."""
    monkeypatch.setattr(module, "_POLL", 0.02)
    monkeypatch.setattr("background.queues.redis.pubsub._RECONNECT", 0.01)
    await broker.wait_for_work(["q"], 0.01)
    with Redis.from_url(server.url) as client, anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            group.start_soon(broker.wait_for_work, ["q"], 1000)
            await waits(server, broker, "q")
            client.delete(f"{{{broker.prefix}}}:idle")  # so that nobody is told
            await broker.enqueue([message()])
        client.client_kill_filter(_type="pubsub")
        monkeypatch.setattr(module, "_POLL", 1000.0)
        await claimed(broker)
        async with anyio.create_task_group() as group:
            group.start_soon(broker.wait_for_work, ["q"], 1000)
            await until(lambda: client.pubsub_numsub(broker._channel)[0][1])
            await broker.enqueue([message("two")])


async def test_news_that_were_missed(
    broker: RedisBroker, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as the connection that listens is back, all look that wait."""
    monkeypatch.setattr(module, "_POLL", 1000.0)
    monkeypatch.setattr("background.queues.redis.pubsub._RECONNECT", 0.1)
    with Redis.from_url(server.url) as client, anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            group.start_soon(broker.wait_for_work, ["q"], 1000)
            await waits(server, broker, "q")
            client.client_kill_filter(_type="pubsub")
            await broker.enqueue([message()])


async def test_closed_while_somebody_waits(broker: RedisBroker) -> None:
    await broker.enqueue([message("one", queue="r")])
    refused: list[str] = []

    async def wait(call: Any) -> None:
        with pytest.raises(BrokerUnavailableError, match="not open"):
            await call()
        refused.append("")

    async with anyio.create_task_group() as group:
        group.start_soon(wait, partial(broker.wait_for_work, ["q"], 1000))
        group.start_soon(wait, partial(broker.wait, "one", 1000))
        await until(lambda: waiting(broker) == 2)
        await broker.close()
    assert len(refused) == 2


# The connection


async def test_opening_and_closing_again(server: Server) -> None:
    broker = make_redis(server.name, Path())
    await broker.close()
    tasks = asyncio.all_tasks()
    for _ in range(2):
        async with anyio.create_task_group() as group:
            group.start_soon(broker.open)
            group.start_soon(broker.open)
        await broker.wait_for_work(["q"], 0.01)
        assert len(asyncio.all_tasks() - tasks) == 2
        async with anyio.create_task_group() as group:
            group.start_soon(broker.close)
            group.start_soon(broker.close)
        assert asyncio.all_tasks() == tasks
        for call in (broker.count, partial(broker.wait, "one", 1), partial(broker.get, "one")):
            with pytest.raises(BrokerUnavailableError, match="not open"):
                await call()


async def test_many_calls_at_once(broker: RedisBroker) -> None:
    """Share the connection, and each gets its own answer."""
    got: dict[str, Any] = {}
    await broker.enqueue(messages(300))

    async def get(id: str) -> None:
        got[id] = await broker.get(id)

    async with anyio.create_task_group() as group:
        for each in messages(300):
            group.start_soon(get, each.id)
    assert {id: job.message.id for id, job in got.items()} == {id: id for id in got}
    assert len(got) == 300


@pytest.mark.parametrize("how", How)
@pytest.mark.parametrize("number", range(13))
async def test_cancelled_at_any_point_a_call_is_done_or_not(
    broker: RedisBroker, how: How, number: int
) -> None:
    """At each suspension in turn; the next calls get their own answers."""
    await broker.enqueue([message("own", queue="own")])
    claim = await claim_one(broker, "own")
    calls: list[Callable[[], Any]] = [
        lambda: broker.enqueue(messages(3)),
        lambda: broker.claim(["q"], 3, lease=30),
        lambda: broker.wait_for_work(["r", "s"], 0.02),
        lambda: broker.renew([claim], lease=30),
        lambda: broker.settle([settlement(claim, JobState.READY)]),
        lambda: broker.save("own", claim.token, b"1"),
        lambda: broker.cancel("0001"),
        lambda: broker.requeue("0001"),
        lambda: broker.get("0001"),
        lambda: broker.wait("own", 0.02),
        lambda: broker.count(),
        lambda: broker.purge(),
        lambda: broker.maintain(),
    ]
    points = 0
    for when in When:
        for suspension in range(1, 50):
            world = World(Point(suspension, when, how))
            outcome = await world.drive(calls[number]())
            assert outcome.cancelled or outcome.error is None
            assert await broker.count() in (1, 4)
            assert await broker.requeue("?") is False
            job = await broker.get("own")
            assert job is not None
            assert job.message.id == "own"
            if world.injected_at is None:
                break
            points += 1
        else:
            raise AssertionError("there is no end to the suspensions")
    assert points
    assert await broker.enqueue([message("last", queue="t")]) == [True]
    assert await claimed(broker, "t") == ["last"]


@pytest.mark.parametrize("how", How)
@pytest.mark.parametrize("action", ["open", "close"])
async def test_cancelled_while_opening_or_closing(server: Server, how: How, action: str) -> None:
    """Nothing is left, and the broker can be opened again."""
    tasks = asyncio.all_tasks()
    for when in When:
        for suspension in range(1, 50):
            broker = make_redis(server.name, Path())
            if action == "close":
                await broker.open()
                await broker.wait_for_work(["q"], 0.001)
            world = World(Point(suspension, when, how))
            await world.drive(getattr(broker, action)())
            await broker.close()
            await anyio.wait_all_tasks_blocked()
            assert asyncio.all_tasks() == tasks
            await broker.open()
            assert await broker.count() == 0
            await broker.close()
            if world.injected_at is None:
                break
        assert 1 < suspension < 49
    gc.collect()


async def test_cancelled_while_the_server_is_busy(broker: RedisBroker, server: Server) -> None:
    """The call is done, and others get their own answers."""
    link: Any = broker._session.connection
    states: list[JobState | None] = []
    scope = anyio.CancelScope()

    async def enqueue() -> None:
        with scope:
            await broker.enqueue([message()])

    async def look() -> None:
        states.append(await state_of(broker))

    async with anyio.create_task_group() as group:
        with Redis.from_url(server.url) as client:
            client.client_pause(50)
        group.start_soon(enqueue)
        group.start_soon(look)
        await until(lambda: len(link._sent) == 2)
        scope.cancel()
    assert scope.cancelled_caught
    assert states == [JobState.READY]


async def test_withdrawn_before_it_was_sent_a_call_is_not_done(broker: RedisBroker) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await broker.enqueue([message()])
    assert await broker.count() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no forking")
def test_after_a_fork_the_child_is_refused(server: Server, anyio_backend: object) -> None:
    with running(SCRIPT, server.url) as process:
        assert process.wait() == 0
    refused, *lines = process.lines
    assert re.fullmatch(
        r"refused: redis://.* was opened by another process, before a fork.*", refused
    )
    assert lines == ["child counts 0", "parent counts 0"]


@pytest.mark.parametrize("closes", [True, False])
async def test_what_another_process_has_opened_is_refused(
    broker: RedisBroker, closes: bool
) -> None:
    """It is not even closed, as the sockets are the other's; opened again, it is one's own."""
    link: Any = broker._session.connection
    link._process = 0
    with pytest.raises(BrokerUnavailableError, match="before a fork"):
        await broker.count()
    if closes:
        await broker.close()
    await broker.open()
    assert await broker.count() == 0
    assert broker._session.connection is not link
    link._process = os.getpid()
    await link.close()
    with pytest.raises(BrokerUnavailableError, match="not open"):
        await link.call(b"")


# Faults


async def test_scripts_that_the_server_has_forgotten(broker: RedisBroker, server: Server) -> None:
    await broker.enqueue([message()])
    with Redis.from_url(server.url) as client:
        client.script_flush()
        assert await claimed(broker) == ["one"]
        before = client.info("commandstats")["cmdstat_eval"]["calls"]
        assert await claimed(broker) == []
        assert client.info("commandstats")["cmdstat_eval"]["calls"] == before


async def test_a_server_that_is_killed_and_started_again(
    server: Server, anyio_backend: object
) -> None:
    """What was acknowledged is there, and nobody has to open anything anew."""
    durable = "--appendonly", "yes", "--appendfsync", "always", "--save", ""
    with own_server(server.name, *durable) as own:
        async with open_broker(own.url) as broker:
            acknowledged: list[str] = []
            settled: list[str] = []

            async def enqueue(first: int) -> None:
                for number in range(first, 10_000, 5):
                    await broker.enqueue([message(str(number))])
                    acknowledged.append(str(number))

            async def work() -> None:
                while True:
                    await broker.wait_for_work(["q"], 1)
                    claims = await broker.claim(["q"], 5, lease=30)
                    if all(await finish(broker, claims)):
                        settled.extend(each.message.id for each in claims)

            async def until_killed(fn: Any, *args: Any) -> None:
                with pytest.raises(BrokerUnavailableError, match="redis://127"):
                    await fn(*args)
                ends.append(fn)

            ends: list[Any] = []
            async with anyio.create_task_group() as group:
                for number in range(5):
                    group.start_soon(until_killed, enqueue, number)
                group.start_soon(until_killed, work)
                await until(lambda: len(settled) >= 50)
                await anyio.to_thread.run_sync(own.kill)
            assert len(ends) == 6
            with pytest.raises(BrokerUnavailableError, match="redis://127"):
                await broker.count()
            await anyio.to_thread.run_sync(own.start)
            found = {job.message.id: job.state async for job in broker.scan()}
            assert set(acknowledged) <= set(found)
            assert {found[id] for id in settled} == {JobState.SUCCEEDED}
            with anyio.fail_after(SOON):
                await broker.wait_for_work(["q"], 1000)
            assert await broker.claim(["q"], 1, lease=30)


async def test_a_server_that_never_answers(server: Server, anyio_backend: object) -> None:
    async with Relay(server.port) as relay:
        relay.swallows = True
        with pytest.raises(BrokerUnavailableError, match=r"no answer within 0\.1 s$"):
            await RedisBroker(relay.url, timeout=0.1).open()


async def test_connections_that_are_half_open_or_cut(
    server: Server, anyio_backend: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next call makes a new one."""
    monkeypatch.setattr("background.queues.redis.pubsub._RECONNECT", 0.01)
    prefix = make_redis(server.name, Path()).prefix
    async with (
        Relay(server.port) as relay,
        open_broker(relay.url, prefix=prefix, timeout=0.3) as broker,
    ):
        await broker.wait_for_work(["q"], 0.01)
        relay.swallows = True
        with pytest.raises(BrokerUnavailableError, match=r"no answer within 0\.3 s"):
            await broker.enqueue([message()])
        relay.swallows = False
        assert await broker.enqueue([message()]) == [True]
        connected = relay.connected
        relay.cut()
        await until(lambda: relay.connected > connected)  # as the listener comes back
        assert await broker.count() == 1
        async with anyio.create_task_group() as group:
            relay.swallows = True

            async def cut() -> None:
                with pytest.raises(BrokerUnavailableError, match="closed"):
                    await broker.enqueue([message("two")])

            group.start_soon(cut)
            await anyio.wait_all_tasks_blocked()
            relay.cut()
        relay.swallows = False
        assert await broker.enqueue([message("two")]) == [True]


async def test_waiting_for_a_server_that_has_gone(server: Server, anyio_backend: object) -> None:
    with own_server(server.name) as own:
        async with open_broker(own.url) as broker:
            own.kill()
            with pytest.raises(BrokerUnavailableError, match="redis://127"):
                await broker.wait_for_work(["q"], 1000)


async def test_a_server_without_memory(server: Server, anyio_backend: object) -> None:
    """Nothing more is enqueued, and workers go on, which makes room."""
    with own_server(server.name, "--save", "") as own, Redis.from_url(own.url) as client:
        async with open_broker(own.url) as broker:
            await broker.enqueue([*messages(3), message("late", delay=1000)])
            (first,) = await broker.claim(["q"], 1, lease=30)
            client.config_set("maxmemory", 1)
            for sent in (message("more"), message("more", handler=None)):
                with pytest.raises(BrokerUnavailableError, match="OOM"):
                    await broker.enqueue([sent])
            assert await broker.renew([first], lease=30) == [LeaseStatus.HELD]
            assert await broker.save("0000", first.token, b"1")
            await wait_in_vain(broker, own)
            claims = await broker.claim(["q"], 10, lease=30)
            assert len(claims) == 2
            assert await finish(broker, [first, *claims]) == [True] * 3
            assert await broker.wait("late", 0.01) is not None
            assert await broker.cancel("late") is JobState.SCHEDULED
            await broker.maintain()
            assert await broker.purge() == 4
            client.config_set("maxmemory", 0)
            assert await broker.enqueue([message("more")]) == [True]


async def test_a_server_that_is_a_replica_now(server: Server, anyio_backend: object) -> None:
    """The broker connects anew, as its address may be the new master's by then."""
    with own_server(server.name) as own, Redis.from_url(own.url) as client:
        async with open_broker(own.url) as broker:
            client.replicaof("127.0.0.1", 1)
            before = client.info("stats")["total_connections_received"]
            for _ in range(2):
                with pytest.raises(BrokerUnavailableError, match="READONLY"):
                    await broker.enqueue([message()])
            assert client.info("stats")["total_connections_received"] == before + 1
            client.replicaof("no", "one")
            assert await broker.enqueue([message()]) == [True]
            assert await state_of(broker) is JobState.READY


@pytest.mark.parametrize("name", ["order", "messages", "ready"])
async def test_keys_that_are_somebody_elses(broker: RedisBroker, server: Server, name: str) -> None:
    """What failed half-way by that can be repeated."""
    with Redis.from_url(server.url) as client:
        client.set(f"{{{broker.prefix}}}:{name}", "mine")
        with pytest.raises(BrokerUnavailableError, match="WRONGTYPE"):
            await broker.enqueue([message()])
        client.delete(f"{{{broker.prefix}}}:{name}")
    assert await broker.enqueue([message()]) == [True]
    assert await claimed(broker) == ["one"]


# Results


def test_stores_of_results_show_no_secrets() -> None:
    store = RedisResults(f"redis://:{QUOTED}@host", prefix="p")
    assert repr(store) == "<RedisResults redis://host:6379/0, prefix 'p'>"
    with pytest.raises(ValueError, match="prefix"):
        RedisResults("redis://host", prefix="{a}")


@pytest.mark.parametrize("keep", [float("inf"), 0])
async def test_results_for_ever_and_for_no_time(server: Server, keep: float) -> None:
    store = make_redis_results(server.name, Path())
    await store.open()
    await store.save("one", b"1", retention=keep)
    with Redis.from_url(server.url) as client:
        left = client.pttl(f"{{{store.prefix}}}:result:one")
    assert left == -1 if keep else left in (-2, 0, 1)
    await store.delete("one")
    await store.close()
    with pytest.raises(BrokerUnavailableError, match="not open"):
        await store.get("one")


async def test_results_that_a_server_refuses(server: Server, anyio_backend: object) -> None:
    with own_server(server.name) as own, Redis.from_url(own.url) as client:
        store = RedisResults(own.url)
        await store.open()
        client.replicaof("127.0.0.1", 1)
        with pytest.raises(BrokerUnavailableError, match="READONLY"):
            await store.save("one", b"1", retention=60)
        await store.close()
