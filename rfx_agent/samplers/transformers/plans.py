"""What is to be decoded and what came of it, as plain records: no PyTorch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Decoded", "Mixing", "Plan", "Row"]

Mixing: TypeAlias = Literal["path", "coverage"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Which distribution each generated position is sampled from.

    Attributes:
        temperature: of the specialist's own distribution after the head; 0 takes the most probable token.
        head: generated positions at which the operator intervenes, from the first on; None for all.
        head_temperature: temperature there, of the mixture where there is one.
        mixing: how the two models are mixed there, or None for the specialist alone.
        alpha: the specialist's share of the mixture, in [0, 1].
    """

    temperature: float
    head: int | None = 0
    head_temperature: float = 0.0
    mixing: Mixing | None = None
    alpha: float = 0.7

    def in_head(self, position: int) -> bool:
        """Whether the operator intervenes at the generated position ``position``."""
        return self.head is None or position < self.head

    def mixes(self, position: int) -> bool:
        """Whether that position is sampled from the mixture."""
        return self.mixing is not None and self.in_head(position)

    def temperature_at(self, position: int) -> float:
        """The temperature at that position."""
        return self.head_temperature if self.in_head(position) else self.temperature


@dataclass(frozen=True, slots=True)
class Row:
    """One completion to decode.

    Attributes:
        context: token ids that are read first, at least one.
        plan: what is sampled where.
        max_new_tokens: most tokens to generate, at least 1.
        seed: of the row's own generator; None for fresh entropy.
        stop_ids: tokens that end it.
        top_k: how many of the specialist's log-probabilities are recorded per position, or None.
    """

    context: tuple[int, ...]
    plan: Plan
    max_new_tokens: int
    seed: int | None = None
    stop_ids: frozenset[int] = frozenset()
    top_k: int | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """One completion of L tokens.

    Attributes:
        ids: generated tokens; where ``finish_reason`` is "stop", the last one is the stop token.
        finish_reason: "stop" or "length".
        temperatures: the temperature that each was sampled at.
        mixed: whether each was sampled from the mixture.
        top_ids, top_logprobs: the specialist's K most probable tokens at T = 1 at each position, most probable
            first, shape (L, K), or None where they were not asked for.
    """

    ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    temperatures: tuple[float, ...]
    mixed: tuple[bool, ...]
    top_ids: npt.NDArray[np.int64] | None = None
    top_logprobs: npt.NDArray[np.float64] | None = None
