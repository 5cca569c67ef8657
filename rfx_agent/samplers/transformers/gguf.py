"""GGUF files as folders that ``transformers`` loads within seconds: unpacked to float32 once, then kept.

A folder is in its place only when it is whole: it is built beside it, flushed and moved there, under a lock that
processes share. Its list of files carries their sizes and hashes, so that what was damaged since is found and built
again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rfx_agent._extras import need
from rfx_agent.errors import WeightsCorrupt, WeightsError
from rfx_agent.samplers.transformers.libs import library, quiet
from rfx_agent.samplers.weights.cache import flush
from rfx_agent.samplers.weights.pinned import Mark, Pinned, hashed, pin

__all__ = ["file_sha256", "marked_sha256", "unpacked", "unpacked_path"]

_log = logging.getLogger(__name__)

_FORMAT = 1  # of the folder; raise it when what is written changes
_LIST = "files.json"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return marked_sha256(path)[0]


def marked_sha256(path: Path) -> tuple[str, Mark]:
    """SHA-256 of a file, in hex, and the mark that it had before it was read."""
    try:
        with path.open("rb") as file:
            return hashed(file)
    except OSError as error:
        raise WeightsError(f"weights {path} cannot be read: {error.strerror}; give a model's file") from error


def unpacked_path(root: Path, digest: str) -> Path:
    """Where the folder of the GGUF file with this SHA-256 belongs."""
    return root / "unpacked" / f"{digest}-v{_FORMAT}"


def unpacked(root: Path, digest: str, source: Callable[[], Pinned | None]) -> tuple[Path, dict[Path, Mark]]:
    """A whole folder with the weights in float32, the configuration and the tokenizer; its files' marks.

    Args:
        root: the cache.
        digest: SHA-256 of the GGUF file.
        source: gives the file with this SHA-256, or None where another one lies there by now; asked only when the
            folder has to be built.

    Raises:
        WeightsError: the file is no model that ``transformers`` can read, or the cache cannot be written.
        WeightsCorrupt: the file was changed or replaced meanwhile.
    """
    folder = unpacked_path(root, digest)
    # No lock for a folder that is there: it was moved in whole, and the cache may be read-only.
    if marks := _whole(folder):
        return folder, marks
    held = source()
    if held is None:
        raise WeightsCorrupt(f"the weights with SHA-256 {digest} were changed or replaced; load the model again")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with held, need("filelock", "local").FileLock(folder.with_name(f".{folder.name}.lock")):
            # Another process may have built it while this one waited.
            return folder, _whole(folder) or _build(held, folder)
    except OSError as error:
        if isinstance(error, WeightsError):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise WeightsError(
            f"{held.source} could not be unpacked in {folder.parent}: {error}; it takes about 4 bytes per parameter: "
            f"{'make room there' if full else 'check the folder'}, or set RFX_CACHE to another directory"
        ) from error


def _build(held: Pinned, folder: Path) -> dict[Path, Mark]:
    path = held.source
    if folder.exists():
        _log.warning("%s is not what was written there (sizes or SHA-256 differ); unpacking %s again", folder, path)
    for stale in folder.parent.glob(f".{folder.name}.*.part"):  # of runs that were killed: the lock is ours
        shutil.rmtree(stale, ignore_errors=True)
    room = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        whole = room / "whole"
        whole.mkdir()
        if held.path != path:  # transformers wants a folder and a file's name
            path = room / path.name
            path.symlink_to(held.path)
        _unpack(path, whole, held.source)
        held.check()
        files = sorted(whole.iterdir())
        for file in files:
            file.chmod(0o644)  # the cache may be shared; some writers keep a file to themselves
        marked = {file.name: marked_sha256(file) for file in files}
        listed = {
            name: {"size": (whole / name).stat().st_size, "sha256": sha256} for name, (sha256, _) in marked.items()
        }
        (whole / _LIST).write_text(json.dumps(listed, indent=1))
        for file in (*files, whole / _LIST, whole):
            flush(file)
        if folder.exists():
            folder.rename(room / "broken")
        whole.rename(folder)
        flush(folder.parent)
        return {folder / name: mark for name, (_, mark) in marked.items()}
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _unpack(path: Path, folder: Path, source: Path) -> None:
    """Unpack the file at ``path`` into ``folder``; ``source`` is its name in messages."""
    transformers, torch = library("transformers"), library("torch")
    for name in ("gguf", "accelerate"):  # what it reads such a file with
        library(name)
    save_file = library("safetensors.torch").save_file
    given: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(path.parent), **given)
            model = transformers.AutoModelForCausalLM.from_pretrained(str(path.parent), dtype=torch.float32, **given)
    # The readers of an untrusted file raise whatever its bytes lead them to.
    except Exception as error:
        raise WeightsError(
            f"transformers could not read {source}: {error}; give a GGUF file of an architecture that it knows"
        ) from error
    # ``save_pretrained`` refuses a model that came from a quantised file; these weights no longer are.
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tensors: dict[str, Any] = {}
    seen: set[tuple[int, Any]] = set()
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in seen:  # the output layer may be the embedding itself
            seen.add(key)
            tensors[name] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _whole(folder: Path) -> dict[Path, Mark] | None:
    """The marks of the folder's files, if they are all there and their hashes are right."""
    marks: dict[Path, Mark] = {}
    try:
        listed = json.loads((folder / _LIST).read_bytes())
        entries = [(folder / Path(name).name, entry["size"], entry["sha256"]) for name, entry in listed.items()]
        # Sizes first: they cost nothing.
        if any(file.stat().st_size != size for file, size, _ in entries):
            return None
        for file, size, digest in entries:
            with pin(file, digest, size) or contextlib.nullcontext() as held:
                if held is None:
                    return None
                marks[file] = held.mark
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError, AttributeError):
        return None
    except OSError as error:
        raise WeightsError(f"weights {folder} cannot be read: {error}; give this user access to them") from error
    return marks or None
