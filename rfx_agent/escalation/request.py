"""What a person is shown: the interrupt's value."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

from rfx_agent.case import Case
from rfx_agent.escalation.describe import describe, iso
from rfx_agent.records import Rollout

__all__ = ["ACTION", "applies", "payload", "proposed"]

ACTION = "accept_answer"
"""Name of the action that a person is asked to review."""

_REASONS = 5  # of the verifier that a person is shown
_SHOWN = 2_000  # characters of a rollout that a person is shown
_ARGS_SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "minLength": 1, "description": "The answer that is to stand."}},
    "required": ["answer"],
    "additionalProperties": False,
}


def proposed(case: Case) -> Rollout | None:
    """The rollout that a person is asked to approve: the latest tool result, else the most frequent answer's first.

    This is a suggestion to a person, never a vote that accepts anything.
    """
    tool = [r for r in case.rollouts if r.remedy == "tool"]
    if tool:
        return tool[-1]
    counts = Counter(r.answer for r in case.draws() if r.answer is not None)
    if counts:
        modal = counts.most_common(1)[0][0]
        return next(r for r in case.rollouts if r.answer == modal)
    return case.rollouts[0] if case.rollouts else None


def applies(case: Case) -> Literal["approve", "reject"]:
    """What the default of ``case`` comes to when nobody answers.

    Nothing is approved unseen in which the verifier found no answer: it may be the text of an error.
    """
    pick = proposed(case)
    approve = case.ask is not None and case.ask.default == "approve" and pick is not None and pick.answer is not None
    return "approve" if approve else "reject"


def payload(case: Case, *, error: str | None = None) -> dict[str, Any]:
    """The interrupt's value: a LangChain ``HITLRequest`` with the evidence beside it under ``rfx``.

    Keys: ``action_requests``, one, with ``name``, ``args`` and a Markdown ``description``; ``review_configs``, one,
    with ``action_name``, ``allowed_decisions`` and the JSON schema of an edit's ``args_schema``; and ``rfx``.

    Model output in it is untrusted and cut to a length a person can read. In ``description`` it stands in code, so
    that it cannot pass for ours; elsewhere it is as the model wrote it, for an inbox to show as plain text.

    Args:
        case: a case with a decision.
        error: why the last reply did not fit, where the question is asked again; it heads the description and
            stands under ``error``, a key that is absent otherwise.
    """
    pick = proposed(case)
    # Inboxes make a text field of every argument, and fail on null.
    args = {"answer": "" if pick is None else ((not pick.abridged and pick.answer) or pick.text[:_SHOWN])}
    allowed = ["approve", "edit", "reject", "respond"] if pick else ["edit", "reject", "respond"]
    groups = _grouped(case)
    description = describe(case, groups, args["answer"] if pick else None, error, default=applies(case))
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
    """What the verifier said of the failed answers, without repeats, the latest last."""
    said = [x.verdict.reason[:_SHOWN] for x in case.failed if x.verdict is not None and x.verdict.reason]
    return list(dict.fromkeys(said))[-_REASONS:]


def _grouped(case: Case) -> list[tuple[str | None, list[str], list[str]]]:
    """(answer, remedies that gave it, rollouts that gave it), the most frequent first."""
    groups: dict[str | None, list[Rollout]] = {}
    for rollout in case.rollouts:
        groups.setdefault(rollout.answer, []).append(rollout)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [
        (
            answer if answer is None else answer[:_SHOWN],
            list(dict.fromkeys(r.remedy for r in gave)),
            [r.id for r in gave],
        )
        for answer, gave in ordered
    ]
