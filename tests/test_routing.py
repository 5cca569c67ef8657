"""The rule, by hand; the published result is in test_published.py."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfx_agent.errors import ConfigError, FeatureError
from rfx_agent.evidence.routing import RoutingRule, operator_of, route

NAMES = ("spread", "concentration", "logit_dispersion")
numbers = st.floats(-10, 10)


def z_of(*values: float) -> dict[str, float]:
    return dict(zip(NAMES, values, strict=True))


@pytest.mark.parametrize(
    ("z", "operator"),
    [
        ((2.0, 1.0, -1.0), "dense_steer"),
        ((0.5, 1.0, -1.0), "sparse_steer"),
        ((0.5, 1.0, 1.5), "local_temp"),
        ((-0.1, -2.0, -1.0), "sparse_steer_random"),
        ((0.0, 0.0, 0.0), "sparse_steer_random"),  # exceeds 0, not reaches it
        ((1.0, 1.0, 1.0), "dense_steer"),
        ((-1.0, 1.0, 1.0), "sparse_steer"),
    ],
)
def test_one_failure(z: tuple[float, float, float], operator: str) -> None:
    assert operator_of(z_of(*z)) == operator
    assert type(operator_of(z_of(*z))) is str


def test_a_population_by_hand() -> None:
    # z over two failures is -1 or 1; the constant column gives 0.
    got = route({"spread": [0.1, 0.2], "concentration": [2.0, 2.0], "logit_dispersion": [-1.0, -2.0]})
    assert got.tolist() == ["local_temp", "dense_steer"]
    assert got.dtype.kind == "U"
    # A constant population has nothing that stands out.
    assert route(z_of([0.1] * 3, [0.1] * 3, [0.1] * 3)).tolist() == ["sparse_steer_random"] * 3


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=20))
def test_agrees_with_the_rule_written_out(rows: list[tuple[float, float, float]]) -> None:
    columns = np.array(rows).T
    got = route(dict(zip(NAMES, columns, strict=True)))
    z = [np.zeros(len(rows)) if np.ptp(c) == 0 else (c - c.mean()) / c.std() for c in columns]
    for i, operator in enumerate(got):
        scores = [column[i] for column in z]
        best = max(scores)
        if sum(abs(s - best) < 1e-12 for s in scores) > 1 or abs(best) < 1e-12:
            continue  # rounding may break ties either way
        operators = ("dense_steer", "sparse_steer", "local_temp")
        assert operator == (operators[scores.index(best)] if best > 0 else "sparse_steer_random")
        assert operator == operator_of(dict(zip(NAMES, scores, strict=True)))


def test_another_rule() -> None:
    rule = RoutingRule({"a": "tool", "b": "local_temp"}, fallback="retry", version="mine/1")
    assert operator_of({"a": 1.0, "b": 1.0, "c": 9.0}, rule) == "tool"
    assert route({"a": [1, 2], "b": [3, 3]}, rule).tolist() == ["retry", "tool"]


def test_no_failure() -> None:
    assert route(z_of([], [], [])).shape == (0,)


@pytest.mark.parametrize(
    ("features", "what"),
    [
        ({"spread": [1.0]}, "concentration.*missing"),
        (z_of([1.0, 2.0], [1.0, 2.0], [1.0]), "differ in length"),
        (z_of([1.0, math.nan], [1.0, 2.0], [1.0, 2.0]), "'spread'.*nan for failure 1"),
        (z_of([1.0, 2.0], [1.0, math.inf], [1.0, 2.0]), "'concentration'.*inf for failure 1"),
        (z_of([[1.0]], [1.0], [1.0]), "'spread'.*shape"),
        (z_of(1.0, 1.0, 1.0), "'spread'.*shape"),
    ],
)
def test_broken_columns(features: dict, what: str) -> None:
    with pytest.raises(FeatureError, match=what):
        route(features)


def test_broken_scores() -> None:
    with pytest.raises(FeatureError, match=r"spread.*nan"):
        operator_of(z_of(math.nan, 0, 0))
    with pytest.raises(FeatureError, match="missing"):
        operator_of({"spread": 1.0})


def test_impossible_rules() -> None:
    with pytest.raises(ConfigError, match="empty"):
        RoutingRule({})
    with pytest.raises(ConfigError, match="operator is 'Dense'; give a name"):
        RoutingRule({"spread": "Dense"})
    with pytest.raises(ConfigError, match="operator is ''; give a name"):
        RoutingRule(fallback="")


def test_rules_are_values() -> None:
    rule = RoutingRule()
    assert rule == pickle.loads(pickle.dumps(rule)) == copy.deepcopy(rule)  # noqa: S301
    assert hash(rule) == hash(RoutingRule())
    given = {"spread": "tool"}
    mine = RoutingRule(given)
    given["spread"] = "retry"
    assert mine.operators["spread"] == "tool"
