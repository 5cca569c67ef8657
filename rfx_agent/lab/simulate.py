"""Policies replayed on measured failures, under budgets: what each rescues, and what it spends.

Each cell is replayed on its own and every policy starts it fresh; see ``lab._replay`` for how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rfx_agent._errors import ConfigError
from rfx_agent._types import Operator
from rfx_agent.lab._named import NAMES, ROUND, maker, parse, worth
from rfx_agent.lab._replay import Cell, Tally, replay
from rfx_agent.lab._summary import mean_of, summarise
from rfx_agent.lab.profiles import Profile
from rfx_agent.lab.scale import map_batches
from rfx_agent.policies._population import OPERATORS
from rfx_agent.policies.learned import LearnedPolicy

__all__ = ["NAMES", "ROUND", "Simulation", "cells_of", "simulate"]

_BLOCK = 250  # orders in lock-step: bounds memory, and is what one thread takes


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a simulation found, as plain values.

    Attributes:
        orders, seed, budgets, policies: what was asked.
        failures: failures per cell.
        hopeless: of these, those that no measured operator ever rescued.
        cells: per cell and policy, its figures (see docs/policies.md).
        mean: per policy, the mean of each figure over cells.
    """

    orders: int
    seed: int
    budgets: tuple[int, ...]
    policies: tuple[str, ...]
    failures: Mapping[str, int]
    hopeless: Mapping[str, int]
    cells: Mapping[str, Mapping[str, Any]]
    mean: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "orders": self.orders,
            "seed": self.seed,
            "budgets": list(self.budgets),
            "policies": list(self.policies),
            "failures": dict(self.failures),
            "hopeless": dict(self.hopeless),
            "mean": dict(self.mean),
            "cells": {name: dict(cell) for name, cell in self.cells.items()},
        }


def simulate(
    profile: Profile,
    policies: Sequence[str] = NAMES,
    *,
    budgets: Sequence[int] = (1, 2, 3, 4, 6, 8),
    orders: int = 200,
    seed: int = 0,
    learned: LearnedPolicy | None = None,
    costs: Mapping[Operator, float] | None = None,
    workers: int = 1,
    engine: str = "threads",
) -> Simulation:
    """Replay ``policies`` on ``profile``, prequentially, in ``orders`` seeded orders.

    Args:
        profile: measured rescue rates; they are taken for the truth, noise and all.
        policies: names (see ``NAMES``). ``retry`` is always played, because differences are against it.
        budgets: attempts per failure at which rescue is read.
        orders: orders per cell.
        seed: of orders, outcomes and intervals.
        learned: the policy behind ``learned`` and ``learned:PRICE``; with the built-in prior and no price by default.
        costs: cost of one attempt per operator, for the figures of cost; 1 by default.
        workers: threads, or Ray's workers. The result does not depend on their number.
        engine: ``threads`` or ``ray``; the results are the same.

    Raises:
        ConfigError: names, budgets or counts that cannot work; a profile without operators that a policy needs.
    """
    _check(policies, budgets, orders, workers)
    chosen = tuple(dict.fromkeys(("retry", *policies)))
    base = learned or LearnedPolicy(worth=worth(costs or {}, rescue=1e9))
    price = np.array([(costs or {}).get(op, 1.0) for op in OPERATORS])
    cells = cells_of(profile)
    makers = {name: maker(name, base, max(budgets), costs or {}) for name in chosen}
    depth = max(budgets)

    def block(job: tuple[int, str, int]) -> Tally:
        index, name, start = job
        cell, size = cells[index], min(_BLOCK, orders - start)
        # Seeded by cell and block, not by policy: orders and outcomes are shared, so that policies pair.
        rng = np.random.default_rng([seed, index, start])
        return replay(cell, makers[name](cell, size), price, depth, rng, size)

    jobs = [(i, name, start) for i in range(len(cells)) for name in chosen for start in range(0, orders, _BLOCK)]
    tallies: dict[tuple[int, str], Tally] = {}
    played = map_batches(block, jobs, engine=engine, workers=workers)
    for (index, name, _), tally in zip(jobs, played, strict=True):
        key = (index, name)
        tallies[key] = tallies[key] + tally if key in tallies else tally
    figures = {
        cell.name: {
            name: summarise(
                cell, tallies[index, name], tallies[index, "retry"], budgets, np.random.default_rng([seed, index])
            )
            for name in chosen
        }
        for index, cell in enumerate(cells)
    }
    mean = {
        name: mean_of(
            [figures[cell.name][name] for cell in cells],
            [(tallies[i, name], tallies[i, "retry"]) for i in range(len(cells))],
            [cell.rates[:, OPERATORS.index("retry")] for cell in cells],
            budgets,
            np.random.default_rng([seed, len(cells)]),
        )
        for name in chosen
    }
    return Simulation(
        orders,
        seed,
        tuple(budgets),
        chosen,
        {cell.name: len(cell.rates) for cell in cells},
        {cell.name: int(cell.hopeless.sum()) for cell in cells},
        figures,
        mean,
    )


def cells_of(profile: Profile) -> list[Cell]:
    """The profile, cell by cell.

    Raises:
        ConfigError: no measured ``retry``.
    """
    if "retry" not in profile.rates:
        raise ConfigError("the profile has no column 'retry'; every policy is held against it")
    available = np.array([op in profile.rates for op in OPERATORS])
    names = np.array(profile.cell)
    found = []
    for name in dict.fromkeys(profile.cell):
        at = names == name
        nothing = np.zeros(int(at.sum()))
        rates = np.stack([profile.rates[op][at] if op in profile.rates else nothing for op in OPERATORS], axis=1)
        features = {feature: column[at] for feature, column in profile.features.items()}
        found.append(Cell(name, rates.astype(np.float64), available, features))
    return found


def _check(policies: Sequence[str], budgets: Sequence[int], orders: int, workers: int) -> None:
    for name in policies:
        parse(name)
    if not budgets or any(isinstance(b, bool) or not isinstance(b, int) or not 1 <= b <= 60 for b in budgets):
        raise ConfigError(f"budgets is {list(budgets)!r}; give attempts per failure, each from 1 to 60")
    for what, value in (("orders", orders), ("workers", workers)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{what} is {value!r}; give an integer of at least 1")
