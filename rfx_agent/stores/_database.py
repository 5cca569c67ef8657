"""One process's connection to the tables, and one transaction over many requests. Needs SQLAlchemy."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rfx_agent._errors import StoreError
from rfx_agent.limits import Account, Claim, Refused
from rfx_agent.stores._book import AccountRow, Book, NotLoaded, micros
from rfx_agent.stores._engine import engine_for, prepare
from rfx_agent.stores._gate import Taken
from rfx_agent.stores._links import SWEPT, Link, PostgresLink, SQLiteLink
from rfx_agent.stores._operations import Expire, Operation
from rfx_agent.stores._tables import accounts_of
from rfx_agent.stores._url import Place

__all__ = ["Credit", "Database"]

_ROUNDS = 10  # beginnings of one transaction that finds more to load


@dataclass(slots=True)
class Credit:
    """Normal traffic that was not written yet.

    Attributes:
        claim: the account, and how much.
        since: ``Database.tick`` when the first of it was seen; all of it expires as early as that.
    """

    claim: Claim
    since: float


@dataclass(slots=True)
class _More:
    """What a transaction needs besides what its operations say; found out while it runs."""

    sweep: bool
    patient: bool
    names: set[str] = field(default_factory=set)
    late: list[Expire] = field(default_factory=list)
    missing: list[Claim] = field(default_factory=list)


class Database:
    """Everything that is done to the tables, by one thread at a time.

    Args:
        place: where they are.
        clock: seconds since the epoch; None for the database's own, which all machines share.
        keep: microseconds that what has ended is remembered.
        timeout: seconds that a transaction waits for a lock, or for a connection.
    """

    def __init__(self, place: Place, *, clock: Callable[[], float] | None, keep: int, timeout: float) -> None:
        self.place = place
        self.tick = clock or time.monotonic
        self._clock = clock
        self._keep = keep
        self._engine = engine_for(place, timeout)
        self._link: Link | None = None
        self._swept = self._forgot = float("-inf")

    def run(
        self,
        operations: Sequence[Operation],
        credits: Sequence[Credit],  # noqa: A002  # the word of the ratio
        *,
        counting: bool = True,
        patient: bool = True,
    ) -> list[Any]:
        """Do ``operations`` in one transaction, and say what they answer.

        Raises:
            Taken: another process is at it and the caller is not ``patient``; nothing was done.
            Unknown: nobody knows whether it was committed.
            Exception: the driver's, or SQLAlchemy's; nothing was done.
        """
        link = self._linked()
        more = _More(sweep=time.monotonic() - self._swept >= 1, patient=patient)
        for _ in range(_ROUNDS):
            with _rolled_back(link):
                answers = self._attempt(link, operations, credits, more, counting)
            if answers is not None:
                return answers
            if more.missing:  # in a transaction of its own, or their rows would be locked out of order
                with _rolled_back(link):
                    link.open([AccountRow.of(x) for x in more.missing], patient=patient)
        raise StoreError(f"{self.place.shown}: accounts vanish while they are looked for; who deletes them?")

    def seen(self, prefix: str) -> list[Account]:
        """All accounts whose name begins with ``prefix``, as they are once every hold is written off whose time is up.

        Reads only, on a connection of its own: from any thread, and where no table was ever made.
        """
        if self.place.missing:
            return []
        link = self._link_to()
        try:
            found, late, now = link.everything()
        finally:
            link.close()
        book = Book(keep_for=self._keep)
        book.accounts = {x.name: x for x in found}
        book.holds = {x.id: x for x in late}
        for hold in late:
            book.expire(hold.id, now)
        return [x.seen(now) for name, x in sorted(book.accounts.items()) if name.startswith(prefix)]

    def forget(self) -> None:
        """Delete what ended long ago; does something once a minute at most."""
        if time.monotonic() - self._forgot < 60:
            return
        link = self._linked()
        with contextlib.suppress(Taken), _rolled_back(link):
            if link.forget():
                self._forgot = time.monotonic()

    def disconnect(self) -> None:
        """Let go of the connection; the next transaction makes a new one, and looks at the tables anew."""
        link, self._link = self._link, None
        if link is not None:
            with contextlib.suppress(Exception):  # it was broken already
                link.close()

    def inherited(self) -> None:
        """In a forked child: let go of what can be, without touching the parent's connection."""
        if self._link is not None:
            self._link.inherited()

    def _linked(self) -> Link:
        if self._link is None:
            prepare(self._engine, self.place, "budgets")
            self._link = self._link_to()
        return self._link

    def _link_to(self) -> Link:
        return (SQLiteLink if self.place.sqlite else PostgresLink)(self._engine, self._clock)

    def _attempt(
        self,
        link: Link,
        operations: Sequence[Operation],
        credits: Sequence[Credit],  # noqa: A002  # the word of the ratio
        more: _More,
        counting: bool,
    ) -> list[Any] | None:
        """The answers, with everything written; or None, with ``more`` to be loaded at the next try."""
        todo = [*more.late, *operations]
        claims = {c.account: c for x in todo for c in x.claims} | {x.claim.account: x.claim for x in credits}
        names = {*claims, *more.names, *(name for x in todo for name in x.names)}
        loaded = link.load(names, {id for x in todo for id in x.ids}, sweep=more.sweep, patient=more.patient)  # noqa: A001
        if loaded.late is not None and self._sweep(loaded.late, more):
            return None
        book = Book(keep_for=self._keep, complete=False, counting=counting)
        book.accounts, book.holds, book.absent = loaded.accounts, loaded.holds, names - set(loaded.accounts)
        more.missing = [claims[name] for name in sorted(book.absent & set(claims))]
        if more.missing:
            return None
        known, now = set(loaded.holds), loaded.now
        for x in credits:  # before the reservations, which may need them
            book.deposit(x.claim, now - micros(max(0.0, self.tick() - x.since)))
        try:
            answers = [x.on(book, now) for x in todo][len(more.late) :]
        except NotLoaded:  # a hold that is in the way, of other accounts than are asked for now
            more.names.update(name for x in loaded.holds.values() for name, _, _ in x.claims)
            return None
        if not more.late and any(isinstance(x, Refused) for x in answers) and self._sweep(link.late(now), more):
            return None
        # In order: two transactions that insert the same ids then wait, but not for each other.
        written = [book.holds[x] for x in sorted(book.written)]
        link.save(
            [book.accounts[name] for name in sorted(book.touched)],
            [x for x in written if x.id not in known],
            [x for x in written if x.id in known],
        )
        return answers

    def _sweep(self, rows: Sequence[tuple[str, str]], more: _More) -> bool:
        """Take note of holds whose time is up; whether there are any."""
        more.late = [Expire(name, accounts_of(claims)) for name, claims in rows]
        more.sweep = False
        if len(rows) < SWEPT:
            self._swept = time.monotonic()
        return bool(rows)


@contextlib.contextmanager
def _rolled_back(link: Link) -> Iterator[None]:
    """With what was not committed undone. An error within is the one that counts: that of a rollback on the same
    broken connection would hide whether there was a commit.
    """
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            link.rollback()
        raise
    link.rollback()
