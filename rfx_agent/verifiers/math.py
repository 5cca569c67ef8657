"""Verifier of mathematical equality."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, Sequence

from rfx_agent.checks import number as checked_number
from rfx_agent.errors import ConfigError
from rfx_agent.records import Rollout, Step, Verdict
from rfx_agent.verifiers.amounts import amount
from rfx_agent.verifiers.answers import Found, alone, extract_answer, find_answer, unclaimed
from rfx_agent.verifiers.base import (
    HOW_TO_ANSWER,
    NONE_FOUND,
    SEVERAL,
    NamedVerifier,
    clip,
    comparable,
    expected_of,
    shorten,
)
from rfx_agent.verifiers.comparing import Algebra, Comparison
from rfx_agent.verifiers.forms import canonical
from rfx_agent.verifiers.restated import restates, unchanged, unworked
from rfx_agent.verifiers.tidy import tidy
from rfx_agent.verifiers.unmarked import reads, unmarked
from rfx_agent.verifiers.worker import ask

__all__ = ["MathVerifier"]

_LONGEST = 2000  # characters of an answer that is worth algebra


class MathVerifier(NamedVerifier):
    r"""Passes when the rollout's answer equals the expected one as mathematics: ``2\sqrt{2}`` is ``\sqrt{8}``.

    Both sides are read in full or not at all, and what is not clearly mathematics is text: dates, scores, codes, words.
    A unit on one side only is no difference, on both sides it must be the same; ``50%`` is 0.5 and 50. A decimal equals
    a fraction or a root when it is that number rounded at six or more significant digits; other numbers are equal
    when they are equal to the last digit. Lists and tuples have an order, sets and what "and" joins have none. The
    question's own expression is no answer to it, and a guess of several answers is none.

    Plain numbers and texts are decided here and at once. What needs algebra goes to a helper process that is killed
    after ``seconds`` and cannot take more than 2 GiB: models do write ``9^{9^{9^9}}``. A comparison that is killed is a
    "no" with that reason.

    Args:
        expected: what to compare with, as text or a number; None takes ``step.expected``. Of a list, tuple or set of
            them any member will do; what is a list itself is given as text, ``"[1, 2]"``.
        tolerance: relative difference between numbers that is none, in [0, 1); 0 leaves it at the rules above.
        seconds: time for one symbolic comparison.
        name: what the verifier is called in records.

    With neither ``expected`` nor ``step.expected``, a run raises ``ConfigError`` before a model is asked.

    Raises:
        ConfigError: a parameter that cannot work; the extra ``math`` is not installed.

    Example:
        >>> from rfx_agent.records import Rollout, Step
        >>> MathVerifier("0.5").verify(Step.of("1/4 + 1/4?"), Rollout("Answer: 1/2")).passed
        True
    """

    blind = True  # what it tells is how to state an answer

    def __init__(
        self, expected: object = None, *, tolerance: float = 0.0, seconds: float = 5.0, name: str = "math"
    ) -> None:
        super().__init__(name)
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError("MathVerifier: math-verify is not installed; pip install 'rfx-agent[math]'")
        if expected is not None:
            comparable("MathVerifier", expected)
        self.expected = expected
        self.tolerance = checked_number("MathVerifier: tolerance", tolerance, least=0)
        if self.tolerance >= 1:
            raise ConfigError(f"MathVerifier: tolerance is {tolerance!r}; give a share below 1, such as 0.01")
        self._seconds = checked_number("MathVerifier: seconds", seconds, above=0)

    def check_step(self, step: Step) -> None:
        """There must be something to compare with."""
        comparable(self.name, expected_of(self, step))

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Judge ``rollout``."""
        expected = comparable(self.name, expected_of(self, step))
        golds = [str(x) for x in expected] if isinstance(expected, SEVERAL) else [str(expected)]
        said = rollout.said
        found = list(_found(said))
        if not found:
            return Verdict(False, reason=NONE_FOUND, feedback=HOW_TO_ANSWER, kind="no_answer")
        answer = canonical(found[0].text)
        stopped: list[str] = []
        comparison = Comparison(self._algebra(stopped), self.tolerance)
        repeated = False
        for gold in golds:
            gold = extract_answer(gold) or gold.strip()
            for text in dict.fromkeys(x for one in found for x in (one.text, *one.others)):
                if len(text) > _LONGEST or len(gold) > _LONGEST:
                    if text.strip() == gold:
                        return Verdict(True, answer=answer, score=1.0, reason="the answer is the expected one")
                    continue
                if not comparison.same(gold, text):
                    continue
                if canonical(text) != canonical(gold) and _given_back(step, gold, text):
                    repeated = True
                    continue
                return Verdict(True, answer=answer, score=1.0, reason="the answer equals the expected one")
        if repeated:
            reason = "the answer repeats the question's own expression"
            return Verdict(False, answer=shorten(answer), score=0.0, reason=reason)
        if stopped:
            return Verdict(False, answer=shorten(answer), reason=stopped[0])
        if found[0].place == "bare" and all(reads(gold) for gold in golds) and not any(reads(x.text) for x in found):
            reason = "no answer that can be read as mathematics was found"
            return Verdict(False, answer=shorten(answer), reason=reason, feedback=HOW_TO_ANSWER, kind="no_answer")
        return Verdict(False, answer=shorten(answer), score=0.0, reason=f"{clip(answer)!r} does not equal it")

    def _algebra(self, stopped: list[str]) -> Algebra:
        """Asks the helper process, for ``seconds`` in all; why it gave up is left in ``stopped``."""
        ends: list[float] = []

        def compare(gold: str, found: str, mode: str) -> int | None:
            if stopped or (ends and time.monotonic() > ends[0]):
                return None
            job = {"op": "math", "gold": gold, "found": found, "mode": mode, "tolerance": self.tolerance}
            reply = ask("comparison", job, seconds=self._seconds)
            ends.append(time.monotonic() + self._seconds)  # counted from the first reply: the process has to start
            if isinstance(reply, str):
                stopped.append(reply)
                return None
            same: int | None = reply["same"]
            return same

        return compare


def _given_back(step: Step, gold: str, text: str) -> bool:
    """Whether ``text`` is what was asked and not what it comes to."""
    sides = tidy(text).split("=")
    if len(sides) > 1 and any(canonical(x) == canonical(gold) for x in sides):
        return False  # 3 + 4 = 7
    if any(amount(x) is None and unworked(step, x) for x in sides):
        return amount(gold.rpartition("=")[2]) is not None
    if unchanged(step, gold, sides[-1]):
        return True
    return restates(step, text) and not restates(step, gold)


def _found(said: str) -> Iterator[Found]:
    """What may be the answer of ``said``: the marked one, or else the whole or what its end says."""
    marked = find_answer(said)
    if marked is not None:
        yield marked
        if marked.place != "end":
            return
    rest = unclaimed(said)
    if (bare := alone(rest)) is not None:
        yield bare
    yield from unmarked(rest)
