"""States that earlier versions left behind, recorded under ``tests/data/states``, and how to open them.

``record.py`` there made them with version 0.1; ``manifest.json`` says what each is and what that version made of it.
Nothing here imports ``rfx_agent``, so that it opens the same records for any version.
"""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver

__all__ = ["STATES", "json_of", "lines_of", "load_memory", "manifest", "unpacked"]

STATES = Path(__file__).parent / "data" / "states"


def manifest() -> dict[str, Any]:
    """What was recorded, and what version 0.1 made of it."""
    read: dict[str, Any] = json_of("manifest.json")
    return read


def json_of(name: str) -> Any:
    """One of the JSON files, by its name; one that ends in ``.gz`` is unpacked."""
    return json.loads(_bytes_of(STATES / name))


def lines_of(name: str) -> list[Any]:
    """The objects of one of the files that hold one JSON object a line."""
    return [json.loads(line) for line in _bytes_of(STATES / name).splitlines()]


def unpacked(name: str, folder: Path) -> Path:
    """A copy of one of the files in ``folder``, to be written to; without the ending ``.gz``, where it has that."""
    to = folder / name.removesuffix(".gz")
    to.write_bytes(_bytes_of(STATES / name))
    return to


def load_memory(path: Path = STATES / "memory.json.gz") -> InMemorySaver:
    """A new ``InMemorySaver`` with everything that was in the recorded one."""
    kept, saver = json.loads(_bytes_of(path)), InMemorySaver()
    for thread, namespace, checkpoint, value, metadata, parent in kept["storage"]:
        saver.storage[thread][namespace][checkpoint] = (_typed(value), _typed(metadata), parent)
    for at, key, (task, channel, value, task_path) in kept["writes"]:
        saver.writes[tuple(at)][tuple(key)] = (task, channel, _typed(value), task_path)
    for key, value in kept["blobs"]:
        saver.blobs[tuple(key)] = _typed(value)
    return saver


def _typed(pair: list[str]) -> tuple[str, bytes]:
    """What a checkpointer's serializer gave: the kind, and the bytes, which stand here in base64."""
    kind, text = pair
    return kind, base64.b64decode(text)


def _bytes_of(path: Path) -> bytes:
    raw = path.read_bytes()
    return gzip.decompress(raw) if path.suffix == ".gz" else raw
