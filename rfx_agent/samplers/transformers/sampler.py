"""A sampler over a model inside the process."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

from rfx_agent._closing import AsyncClosing
from rfx_agent.checks import number, whole
from rfx_agent.errors import ConfigError, SamplerError
from rfx_agent.evidence.tables import TopLogprobs
from rfx_agent.ports import Sampler
from rfx_agent.records import Rollout, SampleRequest, SampleResult, Usage
from rfx_agent.samplers.transformers.batcher import Batched, Batcher
from rfx_agent.samplers.transformers.model import CausalModel, check_model
from rfx_agent.samplers.transformers.plans import Decoded, Plan, Row

__all__ = ["TransformersSampler", "check_request", "room", "table_of"]


class TransformersSampler(AsyncClosing, Sampler):
    """Samples completions from a ``CausalModel``.

    Draws come from the whole distribution at the request's temperature, 0 being the most probable token; draw i of a
    request has the seed ``request.seed + i``, and depends on what else is decoded beside it by rounding only. Requests
    that come at once, from any number of threads and event loops, share the model's batches.

    Args:
        model: the model.
        top_k: log-probabilities recorded per position where a request wants them, or None for none.
        max_rows: most rows in a batch; bounds memory.
        name: for records and messages; by default the model's.

    Raises:
        ConfigError: a parameter that cannot work.

    Example:
        >>> TransformersSampler(CausalModel("smollm2-135m", device="cpu"), name="small").continues_prefix
        True
    """

    continues_prefix = True

    def __init__(
        self, model: CausalModel, *, top_k: int | None = 100, max_rows: int = 16, name: str | None = None
    ) -> None:
        self.model = check_model("TransformersSampler: model", model)
        if top_k is not None:
            whole("TransformersSampler: top_k", top_k, least=1)
        self.name = name or model.name
        self._top_k = top_k
        self._batcher = Batcher(
            model, max_rows=whole("TransformersSampler: max_rows", max_rows, least=1), name=self.name
        )

    def __repr__(self) -> str:
        return f"TransformersSampler({self.model!r}, top_k={self._top_k})"

    def sample(self, request: SampleRequest) -> SampleResult:
        """Draw ``request.n`` completions; blocks.

        Raises:
            ConfigError: a parameter of the request that cannot work; an extra is missing.
            WeightsError: the weights cannot be had or loaded.
            SamplerError: the context is too long, memory is short, or it was closed.
        """
        rows = self._rows(request)
        return self._result(request, rows, self._batcher.run(rows))

    async def asample(self, request: SampleRequest) -> SampleResult:
        """Do what ``sample`` does, without blocking the event loop."""
        rows = await asyncio.to_thread(self._rows, request)
        return self._result(request, rows, await self._batcher.arun(rows))

    def close(self) -> None:
        """Refuse further requests and end those that run; idempotent. The model is left as it is."""
        self._batcher.close()

    def _rows(self, request: SampleRequest) -> list[Row]:
        check_request(self.name, request)
        self._batcher.check_open()
        self.model.start()
        context = self.model.prompt_ids(request.messages, prefix=request.prefix or "")
        most = room(self.model, context, request.max_tokens)
        plan, stops = Plan(request.temperature), self.model.stop_ids
        k = self._top_k if request.want_logprobs else None
        seeds = [None if request.seed is None else request.seed + i for i in range(request.n)]
        return [Row(context, plan, most, seed, stops, k) for seed in seeds]

    def _result(self, request: SampleRequest, rows: Sequence[Row], batched: Batched) -> SampleResult:
        prefix = request.prefix or ""
        before = self.model.encode(prefix)
        made, response = [], uuid.uuid4().hex
        for i, (row, one) in enumerate(zip(rows, batched.decoded, strict=True)):
            tokens = self.model.token_texts((*before, *one.ids))[len(before) :]
            rollout = Rollout(
                prefix + "".join(tokens),
                response_id=f"{response}:{i}",
                temperature=request.temperature,
                finish_reason=one.finish_reason,
                usage=Usage(0 if i else batched.read, len(one.ids), 0 if i else 1),
                prompt_ids=row.context,
                tokens=tokens,
                logprobs=table_of(one),
                start=len(prefix),
            )
            made.append(rollout)
        notes = []
        if request.want_logprobs and self._top_k is None:
            notes.append(f"{self.name}: no log-probabilities, for top_k is None")
        return SampleResult(tuple(made), sum((x.usage for x in made), Usage()), tuple(notes))


def table_of(decoded: Decoded) -> TopLogprobs | None:
    """The specialist's top-K table of a completion, where it was recorded."""
    if decoded.top_ids is None or decoded.top_logprobs is None:
        return None
    return TopLogprobs(decoded.top_ids, decoded.top_logprobs, decoded.ids)  # type: ignore[arg-type]  # it converts


def room(model: CausalModel, context: Sequence[int], wanted: int) -> int:
    """How many of the ``wanted`` tokens fit behind ``context``.

    Raises:
        SamplerError: not one does.
    """
    free = model.context - len(context)
    if free < 1:
        raise SamplerError(
            f"{model.name}: the prompt has {len(context)} tokens and the model reads {model.context}; shorten it"
        )
    return min(wanted, free)


def check_request(name: str, request: SampleRequest) -> None:
    """Raise ``ConfigError`` for what no decoding can do; ``name`` is whose, for the message."""
    whole(f"{name}: n", request.n, least=1)
    whole(f"{name}: max_tokens", request.max_tokens, least=1)
    number(f"{name}: temperature", request.temperature, least=0)
    if request.seed is not None and (isinstance(request.seed, bool) or not isinstance(request.seed, int)):
        raise ConfigError(f"{name}: seed is {request.seed!r}; give an integer, or None for fresh draws")
