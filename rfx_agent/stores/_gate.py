"""A queue before an SQLite file, in which its processes stand in line.

SQLite's own waiting is a sleep of up to 100 ms and another look. With several busy processes one takes turn after
turn while others wait for seconds. The kernel's lock on a file beside the database wakes who came first; it ends with
its process, however that ends. SQLite's own lock still guards the data: where the gate cannot be had, as on Windows,
waiting is less fair and nothing else.
"""

from __future__ import annotations

import os
import random
import time
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Gate", "Taken"]

_GLANCE = 0.001  # seconds between two looks of who does not stand in line
_LOOKS = 0.02  # seconds that it looks


class Taken(Exception):
    """Another process has the gate, and the caller would not wait. Never leaves a store."""


class Gate:
    """One process's place in the line.

    Args:
        path: of the database; the file beside it ends in ``-rfx``. None for no gate.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path if fcntl is not None else None
        self._file: int | None = None
        self._held = False

    def enter(self, *, patient: bool) -> None:
        """Come to the front of the line; blocks where ``patient``, with no limit but the life of those before.

        Raises:
            Taken: it was not free for a while, and the caller is not patient.
        """
        if self._held or not self._opened():
            return
        ends = time.monotonic() + _LOOKS
        while not self._took(patient):
            if time.monotonic() >= ends:
                raise Taken
            time.sleep(_GLANCE * random.uniform(0.5, 1.0))  # noqa: S311  # so that they do not look all at once
        self._held = True

    def leave(self) -> None:
        """Let the next one in."""
        if self._held and self._file is not None:
            locks: Any = fcntl
            self._held = False
            locks.flock(self._file, locks.LOCK_UN)

    def _opened(self) -> bool:
        if self._file is None and self._path is not None:
            try:
                self._file = os.open(f"{self._path}-rfx", os.O_RDWR | os.O_CREAT, 0o666)
            except OSError:  # SQLite will say what is wrong with the folder
                self._path = None
        return self._file is not None

    def _took(self, patient: bool) -> bool:
        locks: Any = fcntl
        try:
            locks.flock(self._file, locks.LOCK_EX if patient else locks.LOCK_EX | locks.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Let go of the file. In a forked child this leaves the parent's place alone, and ``leave`` would not."""
        file, self._file, self._path, self._held = self._file, None, None, False
        if file is not None:
            os.close(file)
