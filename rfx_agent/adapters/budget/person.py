"""The node after the model that asks a person to raise the caps of a run. It calls no model, so a resume costs nothing.

The answer is absolute: it says what a cap is from now on. Applied twice, or by two processes at once, it is the same.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain.agents.middleware.types import hook_config
from langchain_core.messages import AIMessage, BaseMessage, RemoveMessage
from langgraph.types import interrupt

from rfx_agent.adapters.budget.outcome import best_of, ending
from rfx_agent.adapters.budget.wrap import Terms
from rfx_agent.adapters.marks import marked
from rfx_agent.budgets.ambient import Scope, Short
from rfx_agent.budgets.step import CAPS, RetryBudget
from rfx_agent.checks import shown
from rfx_agent.errors import BudgetExhausted, ConfigError, EscalationError
from rfx_agent.escalation.markdown import span
from rfx_agent.escalation.reply import Approve, Edit, Reject, decision_of
from rfx_agent.escalation.request import ACTION
from rfx_agent.records import Spend

__all__ = ["RAISE", "AskHooks"]

RAISE = "raise_budget"
"""Name of the action that a person is asked to review."""
_PARTS = ("seconds", "tool_seconds", "usd")  # the caps that need not be whole


class AskHooks:
    """The hook after the model; a class without it adds no node to the agent's graph."""

    _terms: Terms
    _at_cap: str

    @hook_config(can_jump_to=["model"])
    def after_model(self, state: Mapping[str, Any], runtime: Any) -> dict[str, Any] | None:
        """Ask a person about the run that the model node left open; go on under the new caps, or end it."""
        record = state.get("rfx_budget") or {}
        opened, messages = record.get("open"), state["messages"]
        if not opened:
            return None
        at = next((i for i, m in enumerate(messages) if m.id == opened["message"]), None)
        closed = {**record, "open": None}
        if at is None:
            return {"rfx_budget": closed}
        message, caps = messages[at], self._answered(record, opened)
        if caps is not None:
            closed["caps"] = {**(record.get("caps") or {}), **caps}
            return {"rfx_budget": closed, "messages": [RemoveMessage(id=message.id)], "jump_to": "model"}
        marks = {**message.response_metadata["rfx"], "outcome": "exhausted", "budget": "exhausted"}
        if self._at_cap == "raise":
            spent = {"spent": Spend.read(marks["spent"]), "after": marks["after"], "best": best_of(messages[:at])}
            by_model = {name: Spend.read(x) for name, x in marks["by_model"].items()}
            raise BudgetExhausted(marks["sentence"], caps=tuple(marks["caps"]), by_model=by_model, **spent)
        return {"rfx_budget": closed, "messages": [marked(message, marks)]}

    @hook_config(can_jump_to=["model"])
    async def aafter_model(self, state: Mapping[str, Any], runtime: Any) -> dict[str, Any] | None:
        """Do what ``after_model`` does, without blocking the event loop."""
        return self.after_model(state, runtime)

    def _answered(self, record: Mapping[str, Any], opened: Mapping[str, Any]) -> dict[str, Any] | None:
        """The new caps; None where the person raises none. One that does not fit is asked for again."""
        budget = replace(self._terms.budget, **(record.get("caps") or {}))
        reply = interrupt(_payload(record, opened, budget))
        while True:
            try:
                return _raised(reply, opened, budget)
            except EscalationError as error:
                # A thread keeps the reply it was resumed with, so one that does not fit is asked for again.
                reply = interrupt(_payload(record, opened, budget, error=str(error)))

    def _asks(
        self, scope: Scope, short: Short, messages: Sequence[BaseMessage]
    ) -> tuple[AIMessage, dict[str, Any]] | None:
        """The message that stands while a person is asked, and what the node needs; None where nobody may be asked."""
        fee = Spend(escalations=1)
        if scope.purse.reserve(fee):
            return None
        scope.purse.settle(fee, fee)
        message = ending(scope, short, messages, status="asked")
        ledger, needs = scope.purse.ledger, {}
        for cap in short.caps:
            least = getattr(ledger.spent, cap) + getattr(ledger.reserved, cap) + getattr(short.needs, cap)
            once = getattr(ledger.budget, cap) + getattr(self._terms.budget, cap)
            needs[cap] = {"least": least, "proposed": max(least, once)}
        question = uuid.uuid4().hex[:12]
        return message, {"message": message.id, "question": question, "needs": needs, "sentence": short.sentence}


def _raised(reply: Any, opened: Mapping[str, Any], budget: RetryBudget) -> dict[str, Any] | None:
    """The new caps that a reply says; raises ``EscalationError`` on one that does not fit."""
    needs = opened["needs"]
    if isinstance(reply, Mapping) and "question" in reply:
        if reply["question"] != opened["question"]:
            raise EscalationError(
                f"budget: the reply is to the question {shown(reply['question'])}, and this one is "
                f"{opened['question']!r}; read it, and reply to it"
            )
        reply = {name: x for name, x in reply.items() if name != "question"}
    decision = decision_of(reply)
    if isinstance(decision, Reject):
        return None
    if isinstance(decision, Approve):
        return {cap: x["proposed"] for cap, x in needs.items()}
    if not isinstance(decision, Edit) or decision.edited_action.name not in (RAISE, ACTION):
        raise EscalationError(
            f"budget: reply with approve, reject, or edit with the new caps as args of {RAISE!r}, such as "
            f"{_args(needs)}"
        )
    caps: dict[str, Any] = {}
    for cap, value in decision.edited_action.args.items():
        if cap not in CAPS or getattr(budget, cap) is None:
            raise EscalationError(f"budget: this run has no cap {cap!r}; give new caps such as {_args(needs)}")
        caps[cap] = _number(cap, value)
        least = max(getattr(budget, cap), needs.get(cap, {}).get("least", 0))
        if caps[cap] < least:
            raise EscalationError(f"budget: {cap} is {value!r}; give at least {least:g}, what it is to be in all")
    missing = [cap for cap in needs if cap not in caps]
    if missing:
        raise EscalationError(f"budget: {missing[0]} is to be raised too; give new caps such as {_args(needs)}")
    try:
        replace(budget, **caps)
    except ConfigError as error:
        raise EscalationError(str(error)) from error
    return caps


def _number(cap: str, value: Any) -> Any:
    """A number, which a form may have made a text of."""
    if isinstance(value, str):
        try:
            value = float(value) if cap in _PARTS else int(value)
        except ValueError:
            value = None
    if isinstance(value, float) and value.is_integer() and cap not in _PARTS:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise EscalationError(f"budget: the new {cap} is no number; give what it is to be in all")
    return value


def _args(needs: Mapping[str, Any]) -> dict[str, Any]:
    return {cap: x["proposed"] for cap, x in needs.items()}


def _payload(
    record: Mapping[str, Any], opened: Mapping[str, Any], budget: RetryBudget, *, error: str | None = None
) -> dict[str, Any]:
    """What a person is shown: a LangChain ``HITLRequest``, and the figures under ``rfx``."""
    needs, by_model = opened["needs"], record.get("by_model") or {}
    spent = record.get("spent") or {}
    caps = {cap: most for cap in CAPS if (most := getattr(budget, cap)) is not None}
    lines = [
        *([f"**The last reply does not fit:** {span(error, 400)}", ""] if error else []),
        str(opened["sentence"]),
        "",
        "| cap | spent | now | proposed |",
        "| --- | --- | --- | --- |",
        *(
            f"| {cap} | {spent.get(cap, 0):,.6g} | {most:,.6g} | {_shown(needs.get(cap))} |"
            for cap, most in caps.items()
        ),
        "",
        *(f"- {span(name)}: {_amounts(x)}" for name, x in by_model.items()),
        "",
        "**approve** raises the caps as proposed, **edit** to what you write (in all, not what is added), and "
        "**reject** ends the run with its best answer so far.",
        "",
        f'Where several people may reply, put `"question": "{opened["question"]}"` into the reply. Then it is not '
        "taken for a reply to a later question.",
    ]
    properties = {
        cap: {"type": "number" if cap in _PARTS else "integer", "minimum": most} for cap, most in caps.items()
    }
    schema = {"type": "object", "properties": properties, "required": [*needs], "additionalProperties": False}
    allowed = ["approve", "edit", "reject"]
    return {
        "action_requests": [{"name": RAISE, "args": _args(needs), "description": "\n".join(lines)}],
        "review_configs": [{"action_name": RAISE, "allowed_decisions": allowed, "args_schema": schema}],
        "rfx": {
            "question": opened["question"],
            "caps": caps,
            "needs": {**needs},
            "spent": {**spent},
            "by_model": {**by_model},
        },
        **({} if error is None else {"error": error}),
    }


def _shown(need: Mapping[str, Any] | None) -> str:
    return "–" if need is None else f"{need['proposed']:,.6g}"


def _amounts(spent: Mapping[str, Any]) -> str:
    return ", ".join(f"{amount:,.6g} {name}" for name, amount in Spend.read(spent).amounts().items()) or "nothing"
