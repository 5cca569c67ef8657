"""What a user may name as a model, and how each is told from the others."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from rfx_agent.errors import ConfigError, WeightsError
from rfx_agent.samplers.transformers.gguf import file_sha256
from rfx_agent.samplers.weights.cache import check_gguf
from rfx_agent.samplers.weights.known import WEIGHTS, Weights

__all__ = ["folder_sha256", "resolve"]

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


def folder_sha256(folder: Path) -> str:
    files = sorted(file for pattern in _WEIGHT_FILES for file in folder.glob(pattern))
    lines = [f"{file.name} {file_sha256(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
