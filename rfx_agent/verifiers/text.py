"""Verifiers of plain answers: the same answer, or a text that fits a pattern."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rfx_agent.checks import MOST_SECONDS, flags, number, shown
from rfx_agent.errors import ConfigError
from rfx_agent.records import Rollout, Step, Verdict
from rfx_agent.verifiers.amounts import amount
from rfx_agent.verifiers.answers import Found, alone, find_answer
from rfx_agent.verifiers.base import (
    HOW_TO_ANSWER,
    NONE_FOUND,
    SEVERAL,
    NamedVerifier,
    PureVerifier,
    clip,
    comparable,
    expected_of,
    shorten,
)
from rfx_agent.verifiers.forms import canonical
from rfx_agent.verifiers.tidy import split
from rfx_agent.verifiers.worker import ask

__all__ = ["ExactVerifier", "RegexVerifier"]


class ExactVerifier(PureVerifier):
    """Passes when the rollout's answer is the expected one, both in canonical form.

    It reads what follows the model's thinking. By default the canonical forms must be the same text: ``18 dollars`` is
    not 18, and ``3 × 2`` is not ``2 × 3``. ``units=True`` and ``order=False`` accept these. For equal numbers, units
    and formulas that are spelled differently, use ``MathVerifier``.

    Args:
        expected: what to compare with; None takes ``step.expected``. Of a list, tuple or set any member will do.
        extract: finds the answer in a rollout's text, or returns None; by default ``find_answer``.
        whole: where no answer is stated, compare the whole text: a tool's result is the answer alone.
        casefold: ignore case.
        normalise: compare canonical forms (``1,234.0`` is 1234); otherwise characters, but for white space around.
        units: a unit on one side only is no difference: ``18 dollars`` is 18, but not ``18 euros``, and 5 % is not 5.
        order: the order of a list's items and a product's factors counts. If false, ``[3, 2]`` is ``[2, 3]`` and
            ``3 × 2`` is ``2 * 3``; what stands in parentheses, as a point does, keeps its order.
        name: what the verifier is called in records.

    With neither, there is nothing to compare with: a run raises ``ConfigError`` before a model is asked.

    Raises:
        ConfigError: a parameter that cannot work.

    Example:
        >>> from rfx_agent.records import Rollout, Step
        >>> ExactVerifier(1234).verify(Step.of("1,200 + 34?"), Rollout("Answer: 1,234.0")).passed
        True
    """

    blind = True  # what it tells is how to state an answer

    def __init__(
        self,
        expected: object = None,
        *,
        extract: Callable[[str], str | None] | None = None,
        whole: bool = True,
        casefold: bool = True,
        normalise: bool = True,
        units: bool = False,
        order: bool = True,
        name: str = "exact",
    ) -> None:
        if extract is not None and not callable(extract):
            raise ConfigError(f"ExactVerifier: extract is {shown(extract)}; give a function from text to str or None")
        if expected is not None:
            comparable("ExactVerifier", expected)
        flags("ExactVerifier", whole=whole, casefold=casefold, normalise=normalise, units=units, order=order)
        if not normalise and (units or not order):
            raise ConfigError(
                "ExactVerifier: normalise is False; units= and order= need canonical forms, leave it True"
            )
        super().__init__(name)
        self.expected = expected
        self._units = units
        self._order = order
        self._extract = extract
        self._whole = whole
        self._casefold = casefold
        self._normalise = normalise

    def check_step(self, step: Step) -> None:
        """There must be something to compare with."""
        comparable(self.name, expected_of(self, step))

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Judge ``rollout``."""
        expected = comparable(self.name, expected_of(self, step))
        text = rollout.said.strip()
        stated = self._stated(text)
        if stated is None and not (self._whole and text):
            return _none_found(None)
        bare = alone(text) if stated is None else None
        found = stated or bare or Found(text, "bare", 0)
        answer = self._form(found.text)
        accepted = {str(one) for one in (expected if isinstance(expected, SEVERAL) else (expected,))}
        for reading in (found.text, *([] if stated is not None else [text]), *found.others):
            if any(self._same(reading, one) for one in accepted):
                return Verdict(True, answer=self._form(reading), score=1.0, reason="the answer is the expected one")
        if stated is None and bare is None:
            return _none_found(0.0)
        # The expected answer stays out of the reason: reasons reach people and prompts.
        reason = f"{clip(answer)!r} is not the expected answer"
        return Verdict(False, answer=shorten(answer), score=0.0, reason=reason)

    def _stated(self, text: str) -> Found | None:
        if self._extract is None:
            return find_answer(text)
        answer = self._extract(text)
        return None if answer is None else Found(answer, "line", 0)

    def _form(self, text: str) -> str:
        if self._normalise:
            return canonical(text, casefold=self._casefold)
        return text.strip().casefold() if self._casefold else text.strip()

    def _same(self, reading: str, expected: str) -> bool:
        one, other = self._form(reading), self._form(expected)
        if one == other:
            return True
        if self._units and _same_number(reading, expected):
            return True
        return not self._order and (items := _items(one)) is not None and items == _items(other)


def _same_number(one: str, other: str) -> bool:
    """Whether two amounts have the same number, as it is written, and at most one of them a unit, or both the same."""
    first, second = amount(one), amount(other)
    if first is None or second is None or canonical(first.written) != canonical(second.written):
        return False
    if first.unit is not None and second.unit is not None:
        return first.unit.name == second.unit.name
    unit = first.unit or second.unit
    return unit is None or not (unit.weak or unit.name == "%")


def _items(text: str) -> tuple[str, list[str]] | None:
    """The items of a list or the factors of a product, sorted, and what makes them one; None for a single thing."""
    around = text[:1] + text[-1:]
    inner = text[1:-1] if around in ("[]", "{}") else text
    items, _ = split(inner, words=False)
    if len(items) > 1:
        return around if inner != text else "", sorted(canonical(x) for x in items)
    factors = _TIMES.split(inner)
    if len(factors) < 2 or not all(_FACTOR.fullmatch(x.strip()) for x in factors):
        return None
    return "product", sorted(canonical(x) for x in factors)


_FACTOR = re.compile(r"-?\w+(?:\.\w+)?(?:\^\{?\d+\}?)?")  # a number, a name or a power, and nothing less simple
_TIMES = re.compile(r"\s?(?:[×*·⋅]|\\times|\\cdot)\s?")


def _none_found(score: float | None) -> Verdict:
    return Verdict(False, score=score, reason=NONE_FOUND, feedback=HOW_TO_ANSWER, kind="no_answer")


class RegexVerifier(NamedVerifier):
    """Passes when ``pattern`` is found in what the text says after its thinking; the group is the answer.

    The search runs in a worker process that is killed after ``seconds``: Python's ``re`` cannot be interrupted, and
    an innocent pattern such as ``(\\w+\\s?)+:`` takes years on a text that a model can write. A search that is
    killed is a "no" with that reason.

    Args:
        pattern: a regular expression in Python's syntax, or a compiled one.
        group: number or name of the group that is the answer; 0 is the whole match.
        full: the pattern must match the whole text (white space around it aside) instead of a part of it.
        seconds: time for one search.
        name: what the verifier is called in records.

    Raises:
        ConfigError: a parameter that cannot work.

    Example:
        >>> from rfx_agent.records import Rollout, Step
        >>> RegexVerifier(r"total: (\\d+)", group=1).verify(Step.of("3 + 4?"), Rollout("total: 7")).answer
        '7'
    """

    instant = True

    partial = True

    def __init__(
        self,
        pattern: str | re.Pattern[str],
        *,
        group: int | str = 0,
        full: bool = False,
        seconds: float = 1.0,
        name: str = "regex",
    ) -> None:
        try:
            compiled = re.compile(pattern)
        except (re.error, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ConfigError(
                f"RegexVerifier: pattern is {shown(pattern)}: {error}; give a valid regular expression"
            ) from error
        if not isinstance(compiled.pattern, str):
            raise ConfigError(f"RegexVerifier: pattern is {shown(pattern)}; give one for text, not bytes")
        flags("RegexVerifier", full=full)
        named = isinstance(group, str) and group in compiled.groupindex
        if not named and group not in range(compiled.groups + 1):
            raise ConfigError(
                f"RegexVerifier: group is {shown(group)}; the pattern has {compiled.groups} groups "
                f"and the names {sorted(compiled.groupindex)}"
            )
        super().__init__(name)
        self.pattern = compiled
        self._group = group
        self._full = full
        self._seconds = number("RegexVerifier: seconds", seconds, above=0, most=MOST_SECONDS)

    def __repr__(self) -> str:
        return f"RegexVerifier({self.pattern.pattern!r}, name={self.name!r})"

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Judge ``rollout``."""
        job = {
            "op": "regex",
            "pattern": self.pattern.pattern,
            "flags": self.pattern.flags,
            "group": self._group,
            "full": self._full,
            "text": rollout.said.strip() if self._full else rollout.said,
        }
        reply = ask("search", job, seconds=self._seconds)
        if isinstance(reply, str):
            return Verdict(False, reason=reply)
        if not reply["matched"]:
            # The pattern may hold the answer, so a model is told nothing of it.
            return Verdict(False, score=0.0, reason="the pattern was not found in the text", kind="no_answer")
        # A group that took no part in the match is an empty answer, not a missing one.
        return Verdict(True, answer=reply["answer"] or "", score=1.0, reason="the pattern was found in the text")
