"""What went wrong with a transaction: whether it may be tried again, and in which words it is reported."""

from __future__ import annotations

import sqlite3

from rfx_agent.budgets.backend import Failure, Unknown
from rfx_agent.budgets.sql.url import Place
from rfx_agent.errors import StoreError

__all__ = ["failure_of", "refused", "table_missing"]

_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_AWAY = ("08", "57P", "53300")  # SQL states: connections, an operator's shutdown, too many connections
# Deadlock, serialization, lock timeout; a row that another transaction has inserted meanwhile.
_CLASHES = ("40001", "40P01", "55P03", "23505")
_CONNECTION = {"OperationalError", "InterfaceError"}
_REMEDIES = {
    sqlite3.SQLITE_FULL: "free space on its disk",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable",
    sqlite3.SQLITE_CANTOPEN: "make the folder, or write four slashes for an absolute path",
    sqlite3.SQLITE_NOTADB: "give another path",
    sqlite3.SQLITE_CORRUPT: "restore the file",
    sqlite3.SQLITE_BUSY: "another process holds the file: look for one that stopped in the middle of a transaction",
}


def refused(error: Exception) -> bool:
    """Whether a server that could be reached raised ``error`` at a commit: then nothing was done."""
    state: str = getattr(getattr(error, "orig", error), "sqlstate", None) or ""
    return bool(state) and not state.startswith(_AWAY)


def table_missing(error: BaseException | None) -> bool:
    """Whether a table is not there that was made before."""
    raised = getattr(error, "orig", None) or error
    return getattr(raised, "sqlstate", None) == "42P01" or (
        isinstance(raised, sqlite3.OperationalError) and str(raised).startswith("no such table: ")
    )


def failure_of(error: Exception, place: Place) -> Failure:
    """What ``error`` of a database means: what to tell the user, and whether to try again.

    The message has the error's text without the URL's password and without the statement's parameters.
    """
    inner = error.__cause__ if isinstance(error, Unknown) else error
    raised = getattr(inner, "orig", None) or inner  # the driver's own, of what SQLAlchemy wraps
    code = (getattr(raised, "sqlite_errorcode", None) or 0) & 0xFF
    state = getattr(raised, "sqlstate", None) or ""
    kinds = {x.__name__ for x in type(raised).__mro__}  # the standard's names, which both drivers use
    clash = code in _BUSY or state in _CLASHES
    # What no server has said comes from the connection.
    lost = not place.sqlite and (state.startswith(_AWAY) or (not state and bool(kinds & _CONNECTION)))
    if isinstance(inner, StoreError):
        message = str(inner)
    else:
        lines = str(raised).strip().splitlines() or [type(raised).__name__]
        remedy = f"; {_REMEDIES[code]}" if code in _REMEDIES else ""
        if table_missing(raised):
            remedy = "; somebody deleted it, and what it had is gone. The next call that writes makes it anew"
        message = f"{place.shown}: {'; '.join(x.strip() for x in lines[:2])}{remedy}"
    if isinstance(error, Unknown):
        message += " (while committing: it may have been done)"
    alone = not (clash or lost or isinstance(inner, StoreError) or kinds & _CONNECTION)
    failure = Failure(place.clean(message), error, again=clash or lost, lost=lost, alone=alone)
    failure.__cause__ = inner
    return failure
