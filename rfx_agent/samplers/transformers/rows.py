"""Rows on their way through a batch: what each has generated so far, and the contexts that they begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from rfx_agent.errors import SamplerError
from rfx_agent.samplers.transformers.lane import Lane, Prefix
from rfx_agent.samplers.transformers.plans import Decoded, Row

__all__ = ["Prompts", "Run"]


@dataclass(slots=True, eq=False)
class Run:
    """A row on its way. Its draws come from a generator of its own, so they do not depend on its neighbours."""

    row: Row
    ids: list[int] = field(default_factory=list)
    top: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    heats: list[float] = field(default_factory=list)
    mixed: list[bool] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None
    error: SamplerError | None = None
    _dice: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        if self.row.seed is None:
            self._dice.seed()
        else:
            self._dice.manual_seed(self.row.seed % 2**63)

    @property
    def context(self) -> tuple[int, ...]:
        """Everything that is read before the next position."""
        return (*self.row.context, *self.ids)

    @property
    def temperature(self) -> float:
        """At the next position."""
        return self.row.plan.temperature_at(len(self.ids))

    @property
    def mixes(self) -> bool:
        """Whether the next position is sampled from the mixture."""
        return self.row.plan.mixes(len(self.ids))

    @property
    def done(self) -> bool:
        """Whether it leaves the batch."""
        return self.finish_reason is not None or self.error is not None

    def noise(self, count: int) -> torch.Tensor:
        """``count`` numbers in (0, 1), float64, that decide the next draw; used up only where there is one."""
        if self.temperature <= 0:
            return torch.empty(0)
        return torch.rand(count, generator=self._dice, dtype=torch.float64).clamp_(min=1e-300)

    def take(self, token: int, top: tuple[torch.Tensor, torch.Tensor] | None) -> None:
        """Append the token of the next position, with the ids and log-probabilities of the specialist's best."""
        self.heats.append(self.temperature)
        self.mixed.append(self.mixes)
        self.ids.append(token)
        if top is not None and self.row.top_k is not None:
            self.top.append((top[0][: self.row.top_k], top[1][: self.row.top_k]))
        if token in self.row.stop_ids:
            self.finish_reason = "stop"
        elif len(self.ids) >= self.row.max_new_tokens:
            self.finish_reason = "length"

    def result(self) -> Decoded:
        """What came of it; raises its error."""
        if self.error is not None or self.finish_reason is None:
            raise self.error or SamplerError("decoding ended before the row did")
        plain = (tuple(self.ids), self.finish_reason, tuple(self.heats), tuple(self.mixed))
        if self.row.top_k is None:
            return Decoded(*plain)
        ids = torch.stack([ids for ids, _ in self.top]).numpy().astype(np.int64)
        lps = torch.stack([lps for _, lps in self.top]).numpy().astype(np.float64)
        return Decoded(*plain, ids, lps)


class Prompts:
    """The contexts of one call. A context that begins another is read with it, once; equal ones are one.

    Attributes:
        read: tokens that were really read so far.
    """

    def __init__(self, contexts: Sequence[tuple[int, ...]]) -> None:
        self._contexts = list(contexts)
        self._trunk = [0] * len(contexts)  # per context, the index of the one that it is read with
        trunks: list[int] = []
        for i in sorted(range(len(contexts)), key=lambda i: -len(contexts[i])):
            mine = contexts[i]
            self._trunk[i] = next((j for j in trunks if contexts[j][: len(mine)] == mine), i)
            if self._trunk[i] == i:
                trunks.append(i)
        self._left = {trunk: self._trunk.count(trunk) for trunk in trunks}
        self._known: dict[int, tuple[Prefix, dict[int, torch.Tensor]]] = {}
        self.read = 0

    def take(self, lane: Lane, i: int) -> tuple[tuple[Prefix, int], torch.Tensor]:
        """What is remembered of context ``i``, its length, and the logits that follow it; each is taken once."""
        trunk, end = self._trunk[i], len(self._contexts[i])
        if trunk not in self._known:
            ends = sorted({len(c) for c, home in zip(self._contexts, self._trunk, strict=True) if home == trunk})
            prefix, logits = lane.read(self._contexts[trunk], ends)
            self.read += len(self._contexts[trunk])
            self._known[trunk] = prefix, dict(zip(ends, logits, strict=True))
        prefix, after = self._known[trunk]
        self._left[trunk] -= 1
        if not self._left[trunk]:
            del self._known[trunk]
        return (prefix, end), after[end]
