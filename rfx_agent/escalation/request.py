"""What a person is shown: the interrupt's value."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

from rfx_agent.case import Case
from rfx_agent.escalation.describe import describe, iso, reasons_of
from rfx_agent.escalation.markdown import seen
from rfx_agent.evidence.verdicts import confidence
from rfx_agent.records import Rollout

__all__ = ["ACTION", "applies", "payload", "proposed"]

ACTION = "accept_answer"
"""Name of the action that a person is asked to review."""

_REASONS = 10  # of the verifier that a person is shown
_EXCERPT = 300  # characters shown of a text in which the verifier found no answer
_SHOWN = 2_000  # characters of a rollout that a person is shown
_ARGS_SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "minLength": 1, "description": "The answer that is to stand."}},
    "required": ["answer"],
    "additionalProperties": False,
}


def proposed(case: Case) -> Rollout | None:
    """The rollout that a person is asked to approve: what an opinion passed, else the latest tool result, else the most
    frequent answer's first, else the first that says anything. None where none does.

    This is a suggestion to a person, never a vote that accepts anything.
    """
    passed = [r for r in case.rollouts if r.passed and r.verdict is not None]  # by opinions that were not worth enough
    if passed:
        return max(passed, key=lambda r: confidence(r.verdict, 0.5) or 0.0)
    tool = [r for r in case.rollouts if r.remedy == "tool"]
    if tool:
        return tool[-1]
    counts = Counter(r.answer for r in case.draws() if r.answer is not None)
    if counts:
        modal = counts.most_common(1)[0][0]
        return next(r for r in case.rollouts if r.answer == modal)
    return next((r for r in case.rollouts if r.answer or r.said.strip()), None)


def applies(case: Case) -> Literal["approve", "reject"]:
    """What the default of ``case`` comes to when nobody answers.

    Nothing is approved unseen in which the verifier found no answer: it may be the text of an error.
    """
    pick = proposed(case)
    approve = case.ask is not None and case.ask.default == "approve" and pick is not None and pick.answer is not None
    return "approve" if approve else "reject"


def payload(case: Case, *, error: str | None = None) -> dict[str, Any]:
    """What a person is shown, as the interrupt's value: a LangChain ``HITLRequest``, and the evidence under ``rfx``.

    Keys: ``action_requests``, one, with ``name``, ``args`` and a Markdown ``description``; ``review_configs``, one,
    with ``action_name``, ``allowed_decisions`` and the JSON schema of an edit's ``args_schema``; and ``rfx``.

    Model output in it is untrusted, cut to a length a person can read, and without thinking and controls. In
    ``description`` it stands in code, so that it cannot pass for ours; elsewhere an inbox shows it as plain text.
    ``rfx.answers`` holds what came back, and ``rfx.reasons`` what the verifier said of it, by the rollouts' ids.

    Args:
        case: a case with a decision.
        error: why the last reply did not fit, where the question is asked again; it heads the description and
            stands under ``error``, a key that is absent otherwise.
    """
    pick = proposed(case)
    # Inboxes make a text field of every argument, and fail on null.
    args = {"answer": "" if pick is None else seen((not pick.abridged and pick.answer) or pick.said.strip()[:_SHOWN])}
    allowed = ["approve", "edit", "reject", "respond"] if pick else ["edit", "reject", "respond"]
    groups = _grouped(case)
    answer, at = (args["answer"], pick.id) if pick else (None, None)
    description = describe(case, groups, answer, error, pick=at, default=applies(case))
    decision, diagnosis, ask, spent = case.decision, case.diagnosis, case.ask, case.ledger.spent
    return {
        "action_requests": [{"name": ACTION, "args": args, "description": description}],
        "review_configs": [{"action_name": ACTION, "allowed_decisions": allowed, "args_schema": _ARGS_SCHEMA}],
        "rfx": {
            "step": case.step.id,
            "reason": decision.reason,
            "sentence": decision.sentence,
            "answers": [{"answer": answer, "count": len(ids), "rollouts": ids} for answer, _, ids in groups],
            "kinds": dict(decision.kinds),
            "reasons": _reasons(case),
            "evidence": decision.evidence,
            "features": dict(decision.features) if decision.features is not None else None,
            "z": dict(decision.z) if decision.z is not None else None,
            "calibration": diagnosis.calibration if diagnosis else None,
            "caveats": list(diagnosis.caveats) if diagnosis else [],
            "tried": [{"remedy": a.remedy, "asked": a.asked, "got": a.got} for a in case.attempts],
            "spent": {
                "attempts": spent.attempts,
                "samples": spent.samples,
                "tokens": spent.tokens,
                "usd": spent.usd,
                "seconds": round(spent.seconds, 3),
            },
            "deadline": iso(ask.deadline) if ask and ask.deadline is not None else None,
            "default": ask.default if ask else None,
        },
        **({} if error is None else {"error": error}),
    }


def _reasons(case: Case) -> list[str]:
    """What the verifier said, each with the rollouts of which it said that, the latest last."""
    return [f"{', '.join(ids)}: {seen(why)}" for why, ids in reasons_of(case, _SHOWN).items()][-_REASONS:]


def _shown(rollout: Rollout) -> str | None:
    if rollout.answer is not None:
        return seen(rollout.answer)
    said = " ".join(seen(rollout.said[: 4 * _EXCERPT]).split())
    return (said if len(said) <= _EXCERPT else f"{said[:_EXCERPT]}…") or None


def _grouped(case: Case) -> list[tuple[str | None, list[str], list[str]]]:
    """(answer, remedies that gave it, rollouts that gave it), the most frequent first. Where the verifier parsed no
    answer, what the rollout says stands for it; None where it says nothing."""
    groups: dict[str | None, list[Rollout]] = {}
    for rollout in case.rollouts:
        groups.setdefault(_shown(rollout), []).append(rollout)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [
        (
            answer if answer is None else answer[:_SHOWN],
            list(dict.fromkeys(r.remedy for r in gave)),
            [r.id for r in gave],
        )
        for answer, gave in ordered
    ]
