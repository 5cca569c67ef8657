"""Verifier of mathematical equality."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence

from rfx_agent.checks import number as checked_number
from rfx_agent.errors import ConfigError
from rfx_agent.records import Rollout, Step, Verdict
from rfx_agent.verifiers.answers import canonical, extract_answer, number, stated_answer
from rfx_agent.verifiers.base import HOW_TO_ANSWER, NONE_FOUND, NamedVerifier, clip, expected_of, shorten
from rfx_agent.verifiers.worker import ask

__all__ = ["MathVerifier"]

_TAIL = 2000  # characters at the end of a text in which an unmarked answer is looked for
_LONGEST = 2000  # characters of an answer that is worth algebra
_WORDS = re.compile(r"[^\W\d_]{4,}|[^\W\d_]{2,}(?:\s+[^\W\d_]+)+")


class MathVerifier(NamedVerifier):
    """Passes when the rollout's answer equals the expected one as mathematics: ``2\\sqrt{2}`` is ``\\sqrt{8}``.

    Plain numbers and equal spellings are decided here and at once. The rest goes to math-verify in a helper process
    that is killed after ``seconds`` and cannot take more than 2 GiB: models do write ``9^{9^{9^9}}``. A comparison
    that is killed is a "no" with that reason.

    Args:
        expected: what to compare with, as text or a number; None takes ``step.expected``.
        seconds: time for one symbolic comparison.
        name: what the verifier is called in records.

    With neither ``expected`` nor ``step.expected``, ``verify`` raises ``ConfigError``.

    Raises:
        ConfigError: a parameter that cannot work; the extra ``math`` is not installed.

    Example:
        >>> from rfx_agent.records import Rollout, Step
        >>> MathVerifier("0.5").verify(Step.of("1/4 + 1/4?"), Rollout("Answer: 1/2")).passed
        True
    """

    blind = True  # what it tells is how to state an answer

    def __init__(self, expected: object = None, *, seconds: float = 5.0, name: str = "math") -> None:
        super().__init__(name)
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError("MathVerifier: math-verify is not installed; pip install 'rfx-agent[math]'")
        self.expected = expected
        self._seconds = checked_number("MathVerifier: seconds", seconds, above=0)

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Judge ``rollout``."""
        gold = str(expected_of(self, step))
        gold = extract_answer(gold) or gold.strip()
        stated = stated_answer(rollout.text)
        answer = None if stated is None else canonical(stated)
        if stated is not None:
            if answer == canonical(gold):
                return Verdict(True, answer=answer, score=1.0, reason="the answer is the expected one")
            theirs, ours = number(stated), number(gold)
            if theirs is not None and ours is not None:
                return _verdict(theirs == ours, answer)
            if _WORDS.fullmatch(gold.strip()) or len(stated) > _LONGEST or len(gold) > _LONGEST:
                # As mathematics, "listen" is a product of letters and equals "silent".
                return _verdict(False, answer)
        elif not rollout.text.strip():
            return Verdict(False, reason=NONE_FOUND, feedback=HOW_TO_ANSWER, kind="no_answer")
        return self._compare(gold, stated, rollout.text, answer)

    def _compare(self, gold: str, stated: str | None, text: str, answer: str | None) -> Verdict:
        job = {
            "op": "math",
            "gold": gold,
            "found": text[-_TAIL:] if stated is None else stated,
            "stated": stated is not None,
        }
        reply = ask("comparison", job, seconds=self._seconds)
        if isinstance(reply, str):
            reason = reply
        elif not reply["readable"][0]:
            reason = "the expected answer cannot be read as mathematics"
        elif not reply["readable"][1]:
            reason = "no answer that can be read as mathematics was found"
            return Verdict(False, answer=shorten(answer), reason=reason, feedback=HOW_TO_ANSWER, kind="no_answer")
        else:
            return _verdict(reply["equal"], answer)
        return Verdict(False, answer=shorten(answer), reason=reason)


def _verdict(equal: bool, answer: str | None) -> Verdict:
    if equal:
        return Verdict(True, answer=answer, score=1.0, reason="the answer equals the expected one")
    reason = "the answer does not equal the expected one" if answer is None else f"{clip(answer)!r} does not equal it"
    return Verdict(False, answer=shorten(answer), score=0.0, reason=reason)
