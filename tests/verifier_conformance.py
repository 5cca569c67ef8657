"""What every verifier must do, whatever it checks. Import ``check_verifier`` and give it a verifier and two texts."""

from __future__ import annotations

import asyncio

from rfx_agent import ports
from rfx_agent.records import Rollout, Step, Verdict

# Each is linear for a sane reader and a trap for another: nesting, near misses, long runs of one character.
HOSTILE = {
    "empty": "",
    "white space": " \n\t\u00a0\u2028 ",
    "null bytes": "Answer: \0\0\0",
    "control": "\x1b[2J\x07Answer: \x08\x7f\r\r",
    "surrogate": "Answer: \ud800",
    "unicode": "Answer: ４２ \u202e٤٢ 🧮 é",
    "one long word": "a" * 1_000_000,
    "one long number": "Answer: " + "9" * 1_000_000,
    "huge exponent": "Answer: 1e999999999",
    "power tower": "Answer: 9^{9^{9^{9^9}}}",
    "factorials": "Answer: 9999999!!!!!!",
    "open boxes": "\\boxed{" * 30_000,
    "nested boxes": "\\boxed{" * 20_000 + "}" * 20_000,
    "answer lines": "Answer:\n" * 25_000,
    "open tags": "<answer>" * 25_000,
    "closing tags": "</answer>" * 25_000,
    "stars": "*" * 200_000 + "Answer",
    "quotes": '\\"' * 100_000,
    "odd quotes": '"\\' * 100_000,
    "open brackets": "[" * 200_000,
    "open objects": '{"a":' * 40_000,
    "nested lists": "[" * 50_000 + "]" * 50_000,
    "many lists": "[1]\n" * 50_000,
    "fences": "```\n" * 50_000,
    "spaces": " " * 200_000 + "x",
    "dollars": "$" * 200_000,
    "commas": "Answer: 1" + ",000" * 50_000,
    "huge integer": "[" + "9" * 5000 + "]",
    "not JSON numbers": "[NaN, Infinity, 1e999]",
    "backslashes": "\\" * 200_000,
    "thinking": "<think>" * 30_000,
    "thinking closed": "</think>" * 30_000 + "Answer: 1",
    "channels": "<|channel|>analysis<|message|>" * 10_000,
    "a choice of boxes": "\\boxed{1} or " * 5_000,
    "chain of relations": "Answer: " + "1=" * 900 + "1",
    "a long sum": "Answer: " + "x+" * 900 + "x",
    "a long list": "Answer: " + "1 and " * 300 + "1",
    "deep brackets": "Answer: " + "(" * 900 + "x" + ")" * 900,
    "deep signs": "Answer: " + "-" * 1_900 + "x",
    "deep fractions": "Answer: " + "\\frac{1}{" * 150 + "x" + "}" * 150,
    "answers in a line": "the answer is " * 20_000,
    "denials": "Answer: not " + "not " * 400 + "1",
    "units": "Answer: 1 " + "per " * 400,
    "quotes in brackets": '[" ' * 50_000,
    "cut objects": '{"a": [' * 20_000,
}


def check_verifier(verifier: ports.Verifier, step: Step, *, passing: str, failing: str) -> None:
    """Assert the contract of ``ports.Verifier``; ``passing`` and ``failing`` are texts of rollouts."""
    assert isinstance(verifier, ports.Verifier)
    assert isinstance(verifier.name, str)
    assert verifier.name
    assert isinstance(verifier.needs_peers, bool)
    peers = [Rollout(passing, id=f"p{i}") for i in range(3)]
    for text, passes in ((passing, True), (failing, False)):
        rollout = Rollout(text, id="mine", response_id="x-0")
        verdict = _both(verifier, step, rollout, [*peers, rollout])
        assert verdict.passed is passes, verdict
        assert verdict.reason == asyncio.run(verifier.averify(step, rollout, peers=[*peers, rollout])).reason
        assert rollout == Rollout(text, id="mine", response_id="x-0")


def check_hostile(verifier: ports.Verifier, step: Step, text: str) -> None:
    """Assert that ``text`` is judged without an exception, the same on both sides, and in a record of bounded size.

    Slowness shows as a test that does not end; nothing here reads a clock.
    """
    rollout = Rollout(text, id="mine")
    verdict = _both(verifier, step, rollout, [rollout])
    assert len(verdict.reason) < 2000
    if not verdict.passed:
        assert len(verdict.answer or "") < 2000


def _both(verifier: ports.Verifier, step: Step, rollout: Rollout, peers: list[Rollout]) -> Verdict:
    one = verifier.verify(step, rollout, peers=peers)
    two = asyncio.run(verifier.averify(step, rollout, peers=peers))
    assert type(one) is Verdict
    # Reasons may differ where a time limit is near: one side was stopped, the other just made it to a "no".
    assert (one.passed, one.answer, one.weak, one.usage) == (two.passed, two.answer, two.weak, two.usage)
    assert one.answer is None or type(one.answer) is str
    assert type(one.passed) is bool
    return one
