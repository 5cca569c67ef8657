"""The journal of a collection: every finished unit of work in one SQLite file, each in a transaction of its own.

A process that is killed loses the units it was working on and no others. A journal belongs to one plan: it refuses
another, and lets the plan only grow.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rfx_agent._closing import Closing
from rfx_agent.errors import ConfigError
from rfx_agent.lab.dataset import DatasetError, disk

__all__ = ["JOURNAL", "Fingerprint", "Journal", "Key", "Unit"]

JOURNAL = "journal.sqlite"
_LOCK = "journal.lock"
_VERSION = 2  # in version 1 a remedy was an operator, and what is expected a reference
_TABLES = f"""
PRAGMA user_version = {_VERSION};
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS problems (place INTEGER PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS units (
    problem TEXT NOT NULL, remedy TEXT NOT NULL, attempt INTEGER NOT NULL, record BLOB NOT NULL, raw BLOB,
    PRIMARY KEY (problem, remedy, attempt));
"""


class Key(NamedTuple):
    """Names one unit of work: ``remedy`` is a remedy's name, or ``score``."""

    problem: str
    remedy: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Unit:
    """One finished unit: its record (plain JSON) and, for draws that are measured later, their packed tables."""

    key: Key
    record: Mapping[str, Any]
    raw: bytes | None = None


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What makes a plan the same plan.

    Attributes:
        fixed: values that must not change; one that was None may be set once.
        growing: numbers that may only grow (None is no limit), and lists that may only get longer.
        problems: the problems in order, as JSON; more may follow.
        extras: recorded and never compared.
    """

    fixed: Mapping[str, Any]
    growing: Mapping[str, Any]
    problems: Sequence[Mapping[str, Any]]
    extras: Mapping[str, Any]


class Journal(Closing):
    """The journal in ``folder``.

    Args:
        folder: the collection's folder; made if need be.
        write: take the folder for this process. Reading needs no lock and does not disturb a writer.

    Raises:
        DatasetError: there is no journal to read, or it cannot be opened.
        ConfigError: another process is writing into the folder.
    """

    def __init__(self, folder: Path, *, write: bool = True) -> None:
        self.path = folder / JOURNAL
        self._lock: sqlite3.Connection | None = None
        if not write and not self.path.exists():
            raise DatasetError(f"{folder} has no {JOURNAL}; there is nothing to finish, collect first")
        with disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if write:
                self._lock = _locked(folder)
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=30)
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                _check_version(self._db, self.path)
                if write:
                    self._db.executescript(_TABLES)
            except BaseException:
                self.close()
                raise

    def begin(self, plan: Fingerprint) -> None:
        """Start a new journal with ``plan``; resume a journal that was begun with the same plan or a smaller one.

        Raises:
            ConfigError: ``plan`` changes a setting that must stay as it was; the message names each such setting.
        """
        known = self.plan()
        if known is not None and (differences := _differences(known, plan)):
            raise ConfigError(
                f"{self.path.parent} was begun under another plan: {'; '.join(differences)}; "
                "go on with the old settings, or give a new folder"
            )
        start = 0 if known is None else len(known.problems)
        values = {"fixed": plan.fixed, "growing": plan.growing, "extras": plan.extras}
        with disk(self.path), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for name, value in values.items():
                self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, json.dumps(value)))
            self._db.executemany(
                "INSERT INTO problems VALUES (?, ?)",
                [(place, json.dumps(body)) for place, body in enumerate(plan.problems) if place >= start],
            )

    def plan(self) -> Fingerprint | None:
        """The plan so far, or None in a new journal."""
        with disk(self.path):
            meta = {name: json.loads(value) for name, value in self._db.execute("SELECT name, value FROM meta")}
            bodies = [json.loads(body) for (body,) in self._db.execute("SELECT body FROM problems ORDER BY place")]
        return Fingerprint(meta["fixed"], meta["growing"], bodies, meta["extras"]) if meta else None

    def add(self, units: Iterable[Unit]) -> None:
        """Record finished units, all or none; they are on the disk when this returns.

        Raises:
            DatasetError: they cannot be written, a full disk included; the journal is as it was.
        """
        rows = [(*unit.key, zlib.compress(_json(unit.record)), unit.raw) for unit in units]
        with disk(self.path), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT INTO units VALUES (?, ?, ?, ?, ?)", rows)

    def records(self) -> dict[Key, dict[str, Any]]:
        """Every unit's record."""
        with disk(self.path):
            rows = self._db.execute("SELECT problem, remedy, attempt, record FROM units")
            return {Key(*key): json.loads(zlib.decompress(record)) for *key, record in rows}

    def raw(self, key: Key) -> bytes | None:
        """The packed tables of one unit, or None."""
        with disk(self.path):
            query = "SELECT raw FROM units WHERE problem = ? AND remedy = ? AND attempt = ?"
            row = self._db.execute(query, key).fetchone()
        return None if row is None else row[0]

    def close(self) -> None:
        """Close the file and give the folder back."""
        for connection in (getattr(self, "_db", None), self._lock):
            if connection is not None:
                connection.close()


def _locked(folder: Path) -> sqlite3.Connection:
    # SQLite's own file lock: it works on every system, and a process that dies gives it back.
    lock = sqlite3.connect(folder / _LOCK, isolation_level=None, timeout=0)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        lock.close()
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
            raise ConfigError(f"another process is collecting into {folder}; wait for it, or stop it") from error
        raise
    return lock


def _check_version(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version != _VERSION and db.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise DatasetError(f"{path} is of another version; go on with that version, or give a new folder")


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _differences(old: Fingerprint, new: Fingerprint) -> list[str]:
    found = []
    before, now = _flat(old.fixed), _flat(json.loads(json.dumps(new.fixed)))
    for name in sorted({*before, *now}):
        a, b = before.get(name), now.get(name)
        if a is not None and a != b:
            found.append(f"{name} was {a!r} and is {b!r}")
    for name, b in new.growing.items():
        a = old.growing.get(name)
        if isinstance(b, list | tuple):
            if lost := [item for item in a or () if item not in b]:
                found.append(f"{name} lacks {', '.join(map(str, lost))}")
        elif name in old.growing and b is not None and (a is None or b < a):
            found.append(f"{name} was {'without limit' if a is None else a} and is {b}; it may only grow")
    if len(new.problems) < len(old.problems):
        found.append(f"there were {len(old.problems)} problems and are {len(new.problems)}; there may only be more")
    for i, (was, now_is) in enumerate(zip(old.problems, json.loads(json.dumps([*new.problems])), strict=False)):
        if was != now_is:
            names = [name for name in was if was[name] != now_is.get(name)]
            found.append(f"problem {i} ({was.get('id')!r}) has another {', '.join(names) or 'shape'}")
            break
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
