"""Beta posteriors, by hand and against exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfx_agent.errors import ConfigError
from rfx_agent.evidence.posterior import from_mean_variance, mean, moments, prob_any, update


def test_update_and_mean() -> None:
    assert update((0.27, 0.45), 0, 4) == pytest.approx((0.27, 4.45))
    assert update((1.0, 1.0), 3, 4) == (4.0, 2.0)
    assert mean((4.0, 2.0)) == pytest.approx(2 / 3)
    assert mean(update((0.27, 0.45), np.int64(0), np.int64(1))) == pytest.approx(0.27 / 1.72)


def test_any_of_n_by_hand() -> None:
    # Beta(1, 1): no pass in n has probability 1 / (n + 1).
    assert prob_any((1, 1), 4) == pytest.approx(0.8)
    assert prob_any((1, 1), 0) == 0.0
    assert prob_any((0.3, 0.4), 1) == pytest.approx(mean((0.3, 0.4)))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 60))
def test_any_of_n_is_exact(a: int, b: int, n: int) -> None:
    none = Fraction(1)
    for i in range(n):
        none *= Fraction(b, 1000) + i
        none /= Fraction(a + b, 1000) + i
    assert prob_any((a / 1000, b / 1000), n) == pytest.approx(float(1 - none), rel=1e-12, abs=1e-300)


def test_any_of_n_keeps_tiny_rates() -> None:
    assert prob_any((1e-18, 1.0), 2) == pytest.approx(1.5e-18, rel=1e-12)
    assert prob_any((1e-18, 1.0), 10_000) > 0
    assert prob_any((1e9, 1e-9), 3) == 1.0


def test_moments_return_what_they_were_made_of() -> None:
    x = np.random.default_rng(0).beta(0.8, 1.7, 200_000)
    assert moments(x) == pytest.approx((0.8, 1.7), rel=0.02)
    # Mean 1/2, variance 1/16: strength (1/4) / (1/16) - 1 = 3.
    assert moments([0.25, 0.75]) == pytest.approx((1.5, 1.5))
    assert from_mean_variance(0.5, 1 / 16) == pytest.approx((1.5, 1.5))


def test_weights_count_like_repetitions() -> None:
    assert moments([0.1, 0.5, 0.8], [3, 1, 2]) == pytest.approx(moments([0.1, 0.1, 0.1, 0.5, 0.8, 0.8]))


@pytest.mark.parametrize(
    ("rates", "weights"),
    [
        ([], None),
        ([0.5, 0.5], None),
        ([0.0, 1.0], None),
        ([0.0, 0.0], None),
        ([0.2, 1.2], None),
        ([0.2, math.nan], None),
        ([0.2, 0.3], [1.0]),
        ([0.2, 0.3], [0.0, 0.0]),
        ([0.2, 0.3], [1.0, -1.0]),
        ([0.2, 0.3], [1.0, math.nan]),
    ],
)
def test_rates_that_fit_no_beta(rates: list, weights: list | None) -> None:
    with pytest.raises(ConfigError):
        moments(rates, weights)


@pytest.mark.parametrize("prior", [(0.0, 1.0), (1.0, -1.0), (math.nan, 1.0), (1.0, math.inf)])
def test_impossible_parameters(prior: tuple) -> None:
    for work in (lambda: mean(prior), lambda: update(prior, 0, 0), lambda: prob_any(prior, 1)):
        with pytest.raises(ConfigError, match="Beta"):
            work()


@pytest.mark.parametrize(("passes", "draws"), [(2, 1), (-1, 1), (0, -1), (0.5, 1)])
def test_impossible_counts(passes: float, draws: float) -> None:
    with pytest.raises(ConfigError):
        update((1, 1), passes, draws)
    with pytest.raises(ConfigError):
        prob_any((1, 1), -1)
