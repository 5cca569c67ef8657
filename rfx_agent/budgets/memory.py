"""A store for the threads and event loops of one process."""

from __future__ import annotations

import heapq
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from rfx_agent._forks import Lock
from rfx_agent.budgets.accounting import OPEN, Book, micros, seconds_of, writable
from rfx_agent.budgets.limits import Account, Claim, Grant, Reservation
from rfx_agent.checks import MOST_SECONDS, number, shown, whole
from rfx_agent.errors import ConfigError
from rfx_agent.ports import BudgetStore

__all__ = ["MemoryStore"]

_WEEK = 7 * 86_400.0
_AT_ONCE = 8  # accounts that one call looks at: what it takes does not depend on how many there are


class MemoryStore(BudgetStore):
    """Shared budgets within one process; they end with it. Thread safe, and never waits for more than a lock.

    Nothing survives the process: a run that is killed pays again for what it had paid. ``SQLStore`` keeps that.

    Args:
        clock: seconds since any fixed moment, as ``time.time``.
        keep: seconds that ended reservations and records are remembered, and an account that was not asked for and in
            which nothing counts any more. A later claim opens it anew.
        most: ended reservations and records that are remembered; beyond it the oldest are forgotten.

    Raises:
        ConfigError: a parameter that cannot work.

    Example:
        >>> store = MemoryStore()
        >>> store.keep("answer", "first"), store.keep("answer", "second")
        ('first', 'first')
    """

    def __init__(self, *, clock: Callable[[], float] = time.time, keep: float = _WEEK, most: int = 10_000) -> None:
        if not callable(clock):
            raise ConfigError(f"memory store: clock is {shown(clock)}; give a function such as time.time")
        self._clock = clock
        self._most = whole("memory store: most", most, least=1)
        self._keep = micros(number("memory store: keep", keep, above=0, unit="seconds", most=MOST_SECONDS))
        self._book = Book(keep_for=self._keep)
        self._lock = Lock()
        self._open: list[tuple[int, str]] = []  # a heap of when each reservation expires
        # Linked, because a dict from whose front much was deleted takes ever longer to find its first item.
        self._ended: OrderedDict[str, int] = OrderedDict()  # when each is forgotten, in that order
        self._asked: OrderedDict[str, int] = OrderedDict()  # when each account was last asked for, in that order

    def __repr__(self) -> str:
        return "MemoryStore()"

    def reserve(self, id: str, claims: Sequence[Claim], *, seconds: float) -> Grant:  # noqa: A002  # the port's word
        """See ``ports.BudgetStore.reserve``."""
        claims, span = tuple(claims), seconds_of(seconds)
        writable(id, claims)
        with self._lock:
            now = self._now()
            grant = self._book.reserve(id, uuid.uuid4().hex, claims, span, now)
            self._tidy(now)
            if isinstance(grant, Reservation):
                self._watch(now + span, id)
            return grant

    async def areserve(self, id: str, claims: Sequence[Claim], *, seconds: float) -> Grant:  # noqa: A002  # as above
        """Do what ``reserve`` does, without blocking the event loop."""
        return self.reserve(id, claims, seconds=seconds)

    def settle(self, reservation: Reservation, actual: Mapping[str, int], record: str | None = None) -> None:
        """See ``ports.BudgetStore.settle``."""
        writable(reservation.id, reservation.claims, actual)
        with self._lock:
            now = self._now()
            self._book.settle(reservation, actual, record, now)
            self._tidy(now)

    async def asettle(self, reservation: Reservation, actual: Mapping[str, int], record: str | None = None) -> None:
        """Do what ``settle`` does, without blocking the event loop."""
        self.settle(reservation, actual, record)

    def release(self, reservation: Reservation) -> None:
        """See ``ports.BudgetStore.release``."""
        with self._lock:
            now = self._now()
            self._book.release(reservation, now)
            self._tidy(now)

    async def arelease(self, reservation: Reservation) -> None:
        """Do what ``release`` does, without blocking the event loop."""
        self.release(reservation)

    def keep(self, id: str, record: str) -> str:  # noqa: A002  # as above
        """See ``ports.BudgetStore.keep``."""
        writable(id)
        with self._lock:
            now = self._now()
            kept = self._book.keep(id, record, now)
            self._tidy(now)
            return kept

    async def akeep(self, id: str, record: str) -> str:  # noqa: A002  # as above
        """Do what ``keep`` does, without blocking the event loop."""
        return self.keep(id, record)

    def deposit(self, claims: Sequence[Claim]) -> None:
        """See ``ports.BudgetStore.deposit``."""
        writable("", tuple(claims))
        with self._lock:
            now = self._now()
            for claim in claims:
                if claim.kind == "ratio":
                    self._book.deposit(claim, now)
            self._tidy(now)

    def accounts(self, prefix: str = "") -> list[Account]:
        """See ``ports.BudgetStore.accounts``."""
        with self._lock:
            now = self._now()
            return [row.seen(now) for name, row in sorted(self._book.accounts.items()) if name.startswith(prefix)]

    def _now(self) -> int:
        """The time. Every reservation whose time is over has expired by then."""
        now = micros(self._clock())
        while self._open and self._open[0][0] <= now:
            _, id = heapq.heappop(self._open)  # noqa: A001  # as above
            self._book.expire(id, now)
        self._tidy(now)
        return now

    def _watch(self, due: int, id: str) -> None:  # noqa: A002  # as above
        """Look at a reservation again when its time is over. Drop those that ended before, where they are the most."""
        heapq.heappush(self._open, (due, id))
        kept = self._book.reservations
        if len(self._open) > 2 * (len(kept) - len(self._ended)) + 64:
            self._open = [(x.due, x.id) for x in kept.values() if x.state == OPEN]
            heapq.heapify(self._open)

    def _tidy(self, now: int) -> None:
        """Note what has ended, and forget what has ended long ago."""
        book = self._book
        for id in book.written:  # noqa: A001  # as above
            self._ended.pop(id, None)
            if book.reservations[id].state != OPEN:
                self._ended[id] = book.reservations[id].due
        book.written.clear()
        while self._ended:
            id, due = next(iter(self._ended.items()))  # noqa: A001  # as above
            if due > now and len(self._ended) <= self._most:
                break
            del self._ended[id], book.reservations[id]
        for name in book.touched:
            self._asked[name] = now
            self._asked.move_to_end(name)
        book.touched.clear()
        for _ in range(_AT_ONCE):
            name = next(iter(self._asked), "")
            if not name or self._asked[name] > now - self._keep:
                break
            if book.accounts[name].idle(now):
                del self._asked[name], book.accounts[name]
            else:  # its window is longer, or a reservation is open
                self._asked[name] = now
                self._asked.move_to_end(name)
