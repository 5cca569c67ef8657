"""A helper process for work on untrusted text that Python cannot interrupt: symbolic algebra, schemas and regular
expressions.

One process per interpreter, started on first use, used by one call at a time, killed and replaced when a call takes
too long, and gone when its standard input closes. It is a plain subprocess, not ``multiprocessing``: nothing of the
user's ``__main__`` is imported in it and nothing is inherited from threads.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from rfx_agent.verifiers.base import clip

__all__ = ["Worker", "WorkerTimeout", "ask", "shared_worker"]

_START_SECONDS = 120.0  # importing sympy on a busy machine
_MEMORY = 2 * 1024**3  # bytes of address space, where the system can limit it
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "SYSTEMROOT", "TMPDIR")  # and no key
_SCRIPT = Path(__file__).with_name("worker_main.py")


class WorkerTimeout(Exception):
    """The job took too long; its process is gone."""


class Worker:
    """The parent's side of the helper process; any thread may call it."""

    def __init__(self, *, memory: int = _MEMORY) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._loaded: set[str] = set()

    def call(self, job: dict[str, Any], *, seconds: float) -> dict[str, Any]:
        """The reply to ``job``; ``{"error": ...}`` where it failed. Raises ``WorkerTimeout`` after ``seconds`` of
        work; starting the process and importing what it needs is not counted."""
        with self._lock:
            process = self._started()
            if job["op"] not in self._loaded:
                loaded = self._exchange(process, {"op": "load", "what": job["op"]}, _START_SECONDS)
                if "error" in loaded:
                    return loaded
                self._loaded.add(job["op"])
            return self._exchange(process, {**job, "seconds": seconds}, seconds)

    def close(self) -> None:
        """Stop the process; a later call starts another."""
        with self._lock:
            self._stop()

    @property
    def pid(self) -> int | None:
        """The helper's process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def _exchange(self, process: subprocess.Popen[bytes], job: dict[str, Any], seconds: float) -> dict[str, Any]:
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), expire)
        timer.daemon = True
        timer.start()
        line = b""
        try:
            assert process.stdin is not None  # noqa: S101  # both are pipes
            assert process.stdout is not None  # noqa: S101
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            pass  # it died; what that means is told below
        finally:
            timer.cancel()
        if line.endswith(b"\n"):
            reply: dict[str, Any] = json.loads(line)
            if expired.is_set():
                self._stop()  # it answered in the moment it was killed
            return reply
        self._stop()
        if expired.is_set():
            raise WorkerTimeout(f"the helper process took longer than {seconds} s")
        return {"error": "the helper process ended, most likely out of memory or processor time"}

    def _started(self) -> subprocess.Popen[bytes]:
        process = self._process
        # A forked child must not talk into its parent's pipes.
        if process is not None and self._owner == os.getpid() and process.poll() is None:
            return process
        self._stop()
        # -I: this folder holds a math.py, which must not be found before the standard library's.
        self._process = subprocess.Popen(  # noqa: S603  # our own script, by our own interpreter
            [sys.executable, "-I", str(_SCRIPT), str(self._memory), json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
        self._owner = os.getpid()
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        self._loaded.clear()
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # unsent bytes for a process that is gone
                    pipe.close()
        process.wait()


_shared: Worker | None = None
_shared_lock = threading.Lock()


def shared_worker() -> Worker:
    """The one helper of this interpreter, stopped at exit."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Worker()
            atexit.register(_shared.close)
        return _shared


def ask(what: str, job: dict[str, Any], *, seconds: float) -> dict[str, Any] | str:
    """The shared helper's reply to ``job``, or a sentence that says why there is none; ``what`` is being done."""
    try:
        reply = shared_worker().call(job, seconds=seconds)
    except WorkerTimeout:
        return f"the {what} took longer than {seconds} s and was stopped"
    return f"the {what} could not be finished: {clip(str(reply['error']))}" if "error" in reply else reply


def _forget() -> None:
    """In a forked child: the helper is the parent's, and a lock may be held by a thread that does not exist here."""
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
