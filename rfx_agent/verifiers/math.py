"""Verifier of mathematical equality."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence

from rfx_agent._errors import ConfigError
from rfx_agent._types import Rollout, Step, Verdict
from rfx_agent.verifiers._answers import bare_answer, canonical, extract_answer, number
from rfx_agent.verifiers._base import ThreadedVerifier, clip, shorten
from rfx_agent.verifiers._worker import WorkerTimeout, shared_worker

__all__ = ["MathVerifier"]

_TAIL = 2000  # characters at the end of a text in which an unmarked answer is looked for
_LONGEST = 2000  # characters of an answer that is worth algebra
_WORDS = re.compile(r"[^\W\d_]{4,}|[^\W\d_]{2,}(?:\s+[^\W\d_]+)+")


class MathVerifier(ThreadedVerifier):
    """Passes when the rollout's answer equals the expected one as mathematics: ``2\\sqrt{2}`` is ``\\sqrt{8}``.

    Plain numbers and equal spellings are decided here and at once. The rest goes to math-verify in a helper process
    that is killed after ``seconds`` and cannot take more than 2 GiB: models do write ``9^{9^{9^9}}``. A comparison
    that is killed is a "no" with that reason.

    Args:
        reference: what is expected, as text or a number; None takes ``step.reference``.
        seconds: time for one symbolic comparison.
        name: what the verifier is called in records.

    Needs the extra ``math``. With neither ``reference`` nor a step's, ``verify`` raises ``ConfigError``.
    """

    def __init__(self, *, reference: object = None, seconds: float = 5.0, name: str = "math") -> None:
        if not 0 < seconds <= 3600:
            raise ConfigError(f"MathVerifier: seconds is {seconds!r}; give a number above 0, at most 3600")
        if not name:
            raise ConfigError("MathVerifier: name is ''; give a name for records and messages")
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError("MathVerifier: math-verify is not installed; pip install 'rfx-agent[math]'")
        self.reference = reference
        self.name = name
        self.needs_peers = False
        self._seconds = seconds

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Judge ``rollout``."""
        reference = self.reference if self.reference is not None else step.reference
        if reference is None:
            raise ConfigError(
                f"{self.name}: step {step.id} has no reference; give the verifier or the step a reference="
            )
        gold = str(reference)
        gold = extract_answer(gold) or gold.strip()
        stated = extract_answer(rollout.text)
        if stated is None:
            stated = bare_answer(rollout.text)
        answer = None if stated is None else canonical(stated)
        if answer is not None and stated is not None:
            if answer == canonical(gold):
                return Verdict(True, answer=answer, score=1.0, reason="the answer is the expected one")
            theirs, ours = number(stated), number(gold)
            if theirs is not None and ours is not None:
                return _verdict(theirs == ours, answer)
            if _WORDS.fullmatch(gold.strip()) or len(stated) > _LONGEST or len(gold) > _LONGEST:
                # As mathematics, "listen" is a product of letters and equals "silent".
                return _verdict(False, answer)
        elif not rollout.text.strip():
            return Verdict(False, reason="no answer was found in the text")
        return self._compare(gold, stated, rollout.text, answer)

    def _compare(self, gold: str, stated: str | None, text: str, answer: str | None) -> Verdict:
        job = {
            "op": "math",
            "gold": gold,
            "found": text[-_TAIL:] if stated is None else stated,
            "stated": stated is not None,
        }
        kept = None if answer is None else shorten(answer)
        try:
            reply = shared_worker().call(job, seconds=self._seconds)
        except WorkerTimeout:
            reason = f"the comparison took longer than {self._seconds} s and was stopped"
            return Verdict(False, answer=kept, reason=reason)
        if "error" in reply:
            reason = f"the comparison could not be finished: {clip(str(reply['error']))}"
            return Verdict(False, answer=kept, reason=reason)
        if not reply["readable"][0]:
            return Verdict(False, answer=kept, reason="the reference cannot be read as mathematics")
        if not reply["readable"][1]:
            return Verdict(False, answer=kept, reason="no answer that can be read as mathematics was found")
        return _verdict(reply["equal"], answer)


def _verdict(equal: bool, answer: str | None) -> Verdict:
    if equal:
        return Verdict(True, answer=answer, score=1.0, reason="the answer equals the expected one")
    kept = None if answer is None else shorten(answer)
    reason = "the answer does not equal the expected one" if answer is None else f"{clip(answer)!r} does not equal it"
    return Verdict(False, answer=kept, score=0.0, reason=reason)
