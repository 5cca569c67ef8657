"""Decoding operators on two models inside the process."""

from __future__ import annotations

import asyncio
import threading
import uuid
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rfx_agent._closing import Closing
from rfx_agent.checks import among, number, share, whole
from rfx_agent.errors import RfxError, SamplerError
from rfx_agent.ports import Steerer
from rfx_agent.records import Rollout, SampleRequest, SampleResult, Step, Usage
from rfx_agent.samplers.transformers.batcher import Batched, Batcher
from rfx_agent.samplers.transformers.compare import check_tokenizers
from rfx_agent.samplers.transformers.model import CausalModel, check_model
from rfx_agent.samplers.transformers.plans import Mixing, Plan, Row
from rfx_agent.samplers.transformers.sampler import check_request, room, table_of
from rfx_agent.samplers.transformers.sites import Site, Sites, Tokens

__all__ = ["TransformersSteerer"]

_FEATURES_AT = 0.6  # where the retry temperature is 0 and the features' is not defined


@dataclass(frozen=True, slots=True)
class _Job:
    """What one call decodes: per draw, the position from which on it is decoded anew, and its row."""

    operator: str
    tokens: Tokens
    positions: tuple[int, ...]
    rows: tuple[Row, ...]
    read: tuple[int, int]
    notes: tuple[str, ...]


class TransformersSteerer(Closing, Steerer):
    """Decodes a failed rollout again, with an operator of arXiv 2606.05145 applied at its junction.

    The junction is found with one prefill of each model over the rollout: the positions within ``window`` of J's peak.

    - ``local_temp`` keeps the text up to the window, decodes the window at the lifted temperature, and goes on.
    - ``sparse_steer`` keeps the text up to the peak, samples that one position from the mixture, and goes on.
    - ``sparse_steer_random``, its control, does the same at a position of the rollout drawn evenly for each draw.
    - ``dense_steer`` begins again from the prompt and samples every position from the mixture.

    The mixture is ``alpha * logits_S + (1 - alpha) * logits_A`` where the path term of J dominates at the peak, and
    ``log(alpha * p_S + (1 - alpha) * p_A)`` where the coverage term does; the request's temperature is applied to it.
    At a request's temperature of 0 every choice is greedy. Draw i has the seed ``request.seed + i``.

    Args:
        specialist: the model that wrote the rollouts.
        ancestor: the reference, with the same tokenizer.
        alpha: the specialist's share of the mixture, in [0, 1].
        lifted_temperature: of ``local_temp``.
        suffix: what comes after the intervention is ``"sampled"`` at the request's temperature, or ``"greedy"``, which
            tells what the intervention itself changed.
        top_k: log-probabilities per position, for the features and in the rollouts' tables.
        coverage_k: size of the ancestor's preferred set.
        window: half-width of the junction, in positions.
        max_rows: most rows in a batch; bounds memory.
        name: for records and messages; by default the specialist's, with the ancestor's.

    Raises:
        ConfigError: a parameter that cannot work.

    Any number of threads and event loops may use it at once; they share the specialist's batches.

    Example:
        >>> specialist, ancestor = (CausalModel(f"qwen2.5-coder-{size}", device="cpu") for size in ("0.5b", "1.5b"))
        >>> TransformersSteerer(specialist, ancestor, alpha=0.5).operators
        ('local_temp', 'sparse_steer', 'sparse_steer_random', 'dense_steer')
    """

    operators: tuple[str, ...] = ("local_temp", "sparse_steer", "sparse_steer_random", "dense_steer")

    def __init__(
        self,
        specialist: CausalModel,
        ancestor: CausalModel,
        *,
        alpha: float = 0.7,
        lifted_temperature: float = 1.0,
        suffix: Literal["sampled", "greedy"] = "sampled",
        top_k: int = 100,
        coverage_k: int = 20,
        window: int = 8,
        max_rows: int = 16,
        name: str | None = None,
    ) -> None:
        self.specialist = check_model("TransformersSteerer: specialist", specialist)
        self.ancestor = check_model("TransformersSteerer: ancestor", ancestor)
        self._alpha = share("TransformersSteerer: alpha", alpha)
        self._lifted = number("TransformersSteerer: lifted_temperature", lifted_temperature, above=0)
        self._suffix = among("TransformersSteerer: suffix", suffix, ("sampled", "greedy"))
        self._top_k = whole("TransformersSteerer: top_k", top_k, least=1)
        whole("TransformersSteerer: coverage_k", coverage_k, least=1)
        whole("TransformersSteerer: window", window)
        whole("TransformersSteerer: max_rows", max_rows, least=1)
        self.name = name or f"{specialist.name} steered with {ancestor.name}"
        self._sites = Sites(specialist, ancestor, top_k=top_k, coverage_k=coverage_k, window=window)
        self._batcher = Batcher(specialist, max_rows=max_rows, name=self.name)
        self._checking = threading.Lock()
        self._checked = False

    def __repr__(self) -> str:
        return f"TransformersSteerer({self.specialist!r}, {self.ancestor!r}, alpha={self._alpha})"

    def start(self) -> None:
        """Compare the tokenizers and load both models; blocks. Done by the first ``steer`` otherwise.

        Raises:
            TokenizerMismatch: their token ids do not mean the same.
            WeightsError: the weights of one cannot be had or loaded.
        """
        with self._checking:
            if not self._checked:
                check_tokenizers(self.specialist, self.ancestor)
                self._checked = True
        self.specialist.start()
        self.ancestor.start()

    def steer(self, step: Step, operator: str, rollout: Rollout, request: SampleRequest) -> SampleResult:
        """Decode ``step`` again, ``request.n`` times; blocks.

        Args:
            step: whose prompt the rollout answers.
            operator: one of ``operators``.
            rollout: the failed draw. Where it has no table, its text is encoded.
            request: ``n``, ``temperature``, ``seed``, ``want_logprobs``; ``max_tokens`` bounds the whole completion,
                what is kept included, but for one token that is always decoded.

        Returns:
            Rollouts whose ``start`` is the number of characters kept. Their usage counts every prompt token that was
            really read, by both models, for the junction and for the decode.

        Raises:
            SamplerError: whatever failed; the cause is chained.
        """
        try:
            job = self._prepare(step, operator, rollout, request)
            return self._result(job, request, self._batcher.run(job.rows, self.ancestor))
        except SamplerError:
            raise
        except Exception as error:
            raise self._told(error) from error

    async def asteer(self, step: Step, operator: str, rollout: Rollout, request: SampleRequest) -> SampleResult:
        """Do what ``steer`` does, without blocking the event loop."""
        try:
            job = await asyncio.to_thread(self._prepare, step, operator, rollout, request)
            return self._result(job, request, await self._batcher.arun(job.rows, self.ancestor))
        except SamplerError:
            raise
        except Exception as error:
            raise self._told(error) from error

    def close(self) -> None:
        """Refuse further calls and end those that run; idempotent. The models are left as they are."""
        self._batcher.close()

    def _told(self, error: Exception) -> SamplerError:
        what = str(error) if isinstance(error, RfxError) else f"{type(error).__name__}: {error}"
        return SamplerError(f"{self.name}: {what}")

    def _prepare(self, step: Step, operator: str, rollout: Rollout, request: SampleRequest) -> _Job:
        if operator not in self.operators:
            raise SamplerError(f"operator is {operator!r}; give one of {', '.join(self.operators)}")
        check_request(operator, request)
        if request.prefix:
            raise SamplerError("a prefix was given; what is kept of the rollout follows from the operator")
        self._batcher.check_open()
        self.start()
        tokens, site, read, why = self._site(step, rollout, request, dense=operator == "dense_steer")
        if operator == "dense_steer":
            tokens, positions = Tokens.none(self.specialist, step), [0] * request.n
        elif site is None:
            raise SamplerError(f"{operator} has nothing to work on: {why}")
        elif operator == "sparse_steer_random":
            positions = [_anywhere(len(tokens.ids), _seed(request, i)) for i in range(request.n)]
        else:
            positions = [site.window[0] if operator == "local_temp" else site.peak] * request.n
        plan = self._plan(operator, site, request.temperature)
        rows = []
        for i, position in enumerate(positions):
            context = (*tokens.before, *tokens.ids[:position])
            most = max(1, request.max_tokens - len(tokens.head) - position)
            most = min(room(model, context, most) for model in (self.specialist, self.ancestor))
            k = self._top_k if request.want_logprobs else None
            rows.append(Row(context, plan, most, _seed(request, i), self.specialist.stop_ids, k))
        places = ", ".join(map(str, sorted(set(positions))))
        where = "every position" if plan.head is None else f"from token {places}, {plan.head} long,"
        how = f"at temperature {plan.head_temperature:g}" if plan.mixing is None else f"mixed on the {plan.mixing}"
        notes = [f"{operator}: {where} {how}" + (f", J = {site.pressure:.4g} at token {site.peak}" if site else "")]
        notes += [f"{operator}: the path is mixed, for {why}"] if site is None else []
        if operator == "local_temp" and self._lifted <= request.temperature:
            notes.append(f"local_temp: the request's temperature {request.temperature:g} is not below the lifted one")
        return _Job(operator, tokens, tuple(positions), tuple(rows), read, tuple(notes))

    def _site(
        self, step: Step, rollout: Rollout, request: SampleRequest, *, dense: bool
    ) -> tuple[Tokens, Site | None, tuple[int, int], str]:
        """The rollout's tokens and its site, what was read for it, and why there is none."""
        try:
            tokens = Tokens.of(self.specialist, step, rollout)
        except SamplerError as error:
            if not dense:
                raise
            return Tokens.none(self.specialist, step), None, (0, 0), str(error)
        if not tokens.ids:
            return tokens, None, (0, 0), "the rollout is empty"
        site, read = self._sites.find(tokens, request.temperature or _FEATURES_AT)
        return (
            tokens,
            site,
            read,
            "J is 0 everywhere: the models do not differ where it counts, and nothing was decided",
        )

    def _plan(self, operator: str, site: Site | None, heat: float) -> Plan:
        tail = 0.0 if self._suffix == "greedy" else heat
        if operator == "local_temp" and site is not None:
            return Plan(tail, site.window[1] - site.window[0], self._lifted if heat else 0.0)
        mixing: Mixing = "path" if site is None else site.mixing
        return Plan(tail, None if operator == "dense_steer" else 1, heat, mixing, self._alpha)

    def _result(self, job: _Job, request: SampleRequest, batched: Batched) -> SampleResult:
        ancestor = job.read[1] + batched.read_by_ancestor
        read = job.read[0] + batched.read + ancestor
        made, response = [], uuid.uuid4().hex
        for i, (position, row, one) in enumerate(zip(job.positions, job.rows, batched.decoded, strict=True)):
            kept = job.tokens.offset(position)
            texts = job.tokens.follow(self.specialist, position, one.ids)
            at = None if job.operator == "dense_steer" else kept
            rollout = Rollout(
                job.tokens.text[:kept] + "".join(texts),
                response_id=f"{response}:{i}",
                remedy=job.operator,
                temperature=request.temperature,
                finish_reason=one.finish_reason,
                usage=Usage(0 if i else read, len(one.ids), 0 if i else 1),
                prompt_ids=row.context,
                tokens=texts,
                logprobs=table_of(one),
                junction=at,
                peak=None if job.operator == "local_temp" else at,
                start=kept,
            )
            made.append(rollout)
        spent = f"{job.operator}: {read} prompt tokens were read, {ancestor} of them by {self.ancestor.name}"
        return SampleResult(tuple(made), sum((x.usage for x in made), Usage()), (*job.notes, spent))


def _seed(request: SampleRequest, i: int) -> int | None:
    return None if request.seed is None else (request.seed + i) % 2**63


def _anywhere(length: int, seed: int | None) -> int:
    """A position of the rollout, every one as likely."""
    return int(np.random.default_rng(seed).integers(length))
