"""Any LangChain chat model: as a sampler, and what its messages say."""

from rfx_agent.samplers.chat.read import ended, rollout_of, text_of, usage_of
from rfx_agent.samplers.chat.sampler import ChatModelSampler

__all__ = ["ChatModelSampler", "ended", "rollout_of", "text_of", "usage_of"]
