"""The tables, what is asked of them, and how rows become the book's. Needs SQLAlchemy: imported when a store opens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.dialects import sqlite

from rfx_agent.stores._book import OPEN, AccountRow, HoldRow

__all__ = [
    "METADATA",
    "VERSION",
    "Statements",
    "account_of",
    "accounts_of",
    "hold_of",
    "lock_belief",
    "open_belief",
    "read_belief",
    "row_of_account",
    "row_of_hold",
    "schema",
    "update_belief",
]

VERSION = 1
_MOST = 2**63 - 1

METADATA = sa.MetaData()
schema = sa.Table(
    "rfx_schema",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)
# One row holds an account with all its window's parts, so that a reservation reads and writes one row per account.
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
    # What is due is an open hold to write off or an ended one to forget: both are few, so one index does.
    sa.Index("rfx_holds_due", "due"),
)
beliefs = sa.Table(
    "rfx_beliefs",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("belief", sa.Text, nullable=False),
)


class Statements:
    """The text of every statement for one dialect, made by SQLAlchemy once: none varies with what it is given."""

    def __init__(self, dialect: sa.Dialect) -> None:
        postgres = dialect.name == "postgresql"
        now = sa.bindparam("now", type_=sa.BigInteger)
        clock: sa.ColumnElement[int] = now
        if postgres:  # where no time is given, the database's own: machines differ
            seconds = sa.extract("epoch", sa.func.clock_timestamp())
            clock = sa.func.coalesce(now, sa.cast(seconds * sa.literal_column("1000000"), sa.BigInteger))

        def among(column: sa.Column[str], name: str) -> sa.ColumnElement[bool]:
            if postgres:
                return column == sa.any_(sa.bindparam(name, type_=pg.ARRAY(sa.Text)))
            each = sa.func.json_each(sa.bindparam(name, type_=sa.Text)).table_valued("value")
            return column.in_(sa.select(each.c.value))

        def text(statement: sa.ClauseElement) -> str:
            return str(statement.compile(dialect=dialect))

        # In name order, then in id order: two transactions never wait for each other.
        named = sa.select(accounts).where(among(accounts.c.name, "names")).order_by(accounts.c.name)
        found = sa.select(holds).where(among(holds.c.id, "ids")).order_by(holds.c.id)
        self.accounts = text(named.with_for_update() if postgres else named)
        self.holds = text(found.with_for_update() if postgres else found)
        self.clock = text(sa.select(clock))
        # Who waits for several rows of others waits anew at each, and not in turn. In a crowd they stand in one line
        # before the first of them.
        self.line = text(sa.select(sa.func.pg_advisory_xact_lock(sa.bindparam("key", type_=sa.BigInteger))))
        late = sa.and_(holds.c.state == sa.literal_column(str(OPEN)), holds.c.due <= clock)
        some = sa.bindparam("most", type_=sa.Integer)
        # SQLite's LIMIT brings an OFFSET along, and without this one it would be a parameter.
        none: sa.ColumnElement[int] = sa.literal_column("0")
        due = sa.select(holds.c.id, holds.c.claims).where(late).order_by(holds.c.due)
        self.late = text(due.limit(some).offset(none))
        insert = pg.insert if postgres else sqlite.insert
        self.open_account = text(insert(accounts).values(_bound(accounts)).on_conflict_do_nothing())
        this = accounts.c.name == sa.bindparam("b_name", type_=sa.Text)
        changes = {key: x for key, x in _bound(accounts, but="name").items() if key not in ("kind", "unit", "span")}
        self.update_account = text(sa.update(accounts).where(this).values(changes))
        self.insert_hold = text(sa.insert(holds).values(_bound(holds)))
        same = holds.c.id == sa.bindparam("b_id", type_=sa.Text)
        self.update_hold = text(sa.update(holds).where(same).values(_bound(holds, but="id")))
        old = sa.and_(holds.c.state != sa.literal_column(str(OPEN)), holds.c.due <= clock)
        chosen = sa.select(holds.c.id).where(old).limit(some).offset(none)
        self.forget = text(
            sa.delete(holds).where(holds.c.id.in_(chosen.with_for_update(skip_locked=True) if postgres else chosen))
        )
        self.all_accounts = text(sa.select(accounts))
        self.all_late = text(sa.select(holds).where(late))


def account_of(row: Sequence[Any]) -> AccountRow:
    """From its columns."""
    *plain, text = row
    parts, credits = json.loads(text)  # noqa: A001  # the field's word
    account = AccountRow(*plain)
    account.parts, account.credits = _pairs(parts), _pairs(credits)
    return account


def row_of_account(account: AccountRow) -> dict[str, Any]:
    """Its columns, as ``Statements`` names them."""
    x = account
    text = json.dumps([_flat(x.parts), _flat(x.credits)], separators=(",", ":"))
    values = (x.kind, x.unit, min(x.most, _MOST), x.span, x.granted, x.spent, x.reserved, x.lost, x.refused, x.peak)
    return dict(zip(_ACCOUNT, (x.name, *values, text), strict=True))


def hold_of(row: Sequence[Any]) -> HoldRow:
    """From its columns."""
    id, token, state, claims, due, ended, record = row  # noqa: A001  # the field's word
    found = tuple((a, u, n) for a, u, n in json.loads(claims))
    text = None if record is None else bytes(record).decode("utf-8", "surrogatepass")
    return HoldRow(id, token, state, found, due, ended, text)


def row_of_hold(hold: HoldRow) -> dict[str, Any]:
    """Its columns, as ``Statements`` names them."""
    # Bytes, because a model may write what a database's text cannot hold: NUL, and halves of characters.
    record = None if hold.record is None else hold.record.encode("utf-8", "surrogatepass")
    claims = json.dumps(hold.claims, separators=(",", ":"))
    values = (hold.id, hold.token, hold.state, claims, hold.due, hold.ended, record)
    return dict(zip(_HOLD, values, strict=True))


def accounts_of(claims: str) -> tuple[str, ...]:
    """The names of the accounts in a hold's column ``claims``."""
    return tuple(name for name, _, _ in json.loads(claims))


def _bound(table: sa.Table, *, but: str = "") -> dict[str, sa.BindParameter[Any]]:
    """Each column's value by a parameter of its name, with a prefix: SQLAlchemy keeps the bare names for itself."""
    return {name: sa.bindparam(f"b_{name}") for name in table.columns.keys() if name != but}  # noqa: SIM118


def open_belief(dialect: str) -> sa.Insert:
    """Make a belief that is not there."""
    insert = pg.insert if dialect == "postgresql" else sqlite.insert
    return insert(beliefs).values(_bound(beliefs)).on_conflict_do_nothing()


_THIS = beliefs.c.name == sa.bindparam("b_name")
read_belief = sa.select(beliefs.c.belief).where(_THIS)
lock_belief = read_belief.with_for_update()
update_belief = sa.update(beliefs).where(_THIS).values(_bound(beliefs, but="name"))
_ACCOUNT = tuple(f"b_{column.name}" for column in accounts.columns)
_HOLD = tuple(f"b_{column.name}" for column in holds.columns)


def _flat(parts: Mapping[int, int]) -> list[int]:
    return [x for pair in parts.items() for x in pair]


def _pairs(flat: Iterable[int]) -> dict[int, int]:
    each = iter(flat)
    return dict(zip(each, each, strict=True))
