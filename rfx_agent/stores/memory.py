"""A store for the threads and event loops of one process."""

from __future__ import annotations

import heapq
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence

from rfx_agent._errors import ConfigError
from rfx_agent.limits import Account, Claim, Grant, Hold
from rfx_agent.stores._book import OPEN, Book, micros
from rfx_agent.stores._operations import seconds_of, writable

__all__ = ["MemoryStore"]

_WEEK = 7 * 86_400.0


class MemoryStore:
    """Shared budgets within one process; they end with it. Thread safe, and never waits for more than a lock.

    Nothing survives the process, so a run that is killed pays again for what it had paid: ``SQLStore`` is for that.

    Args:
        clock: seconds since any fixed moment, as ``time.time``.
        keep: seconds that ended reservations and records are remembered.
        most: ended reservations and records that are remembered; beyond it the oldest are forgotten.

    Raises:
        ConfigError: a parameter that cannot work.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time, keep: float = _WEEK, most: int = 10_000) -> None:
        if not callable(clock):
            raise ConfigError(f"memory store: clock is {clock!r}; give a function such as time.time")
        if not isinstance(keep, (int, float)) or isinstance(keep, bool) or not keep > 0:
            raise ConfigError(f"memory store: keep is {keep!r}; give seconds above 0")
        if not isinstance(most, int) or isinstance(most, bool) or most < 1:
            raise ConfigError(f"memory store: most is {most!r}; give a whole number of at least 1")
        self._clock = clock
        self._most = most
        self._book = Book(keep_for=micros(keep))
        self._lock = threading.Lock()
        self._open: list[tuple[int, str]] = []  # a heap of when each hold's time is up
        self._ended: dict[str, int] = {}  # when each is forgotten, in that order

    def reserve(self, id: str, claims: Sequence[Claim], *, seconds: float) -> Grant:  # noqa: A002  # the port's word
        """See ``ports.BudgetStore.reserve``."""
        claims, span = tuple(claims), seconds_of(seconds)
        writable(id, claims)
        with self._lock:
            now = self._now()
            grant = self._book.reserve(id, uuid.uuid4().hex, claims, span, now)
            self._tidy(now)
            if isinstance(grant, Hold):
                self._watch(now + span, id)
            return grant

    async def areserve(self, id: str, claims: Sequence[Claim], *, seconds: float) -> Grant:  # noqa: A002  # as above
        """The same."""
        return self.reserve(id, claims, seconds=seconds)

    def settle(self, hold: Hold, actual: Mapping[str, int], record: str | None = None) -> None:
        """See ``ports.BudgetStore.settle``."""
        writable(hold.id, hold.claims, actual)
        with self._lock:
            now = self._now()
            self._book.settle(hold, actual, record, now)
            self._tidy(now)

    async def asettle(self, hold: Hold, actual: Mapping[str, int], record: str | None = None) -> None:
        """The same."""
        self.settle(hold, actual, record)

    def release(self, hold: Hold) -> None:
        """See ``ports.BudgetStore.release``."""
        with self._lock:
            now = self._now()
            self._book.release(hold, now)
            self._tidy(now)

    async def arelease(self, hold: Hold) -> None:
        """The same."""
        self.release(hold)

    def keep(self, id: str, record: str) -> str:  # noqa: A002  # as above
        """See ``ports.BudgetStore.keep``."""
        writable(id)
        with self._lock:
            now = self._now()
            kept = self._book.keep(id, record, now)
            self._tidy(now)
            return kept

    async def akeep(self, id: str, record: str) -> str:  # noqa: A002  # as above
        """The same."""
        return self.keep(id, record)

    def deposit(self, claims: Sequence[Claim]) -> None:
        """See ``ports.BudgetStore.deposit``."""
        writable("", tuple(claims))
        with self._lock:
            now = self._now()
            for claim in claims:
                if claim.kind == "ratio":
                    self._book.deposit(claim, now)

    def accounts(self, prefix: str = "") -> list[Account]:
        """See ``ports.BudgetStore.accounts``."""
        with self._lock:
            now = self._now()
            return [row.seen(now) for name, row in sorted(self._book.accounts.items()) if name.startswith(prefix)]

    def _now(self) -> int:
        """The time, with every hold written off whose time is up."""
        now = micros(self._clock())
        while self._open and self._open[0][0] <= now:
            _, id = heapq.heappop(self._open)  # noqa: A001  # as above
            self._book.expire(id, now)
        self._tidy(now)
        return now

    def _watch(self, due: int, id: str) -> None:  # noqa: A002  # as above
        """Look at a hold again when its time is up. Those that ended before are thrown out when they are the most."""
        heapq.heappush(self._open, (due, id))
        holds = self._book.holds
        if len(self._open) > 2 * (len(holds) - len(self._ended)) + 64:
            self._open = [(x.due, x.id) for x in holds.values() if x.state == OPEN]
            heapq.heapify(self._open)

    def _tidy(self, now: int) -> None:
        """Note what has ended, and forget what has ended long ago."""
        book = self._book
        for id in book.written:  # noqa: A001  # as above
            self._ended.pop(id, None)
            if book.holds[id].state != OPEN:
                self._ended[id] = book.holds[id].due
        book.written.clear()
        book.touched.clear()
        while self._ended:
            id, due = next(iter(self._ended.items()))  # noqa: A001  # as above
            if due > now and len(self._ended) <= self._most:
                break
            del self._ended[id], book.holds[id]
