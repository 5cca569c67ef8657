"""Scores over a population, against one, and populations that are merged."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfx_agent.errors import FeatureError
from rfx_agent.evidence.zscore import Moments, against, merge, moments_of, zscore

columns = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


def test_by_hand() -> None:
    # Mean 5, population variance (9 + 1 + 1 + 9) / 4 = 5.
    assert zscore([2, 4, 6, 8]) == pytest.approx(np.array([-3, -1, 1, 3]) / math.sqrt(5))
    assert moments_of([2, 4, 6, 8]) == Moments(4, 5.0, pytest.approx(math.sqrt(5)))
    assert against(8.0, moments_of([2, 4, 6, 8])) == pytest.approx(3 / math.sqrt(5))


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1e300, 5e-324])
def test_a_constant_column_gives_zero_whatever_its_mean_rounds_to(value: float) -> None:
    assert (zscore([value] * 7) == 0).all()
    assert moments_of([value] * 7) == Moments(7, value, 0.0)
    assert against(value + 1, Moments(7, value, 0.0)) == 0.0


def test_empty_column() -> None:
    assert zscore([]).shape == (0,)
    with pytest.raises(FeatureError, match="without values"):
        moments_of([])


@settings(derandomize=True, deadline=None, max_examples=60)
@given(columns, columns)
def test_merging_is_as_good_as_seeing_all_at_once(a: list[float], b: list[float]) -> None:
    got = merge(moments_of(a), moments_of(b))
    assert got.count == len(a) + len(b)
    assert got.mean == pytest.approx(statistics.fmean(a + b), rel=1e-9, abs=1e-6)
    assert got.std == pytest.approx(statistics.pstdev(a + b), rel=1e-6, abs=1e-6)


def test_merging_with_nothing() -> None:
    some = Moments(3, 1.0, 2.0)
    assert merge(some, Moments(0, 0.0, 0.0)) == merge(Moments(0, 0.0, 0.0), some) == some


@pytest.mark.parametrize("bad", [[1.0, math.nan], [math.inf], [[1.0]], 3.0, ["a"], [None]])
def test_columns_that_cannot_be_scored(bad: object) -> None:
    for work in (zscore, moments_of):
        with pytest.raises(FeatureError):
            work(bad)
