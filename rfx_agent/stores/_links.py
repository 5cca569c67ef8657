"""Connections that carry the transactions. SQLAlchemy makes them and writes their statements; a transaction itself
goes straight to the driver, in as few round trips as the driver allows: two for PostgreSQL.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import sqlalchemy as sa

from rfx_agent.stores._book import AccountRow, HoldRow, micros
from rfx_agent.stores._gate import Gate
from rfx_agent.stores._tables import Statements, account_of, hold_of, row_of_account, row_of_hold

__all__ = ["AWAY", "SWEPT", "Link", "Loaded", "PostgresLink", "SQLiteLink", "Unknown"]

AWAY = ("08", "57P", "53300")  # SQL states: connections, an operator's shutdown, too many connections
SWEPT = 200  # holds written off in one transaction
_FORGOTTEN = 1000  # rows forgotten in one transaction
_CROWDED = 0.003  # seconds for locking rows above which others must be at them


class Unknown(Exception):
    """A commit that broke: nobody knows whether it was done. Never leaves a store."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a transaction begins with.

    Attributes:
        accounts, holds: by name and by id, locked.
        now: microseconds since the epoch, read when the accounts were locked.
        late: (id, claims) of open holds whose time is up; None where nobody asked.
    """

    accounts: dict[str, AccountRow]
    holds: dict[str, HoldRow]
    now: int
    late: list[tuple[str, str]] | None


class Link(Protocol):
    """One connection, used by one thread at a time."""

    def load(self, names: Collection[str], ids: Collection[str], *, sweep: bool, patient: bool) -> Loaded:
        """Begin a transaction, and lock these accounts and then these holds.

        Raises:
            Taken: it cannot begin at once, and the caller is not ``patient``; where the waiting could have no end.
        """
        ...

    def late(self, now: int) -> list[tuple[str, str]]:
        """The open holds whose time is up, within the transaction."""
        ...

    def save(self, accounts: Sequence[AccountRow], new: Sequence[HoldRow], old: Sequence[HoldRow]) -> None:
        """Write and commit. Raises ``Unknown`` where the commit broke."""
        ...

    def open(self, accounts: Sequence[AccountRow], *, patient: bool) -> None:
        """Make accounts that are not there, in a transaction of its own; raises ``Taken`` as ``load``."""
        ...

    def forget(self) -> bool:
        """Delete some of what ended long ago; whether that was all. Never waits in line: raises ``Taken``."""
        ...

    def everything(self) -> tuple[list[AccountRow], list[HoldRow], int]:
        """All accounts, the open holds whose time is up, and the time, without a lock; nothing where there are no
        tables."""
        ...

    def rollback(self) -> None:
        """End the transaction, if there is one, without effect."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...

    def inherited(self) -> None:
        """In a forked child: let go of what can be, without touching the parent's connection."""
        ...


class _Link:
    """What both have."""

    def __init__(self, engine: sa.Engine, clock: Callable[[], float] | None) -> None:
        self._does = Statements(engine.dialect)
        self._clock = clock
        self._pooled = engine.raw_connection()
        self._raw: Any = self._pooled.driver_connection

    @property
    def _time(self) -> int | None:
        return None if self._clock is None else micros(self._clock())

    def close(self) -> None:
        """Let go of the connection."""
        self._pooled.close()

    def inherited(self) -> None:
        """In a forked child: nothing."""


class SQLiteLink(_Link):
    """To a file: every transaction begins by locking all of it."""

    def __init__(self, engine: sa.Engine, clock: Callable[[], float] | None) -> None:
        super().__init__(engine, clock)
        path = engine.url.database or ""
        self._gate = Gate(None if path.startswith("file:") else path)

    def load(self, names: Collection[str], ids: Collection[str], *, sweep: bool, patient: bool) -> Loaded:
        run, does = self._raw.execute, self._does
        self._begin(patient=patient)
        now = self._time or 0
        late = self.late(now) if sweep else None
        accounts = map(account_of, run(does.accounts, {"names": json.dumps(list(names))})) if names else ()
        holds = map(hold_of, run(does.holds, {"ids": json.dumps(list(ids))}))
        return Loaded({x.name: x for x in accounts}, {x.id: x for x in holds}, now, late)

    def late(self, now: int) -> list[tuple[str, str]]:
        rows: list[tuple[str, str]] = self._raw.execute(self._does.late, {"now": now, "most": SWEPT}).fetchall()
        return rows

    def save(self, accounts: Sequence[AccountRow], new: Sequence[HoldRow], old: Sequence[HoldRow]) -> None:
        many, does = self._raw.executemany, self._does
        many(does.update_account, map(row_of_account, accounts))
        many(does.insert_hold, map(row_of_hold, new))
        many(does.update_hold, map(row_of_hold, old))
        try:
            self._raw.execute("COMMIT")
        except Exception as error:
            raise Unknown from error

    def open(self, accounts: Sequence[AccountRow], *, patient: bool) -> None:
        self._begin(patient=patient)
        self._raw.executemany(self._does.open_account, map(row_of_account, accounts))
        self._raw.execute("COMMIT")

    def forget(self) -> bool:
        self._begin(patient=False)
        done = self._raw.execute(self._does.forget, {"now": self._time, "most": _FORGOTTEN})
        self._raw.execute("COMMIT")
        return bool(done.rowcount < _FORGOTTEN)

    def everything(self) -> tuple[list[AccountRow], list[HoldRow], int]:
        run, now = self._raw.execute, self._time or 0
        run("BEGIN")
        if not run("SELECT 1 FROM sqlite_master WHERE name = 'rfx_accounts'").fetchone():
            return [], [], now
        accounts = [account_of(x) for x in run(self._does.all_accounts)]
        return accounts, [hold_of(x) for x in run(self._does.all_late, {"now": now})], now

    def rollback(self) -> None:
        try:
            if self._raw.in_transaction:
                self._raw.execute("ROLLBACK")
        finally:
            self._gate.leave()

    def close(self) -> None:
        """Let go of the connection, and of the place in the line."""
        try:
            super().close()
        finally:
            self._gate.close()

    def inherited(self) -> None:
        self._gate.close()

    def _begin(self, *, patient: bool) -> None:
        self._gate.enter(patient=patient)
        self._raw.execute("BEGIN IMMEDIATE")


class PostgresLink(_Link):
    """To a server: what needs no answer in between is sent together."""

    def __init__(self, engine: sa.Engine, clock: Callable[[], float] | None) -> None:
        super().__init__(engine, clock)
        from psycopg.pq import TransactionStatus
        from psycopg.types.numeric import Int8Dumper

        self._idle = TransactionStatus.IDLE
        self._crowded = False
        # Integers of one width, whatever their size: or each mix of widths would be a statement to prepare.
        self._raw.adapters.register_dumper(int, Int8Dumper)

    def load(self, names: Collection[str], ids: Collection[str], *, sweep: bool, patient: bool) -> Loaded:
        run, does, when = self._raw.execute, self._does, {"now": self._time}
        begun = time.monotonic()
        with self._raw.pipeline():
            late = run(does.late, {**when, "most": SWEPT}) if sweep else None
            if names and self._crowded:
                run(does.line, {"key": _key(min(names))})
            accounts = run(does.accounts, {"names": list(names)}) if names else ()
            now = run(does.clock, when)  # when the accounts are locked
            holds = run(does.holds, {"ids": list(ids)})
        self._crowded = time.monotonic() - begun > _CROWDED
        found = {x.name: x for x in map(account_of, accounts)}
        held = {x.id: x for x in map(hold_of, holds)}
        return Loaded(found, held, int(now.fetchone()[0]), late and late.fetchall())

    def late(self, now: int) -> list[tuple[str, str]]:
        rows: list[tuple[str, str]] = self._raw.execute(self._does.late, {"now": now, "most": SWEPT}).fetchall()
        return rows

    def save(self, accounts: Sequence[AccountRow], new: Sequence[HoldRow], old: Sequence[HoldRow]) -> None:
        does = self._does
        try:
            with self._raw.pipeline(), self._raw.cursor() as cursor:
                for statement, rows in (
                    (does.update_account, list(map(row_of_account, accounts))),
                    (does.insert_hold, list(map(row_of_hold, new))),
                    (does.update_hold, list(map(row_of_hold, old))),
                ):
                    if rows:
                        cursor.executemany(statement, rows)
                self._raw.commit()
        except Exception as error:
            state = getattr(error, "sqlstate", None)
            if state and not state.startswith(AWAY):  # the server says no: nothing was done
                raise
            raise Unknown from error

    def open(self, accounts: Sequence[AccountRow], *, patient: bool) -> None:
        with self._raw.cursor() as cursor:
            cursor.executemany(self._does.open_account, list(map(row_of_account, accounts)))
        self._raw.commit()

    def forget(self) -> bool:
        done = self._raw.execute(self._does.forget, {"now": self._time, "most": _FORGOTTEN})
        self._raw.commit()
        return bool(done.rowcount < _FORGOTTEN)

    def everything(self) -> tuple[list[AccountRow], list[HoldRow], int]:
        run, when = self._raw.execute, {"now": self._time}
        now = int(run(self._does.clock, when).fetchone()[0])
        if run("SELECT to_regclass('rfx_accounts')").fetchone()[0] is None:
            return [], [], now
        # The accounts first: a hold that is written off between the two is then not written off twice.
        accounts = [account_of(x) for x in run(self._does.all_accounts)]
        return accounts, [hold_of(x) for x in run(self._does.all_late, when)], now

    def rollback(self) -> None:
        if self._raw.info.transaction_status != self._idle:
            self._raw.rollback()


def _key(name: str) -> int:
    """An integer of 64 bits for ``name``, the same in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)
