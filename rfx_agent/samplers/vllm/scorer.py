"""vLLM, and servers with its API: scoring an ancestor's way through a specialist's tokens, and drawing with token ids.

Serve the ancestor with ``vllm serve MODEL --max-logprobs K`` for more than 20 entries per row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rfx_agent._closing import AsyncClosing
from rfx_agent.checks import whole
from rfx_agent.errors import ConfigError
from rfx_agent.ports import Scorer
from rfx_agent.records import Rollout, ScoreResult, Step
from rfx_agent.samplers.openai.clients import adrive, drive
from rfx_agent.samplers.openai.sampler import OpenAISampler
from rfx_agent.samplers.vllm.flow import Kept, Scoring, score_flow
from rfx_agent.samplers.vllm.tokens import Encode, VLLMTokens

__all__ = ["VLLMScorer", "VLLMTokens", "vllm_sampler"]


class VLLMScorer(AsyncClosing, Scorer):
    """Gives an ancestor's top-K log-probabilities at the positions of rollouts that a specialist wrote.

    A rollout's tokens are those of its table, read after its ``prompt_ids``, both by id: as ``vllm_sampler`` draws
    them. Where it has no prompt ids, the server encodes the step's messages and the continued prefix with its own
    chat template; where it has no table, the server encodes its text, which then must survive the way back, and the
    table has no row for the token that ended the turn. Before anything is scored the tokenizers are compared.

    Tables are kept (the last ``keep``), so that a call repeated after a failure asks only for what is missing. Rows
    are checked; what is wrong with one rollout is a ``FeatureError`` in its place, and the others are scored.

    Args:
        model: the ancestor's name on its server.
        base_url: the server, ``/v1`` included.
        api_key: by default ``OPENAI_API_KEY``, else a placeholder.
        specialist: the specialist's tokenizer, compared with the ancestor's once: ``VLLMTokens`` of its server, or a
            callable from text to token ids that adds none (``CausalModel.encode``). Without it, the ancestor is
            asked in each call to decode the longest of the rollouts to be scored: it must give its text.
        top_k: entries per row, 1 to 100. The server must allow it: vLLM's ``--max-logprobs`` is 20 by default. With
            100 fewer of the specialist's tokens are absent, each of which counts 1000 / T nats in the divergence.
        batch: most rollouts in one request.
        concurrency: most requests at once.
        timeout: seconds that the head of an answer may take, per attempt; a body may take as long again, and 64 MiB.
        max_retries: transport retries after a transient failure; each counts in ``Usage.calls``.
        keep: tables kept, 0 for none; one of 500 positions with 100 entries takes 0.8 MB.
        name: for records and messages; by default the model's.

    Raises:
        ConfigError: a parameter that cannot work.

    One instance serves any number of threads and event loops at once.

    Example:
        >>> VLLMScorer("qwen3-32b", base_url="http://127.0.0.1:8000/v1", top_k=100)
        VLLMScorer('qwen3-32b', top_k=100, name='qwen3-32b')
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        api_key: str | None = None,
        specialist: VLLMTokens | Encode | None = None,
        top_k: int = 20,
        batch: int = 4,
        concurrency: int = 8,
        timeout: float = 60.0,
        max_retries: int = 2,
        keep: int = 64,
        name: str | None = None,
    ) -> None:
        whole("VLLMScorer: top_k", top_k, least=1, most=100)
        whole("VLLMScorer: batch", batch, least=1)
        whole("VLLMScorer: concurrency", concurrency, least=1)
        whole("VLLMScorer: keep", keep)
        if specialist is not None and not isinstance(specialist, VLLMTokens) and not callable(specialist):
            raise ConfigError(
                f"VLLMScorer: specialist is {specialist!r}; give VLLMTokens, a callable from text to ids, or None"
            )
        server = VLLMTokens(model, base_url=base_url, api_key=api_key, timeout=timeout, max_retries=max_retries)
        self.model = model
        self.name = name or model
        self._scoring = Scoring(server, specialist, self.name, top_k, batch, concurrency, Kept(keep))

    def __repr__(self) -> str:
        return f"VLLMScorer({self.model!r}, top_k={self._scoring.k}, name={self.name!r})"

    def score(self, step: Step, rollouts: Sequence[Rollout]) -> ScoreResult:
        """One table per rollout, aligned with its tokens; blocks.

        Usage counts every request, comparisons and transport retries included, and every token that the ancestor
        read; rollouts whose table was kept cost nothing.

        Raises:
            TokenizerMismatch: the ancestor reads the specialist's ids as other tokens; nothing was scored.
            SamplerError: no rollout could be scored because the server failed or cannot be reached. Where a part
                could, the others are ``FeatureError`` values.
        """
        return drive(score_flow(self._scoring, step, rollouts), most=self._scoring.concurrency)

    async def ascore(self, step: Step, rollouts: Sequence[Rollout]) -> ScoreResult:
        """Do what ``score`` does, without blocking the event loop."""
        return await adrive(score_flow(self._scoring, step, rollouts), most=self._scoring.concurrency)

    def close(self) -> None:
        """Close the connections; idempotent. A ``specialist`` given is its owner's to close."""
        self._scoring.server.close()

    async def aclose(self) -> None:
        """Do what ``close`` does, and close the connections of the running event loop."""
        await self._scoring.server.aclose()


def vllm_sampler(
    model: str,
    *,
    base_url: str,
    api_key: str | None = None,
    top_k: int = 20,
    timeout: float = 60.0,
    max_retries: int = 2,
    extra_body: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> OpenAISampler:
    """An ``OpenAISampler`` that has vLLM name every token by its id and continue a prefix.

    Its rollouts carry ``prompt_ids`` and tables in the tokenizer's ids, so that an ancestor can score them and a
    prefix can be continued at any token. Ids of the completion and of its table are held against each other.

    Args:
        model: the model's name on the server.
        base_url: the server, ``/v1`` included.
        api_key: by default ``OPENAI_API_KEY``, else a placeholder.
        top_k: entries per row, 2 to 100. The server must allow it: vLLM's ``--max-logprobs`` is 20 by default. vLLM
            lists the taken token in place of the last entry where it is not among them; such a row has one less.
        timeout: seconds that the head of an answer may take, per attempt; a body may take as long again, and 64 MiB.
        max_retries: transport retries after a transient failure.
        extra_body: further fields of every body, such as ``{"top_p": 0.95}``.
        name: for records and messages; by default the model's.

    Raises:
        ConfigError: a parameter that cannot work.

    Example:
        >>> vllm_sampler("qwen3-8b", base_url="http://127.0.0.1:8001/v1").continues_prefix
        True
    """
    whole("vllm_sampler: top_k", top_k, least=2, most=100)
    return OpenAISampler(
        model,
        base_url=base_url,
        api_key=api_key,
        top_logprobs=top_k,
        timeout=timeout,
        max_retries=max_retries,
        continues_prefix=True,
        prefix_body={"continue_final_message": True, "add_generation_prompt": False},
        extra_body={**(extra_body or {}), "return_token_ids": True, "return_tokens_as_token_ids": True},
        name=name,
    )
