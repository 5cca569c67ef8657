"""Population statistics of one feature, and scores against them.

Standard deviations are those of the population (ddof = 0). The paper does not say which it used; the rule
takes the largest of several z and compares with 0, and one common factor changes neither.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rfx_agent.errors import FeatureError

__all__ = ["Moments", "against", "merge", "moments_of", "zscore"]


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and population standard deviation of one column."""

    count: int
    mean: float
    std: float


def zscore(column: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Scores of a column over itself, shape (n,); a constant column gives 0.

    Raises:
        FeatureError: a column that is not one-dimensional, NaN or infinite values; names the failure.
    """
    values = _column(column)
    # Not by its deviation: the mean of equal numbers may round away from them.
    if len(values) == 0 or values.min() == values.max():
        return np.zeros(len(values))
    off = values - values.mean()
    std = math.sqrt(float(np.mean(off * off)))
    return off / std if std > 0 else np.zeros(len(values))


def against(value: float, population: Moments) -> float:
    """Score of one value against a population; 0 where the population was constant."""
    return (value - population.mean) / population.std if population.std > 0 else 0.0


def moments_of(column: npt.ArrayLike) -> Moments:
    """Statistics of a column of at least one value.

    Raises:
        FeatureError: as ``zscore``; also for no value.
    """
    values = _column(column)
    if len(values) == 0:
        raise FeatureError("a column without values has no mean; give at least one failure")
    constant = values.min() == values.max()
    return Moments(
        len(values),
        float(values[0] if constant else values.mean()),
        0.0 if constant else float(values.std()),
    )


def merge(a: Moments, b: Moments) -> Moments:
    """Statistics of two disjoint populations together (Chan, Golub and LeVeque 1979)."""
    if a.count == 0 or b.count == 0:
        return b if a.count == 0 else a
    count = a.count + b.count
    apart = b.mean - a.mean
    squares = a.count * a.std**2 + b.count * b.std**2 + apart**2 * (a.count * b.count / count)
    return Moments(count, a.mean + apart * (b.count / count), math.sqrt(squares / count))


def _column(column: npt.ArrayLike) -> npt.NDArray[np.float64]:
    try:
        values = np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise FeatureError(f"a feature column is not numeric: {error}; give one number per failure") from error
    if values.ndim != 1:
        raise FeatureError(f"a feature column has shape {values.shape}; give one number per failure, shape (n,)")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise FeatureError(f"a feature is {values[bad[0]]} for failure {bad[0]}; leave out what is unavailable")
    return values
