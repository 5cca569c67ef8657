"""Where failures lie: regimes, the plane of the features' two main axes, clusters and how stable they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rfx_agent._extras import need
from rfx_agent.errors import ConfigError
from rfx_agent.evidence.zscore import zscore
from rfx_agent.lab.profiles import Profile

__all__ = ["GAIN", "REGIMES", "STOCHASTIC", "Clusters", "Plane", "clusters_of", "plane_of", "regimes_of", "steerable"]

Floats: TypeAlias = npt.NDArray[np.float64]

STOCHASTIC = 0.5
"""Retry rate from which plain resampling is held to suffice."""

GAIN = 0.05
"""What the best other remedy must add to the retry rate for a failure to be worth steering (arXiv 2606.05145)."""

REGIMES = ("stochastic", "structural", "out_of_reach")

_NOT_STEERED = ("retry", "human")
_SMALLEST = 12  # failures below which clusters mean nothing


def steerable(profile: Profile) -> npt.NDArray[np.bool_]:
    """The paper's gate, shape (n,): retry at most 0.5, and the best other remedy at least 0.05 above it.

    Raises:
        ConfigError: a profile without ``retry`` or without any other remedy.
    """
    others = [rate for name, rate in profile.rates.items() if name not in _NOT_STEERED]
    if "retry" not in profile.rates or not others:
        raise ConfigError(f"the profile has rates of {list(profile.rates)}; regimes need retry and another remedy")
    retry = profile.rates["retry"]
    # Rates are rounded quotients: without the slack 0.55 would not be 0.05 above 0.5.
    gate: npt.NDArray[np.bool_] = (retry <= STOCHASTIC) & (np.max(others, axis=0) - retry >= GAIN - 1e-9)
    return gate


def regimes_of(profile: Profile) -> npt.NDArray[np.str_]:
    """Measured regime of each failure, shape (n,).

    ``stochastic`` where retry passes at least half the time; else ``structural`` where the paper's gate holds; else
    ``out_of_reach``: nothing that was measured beats the retry that does not suffice.

    Raises:
        ConfigError: as ``steerable``.
    """
    gate = steerable(profile)
    return np.where(profile.rates["retry"] >= STOCHASTIC, REGIMES[0], np.where(gate, REGIMES[1], REGIMES[2]))


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """The features' two main axes (principal components of the standardised features).

    Attributes:
        at: coordinates, shape (n, 2).
        loadings: weight of each feature on each axis, shape (2, features); its largest is positive.
        share: share of the variance that each axis carries, shape (2,).
    """

    at: Floats
    loadings: Floats
    share: Floats


def plane_of(features: Floats) -> Plane:
    """The plane of features (n, d), d at least 2; constant features weigh nothing."""
    scaled = _standard(features)
    _, sizes, axes = np.linalg.svd(scaled, full_matrices=False)
    axes = np.vstack([axes, np.zeros((2, scaled.shape[1]))])[:2]  # a single failure spans no second axis
    signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])
    axes *= np.where(signs == 0, 1.0, signs)[:, None]
    total = float((sizes**2).sum())
    share = np.append(sizes**2, [0.0, 0.0])[:2] / total if total > 0 else np.zeros(2)
    return Plane(scaled @ axes.T, axes, share)


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Clusters of the standardised features.

    Attributes:
        label: cluster of each failure, shape (n,), largest cluster 0.
        centres: in the features' own units, shape (k, d).
        silhouette: by number of clusters tried; the largest decided.
        stability: adjusted Rand index between these clusters and those of each bootstrap sample, shape (b,).
        agreement: adjusted Rand index between the clusters and each grouping that was given.
    """

    label: npt.NDArray[np.int64]
    centres: Floats
    silhouette: dict[int, float]
    stability: Floats
    agreement: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "method": "k-means on standardised features, k by silhouette",
            "k": len(self.centres),
            "sizes": np.bincount(self.label).tolist(),
            "centres": self.centres.round(4).tolist(),
            "silhouette": {str(k): round(s, 4) for k, s in self.silhouette.items()},
            "stability": {
                "measure": "adjusted Rand index over bootstrap samples",
                "mean": round(float(self.stability.mean()), 4),
                "std": round(float(self.stability.std()), 4),
                "low": round(float(np.quantile(self.stability, 0.05)), 4),
                "samples": len(self.stability),
            },
            "agreement": {name: round(value, 4) for name, value in self.agreement.items()},
        }


def clusters_of(
    features: Floats, groupings: dict[str, list[str]], *, most: int = 8, bootstraps: int = 30, seed: int = 0
) -> Clusters | None:
    """Find clusters, and measure how much they depend on the sample of failures. None for too few failures.

    Args:
        features: shape (n, d).
        groupings: by name, a label per failure to compare the clusters with (model, task, regime).
        most: largest number of clusters tried.
        bootstraps: resampled data sets that are clustered anew; each new clustering labels all failures.
        seed: of the starts and of the resampling.
    """
    cluster, metrics = need("sklearn.cluster", "lab"), need("sklearn.metrics", "lab")
    scaled = _standard(features)
    different = len(np.unique(scaled, axis=0))
    if len(scaled) < _SMALLEST or different < 3:
        return None

    def fit(rows: Floats, k: int, start: int) -> Any:
        return cluster.KMeans(k, n_init=4, random_state=start).fit(rows)

    tried = {k: fit(scaled, k, seed) for k in range(2, min(most, different - 1) + 1)}
    scores = {k: float(metrics.silhouette_score(scaled, model.labels_)) for k, model in tried.items()}
    k = max(scores, key=lambda key: (scores[key], -key))
    order = np.argsort(-np.bincount(tried[k].labels_), kind="stable")
    label = np.argsort(order)[tried[k].labels_]
    rng = np.random.default_rng(seed)
    stability = []
    for i in range(bootstraps):
        sample = scaled[rng.integers(0, len(scaled), len(scaled))]
        if len(np.unique(sample, axis=0)) > k:
            stability.append(float(metrics.adjusted_rand_score(label, fit(sample, k, seed + i).predict(scaled))))
    return Clusters(
        label.astype(np.int64),
        np.stack([features[label == c].mean(axis=0) for c in range(k)]),
        scores,
        np.array(stability or [0.0]),
        {name: float(metrics.adjusted_rand_score(given, label)) for name, given in groupings.items()},
    )


def _standard(features: Floats) -> Floats:
    return np.stack([zscore(column) for column in features.T], axis=1)
