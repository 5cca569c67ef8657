"""A store in a Redis, for several machines."""

from __future__ import annotations

from collections.abc import Callable

from rfx_agent.budgets.backend import Backend
from rfx_agent.budgets.redis.url import place_of
from rfx_agent.budgets.written import WEEK, WrittenStore
from rfx_agent.checks import shown
from rfx_agent.errors import ConfigError

__all__ = ["RedisStore"]


class RedisStore(WrittenStore):
    """Shared budgets and records in a Redis: exact to the unit, as ``SQLStore`` is, and as durable as that Redis.

    The server itself does the accounting: one call of a script a request, and one round trip for all that wait in a
    process. Safe across ``fork``. Redis 5 or later, or a Valkey. Needs the extra ``redis``.

    A database has on disk what it has answered. A Redis only has with ``appendonly yes`` and ``appendfsync always``.
    With ``everysec`` a crash of the machine loses what was answered in the last second or two, and a failover loses
    what the replica had not yet: what was spent then is forgotten, may be spent again, and runs pay again for what
    they had paid. Without ``appendonly`` that goes for all since the last snapshot; the log warns of it. A server that
    deletes keys when its memory is full (``maxmemory-policy allkeys-...``) is refused. Under the other policies
    nothing is deleted: the keys have no time to live, and a full server refuses requests with a ``StoreError``. Keys
    that vanish while a store has them in use are one ``StoreError`` that says so.

    Amounts are exact up to 2**62 each, as in every store. All keys of one prefix have one hash tag: in a Redis
    Cluster they are on one node, whose URL it must be.

    Args:
        url: ``redis://user:password@host:6379/0``, ``rediss://...`` for TLS, or ``unix:///path/of/redis.sock``; with
            redis-py's parameters, such as ``?ssl_ca_certs=/etc/ca.pem``.
        clock: seconds since the epoch. By default the server's: the clocks of machines differ.
        keep: seconds that ended reservations and records are remembered; a run that is resumed later pays again.
        timeout: seconds that a connection or an answer is waited for before it is a ``StoreError``.
        prefix: what the names of the keys begin with. Budgets of different prefixes know nothing of each other.

    Raises:
        ConfigError: a parameter that cannot work. Whether the server can be reached is found out at first use.

    Example:
        >>> from rfx_agent.budgets import RedisStore
        >>> RedisStore("redis://:secret@localhost/2", timeout=10.0)
        RedisStore('redis://localhost:6379/2')
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], float] | None = None,
        keep: float = WEEK,
        timeout: float = 30.0,
        prefix: str = "rfx:",
    ) -> None:
        if not isinstance(prefix, str) or not prefix or not prefix.isprintable() or set(prefix) & set("{}"):
            raise ConfigError(f"redis store: prefix is {shown(prefix)}; give a text without braces, such as 'rfx:'")
        self._place = place_of(url)
        self._prefix = prefix
        super().__init__("redis store", clock=clock, keep=keep, timeout=timeout)

    def _backend(self) -> Backend:
        from rfx_agent.budgets.redis.database import Database

        return Database(self._place, prefix=self._prefix, clock=self._clock, keep=self._keep, timeout=self._timeout)
