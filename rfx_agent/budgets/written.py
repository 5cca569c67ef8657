"""What every store in a database does, whatever the database: ask the one writer of the process, and survive a fork."""

from __future__ import annotations

import asyncio
import os
import uuid
import weakref
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from rfx_agent._closing import AsyncClosing
from rfx_agent.budgets.accounting import micros, seconds_of, writable
from rfx_agent.budgets.backend import Backend
from rfx_agent.budgets.limits import Account, Claim, Grant, Reservation
from rfx_agent.budgets.operations import Keep, Operation, Release, Reserve, Settle
from rfx_agent.budgets.writer import Writer
from rfx_agent.checks import MOST_SECONDS, number
from rfx_agent.errors import ConfigError, StoreError
from rfx_agent.ports import BudgetStore

__all__ = ["WEEK", "Pruned", "WrittenStore"]

WEEK = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Pruned:
    """What ``prune`` deleted.

    Attributes:
        accounts: how many accounts.
        reservations: how many ended reservations and records.
    """

    accounts: int
    reservations: int


class WrittenStore(AsyncClosing, BudgetStore):
    """A store that one thread writes for the whole process. Safe across ``fork``: the child starts anew.

    Args:
        kind: what messages call it, such as ``"sql store"``.
        clock, keep, timeout: see ``SQLStore``.

    Raises:
        ConfigError: a parameter that cannot work.
    """

    def __init__(self, kind: str, *, clock: Callable[[], float] | None, keep: float, timeout: float) -> None:
        if clock is not None and not callable(clock):
            raise ConfigError(f"{kind}: clock is {clock!r}; give a function such as time.time, or None")
        self._kind = kind
        self._clock = clock
        self._keep = micros(number(f"{kind}: keep", keep, above=0, unit="seconds", most=MOST_SECONDS))
        self._timeout = float(number(f"{kind}: timeout", timeout, above=0, unit="seconds", most=MOST_SECONDS))
        self._closed = False
        self._start()
        _stores.add(self)

    @abstractmethod
    def _backend(self) -> Backend:
        """The database, which nobody else has."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._database.shown!r})"

    def reserve(self, id: str, claims: Sequence[Claim], *, seconds: float) -> Grant:  # noqa: A002  # the port's word
        """See ``ports.BudgetStore.reserve``."""
        grant: Grant = self._writer.ask(_reserve(id, claims, seconds))
        return grant

    async def areserve(self, id: str, claims: Sequence[Claim], *, seconds: float) -> Grant:  # noqa: A002  # as above
        """Do what ``reserve`` does; cancelled, it gives back what it is granted."""
        operation = _reserve(id, claims, seconds)
        future = self._writer.submit(operation)
        try:
            grant: Grant = await self._answer(future)
        except (asyncio.CancelledError, StoreError):
            self._writer.abandon(operation, future)
            raise
        return grant

    def settle(self, reservation: Reservation, actual: Mapping[str, int], record: str | None = None) -> None:
        """See ``ports.BudgetStore.settle``."""
        self._writer.ask(_settle(reservation, actual, record))

    async def asettle(self, reservation: Reservation, actual: Mapping[str, int], record: str | None = None) -> None:
        """Do what ``settle`` does; it is done even when the caller is cancelled."""
        await self._aask(_settle(reservation, actual, record))

    def release(self, reservation: Reservation) -> None:
        """See ``ports.BudgetStore.release``."""
        self._writer.ask(Release(reservation))

    async def arelease(self, reservation: Reservation) -> None:
        """Do what ``release`` does; it is done even when the caller is cancelled."""
        await self._aask(Release(reservation))

    def keep(self, id: str, record: str) -> str:  # noqa: A002  # as above
        """See ``ports.BudgetStore.keep``."""
        kept: str = self._writer.ask(_keep(id, record))
        return kept

    async def akeep(self, id: str, record: str) -> str:  # noqa: A002  # as above
        """Do what ``keep`` does; it is done even when the caller is cancelled."""
        kept: str = await self._aask(_keep(id, record))
        return kept

    def deposit(self, claims: Sequence[Claim]) -> None:
        """See ``ports.BudgetStore.deposit``. Gathered in memory, and written with the next reservation or soon."""
        claims = tuple(x for x in claims if x.kind == "ratio")
        writable("", claims)
        if claims:
            self._writer.deposit(claims)

    def accounts(self, prefix: str = "") -> list[Account]:
        """See ``ports.BudgetStore.accounts``. Reads only: nothing is made and nothing expires by looking."""
        if self._closed:
            raise StoreError(f"{self._database.shown}: this store is closed; make another")
        try:
            return self._database.seen(prefix)
        except Exception as error:  # noqa: BLE001  # the port raises StoreError only
            failure = self._database.failure_of(error)
            raise StoreError(str(failure)) from failure.__cause__

    def prune(self, older: float = WEEK, *, shrink: bool = False) -> Pruned:
        """Delete ended reservations and records, and accounts in which nothing counts any more.

        A run whose record is gone pays again when it is resumed; a deleted account begins anew, its totals with it.
        Others may use the store meanwhile.

        Args:
            older: seconds since it ended, or since anything in the account last counted. What ended is told by when it
                would be forgotten, so ``keep`` must be that of the stores that wrote it.
            shrink: whether the disk gets back what is not used any more. Other processes wait until PostgreSQL or
                SQLite has done it, and an SQLite file needs as much room again; Redis rewrites its log beside its work.

        Raises:
            ConfigError: ``older`` is not a number of seconds.
            StoreError: the database could not be reached.
        """
        span = micros(number(f"{self._kind}: older", older, least=0, unit="seconds", most=MOST_SECONDS))
        database = self._backend()
        try:
            return Pruned(*database.prune(span, shrink=shrink))
        except Exception as error:  # noqa: BLE001  # the port raises StoreError only
            failure = database.failure_of(error)
            raise StoreError(str(failure)) from failure.__cause__
        finally:
            database.disconnect()

    def close(self) -> None:
        """Write what waits and let go of the connection; idempotent. Calls after it raise ``StoreError``."""
        self._closed = True
        self._finalizer.detach()
        self._writer.close(self._timeout)

    async def aclose(self) -> None:
        """Do what ``close`` does, without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def _start(self) -> None:
        self._database = self._backend()
        self._writer = Writer(self._database, timeout=self._timeout)
        self._finalizer = weakref.finalize(self, self._writer.close, 2.0)
        if self._closed:
            self._writer.close(0)

    def _reborn(self) -> None:
        """In a forked child: the parent's thread is not there. A connection that is left is not to be touched."""
        self._finalizer.detach()
        _inherited.append(self._writer)
        self._start()

    async def _aask(self, operation: Operation) -> Any:
        return await self._answer(self._writer.submit(operation))

    async def _answer(self, future: Future[Any]) -> Any:
        """What the writer answers; it goes on when the caller is cancelled."""
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), self._writer.longest)
        except TimeoutError:
            raise self._writer.late() from None


def _reserve(id: str, claims: Sequence[Claim], seconds: float) -> Operation:  # noqa: A002  # the port's word
    claims = tuple(claims)
    writable(id, claims)
    return Reserve(Reservation(id, uuid.uuid4().hex, claims), seconds_of(seconds))


def _settle(reservation: Reservation, actual: Mapping[str, int], record: str | None) -> Operation:
    writable(reservation.id, reservation.claims, actual)
    return Settle(reservation, dict(actual), record)


def _keep(id: str, record: str) -> Operation:  # noqa: A002  # as above
    writable(id)
    return Keep(id, record)


_stores: weakref.WeakSet[WrittenStore] = weakref.WeakSet()
_paused: list[Writer] = []
_inherited: list[Writer] = []  # never let go of: closing a connection in the child would close it for the parent


def _before_fork() -> None:
    _paused[:] = [x._writer for x in list(_stores) if x._writer.pause()]


def _after_fork() -> None:
    while _paused:
        _paused.pop().resume()


def _after_fork_in_child() -> None:
    _paused.clear()
    for store in list(_stores):
        store._reborn()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
