"""The paper's rule against every remedy on its own, on the same failures, selection and evaluation kept apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rfx_agent.evidence.calibration import Calibration
from rfx_agent.evidence.features import TWO_MODEL
from rfx_agent.evidence.routing import operator_of, route
from rfx_agent.lab.evidence.intervals import Bootstrap, Floats
from rfx_agent.lab.evidence.outcomes import STEERING, Outcomes, mean_rows
from rfx_agent.lab.topography import steerable

__all__ = ["SPLITS", "contest", "published_routes"]

SPLITS = 20
"""Random halvings of the attempts; each is used both ways."""

_Split: TypeAlias = tuple[npt.NDArray[np.bool_], Mapping[str, Floats]]


def contest(outcomes: Outcomes, bootstrap: Bootstrap, *, seed: int = 0) -> dict[str, Any]:
    """Mean rescue per attempt of the rule (``routed``) and of each remedy, and the paired differences.

    Three populations, each the rule's own for its z-scores: ``all`` failures that have features; the ``steerable``
    ones by the paper's gate, from all attempts, which are those that it is then scored on; and ``steerable,
    cross-fitted``: the gate sees one half of every remedy's attempts and the scores are of the other half, averaged
    over random halvings. A failure with four attempts looks steerable by luck alone easily; the second population has
    that luck in its scores and the third has not. Routes are held fixed in the resamples.
    """
    known, rates = outcomes.having(TWO_MODEL), outcomes.rates()
    for rate in rates.values():
        known &= np.isfinite(rate)
    everything = [(known, rates)]
    chosen = [(known & _gate(outcomes, rates, known), rates)]
    return {
        "all": _compare(outcomes, everything, bootstrap),
        "steerable": _compare(outcomes, chosen, bootstrap),
        "steerable, cross-fitted": _compare(outcomes, _halves(outcomes, known, seed), bootstrap),
    }


def published_routes(outcomes: Outcomes, bootstrap: Bootstrap) -> dict[str, Any]:
    """Every failure routed by its z-scores against the published figures, and how many lie outside 3 deviations."""
    published = Calibration.published()
    rates = outcomes.rates()
    columns = {name: outcomes.features[name] for name in TWO_MODEL}
    known = outcomes.having(TWO_MODEL)
    routes: list[str] = []
    outside: Counter[str] = Counter()
    refused = 0
    total = np.zeros(len(outcomes))
    for i in np.flatnonzero(known):
        features = {name: float(column[i]) for name, column in columns.items()}
        z = published.z(features, "two_model") or {}
        outside.update(name for name, score in z.items() if abs(score) > 3)
        refused += bool(published.caveats(features, "two_model"))
        routes.append(operator_of(z))
        rate = rates.get(routes[-1])
        total[i] = np.nan if rate is None else rate[i]
    scored = known & np.isfinite(total)
    return {
        "failures": int(known.sum()),
        "outside": {name: outside[name] for name in TWO_MODEL},
        "may_not_route": refused,
        "routes": dict(Counter(routes)),
        "rescue": bootstrap.ratio(np.where(scored, total, 0.0), scored.astype(float), share=True),
    }


def _halves(outcomes: Outcomes, known: npt.NDArray[np.bool_], seed: int) -> list[_Split]:
    rng = np.random.default_rng(seed)
    splits: list[_Split] = []
    for _ in range(SPLITS):
        orders = {op: rng.permutation(table.shape[1]) for op, table in outcomes.passed.items()}
        one = {op: mean_rows(t[:, orders[op][: t.shape[1] // 2]]) for op, t in outcomes.passed.items()}
        two = {op: mean_rows(t[:, orders[op][t.shape[1] // 2 :]]) for op, t in outcomes.passed.items()}
        for seen, scored in ((one, two), (two, one)):
            whole = known.copy()
            for rate in (*seen.values(), *scored.values()):
                whole &= np.isfinite(rate)
            splits.append((whole & _gate(outcomes, seen, whole), scored))
    return splits


def _gate(outcomes: Outcomes, rates: Mapping[str, Floats], known: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The paper's gate: among decoding operators only, since it knows no tool."""
    there = {op: np.where(known, rates[op], 0.0) for op in ("retry", *STEERING) if op in rates}
    if len(there) < 2 or "retry" not in there:
        return np.zeros(len(outcomes), dtype=bool)
    return steerable(outcomes.profile(there))


def _compare(outcomes: Outcomes, splits: Sequence[_Split], bootstrap: Bootstrap) -> dict[str, Any]:
    remedies = list(outcomes.passed)
    scores: dict[str, list[Floats]] = {name: [] for name in ("routed", *remedies)}
    masks: list[Floats] = []
    routes: Counter[str] = Counter()
    for mask, rates in splits:
        at = np.flatnonzero(mask)
        chosen = route({name: outcomes.features[name][at] for name in TWO_MODEL}) if len(at) else np.array([], str)
        routed = np.zeros(len(outcomes))
        # A remedy that was not tried rescues nothing here.
        routed[at] = [rates[op][i] if op in rates else 0.0 for i, op in zip(at, chosen, strict=True)]
        scores["routed"].append(routed)
        for remedy in remedies:
            scores[remedy].append(np.where(mask, rates[remedy], 0.0))
        masks.append(mask.astype(float))
        routes.update(chosen.tolist())
    under = np.stack(masks)
    stacked = {name: np.stack(tables) for name, tables in scores.items()}
    return {
        "failures": float(under.sum(axis=1).mean()),
        "splits": len(splits),
        "routes": {op: n / len(splits) for op, n in routes.most_common()},
        "rescue": {name: bootstrap.ratio(table, under, share=True) for name, table in stacked.items()},
        "routed_minus": {op: bootstrap.ratio(stacked["routed"] - stacked[op], under) for op in remedies},
    }
