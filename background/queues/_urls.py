"""The creation of brokers from URLs."""

from __future__ import annotations

from ._extras import needing
from ._url_parts import UrlParts, choice, decimal, parse
from .abc import Broker

_REDIS = ("redis", "rediss", "valkey", "valkeys", "unix")  # also with +sentinel and +cluster
_NATS = ("nats", "tls")


def make_broker(url: str, prefix: str | None = None) -> Broker:
    """Return the broker that a URL names.

    Args:
        url: The URL.
        prefix: The prefix of all names on the server.

    Raises:
        ValueError: The URL or the prefix is not valid.
        ImportError: An extra is not installed.
    """
    parts = parse(url, "'sqlite:///jobs.db'")
    if parts.scheme in ("memory", "sqlite"):
        if prefix is not None:
            raise ValueError(f"prefix is for brokers on a server, not for {parts.scheme}")
        return _memory(parts) if parts.scheme == "memory" else _sqlite(parts)
    if parts.scheme.partition("+")[0] in _REDIS:
        with needing("redis"):
            from .redis import RedisBroker
        return RedisBroker(url, prefix=prefix)
    if parts.scheme in _NATS:
        with needing("nats"):
            from .nats import NatsBroker
        return NatsBroker(url, prefix=prefix)
    schemes = ", ".join(("memory", "sqlite", *_REDIS, *_NATS))
    raise ValueError(f"url must begin with one of these schemes: {schemes}")


def _memory(parts: UrlParts) -> Broker:
    from .memory import MemoryBroker

    if parts.hosts or parts.path:
        raise ValueError("url must be memory://")
    parts.read_options({}, {})
    return MemoryBroker()


def _sqlite(parts: UrlParts) -> Broker:
    from .sqlite import SQLiteBroker

    if parts.hosts or not parts.path.startswith("/") or len(parts.path) < 2:
        raise ValueError(
            "url must be sqlite:///name for a path relative to the working directory, or "
            "sqlite:////name for an absolute path"
        )
    readers = {"synchronous": choice("normal", "full"), "timeout": decimal}
    options = parts.read_options(readers, {})
    if "synchronous" in options:
        options["synchronous"] = options["synchronous"].upper()
    return SQLiteBroker(parts.path[1:], **options)
