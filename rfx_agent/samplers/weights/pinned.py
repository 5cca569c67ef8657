"""What was hashed is what is read: a file is held open from its hash on, and looked at again after it was read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import TypeAlias

from rfx_agent._closing import Closing
from rfx_agent.errors import WeightsCorrupt

__all__ = ["Mark", "Pinned", "hashed", "mark_of", "pin", "unchanged"]

Mark: TypeAlias = tuple[int, ...]
"""Device, number, size and times of a file: another one's, or those after a write, are others."""


class Pinned(Closing):
    """A file whose hash is right, held open. Close it when it was read.

    Args:
        source: where it lies.
        file: it, open.
        mark: its mark before it was hashed.
    """

    def __init__(self, source: Path, file: BufferedReader, mark: Mark) -> None:
        self.source = source
        self._file = file
        self.mark = mark

    @property
    def path(self) -> Path:
        """What is to be read: the open file itself where the system has a name for it, else where it lies."""
        own = Path(f"/proc/self/fd/{self._file.fileno()}")
        return own if own.exists() else self.source

    def check(self) -> None:
        """To be called after it was read, with success or not.

        Raises:
            WeightsCorrupt: it, or where it has no name of its own another file in its place, was written meanwhile.
        """
        unchanged({self.source: self.mark}, os.fstat(self._file.fileno()))
        if self.path == self.source:
            unchanged({self.source: self.mark})

    def close(self) -> None:
        """Idempotent."""
        self._file.close()


def mark_of(stat: os.stat_result) -> Mark:
    """The mark of a file, by what the system says of it."""
    # The time of change cannot be set, as the time of writing can.
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def unchanged(marks: Mapping[Path, Mark], stat: os.stat_result | None = None) -> None:
    """Raise ``WeightsCorrupt`` where a file has another mark now; ``stat`` is what the system says of the only one."""
    for path, mark in marks.items():
        try:
            now: Mark | None = mark_of(stat or path.stat())
        except OSError:
            now = None
        if now != mark:
            raise WeightsCorrupt(f"{path} was changed or replaced after its SHA-256 was checked; load the model again")


def hashed(file: BufferedReader) -> tuple[str, Mark]:
    """SHA-256 in hex of an open file, and its mark before that."""
    mark = mark_of(os.fstat(file.fileno()))
    return hashlib.file_digest(file, "sha256").hexdigest(), mark


def pin(path: Path, sha256: str, size: int | None = None) -> Pinned | None:
    """The file at ``path``, held open; None where it has another size or hash.

    Raises:
        OSError: it cannot be read.
    """
    file = path.open("rb")
    try:
        if size is None or os.fstat(file.fileno()).st_size == size:
            digest, mark = hashed(file)
            if digest == sha256 and mark == mark_of(os.fstat(file.fileno())):
                return Pinned(path, file, mark)
    except BaseException:
        file.close()
        raise
    file.close()
    return None
