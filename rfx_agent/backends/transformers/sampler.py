"""A sampler over a model inside the process."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Sequence

from rfx_agent._closing import AsyncClosing
from rfx_agent._errors import ConfigError, SamplerError
from rfx_agent._types import Rollout, SampleRequest, SampleResult, Usage
from rfx_agent.backends.transformers._batcher import Batched, Batcher
from rfx_agent.backends.transformers._plans import Decoded, Plan, Row
from rfx_agent.backends.transformers.model import CausalModel
from rfx_agent.numerics.toplogprobs import TopLogprobs

__all__ = ["TransformersSampler", "check_options", "check_request", "room", "table_of"]


class TransformersSampler(AsyncClosing):
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
    """

    continues_prefix = True

    def __init__(
        self, model: CausalModel, *, top_k: int | None = 100, max_rows: int = 16, name: str | None = None
    ) -> None:
        check_options(top_k, max_rows, model=model)
        self.model = model
        self.name = name or model.name
        self._top_k = top_k
        self._batcher = Batcher(model, max_rows=max_rows, name=self.name)

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
        """The same, without blocking the event loop."""
        rows = await asyncio.to_thread(self._rows, request)
        return self._result(request, rows, await self._batcher.arun(rows))

    def close(self) -> None:
        """Refuse further requests and end those that run; idempotent. The model is left as it is."""
        self._batcher.close()

    def _rows(self, request: SampleRequest) -> list[Row]:
        check_request(request)
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


def check_request(request: SampleRequest) -> None:
    """Raise ``ConfigError`` for what no decoding can do."""
    for label, value in (("n", request.n), ("max_tokens", request.max_tokens)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{label} is {value!r}; give 1 or more")
    heat = request.temperature
    if isinstance(heat, bool) or not isinstance(heat, int | float) or not 0 <= heat < math.inf:
        raise ConfigError(f"temperature is {heat!r}; give a finite number, 0 or more")
    if request.seed is not None and (isinstance(request.seed, bool) or not isinstance(request.seed, int)):
        raise ConfigError(f"seed is {request.seed!r}; give an integer, or None for fresh draws")


def check_options(top_k: int | None, max_rows: int, **models: CausalModel) -> None:
    """Raise ``ConfigError`` for options that cannot work."""
    for label, model in models.items():
        if not isinstance(model, CausalModel):
            raise ConfigError(f"{label} is {model!r}; give a CausalModel")
    for label, value in (("top_k", top_k), ("max_rows", max_rows)):
        if label == "top_k" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{label} is {value!r}; give 1 or more{' or None' if label == 'top_k' else ''}")
