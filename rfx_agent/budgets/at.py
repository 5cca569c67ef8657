"""The store that a URL is for."""

from __future__ import annotations

from typing import Any

from rfx_agent.budgets.written import WrittenStore
from rfx_agent.errors import ConfigError

__all__ = ["store_at"]

_REDIS = ("redis://", "rediss://", "unix://")


def store_at(url: str, **options: Any) -> WrittenStore:
    """A ``RedisStore`` for the URL of a Redis, else an ``SQLStore``.

    Args:
        url: ``sqlite:///...``, ``postgresql://...``, ``redis://...``, ``rediss://...`` or ``unix://...``.
        options: ``clock``, ``keep`` and ``timeout`` of either store, ``prefix`` of a ``RedisStore``.

    Raises:
        ConfigError: a parameter that cannot work.

    Example:
        >>> from rfx_agent.budgets import store_at
        >>> store_at("sqlite:///budgets.db")
        SQLStore('sqlite:///budgets.db')
    """
    if isinstance(url, str) and url.startswith(_REDIS):
        from rfx_agent.budgets.redis.store import RedisStore

        return RedisStore(url, **options)
    from rfx_agent.budgets.sql.store import SQLStore

    if "prefix" in options:
        raise ConfigError("sql store: prefix is for a Redis; leave it out")
    return SQLStore(url, **options)
