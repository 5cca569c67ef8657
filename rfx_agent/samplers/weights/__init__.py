"""Model weights: fetched once, verified by hash each time, shared between processes."""

from rfx_agent.samplers.weights.cache import check_gguf, fetch, weights_path
from rfx_agent.samplers.weights.known import QWEN_CODER_0_5B, QWEN_CODER_1_5B, SMOLLM2_135M, WEIGHTS, Weights
from rfx_agent.samplers.weights.sources import Progress

__all__ = [
    "QWEN_CODER_0_5B",
    "QWEN_CODER_1_5B",
    "SMOLLM2_135M",
    "WEIGHTS",
    "Progress",
    "Weights",
    "check_gguf",
    "fetch",
    "weights_path",
]
