"""Jobs in Redis or Valkey."""

from __future__ import annotations

from .broker import RedisBroker
from .results import RedisResults
from .url import RedisOptions

__all__ = ["RedisBroker", "RedisOptions", "RedisResults"]


def __dir__() -> list[str]:
    return __all__
