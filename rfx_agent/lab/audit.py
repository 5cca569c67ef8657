"""Failure topography of models: what kind of failures they make, and what the features tell about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rfx_agent.errors import ConfigError
from rfx_agent.evidence.features import ONE_MODEL, TWO_MODEL
from rfx_agent.evidence.zscore import zscore
from rfx_agent.lab.ceiling import attempts_behind, ceiling
from rfx_agent.lab.classify import (
    Scores,
    SharedTrees,
    cross_validated,
    expected_calibration_error,
    reliability,
)
from rfx_agent.lab.common import ProfileError
from rfx_agent.lab.profiles import Profile
from rfx_agent.lab.topography import REGIMES, STOCHASTIC, clusters_of, plane_of, regimes_of, steerable

__all__ = ["METHODS", "audit", "method_of", "regime_inputs"]

Floats: TypeAlias = npt.NDArray[np.float64]

METHODS = ("base", "sft", "dpo", "grpo", "ppo", "rloo", "rlvr", "distill", "instruct")
"""Post-training methods that a model's name may begin with."""


def audit(profile: Profile, *, folds: int = 5, repeats: int = 3, bootstraps: int = 30, seed: int = 0) -> dict[str, Any]:
    """Everything that the audit finds, as plain values for JSON.

    ``cells``: regimes per model and task, and shares of ``kinds`` where the profile has them; ``plane``: the features'
    two main axes; ``clusters``; ``separability`` by ``model`` and post-training ``method``; ``regimes``: stochastic
    against structural (all other) failures. What cannot be computed from this profile is None, and ``notes`` says why.

    Args:
        profile: failures with features; regimes need rates of retry and another remedy.
        folds, repeats: of the cross-validations; problems are kept whole.
        bootstraps: samples behind the clusters' stability.
        seed: of everything random.

    Raises:
        ProfileError: a profile without features.
    """
    x = profile.matrix()
    if x.shape[1] == 0:
        raise ProfileError("the profile has no features; an audit needs those of one kind of evidence")
    names = TWO_MODEL if profile.evidence == "two_model" else ONE_MODEL
    notes: list[str] = []
    try:
        regime: list[str] | None = regimes_of(profile).tolist()
    except ConfigError as error:
        regime = None
        notes.append(f"regimes: {error}")
    plane = plane_of(x)
    groupings = {"model": profile.model, "task": profile.task} | ({"regime": [*regime]} if regime else {})
    clusters = clusters_of(x, groupings, bootstraps=bootstraps, seed=seed)
    if clusters is None:
        notes.append("clusters: too few different failures")
    how = {"folds": folds, "repeats": repeats, "seed": seed}
    method = [method_of(model) for model in profile.model]
    shared = _shared(profile)
    if shared:
        notes.append(f"{shared} problems were failed in more than one cell; they are kept in one fold")
    separability = {
        "model": _separate(profile, x, profile.model, "model", notes, **how),
        "method": _separate(profile, x, [m or "" for m in method], "method", notes, **how) if all(method) else None,
    }
    if not all(method):
        notes.append(f"method: names of {sorted({m for m in profile.model if not method_of(m)})} begin with none known")
    return {
        "failures": len(profile),
        "evidence": profile.evidence,
        "features": list(names),
        "bad_rows": [list(row) for row in profile.bad_rows],
        "cells": _cells(profile, regime),
        "plane": {
            "axes": [
                {"share": round(float(s), 4), "loadings": dict(zip(names, axis.round(4).tolist(), strict=True))}
                for s, axis in zip(plane.share, plane.loadings, strict=True)
            ]
        },
        "clusters": None if clusters is None else clusters.as_dict(),
        "separability": separability,
        "regimes": _regimes(profile, notes, **how),
        "notes": notes,
    }


def method_of(model: str) -> str | None:
    """Post-training method by the beginning of a model's name (``grpo1p7b`` → ``grpo``), or None."""
    low = model.lower()
    return next((m for m in sorted(METHODS, key=len, reverse=True) if low.startswith(m)), None)


def regime_inputs(profile: Profile, *, count: bool = True) -> Floats:
    """What a regime is told from: features, their z-scores within the cell, and the failure count.

    Args:
        profile: n failures.
        count: add four columns made of the count: itself, its share of the cell's largest, its z-score within the
            cell, and how many attempts a retry rate was measured on, which limits the values it can take.

    Returns:
        Shape (n, 6) or (n, 10).
    """
    x, n = profile.matrix(), profile.n_failed.astype(np.float64)
    cell = np.asarray(profile.cell)
    z, share, z_count = np.zeros_like(x), np.zeros(len(n)), np.zeros(len(n))
    for name in profile.cells:
        at = cell == name
        z[at] = np.stack([zscore(column) for column in x[at].T], axis=1)
        share[at], z_count[at] = n[at] / n[at].max(), zscore(n[at])
    columns = [x, z] + ([n, share, z_count, attempts_behind(profile.n_failed)] if count else [])
    return np.column_stack(columns)


def _separate(
    profile: Profile, x: Floats, labels: Sequence[str], what: str, notes: list[str], **how: Any
) -> dict[str, Any] | None:
    nothing = np.zeros((len(x), 0))
    scores = cross_validated(x, labels, SharedTrees, nothing, groups=profile.problem_id, **how)
    if scores is None:
        notes.append(f"{what}: fewer than two classes, or one that is too rare to be cross-validated")
        return None
    alone = cross_validated(x, labels, SharedTrees, nothing, **how)
    predicted = np.asarray(scores.classes)[scores.probability.argmax(axis=1)]
    right = {c: float((predicted[np.asarray(labels) == c] == c).mean()) for c in scores.classes}
    return scores.as_dict() | {
        "recall": {c: round(r, 4) for c, r in right.items()},
        "ungrouped": None if alone is None else _brief(alone),
    }


def _regimes(profile: Profile, notes: list[str], **how: Any) -> dict[str, Any] | None:
    if "retry" not in profile.rates:
        notes.append("regimes: the profile has no retry rates")
        return None
    happened = profile.rates["retry"] >= STOCHASTIC
    labels = np.where(happened, "stochastic", "structural").tolist()
    groups = profile.problem_id
    # With the count, of which the number of attempts behind a rate is a part; and without.
    full, bare = regime_inputs(profile), regime_inputs(profile, count=False)
    rates = np.stack([*profile.rates.values()], axis=1)
    scores = cross_validated(full, labels, SharedTrees, rates, groups=groups, **how)
    if scores is None:
        notes.append("regimes: one of the two is too rare to be cross-validated")
        return None
    without = cross_validated(bare, labels, SharedTrees, rates, groups=groups, **how)
    ungrouped = cross_validated(full, labels, SharedTrees, rates, **how)
    probability = np.clip(scores.probability[:, scores.classes.index("stochastic")], 0.0, 1.0)
    return scores.as_dict() | {
        "question": f"retry rate at least {STOCHASTIC:g}",
        "without_count": None if without is None else _brief(without),
        "ungrouped": None if ungrouped is None else _brief(ungrouped),
        "calibration": {
            "of": "held-out probability of stochastic",
            "ece": round(expected_calibration_error(probability, happened), 4),
            "brier": round(float(np.mean((probability - happened) ** 2)), 4),
            "bins": reliability(probability, happened),
        },
        "ceiling": ceiling(profile),
    }


def _brief(scores: Scores) -> dict[str, Any]:
    return {key: value for key, value in scores.as_dict().items() if key in ("accuracy", "std", "majority")}


def _cells(profile: Profile, regime: list[str] | None) -> list[dict[str, Any]]:
    cell = np.asarray(profile.cell)
    found = []
    for name in profile.cells:
        at = np.flatnonzero(cell == name)
        row: dict[str, Any] = {
            "cell": name,
            "model": profile.model[at[0]],
            "task": profile.task[at[0]],
            "failures": len(at),
            "rates": {remedy: round(float(rate[at].mean()), 4) for remedy, rate in profile.rates.items()},
        }
        if profile.kinds:
            row["kinds"] = {kind: round(float(share[at].mean()), 4) for kind, share in profile.kinds.items()}
        if regime is not None:
            held = [regime[i] for i in at]
            row["regimes"] = {r: held.count(r) for r in REGIMES}
            row["steerable"] = int(steerable(profile)[at].sum())
        found.append(row)
    return found


def _shared(profile: Profile) -> int:
    cells: dict[str, set[str]] = {}
    for problem, cell in zip(profile.problem_id, profile.cell, strict=True):
        cells.setdefault(problem, set()).add(cell)
    return sum(len(where) > 1 for where in cells.values())
