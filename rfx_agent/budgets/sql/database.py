"""One transaction over many requests. Needs SQLAlchemy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import sqlalchemy as sa

from rfx_agent.budgets.accounting import AccountRow, Book, NotLoaded, micros
from rfx_agent.budgets.backend import Backend, Credit, Failure, Unknown
from rfx_agent.budgets.limits import Account, Refused
from rfx_agent.budgets.operations import Expire, Operation
from rfx_agent.budgets.sql.engine import engine_for, known, prepare, reading
from rfx_agent.budgets.sql.failures import failure_of, refused, table_missing
from rfx_agent.budgets.sql.remembered import Remembered
from rfx_agent.budgets.sql.tables import (
    Statements,
    account_of,
    accounts_of,
    among,
    columns_of_account,
    columns_of_reservation,
    reservation_of,
)
from rfx_agent.budgets.sql.url import Place
from rfx_agent.errors import StoreError

__all__ = ["Database"]

_ROUNDS = 10  # beginnings of one transaction that finds more to load
_SWEPT = 200  # reservations that expire in one transaction
_FORGOTTEN = 1000  # rows forgotten in one transaction


@dataclass(slots=True)
class _More:
    """What a transaction needs besides what its operations say; found out while it runs."""

    sweep: bool
    names: set[str] = field(default_factory=set)
    late: list[Operation] = field(default_factory=list)


class Database(Backend):
    """Everything that is done to the tables. All but ``seen`` is called from one thread at a time.

    Args:
        place: where they are.
        clock: seconds since the epoch; None for the database's own, which all machines share.
        keep: microseconds that what has ended is remembered.
        timeout: seconds that a transaction waits for a lock, or for a connection.
    """

    def __init__(self, place: Place, *, clock: Callable[[], float] | None, keep: int, timeout: float) -> None:
        self.place = place
        self.shown = place.shown
        self._clock = clock
        self._keep = keep
        self._engine = engine_for(place, timeout, pooled=True)
        self._reads = engine_for(place, timeout)
        self._does = Statements(self._engine.dialect.name)
        self._prepared = False
        self._files: tuple[tuple[int, int] | None, ...] = ()
        self._remembered = Remembered()
        self._mark: str | None = None
        self._swept = self._forgot = float("-inf")

    def failure_of(self, error: Exception) -> Failure:
        """See ``failures.failure_of``."""
        return failure_of(error, self.place)

    def run(
        self,
        operations: Sequence[Operation],
        credits: Sequence[Credit],  # noqa: A002  # the word of the ratio
        *,
        counting: bool = True,
    ) -> list[Any]:
        """Do ``operations`` in one transaction, and say what they answer.

        Raises:
            Unknown: it may have been committed or not.
            Exception: SQLAlchemy's; nothing was done.
        """
        self._ready()
        more = _More(sweep=time.monotonic() - self._swept >= 1)
        try:
            with self._engine.connect() as connection:
                for _ in range(_ROUNDS):
                    answers = self._attempt(connection, operations, credits, more, counting)
                    if answers is not None:
                        return answers
                    connection.rollback()
        except Exception as error:
            if table_missing(error):
                self._replaced("tables were", error)
            raise
        raise StoreError(f"{self.place.shown}: accounts vanish while they are looked for; who deletes them?")

    def seen(self, prefix: str) -> list[Account]:
        """All accounts whose name begins with ``prefix``, as they are once every reservation has expired that is due.

        Reads only, on a connection of its own: from any thread, and where no table was ever made.
        """
        if self.place.missing:
            return []
        with reading(self._reads) as connection:
            if not known(connection, self.place, "budgets"):
                return []
            now = self._now(connection)
            # The accounts first: a reservation that expires between the two does not expire twice then.
            found = [account_of(x) for x in connection.execute(self._does.all_accounts)]
            late = [reservation_of(x) for x in connection.execute(self._does.all_late, {"now": now})]
        book = Book(keep_for=self._keep)
        book.accounts = {x.name: x for x in found}
        book.reservations = {x.id: x for x in late}
        for row in late:
            book.expire(row.id, now)
        return [x.seen(now) for name, x in sorted(book.accounts.items()) if name.startswith(prefix)]

    def forget(self) -> None:
        """Delete what ended long ago; does something once a minute at most."""
        if time.monotonic() - self._forgot < 60:
            return
        with self._engine.begin() as connection:
            given = {"now": self._now(connection), "most": _FORGOTTEN}
            if connection.execute(self._does.forget, given).rowcount < _FORGOTTEN:
                self._forgot = time.monotonic()

    def prune(self, older: int, *, shrink: bool) -> tuple[int, int]:
        """Delete what ended ``older`` microseconds ago or earlier, and accounts in which nothing counts any more.

        An account that is used meanwhile is left alone. Returns how many accounts and how many reservations went.
        """
        self._ready()
        does, went, name = self._does, [0, 0], ""
        with self._engine.connect() as connection:
            now = self._now(connection)
            while True:  # a transaction each: others come in between
                found = connection.execute(does.forget, {"now": now + self._keep - older, "most": _FORGOTTEN}).rowcount
                connection.commit()
                went[1] += found
                if found < _FORGOTTEN:
                    break
            while rows := connection.execute(does.page, {"after": name, "most": _FORGOTTEN}).all():
                name = rows[-1][0]
                idle = [x for x in rows if account_of(x).idle(now - older)]
                for row in idle:
                    went[0] += connection.execute(does.drop, {"key": row[0], "as_seen": row[-1]}).rowcount
                connection.commit()
        if shrink:
            self._shrink()
        return went[0], went[1]

    def _shrink(self) -> None:
        """Give the disk back what is not used; other processes wait meanwhile."""
        with self._engine.connect() as connection:
            raw: Any = connection.connection.driver_connection
            if self.place.sqlite:
                raw.execute("VACUUM")
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                return
            before, raw.autocommit = raw.autocommit, True
            try:
                raw.execute("VACUUM rfx_accounts, rfx_holds")
            finally:
                raw.autocommit = before

    def disconnect(self) -> None:
        """Let go of the connection; the next transaction makes a new one, and looks at the tables anew."""
        self._prepared = False
        self._files = ()
        self._engine.dispose()

    def _ready(self) -> None:
        """The tables are there, and in the file that the connection has open.

        Raises:
            StoreError: somebody deleted or replaced them: what was spent is not what other processes see.
        """
        if not self._prepared:
            before, self._mark = self._mark, prepare(self._engine, self.place, "budgets")
            self._prepared, self._files = True, self.place.files
            if before not in (None, self._mark):
                self._replaced("tables were")
        elif self._files != (files := self.place.files):
            # A -wal comes with the first connection that reads, and goes with the last one that closes.
            if any(x not in (None, y) for x, y in zip(self._files, files, strict=True)):
                self._replaced("file, its -wal or its -shm was")
            self._files = files

    def _replaced(self, what: str, cause: Exception | None = None) -> NoReturn:
        self._mark = None  # the writer lets go of the connection, and the next request takes what is there
        self._remembered.clear()
        raise StoreError(
            f"{self.shown}: the {what} deleted or replaced while in use; what was spent is in what is gone. The next "
            "call goes on with what is there, with accounts of its own"
        ) from cause

    def _now(self, connection: sa.Connection) -> int:
        return self._glance(connection)[0]

    def _glance(self, connection: sa.Connection) -> tuple[int, str | None]:
        """The time, and the mark of the tables that are there now."""
        given = None if self._clock is None else micros(self._clock())
        if given is not None and self.place.sqlite:  # a tenth of the time that SQLAlchemy takes
            raw: Any = connection.connection.driver_connection
            return given, (raw.execute(self._does.raw_mark).fetchone() or (None,))[0]
        now, mark = connection.execute(self._does.glance, {"now": given}).one()
        return int(now), mark

    def _attempt(
        self,
        connection: sa.Connection,
        operations: Sequence[Operation],
        credits: Sequence[Credit],  # noqa: A002  # the word of the ratio
        more: _More,
        counting: bool,
    ) -> list[Any] | None:
        """The answers, with everything written; or None, with ``more`` to be loaded at the next try."""
        run, does, kind = connection.execute, self._does, connection.dialect.name
        todo = [*more.late, *operations]
        claims = {c.account: c for x in todo for c in x.claims} | {x.claim.account: x.claim for x in credits}
        names = {*claims, *more.names, *(name for x in todo for name in x.names)}
        ids = {x.id for x in todo}
        if more.sweep and self._sweep(connection, more):
            return None
        accounts = {x.name: x for x in map(account_of, run(does.accounts, among(names, kind)))} if names else {}
        now, mark = self._glance(connection)  # when the accounts are locked
        if mark != self._mark:
            self._replaced("tables were")
        rows = {x.id: x for x in map(reservation_of, run(does.reservations, among(ids, kind)))}
        if self._remembered.lost(names, accounts, ids, rows, now):
            self._replaced("rows of the tables were")
        absent = names - set(accounts)
        if missing := [claims[name] for name in sorted(absent & set(claims))]:
            connection.rollback()  # in a transaction of its own, or their rows would be locked out of order
            run(does.open_account, [columns_of_account(AccountRow.of(x)) for x in missing])
            connection.commit()
            return None
        book = Book(keep_for=self._keep, complete=False, counting=counting)
        book.accounts, book.reservations, book.absent = accounts, dict(rows), absent
        for x in credits:  # before the reservations, which may need them
            book.deposit(x.claim, now - micros(max(0.0, self.tick() - x.since)))
        try:
            answers = [x.on(book, now) for x in todo][len(more.late) :]
        except NotLoaded:  # a reservation that is in the way, of other accounts than are asked for now
            more.names.update(name for x in rows.values() for name, _, _ in x.claims)
            return None
        if not more.late and any(isinstance(x, Refused) for x in answers) and self._sweep(connection, more):
            return None
        # In order: two transactions that insert the same ids then wait, but not for each other.
        written = [book.reservations[x] for x in sorted(book.written)]
        for statement, changed in (
            (does.update_account, [columns_of_account(book.accounts[x], "key") for x in sorted(book.touched)]),
            (does.insert_reservation, [columns_of_reservation(x) for x in written if x.id not in rows]),
            (does.update_reservation, [columns_of_reservation(x, "key") for x in written if x.id in rows]),
        ):
            if changed:
                run(statement, changed)
        try:
            connection.commit()
        except Exception as error:
            if refused(error):
                raise
            raise Unknown from error
        self._remembered.note([book.accounts[x] for x in book.touched], written, now)
        return answers

    def _sweep(self, connection: sa.Connection, more: _More) -> bool:
        """Take note of reservations whose time is over; whether there are any."""
        now = None if self._clock is None else micros(self._clock())
        found = connection.execute(self._does.late, {"now": now, "most": _SWEPT}).all()
        more.late = [Expire(name, accounts_of(claims)) for name, claims in found]
        more.sweep = False
        if len(found) < _SWEPT:
            self._swept = time.monotonic()
        return bool(found)
