"""Intervals over failures: a bootstrap that keeps each problem whole, Wilson's, and those of rank correlations."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rfx_agent._extras import need
from rfx_agent.checks import whole

__all__ = ["Bootstrap", "Figure", "Floats", "wilson"]

Floats: TypeAlias = npt.NDArray[np.float64]
Figure: TypeAlias = dict[str, Any]
"""``value``, ``low`` and ``high`` (None where nothing was measured) and ``n``, the failures behind it."""

_TAILS = (2.5, 97.5)
_Z = 1.959963984540054


class Bootstrap:
    """Resamples of n problems, drawn once, so that all figures of one analysis are of the same resamples.

    Args:
        n: problems; each is kept whole with all its attempts.
        draws: resamples.
        seed: of the resamples.

    Raises:
        ConfigError: no problems, or no resamples.
    """

    def __init__(self, n: int, *, draws: int = 2000, seed: int = 0) -> None:
        whole("bootstrap: n", n, least=1)
        whole("bootstrap: draws", draws, least=1)
        rng = np.random.default_rng(seed)
        self.index: npt.NDArray[np.intp] = rng.integers(0, n, (draws, n))
        self.weights: Floats = np.zeros((draws, n))
        np.add.at(self.weights, (np.arange(draws)[:, None], self.index), 1.0)

    def ratio(self, top: Floats, bottom: Floats, *, share: bool = False) -> Figure:
        """Sum of ``top`` over sum of ``bottom``, both shape (n,), or the mean of it over splits where they are (s, n).

        A ``share`` of 0 or 1 has no width to resample: there the interval is Wilson's, with the problems as its
        trials, which is on the wide side.
        """
        tops, bottoms = np.atleast_2d(top), np.atleast_2d(bottom)
        some = bottoms.sum(axis=1) > 0
        n = int((bottoms[some] > 0).any(axis=0).sum())
        if not some.any():
            return _figure(None, None, None, 0)
        tops, bottoms = tops[some], bottoms[some]
        value = float((tops.sum(axis=1) / bottoms.sum(axis=1)).mean())
        with np.errstate(invalid="ignore", divide="ignore"):
            resampled = (self.weights @ tops.T) / (self.weights @ bottoms.T)
        # A small population may be absent from a resample, or from it in some of the splits.
        there = np.isfinite(resampled)
        kept = np.where(there, resampled, 0.0).sum(axis=1)[there.any(axis=1)] / there.sum(axis=1)[there.any(axis=1)]
        if not len(kept):
            return _figure(value, None, None, n)
        low, high = np.percentile(kept, _TAILS)
        if share and value in (0.0, 1.0):
            return wilson(value * n, n)
        return _figure(value, float(low), float(high), n)

    def spearman(self, x: Floats, y: Floats) -> Figure:
        """Spearman's rank correlation (average ranks on ties) over the problems that have both, shape (n,) each."""
        both = np.isfinite(x) & np.isfinite(y)
        n = int(both.sum())
        if n < 3 or np.ptp(x[both]) == 0 or np.ptp(y[both]) == 0:
            return _figure(None, None, None, n)
        rank = need("scipy.stats", "lab").rankdata
        value = float(_pearson(rank(x[both])[None], rank(y[both])[None])[0])
        at = Bootstrap(n, draws=len(self.index), seed=n).index if n < len(x) else self.index
        got = _pearson(rank(x[both][at], axis=1), rank(y[both][at], axis=1))
        got = got[np.isfinite(got)]
        low, high = np.percentile(got, _TAILS) if len(got) else (math.nan, math.nan)
        return _figure(value, float(low), float(high), n)


def wilson(passes: float, n: int) -> Figure:
    """Wilson's score interval of a share of ``n`` independent trials (Wilson 1927)."""
    if n == 0:
        return _figure(None, None, None, 0)
    p = passes / n
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n * n))
    return _figure(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)), n)


def _pearson(x: Floats, y: Floats) -> Floats:
    """Row by row, shape (b,); NaN where a row is constant."""
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        got: Floats = (x * y).sum(axis=1) / np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return got


def _figure(value: float | None, low: float | None, high: float | None, n: int) -> Figure:
    return {"value": value, "low": low, "high": high, "n": n}
