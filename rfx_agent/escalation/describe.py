"""The case as a page of Markdown for the person who decides it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rfx_agent.case import Case
from rfx_agent.escalation.markdown import block, middle, span, words
from rfx_agent.evidence.kinds import kind_of
from rfx_agent.records import Rollout

__all__ = ["describe", "iso", "reasons_of"]

_ASKED = 1_500  # characters of the question that are shown
_GROUPS = 10  # answers that are listed
_REASON = 300  # characters of one reason of the verifier's that are shown
_REASONS = 6  # reasons that are listed
_CELL = 40  # characters of an answer in the table; a longer one stands below it
_TEXTS = 6  # longer answers that are shown
_TEXT = 800  # characters of a longer answer that are shown
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
    pick: str | None = None,
    default: str,
) -> str:
    """What was asked, what came back and what the verifier said of it, what is known of the failure, what was tried,
    and what each reply does.

    Args:
        case: the case, with a decision.
        groups: (answer, remedies that gave it, rollouts that gave it), as they are to be listed.
        answer: the proposed answer, or None where there is none to approve.
        error: why the last reply did not fit, or None.
        pick: id of the rollout that has the proposed answer.
        default: what applies where nobody answers.
    """
    parts = [
        *([] if error is None else [f"**Your last reply did not fit.** {words(error)}"]),
        f"**A reasoning step failed and needs you.** {words(case.decision.sentence)}",
        "**What was asked**",
        block(_question(case), _ASKED),
        "**What came back**" + ("" if groups else ": nothing."),
        *(_answers(case, groups) if groups else []),
        "**What is known of the failure**",
        "\n".join(f"- {line}" for line in _known(case)),
        f"**Tried:** {_tried(case)}.",
        f"**Spent:** {_spent(case)}.",
        "**What your reply does**",
        "\n".join(f"- {line}" for line in _replies(answer, groups, pick)),
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


def _answers(case: Case, groups: Sequence[tuple[str | None, list[str], list[str]]]) -> list[str]:
    """The answers in a table, those that are too long for it below, and what the verifier said of which."""
    failed = {x.id: x for x in (*case.rollouts, *case.failed)}
    rows, texts = ["| | answer | times | by | verdict |", "| --- | --- | --- | --- | --- |"], []
    for number, (answer, by, ids) in enumerate(groups[:_GROUPS], 1):
        first = failed[ids[0]]
        text = (first.said if first.answer is None else answer or "").strip()
        cell = _nothing(first) if not text else _cell(text, _CELL)
        rows.append(f"| {number} | {cell} | {len(ids)} | {', '.join(map(_name, by))} | {_judged(first)} |")
        if text and (len(text) > _CELL or "\n" in text):
            texts += [f"Number {number} in full:", block(middle(text, _TEXT), 2 * _TEXT)]
    more = len(groups) - _GROUPS
    parts = ["\n".join(rows), *([f"and {more} more different answers."] if more > 0 else []), *texts[: 2 * _TEXTS]]
    place = {name: str(number) for number, (_, _, ids) in enumerate(groups[:_GROUPS], 1) for name in ids}
    said = list(reasons_of(case, _REASON).items())
    lines = [
        f"- of {', '.join(dict.fromkeys(place.get(x, 'others') for x in ids))}: {_reason(why)}"
        for why, ids in said[-_REASONS:]
    ]
    return [*parts, *(["**What the verifier said**", "\n".join(lines)] if lines else [])]


def reasons_of(case: Case, limit: int) -> dict[str, list[str]]:
    """What the verifier said, cut to ``limit`` characters, with the ids of the rollouts of which it said that."""
    reasons: dict[str, list[str]] = {}
    for rollout in case.rollouts:
        if rollout.verdict is not None and rollout.verdict.reason:
            reasons.setdefault(rollout.verdict.reason[:limit], []).append(rollout.id)
    return reasons


def _cell(text: str, most: int) -> str:
    flat = " ".join(text.split())
    return span(flat if len(flat) <= most else f"{flat[: most - 1]}…")


def _reason(text: str) -> str:
    plain = words(text, _REASON)
    return span(text, _REASON) if "`" in plain else plain  # one piece of code reads better than many


def _nothing(rollout: Rollout) -> str:
    return "(cut off while it thought)" if rollout.text.strip() else "(nothing)"


def _judged(rollout: Rollout) -> str:
    if rollout.verdict is None:
        return "not judged"
    return "passed, as an opinion" if rollout.passed else _name(rollout.kind or kind_of(rollout) or "wrong")


def _known(case: Case) -> list[str]:
    decision, diagnosis = case.decision, case.diagnosis
    lines = []
    if diagnosis is not None:
        lines.append(f"{diagnosis.passes} of {diagnosis.draws} plain draws passed")
    if decision.kinds:
        lines.append("failed answers: " + ", ".join(f"{n} {_name(kind)}" for kind, n in decision.kinds.items()))
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
            + (f" ({_reason(a.note)})" if a.note else "")
            for a in case.attempts
        )
        or "nothing yet"
    )


def _spent(case: Case) -> str:
    spent = case.ledger.spent
    money = f", USD {spent.usd:.4f}" if spent.usd else ""
    by = {name: x.tokens for name, x in case.bill.by_remedy.items() if x.tokens}
    parts = ", ".join(f"{_name(name or 'first answer')} {n:,}" for name, n in by.items())
    of_it = f"; tokens by remedy: {parts}" if len(by) > 1 else ""
    return f"{spent.samples} samples, {spent.tokens:,} tokens, {spent.seconds:.1f} s{money}{of_it}"


def _replies(
    answer: str | None, groups: Sequence[tuple[str | None, list[str], list[str]]], pick: str | None
) -> list[str]:
    at = next((f", number {i} above" for i, (_, _, ids) in enumerate(groups[:_GROUPS], 1) if pick in ids), "")
    approve = [] if answer is None else [f"**approve**: {_cell(answer, 60)} stands as the answer{at}"]
    return [
        *approve,
        "**edit**: the answer that you write in its place stands",
        "**reject**: no answer stands; your message is kept as the reason",
        "**respond**: your own words are the step's result, as they are",
    ]


def _name(name: str) -> str:
    return name.replace("_", " ")
