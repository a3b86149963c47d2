"""URLs of Redis servers, of their sentinels, and of the nodes of a cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from redis.credentials import CredentialProvider

from .._tls import TLS_OPTIONS, TlsOptions
from .._url_parts import Host, Reader, UrlParts, parse, whole_number

_EXAMPLE = (
    "redis://user:password@host:6379/0, unix:///path?db=0, redis+sentinel://host,host2/name or "
    "redis+cluster://host,host2, with rediss instead of redis for TLS"
)
_PLAIN, _ENCRYPTED = ("redis", "valkey"), ("rediss", "valkeys")


class _Mode(NamedTuple):
    """How the part of a scheme after `+` changes the rest of the URL."""

    port: int
    path: re.Pattern[str]
    rule: str


_MODES = {
    "": _Mode(
        6379,
        re.compile("/?(?P<db>[0-9]*)"),
        "the number of a database, as in /0; applications are separated by a prefix",
    ),
    "sentinel": _Mode(
        26379,
        re.compile("/(?P<service>[^/]+)(/(?P<db>[0-9]*))?"),
        "the name that sentinels have for the primary, as in /mymaster or /mymaster/0",
    ),
    "cluster": _Mode(6379, re.compile("/?0?"), "/0 or missing: a cluster has one database"),
}


class RedisOptions(TlsOptions, total=False):
    """Arguments of `RedisBroker` for connections of redis-py and to sentinels, and those of TLS."""

    username: str
    password: str
    credential_provider: CredentialProvider
    client_name: str
    db: int
    socket_keepalive: bool
    socket_keepalive_options: Mapping[int, int | bytes]
    sentinel_username: str
    sentinel_password: str


class Node(NamedTuple):
    """The address of a server or sentinel."""

    host: str
    port: int


class Target(NamedTuple):
    """What a URL names.

    Attributes:
        text: The URL without credentials and options.
        mode: `"sentinel"`, `"cluster"`, or empty.
        encrypted: Whether the connection uses TLS.
        socket: The path of a Unix socket, or empty.
        nodes: The hosts, if there is no socket.
        service: The name that sentinels have for the primary, or empty.
        options: All options, from the URL and from arguments.
    """

    text: str
    mode: str
    encrypted: bool
    socket: str
    nodes: tuple[Node, ...]
    service: str
    options: dict[str, Any]


def read(url: str, given: Mapping[str, Any]) -> Target:
    """Read a URL.

    Args:
        url: The URL.
        given: Options that are arguments, with `None` for those that are not given.

    Raises:
        TypeError: An argument is unknown.
        ValueError: The URL or an option is not valid.
    """
    for name in given:
        if name not in RedisOptions.__annotations__ and name != "prefix":
            allowed = ", ".join(RedisOptions.__annotations__)
            raise TypeError(f"there is no argument {name!r}; those for connections are {allowed}")
    parts = parse(url, _EXAMPLE)
    kind, _, mode = parts.scheme.partition("+")
    is_socket = parts.scheme == "unix"
    if not is_socket and (kind not in _PLAIN + _ENCRYPTED or mode not in _MODES):
        raise ValueError(f"url must be like {_EXAMPLE}")
    named = {} if is_socket else _read_path(parts, mode)
    encrypted = kind in _ENCRYPTED
    options = _read_options(parts, mode, encrypted, {**given, **named})
    service = options.pop("service", "")
    if is_socket:
        if len(parts.path) < 2 or any(host.name for host in parts.hosts):
            raise ValueError("url must be like unix:///path?db=0")
        text = f"unix://{parts.path}?db={options['db']}"
        return Target(text, "", False, parts.path, (), "", options)
    if len(parts.hosts) > 1 and not mode:
        raise ValueError("url must have one host, or begin like redis+sentinel: or redis+cluster:")
    port = _MODES[mode].port
    hosts = parts.hosts or (Host("", None),)
    nodes = tuple(Node(host.name or "localhost", host.port or port) for host in hosts)
    shown = ",".join(Host(*node).shown(port) for node in nodes)
    path = f"{service}/{options['db']}" if service else options["db"]
    text = f"{parts.scheme}://{shown}/{path}"
    return Target(text, mode, encrypted, "", nodes, service, options)


def _read_path(parts: UrlParts, mode: str) -> dict[str, Any]:
    """Return the options that are in the path."""
    found = _MODES[mode].path.fullmatch(parts.path)
    if found is None:
        raise ValueError(f"url: the path must be {_MODES[mode].rule}")
    named: dict[str, Any] = {name: value for name, value in found.groupdict().items() if value}
    if "db" in named:
        named["db"] = int(named["db"])
    return named


def _read_options(
    parts: UrlParts, mode: str, encrypted: bool, given: Mapping[str, Any]
) -> dict[str, Any]:
    readers: dict[str, Reader] = {"client_name": str, "prefix": str}
    if mode != "cluster":
        readers["db"] = whole_number
    if mode == "sentinel":
        readers |= {"sentinel_username": str, "sentinel_password": str}
    if encrypted:
        readers |= TLS_OPTIONS
    login = {"username": parts.user, "password": parts.password}
    for name, value in login.items():
        if value is not None and given.get(name) is not None:
            raise ValueError(f"{name} is given twice, in the URL and as an argument")
    options = parts.read_options(readers, {**login, **given})
    unknown = {"db", "sentinel_username", "sentinel_password", *TLS_OPTIONS} - {*readers}
    if unknown := unknown & {*options}:
        raise ValueError(f"{', '.join(sorted(unknown))}: not with a URL of {parts.scheme}")
    options.setdefault("db", 0)
    return options
