"""Engines as the stores need them, and the tables on first use. Needs SQLAlchemy."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from rfx_agent._errors import StoreError
from rfx_agent.stores import _tables
from rfx_agent.stores._url import Place

__all__ = ["engine_for", "prepare"]

_READS = "rfx_reads"  # the option of a connection that takes no lock, and so waits for nobody
_LOCK = 0x7266785F  # of PostgreSQL's advisory locks, the one under which tables are made


def engine_for(place: Place, timeout: float) -> sa.Engine:
    """An engine that pools nothing: each of its users holds the one connection it needs."""
    if place.sqlite:
        # Without the driver's own transactions, which begin too late: the lock is taken before anything is read.
        arguments: dict[str, Any] = {"timeout": timeout, "isolation_level": None, "check_same_thread": False}
        engine = sa.create_engine(
            place.url, connect_args=arguments, poolclass=sa.NullPool, hide_parameters=True, paramstyle="named"
        )
        sa.event.listen(engine, "connect", _durable)
        sa.event.listen(engine, "begin", _immediate)
        return engine
    arguments = {
        "connect_timeout": max(1, round(min(timeout, 10))),
        # A server that vanished without a word is noticed within the timeout, not within TCP's hours.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": round(timeout * 1000),
    }
    given = {key: value for key, value in arguments.items() if key not in place.url.query}
    engine = sa.create_engine(
        place.url, connect_args=given, poolclass=sa.NullPool, hide_parameters=True, isolation_level="READ COMMITTED"
    )

    def bounded(connection: Any, _: object) -> None:
        # A process that stops in the middle, with its machine say, must not hold its locks for ever.
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = {round(timeout * 1000)}")
            cursor.execute(f"SET idle_in_transaction_session_timeout = {round(timeout * 1000)}")
        connection.commit()

    sa.event.listen(engine, "connect", bounded)
    return engine


def prepare(engine: sa.Engine, place: Place, name: str) -> None:
    """See to it that the tables are there; several processes may come here at once.

    Raises:
        StoreError: they are of a newer version.
        Exception: SQLAlchemy's, or the driver's.
    """
    with engine.connect().execution_options(**{_READS: True}) as connection:
        if place.sqlite:
            raw: Any = connection.connection.driver_connection
            if raw.execute("PRAGMA journal_mode").fetchone() != ("wal",):
                raw.execute("PRAGMA journal_mode = WAL")  # readers and the writer do not wait for each other
        version = _version(connection, name)
    if version is None:
        with engine.connect() as connection:
            version = _create(connection, name)
    if version != _tables.VERSION:
        raise StoreError(
            f"{place.shown}: the tables of {name} are of version {version}; this release of rfx_agent writes "
            f"version {_tables.VERSION}: use the release that made them, or another database"
        )


def _version(connection: sa.Connection, name: str) -> int | None:
    if not sa.inspect(connection).has_table(_tables.schema.name):
        return None
    query = sa.select(_tables.schema.c.version).where(_tables.schema.c.name == name)
    return connection.execute(query).scalar_one_or_none()


def _create(connection: sa.Connection, name: str) -> int:
    """Make what is missing; the version that is there in the end."""
    if connection.dialect.name == "postgresql":  # IF NOT EXISTS alone fails when two make the same table at once
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    for table in _tables.METADATA.sorted_tables:
        connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
        for index in table.indexes:
            connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))
    if (version := _version(connection, name)) is None:
        version = _tables.VERSION
        connection.execute(sa.insert(_tables.schema), {"name": name, "version": version})
    connection.commit()
    return version


def _durable(connection: Any, _: object) -> None:
    connection.execute("PRAGMA synchronous = FULL")  # what was answered survives a power cut
    connection.execute("PRAGMA wal_autocheckpoint = 4000")  # pages: a reservation writes about six


def _immediate(connection: sa.Connection) -> None:
    reads = connection.get_execution_options().get(_READS)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
