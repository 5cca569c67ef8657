"""A vLLM server: a sampler with token ids, and a scorer for an ancestor's log-probabilities."""

from rfx_agent.samplers.vllm.scorer import VLLMScorer, VLLMTokens, vllm_sampler

__all__ = ["VLLMScorer", "VLLMTokens", "vllm_sampler"]
