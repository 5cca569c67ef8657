"""Checks of parameters say who, what was received and what to do."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from rfx_agent import ConfigError
from rfx_agent.checks import among, number, share, whole
from rfx_agent.errors import FeatureError


@pytest.mark.parametrize(
    ("check", "says"),
    [
        (lambda: whole("x: n", 1.0), r"x: n is 1\.0; give a whole number of at least 0"),
        (lambda: whole("x: n", True), r"x: n is True; give a whole number"),
        (lambda: whole("x: n", 0, least=1), r"x: n is 0; give a whole number of at least 1"),
        (lambda: whole("x: n", 9, least=1, most=8), r"x: n is 9; give a whole number of at least 1 and at most 8"),
        (lambda: number("x: t", "0.6"), r"x: t is '0\.6'; give a finite number"),
        (lambda: number("x: t", math.nan), r"x: t is nan; give a finite number"),
        (lambda: number("x: t", math.inf, least=0), r"x: t is inf; give a finite number of at least 0"),
        (lambda: number("x: t", 0, above=0, unit="seconds"), r"x: t is 0; give seconds above 0"),
        (lambda: number("x: t", False), r"x: t is False; give a finite number"),
        (lambda: share("x: p", 1.5), r"x: p is 1\.5; give a number in \[0, 1\]"),
        (lambda: among("x: way", "c", ("a", "b")), r"x: way is 'c'; give one of 'a', 'b'"),
    ],
)
def test_a_value_that_cannot_work_is_refused(check: Callable[[], Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check()


def test_a_value_that_can_work_comes_back() -> None:
    assert whole("x", 3, least=3) == 3
    assert number("x", math.inf, finite=False) == math.inf
    assert number("x", 0.6, least=0.6) == 0.6
    assert share("x", 1) == 1
    assert among("x", True, (True, False)) is True


def test_the_error_may_be_another_one() -> None:
    with pytest.raises(FeatureError):
        whole("x", -1, error=FeatureError)
