"""Any server that speaks OpenAI's chat completions: from a request to bodies, and from replies to rollouts."""

from rfx_agent.samplers.openai.sampler import OpenAISampler

__all__ = ["OpenAISampler"]
