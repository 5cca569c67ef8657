"""Rates of a verifier from what it said of answers whose truth is known, and a file of them that verifiers load."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rfx_agent.errors import ConfigError
from rfx_agent.lab.evidence.intervals import Bootstrap, Figure, wilson
from rfx_agent.verifiers.rates import MeasuredRates, MeasuredShare

__all__ = ["clustered", "measured", "rates_of"]


def rates_of(
    pairs: Iterable[tuple[bool, bool]],
    *,
    problems: Sequence[str] | None = None,
    judge: str = "",
    model: str | None = None,
    settings: Mapping[str, str | float | bool] | None = None,
    date: str | None = None,
) -> MeasuredRates:
    """Rates from pairs of (what the verifier said, the truth); ``save(path)`` makes the file that verifiers load.

    The truth is whatever you trust more: labels, or what people decided on the same answers.

    Args:
        pairs: one per answer: whether the verifier passed it, and whether it is right.
        problems: which problem each answer belongs to. Answers of one problem are alike, and the intervals then keep
            each problem whole; without it they are Wilson's, for answers that have nothing to do with each other.
        judge: the verifier's name.
        model: of the judge, or None.
        settings: what the rates depend on, as ``JudgeVerifier.settings``.
        date: of the measurement; today by default.

    Raises:
        ConfigError: no right or no wrong answer, or another number of problems than of pairs.

    Example:
        >>> decided = [(True, True)] * 9 + [(False, True)] + [(True, False)] + [(False, False)] * 9
        >>> rates = rates_of(decided, judge="my judge", date="2026-01-31")
        >>> rates.true_pass.passed, rates.false_pass.passed
        (9, 1)
    """
    given = [(bool(said), bool(truth)) for said, truth in pairs]
    if problems is not None and len(problems) != len(given):
        raise ConfigError(f"rates_of: problems has {len(problems)} entries for {len(given)} pairs; give one for each")
    counted = []
    for truth in (True, False):
        said = [s for s, t in given if t is truth]
        within = [] if problems is None else [p for p, (_, t) in zip(problems, given, strict=True) if t is truth]
        counted.append((sum(said), len(said), clustered(said, within) if within else wilson(sum(said), len(said))))
    return measured(*counted, judge=judge, model=model, settings=settings, date=date)


def measured(
    right: tuple[int, int, Figure],
    wrong: tuple[int, int, Figure],
    *,
    judge: str = "",
    model: str | None = None,
    settings: Mapping[str, str | float | bool] | None = None,
    date: str | None = None,
) -> MeasuredRates:
    """Rates from counts: of the ``right`` and of the ``wrong`` answers, how many passed, of how many, and the interval.

    Raises:
        ConfigError: no right or no wrong answer.
    """
    if not right[1] or not wrong[1]:
        what = "wrong" if right[1] else "right"
        raise ConfigError(f"rates: none of {right[1] + wrong[1]} answers is {what}; give some of both")
    true, false = (
        MeasuredShare(passed=passed, n=n, low=between["low"], high=between["high"])
        for passed, n, between in (right, wrong)
    )
    return MeasuredRates(
        judge=judge,
        model=model,
        settings=dict(settings or {}),
        true_pass=true,
        false_pass=false,
        date=date or datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def clustered(hits: Sequence[bool], problems: Sequence[str]) -> Figure:
    """The share of ``hits``, with a 95 % interval over problems: each is drawn with all its answers, or not at all.

    ``n`` is the number of problems. It is never narrower than Wilson's, which a resampling of few problems can be.
    """
    names = sorted(set(problems))
    alone = wilson(sum(hits), len(hits))
    if len(names) == len(problems):
        return alone
    at = {name: i for i, name in enumerate(names)}
    top, bottom = np.zeros(len(names)), np.zeros(len(names))
    for hit, problem in zip(hits, problems, strict=True):
        top[at[problem]] += hit
        bottom[at[problem]] += 1
    kept = Bootstrap(len(names)).ratio(top, bottom, share=True)
    return kept | {"low": min(kept["low"], alone["low"]), "high": max(kept["high"], alone["high"])}
