"""A case before a person: what they are shown, what they may answer, and what the answer does.

The request and the replies have the shapes of LangChain's human-in-the-loop middleware, so that inboxes which show
those can show and answer these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from rfx_agent._errors import EscalationError
from rfx_agent._types import ANSWER_KEPT, Rollout
from rfx_agent.case import Case, Outcome

__all__ = ["ACTION", "apply_reply", "payload"]

ACTION = "accept_answer"
"""Name of the action that a person is asked to review."""

_SHOWN = 2_000  # characters of a rollout that a person is shown


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Action(_Reply):
    name: str = ACTION
    args: dict[str, Any]


class Approve(_Reply):
    """The proposed answer stands."""

    type: Literal["approve"]


class Edit(_Reply):
    """Another answer stands in its place, in ``edited_action.args["answer"]``."""

    type: Literal["edit"]
    edited_action: _Action


class Reject(_Reply):
    """No answer stands."""

    type: Literal["reject"]
    message: str = ""


class Respond(_Reply):
    """The person's own words are the step's result."""

    type: Literal["respond"]
    message: str = Field(min_length=1)


class HumanReply(_Reply):
    """What comes back: one decision, because one action was asked about."""

    decisions: list[Annotated[Approve | Edit | Reject | Respond, Field(discriminator="type")]] = Field(
        min_length=1, max_length=1
    )


_REPLY: TypeAdapter[HumanReply] = TypeAdapter(HumanReply)


def proposed(case: Case) -> Rollout | None:
    """The rollout that a person is asked to approve: the latest tool result, else the most frequent answer's first.

    This is a suggestion to a person, never a vote that accepts anything.
    """
    tool = [r for r in case.rollouts if r.operator == "tool"]
    if tool:
        return tool[-1]
    counts = Counter(r.answer for r in case.draws() if r.answer is not None)
    if counts:
        modal = counts.most_common(1)[0][0]
        return next(r for r in case.rollouts if r.answer == modal)
    return case.rollouts[0] if case.rollouts else None


def payload(case: Case) -> dict[str, Any]:
    """The interrupt's value: a LangChain ``HITLRequest`` with the evidence beside it under ``rfx``.

    Model output in it is untrusted; it is cut to a length a person can read and never interpreted.
    """
    pick = proposed(case)
    allowed = ["approve", "edit", "reject", "respond"] if pick else ["edit", "reject", "respond"]
    args = {"answer": None if pick is None else (pick.answer or pick.text[:_SHOWN])}
    groups = [{"answer": answer, "count": count, "rollouts": ids} for answer, count, ids in _grouped(case)]
    decision = case.decision
    ask = case.ask
    return {
        "action_requests": [{"name": ACTION, "args": args, "description": _describe(case, groups)}],
        "review_configs": [{"action_name": ACTION, "allowed_decisions": allowed}],
        "rfx": {
            "step": case.step.id,
            "reason": decision.reason,
            "sentence": decision.sentence,
            "answers": groups,
            "evidence": decision.evidence,
            "features": dict(decision.features) if decision.features is not None else None,
            "z": dict(decision.z) if decision.z is not None else None,
            "calibration": case.diagnosis.calibration if case.diagnosis else None,
            "tried": [{"operator": a.operator, "asked": a.asked, "got": a.got} for a in case.attempts],
            "spent": {
                "attempts": case.ledger.spent.attempts,
                "samples": case.ledger.spent.samples,
                "tokens": case.ledger.spent.tokens,
                "usd": case.ledger.spent.usd,
                "seconds": round(case.ledger.spent.seconds, 3),
            },
            "deadline": _iso(ask.deadline) if ask and ask.deadline is not None else None,
            "default": ask.default if ask else None,
        },
    }


def apply_reply(case: Case, reply: Any, *, now: float) -> Case:
    """The case with a person's reply applied; None means that nobody answered.

    A reply after the deadline comes too late: the default stands, so that a case is decided once.

    Args:
        case: with ``ask`` set.
        reply: ``{"decisions": [...]}``, or one decision, or None.
        now: Unix time in seconds.

    Raises:
        EscalationError: when the reply does not fit what was asked; the case stays open.
    """
    ask = case.ask
    if reply is None or (ask is not None and ask.deadline is not None and now > ask.deadline):
        wanted = ask is not None and ask.default == "approve" and proposed(case) is not None
        kind = "approve" if wanted else "reject"
        why = "nobody answered" if reply is None else "the answer came after the deadline"
        decided = Approve(type="approve") if kind == "approve" else Reject(type="reject", message=why)
        return _apply(case, decided, f"deadline:{kind}", f"The default applied, {kind}: {why}.")
    if isinstance(reply, Mapping) and "type" in reply:
        reply = {"decisions": [reply]}
    try:
        decision = _REPLY.validate_python(reply).decisions[0]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "reply"
        raise EscalationError(
            f"escalation: {place}: {first['msg']}; reply with "
            '{"decisions": [{"type": "approve" | "edit" | "reject" | "respond", ...}]}'
        ) from error
    return _apply(case, decision, f"human:{decision.type}", f"A person answered: {decision.type}.")


def _apply(case: Case, decision: Approve | Edit | Reject | Respond, reason: str, sentence: str) -> Case:
    match decision:
        case Approve():
            pick = proposed(case)
            if pick is None:
                raise EscalationError(
                    "escalation: there is no candidate answer to approve; reply with edit, reject or respond"
                )
            # A long failed answer was cut for the record; the text it came from was not.
            answer = pick.answer if len(pick.answer or "") <= ANSWER_KEPT else None
            outcome = Outcome("human", pick.text, answer, "human", reason=reason, sentence=sentence)
        case Edit():
            edited = decision.edited_action.args.get("answer")
            if edited is None or decision.edited_action.name != ACTION:
                raise EscalationError(
                    f"escalation: edited_action is {decision.edited_action.name!r} with "
                    f"{sorted(decision.edited_action.args)}; give name {ACTION!r} and args with 'answer'"
                )
            outcome = Outcome("human", str(edited), str(edited), "human", reason=reason, sentence=sentence)
        case Reject():
            said = f" They said: {decision.message}" if decision.message else ""
            outcome = Outcome("rejected", by="human", reason=reason, sentence=sentence + said)
        case Respond():
            outcome = Outcome("human", decision.message, None, "human", reason=reason, sentence=sentence)
    return replace(case, outcome=outcome)


def _grouped(case: Case) -> list[tuple[str | None, int, list[str]]]:
    groups: dict[str | None, list[str]] = {}
    for rollout in case.rollouts:
        groups.setdefault(rollout.answer, []).append(rollout.id)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [(answer if answer is None else answer[:_SHOWN], len(ids), ids) for answer, ids in ordered]


def _describe(case: Case, groups: list[dict[str, Any]]) -> str:
    """Markdown for the person. Model output goes into code spans with its backticks and line ends taken out."""
    lines = [f"**A reasoning step failed and needs you.** {case.decision.sentence}", ""]
    lines += ["| answer | times |", "| --- | --- |"]
    lines += [f"| {_code(g['answer'])} | {g['count']} |" for g in groups[:10]]
    tried = ", ".join(f"{a.operator} ({a.got} of {a.asked})" for a in case.attempts) or "nothing yet"
    spent = case.ledger.spent
    lines += ["", f"Tried: {tried}. Spent: {spent.tokens} tokens in {spent.seconds:.1f} s."]
    if case.ask is not None and case.ask.deadline is not None:
        lines.append(f"Without an answer by {_iso(case.ask.deadline)}: {case.ask.default}.")
    return "\n".join(lines)


def _code(text: str | None) -> str:
    if text is None:
        return "(no answer)"
    plain = "".join(c if c.isprintable() else " " for c in text[:200]).replace("`", "'").replace("|", "¦")
    return f"`{plain}`"


def _iso(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="seconds")
