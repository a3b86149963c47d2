"""URLs and arguments of the NATS broker, and the credentials that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from support.brokers.nats import eventually, in_real_time, message, opened
from support.brokers.nats_keys import CREDENTIALS, Key, operator_config
from support.brokers.nats_servers import nats_server, shared_server
from support.brokers.nats_tls import Authority, tls_server
from support.processes.process import running

from background.queues._errors import BrokerUnavailableError
from background.queues.nats import NatsBroker

SECRET = "s3cr3t/?#@:,% ü"
QUOTED = quote(SECRET, safe="")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://h", "must be like nats://user:password@host:4222"),
        ("nats://h/jobs", "must be like nats://user:password@host:4222"),
        ("nats://", "must name a host"),
        ("nats://h,,i", "must name a host"),
        ("nats://h:port", "a host must be like name:1234"),
        ("nats://h:99999", "a host must be like name:1234"),
        ("nats://h,nats://i", "the next one follows a comma"),
        ("nats://h?queue=q", "unknown option; the options of nats are inbox_prefix, nkeys_seed, p"),
        ("nats://h?replicas=many", "replicas must be a whole number"),
        ("nats://h?storage=disk", "storage must be file or memory"),
        ("nats://h?tls_handshake_first=1", "tls_handshake_first must be true or false"),
        ("nats://h?ssl_cert_reqs=NONE!", "ssl_cert_reqs must be none or optional or required"),
        ("nats://h?ssl_keyfile=x", "ssl_keyfile needs ssl_certfile"),
        ("nats://:pass@h", "user and password must be given together"),
    ],
)
def test_invalid_url(url: str, message: str) -> None:
    """An invalid URL is rejected with an error that says what is allowed."""
    with pytest.raises(ValueError, match=message):
        NatsBroker(url)


@pytest.mark.parametrize("secret", ["pa/s3cr3t", "pa?s3cr3t=1", "pa#s3cr3t", "pa@s3cr3t:1/a"])
def test_unquoted_password(secret: str) -> None:
    """A password that is not percent-encoded is rejected, without a piece of it in the error."""
    with pytest.raises(ValueError, match="must be percent-encoded") as caught:
        NatsBroker(f"nats://me:{secret}@host:4222")
    assert "s3cr3t" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prefix": "b"}, ValueError, "prefix is given twice"),
        ({"token": "b"}, ValueError, "token is given twice"),
        ({"user": "b"}, ValueError, "user and password must be given together"),
        ({"prefx": "b"}, TypeError, "NatsBroker has no argument 'prefx'; .* user, password"),
        ({"pending_size": 1}, TypeError, "NatsBroker has no argument 'pending_size'"),
        ({"ssl_cert_reqs": "CERT_NONE"}, ValueError, "ssl_cert_reqs must be none or"),
    ],
)
def test_invalid_arguments(options: Any, error: type[Exception], message: str) -> None:
    """An argument that is unknown, not valid, or in the URL, too, is rejected."""
    with pytest.raises(error, match=message):
        NatsBroker("nats://token@h?prefix=a", **options)


def test_tls_twice(tmp_path: Path) -> None:
    """A TLS context can't be combined with options of TLS."""
    tls = Authority(tmp_path).context
    with pytest.raises(ValueError, match="ssl_ca_certs: not with tls"):
        NatsBroker("tls://h?ssl_ca_certs=ca", tls=tls)


def test_repr() -> None:
    """The representation of a broker has all hosts, and no credentials."""
    broker = NatsBroker(f"tls://me:{QUOTED}@h:1,[::1]?ssl_password={QUOTED}&prefix=shop&replicas=3")
    assert repr(broker) == "<NatsBroker tls://h:1,[::1]:4222, prefix 'shop'>"
    assert broker._layout.streams[broker._layout.jobs]["num_replicas"] == 3
    assert repr(NatsBroker("nats://token@h")) == "<NatsBroker nats://h:4222, prefix 'background'>"


@pytest.mark.parametrize(
    ("config", "right", "wrong"),
    [
        (f"user: 'me@home', password: '{SECRET}'", f"me%40home:{QUOTED}", f"me%40home:x{QUOTED}"),
        (f"token: '{SECRET}'", QUOTED, f"x{QUOTED}"),
    ],
)
@in_real_time
async def test_credentials(config: str, right: str, wrong: str) -> None:
    """Credentials in the URL are decoded, and not shown in representations and errors."""
    with nats_server(f"authorization {{ {config} }}") as server:
        url = server.url.replace("//", f"//{right}@")
        async with opened(server, url=url) as broker:
            assert await broker.count() == 0
            assert "s3cr3t" not in repr(broker)
        broker = NatsBroker(server.url.replace("//", f"//{wrong}@"))
        with pytest.raises(BrokerUnavailableError, match="Authorization") as caught:
            await broker.open()
        assert "s3cr3t" not in repr(caught.value)


@in_real_time
async def test_arguments() -> None:
    """Credentials can be arguments, and functions that return them."""
    with nats_server("authorization { user: me, password: s3cr3t }") as server:
        async with opened(server, user="me", password=lambda: "s3cr3t", name="worker") as broker:
            assert await broker.count() == 0


@in_real_time
async def test_several_hosts() -> None:
    """A broker connects to the next host if it can't reach one."""
    port = shared_server().port
    async with opened(shared_server(), url=f"nats://127.0.0.1:1,127.0.0.1:{port}") as broker:
        assert await broker.count() == 0


@in_real_time
async def test_nkey(tmp_path: Path) -> None:
    """An nkey can be given as a file or as text."""
    key, path = Key("USER"), tmp_path / "seed"
    path.write_text(f"{key.seed}\n")
    with nats_server(f"authorization {{ users: [{{ nkey: {key.public} }}] }}") as server:
        async with opened(server, url=f"{server.url}?nkeys_seed={path}") as broker:
            assert await broker.enqueue([message()]) == [True]
        async with opened(server, nkeys_seed_str=key.seed) as broker:
            assert await broker.count() == 0
        with pytest.raises(BrokerUnavailableError, match="Authorization"):
            await NatsBroker(server.url, nkeys_seed_str=Key("USER").seed).open()


@in_real_time
async def test_credentials_file(tmp_path: Path) -> None:
    """A file with a JWT and a seed is read at each connection."""
    path = tmp_path / "app.creds"
    with nats_server(operator_config(path)) as server:
        url = f"{server.url}?user_credentials={quote(str(path))}"
        async with opened(server, url=url) as broker:
            assert await broker.enqueue([message()]) == [True]
            text = path.read_text()
            path.write_text("being written")
            await broker._requests.connection._client.force_reconnect()
            with pytest.raises(BrokerUnavailableError, match="is not a file with a NATS user's"):
                broker._requests.connection.patience = 0.5
                await broker.count()
            path.write_text(text)
            assert await eventually(broker.count) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"user_credentials": "text"}, "text is not a file with a NATS user's JWT"),
        ({"user_credentials": "bad"}, "bad has no valid seed of an nkey"),
        ({"user_credentials": "missing"}, "No such file or directory: '.*missing"),
        ({"nkeys_seed": "text"}, "text has no valid seed of an nkey"),
        ({"nkeys_seed": "missing"}, "No such file or directory: '.*missing"),
        ({"nkeys_seed_str": "s3cr3t"}, "nkeys_seed_str has no valid seed of an nkey"),
        ({"ssl_ca_certs": "missing"}, "ssl_ca_certs or ssl_ca_path can't be used: .*No such file"),
        ({"ssl_certfile": "text"}, "ssl_certfile, ssl_keyfile or ssl_password can't be used"),
    ],
)
@in_real_time
async def test_unusable_files(tmp_path: Path, options: dict[str, str], message: str) -> None:
    """Files that can't be read or have another content are reported, without their content."""
    (tmp_path / "text").write_text("s3cr3t")
    (tmp_path / "bad").write_text(CREDENTIALS.format(jwt="a.b.c", seed="SUs3cr3t"))
    if "nkeys_seed_str" not in options:
        options = {name: str(tmp_path / value) for name, value in options.items()}
    with nats_server(operator_config(tmp_path / "creds")) as server:
        with pytest.raises(BrokerUnavailableError, match=message) as caught:
            await NatsBroker(server.url, **options).open()
        assert "s3cr3t" not in str(caught.value)


@in_real_time
async def test_client_certificate(tmp_path: Path) -> None:
    """The options of TLS name an own authority, and the client's certificate and key."""
    authority = Authority(tmp_path)
    with tls_server(authority, "verify: true") as server:
        trusting = f"{server.url}?ssl_ca_certs={authority.ca}"
        url = f"{trusting}&ssl_certfile={authority.pem}&ssl_check_hostname=true"
        async with opened(server, url=url) as broker:
            assert await broker.count() == 0
        with pytest.raises(BrokerUnavailableError, match="127"):
            await NatsBroker(trusting).open()
        with pytest.raises(BrokerUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            await NatsBroker(f"{server.url}?ssl_certfile={authority.pem}").open()


@in_real_time
async def test_encrypted_key(tmp_path: Path) -> None:
    """The key of a client's certificate can be encrypted; the terminal is not asked."""
    authority = Authority(tmp_path)
    encrypted = authority.encrypt_key(tmp_path / "key", b"s3cr3t")
    options = {"ssl_ca_certs": authority.ca, "ssl_certfile": authority.pem}
    with tls_server(authority, "verify: true") as server:
        options["ssl_keyfile"] = encrypted
        async with opened(server, ssl_password="s3cr3t", **options) as broker:
            assert await broker.count() == 0
        with pytest.raises(BrokerUnavailableError, match="ssl_password can't be used"):
            await NatsBroker(server.url, **options).open()  # type: ignore[arg-type]


@in_real_time
async def test_no_verification(tmp_path: Path) -> None:
    """`ssl_cert_reqs=none` accepts any certificate."""
    with tls_server(Authority(tmp_path)) as server:
        url = f"{server.url.replace('nats', 'tls')}?ssl_cert_reqs=none"
        async with opened(server, url=url) as broker:
            assert await broker.count() == 0


@in_real_time
async def test_handshake_first(tmp_path: Path) -> None:
    """TLS can begin before the server's first message."""
    authority = Authority(tmp_path)
    with tls_server(authority, "handshake_first: true") as server:
        url = f"{server.url}?tls_handshake_first=true&tls_hostname=localhost"
        async with opened(server, url=f"{url}&ssl_ca_certs={authority.ca}") as broker:
            assert await broker.count() == 0


WITHOUT_NKEYS = """
import sys
sys.modules["nkeys"] = None  # as if it were not installed
from background.queues.nats import NatsBroker
try:
    NatsBroker("nats://h?user_credentials=app.creds")
except ImportError as error:
    print(error)
"""


def test_missing_extra() -> None:
    """The error of a missing extra contains the command that installs it."""
    with running("-c", WITHOUT_NKEYS) as process:
        assert process.wait() == 0
    assert "pip install 'anyio-background[nkeys]'" in process.output
