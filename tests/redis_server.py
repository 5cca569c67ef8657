"""A real Redis for tests: started once for all of them, with an empty database for each that asks.

Use the fixtures with ``pytest_plugins = ("redis_server",)`` in a test module.
"""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

__all__ = ["RedisServer", "redis_server", "redis_url", "running_redis"]


class RedisServer:
    """A server on a unix socket in a directory of its own, gone with the process. What it has answered is on disk.

    Args:
        options: further settings, such as ``maxmemory="2mb"``.
    """

    def __init__(self, **options: str) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="rfx-redis-"))
        self.socket = str(self._home / "redis.sock")
        self._options = {
            "port": "0",
            "unixsocket": self.socket,
            "dir": str(self._home),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
            "databases": "2000",
            **{name.replace("_", "-"): value for name, value in options.items()},
        }
        self._numbers = itertools.count(1)
        self._owner = os.getpid()
        atexit.register(self.close)
        self.start()

    @property
    def url(self) -> str:
        """Of its first database."""
        return f"unix://{self.socket}"

    def fresh(self) -> str:
        """The URL of an empty database that no one else has."""
        return f"{self.url}?db={next(self._numbers)}"

    def client(self, url: str | None = None) -> Any:
        """A client of redis-py."""
        import redis

        return redis.Redis.from_url(url or self.url)

    def start(self) -> None:
        """Start it with what it has on disk, and wait until it answers."""
        import redis

        given = [part for name, value in self._options.items() for part in (f"--{name}", value)]
        log = ["--logfile", str(self._home / "log")]
        command = [shutil.which("redis-server") or "redis-server", *given, *log]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        ends = time.monotonic() + 60
        while True:
            try:
                with self.client() as client:
                    client.ping()
            except redis.RedisError:
                if time.monotonic() > ends or self._process.poll() is not None:
                    raise RuntimeError((self._home / "log").read_text()) from None
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """Kill it: connections break, nothing is shut down in order."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Stop it in the middle of whatever it does: it accepts, and answers nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def kill_connections(self) -> None:
        """Break every connection but this one."""
        with self.client() as client:
            client.client_kill_filter(skipme=True, _type="normal")

    def close(self) -> None:
        """Stop it and delete what it has; only in the process that started it."""
        if os.getpid() == self._owner:
            self.stop()
            shutil.rmtree(self._home, ignore_errors=True)


@lru_cache(maxsize=1)
def running_redis() -> RedisServer:
    """The server of this process."""
    return RedisServer()


def why_not() -> str:
    """What a Redis for tests needs and is not here."""
    try:
        import redis  # noqa: F401
    except ImportError:
        return "redis-py is not installed: pip install redis"
    return "" if shutil.which("redis-server") else "there is no redis-server: apt-get install redis-server"


@pytest.fixture(scope="session")
def redis_server() -> RedisServer:
    """The server, the same for all tests of the session."""
    if missing := why_not():
        pytest.skip(missing)
    return running_redis()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of a database that no other test has."""
    return redis_server.fresh()
