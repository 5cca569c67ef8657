"""Policies replayed on measured failures, under budgets: what each rescues, and what it spends.

Each cell is replayed on its own and every policy starts it fresh; see ``lab.replay`` for how.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rfx_agent.checks import whole
from rfx_agent.errors import ConfigError
from rfx_agent.evidence.features import TWO_MODEL
from rfx_agent.lab.common import KINDS
from rfx_agent.lab.logs import Log, LogRow
from rfx_agent.lab.named import NAMES, ROUND, maker, parse, playable, worth
from rfx_agent.lab.profiles import Profile
from rfx_agent.lab.replay import Cell, Tally, replay
from rfx_agent.lab.scale import map_batches
from rfx_agent.lab.summary import mean_of, summarise
from rfx_agent.policies.learned import LearnedPolicy
from rfx_agent.policies.population import ordered
from rfx_agent.records import Kind

__all__ = ["NAMES", "ROUND", "Simulation", "cells_of", "simulate"]

_BLOCK = 250  # orders in lock-step: bounds memory, and is what one thread takes


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a simulation found, as plain values.

    Attributes:
        orders, seed, budgets, policies: what was asked.
        failures: failures per cell.
        hopeless: of these, those that no measured remedy ever rescued.
        cells: per cell and policy, its figures (see docs/policies.md).
        mean: per policy, the mean of each figure over cells.
        tokens: ceilings on tokens at which rescue was read too.
        remedies: per cell, what was measured.
    """

    orders: int
    seed: int
    budgets: tuple[int, ...]
    policies: tuple[str, ...]
    failures: Mapping[str, int]
    hopeless: Mapping[str, int]
    cells: Mapping[str, Mapping[str, Any]]
    mean: Mapping[str, Any] = field(default_factory=dict)
    tokens: tuple[int, ...] = ()
    remedies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "orders": self.orders,
            "seed": self.seed,
            "budgets": list(self.budgets),
            "tokens": list(self.tokens),
            "policies": list(self.policies),
            "failures": dict(self.failures),
            "hopeless": dict(self.hopeless),
            "remedies": {name: list(had) for name, had in self.remedies.items()},
            "mean": dict(self.mean),
            "cells": {name: dict(cell) for name, cell in self.cells.items()},
        }


def simulate(
    source: Profile | Log,
    policies: Sequence[str] | None = None,
    *,
    budgets: Sequence[int] = (1, 2, 3, 4, 6, 8),
    tokens: Sequence[int] = (),
    orders: int = 200,
    seed: int = 0,
    learned: LearnedPolicy | None = None,
    costs: Mapping[str, float] | None = None,
    workers: int = 1,
    engine: str = "threads",
) -> Simulation:
    """Replay ``policies`` on ``source``, prequentially, in ``orders`` seeded orders.

    Args:
        source: measured rescue rates; they are taken for the truth, noise and all. See ``cells_of`` for a log's.
        policies: names (see ``NAMES``); by default all of these that can be played. ``retry`` is always played, because
            differences are against it.
        budgets: attempts per failure at which rescue is read.
        tokens: tokens per failure at which it is read too, within the largest of ``budgets``; the source must say what
            an attempt of each remedy costs. No policy plans for that end.
        orders: orders per cell.
        seed: of orders, outcomes and intervals.
        learned: the policy behind ``learned`` and ``learned:PRICE``; with the built-in prior and no price by default.
        costs: cost of one attempt per remedy, for the figures of cost and for the policies that weigh prices; 1 for
            those left out. Without any, ``default`` goes by the source's tokens, where it has them.
        workers: threads, or Ray's workers. The result does not depend on their number.
        engine: ``threads`` or ``ray``; the results are the same.

    Raises:
        ConfigError: names, budgets or counts that cannot work; a source without remedies that a policy needs.
    """
    _check(policies or (), budgets, tokens, orders, workers)
    cells = cells_of(source)
    remedies = cells[0].remedies
    chosen = tuple(dict.fromkeys(("retry", *(playable(cells) if policies is None else policies))))
    base = learned or LearnedPolicy(worth=worth(costs or {}, rescue=1e9))
    if unknown := sorted({*(costs or {})} - {*remedies}):
        raise ConfigError(f"costs names {unknown[0]!r}, of which nothing was measured; choose among {list(remedies)}")
    price = np.array([(costs or {}).get(op, 1.0) for op in remedies])
    makers = {name: maker(name, base, max(budgets), costs or {}) for name in chosen}
    depth = max(budgets)

    def block(job: tuple[int, str, int]) -> Tally:
        index, name, start = job
        cell, size = cells[index], min(_BLOCK, orders - start)
        # Seeded by cell and block, not by policy: orders and outcomes are shared, so that policies pair.
        rng = np.random.default_rng([seed, index, start])
        return replay(cell, makers[name](cell, size), price, depth, rng, size, tokens)

    jobs = [(i, name, start) for i in range(len(cells)) for name in chosen for start in range(0, orders, _BLOCK)]
    tallies: dict[tuple[int, str], Tally] = {}
    played = map_batches(block, jobs, engine=engine, workers=workers)
    for (index, name, _), tally in zip(jobs, played, strict=True):
        key = (index, name)
        tallies[key] = tallies[key] + tally if key in tallies else tally
    figures = {
        cell.name: {
            name: summarise(
                cell,
                tallies[index, name],
                tallies[index, "retry"],
                budgets,
                np.random.default_rng([seed, index]),
                tokens,
            )
            for name in chosen
        }
        for index, cell in enumerate(cells)
    }
    mean = {
        name: mean_of(
            [figures[cell.name][name] for cell in cells],
            [(tallies[i, name], tallies[i, "retry"]) for i in range(len(cells))],
            [cell.rates[:, remedies.index("retry")] for cell in cells],
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
        tuple(tokens),
        {cell.name: cell.had for cell in cells},
    )


def cells_of(source: Profile | Log) -> list[Cell]:
    """A profile or a log, cell by cell, with the same remedies in the same order in all of them; a person is none.

    Of a log, the failures count. Its few attempts say little of one failure: each rate is pulled to the remedy's mean
    in the cell, as one more attempt would pull it, and is that mean where the remedy was not tried. What an attempt
    costs is the remedy's mean in the cell.

    Raises:
        ConfigError: no measured ``retry``.
    """
    cells = _of_profile(source) if isinstance(source, Profile) else _of_log(source.rows)
    if lacking := [cell.name for cell in cells if "retry" not in cell.had]:
        raise ConfigError(f"nothing was measured of 'retry' in {lacking[0]}; every policy is held against it")
    if not cells:
        raise ConfigError("no step of this log failed; there is nothing to play on")
    return cells


def _of_profile(profile: Profile) -> list[Cell]:
    remedies = _playable_remedies(profile.rates)
    available = np.array([op in profile.rates for op in remedies])
    names = np.array(profile.cell)
    nothing = np.zeros(len(profile))
    rates = np.stack([profile.rates.get(op, nothing) for op in remedies], axis=1).astype(np.float64)
    before = _before(profile)
    found = []
    for name in profile.cells:
        at = np.flatnonzero(names == name)
        features = {feature: column[at] for feature, column in profile.features.items()}
        tokens = {op: column[at] for op, column in profile.tokens.items() if op in remedies}
        opened = tuple(before[i] for i in at) if before else ()
        found.append(Cell(name, rates[at], available, features, remedies, tokens, opened))
    return found


def _before(profile: Profile) -> list[tuple[Kind, bool]]:
    """The commonest kind of each failure; a profile does not say whether the verifier told what is wrong."""
    if not profile.kinds:
        return []
    kinds = list(profile.kinds)
    most = np.argmax([profile.kinds[kind] for kind in kinds], axis=0)
    return [(kinds[i], False) for i in most.tolist()]


def _of_log(rows: Sequence[LogRow]) -> list[Cell]:
    groups: dict[str, list[LogRow]] = {}
    for row in rows:
        if row.failed:
            groups.setdefault(f"{row.model}|{row.task}", []).append(row)
    remedies = _playable_remedies(op for failed in groups.values() for row in failed for op, _, _ in row.after())
    found = []
    for name, failed in groups.items():
        tallies = np.array([[row.tally(op) for op in remedies] for row in failed], dtype=np.float64)
        tries, passes = tallies[..., 0], tallies[..., 1]
        mean = passes.sum(axis=0) / np.maximum(tries.sum(axis=0), 1)
        known = [row.features for row in failed if row.evidence == "two_model" and row.features is not None]
        features = {f: np.array([x[f] for x in known]) for f in TWO_MODEL} if len(known) == len(failed) else {}
        cell = Cell(
            name,
            (passes + mean) / (tries + 1),
            tries.sum(axis=0) > 0,
            features,
            remedies,
            _tokens_in(failed),
            tuple(map(_opened, failed)),
        )
        found.append(cell)
    return found


def _opened(row: LogRow) -> tuple[Kind, bool]:
    """How the candidate had failed; the commonest of the row's kinds where the log does not say it."""
    first = next((context for _, _, context in row.after() if context.kind is not None), None)
    if first is not None and first.kind is not None:
        return first.kind, first.told
    return max(KINDS, key=lambda kind: row.kinds.get(kind, 0)) if row.kinds else "wrong", False


def _tokens_in(rows: Sequence[LogRow]) -> dict[str, npt.NDArray[np.float64]]:
    """Per remedy whose attempts say what they cost, their mean, once for each of ``rows``."""
    spent: dict[str, list[int]] = {}
    for row in rows:
        for remedy, _, context in row.after():
            if context.tokens is not None:
                spent.setdefault(remedy, []).append(context.tokens)
    return {remedy: np.full(len(rows), float(np.mean(each))) for remedy, each in spent.items()}


def _playable_remedies(names: Iterable[str]) -> tuple[str, ...]:
    return ordered(name for name in names if name != "human")


def _check(policies: Sequence[str], budgets: Sequence[int], tokens: Sequence[int], orders: int, workers: int) -> None:
    for name in policies:
        parse(name)
    if not budgets:
        raise ConfigError("budgets is empty; give attempts per failure, each from 1 to 60")
    for i, budget in enumerate(budgets):
        whole(f"budgets[{i}]", budget, least=1, most=60)
    for i, ceiling in enumerate(tokens):
        whole(f"tokens[{i}]", ceiling, least=1)
    whole("orders", orders, least=1)
    whole("workers", workers, least=1)
