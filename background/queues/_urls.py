"""The creation of brokers from URLs."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from urllib.parse import parse_qsl, unquote, urlsplit

from .abc import Broker


@contextmanager
def needing(extra: str) -> Generator[None]:
    """Explain an import that fails because an extra is not installed."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{error}: these URLs need an extra, pip install 'anyio-background[{extra}]'"
        ) from error


def make_broker(url: str) -> Broker:
    """Return the broker that a URL names.

    Raises:
        ValueError: The URL is not valid.
        ImportError: An extra is not installed.
    """
    if not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"url must be a string such as 'sqlite:///jobs.db', not {url!r}")
    scheme = url.partition(":")[0].lower()
    if scheme == "memory":
        from .memory import MemoryBroker

        return MemoryBroker()
    if scheme == "sqlite":
        return _sqlite(url)
    if scheme in ("redis", "rediss", "unix"):
        with needing("redis"):
            from .redis import RedisBroker
        return RedisBroker(url)
    if scheme in ("nats", "tls"):
        with needing("nats"):
            from .nats import NatsBroker
        return NatsBroker(url)
    raise ValueError(
        f"url must begin with memory:, sqlite:, redis:, rediss:, unix:, nats: or tls:, "
        f"not {scheme[:20]!r}"
    )


def _sqlite(url: str) -> Broker:
    from .sqlite import SQLiteBroker

    parts = urlsplit(url)
    if parts.netloc or not parts.path.startswith("/") or len(parts.path) < 2:
        raise ValueError(
            "url must be sqlite:///name for a path relative to the working directory, or "
            "sqlite:////name for an absolute path"
        )
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    synchronous = options.pop("synchronous", "NORMAL").upper()
    if options:
        raise ValueError(f"url: the option of sqlite is synchronous, not {', '.join(options)}")
    return SQLiteBroker(unquote(parts.path[1:]), synchronous=synchronous)  # type: ignore[arg-type]
