"""Token tables and token features: the contract, the literal definition, and values derived by hand."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import fields

import literal
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfx_agent.errors import FeatureError
from rfx_agent.evidence.features import TokenFeatures, TopLogprobs, token_features
from rfx_agent.evidence.tokens import one_model_token_features

NAMES = [f.name for f in fields(TokenFeatures)]
fast = settings(derandomize=True, deadline=None, max_examples=120)


def random_rows(
    rng: np.random.Generator, length: int, k: int, vocabulary: int, *, ties: bool = False
) -> list[list[tuple[int, float]]]:
    rows = []
    for _ in range(length):
        n = int(rng.integers(1, k + 1))
        ids = rng.choice(vocabulary, n, replace=False)
        scores = rng.normal(scale=rng.uniform(0.1, 12.0), size=n)
        if ties:
            scores = np.round(scores)
        lps = scores - np.logaddexp.reduce(scores) - rng.exponential(0.2)
        rows.append([(int(i), float(lp)) for i, lp in zip(ids, lps, strict=True)])
    return rows


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list, list, list[int], float, int]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    k = draw(st.one_of(st.integers(1, 30), st.integers(1, 200)))
    length = draw(st.integers(1, 6))
    vocabulary = draw(st.sampled_from([k, k + 3, 2 * k, 150_000, 2**40]))
    ties = draw(st.booleans())
    s = random_rows(rng, length, k, vocabulary, ties=ties)
    a = random_rows(rng, length, k, vocabulary, ties=ties)
    taken = [int(rng.choice([i for i, _ in (s[t] if rng.random() < 0.7 else a[t])] + [7])) for t in range(length)]
    return s, a, taken, draw(st.floats(0.05, 5)), draw(st.sampled_from([1, 3, 20]))


def tables(s: list, a: list, taken: list[int]) -> tuple[TopLogprobs, TopLogprobs]:
    return TopLogprobs.from_rows(s, taken), TopLogprobs.from_rows(a, taken)


@fast
@given(pairs())
def test_agrees_with_the_literal_definition(case: tuple) -> None:
    s, a, taken, temperature, k = case
    got = token_features(*tables(s, a, taken), temperature=temperature, coverage_k=k)
    for t, x in enumerate(taken):
        want = literal.token(s[t], a[t], x, temperature, k)
        for name in NAMES:
            assert getattr(got, name)[t] == pytest.approx(want[name], rel=1e-9, abs=1e-9), (name, t)


@fast
@given(pairs(), st.randoms(use_true_random=False))
def test_order_inside_rows_does_not_matter(case: tuple, random: object) -> None:
    s, a, taken, temperature, k = case
    a = [[(i, lp - 1e-6 * j) for j, (i, lp) in enumerate(row)] for row in a]  # no ties
    before = token_features(*tables(s, a, taken), temperature=temperature, coverage_k=k)
    for row in (*s, *a):
        random.shuffle(row)
    after = token_features(*tables(s, a, taken), temperature=temperature, coverage_k=k)
    for name in NAMES:
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), rtol=1e-9, atol=1e-9)
    assert ((before.kl == 0) == (after.kl == 0)).all()


@fast
@given(pairs())
def test_one_model_gives_the_same_variance_and_entropy(case: tuple) -> None:
    s, a, taken, temperature, _ = case
    spec, anc = tables(s, a, taken)
    two, one = (
        token_features(spec, anc, temperature=temperature),
        one_model_token_features(spec, temperature=temperature),
    )
    np.testing.assert_allclose(one.logit_variance, two.logit_variance, rtol=1e-12)
    np.testing.assert_allclose(one.entropy, two.entropy, rtol=1e-12, atol=1e-12)
    want = [-literal.log_p(row, x, temperature) for row, x in zip(s, taken, strict=True)]
    np.testing.assert_allclose(one.surprisal, want, rtol=1e-9, atol=1e-9)


def test_hand_derived_values_at_temperature_one() -> None:
    # p_S = (1/2, 1/4, 1/4) over tokens 1, 2, 3; p_A = (1/4, 3/4) over 1, 2; token 3 is absent from the ancestor.
    s = TopLogprobs([[1, 2, 3]], [np.log([0.5, 0.25, 0.25])], [1])
    a = TopLogprobs([[1, 2]], [np.log([0.25, 0.75])], [1])
    got = token_features(s, a, temperature=1.0)
    log2, log3 = math.log(2), math.log(3)
    assert got.delta_path[0] == pytest.approx(log2)  # log(1/2) - log(1/4)
    # The ancestor's mass on {1, 2} is 1, the specialist's 3/4.
    assert got.coverage_gap[0] == pytest.approx(math.log((1 + 1e-8) / (0.75 + 1e-8)))
    assert got.demotion_pressure[0] == pytest.approx(log2 + math.log(4 / 3), abs=1e-7)
    # 1/2 log 2 + 1/4 log(1/3) + 1/4 (log(1/4) + 1000)
    assert got.kl[0] == pytest.approx(0.5 * log2 - 0.25 * log3 + 0.25 * (1000 - 2 * log2))
    assert got.entropy[0] == pytest.approx(1.5 * log2)
    # log p is -log 2 or -2 log 2, with probability 1/2 each: the variance is (log 2 / 2)^2.
    assert got.logit_variance[0] == pytest.approx((log2 / 2) ** 2)


def test_temperature_softens_before_renormalising() -> None:
    # At T = 1/2, p^T is p^2 over the row: (1/4, 1/16) / (5/16) = (4/5, 1/5). V stays in T = 1 log-probabilities.
    s = TopLogprobs([[1, 2]], [np.log([0.5, 0.25])], [2])
    got = token_features(s, s, temperature=0.5)
    assert got.entropy[0] == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2))
    assert got.logit_variance[0] == pytest.approx(0.8 * 0.2 * math.log(2) ** 2)
    assert one_model_token_features(s, temperature=0.5).surprisal[0] == pytest.approx(math.log(5))


def test_absent_taken_token() -> None:
    s = TopLogprobs([[1]], [[-0.5]], [9])
    a = TopLogprobs([[9]], [[-0.5]], [9])
    got = token_features(s, a, temperature=0.5)
    # log p_S = (-1000 + 0.5) / 0.5, log p_A = 0.
    assert got.delta_path[0] == pytest.approx(-1999.0)
    assert got.kl[0] == pytest.approx(1999.0)
    # The specialist has no mass on the ancestor's only token.
    assert got.coverage_gap[0] == pytest.approx(math.log((1 + 1e-8) / 1e-8))
    assert got.logit_variance[0] == got.entropy[0] == 0.0


def test_ties_in_the_ancestors_preferred_set_go_by_the_order_given() -> None:
    # Both orders tie at -1; only the first two tokens given are the preferred ones.
    s = TopLogprobs([[1], [1]], [[0.0], [0.0]], [1, 1])
    a = TopLogprobs([[1, 2, 3], [2, 3, 1]], [[-1.0] * 3] * 2, [1, 1])
    gap = token_features(s, a, temperature=1.0, coverage_k=2).coverage_gap
    assert gap[0] == pytest.approx(math.log(2 / 3), abs=1e-7)  # A = {1, 2}: the specialist has all its mass there
    assert gap[1] == pytest.approx(math.log(2 / 3 / 1e-8), abs=1e-6)  # A = {2, 3}: none


@pytest.mark.parametrize("k", [1, 3, 20, 21, 100])
def test_equal_rows_differ_in_nothing_to_the_last_bit(k: int) -> None:
    rng = np.random.default_rng(k)
    row = random_rows(rng, 1, k, 1000)[0] + [(2000 + i, -3.0) for i in range(k)]  # ties too
    shuffled = [row[i] for i in rng.permutation(len(row))]
    got = token_features(*tables([row], [shuffled], [row[0][0]]))
    assert got.delta_path[0] == got.coverage_gap[0] == got.kl[0] == got.demotion_pressure[0] == 0.0


def test_full_coverage_is_no_demotion_whatever_rounding_says() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.choice(1000, 20, replace=False)
        lps = np.log(rng.dirichlet(np.ones(20), 2))
        s, a = (TopLogprobs([rng.permutation(ids)], [row], [ids[0]]) for row in lps)
        assert token_features(s, a).coverage_gap[0] == 0.0


@pytest.mark.parametrize("temperature", [1e-6, 0.01, 5.0, 1e4])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    rng = np.random.default_rng(1)
    s, a = random_rows(rng, 50, 40, 100), random_rows(rng, 50, 40, 100)
    got = token_features(*tables(s, a, [3] * 50), temperature=temperature)
    assert all(np.isfinite(getattr(got, name)).all() for name in NAMES)
    for t in range(0, 50, 10):
        want = literal.token(s[t], a[t], 3, temperature)
        assert got.coverage_gap[t] == pytest.approx(want["coverage_gap"], rel=1e-9, abs=1e-9)
        assert got.kl[t] == pytest.approx(want["kl"], rel=1e-9, abs=1e-9)


def test_long_tables_are_worked_on_in_chunks_without_seams() -> None:
    rng = np.random.default_rng(2)
    s, a = random_rows(rng, 2000, 60, 90), random_rows(rng, 2000, 60, 90)
    whole = token_features(*tables(s, a, [1] * 2000))
    for part in (slice(0, 3), slice(810, 830), slice(1990, 2000)):
        alone = token_features(*tables(s[part], a[part], [1] * (part.stop - part.start)))
        for name in NAMES:
            np.testing.assert_allclose(getattr(alone, name), getattr(whole, name)[part], rtol=1e-11, atol=1e-11)


def test_trailing_rows_empty_in_both_are_padding() -> None:
    s, a = tables([[(1, -0.1)], [], None], [[(1, -0.2), (2, -2.0)], {}, []], [1, 0, 0])
    got = token_features(s, a)
    assert len(got.kl) == 3
    assert all((getattr(got, name)[1:] == 0).all() for name in NAMES)
    assert len(one_model_token_features(s).entropy) == 1


@pytest.mark.parametrize(
    ("s", "a", "position"),
    [
        ([[(1, -0.1)], [], [(1, -0.1)]], [[(1, -0.1)]] * 3, 1),
        ([[(1, -0.1)]] * 3, [[(1, -0.1)], [(1, -0.1)], []], 2),
        ([[(1, -math.inf)], [(1, -0.1)]], [[(1, -0.1)]] * 2, 0),
    ],
)
def test_an_empty_row_that_is_no_padding_is_an_error(s: list, a: list, position: int) -> None:
    with pytest.raises(FeatureError, match="no log-probabilities") as caught:
        token_features(*tables(s, a, [1] * len(s)))
    assert caught.value.position == position


def test_no_positions() -> None:
    empty = TopLogprobs([], [], [])
    assert len(empty) == 0
    assert len(token_features(empty, empty).kl) == len(one_model_token_features(empty).entropy) == 0


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, 1e-310])
def test_impossible_temperatures(temperature: float) -> None:
    table = TopLogprobs([[1]], [[-0.1]], [1])
    for work in (lambda: token_features(table, table, temperature=temperature),
                 lambda: one_model_token_features(table, temperature=temperature)):  # fmt: skip
        with pytest.raises(FeatureError, match="temperature"):
            work()


@pytest.mark.parametrize("k", [0, -1, 2.5, True])
def test_impossible_coverage_k(k: object) -> None:
    table = TopLogprobs([[1]], [[-0.1]], [1])
    with pytest.raises(FeatureError, match="coverage_k"):
        token_features(table, table, coverage_k=k)


def test_tables_that_do_not_belong_together() -> None:
    one = TopLogprobs([[1]], [[-0.1]], [1], rollout=4)
    with pytest.raises(FeatureError, match=r"1 positions, the ancestor's 2.*rollout 4"):
        token_features(one, TopLogprobs([[1], [2]], [[-0.1], [-0.1]], [1, 2]))
    with pytest.raises(FeatureError, match=r"different tokens.*position 0"):
        token_features(one, TopLogprobs([[1]], [[-0.1]], [2]))
    with pytest.raises(FeatureError, match="in ids, the ancestor's in tokens"):
        token_features(one, TopLogprobs.from_rows([{"a": -0.1}], ["a"]))


@pytest.mark.parametrize(
    ("ids", "logprobs", "what"),
    [
        ([[1, 2], [3, 4]], [[-1, -1], [-1, math.nan]], "NaN"),
        ([[1, 2], [3, 4]], [[-1, -1], [-1, math.inf]], "above 0"),
        ([[1, 2], [3, 4]], [[-1, -1], [-1, 0.0011]], "above 0"),
        ([[1, 2], [3, 3]], [[-1, -1], [-1, -2]], "twice"),
        ([[1, 2], [3, -4]], [[-1, -1], [-1, -2]], "negative"),
        ([[1, 2], [3, 2**60]], [[-1, -1], [-1, -2]], "above"),
    ],
)
def test_rows_that_break_the_contract(ids: list, logprobs: list, what: str) -> None:
    with pytest.raises(FeatureError, match=what) as caught:
        TopLogprobs(ids, logprobs, [1, 2], rollout=3)
    assert (caught.value.rollout, caught.value.position) == (3, 1)
    rows = [list(zip(i, lp, strict=True)) for i, lp in zip(ids, logprobs, strict=True)]
    with pytest.raises(FeatureError) as caught:
        TopLogprobs.from_rows(rows, [1, 2], rollout=3)
    assert (caught.value.rollout, caught.value.position) == (3, 1)


@pytest.mark.parametrize(
    ("ids", "logprobs", "taken"),
    [
        ([[1.0]], [[-1.0]], [1]),
        ([["a"]], [[-1.0]], [1]),
        ([[True]], [[-1.0]], [1]),
        ([[1]], [[-1.0]], [1.5]),
        ([[1]], [[-1.0]], [-1]),
        ([[1]], [["x"]], [1]),
        ([[1]], [[-1.0]], [1, 2]),
        ([[1, 2]], [[-1.0]], [1]),
        ([1], [-1.0], [1]),
        ([[1], [1, 2]], [[-1.0], [-1.0]], [1, 1]),
        ([[1]], [[-1.0]], 1),
    ],
)
def test_arrays_that_break_the_contract(ids: object, logprobs: object, taken: object) -> None:
    with pytest.raises(FeatureError):
        TopLogprobs(ids, logprobs, taken)


@pytest.mark.parametrize(
    ("rows", "taken", "position"),
    [
        ([[(1, -1.0)], [(2.0, -1.0)]], [1, 1], 1),
        ([[(1, -1.0)], [("a", -1.0)]], [1, 1], 1),
        ([[(1, -1.0)], [(True, -1.0)]], [1, 1], 1),
        ([[(1, -1.0)], [(2**70, -1.0)]], [1, 1], 1),
        ([[(1, -1.0)], [], [(1, None)]], [1, 1, 1], 2),
        ([[(1, -1.0)], [1, 2]], [1, 1], 1),
        ([[(1, -1.0)], [(1, 2, 3)]], [1, 1], 1),
        ([[(1, -1.0)], 5], [1, 1], 1),
        ([{"a": -1.0}, {"a": -1.0}], ["a", 1], 1),
        ([{"a": -1.0}], ["a", "b"], None),
    ],
)
def test_ragged_rows_that_break_the_contract(rows: list, taken: list, position: int | None) -> None:
    with pytest.raises(FeatureError) as caught:
        TopLogprobs.from_rows(rows, taken, rollout=2)
    if position is not None and not isinstance(rows[0], dict):
        assert (caught.value.rollout, caught.value.position) == (2, position)


@pytest.mark.parametrize("sentinel", [-math.inf, -9999.0, -1e9, -1000.0, float(np.finfo(np.float32).min)])
def test_sentinels_are_absent(sentinel: float) -> None:
    # Padding may repeat any id, one that is present included.
    padded = TopLogprobs([[5, 5, -1, 7]], [[-0.1, sentinel, sentinel, sentinel]], [7])
    bare = TopLogprobs([[5]], [[-0.1]], [7])
    assert padded.ids.tolist() == [[5, -1, -1, -1]]
    other = TopLogprobs([[5, 7]], [[-0.5, -1.5]], [7])
    for name in NAMES:
        assert getattr(token_features(padded, other), name) == getattr(token_features(bare, other), name)
        assert getattr(token_features(other, padded), name) == getattr(token_features(other, bare), name)


def test_slightly_positive_log_probabilities_are_rounding() -> None:
    assert TopLogprobs([[1]], [[0.0009]], [1]).logprobs[0, 0] == 0.0009


def test_inputs_are_copied_and_what_is_kept_cannot_be_written() -> None:
    ids, lps, taken = np.array([[3, 1]]), np.array([[-1.0, -9999.0]]), np.array([3])
    before = copy.deepcopy((ids, lps, taken))
    table = TopLogprobs(ids, lps, taken)
    token_features(table, table)
    for now, then in zip((ids, lps, taken), before, strict=True):
        assert (now == then).all()
        assert now.flags.writeable
    for array in (table.ids, table.logprobs, table.taken):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    for other in (pickle.loads(pickle.dumps(table)), copy.deepcopy(table)):  # noqa: S301
        assert (other.logprobs == table.logprobs).all()
        assert not other.logprobs.flags.writeable


def test_texts_of_two_tables_get_the_same_ids() -> None:
    rows = [{" the": -0.2, b"\xff": -2.0}, [("a", -0.1)]]
    s = TopLogprobs.from_rows(rows, [" the", "a"])
    a = TopLogprobs.from_rows([[(b"\xff", -2.0), (b" the", -0.2)], {"a": -0.1}], [" the", "a"])
    assert s.space == a.space == "tokens"
    assert (token_features(s, a).kl == 0).all()


def test_a_vocabulary_makes_texts_comparable_with_ids() -> None:
    vocabulary = {"a": 11, "b": 12}
    s = TopLogprobs.from_rows([{"a": -0.2, "b": -2.0}], ["b"], vocabulary=vocabulary)
    a = TopLogprobs([[12, 11]], [[-2.0, -0.2]], [12])
    assert token_features(s, a).kl[0] == 0
    with pytest.raises(FeatureError, match=r"'c' is not in the vocabulary.*position 1"):
        TopLogprobs.from_rows([{"a": -0.2}, {"c": -0.1}], ["a", "a"], vocabulary=vocabulary)
    assert vocabulary == {"a": 11, "b": 12}


def test_repr_is_short() -> None:
    assert repr(TopLogprobs([[1]], [[-0.1]], [1])) == "TopLogprobs(positions=1, k=1, space='ids')"
