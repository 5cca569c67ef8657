"""The tables, what is asked of them, and how rows become the book's. Needs SQLAlchemy: imported when a store opens.

The tables are those of version 0.1, and so are their names: what is a hold here is a reservation everywhere else, and
the column ``parts`` has an account's buckets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.dialects import sqlite

from rfx_agent.budgets.accounting import OPEN, AccountRow, ReservationRow

__all__ = [
    "MARK",
    "METADATA",
    "SCHEMA",
    "Statements",
    "account_of",
    "accounts",
    "accounts_of",
    "among",
    "columns_of_account",
    "columns_of_reservation",
    "drop_marks",
    "holds",
    "lock_belief",
    "open_belief",
    "read_belief",
    "read_mark",
    "reservation_of",
    "schema",
    "update_belief",
]

SCHEMA = 1
"""Number of the tables that this version writes, kept in the table ``rfx_schema``. Version 0.1 wrote the same."""

MARK = "mark "
"""Beginning of the name of a row in ``rfx_schema`` that tells these tables from others made in their place."""

_MOST = 2**63 - 1
_encoded = json.JSONEncoder(separators=(",", ":")).encode  # ``json.dumps`` would make one each time

METADATA = sa.MetaData()
schema = sa.Table(
    "rfx_schema",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)
drop_marks = sa.delete(schema).where(schema.c.name.like(f"{MARK}%"))
read_mark = sa.select(schema.c.name).where(schema.c.name.like(f"{MARK}%")).order_by(schema.c.name).limit(1)
# One row holds an account with all its window's buckets, so that a reservation reads and writes one row per account.
# It is rewritten all the time: room on its page lets PostgreSQL do that in place.
accounts = sa.Table(
    "rfx_accounts",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("unit", sa.Text, nullable=False),
    *(
        sa.Column(name, sa.BigInteger, nullable=False)
        for name in ("most", "span", "granted", "spent", "reserved", "lost", "refused", "peak")
    ),
    sa.Column("parts", sa.Text, nullable=False),
    postgresql_with={"fillfactor": 30},
    sqlite_with_rowid=False,
)
holds = sa.Table(
    "rfx_holds",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("token", sa.Text, nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("claims", sa.Text, nullable=False),
    sa.Column("due", sa.BigInteger, nullable=False),
    sa.Column("ended", sa.BigInteger, nullable=False),
    sa.Column("record", sa.LargeBinary),
    # What is due is an open reservation that expires or an ended one to forget: both are few, so one index does.
    sa.Index("rfx_holds_due", "due"),
)
beliefs = sa.Table(
    "rfx_beliefs",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("belief", sa.Text, nullable=False),
)


class Statements:
    """Every statement of the budgets. SQLAlchemy compiles each once: none varies with what it is given."""

    def __init__(self, dialect: str) -> None:
        now = sa.bindparam("now", type_=sa.BigInteger)
        clock: sa.ColumnElement[int] = now
        if dialect == "postgresql":  # where no time is given, the database's own: the clocks of machines differ
            seconds = sa.extract("epoch", sa.func.clock_timestamp())
            clock = sa.func.coalesce(now, sa.cast(seconds * 1_000_000, sa.BigInteger))
        insert = pg.insert if dialect == "postgresql" else sqlite.insert
        self.raw_mark = str(read_mark.compile(compile_kwargs={"literal_binds": True}))
        self.glance = sa.select(clock, read_mark.scalar_subquery())
        # In name order, then in id order: two transactions never wait for each other. SQLite locks the whole file.
        self.accounts = _among(accounts.c.name, dialect).order_by(accounts.c.name).with_for_update()
        self.reservations = _among(holds.c.id, dialect).order_by(holds.c.id).with_for_update()
        self.open_account = insert(accounts).on_conflict_do_nothing()
        self.update_account = sa.update(accounts).where(accounts.c.name == sa.bindparam("key"))
        self.insert_reservation = sa.insert(holds)
        self.update_reservation = sa.update(holds).where(holds.c.id == sa.bindparam("key"))
        late = sa.and_(holds.c.state == OPEN, holds.c.due <= clock)
        some = sa.bindparam("most", type_=sa.Integer)
        self.late = sa.select(holds.c.id, holds.c.claims).where(late).order_by(holds.c.due).limit(some)
        old = sa.select(holds.c.id).where(holds.c.state != OPEN, holds.c.due <= clock).limit(some)
        self.forget = sa.delete(holds).where(holds.c.id.in_(old.with_for_update(skip_locked=True)))
        page = sa.select(accounts).where(accounts.c.name > sa.bindparam("after")).order_by(accounts.c.name)
        self.page = page.limit(some)
        seen = sa.and_(accounts.c.reserved == 0, accounts.c.parts == sa.bindparam("as_seen"))
        self.drop = sa.delete(accounts).where(accounts.c.name == sa.bindparam("key"), seen)
        self.all_accounts = sa.select(accounts)
        self.all_late = sa.select(holds).where(late)


def _among(column: sa.Column[str], dialect: str) -> sa.Select[Any]:
    """One parameter, ``among``, however many names there are: a statement for each count takes longer to make."""
    if dialect == "postgresql":
        return sa.select(column.table).where(column == sa.any_(sa.bindparam("among", type_=pg.ARRAY(sa.Text))))
    found = sa.func.json_each(sa.bindparam("among", type_=sa.Text)).table_valued("value")
    return sa.select(column.table).where(column.in_(sa.select(found.c.value)))


def among(names: Iterable[str], dialect: str) -> dict[str, Any]:
    """What ``accounts`` and ``reservations`` of ``Statements`` are given."""
    return {"among": [*names] if dialect == "postgresql" else _encoded([*names])}


def account_of(row: Sequence[Any]) -> AccountRow:
    """From its columns."""
    *plain, text = row
    buckets, credits = json.loads(text)  # noqa: A001  # the field's word
    account = AccountRow(*plain)
    account.buckets, account.credits = _pairs(buckets), _pairs(credits)
    return account


def columns_of_account(account: AccountRow, key: str = "name") -> dict[str, Any]:
    """Its columns; ``key="key"`` for an update, which looks for it by that name."""
    x = account
    text = _encoded([_flat(x.buckets), _flat(x.credits)])
    values = (x.kind, x.unit, min(x.most, _MOST), x.span, x.granted, x.spent, x.reserved, x.lost, x.refused, x.peak)
    return dict(zip((key, *_ACCOUNT), (x.name, *values, text), strict=True))


def reservation_of(row: Sequence[Any]) -> ReservationRow:
    """From its columns."""
    id, token, state, claims, due, ended, record = row  # noqa: A001  # the field's word
    found = tuple((a, u, n) for a, u, n in json.loads(claims))
    text = None if record is None else bytes(record).decode("utf-8", "surrogatepass")
    return ReservationRow(id, token, state, found, due, ended, text)


def columns_of_reservation(row: ReservationRow, key: str = "id") -> dict[str, Any]:
    """Its columns; ``key="key"`` for an update, which looks for it by that name."""
    # Bytes, because a model may write what a database's text cannot hold: NUL, and halves of characters.
    record = None if row.record is None else row.record.encode("utf-8", "surrogatepass")
    claims = _encoded(row.claims)
    values = (row.id, row.token, row.state, claims, row.due, row.ended, record)
    return dict(zip((key, *_HOLD), values, strict=True))


def accounts_of(claims: str) -> tuple[str, ...]:
    """The names of the accounts in a reservation's column ``claims``."""
    return tuple(name for name, _, _ in json.loads(claims))


def open_belief(dialect: str) -> sa.Insert:
    """Make a belief that is not there."""
    insert = pg.insert if dialect == "postgresql" else sqlite.insert
    return insert(beliefs).on_conflict_do_nothing()


_THIS = beliefs.c.name == sa.bindparam("key")
read_belief = sa.select(beliefs.c.belief).where(_THIS)
lock_belief = read_belief.with_for_update()
update_belief = sa.update(beliefs).where(_THIS)
_ACCOUNT = tuple(column.name for column in accounts.columns)[1:]
_HOLD = tuple(column.name for column in holds.columns)[1:]


def _flat(buckets: Mapping[int, int]) -> list[int]:
    return [x for pair in buckets.items() for x in pair]


def _pairs(flat: Iterable[int]) -> dict[int, int]:
    each = iter(flat)
    return dict(zip(each, each, strict=True))
