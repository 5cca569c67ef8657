"""What opinions are worth: the probability that an answer is right, given who passed it and how often they are wrong.

A verdict is a proof or an opinion. An opinion has rates: of right answers it passes a share (true passes), and of wrong
ones another (false passes). By Bayes' rule

    odds(right | opinions) = odds(right) · P(opinions | right) / P(opinions | wrong)

Two opinions of one verifier on one text are one opinion. Those of two verifiers are not independent either: where both
read the same text, they make some of the same mistakes. On right answers and on wrong ones, a later opinion and the
most telling one are two coins with the chances of their rates and a correlation, as far as such coins can have one.

How often a draw is right before anybody looked, odds(right), differs from deployment to deployment more than anything
else here. ``RightRates`` learns it from the verdicts as they come.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from rfx_agent.checks import share as checked_share
from rfx_agent.errors import ConfigError

__all__ = [
    "CORRELATION",
    "Likelihoods",
    "Opinion",
    "Rates",
    "RightRates",
    "checked_rates",
    "expected_share",
    "likelihoods",
    "posterior",
    "probability_right",
]

Rates: TypeAlias = tuple[float, float]
"""(true passes, false passes): the shares of right and of wrong answers that a verifier passes, each in [0, 1]."""
Likelihoods: TypeAlias = tuple[float, float]
"""(P(opinions | right), P(opinions | wrong))."""

CORRELATION = 0.5
"""Assumed of two verifiers that nobody measured together. Assumed, not measured: models of one family share more of
their mistakes, a model and a rule fewer."""

Belief: TypeAlias = tuple[float, float]
"""Beta(alpha, beta)."""

_LEAST = 1e-3  # what was never seen in some hundred cases is rare, not impossible
_PRIOR_DRAWS = 8.0  # that a prior is worth against draws that were judged
_GRID = (np.arange(400) + 0.5) / 400
_MEANS = ((np.arange(60) + 0.5) / 60)[:, None]
_STRENGTHS = np.array([[0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0]])
_MANY = 30  # judged answers: fewer give a first answer no rate, and lift no remedy above what was believed
_FORGETS = 1000.0  # judged answers, after which the older ones count half
_TASKS = 500  # rates that are kept, by task and remedy, 4 kB each; the least recent go
_WIDTH = 1.5  # of the prior of a strength, in its logarithm
_AGAIN = 5  # failures before a draw, from which on they are counted as one


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one verifier that gives no proof said of one text.

    Attributes:
        by: the verifier's name.
        passed: whether it accepted the text.
        rates: its own, or None where nobody measured them.
        correlation: with other opinions on the text: 0 if it was formed alone, 1 if it agrees as often as the rates
            allow.
    """

    by: str = ""
    passed: bool = False
    rates: Rates | None = None
    correlation: float = CORRELATION


def checked_rates(where: str, rates: object) -> Rates | None:
    """``rates`` as they may be used; None stays None.

    Raises:
        ConfigError: no pair of shares, or one that tells nothing.
    """
    if rates is None:
        return None
    if not isinstance(rates, (tuple, list)) or len(rates) != 2:
        raise ConfigError(f"{where}: rates is {rates!r}; give (true passes, false passes), two shares in [0, 1]")
    true, false = (checked_share(f"{where}: rates", x) for x in rates)
    if true <= false:
        raise ConfigError(
            f"{where}: rates is {rates!r}: it passes wrong answers at least as often as right ones, so that its pass "
            "tells nothing; give another verifier"
        )
    return true, false


def likelihoods(opinions: Iterable[Opinion]) -> Likelihoods | None:
    """P(opinions | right) and P(opinions | wrong); None where no rate of them was measured.

    The order of opinions does not matter, and a second opinion that agrees never lowers what the first is worth. An
    unmeasured pass beside a measured opinion adds nothing. An unmeasured "no" leaves nothing known.

    Args:
        opinions: on one answer; of one verifier the first counts.

    Example:
        >>> likelihoods([Opinion("judge", True, (0.9, 0.1))])
        (0.9, 0.1)
    """
    told: dict[str, Opinion] = {}
    for opinion in opinions:
        told.setdefault(opinion.by, opinion)
    if any(x.rates is None and not x.passed for x in told.values()):
        return None
    # The most telling first, so that their order does not matter.
    measured = sorted((x for x in told.values() if x.rates is not None), key=lambda x: (-_weight(x), x.by))
    if not measured:
        return None
    first, *others = measured
    its = _passes(first)
    given = [p if first.passed else 1 - p for p in its]
    for n, opinion in enumerate(others, 1):
        # Behind n that agree, as of a rate that differs from text to text (a beta-binomial).
        shared = n * opinion.correlation / (1 + (n - 1) * opinion.correlation)
        right, wrong = (_behind(p, q, shared, passed=first.passed) for p, q in zip(its, _passes(opinion), strict=True))
        if not opinion.passed:
            right, wrong = 1 - right, 1 - wrong
        if (right > wrong) is opinion.passed:  # what agrees never tells against
            given = [given[0] * right, given[1] * wrong]
    return given[0], given[1]


def _passes(opinion: Opinion) -> list[float]:
    """P(pass) on right and on wrong answers: what was never seen in some hundred cases is rare, not impossible."""
    return [min(max(x, _LEAST), 1 - _LEAST) for x in opinion.rates or (0.5, 0.5)]


def _weight(opinion: Opinion) -> float:
    right, wrong = (p if opinion.passed else 1 - p for p in _passes(opinion))
    return abs(math.log(right / wrong))


def _behind(first: float, second: float, correlation: float, *, passed: bool) -> float:
    """P(second passes | what the first did), of two coins with these chances: at most as correlated as they can be."""
    together = first * second + correlation * math.sqrt(first * (1 - first) * second * (1 - second))
    together = min(together, first, second)
    return together / first if passed else (second - together) / (1 - first)


def probability_right(prior: float | None, opinions: Iterable[Opinion]) -> float | None:
    """Probability that an answer is right; None where the prior or no rate was measured.

    Args:
        prior: probability that such an answer is right before anybody looked, in [0, 1].
        opinions: on it; of one verifier the first counts.

    Example:
        >>> round(probability_right(0.42, [Opinion("judge", True, (0.9, 0.1))]), 3)
        0.867
    """
    found = likelihoods(opinions)
    return None if prior is None or found is None else posterior(prior, found)


def posterior(prior: float, given: Likelihoods) -> float:
    """P(right) behind a verdict of these likelihoods, with ``prior`` before it; 0 where it cannot have been given."""
    right, wrong = prior * given[0], (1 - prior) * given[1]
    return right / (right + wrong) if right + wrong else 0.0


def expected_share(prior: float, seen: Mapping[Likelihoods, int], *, weight: float = _PRIOR_DRAWS) -> float:
    """The share of right answers behind the verdicts in ``seen``: its posterior mean, with a Beta prior, on a grid.

    Args:
        prior: mean of the Beta prior, in [0, 1].
        seen: how often verdicts of these likelihoods were given; (1, 0) is a proof, (0, 1) a proof against.
        weight: draws that the prior is worth.

    Example:
        >>> round(expected_share(0.1, {(0.9, 0.1): 50, (0.1, 0.9): 50}), 2)
        0.45
    """
    log = _beta(_GRID, prior, weight)
    for (right, wrong), n in seen.items():
        log += n * np.log(_GRID * right + (1 - _GRID) * wrong)
    mass = np.exp(log - log.max())
    return float((mass * _GRID).sum() / mass.sum())


class RightRates:
    """How often an answer is right before anybody looked, by task and by what gave it, learned from verdicts.

    The pass of an opinion does not count as a right answer. It counts as what its rates make of it: a judge that passes
    20 % of wrong answers passes many. A remedy's rate differs from failure to failure, as Beta(m s, (1 - m) s), so an
    answer behind k failed ones of that remedy is right with probability m s / (s + k). A grid over m and s holds what
    is known of them. The first thirty answers can lower what was believed before, and cannot raise it. Older answers
    count half after each thousand. One object serves all runs of a deployment in a process; ``rfx calibrate`` reads the
    same off logs.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], tuple[float, Any]] = {}

    def add(self, task: str, remedy: str, before: int, given: Likelihoods) -> None:
        """Count one judged answer.

        Args:
            task: of its step; "" where it has none.
            remedy: what gave it; "" for a first answer.
            before: failed answers of that remedy to the same step.
            given: P(verdict | right) and P(verdict | wrong).
        """
        n, log = self._seen.pop((task, remedy), (0.0, 0.0))
        if n >= _FORGETS:
            n, log = n / 2, log / 2
        right = _behind_failures(before)
        log = log + np.log(right * given[0] + (1 - right) * given[1])
        self._seen[task, remedy] = (n + 1, log)
        while len(self._seen) > _TASKS:
            self._seen.pop(next(iter(self._seen)), None)

    def knows(self, task: str) -> bool:
        """Whether opinions on first answers of this task were counted."""
        return (task, "") in self._seen

    def of_first(self, task: str = "") -> float | None:
        """Probability that a first answer is right; None until thirty were counted."""
        n, log = self._seen.get((task, ""), (0.0, 0.0))
        return _mean(log + _beta(_MEANS, 0.5, 2.0), 0) if n >= _MANY else None

    def of(self, task: str, remedy: str, before: int, belief: Belief, *, weight: float = _PRIOR_DRAWS) -> float:
        """Probability that such an answer is right.

        Args:
            task, remedy, before: as in ``add``.
            belief: Beta(alpha, beta) of the remedy's rate without these counts.
            weight: draws that its mean is worth.
        """
        strength = sum(belief)
        mean = belief[0] / strength
        believed = mean * strength / (strength + before)
        n, log = self._seen.get((task, remedy), (0.0, 0.0))
        if not n:
            return believed
        log = log + _beta(_MEANS, mean, weight) - (np.log(_STRENGTHS / strength) / _WIDTH) ** 2 / 2
        learned = _mean(log, before)
        return min(believed, learned) if n < _MANY else learned


def _beta(shares: Any, mean: float, weight: float) -> Any:
    """The logarithm of a Beta density at each of ``shares``, up to a constant; ``weight`` is alpha + beta."""
    mean = min(max(mean, _LEAST), 1 - _LEAST)
    return (mean * weight - 1) * np.log(shares) + ((1 - mean) * weight - 1) * np.log1p(-shares)


def _mean(log: Any, before: int) -> float:
    """The posterior mean of what ``_behind_failures`` gives."""
    mass = np.exp(log - log.max()) * np.ones_like(_STRENGTHS)
    return float((mass * _behind_failures(before)).sum() / mass.sum())


def _behind_failures(k: int) -> Any:
    """Over the grid, the probability that an answer behind ``k`` failed ones is right; shape (means, strengths)."""
    return _MEANS * _STRENGTHS / (_STRENGTHS + min(k, _AGAIN))
