"""A model inside the process, through PyTorch and Hugging Face's ``transformers`` (extra ``transformers``).

Sampling, scoring and steering share one loaded ``CausalModel``. The libraries are imported when a model is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rfx_agent._lazy import lazily

if TYPE_CHECKING:
    from rfx_agent.samplers.transformers.compare import check_tokenizers
    from rfx_agent.samplers.transformers.model import CausalModel
    from rfx_agent.samplers.transformers.sampler import TransformersSampler
    from rfx_agent.samplers.transformers.scorer import TransformersScorer
    from rfx_agent.samplers.transformers.steerer import TransformersSteerer

__all__ = ["CausalModel", "TransformersSampler", "TransformersScorer", "TransformersSteerer", "check_tokenizers"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "CausalModel": "model",
        "TransformersSampler": "sampler",
        "TransformersScorer": "scorer",
        "TransformersSteerer": "steerer",
        "check_tokenizers": "compare",
    },
)
