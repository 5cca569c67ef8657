"""How well a measured regime can be told at all: a rate over few attempts is noisy, and so is its label."""

from __future__ import annotations

from math import comb
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rfx_agent.lab.profiles import Profile
from rfx_agent.lab.topography import STOCHASTIC

__all__ = ["attempts_behind", "ceiling"]

Floats: TypeAlias = npt.NDArray[np.float64]

_GRID = np.linspace(0.0025, 0.9975, 200)  # rates that a failure may have
_STEPS = 300  # of the EM; more change nothing in the third decimal


def attempts_behind(n_failed: npt.NDArray[np.int64], *, most: int = 10) -> npt.NDArray[np.int64]:
    """Attempts that a retry rate was measured on, shape (n,): one per failed rollout, ``most`` at most.

    Not documented with the published profiles; their rates are whole numbers of such attempts in 99 rows of 100.
    """
    return np.minimum(n_failed, most)


def ceiling(profile: Profile) -> dict[str, Any]:
    """Accuracy that one who knew every failure's true retry rate would still not exceed, as plain values.

    On the high side: the estimated distribution is wider than the true one, and rates near 0.5 are the hard ones.

    Per cell, the distribution of true rates is estimated from the measured ones (non-parametric maximum likelihood
    for binomial mixtures, by EM). The measured label of a failure of rate p is a draw: it is stochastic with
    probability P(Bin(m, p) / m >= 0.5), and the best answer is right with that probability or its complement.
    ``oracle`` is the expectation over the estimated rates; ``from_count`` the same for one who sees only the failure
    count of his 10 or 50 draws and knows the cell's distribution.
    """
    cell, rate = np.asarray(profile.cell), profile.rates["retry"]
    attempts = attempts_behind(profile.n_failed)
    oracle = counted = 0.0
    for name in profile.cells:
        at = np.flatnonzero(cell == name)
        m, n = attempts[at], profile.n_failed[at]
        k = np.rint(rate[at] * m).astype(np.int64)
        seen = _binomial(k, m)
        passes = np.stack([_tail(int(i)) for i in m])
        weight = _mixture(seen)
        oracle += float((_posterior(seen, weight) * np.maximum(passes, 1 - passes)).sum())
        draws = int(n.max())
        scale = float(comb(draws, draws // 2))
        failed = np.stack([comb(draws, int(i)) / scale * (1 - _GRID) ** int(i) * _GRID ** (draws - int(i)) for i in n])
        told = (_posterior(failed, _mixture(failed * seen)) * passes).sum(axis=1)
        counted += float(np.maximum(told, 1 - told).sum())
    return {
        "oracle": round(oracle / len(rate), 4),
        "from_count": round(counted / len(rate), 4),
        "method": "binomial mixture per cell (NPMLE by EM); attempts behind a rate = min(failed rollouts, 10)",
    }


def _binomial(k: npt.NDArray[np.int64], m: npt.NDArray[np.int64]) -> Floats:
    """Likelihood of k in m at each rate of the grid, shape (n, grid), up to a factor per row."""
    likelihood: Floats = _GRID ** k[:, None] * (1 - _GRID) ** (m - k)[:, None]
    return likelihood


def _tail(m: int) -> Floats:
    """P(Bin(m, p) / m >= 0.5) at each rate of the grid."""
    terms = [comb(m, k) * _GRID**k * (1 - _GRID) ** (m - k) for k in range(m + 1) if k / m >= STOCHASTIC]
    total: Floats = np.sum(terms, axis=0)
    return np.clip(total, 0.0, 1.0)


def _posterior(likelihood: Floats, weight: Floats) -> Floats:
    joint = likelihood * weight
    posterior: Floats = joint / joint.sum(axis=1, keepdims=True)
    return posterior


def _mixture(likelihood: Floats) -> Floats:
    weight = np.full(likelihood.shape[1], 1 / likelihood.shape[1])
    for _ in range(_STEPS):
        weight = _posterior(likelihood, weight).mean(axis=0)
    return weight
