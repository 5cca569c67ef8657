"""Verdicts as opinions, several of them as one, and what they say of how often answers are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rfx_agent.case import Case
from rfx_agent.checks import share
from rfx_agent.evidence.opinions import (
    CORRELATION,
    Likelihoods,
    Opinion,
    Rates,
    RightRates,
    checked_rates,
    likelihoods,
    probability_right,
)
from rfx_agent.records import Rollout, Usage, Verdict

__all__ = ["confidence", "joined", "learn", "likelihoods_of", "owned", "source_of"]


def owned(verdict: Verdict, by: str, rates: Rates | None, *, correlation: float | None = None) -> Verdict:
    """``verdict`` with the opinion that it is, where it is one: whose, and what that is worth.

    Args:
        verdict: of one verifier.
        by: its name.
        rates: its own; the verdict's go before them.
        correlation: of its opinions with the others on the same text; None leaves what they say.

    Raises:
        ConfigError: rates or a correlation that cannot be.
    """
    if not verdict.weak:
        return verdict
    if verdict.kind == "unchecked":  # it gives none
        return replace(verdict, opinions=()) if verdict.opinions else verdict
    where = f"verifier {by}"
    own = verdict.opinions
    if own:
        own = tuple(_checked(where, x, correlation or 0.0) for x in own)
    else:
        measured = checked_rates(where, rates if verdict.rates is None else verdict.rates)
        own = (Opinion(by, bool(verdict.passed), measured, CORRELATION if correlation is None else correlation),)
    return verdict if own == verdict.opinions else replace(verdict, opinions=own)


def _checked(where: str, opinion: Opinion, least: float) -> Opinion:
    """As a verifier of somebody's own may have made it; no less correlated than ``least``."""
    correlation = max(least, share(f"{where}: correlation", opinion.correlation))
    return replace(opinion, rates=checked_rates(where, opinion.rates), correlation=correlation)


def joined(given: Sequence[Verdict], *, passed: bool, partial: Sequence[bool] = ()) -> Verdict:
    """One verdict of several: its answer, reason and kind are those of the first that decided it.

    Of those that decided it, a proof decides alone; opinions against it are no more than that.

    Args:
        given: at least one.
        passed: what they come to together.
        partial: of each, whether its pass proves only a part (``Verifier.partial``).
    """
    deciding = [x for x in given if x.passed is passed]
    parts = partial if passed and partial else (False,) * len(given)
    voices = [x for x, part in zip(given, parts, strict=True) if x.passed is passed and not part] or deciding
    first = next((x for x in voices if not x.weak), voices[0])
    told = [x.feedback for x in deciding if x.feedback]
    scores = [x.score for x in given if x.score is not None]
    return Verdict(
        passed,
        next((x.answer for x in (first, *given) if x.answer is not None), None),
        sum(scores) / len(scores) if scores else None,
        "; ".join(dict.fromkeys(x.reason for x in deciding if x.reason)),
        feedback="\n".join(map(str, told)) or None if not passed else None,
        weak=first.weak,
        usage=sum((x.usage for x in given), Usage()),
        kind=first.kind,
        opinions=tuple(o for x in given for o in x.opinions),
    )


def confidence(verdict: Verdict | None, prior: float | None) -> float | None:
    """Probability that an answer with this passing verdict is right; None where that was not measured.

    Args:
        verdict: on the answer; 1 follows from a proof.
        prior: probability that such an answer is right, without a verdict.
    """
    if verdict is None or not verdict.weak:
        return None if verdict is None else 1.0
    return probability_right(prior, verdict.opinions)


def likelihoods_of(verdict: Verdict) -> Likelihoods | None:
    """P(verdict | right) and P(verdict | wrong); None where that was not measured."""
    if verdict.kind == "unchecked":
        return None
    if verdict.weak:
        return likelihoods(verdict.opinions)
    return (1.0, 0.0) if verdict.passed else (0.0, 1.0)


def source_of(case: Case, rollout: Rollout) -> tuple[str, int]:
    """What gave ``rollout``, "" for the first answer, and how many answers of that had failed before it was asked."""
    if rollout is case.rollouts[0]:
        return "", 0
    at = rollout.round
    before = [x for x in case.rollouts[1:] if x.remedy == rollout.remedy and not x.passed]
    return rollout.remedy, sum(x.round is not None and at is not None and x.round < at for x in before)


def learn(rates: RightRates, case: Case) -> None:
    """Count what the verdicts on ``case`` say. Once it is finished: a verdict must not be its own evidence."""
    seen: set[str] = set()
    for rollout in case.rollouts:
        if rollout.response_id is not None:
            if rollout.response_id in seen:
                continue
            seen.add(rollout.response_id)
        if rollout.verdict is not None and (given := likelihoods_of(rollout.verdict)) is not None:
            rates.add(case.step.task, *source_of(case, rollout), given)
