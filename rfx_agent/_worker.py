"""A helper process of our own, for what this one cannot interrupt or cannot do.

One process, started on first use, used by one call at a time, killed and replaced when a call takes too long, and gone
when its standard input closes. It is a plain subprocess, not ``multiprocessing``: nothing of the user's ``__main__`` is
imported in it and nothing is inherited from threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from rfx_agent._forks import in_child, own_environment

__all__ = ["Worker", "WorkerTimeout"]

_START_SECONDS = 120.0  # importing sympy on a busy machine


class WorkerTimeout(Exception):
    """The job took too long; its process is gone."""


class Worker:
    """The parent's side of a helper process; any thread may call it. A forked child starts a helper of its own.

    Args:
        script: what the helper runs. It is given its arguments and ``sys.path`` as JSON, reads one JSON job a line and
            writes one JSON reply a line; the job ``load`` has it import what another one needs.
        arguments: of the script.
    """

    def __init__(self, script: Path, *arguments: str) -> None:
        self._command = str(script), *arguments
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipes: tuple[int, ...] = ()  # to it and from it; bare, for a stream's lock may be held when it is forked
        self._loaded: set[str] = set()
        in_child(Worker._forked, self)

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
            sent = memoryview(json.dumps(job).encode() + b"\n")
            while sent:
                sent = sent[os.write(self._pipes[0], sent) :]
            while not line.endswith(b"\n") and (more := os.read(self._pipes[1], 2**16)):
                line += more
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
        if process is not None and process.poll() is None:
            return process
        self._stop()
        (its_in, to), (back, its_out) = os.pipe(), os.pipe()
        self._pipes = to, back
        try:
            # -I: the script's folder may hold a math.py, which must not be found before the standard library's.
            self._process = subprocess.Popen(  # noqa: S603  # our own script, by our own interpreter
                [sys.executable, "-I", *self._command, json.dumps(sys.path)],
                stdin=its_in,
                stdout=its_out,
                stderr=subprocess.DEVNULL,
                env=own_environment(),
            )
        except BaseException:
            self._stop()
            raise
        finally:
            os.close(its_in)
            os.close(its_out)
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        self._hang_up()
        if process is not None:
            process.kill()
            process.wait()

    def _hang_up(self) -> None:
        pipes, self._pipes = self._pipes, ()
        self._loaded.clear()
        for pipe in pipes:
            os.close(pipe)

    def _forked(self) -> None:
        """In a forked child: the helper is its parent's, and so is whoever held the lock."""
        self._lock = threading.Lock()
        process, self._process = self._process, None
        if process is not None:
            process.returncode = 0  # there is nothing to wait for
        self._hang_up()
