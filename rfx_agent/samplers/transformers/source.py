"""What a user may name as a model, and how each is told from the others."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from rfx_agent.errors import ConfigError, WeightsError
from rfx_agent.samplers.transformers.gguf import marked_sha256
from rfx_agent.samplers.weights.cache import check_gguf
from rfx_agent.samplers.weights.known import WEIGHTS, Weights
from rfx_agent.samplers.weights.pinned import Mark

__all__ = ["folder_sha256", "resolve", "weight_files"]

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w.-]+")
_WEIGHT_FILES = ("*.safetensors", "*.bin")


def resolve(weights: str | Path | Weights) -> Weights | Path | str:
    """A record, a path that is there, or an id on the Hub."""
    if isinstance(weights, Weights):
        return weights
    if isinstance(weights, str) and weights in WEIGHTS:
        return WEIGHTS[weights]
    path = Path(weights).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise WeightsError(f"weights {path} has no config.json; give a model directory as transformers saves it")
        return path
    if path.suffix == ".gguf" or isinstance(weights, Path):
        check_gguf(path)
        return path.resolve()
    if not _HUB_ID.fullmatch(str(weights)):
        raise ConfigError(
            f"CausalModel: weights is {weights!r}; give one of {', '.join(sorted(WEIGHTS))}, the path of a GGUF file "
            "or of a model directory, or a model id on the Hub such as 'owner/name'"
        )
    return str(weights)


def weight_files(folder: Path) -> list[Path]:
    """The files of a model directory that hold its weights."""
    return sorted(file for pattern in _WEIGHT_FILES for file in folder.glob(pattern))


def folder_sha256(folder: Path) -> tuple[str, dict[Path, Mark]]:
    """SHA-256 over those of a model directory's weight files, and the marks that these had before they were read."""
    found = {file: marked_sha256(file) for file in weight_files(folder)}
    lines = [f"{file.name} {sha256}\n" for file, (sha256, _) in found.items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest(), {file: mark for file, (_, mark) in found.items()}
