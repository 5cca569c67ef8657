"""How far the answers of a set of draws agree, by hand."""

from __future__ import annotations

import math

import pytest

from rfx_agent.errors import FeatureError
from rfx_agent.evidence.agreement import agreement
from rfx_agent.records import Agreement


def test_by_hand() -> None:
    got = agreement(["4", "5", "4", "6"], None)
    assert (got.draws, got.distinct, got.modal, got.modal_share) == (4, 3, "4", 0.5)
    # Shares 1/2, 1/4, 1/4: 1.5 bits of the 2 that four draws can have.
    assert got.entropy == pytest.approx(0.75)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_bounds(n: int) -> None:
    assert agreement(["a"] * n).entropy == 0.0
    assert agreement([str(i) for i in range(n)]).entropy == pytest.approx(1.0)
    assert agreement([str(i) for i in range(n)]).entropy <= 1.0


def test_no_draw_and_one_draw() -> None:
    assert agreement([]) == Agreement(0, 0, 0.0, 0.0, None)
    assert agreement(["a"]) == Agreement(1, 1, 1.0, 0.0, "a")


def test_copies_of_one_response_are_one_draw() -> None:
    got = agreement(["a", "a", "a", "b"], ["x", "x", "x", "y"])
    assert (got.draws, got.distinct, got.modal_share, got.entropy) == (2, 2, 0.5, pytest.approx(1.0))
    # A copy whose answer was not found adds nothing; without an id each rollout is a draw.
    assert agreement([None, "a"], ["x", "x"]) == agreement(["a"])
    assert agreement(["a", "a"], [None, None]).draws == 2
    # An id is no position in the list.
    assert agreement(["a", "b"], ["1", None]).draws == 2


def test_draws_without_an_answer_are_a_category_and_never_the_mode() -> None:
    got = agreement([None, None, None, "a"])
    assert (got.draws, got.distinct, got.modal, got.modal_share) == (4, 2, "a", 0.25)
    shares = (0.75, 0.25)
    assert got.entropy == pytest.approx(-sum(p * math.log(p) for p in shares) / math.log(4))


def test_agreeing_on_nothing_is_no_agreement() -> None:
    assert agreement([None, None]) == Agreement(2, 1, 0.0, 0.0, None)


def test_the_first_seen_wins_a_tie() -> None:
    assert agreement(["b", "a", "a", "b"]).modal == "b"


def test_unequal_lengths() -> None:
    with pytest.raises(FeatureError, match="2 answers and 1 draw ids"):
        agreement(["a", "b"], ["x"])
