"""Jobs in Redis or Valkey."""

from __future__ import annotations

from .broker import RedisBroker
from .results import RedisResults

__all__ = ["RedisBroker", "RedisResults"]
