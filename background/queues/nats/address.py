"""The servers of a NATS cluster, and how a client connects to them."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from anyio import to_thread
from nats.aio.client import Client

from .._extras import needing
from .._tls import TLS_OPTIONS, Tls, TlsOptions
from .._url_parts import Reader, choice, flag, parse, whole_number
from .credentials import CredentialsFile, key_pair
from .secure_client import SecureClient

_EXAMPLE = "nats://user:password@host:4222 or tls://host:4222,host2:4222"

#: How the options are read from a URL.
_READERS: Mapping[str, Reader] = {
    "inbox_prefix": str,
    "nkeys_seed": str,
    "prefix": str,
    "replicas": whole_number,
    "storage": choice("file", "memory"),
    "tls_handshake_first": flag,
    "tls_hostname": str,
    "user_credentials": str,
    **TLS_OPTIONS,
}
_NEED_NKEYS = ("nkeys_seed", "nkeys_seed_str", "user_credentials")


class NatsOptions(TlsOptions, total=False):
    """Arguments of `NatsBroker` that nats-py takes, and those of TLS."""

    user: str | Callable[[], str]
    password: str | Callable[[], str]
    token: str | Callable[[], str]
    user_credentials: str | os.PathLike[str]
    nkeys_seed: str | os.PathLike[str]
    nkeys_seed_str: str
    signature_cb: Callable[[str], bytes]
    user_jwt_cb: Callable[[], bytes | bytearray]
    inbox_prefix: str
    name: str
    dont_randomize: bool
    tls_hostname: str
    tls_handshake_first: bool


class NatsAddress:
    """The servers of a cluster, and the options of clients; `str()` of it has no secrets.

    Args:
        url: The URL.
        tls: The TLS context.
        own: Options of the broker, with `None` for those that are not given.
        options: Options of clients.

    Attributes:
        own: The options of the broker, from the URL, too.
        servers: The URL of each server, without credentials.

    Raises:
        TypeError: An option is unknown.
        ValueError: The URL or an option is not valid.
        ImportError: An option needs an extra.
    """

    def __init__(
        self,
        url: str,
        tls: ssl.SSLContext | None,
        own: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> None:
        for name in options:
            if name not in NatsOptions.__annotations__:
                allowed = ", ".join(NatsOptions.__annotations__)
                raise TypeError(f"NatsBroker has no argument {name!r}; nats-py's are {allowed}")
        parts = parse(url, _EXAMPLE)
        if parts.scheme not in ("nats", "tls") or parts.path not in ("", "/"):
            raise ValueError(f"url must be like {_EXAMPLE}")
        if not all(host.name for host in parts.hosts) or not parts.hosts:
            raise ValueError(f"url must name a host, as in {_EXAMPLE}")
        login = {"user": parts.user, "password": parts.password}
        if parts.password is None:
            login = {"token": parts.user}
        for name, value in login.items():
            if value is not None and options.get(name) is not None:
                raise ValueError(f"{name} is given twice, in the URL and as an argument")
        found = parts.read_options(_READERS, {**login, **options, **own})
        if ("user" in found) != ("password" in found):
            raise ValueError("user and password must be given together")
        self.own: dict[str, Any] = {name: found.pop(name) for name in own if name in found}
        self._tls = Tls(tls, found)
        self.uses_tls = (
            parts.scheme == "tls"
            or self._tls.is_given
            or "tls_hostname" in found
            or found.get("tls_handshake_first", False)
        )
        if any(name in found for name in _NEED_NKEYS):
            with needing("nkeys"):
                import_module("nkeys")
        credentials, seed = found.pop("user_credentials", None), found.pop("nkeys_seed", None)
        self._credentials = None if credentials is None else CredentialsFile(credentials)
        self._seed = None if seed is None else Path(seed)
        self._options = found
        self.servers = [f"{parts.scheme}://{host.shown(4222)}" for host in parts.hosts]

    def __str__(self) -> str:
        scheme, _, first = self.servers[0].partition("://")
        rest = (server.partition("://")[2] for server in self.servers[1:])
        return f"{scheme}://{','.join([first, *rest])}"

    def new_client(self) -> Client:
        """Return a client that is not connected."""
        return SecureClient() if self.uses_tls else Client()

    async def client_options(self) -> dict[str, Any]:
        """Return the arguments of a client's `connect`, after reading files.

        Raises:
            OSError: A file can't be read.
            nats.errors.Error: Credentials have not the expected form.
        """
        options: dict[str, Any] = {"name": "background", **self._options}
        options["servers"] = list(self.servers)
        if self.uses_tls:
            options["tls"] = await self._tls.context()
        if self._credentials is not None:
            await to_thread.run_sync(self._credentials.read)
            options["user_jwt_cb"] = self._credentials.jwt
            options["signature_cb"] = self._credentials.sign
        if self._seed is not None:
            options["nkeys_seed_str"] = await to_thread.run_sync(self._seed.read_text)
        if (seed := options.get("nkeys_seed_str")) is not None:
            key_pair(seed.strip(), str(self._seed or "nkeys_seed_str"))  # to check it
        return options

    async def read_credentials(self) -> None:
        """Read the file with credentials again, if there is one and it can be read."""
        if self._credentials is not None:
            with suppress(OSError):
                await to_thread.run_sync(self._credentials.read)
