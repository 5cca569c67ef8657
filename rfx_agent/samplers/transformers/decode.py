"""Batched decoding on token ids, with an intervention at the first positions of a row.

That is what the operators are made of, once a prefix is kept: ``local_temp`` lifts the temperature at the positions
of the junction's window, ``sparse_steer`` samples one position from a mixture of two models, ``dense_steer`` all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from rfx_agent.errors import SamplerError
from rfx_agent.samplers.transformers.lane import Lane, Prefix
from rfx_agent.samplers.transformers.plans import Decoded, Mixing, Plan, Row
from rfx_agent.samplers.transformers.rows import Prompts, Run

__all__ = ["CANDIDATES", "Batch", "Decoded", "Mixing", "Plan", "Row", "decode", "draw", "mixture"]

Top: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Of each row, the values of its largest logits and their ids, largest first."""

CANDIDATES = 256
"""Tokens that have a number of their own in a draw."""


def mixture(specialist: torch.Tensor, ancestor: torch.Tensor, mixing: Mixing, alpha: float) -> torch.Tensor:
    """Logits of the mixture of two models at T = 1, up to a constant per row (arXiv 2606.05145).

    On the path ``alpha * logits_S + (1 - alpha) * logits_A``, on coverage ``log(alpha * p_S + (1 - alpha) * p_A)``.
    ``alpha`` 1 gives the specialist's logits and 0 the ancestor's, exactly.

    Args:
        specialist, ancestor: logits, shape (..., V) and (..., V'). The ids that only one of them has are padding of
            its embedding; they get -inf.
        mixing: where the mixture is taken.
        alpha: the specialist's share, in [0, 1].

    Returns:
        Shape (..., V), float32.
    """
    width = specialist.shape[-1]
    size = min(width, ancestor.shape[-1])
    s, a = specialist[..., :size].float(), ancestor[..., :size].float()
    if alpha in (0, 1):
        mixed = s if alpha else a
    elif mixing == "path":
        mixed = alpha * s + (1.0 - alpha) * a
    else:
        mixed = torch.logaddexp(s.log_softmax(-1) + math.log(alpha), a.log_softmax(-1) + math.log1p(-alpha))
    return torch.nn.functional.pad(mixed, (0, width - size), value=-math.inf)


def draw(
    logits: torch.Tensor, temperatures: Sequence[float], noise: Sequence[torch.Tensor], top: Top | None = None
) -> list[int]:
    """One token per row, from the whole softmax of ``logits / T``; the most probable one where T is 0.

    The ``CANDIDATES`` most probable tokens and the rest of the vocabulary, as one, run a race: each has a clock that
    rings after ``-log(u) / p``, and the first one wins with its probability p. Where the rest wins, one more number is
    put into the inverse of its distribution function. Unlike that inverse over the whole vocabulary, whose steps are
    dense, the race hardly ever turns on a rounding error, so a draw is the same in every batch.

    Args:
        logits: shape (rows, V).
        temperatures: T per row.
        noise: per row ``CANDIDATES + 2`` numbers in (0, 1), float64: the candidates', the rest's, and the one more.
        top: the most probable tokens of every row, where they are known.
    """
    values, ids = top or logits.topk(min(CANDIDATES, logits.shape[-1]))
    values, ids = values[:, :CANDIDATES], ids[:, :CANDIDATES]
    taken = ids[:, 0].clone()
    hot = [i for i, heat in enumerate(temperatures) if heat > 0]
    if hot:
        values, ids, count = values[hot].double(), ids[hot], values.shape[1]
        heat = torch.tensor([[temperatures[i]] for i in hot], device=logits.device, dtype=torch.float64)
        u = torch.stack([noise[i] for i in hot]).to(logits.device)
        # The largest is taken off first: then a tiny T makes the others -inf, not NaN.
        others = (logits[hot].float() - values[:, :1].float()) / heat.float()
        others.scatter_(1, ids, -math.inf)
        scores = torch.cat([(values - values[:, :1]) / heat, others.logsumexp(-1, keepdim=True).double()], 1)
        clocks = torch.cat([u[:, :count], u[:, CANDIDATES : CANDIDATES + 1]], 1).log().neg().log()
        winner = (scores - clocks).argmax(-1)
        drawn = ids.gather(1, winner.clamp(max=count - 1)[:, None])[:, 0]
        for i in (winner == count).nonzero()[:, 0].tolist():
            below = (others[i].double() - scores[i, -1]).exp().cumsum(-1)
            drawn[i] = torch.searchsorted(below, u[i, -1] * below[-1], right=True).clamp(max=len(below) - 1)
        taken[hot] = drawn
    return [int(token) for token in taken.tolist()]


@dataclass(slots=True, eq=False)
class _Members:
    """Runs in a lane, in its order, with the logits of their next positions."""

    lane: Lane
    runs: list[Run] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)

    def add(self, runs: Sequence[Run], found: Sequence[tuple[tuple[Prefix, int], torch.Tensor]]) -> None:
        self.lane.add([context for context, _ in found])
        self.runs += runs
        self.logits += [logits for _, logits in found]

    def advance(self, stays: Sequence[bool]) -> None:
        """Drop the runs that do not stay, and read the last token of the others."""
        rows = [i for i, stay in enumerate(stays) if stay]
        self.lane.keep(rows)
        self.runs = [self.runs[i] for i in rows]
        self.logits = list(self.lane.forward([run.ids[-1] for run in self.runs])) if rows else []


class Batch:
    """Rows that are decoded together, wherever each is; they join and leave between steps.

    An ancestor reads a row's context only if the row mixes, and goes on only while it does. After an error the batch
    is of no more use; its runs can be admitted to a new one and go on where they were.

    Args:
        specialist: a fresh lane.
    """

    def __init__(self, specialist: Lane) -> None:
        self._specialist = _Members(specialist)
        self._ancestors: dict[Lane, _Members] = {}

    def __len__(self) -> int:
        return len(self._specialist.runs)

    @property
    def runs(self) -> list[Run]:
        """The rows that are not finished."""
        return list(self._specialist.runs)

    def admit(
        self,
        runs: Sequence[Run],
        indices: Sequence[int],
        prompts: Prompts,
        ancestor: Lane | None = None,
        others: Prompts | None = None,
    ) -> None:
        """Let rows join.

        Args:
            runs: the rows.
            indices: of their contexts in ``prompts`` and ``others``.
            prompts: the contexts, for the specialist to read.
            ancestor: the lane of the model that is mixed in, where any row mixes.
            others: the same contexts, for the ancestor to read those of rows that mix.
        """
        found = [prompts.take(self._specialist.lane, i) for i in indices]
        mixing = [(run, i) for run, i in zip(runs, indices, strict=True) if run.mixes]
        if mixing:
            if ancestor is None or others is None:
                raise SamplerError("a row mixes two models and there is no ancestor")
            seen = [others.take(ancestor, i) for _, i in mixing]
            self._ancestors.setdefault(ancestor, _Members(ancestor)).add([run for run, _ in mixing], seen)
        self._specialist.add(runs, found)

    @torch.inference_mode()
    def step(self) -> list[Run]:
        """Generate one token for each row; the rows that left."""
        runs = self._specialist.runs
        own = torch.stack(self._specialist.logits).float()
        best = own.topk(min(max(CANDIDATES, *(run.row.top_k or 0 for run in runs)), own.shape[-1]))
        top = _table(own, best, max(run.row.top_k or 0 for run in runs))
        logits, index = own, {id(run): i for i, run in enumerate(runs)}
        for members in self._ancestors.values():
            for run, theirs in zip(members.runs, members.logits, strict=True):
                logits = own.clone() if logits is own else logits
                i, plan = index[id(run)], run.row.plan
                logits[i] = mixture(own[i], theirs, plan.mixing or "path", plan.alpha)
        sound = logits.amax(-1).isfinite().tolist()
        noise = [run.noise(CANDIDATES + 2) for run in runs]
        tokens = draw(logits, [run.temperature for run in runs], noise, best if logits is own else None)
        for i, run in enumerate(runs):
            if not sound[i]:
                run.error = SamplerError(f"the logits at generated position {len(run.ids)} are not finite")
            elif not run.done:
                run.take(tokens[i], None if top is None else (top[0][i], top[1][i]))
        for members in self._ancestors.values():
            members.advance([not run.done and run.mixes for run in members.runs])
        self._specialist.advance([not run.done for run in runs])
        return [run for run in runs if run.done]


def _table(logits: torch.Tensor, best: Top, k: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Ids and log-probabilities at T = 1 of the ``k`` most probable tokens of each row."""
    if k == 0:
        return None
    values, ids = best
    return ids[:, :k].cpu(), (values[:, :k] - logits.logsumexp(-1, keepdim=True)).cpu()


def decode(specialist: Any, rows: Sequence[Row], *, ancestor: Any = None, max_rows: int = 16) -> list[Decoded]:
    """Decode ``rows``, at most ``max_rows`` at a time; the results in their order.

    Args:
        specialist: a causal language model of ``transformers``.
        rows: what to decode.
        ancestor: another one whose token ids mean the same, where any row mixes.
        max_rows: bounds the memory.

    Raises:
        SamplerError: logits that are not finite; a row that mixes, and no ancestor.
    """
    batch, other = Batch(Lane(specialist)), None if ancestor is None else Lane(ancestor)
    runs = [Run(row) for row in rows]
    prompts, others = Prompts([row.context for row in rows]), Prompts([row.context for row in rows])
    waiting = list(range(len(rows)))
    while waiting or len(batch):
        free = max_rows - len(batch)
        now, waiting = waiting[:free], waiting[free:]
        if now:
            batch.admit([runs[i] for i in now], now, prompts, other, others)
        batch.step()
    return [run.result() for run in runs]
