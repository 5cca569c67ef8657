"""Cross-validated classifiers over failures: what the features tell, and what they cannot.

What else was tried is in ``docs/audit.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rfx_agent._extras import need
from rfx_agent.errors import ConfigError

__all__ = ["Scores", "SharedTrees", "cross_validated", "expected_calibration_error", "reliability"]

Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What a cross-validation found.

    Attributes:
        accuracy: of every fold of every repeat, shape (folds * repeats,).
        majority: accuracy of always answering the commonest class.
        classes: the classes, sorted.
        counts: failures of each class.
        probability: held-out probabilities averaged over the repeats, shape (n, classes).
        folds, repeats: of the cross-validation.
        grouped: whether failures of one problem were kept in one fold.
    """

    accuracy: Floats
    majority: float
    classes: list[str]
    counts: list[int]
    probability: Floats
    folds: int
    repeats: int
    grouped: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``std`` is over the folds of all repeats."""
        return {
            "accuracy": round(float(self.accuracy.mean()), 4),
            "std": round(float(self.accuracy.std()), 4),
            "majority": round(self.majority, 4),
            "classes": dict(zip(self.classes, self.counts, strict=True)),
            "folds": self.folds,
            "repeats": self.repeats,
            "grouped_by_problem": self.grouped,
        }


def cross_validated(
    x: Floats,
    labels: Sequence[str],
    make: Callable[[int], Any],
    side: npt.NDArray[Any],
    *,
    groups: Sequence[str] | None = None,
    folds: int = 5,
    repeats: int = 3,
    seed: int = 0,
) -> Scores | None:
    """Repeated stratified cross-validation; None where a class is too rare to be in two folds.

    Args:
        x: what is known of each failure, shape (n, d).
        labels: class of each, n of them.
        make: a fresh classifier from a seed, with ``fit(x, labels, side)`` and ``predict_proba(x)``.
        side: what is known besides of the failures that are learned from, never of those that are asked for, n rows.
        groups: failures of one group share a fold: the same problem failed by two models must not be learned from
            one and asked of the other.
        folds: fewer where the rarest class has fewer members or groups.
        repeats: times the folds are drawn anew.
        seed: of the folds and the classifiers.
    """
    selection = need("sklearn.model_selection", "lab")
    y = np.asarray(labels)
    classes, counts = np.unique(y, return_counts=True)
    units = np.arange(len(y)).astype(str) if groups is None else np.asarray(groups)
    rarest = min((len(np.unique(units[y == c])) for c in classes), default=0)
    k = min(folds, rarest)
    if len(classes) < 2 or k < 2:
        return None
    total, accuracy = np.zeros((len(y), len(classes))), []
    for repeat in range(repeats):
        kind = selection.StratifiedKFold if groups is None else selection.StratifiedGroupKFold
        splitter = kind(k, shuffle=True, random_state=seed + repeat)
        for train, test in splitter.split(x, y, None if groups is None else units):
            model = make(seed + repeat).fit(x[train], y[train], side[train])
            found = np.zeros((len(test), len(classes)))
            found[:, np.searchsorted(classes, model.classes_)] = model.predict_proba(x[test])
            total[test] += found
            accuracy.append(float((classes[found.argmax(axis=1)] == y[test]).mean()))
    majority = float(counts.max() / len(y))
    names = [str(c) for c in classes]
    shape = (k, repeats, groups is not None)
    return Scores(np.array(accuracy), majority, names, counts.tolist(), total / repeats, *shape)


class SharedTrees:
    """Extremely randomised trees (Geurts, Ernst and Wehenkel 2006) that learn a class, and side by side what else was
    measured on the same failures.

    Every split may use every input, at a random threshold: with three inputs that average more smoothly than a random
    forest. A regime is cut from a rate over ten attempts and noisy; the rates of all remedies, known of the failures
    it learns from only, steady the splits.

    Args:
        seed: of the trees.
        leaf: least failures in a leaf.
    """

    def __init__(self, seed: int, leaf: int = 3) -> None:
        self.seed, self.leaf = seed, leaf
        self.classes_: npt.NDArray[np.str_] = np.array([], dtype=np.str_)

    def fit(self, x: Floats, y: npt.NDArray[np.str_], side: Floats) -> SharedTrees:
        """Learn from inputs (n, d), classes (n,) and what else was measured (n, any)."""
        ensemble = need("sklearn.ensemble", "lab")
        self.classes_, index = np.unique(y, return_inverse=True)
        targets = np.column_stack([np.eye(len(self.classes_))[index], side])
        trees = ensemble.ExtraTreesRegressor(300, min_samples_leaf=self.leaf, random_state=self.seed)
        self._trees = trees.fit(x, targets)
        return self

    def predict_proba(self, x: Floats) -> Floats:
        """Probability of each class, shape (n, classes)."""
        found: Floats = self._trees.predict(x)[:, : len(self.classes_)]
        return found


def reliability(probability: Floats, happened: npt.NDArray[np.bool_], *, bins: int = 10) -> list[dict[str, float]]:
    """Predicted against observed frequency in bins of equal width; empty bins are left out.

    Args:
        probability: predicted, shape (n,), in [0, 1].
        happened: observed, shape (n,).
        bins: how many.

    Raises:
        ConfigError: lengths that differ, probabilities outside [0, 1].
    """
    if probability.shape != happened.shape or not bool(((probability >= 0) & (probability <= 1)).all()):
        raise ConfigError(f"probability {probability.shape}, happened {happened.shape}: give one each, in [0, 1]")
    at = np.minimum((probability * bins).astype(int), bins - 1)
    return [
        {
            "low": b / bins,
            "high": (b + 1) / bins,
            "count": int((at == b).sum()),
            "predicted": round(float(probability[at == b].mean()), 4),
            "observed": round(float(happened[at == b].mean()), 4),
        }
        for b in np.unique(at).tolist()
    ]


def expected_calibration_error(probability: Floats, happened: npt.NDArray[np.bool_], *, bins: int = 10) -> float:
    """Mean distance of predicted from observed frequency over the bins of ``reliability``, weighted by count.

    Raises:
        ConfigError: as ``reliability``.
    """
    rows = reliability(probability, happened, bins=bins)
    total = sum(row["count"] for row in rows)
    return sum(row["count"] * abs(row["predicted"] - row["observed"]) for row in rows) / total if total else 0.0
