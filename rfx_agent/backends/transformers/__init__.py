"""A model inside the process, through PyTorch and Hugging Face's ``transformers`` (extra ``transformers``).

Sampling, scoring and steering share one loaded ``CausalModel``. The libraries are imported when a model is made.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rfx_agent.backends.transformers._tokens import check_tokenizers
    from rfx_agent.backends.transformers.model import CausalModel
    from rfx_agent.backends.transformers.sampler import TransformersSampler
    from rfx_agent.backends.transformers.scorer import TransformersScorer
    from rfx_agent.backends.transformers.steerer import TransformersSteerer

__all__ = ["CausalModel", "TransformersSampler", "TransformersScorer", "TransformersSteerer", "check_tokenizers"]

_LAZY = {
    "CausalModel": "model",
    "TransformersSampler": "sampler",
    "TransformersScorer": "scorer",
    "TransformersSteerer": "steerer",
    "check_tokenizers": "_tokens",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
