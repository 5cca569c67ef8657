"""Models that can be sampled, scored and steered. Each is loaded when it is first used, with its library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rfx_agent._lazy import lazily

if TYPE_CHECKING:
    from rfx_agent.samplers.breaker import CircuitBreaker
    from rfx_agent.samplers.chat import ChatModelSampler
    from rfx_agent.samplers.local import LocalSampler
    from rfx_agent.samplers.openai.sampler import OpenAISampler
    from rfx_agent.samplers.openai.transport import http_client
    from rfx_agent.samplers.prefix import PrefixSteerer
    from rfx_agent.samplers.transformers.model import CausalModel
    from rfx_agent.samplers.transformers.sampler import TransformersSampler
    from rfx_agent.samplers.transformers.scorer import TransformersScorer
    from rfx_agent.samplers.transformers.steerer import TransformersSteerer
    from rfx_agent.samplers.vllm.scorer import VLLMScorer, vllm_sampler

__all__ = [
    "CausalModel",
    "ChatModelSampler",
    "CircuitBreaker",
    "LocalSampler",
    "OpenAISampler",
    "PrefixSteerer",
    "TransformersSampler",
    "TransformersScorer",
    "TransformersSteerer",
    "VLLMScorer",
    "http_client",
    "vllm_sampler",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "CausalModel": "transformers.model",
        "ChatModelSampler": "chat",
        "CircuitBreaker": "breaker",
        "LocalSampler": "local",
        "OpenAISampler": "openai.sampler",
        "PrefixSteerer": "prefix",
        "TransformersSampler": "transformers.sampler",
        "TransformersScorer": "transformers.scorer",
        "TransformersSteerer": "transformers.steerer",
        "VLLMScorer": "vllm.scorer",
        "http_client": "openai.transport",
        "vllm_sampler": "vllm.scorer",
    },
)
