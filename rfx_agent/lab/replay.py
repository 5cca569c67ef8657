"""Prequential replay of one cell: many seeded orders in lock-step, as pure array work.

In each order every failure is met once. The policy acts on it until it passes, the policy stops, or the budget ends,
and then learns from the outcomes of its own attempts, never from a rate. What it learns from is drawn (Bernoulli with
the measured rate of the remedy on that failure); what is reported is scored in expectation along the path on which
all attempts fail, which is the same on average and varies less. Draws are shared between policies, so that they pair.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rfx_agent.errors import ConfigError
from rfx_agent.policies.population import REMEDIES
from rfx_agent.records import Kind

__all__ = ["BINS", "Cell", "Floats", "Ints", "Player", "Tally", "replay"]

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.intp]

BINS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """The failures of one cell.

    Attributes:
        name: the cell.
        rates: rescue rate per failure and remedy, shape (n, K) in the order of ``remedies``; 0 where not measured.
        available: which remedies were measured, shape (K,).
        features: columns of shape (n,).
        remedies: the K names; the same for all cells of a source.
        tokens: per remedy of which they are known, mean tokens of one attempt, shape (n,).
        before: per failure, how its candidate had failed and whether the verifier had said what is wrong; empty where
            nothing is known of that, and then each is plainly wrong.
    """

    name: str
    rates: Floats
    available: npt.NDArray[np.bool_]
    features: Mapping[str, Floats]
    remedies: tuple[str, ...] = REMEDIES
    tokens: Mapping[str, Floats] = field(default_factory=dict)
    before: tuple[tuple[Kind, bool], ...] = ()

    @property
    def had(self) -> tuple[str, ...]:
        """The remedies that were measured, in order."""
        return tuple(op for op, there in zip(self.remedies, self.available, strict=True) if there)

    def spent(self) -> Floats:
        """Tokens of one attempt per failure and remedy, shape (n, K); NaN where nothing was measured.

        Raises:
            ConfigError: a remedy that was measured without its tokens.
        """
        if lacking := [op for op in self.had if op not in self.tokens]:
            raise ConfigError(
                f"nothing is known of the tokens of {lacking[0]!r} in {self.name}; give the column "
                f"{lacking[0]}_tokens, or a log whose attempts say what they cost"
            )
        nothing = np.full(len(self.rates), np.nan)
        return np.stack([self.tokens.get(op, nothing) for op in self.remedies], axis=1)

    @property
    def hopeless(self) -> npt.NDArray[np.bool_]:
        """Failures that no measured remedy ever rescued, shape (n,)."""
        hopeless: npt.NDArray[np.bool_] = self.rates.max(axis=1) == 0
        return hopeless


class Player(ABC):
    """A policy that plays all orders of one block at once."""

    @abstractmethod
    def act(self, failures: Ints, tries: npt.NDArray[np.int64]) -> tuple[Ints, Floats]:
        """Next remedy and its expected rescue.

        Args:
            failures: index of the failure that each order is at, shape (O,).
            tries: failed attempts there, shape (O, K).

        Returns:
            Indices into the cell's remedies, -1 to stop; and the probabilities, NaN where the policy has none.
        """

    def learn(self, tries: npt.NDArray[np.int64], by: Ints) -> None:  # noqa: B027  # most policies do not learn
        """Take in how each order's failure ended: failed attempts, and what then passed (K: nothing did)."""


@dataclass(slots=True, eq=False)
class Tally:
    """Sums over orders; they add up over blocks.

    Attributes:
        orders: how many.
        rescued: per failure and attempt b, chance that one of the first b + 1 attempts passes, shape (n, depth).
        attempts: per failure and b, expected attempts among the first b + 1, shape (n, depth).
        cost: expected cost of the attempts per failure, shape (n,).
        stopped: chance that the policy gave up before the budget ended, shape (n,).
        by_position: rescued by position in the order (learning curve), shape (n, depth).
        by_order: mean over failures per order, shape (orders, depth).
        bins: reliability of the predicted rescue, shape (BINS, 3): weight, sum of predictions, sum of outcomes.
        in_tokens: per failure and ceiling, chance that an attempt passes that ends within so many tokens, shape (n, C).
    """

    orders: int
    rescued: Floats
    attempts: Floats
    cost: Floats
    stopped: Floats
    by_position: Floats
    by_order: Floats
    bins: Floats
    in_tokens: Floats

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.orders + other.orders,
            self.rescued + other.rescued,
            self.attempts + other.attempts,
            self.cost + other.cost,
            self.stopped + other.stopped,
            self.by_position + other.by_position,
            np.concatenate([self.by_order, other.by_order]),
            self.bins + other.bins,
            self.in_tokens + other.in_tokens,
        )


def replay(
    cell: Cell,
    player: Player,
    costs: Floats,
    depth: int,
    rng: np.random.Generator,
    orders: int,
    ceilings: Sequence[int] = (),
) -> Tally:
    """Play ``orders`` orders of the cell.

    Args:
        cell: its failures.
        player: the policy, fresh; it is changed.
        costs: cost of one attempt per remedy, shape (K,).
        depth: attempts per failure, at most.
        rng: of orders and outcomes; the same state gives the same ones to every policy.
        orders: how many.
        ceilings: tokens per failure at which rescue is read too; the cell must know what attempts cost.
    """
    n, k = cell.rates.shape
    most, tokens = np.array(ceilings, dtype=np.float64), cell.spent() if ceilings else np.zeros((n, k))
    order = rng.permuted(np.tile(np.arange(n), (orders, 1)), axis=1)
    out = Tally(
        orders,
        np.zeros((n, depth)),
        np.zeros((n, depth)),
        np.zeros(n),
        np.zeros(n),
        np.zeros((n, depth)),
        np.zeros((orders, depth)),
        np.zeros((BINS, 3)),
        np.zeros((n, len(most))),
    )
    lanes = np.arange(orders)
    for position in range(n):
        at = order[:, position]
        luck = rng.random((orders, depth))
        tries = np.zeros((orders, k), dtype=np.int64)
        ended, by = np.zeros_like(tries), np.full(orders, k, dtype=np.intp)
        open_, going, alive = np.ones(orders, bool), np.ones(orders, bool), np.ones(orders)
        used, within = np.zeros(orders), np.ones((orders, len(most)))
        for b in range(depth):
            # In lock-step: lanes that have stopped are played along and left out.
            chosen, predicted = player.act(at, tries)
            quits = going & (chosen < 0)
            np.add.at(out.stopped, at[quits], alive[quits])
            going &= ~quits
            rate = np.where(going, cell.rates[at, chosen], 0.0)
            paid = np.where(going, alive, 0.0)
            out.attempts[:, b] += np.bincount(at, paid, n)
            out.cost += np.bincount(at, paid * np.where(going, costs[chosen], 0.0), n)
            told = going & ~np.isnan(predicted)
            if told.any():
                slot = np.minimum((predicted[told] * BINS).astype(np.intp), BINS - 1)
                for column, value in enumerate((np.ones(told.sum()), predicted[told], rate[told])):
                    out.bins[:, column] += np.bincount(slot, alive[told] * value, BINS)
            alive = alive * (1 - rate)
            out.rescued[:, b] += np.bincount(at, 1 - alive, n)
            out.by_position[position, b] += (1 - alive).sum()
            out.by_order[:, b] += (1 - alive) / n
            used += np.where(going, tokens[at, chosen], 0.0)
            within *= 1 - rate[:, None] * (used[:, None] <= most)
            passed = going & open_ & (luck[:, b] < rate)
            ended[passed], by[passed] = tries[passed], chosen[passed]
            open_ &= ~passed
            tries[lanes[going], chosen[going]] += 1
        if ceilings:
            np.add.at(out.in_tokens, at, 1 - within)
        ended[open_] = tries[open_]
        player.learn(ended, by)
    out.attempts = out.attempts.cumsum(axis=1)
    return out
