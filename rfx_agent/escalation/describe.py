"""The case as a page of Markdown for the person who decides it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rfx_agent.case import Case
from rfx_agent.escalation.markdown import block, span, words

__all__ = ["describe", "iso"]

_ASKED = 1_500  # characters of the question that are shown
_GROUPS = 10  # answers that are listed
_REASON = 500  # characters of the verifier's reason that are shown
_EVIDENCE = {
    "two_model": "from the model and its reference",
    "one_model": "from the model alone, as proxies",
    "samples": "from the set of answers only",
}
_DEFAULTS = {"approve": "the proposed answer stands", "reject": "no answer stands"}


def describe(
    case: Case,
    groups: Sequence[tuple[str | None, list[str], list[str]]],
    answer: str | None,
    error: str | None,
    *,
    default: str,
) -> str:
    """What was asked, what came back, what is known of the failure, what was tried, and what each reply does.

    Args:
        case: the case, with a decision.
        groups: (answer, remedies that gave it, rollouts that gave it), as they are to be listed.
        answer: the proposed answer, or None where there is none to approve.
        error: why the last reply did not fit, or None.
        default: what applies where nobody answers.
    """
    parts = [
        *([] if error is None else [f"**Your last reply did not fit.** {words(error)}"]),
        f"**A reasoning step failed and needs you.** {words(case.decision.sentence)}",
        "**What was asked**",
        block(_question(case), _ASKED),
        "**What came back**" + ("" if groups else ": nothing."),
        *([_answers(groups)] if groups else []),
        "**What is known of the failure**",
        "\n".join(f"- {line}" for line in _known(case)),
        f"**Tried:** {_tried(case)}.",
        f"**Spent:** {_spent(case)}.",
        "**What your reply does**",
        "\n".join(f"- {line}" for line in _replies(answer)),
    ]
    if case.ask is not None and case.ask.deadline is not None:
        parts.append(f"**Without a reply by {iso(math.floor(case.ask.deadline))}:** {default}, {_DEFAULTS[default]}.")
    return "\n\n".join(parts)


def iso(timestamp: float) -> str:
    """Unix time as ISO 8601 in UTC."""
    return datetime.fromtimestamp(timestamp, UTC).isoformat()


def _question(case: Case) -> str:
    """The text of the last message of the user, else of the last message."""
    asked = [m for m in case.step.messages if m.get("role") == "user"] or case.step.messages
    return _text(asked[-1].get("content"))


def _text(content: Any) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    if not isinstance(content, Sequence):
        return str(content)
    parts = [p if isinstance(p, dict) else {"text": str(p)} for p in content]
    return "\n".join(str(p.get("text") or f"[{p.get('type', 'attachment')}]") for p in parts)


def _answers(groups: Sequence[tuple[str | None, list[str], list[str]]]) -> str:
    rows = ["| answer | times | by |", "| --- | --- | --- |"]
    rows += [
        f"| {'(no answer)' if answer is None else span(answer)} | {len(ids)} | {', '.join(map(_name, by))} |"
        for answer, by, ids in groups[:_GROUPS]
    ]
    more = len(groups) - _GROUPS
    return "\n".join(rows) + (f"\n\nand {more} more different answers." if more > 0 else "")


def _known(case: Case) -> list[str]:
    decision, diagnosis = case.decision, case.diagnosis
    lines = []
    if diagnosis is not None:
        lines.append(f"{diagnosis.passes} of {diagnosis.draws} plain draws passed")
    if decision.kinds:
        lines.append("failed answers: " + ", ".join(f"{n} {_name(kind)}" for kind, n in decision.kinds.items()))
    if reason := next((x.verdict.reason for x in reversed(case.failed) if x.verdict and x.verdict.reason), ""):
        lines.append(f"the verifier said: {words(reason[:_REASON])}")
    if decision.regime is not None:
        lines.append(f"regime: {decision.regime.replace('_', ' ')}")
    if decision.features is None:
        lines.append("trajectory features: not available")
        return lines
    population = span(diagnosis.calibration) if diagnosis is not None else "the calibration"
    z = decision.z or {}
    lines += [f"{_name(name)} {value:.2f}, {_against(z.get(name))}" for name, value in decision.features.items()]
    lines.append(f"features are {_EVIDENCE[decision.evidence]}, against the failures of {population}")
    if diagnosis is not None:
        # Not at the beginning of the item: "1." there would open a list.
        lines += [f"note: {words(caveat)}" for caveat in diagnosis.caveats]
    return lines


def _against(z: float | None) -> str:
    if z is None:
        return "with no population to compare it with"
    if abs(z) < 0.05:
        return "at the mean"
    return f"{abs(z):.1f} sd {'above' if z > 0 else 'below'} the mean"


def _tried(case: Case) -> str:
    return (
        "; ".join(
            f"{_name(a.remedy)}, {a.got} of {a.asked} came back"
            + (f" and {a.misses} could not be judged" if a.misses else "")
            for a in case.attempts
        )
        or "nothing yet"
    )


def _spent(case: Case) -> str:
    spent = case.ledger.spent
    money = f", USD {spent.usd:.4f}" if spent.usd else ""
    return f"{spent.samples} samples, {spent.tokens:,} tokens, {spent.seconds:.1f} s{money}"


def _replies(answer: str | None) -> list[str]:
    approve = [] if answer is None else [f"**approve**: {span(answer)} stands as the answer"]
    return [
        *approve,
        "**edit**: the answer that you write in its place stands",
        "**reject**: no answer stands; your message is kept as the reason",
        "**respond**: your own words are the step's result, as they are",
    ]


def _name(name: str) -> str:
    return name.replace("_", " ")
