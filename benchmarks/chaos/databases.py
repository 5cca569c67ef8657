"""The databases that the harness runs on: a SQLite file, and a real PostgreSQL of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["KINDS", "Database", "database"]

KINDS = ("sqlite", "postgres")


@dataclass(frozen=True, slots=True)
class Database:
    """One that is empty and the harness's alone.

    Attributes:
        budget: SQLAlchemy URL for the shared budget.
        checkpoints: a path, or a ``postgresql://`` URL.
        folder: for logs; gone afterwards.
    """

    budget: str
    checkpoints: str
    folder: str


@contextlib.contextmanager
def database(kind: str) -> Iterator[Database]:
    """A new database of ``kind``, of ``KINDS``, and a new folder."""
    with tempfile.TemporaryDirectory(prefix="rfx-chaos-") as folder:
        logs = Path(folder) / "logs"
        logs.mkdir()
        if kind == "sqlite":
            yield Database(f"sqlite:///{folder}/budget.db", f"{folder}/checkpoints.db", str(logs))
            return
        server = _postgres().running_postgres()
        checkpoints = server.fresh()
        from langgraph.checkpoint.postgres import PostgresSaver

        with PostgresSaver.from_conn_string(checkpoints) as saver:
            saver.setup()
        yield Database(server.fresh(), checkpoints, str(logs))


def _postgres() -> Any:
    """``tests/postgres.py``, which is no part of a package."""
    if "postgres" not in sys.modules:
        place = Path(__file__).parents[2] / "tests" / "postgres.py"
        spec = importlib.util.spec_from_file_location("postgres", place)
        assert spec is not None  # noqa: S101  # it is a file
        assert spec.loader is not None  # noqa: S101
        module = importlib.util.module_from_spec(spec)
        sys.modules["postgres"] = module
        spec.loader.exec_module(module)
    return sys.modules["postgres"]
