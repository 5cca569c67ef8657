"""Trajectory features, their proxies, and the evidence of a failure's rollouts."""

from __future__ import annotations

import math

import literal
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfx_agent.errors import FeatureError
from rfx_agent.evidence.features import (
    ONE_MODEL,
    TWO_MODEL,
    TokenFeatures,
    TopLogprobs,
    evidence_of,
    pool_features,
    token_features,
    token_offset,
    trajectory_features,
)
from rfx_agent.evidence.tokens import OneModelTokenFeatures, one_model_token_features
from rfx_agent.evidence.trajectory import proxy_features, rollout_features
from rfx_agent.records import Rollout


def tokens_of(j: list[float], v: list[float] | None = None, kl: list[float] | None = None) -> TokenFeatures:
    n = len(j)
    zero = np.zeros(n)
    return TokenFeatures(
        delta_path=np.array(j, dtype=float),
        coverage_gap=zero,
        demotion_pressure=np.array(j, dtype=float),
        logit_variance=np.array(v if v is not None else [1.0] * n, dtype=float),
        kl=np.array(kl if kl is not None else [1.0] * n, dtype=float),
        entropy=zero,
    )


def table(rng: np.random.Generator, length: int = 30, k: int = 25) -> TopLogprobs:
    ids = np.array([rng.choice(40, k, replace=False) for _ in range(length)])
    lps = np.log(rng.dirichlet(np.ones(k) * 0.3, length) + 1e-12)
    return TopLogprobs(ids, lps, np.arange(length) % 40)


def test_hand_derived_values() -> None:
    j = [0.0, 2.0, 0.0, 6.0, 0.0]
    v = [1.0, 10.0, 100.0, 1000.0, 10000.0]
    got = trajectory_features([tokens_of(j, v)], window=1)
    assert got.spread == pytest.approx(2 / 5)
    assert got.concentration == pytest.approx(math.log10(6 / 1.6))  # peak 6, mean 8/5
    assert got.logit_dispersion == pytest.approx(math.log10((100 + 1000 + 10000) / 3))
    assert got.junctions == ((2, 5),)
    assert got.peaks == (3,)


def test_the_window_stops_at_both_ends() -> None:
    one = rollout_features(tokens_of([5.0] + [1.0] * 19, [float(i) for i in range(20)]))
    assert one.junction == (0, 9)
    assert one.logit_dispersion == pytest.approx(math.log10(4))  # mean of 0..8
    assert rollout_features(tokens_of([1.0] * 19 + [5.0])).junction == (11, 20)


def test_trailing_positions_without_divergence_are_trimmed_and_inner_ones_are_kept() -> None:
    one = rollout_features(tokens_of([1.0, 0.0, 1.0, 9.0, 9.0], kl=[1.0, 0.0, 1e-300, 0.0, 0.0]))
    assert one.positions == 3
    assert one.spread == pytest.approx(2 / 3)
    assert one.concentration == pytest.approx(math.log10(1.5))


def test_mean_over_rollouts_skips_those_without_a_position() -> None:
    got = trajectory_features([tokens_of([1.0, 0.0]), tokens_of([]), tokens_of([1.0], kl=[0.0]), tokens_of([1.0])])
    assert got.spread == pytest.approx(0.75)  # of 0.5 and 1
    assert got.concentration == pytest.approx(math.log10(2) / 2)  # of log10(1 / 0.5) and log10(1)
    assert got.junctions == ((0, 2), None, None, (0, 1))
    assert got.rollouts[1] is got.rollouts[2] is None


@pytest.mark.parametrize("rollouts", [[], [tokens_of([])], [tokens_of([3.0, 1.0], kl=[0.0, 0.0])]])
def test_nothing_to_measure_is_unavailable_and_not_zero(rollouts: list) -> None:
    got = trajectory_features(rollouts)
    assert not got.available
    assert got.spread is got.concentration is got.logit_dispersion is None
    assert got.junctions == (None,) * len(rollouts)


def test_no_pressure_anywhere_hits_the_floors_and_has_no_junction() -> None:
    got = trajectory_features([tokens_of([0.0, 0.0], [0.0, 0.0])])
    assert (got.spread, got.concentration, got.logit_dispersion) == (0.0, -8.0, -8.0)
    assert got.junctions == got.peaks == (None,)
    assert got.available


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(0, 12), st.integers(1, 4))
def test_agrees_with_the_literal_definition(seed: int, window: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    rollouts, wanted = [], []
    for _ in range(count):
        s, a = (table(rng, int(rng.integers(1, 40))) for _ in range(2))
        n = min(len(s), len(a))
        s, a = (TopLogprobs(x.ids[:n], x.logprobs[:n], x.taken[:n]) for x in (s, a))
        same = n - int(rng.integers(0, 3))  # from here on the two models agree
        a = TopLogprobs(*(np.concatenate([y[:same], x[same:]]) for x, y in
                          ((s.ids, a.ids), (s.logprobs, a.logprobs), (s.taken, a.taken))))  # fmt: skip
        rollouts.append(token_features(s, a))
        rows = [
            [list(zip(i, lp, strict=True)) for i, lp in zip(x.ids.tolist(), x.logprobs.tolist(), strict=True)]
            for x in (s, a)
        ]
        each = [literal.token(*pair, x) for *pair, x in zip(*rows, s.taken.tolist(), strict=True)]
        wanted.append(literal.rollout(each, window))
    got = trajectory_features(rollouts, window=window)
    usable = [w for w in wanted if w is not None]
    if not usable:
        assert not got.available
    else:
        have = (got.spread, got.concentration, got.logit_dispersion)
        assert have == pytest.approx(tuple(np.mean(usable, axis=0)), rel=1e-9, abs=1e-9)


def test_broken_records_name_rollout_and_position() -> None:
    good = tokens_of([1.0, 2.0])
    with pytest.raises(FeatureError, match="demotion_pressure is nan") as caught:
        trajectory_features([good, tokens_of([1.0, math.nan])])
    assert (caught.value.rollout, caught.value.position) == (1, 1)
    with pytest.raises(FeatureError, match="kl") as caught:
        trajectory_features([good, tokens_of([1.0, 2.0], kl=[1.0, math.inf])])
    assert (caught.value.rollout, caught.value.position) == (1, 1)
    with pytest.raises(FeatureError, match="shape"):
        trajectory_features([tokens_of([1.0, 2.0], [1.0])])
    with pytest.raises(FeatureError, match="window"):
        trajectory_features([], window=-1)


def test_proxies_by_hand() -> None:
    # J_proxy = max(0, surprisal - entropy) = 0, 3, 1
    tokens = OneModelTokenFeatures(
        logit_variance=np.array([1.0, 2.0, 3.0]),
        entropy=np.array([1.0, 1.0, 1.0]),
        surprisal=np.array([0.5, 4.0, 2.0]),
    )
    got = proxy_features([tokens], window=0)
    assert got.spread_proxy == pytest.approx(2 / 3)
    assert got.concentration_proxy == pytest.approx(math.log10(3 / (4 / 3)))
    assert got.logit_dispersion_proxy == pytest.approx(math.log10(2))
    assert got.junctions == ((1, 2),)
    assert got.available
    assert not proxy_features([]).available


def rollout(tokens: TopLogprobs | None, response_id: str | None = None) -> Rollout:
    return Rollout("x", logprobs=tokens, response_id=response_id)


def test_evidence_of_two_models() -> None:
    rng = np.random.default_rng(0)
    s, a = [table(rng) for _ in range(3)], [table(rng) for _ in range(3)]
    got = evidence_of([rollout(x) for x in s], a)
    want = trajectory_features([token_features(x, y) for x, y in zip(s, a, strict=True)])
    assert got.evidence == "two_model"
    assert list(got.features) == list(TWO_MODEL)
    assert got.features == pytest.approx(dict(zip(TWO_MODEL, (want.spread, want.concentration, want.logit_dispersion),
                                                  strict=True)))  # fmt: skip
    assert got.junctions == want.junctions
    assert got.caveats == ()


def test_rollouts_without_positions_do_not_count_against_two_models() -> None:
    rng = np.random.default_rng(0)
    got = evidence_of([rollout(table(rng)), rollout(None), rollout(TopLogprobs([], [], []))], [table(rng), None, None])
    assert got.evidence == "two_model"
    assert got.per_rollout[1] is got.per_rollout[2] is got.junctions[1] is None
    assert "2 of 3" in got.caveats[0]


def test_a_rollout_that_was_not_scored_has_no_features_beside_one_that_was() -> None:
    rng = np.random.default_rng(0)
    s, a = [table(rng), table(rng), table(rng)], table(rng)
    why = FeatureError("a log-probability is NaN", rollout=2, position=4)
    got = evidence_of([rollout(x) for x in s], [a, None, why])
    assert got.evidence == "two_model"
    assert got.features == evidence_of([rollout(s[0])], [a]).features
    assert got.per_rollout[1:] == (None, None)
    assert got.peaks[0] is not None
    assert got.peaks[1:] == (None, None)
    assert got.caveats[0] == "rollout 2 could not be scored: a log-probability is NaN (at rollout 2, position 4)"
    assert got.caveats[1].startswith("2 of 3 tables")


def test_without_any_ancestor_one_model_is_left() -> None:
    rng = np.random.default_rng(0)
    s = [table(rng), table(rng)]
    got = evidence_of([rollout(x) for x in s], [None, None])
    want = proxy_features([one_model_token_features(x) for x in s])
    assert got.evidence == "one_model"
    assert list(got.features) == list(ONE_MODEL)
    assert got.features["spread_proxy"] == pytest.approx(want.spread_proxy)
    assert all(list(f) == list(ONE_MODEL) for f in got.per_rollout)
    assert "2 of 2" in got.caveats[0]
    assert evidence_of([rollout(x) for x in s]).caveats == ()


def test_samples_only() -> None:
    got = evidence_of([rollout(None), rollout(None)])
    assert (got.evidence, got.features, got.per_rollout) == ("samples", None, (None, None))
    assert len(got.caveats) == 1
    assert evidence_of([]).evidence == "samples"


def test_a_broken_pair_costs_only_its_own_rollout() -> None:
    rng = np.random.default_rng(0)
    s, a = [table(rng) for _ in range(3)], [table(rng) for _ in range(3)]
    broken = TopLogprobs(a[1].ids, np.where(np.arange(30)[:, None] == 7, -np.inf, a[1].logprobs), a[1].taken)
    got = evidence_of([rollout(x) for x in s], [a[0], broken, a[2]])
    assert got.evidence == "two_model"
    assert got.per_rollout[1] is None
    assert "rollout 1" in got.caveats[0]
    assert "position 7" in got.caveats[0]
    ones = [evidence_of([rollout(s[i])], [a[i]]).features["spread"] for i in (0, 2)]
    assert got.features["spread"] == pytest.approx(sum(ones) / 2)


def test_when_every_pair_is_broken_one_model_is_left() -> None:
    rng = np.random.default_rng(0)
    got = evidence_of([rollout(table(rng))], [table(rng, length=29)])
    assert got.evidence == "one_model"
    assert "30 positions" in got.caveats[0]
    same = table(rng)
    alike = evidence_of([rollout(same)], [same])
    assert alike.evidence == "one_model"
    assert "differ nowhere" in alike.caveats[0]


def test_copies_of_one_response_count_once() -> None:
    rng = np.random.default_rng(0)
    one, two = table(rng), table(rng)
    got = evidence_of([rollout(one, "a"), rollout(one, "a"), rollout(one, "a"), rollout(two, "b")])
    want = evidence_of([rollout(one), rollout(two)])
    assert got.features == pytest.approx(want.features)


def test_impossible_parameters_are_the_callers_fault() -> None:
    for bad in ({"temperature": 0.0}, {"coverage_k": 0}, {"window": -1}):
        with pytest.raises(FeatureError):
            evidence_of([], **bad)
    with pytest.raises(FeatureError, match="1 rollouts and 2"):
        evidence_of([rollout(None)], [None, None])


def test_pooling_never_mixes_kinds() -> None:
    two, one = dict.fromkeys(TWO_MODEL, 1.0), dict.fromkeys(ONE_MODEL, 5.0)
    assert pool_features([two, None, {**two, "spread": 2.0}])[:2] == ("two_model", {**two, "spread": 1.5})
    evidence, features, caveats = pool_features([one, two, one])
    assert (evidence, features) == ("two_model", two)
    assert "2 of 3" in caveats[0]
    assert pool_features([one, one]) == ("one_model", one, ())
    assert pool_features([])[:2] == pool_features([None])[:2] == ("samples", None)
    with pytest.raises(FeatureError, match="rollout 1"):
        pool_features([two, {"spread": 1.0}])
    with pytest.raises(FeatureError, match="finite"):
        pool_features([{**two, "spread": math.nan}])


def test_token_offset_counts_characters() -> None:
    tokens = ["Ab", "", "çde", " f"]
    assert [token_offset(tokens, i) for i in range(5)] == [0, 2, 2, 5, 7]
    for position in (-1, 5):
        with pytest.raises(FeatureError):
            token_offset(tokens, position)
