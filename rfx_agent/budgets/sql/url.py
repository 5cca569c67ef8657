"""What a store's URL says, and how it is shown: never with its password."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rfx_agent._extras import need
from rfx_agent.budgets.url import check_escaped, hidden, scheme_of
from rfx_agent.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

__all__ = ["Place", "place_of"]

_HOW = "give sqlite:///relative.db, sqlite:////absolute/path.db or postgresql://user@host/database"
_POSTGRES = ("postgres", "postgresql", "postgresql+psycopg")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store is.

    Attributes:
        url: SQLAlchemy's, with the driver that is used; its password in it.
        shown: for messages.
        secrets: what must stand in no message.
    """

    url: URL
    shown: str
    secrets: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Place({self.shown!r})"

    @property
    def sqlite(self) -> bool:
        """Whether the database is an SQLite file; otherwise it is a PostgreSQL server."""
        return self.url.get_backend_name() == "sqlite"

    @property
    def missing(self) -> bool:
        """Whether it is a file that nobody has made yet, in a folder that is there."""
        if not self.sqlite or (self.url.database or "").startswith("file:"):
            return False
        path = Path(self.url.database or "")
        return path.parent.is_dir() and not path.exists()

    @property
    def files(self) -> tuple[tuple[int, int] | None, ...]:
        """Which file it is, with its -wal and its -shm, each by device and inode; None for one that is not there."""
        if not self.sqlite or (self.url.database or "").startswith("file:"):
            return ()
        return tuple(_identity(f"{self.url.database}{end}") for end in ("", "-wal", "-shm"))

    def clean(self, text: str) -> str:
        """``text`` without secrets."""
        return hidden(text, self.secrets)


def place_of(url: str) -> Place:
    """Read a URL.

    Raises:
        ConfigError: none that a store can be made of, or its driver is not installed.
    """
    sqlalchemy: Any = need("sqlalchemy", "production")
    scheme = scheme_of(url, who="sql store", how=_HOW)
    if not scheme.startswith("sqlite"):
        check_escaped(url, who="sql store", how=_HOW)
    try:
        made = sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        # Without the error and without the URL: both may show a password that was written in the wrong place.
        raise ConfigError(f"sql store: the {scheme} URL cannot be read; {_HOW}") from None
    if scheme in _POSTGRES:
        made = made.set(drivername="postgresql+psycopg")
        need("psycopg", "postgres")
    elif scheme not in ("sqlite", "sqlite+pysqlite"):
        raise ConfigError(f"sql store: the URL is for {scheme!r}; {_HOW}")
    elif not made.database or made.database.startswith(":memory:") or "mode=memory" in url:
        raise ConfigError(
            "sql store: an SQLite database in memory is shared with nobody; give a file, or MemoryStore()"
        )
    elif made.host:
        raise ConfigError(
            f"sql store: the URL of a file has something where a host stands; a file takes three slashes: {_HOW}"
        )
    if scheme in _POSTGRES and "=" in (made.database or ""):  # libpq reads a DSN there, password and all
        raise ConfigError(f"sql store: pairs of name=value stand where the name of the database does; {_HOW}")
    secrets = {made.password, made.query.get("password"), made.query.get("sslpassword")}
    if made.password:  # as it stands in the URL, percent signs and all
        secrets.add(url.partition("://")[2].rpartition("@")[0].partition(":")[2])
    return Place(made, _shown(made), tuple(sorted((str(x) for x in secrets if x), key=len, reverse=True)))


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116  # before every transaction: a third of the time of pathlib
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _shown(url: URL) -> str:
    if url.get_backend_name() == "sqlite":
        return f"sqlite:///{url.database}"
    user = f"{url.username}@" if url.username else ""
    host = url.host or url.query.get("host") or ""
    port = f":{url.port}" if url.port else ""
    return f"postgresql://{user}{host}{port}/{url.database or ''}"
