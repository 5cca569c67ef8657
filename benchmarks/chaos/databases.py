"""The databases that the harness runs on: a SQLite file, a real PostgreSQL and a real Redis of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["KINDS", "Database", "database"]

KINDS = ("sqlite", "postgres", "redis")


@dataclass(frozen=True, slots=True)
class Database:
    """One that is empty and the harness's alone.

    Attributes:
        budget: URL for the shared budget.
        checkpoints: a path, or a ``postgresql://`` URL.
        folder: for logs; gone afterwards.
        trouble: breaks connections and kills the server, in turn, and starts it again; None where there is none.
    """

    budget: str
    checkpoints: str
    folder: str
    trouble: Callable[[], None] | None = None

    @contextlib.contextmanager
    def troubled(self, every: float) -> Iterator[None]:
        """``trouble`` every so many seconds meanwhile."""
        ended = threading.Event()

        def work() -> None:
            while self.trouble is not None and not ended.wait(every):
                self.trouble()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextlib.contextmanager
def database(kind: str) -> Iterator[Database]:
    """A new database of ``kind``, of ``KINDS``, and a new folder."""
    with tempfile.TemporaryDirectory(prefix="rfx-chaos-") as folder:
        logs = Path(folder) / "logs"
        logs.mkdir()
        if kind == "sqlite":
            yield Database(f"sqlite:///{folder}/budget.db", f"{folder}/checkpoints.db", str(logs))
            return
        if kind == "redis":
            redis = _of_tests("redis_server").RedisServer()
            try:
                yield Database(redis.url, f"{folder}/checkpoints.db", str(logs), _troubles(redis))
            finally:
                redis.close()
            return
        server = _of_tests("postgres").running_postgres()
        checkpoints = server.fresh()
        from langgraph.checkpoint.postgres import PostgresSaver

        with PostgresSaver.from_conn_string(checkpoints) as saver:
            saver.setup()
        yield Database(server.fresh(), checkpoints, str(logs))


def _troubles(redis: Any) -> Callable[[], None]:
    counts = itertools.count()

    def trouble() -> None:
        if next(counts) % 3:
            redis.kill_connections()
            return
        redis.stop()
        redis.start()

    return trouble


def _of_tests(name: str) -> Any:
    """The module ``tests/<name>.py``, loaded from its file: ``tests`` is not a package."""
    if name not in sys.modules:
        place = Path(__file__).parents[2] / "tests" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, place)
        assert spec is not None  # noqa: S101  # it is a file
        assert spec.loader is not None  # noqa: S101
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]
