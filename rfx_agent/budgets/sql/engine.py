"""Engines as the stores need them, and the tables on first use. Needs SQLAlchemy."""

from __future__ import annotations

import random
import sqlite3
import time
import uuid
from typing import Any

import sqlalchemy as sa

from rfx_agent.budgets.sql import tables as _tables
from rfx_agent.budgets.sql.url import Place
from rfx_agent.errors import StoreError

__all__ = ["engine_for", "known", "prepare", "reading"]

_READS = "rfx_reads"  # the option of a connection that takes no lock, and so waits for nobody
_LOCK = 0x7266785F  # of PostgreSQL's advisory locks, the one under which tables are made
_GLANCE = 0.002  # most seconds between two looks of who waits for an SQLite file


def engine_for(place: Place, timeout: float, *, pooled: bool = False) -> sa.Engine:
    """An engine whose transactions wait at most ``timeout`` seconds for a lock; ``pooled``, it keeps one connection."""
    options: dict[str, Any] = {"pool_size": 1} if pooled else {"poolclass": sa.NullPool}
    if place.sqlite:
        return _sqlite(place, timeout, options)
    arguments = {
        "connect_timeout": max(1, round(min(timeout, 10))),
        # A server that vanished without a word is noticed within the timeout, not within TCP's hours.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": round(timeout * 1000),
    }
    given = {key: value for key, value in arguments.items() if key not in place.url.query}
    options |= {"connect_args": given, "isolation_level": "READ COMMITTED"}
    engine = sa.create_engine(place.url, hide_parameters=True, **options)

    def bounded(connection: Any, _: object) -> None:
        from psycopg.types.numeric import Int8Dumper

        # Integers of one width, whatever their size: or each mix of widths would be a statement to prepare.
        connection.adapters.register_dumper(int, Int8Dumper)
        # A process that stops in the middle, with its machine say, must not keep its locks for ever.
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = {round(timeout * 1000)}")
            cursor.execute(f"SET idle_in_transaction_session_timeout = {round(timeout * 1000)}")
        connection.commit()

    sa.event.listen(engine, "connect", bounded)
    return engine


def _sqlite(place: Place, timeout: float, options: dict[str, Any]) -> sa.Engine:
    # Without the driver's own transactions, which begin too late: the lock is taken before anything is read.
    arguments = {"timeout": timeout, "isolation_level": None, "check_same_thread": False}
    engine = sa.create_engine(place.url, connect_args=arguments, hide_parameters=True, **options)

    def durable(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous = FULL")  # what was answered survives a power cut
        connection.execute("PRAGMA wal_autocheckpoint = 4000")  # pages: a reservation writes about six

    def begin(connection: sa.Connection) -> None:
        raw: Any = connection.connection.driver_connection
        if connection.get_execution_options().get(_READS):
            raw.execute("BEGIN")
            return
        # SQLite's own waiting is a sleep of up to 100 ms and another look: of several busy processes one takes turn
        # after turn, and others wait for seconds. See ``writer`` for what was measured.
        raw.execute("PRAGMA busy_timeout = 0")
        try:
            _immediate(raw, time.monotonic() + timeout)
        finally:
            raw.execute(f"PRAGMA busy_timeout = {round(timeout * 1000)}")

    sa.event.listen(engine, "connect", durable)
    sa.event.listen(engine, "begin", begin)
    return engine


def _immediate(raw: Any, ends: float) -> None:
    while True:
        try:
            raw.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= ends:
                raise
        else:
            return
        time.sleep(_GLANCE * random.uniform(0.1, 1.0))  # noqa: S311  # so that they do not look all at once


def reading(engine: sa.Engine) -> sa.Connection:
    """A connection whose transactions take no lock."""
    return engine.connect().execution_options(**{_READS: True})


def prepare(engine: sa.Engine, place: Place, name: str) -> str:
    """See to it that the tables are there; several processes may come here at once.

    Returns:
        The mark of these tables: those that somebody makes in their place have another.

    Raises:
        StoreError: they are of a later schema.
        Exception: SQLAlchemy's, or the driver's.
    """
    with reading(engine) as connection:
        if place.sqlite:
            raw: Any = connection.connection.driver_connection
            if raw.execute("PRAGMA journal_mode").fetchone() != ("wal",):
                raw.execute("PRAGMA journal_mode = WAL")  # readers and the writer do not wait for each other
        if (
            known(connection, place, name)
            and not _absent(connection)
            and (mark := connection.execute(_tables.read_mark).scalar_one_or_none())
        ):
            return str(mark)
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":  # IF NOT EXISTS alone fails when two make the same table at once
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        absent = _absent(connection)
        if _tables.schema.name not in absent and absent & {_tables.accounts.name, _tables.holds.name}:
            # Of budgets that were lost in part: others that have them in use are to notice too.
            connection.execute(_tables.drop_marks)
        for table in _tables.METADATA.sorted_tables:
            connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
            for index in table.indexes:
                connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))
        if not known(connection, place, name):
            connection.execute(sa.insert(_tables.schema), {"name": name, "version": _tables.SCHEMA})
        if (mark := connection.execute(_tables.read_mark).scalar_one_or_none()) is None:
            mark = f"{_tables.MARK}{uuid.uuid4().hex}"
            connection.execute(sa.insert(_tables.schema), {"name": mark, "version": _tables.SCHEMA})
        connection.commit()
        return str(mark)


def _absent(connection: sa.Connection) -> set[str]:
    """The tables that are not there."""
    looks = sa.inspect(connection)
    return {name for name in _tables.METADATA.tables if not looks.has_table(name)}


def known(connection: sa.Connection, place: Place, name: str) -> bool:
    """Whether the tables of ``name`` are there with the number of their schema.

    Raises:
        StoreError: it is one that this version does not know.
    """
    if not sa.inspect(connection).has_table(_tables.schema.name):
        return False
    query = sa.select(_tables.schema.c.version).where(_tables.schema.c.name == name)
    found = connection.execute(query).scalar_one_or_none()
    if found not in (None, _tables.SCHEMA):
        raise StoreError(
            f"{place.shown}: the tables of {name} have schema {found}, and this version of rfx_agent knows schema "
            f"{_tables.SCHEMA}; use the version that wrote them, or give another database"
        )
    return found is not None
