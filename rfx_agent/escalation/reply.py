"""What a person may answer, and what the answer does to the case."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from rfx_agent.case import Case, Outcome
from rfx_agent.errors import EscalationError
from rfx_agent.escalation.request import ACTION, applies, proposed

__all__ = ["EXPIRED", "Approve", "Edit", "HumanReply", "Reject", "Respond", "apply_reply", "decision_of"]

EXPIRED = {"type": "expired"}
"""What a sweep replies where nobody answered. Before the deadline it is refused."""


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


def _from_inbox(decision: Any) -> Any:
    """LangChain's Agent Inbox sends its own older fields inside ``decisions``: what was said stands in ``args``.

    ``{"type": "reject", "args": "why"}``, ``{"type": "edit", "args": {"action": ..., "args": {...}}}``,
    ``{"type": "approve", "args": ...}`` and ``{"type": "ignore", "args": None}``.
    """
    if not isinstance(decision, Mapping) or "args" not in decision:
        return decision
    rest = {key: value for key, value in decision.items() if key != "args"}
    args = decision["args"]
    match rest.get("type"):
        case "approve":
            return rest
        case "ignore":
            return rest | {"type": "reject"}
        case "edit" if isinstance(args, Mapping):
            action = {"name": args.get("action", ACTION), "args": args.get("args")}
            return {"edited_action": action} | rest
        case "reject" | "respond" if args is None or isinstance(args, str):
            return {"message": args or ""} | rest
    return decision


_Decision = Annotated[Approve | Edit | Reject | Respond, Field(discriminator="type")]


class HumanReply(_Reply):
    """What comes back: one decision, because one action was asked about."""

    decisions: list[Annotated[_Decision, BeforeValidator(_from_inbox)]] = Field(min_length=1, max_length=1)


_REPLY: TypeAdapter[HumanReply] = TypeAdapter(HumanReply)


def apply_reply(case: Case, reply: Any, *, now: float) -> Case:
    """The case with a person's reply applied; None, or ``EXPIRED`` after the deadline, means that nobody answered.

    A reply after the deadline comes too late: the default stands, so that a case is decided once.

    Args:
        case: with ``ask`` set.
        reply: ``{"decisions": [...]}`` with one decision, or one decision, or None.
        now: Unix time in seconds.

    Raises:
        EscalationError: when the reply does not fit what was asked; the case stays open.
    """
    ask = case.ask
    if reply is None or (ask is not None and ask.deadline is not None and now > ask.deadline):
        kind = applies(case)
        why = "nobody answered" if reply is None or reply == EXPIRED else "the answer came after the deadline"
        decided = Approve(type="approve") if kind == "approve" else Reject(type="reject", message=why)
        return _apply(case, decided, f"deadline:{kind}", f"The default applied, {kind}: {why}.")
    if reply == EXPIRED:
        raise EscalationError("escalation: the deadline has not passed yet; reply, or look again after it")
    decision = decision_of(reply)
    return _apply(case, decision, f"human:{decision.type}", f"A person answered: {decision.type}.")


def decision_of(reply: Any) -> Approve | Edit | Reject | Respond:
    """What a person decided.

    Args:
        reply: ``{"decisions": [...]}`` with one decision, or one decision.

    Raises:
        EscalationError: it is not such a reply.
    """
    if isinstance(reply, Mapping) and "type" in reply:
        reply = {"decisions": [reply]}
    try:
        return _REPLY.validate_python(reply).decisions[0]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "reply"
        raise EscalationError(
            f"escalation: {place}: {first['msg']}; reply with "
            '{"decisions": [{"type": "approve" | "edit" | "reject" | "respond", ...}]}'
        ) from error


def _apply(case: Case, decision: Approve | Edit | Reject | Respond, reason: str, sentence: str) -> Case:
    match decision:
        case Approve():
            pick = proposed(case)
            if pick is None:
                raise EscalationError(
                    "escalation: there is no candidate answer to approve; reply with edit, reject or respond"
                )
            # A long failed answer was cut for the record; the text it came from was not.
            answer = None if pick.abridged else pick.answer
            outcome = Outcome("human", pick.text, answer, "human", reason=reason, sentence=sentence)
        case Edit():
            text = _edited(decision.edited_action)
            outcome = Outcome("human", text, text, "human", reason=reason, sentence=sentence)
        case Reject():
            said = f" They said: {decision.message}" if decision.message else ""
            outcome = Outcome("rejected", by="human", reason=reason, sentence=sentence + said)
        case Respond():
            outcome = Outcome("human", decision.message, None, "human", reason=reason, sentence=sentence)
    return replace(case, outcome=outcome)


def _edited(action: _Action) -> str:
    """The answer that a person wrote; a form may have made a number or a list of it."""
    answer = action.args.get("answer")
    if answer is None or action.name != ACTION:
        raise EscalationError(
            f"escalation: edited_action is {action.name!r} with {sorted(action.args)}; "
            f"give name {ACTION!r} and args with 'answer'"
        )
    text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False, default=str)
    if not text.strip():
        raise EscalationError("escalation: the edited answer is blank; write one, or reply with reject")
    return text
