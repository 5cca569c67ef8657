"""A store in a database: an SQLite file for the processes of one machine, PostgreSQL for several machines."""

from __future__ import annotations

import time
from collections.abc import Callable

from rfx_agent.budgets.backend import Backend
from rfx_agent.budgets.sql.url import place_of
from rfx_agent.budgets.written import WEEK, WrittenStore

__all__ = ["SQLStore"]


class SQLStore(WrittenStore):
    """Shared budgets that hold across processes, and records that survive them.

    One thread writes for the whole process, everything that waits in one transaction: exact, and durable when it is
    answered. Tables whose names begin with ``rfx_`` are made on first use. Safe across ``fork``: the child starts
    anew. Needs the extra ``production``, for PostgreSQL ``postgres``.

    Args:
        url: ``sqlite:///relative.db``, ``sqlite:////absolute/path.db`` or ``postgresql://user:password@host/database``.
            An SQLite file must lie on a disk of the machine, not on a network share.
        clock: seconds since the epoch. By default the machine's for a file, and for PostgreSQL the database's: the
            clocks of machines differ.
        keep: seconds that ended reservations and records are remembered; a run that is resumed later pays again.
        timeout: seconds that a call waits for other processes' locks before it is a ``StoreError``.

    Raises:
        ConfigError: a parameter that cannot work. Whether the database can be reached is found out at first use.

    Example:
        >>> from rfx_agent.budgets import SQLStore
        >>> SQLStore("sqlite:///budgets.db", timeout=10.0)
        SQLStore('sqlite:///budgets.db')
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], float] | None = None,
        keep: float = WEEK,
        timeout: float = 30.0,
    ) -> None:
        self._place = place_of(url)
        clock = clock if clock is not None or not self._place.sqlite else time.time
        super().__init__("sql store", clock=clock, keep=keep, timeout=timeout)

    def _backend(self) -> Backend:
        from rfx_agent.budgets.sql.database import Database

        return Database(self._place, clock=self._clock, keep=self._keep, timeout=self._timeout)
