"""The bill of a run: what each operation cost, what of it was wasted, and what a plain retry would have come to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeAlias

from rfx_agent.evidence.posterior import Beta, expected_tries, prob_any
from rfx_agent.spend import Spend

__all__ = ["Bill", "Line", "Operation", "PlainRetry", "Purpose", "RetryEstimate", "Share", "bill_of"]

Purpose: TypeAlias = Literal["sample", "tool", "score", "verify", "escalate", "other"]
"""What an operation is for: a draw or a tool's input, a run of a tool, an ancestor's reading, verdicts, a person; or
what only a later version has a word for."""

Share: TypeAlias = Literal["first", "kept", "wasted"]
"""The first answer, the attempts that ended in the answer that went on, and all other attempts."""

_ROUNDING = 1e-6  # dollars or seconds


@dataclass(frozen=True, slots=True)
class Operation:
    """What was paid for at once: one call of a model, a tool or a scorer; or verdicts that were asked for together.

    Attributes:
        purpose: what for.
        spent: what it cost, requests of the transport that were repeated included.
        remedy: what it was done for; "" for the first answer, ``human`` for a question to a person.
        model: name of the model or verifier whose requests were paid for; "" where none was made.
        attempt: which attempt of the case it belongs to, from 1; 0 for a candidate that came from outside.
        refused: the caps or accounts that had no room; then nothing was done.
    """

    purpose: Purpose = "other"
    spent: Spend = Spend()
    remedy: str = ""
    model: str = ""
    attempt: int = 0
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """What operations of one purpose, remedy, model and share came to together.

    Attributes:
        purpose, remedy, model: as in ``Operation``.
        share: what it was good for.
        operations: how many there were.
        spent: what they cost.
    """

    purpose: Purpose
    remedy: str
    model: str
    share: Share
    operations: int = 0
    spent: Spend = Spend()


@dataclass(frozen=True, slots=True)
class PlainRetry:
    """What an estimate of a plain retry rests on: a failure as it stood when it was diagnosed first.

    Attributes:
        posterior: the Beta(alpha, beta) of one more plain draw passing.
        each: what one draw and its verdict are expected to cost.
        most: draws that the step's own caps would have paid for.
        after: operations that were paid for before; the estimate is of what came after them.
    """

    posterior: Beta
    each: Spend = Spend()
    most: int = 0
    after: int = 0


@dataclass(frozen=True, slots=True)
class RetryEstimate:
    """An estimate, no measurement: what drawing again and again until a pass would have come to in a run's place.

    It follows from the posterior of ``retry`` at the first diagnosis. Draws are as correlated as that says: each one
    that fails lowers the belief in the next. What was spent before the diagnosis is in neither side. The step's own
    caps hold, those on time and limits of shared budgets left out.

    Attributes:
        most: draws that the caps would have paid for.
        draws: draws expected, where the first pass ends them.
        tokens: tokens expected, verdicts included.
        usd: US dollars expected.
        rescue: probability of a pass within ``most`` draws.
        within: the same for as much as the run itself spent in their place, in dollars where there are prices, else in
            tokens, else in attempts. A part of a draw's cost counts as that chance of the draw.
        actual: what the run itself spent in their place; measured.

    Example:
        >>> estimate = estimated(PlainRetry((1.0, 3.0), Spend(tokens=100), most=2), Spend(tokens=100))
        >>> round(estimate.rescue, 3), estimate.draws, estimate.tokens, round(estimate.within, 3)
        (0.4, 1.75, 175.0, 0.25)
    """

    most: int
    draws: float
    tokens: float
    usd: float
    rescue: float
    within: float
    actual: Spend = Spend()


@dataclass(frozen=True, slots=True)
class Bill:
    """What a case came to. The lines add up to its ledger: counts and tokens exactly, money and time to rounding.

    Attributes:
        lines: by purpose, remedy, model and share, in the order in which they began.
        other: on the ledger besides, of no known operation: a case that an older version had begun.
        retry_estimate: what a plain retry would have come to; None where nothing failed, where the first diagnosis
            could draw no more, or where an older version made it.

    Example:
        >>> bill = bill_of([Operation("sample", Spend(tokens=90), "tool", "m-1", attempt=1)], lambda attempt: True)
        >>> bill.by_model["m-1"].tokens, bill.kept.tokens, bill.wasted.tokens
        (90, 90, 0)
    """

    lines: tuple[Line, ...] = ()
    other: Spend = Spend()
    retry_estimate: RetryEstimate | None = None

    @property
    def spent(self) -> Spend:
        """All of it. A candidate from outside was paid for by nobody here."""
        return sum((x.spent for x in self.lines), self.other)

    @property
    def first(self) -> Spend:
        """The first answer: its draw, where the recovery made it, and the verdicts and readings of it."""
        return self._of("first")

    @property
    def kept(self) -> Spend:
        """The attempts that ended in the answer that went on, and the person who gave or approved it."""
        return self._of("kept")

    @property
    def wasted(self) -> Spend:
        """All other attempts, with their verdicts. Of a case that has not ended: all attempts so far."""
        return self._of("wasted")

    @property
    def by_model(self) -> Mapping[str, Spend]:
        """By the model or verifier that was asked; "" for what went to none. ``other`` is left out."""
        return self._by(lambda line: line.model)

    @property
    def by_remedy(self) -> Mapping[str, Spend]:
        """By remedy; "" for the first answer. ``other`` is left out."""
        return self._by(lambda line: line.remedy)

    @property
    def by_purpose(self) -> Mapping[str, Spend]:
        """By what it was for. ``other`` is left out."""
        return self._by(lambda line: line.purpose)

    def _of(self, share: Share) -> Spend:
        return sum((x.spent for x in self.lines if x.share == share), Spend())

    def _by(self, name: Callable[[Line], str]) -> Mapping[str, Spend]:
        made: dict[str, Spend] = {}
        for line in self.lines:
            made[name(line)] = made.get(name(line), Spend()) + line.spent
        return made


def bill_of(
    operations: Iterable[Operation],
    kept: Callable[[int], bool],
    *,
    spent: Spend | None = None,
    retry: PlainRetry | None = None,
) -> Bill:
    """The bill of a case.

    Args:
        operations: what it paid for, in order.
        kept: whether the attempt of this number ended in the answer that went on.
        spent: what its ledger says; by default what the operations come to.
        retry: what an estimate of a plain retry rests on, or None.
    """
    operations = tuple(operations)
    lines: dict[tuple[Purpose, str, str, Share], Line] = {}
    for one in operations:
        if one.refused:
            continue
        share: Share = "first" if not one.remedy else "kept" if kept(one.attempt) else "wasted"
        key = (one.purpose, one.remedy, one.model, share)
        line = lines.get(key) or Line(*key)
        lines[key] = replace(line, operations=line.operations + 1, spent=line.spent + one.spent)
    total = sum((x.spent for x in operations), Spend())
    other = Spend() if spent is None else spent - total
    estimate = None
    if retry is not None:
        since = sum((x.spent for x in operations[retry.after :]), Spend())
        estimate = estimated(retry, since)
    return Bill(tuple(lines.values()), other if _counts(other) else Spend(), estimate)


def estimated(retry: PlainRetry, since: Spend) -> RetryEstimate:
    """The estimate in closed form, for a run that spent ``since`` after its first diagnosis."""
    chance, most, each = retry.posterior, retry.most, retry.each
    draws = expected_tries(chance, most)
    unit = next((x for x in ("usd", "tokens", "attempts") if getattr(each, x) > 0), None)
    whole, part = 0, 0.0
    if unit is not None:
        part, paid = math.modf(min(getattr(since, unit) / getattr(each, unit), most))
        whole = int(paid)
    within = (1 - part) * prob_any(chance, whole) + (part * prob_any(chance, whole + 1) if part else 0.0)
    return RetryEstimate(most, draws, draws * each.tokens, draws * each.usd, prob_any(chance, most), within, since)


def _counts(rest: Spend) -> bool:
    """Whether there is more to ``rest`` than the rounding of sums."""
    return any(abs(getattr(rest, one.name)) > _ROUNDING for one in fields(Spend))
