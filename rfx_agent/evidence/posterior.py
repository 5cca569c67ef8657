"""Beta posteriors of an operator's rescue rate on one failure.

Ours: the paper measures rescue rates over 10 attempts or so; with the few that a deployment can afford, a
prior over the population of failures has to carry most of the weight.
"""

from __future__ import annotations

import math
import operator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rfx_agent.errors import ConfigError

__all__ = ["Beta", "expected_tries", "from_mean_variance", "mean", "moments", "prob_any", "update"]

Beta: TypeAlias = tuple[float, float]
"""Parameters (alpha, beta) of a Beta distribution, both positive and finite."""


def update(prior: Beta, passes: int, draws: int) -> Beta:
    """The Beta distribution of a rescue rate after ``draws`` attempts, of which ``passes`` succeeded.

    Raises:
        ConfigError: parameters that are not positive and finite, or counts without 0 <= passes <= draws.
    """
    a, b = _checked(prior)
    passes, draws = _count(passes, "passes"), _count(draws, "draws")
    if passes > draws:
        raise ConfigError(f"{passes} passes in {draws} draws; passes must not exceed draws")
    return a + passes, b + draws - passes


def mean(posterior: Beta) -> float:
    """Probability that one more attempt passes.

    Raises:
        ConfigError: parameters that are not positive and finite.
    """
    a, b = _checked(posterior)
    return a / (a + b)


def prob_any(posterior: Beta, n: int) -> float:
    """Probability that at least one of ``n`` more attempts passes (beta-binomial).

    One minus the product over i < n of (beta + i) / (alpha + beta + i), in logarithms: exact for tiny rates
    too.

    Raises:
        ConfigError: parameters that are not positive and finite, or a negative ``n``.
    """
    return float(-np.expm1(_failing(posterior, n).sum())) + 0.0


def expected_tries(posterior: Beta, n: int) -> float:
    """Attempts expected where the first pass ends them, and after ``n`` there are no more.

    The sum over i < n of the probability that the first i attempts all fail, each as in ``prob_any``.

    Example:
        >>> expected_tries((1.0, 3.0), 2)
        1.75

    Raises:
        ConfigError: parameters that are not positive and finite, or a negative ``n``.
    """
    failing = _failing(posterior, n)
    return float(np.exp(np.cumsum(failing[:-1])).sum()) + 1.0 if len(failing) else 0.0


def _failing(posterior: Beta, n: int) -> npt.NDArray[np.float64]:
    """Logarithm of the probability that attempt i fails where all before it did, shape (n,)."""
    a, b = _checked(posterior)
    i = np.arange(_count(n, "n"), dtype=np.float64)
    share = a / (a + b + i)
    # Each form where it keeps its digits: log1p for small rates, the quotient for rates near 1.
    failing: npt.NDArray[np.float64] = np.where(
        share < 0.5, np.log1p(-np.minimum(share, 0.5)), np.log((b + i) / (a + b + i))
    )
    return failing


def moments(rates: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Beta:
    """Beta with the mean and the population variance of measured rates (method of moments).

    Rates measured over few attempts spread more than the true ones, and the prior is then wider than it
    should be: on the safe side, as it gives way to evidence sooner.

    Args:
        rates: shape (n,), each in [0, 1].
        weights: shape (n,), non-negative, not all 0; equal weights by default.

    Raises:
        ConfigError: no rates, rates outside [0, 1], weights that do not fit, or a spread that no Beta has.
    """
    x = np.asarray(rates, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0 or not bool(((x >= 0) & (x <= 1)).all()):
        raise ConfigError(f"rates of shape {x.shape}; give at least one number, all in [0, 1]")
    if w.shape != x.shape or not bool((np.isfinite(w) & (w >= 0)).all()) or w.sum() <= 0:
        raise ConfigError(f"weights of shape {w.shape}; give one non-negative number per rate, not all 0")
    centre = float(np.average(x, weights=w))
    return from_mean_variance(centre, float(np.average((x - centre) ** 2, weights=w)))


def from_mean_variance(centre: float, variance: float) -> Beta:
    """Beta with the given mean and variance.

    Raises:
        ConfigError: unless 0 < centre < 1 and 0 < variance < centre * (1 - centre).
    """
    if not (0 < centre < 1 and 0 < variance < centre * (1 - centre)):
        raise ConfigError(
            f"mean {centre:.6g} and variance {variance:.6g} fit no Beta distribution; "
            "give rates that differ from one another and are not all 0 or 1"
        )
    strength = centre * (1 - centre) / variance - 1
    a, b = centre * strength, (1 - centre) * strength
    return _checked((a, b))


def _checked(posterior: Beta) -> Beta:
    a, b = posterior
    if not (0 < a < math.inf and 0 < b < math.inf):
        raise ConfigError(f"Beta({a!r}, {b!r}); give two positive, finite numbers")
    return float(a), float(b)


def _count(value: int, name: str) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        raise ConfigError(f"{name} is {value!r}; give a whole number") from None
    if count < 0:
        raise ConfigError(f"{name} is {count}; give 0 or more")
    return count
