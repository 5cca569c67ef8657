"""Calibrations from profiles and logs: one per model, task and kind of evidence; intervals; drift."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rfx_agent.errors import CalibrationError
from rfx_agent.evidence.calibration import Calibration
from rfx_agent.evidence.opinions import Likelihoods, expected_share, posterior
from rfx_agent.evidence.rescue import context_of
from rfx_agent.lab.common import FEATURES, OnBad, ProfileError
from rfx_agent.lab.logs import Context, LogRow, read_log
from rfx_agent.lab.profiles import Profile, is_log, read_profile
from rfx_agent.records import Evidence

__all__ = ["Drift", "Population", "Shift", "calibrate", "check", "intervals", "merge_all", "populations", "read_any"]

Floats: TypeAlias = npt.NDArray[np.float64]
Key: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """The failures of one model on one task.

    Attributes:
        model, task: what they are failures of.
        features: per kind of evidence and feature, one value per failure that has that kind.
        rates: per remedy, the share of its attempts that passed, one value per failure on which it was tried.
        counts: (passes, attempts) by ``evidence.rescue.context_of``, and by that and ``@`` with the task. A profile
            does not say which attempt followed which kind of failure, so it has none.
    """

    model: str
    task: str
    features: Mapping[Evidence, Mapping[str, Floats]]
    rates: Mapping[str, Floats]
    counts: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def failures(self) -> int:
        """The most failures behind any of its figures."""
        columns = [c for kind in self.features.values() for c in kind.values()] + list(self.rates.values())
        return max((len(column) for column in columns), default=0)


def read_any(path: str | os.PathLike[str], *, on_bad: OnBad = "raise") -> tuple[list[Population], tuple[Any, ...]]:
    """The populations of a profile or a log, and its bad rows.

    Raises:
        ProfileError: as ``read_profile`` and ``read_log``; a log without a single failure.
    """
    if not is_log(path):
        profile = read_profile(path, on_bad=on_bad)
        return populations(profile), profile.bad_rows
    log = read_log(path, on_bad=on_bad)
    found = populations(log.rows)
    if not found:
        raise ProfileError(f"{os.fspath(path)}: no step of this log failed; there is nothing to calibrate on")
    return found, log.bad_rows


def populations(source: Profile | Iterable[LogRow]) -> list[Population]:
    """Failures grouped by model and task, in order of appearance.

    Of a log, only failures count: steps whose candidate failed. Their candidate is no attempt, since it failed by
    selection; a rate is taken over what was tried after it. A pass that was an opinion counts as what its measured
    rates make of it: a judge that passes 20 % of wrong answers passes more than it rescues.
    """
    if isinstance(source, Profile):
        keys = list(zip(source.model, source.task, strict=True))
        masks = {key: np.array([k == key for k in keys]) for key in dict.fromkeys(keys)}
        kinds = [kind for kind, names in FEATURES.items() if all(n in source.features for n in names)]
        return [
            Population(
                *key,
                {kind: {n: source.features[n][mask] for n in FEATURES[kind]} for kind in kinds},
                {remedy: rate[mask] for remedy, rate in source.rates.items()},
            )
            for key, mask in masks.items()
        ]
    groups: dict[Key, list[LogRow]] = {}
    for row in source:
        if row.failed:
            groups.setdefault((row.model, row.task), []).append(row)
    return [_of_rows(key, rows) for key, rows in groups.items()]


def calibrate(population: Population, *, name: str | None = None) -> Calibration:
    """The calibration of one population; ``Calibration.load`` reads what its ``save`` writes.

    Each remedy has a prior by moments of its rates, where they have such; ``counts`` say besides how often it rescued
    after each kind of failure.

    Raises:
        CalibrationError: a population with neither features nor rates.
    """
    if not population.failures:
        raise CalibrationError(f"{population.model} on {population.task}: neither features nor rates; nothing to learn")
    title, pair, task = name or f"{population.model}/{population.task}", population.model, population.task
    kinds: list[Evidence] = [k for k, columns in population.features.items() if any(map(len, columns.values()))]
    first, *rest = kinds or ["samples"]
    rates = {remedy: rate for remedy, rate in population.rates.items() if len(rate)}
    features = population.features.get(first, {})
    result = Calibration.from_failures(features, name=title, pair=pair, task=task, evidence=first, rates=rates)
    for kind in rest:
        columns = population.features[kind]
        more = Calibration.from_failures(columns, name=title, pair=pair, task=task, evidence=kind)
        result = result.merge(more)
    return replace(result, counts=population.counts)


def merge_all(calibrations: Iterable[Calibration], *, name: str) -> Calibration:
    """All of them as one; where models or tasks differ, the mixture is named after all of them.

    Raises:
        CalibrationError: none is given.
    """
    given = list(calibrations)
    if not given:
        raise CalibrationError("no calibration to merge; give at least one")
    pair = " + ".join(dict.fromkeys(c.pair for c in given))
    task = " + ".join(dict.fromkeys(c.task for c in given))
    result, *rest = given
    for other in rest:
        result = result.merge(other, pair=pair, task=task)
    return replace(result, name=name, pair=pair, task=task)


def intervals(population: Population, *, level: float = 0.95, draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Counts, means and deviations with percentile bootstrap intervals over failures, as plain values for JSON.

    Args:
        population: the failures.
        level: of the intervals.
        draws: bootstrap samples.
        seed: of the samples.
    """
    rng = np.random.default_rng(seed)
    tails = ((1 - level) / 2, (1 + level) / 2)

    def of(column: Floats) -> dict[str, Any]:
        n = len(column)
        weights = rng.multinomial(n, np.full(n, 1 / n), size=draws) / n
        means = weights @ column
        stds = np.sqrt(np.maximum(weights @ column**2 - means**2, 0.0))
        return {
            "count": n,
            "mean": float(column.mean()),
            "mean_interval": np.quantile(means, tails).tolist(),
            "std": float(column.std()),
            "std_interval": np.quantile(stds, tails).tolist(),
        }

    features = {
        kind: {name: of(column) for name, column in columns.items() if len(column)}
        for kind, columns in population.features.items()
    }
    return {
        "model": population.model,
        "task": population.task,
        "failures": population.failures,
        "interval": {"level": level, "method": "percentile bootstrap over failures", "draws": draws, "seed": seed},
        "features": features,
        "rates": {remedy: of(rate) for remedy, rate in population.rates.items() if len(rate)},
        "counts": {key: {"passes": p, "attempts": n, "rate": p / n} for key, (p, n) in population.counts.items()},
    }


@dataclass(frozen=True, slots=True)
class Shift:
    """One figure of a new batch against the calibration.

    Attributes:
        what: ``two_model.spread``, ``rate.retry``, ...
        count: values in the new batch.
        then, now: mean in the calibration and in the batch.
        z: Welch's statistic of the difference of the means.
        p: two-sided, from the normal distribution, times the number of figures tested (Bonferroni), at most 1.
        effect: the difference in the calibration's standard deviations.
        spread: ratio of the batch's standard deviation to the calibration's.
        drifted: p below the level and an effect that matters.
    """

    what: str
    count: int
    then: float
    now: float
    z: float
    p: float
    effect: float
    spread: float
    drifted: bool


@dataclass(frozen=True, slots=True)
class Drift:
    """The verdict on a new batch: ``drifted``, ``stable``, or ``unknown`` where nothing could be compared."""

    verdict: str
    sentence: str
    shifts: tuple[Shift, ...]


def check(
    calibration: Calibration, batch: Population, *, level: float = 0.05, matters: float = 0.2, least: int = 10
) -> Drift:
    """Whether a new batch still looks like the population of a calibration.

    A calibration keeps moments, not values, so means are compared (Welch's z) rather than whole distributions. All
    features and rates are tested at once: p-values are multiplied by their number (Bonferroni).

    Args:
        calibration: the population so far.
        batch: new failures.
        level: of the whole family of tests.
        matters: smallest shift, in standard deviations, that counts: with enough failures any is significant.
        least: fewest values on either side for a figure to be tested.
    """
    pairs = [
        (f"{kind}.{name}", calibration.stats[kind][name], column)
        for kind, columns in batch.features.items()
        for name, column in columns.items()
        if name in calibration.stats.get(kind, {})
    ]
    pairs += [(f"rate.{op}", calibration.rates[op], r) for op, r in batch.rates.items() if op in calibration.rates]
    pairs = [(what, then, column) for what, then, column in pairs if min(then.count, len(column)) >= least]
    if not pairs:
        return Drift("unknown", f"Nothing to compare: no figure has {least} values on both sides.", ())
    shifts = []
    for what, then, column in pairs:
        now, std = float(column.mean()), float(column.std())
        apart = now - then.mean
        error = math.sqrt(then.std**2 / max(then.count - 1, 1) + std**2 / max(len(column) - 1, 1))
        z = apart / error if error > 0 else math.copysign(math.inf, apart) if apart else 0.0
        p = min(1.0, math.erfc(abs(z) / math.sqrt(2)) * len(pairs))
        effect = apart / then.std if then.std > 0 else math.copysign(math.inf, apart) if apart else 0.0
        ratio = std / then.std if then.std > 0 else math.inf if std else 1.0
        drifted = p < level and abs(effect) >= matters
        shifts.append(Shift(what, len(column), then.mean, now, z, p, effect, ratio, drifted))
    moved = [s for s in shifts if s.drifted]
    tested = f"{len(shifts)} figures tested, family-wise level {level:g}"
    if not moved:
        return Drift("stable", f"No drift against {calibration.name!r} ({tested}).", tuple(shifts))
    named = ", ".join(f"{s.what} {s.then:.3g} → {s.now:.3g}" for s in moved)
    sentence = f"Drifted from {calibration.name!r}: {named} ({tested}). Calibrate anew before features route."
    return Drift("drifted", sentence, tuple(shifts))


def _of_rows(key: Key, rows: list[LogRow]) -> Population:
    features: dict[Evidence, dict[str, Floats]] = {}
    for kind, names in FEATURES.items():
        given = [row.features for row in rows if row.evidence == kind and row.features is not None]
        if given:
            features[kind] = {name: np.array([f[name] for f in given]) for name in names}
    tried: dict[str, list[float]] = {}
    seen = _seen(rows)
    for row in rows:
        rights: dict[str, list[float]] = {}
        for remedy, passed, context in row.after():
            right = posterior(_share(seen[remedy]), _likelihoods(context, passed=passed))
            rights.setdefault(remedy, []).append(right)
        for remedy, each in rights.items():
            tried.setdefault(remedy, []).append(sum(each) / len(each))
    rates = {remedy: np.array(shares) for remedy, shares in tried.items()}
    return Population(*key, features, rates, _counts(rows, key[1]))


def _counts(rows: list[LogRow], task: str) -> dict[str, tuple[float, float]]:
    """(right answers, attempts) by what was tried after which failure: over all tasks, then for this one."""
    found = _seen(rows, context_of)
    ordered = {key: (_share(found[key]) * found[key].total(), float(found[key].total())) for key in sorted(found)}
    return ordered | {f"{key}@{task}": tally for key, tally in ordered.items()}


def _seen(
    rows: list[LogRow], key: Callable[..., str] = lambda remedy, *_, **__: remedy
) -> dict[str, Counter[Likelihoods]]:
    """Per key, how often the verdicts on attempts were of which likelihoods."""
    found: dict[str, Counter[Likelihoods]] = {}
    for row in rows:
        for remedy, passed, context in row.after():
            counter = found.setdefault(key(remedy, context.kind, told=context.told), Counter())
            counter[_likelihoods(context, passed=passed)] += 1
    return found


def _likelihoods(context: Context, *, passed: bool) -> Likelihoods:
    """Of a proof, and of an opinion that nobody measured, its word is taken."""
    return context.opinion or ((1.0, 0.0) if passed else (0.0, 1.0))


def _share(seen: Counter[Likelihoods]) -> float:
    """The share of right answers behind verdicts: of proofs, the share that passed."""
    if all(x in ((1.0, 0.0), (0.0, 1.0)) for x in seen):
        return seen[1.0, 0.0] / seen.total()
    return expected_share(0.5, seen, weight=1.0)
