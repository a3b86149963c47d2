"""Errors of imports that need an extra."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def needing(extra: str) -> Generator[None]:
    """Explain an import that fails because an extra is not installed."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{error}: this needs an extra, pip install 'anyio-background[{extra}]'"
        ) from error
