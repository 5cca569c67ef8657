"""What a run's budget says when it ends the run: typed, on the last message, in an exception, or to a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from rfx_agent.adapters.marks import ended_by_budget, marked
from rfx_agent.adapters.texts import as_text
from rfx_agent.budgets.ambient import Scope, Short
from rfx_agent.budgets.step import CAPS
from rfx_agent.checks import shown
from rfx_agent.errors import BudgetExhausted, ConfigError
from rfx_agent.records import Spend

__all__ = ["BudgetOutcome", "budget_of", "countdown", "ending"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetOutcome:
    """How a run ended that its budget stopped, or that waits for a person to raise the budget.

    Attributes:
        status: ``exhausted``, or ``asked`` while a person is asked.
        caps: the caps that the next call would have crossed.
        accounts: the shared accounts that had no room, where it was these.
        spent: what the run had spent.
        by_model: the part of it that went to models, by the model's name.
        after: seconds until there may be room, as for ``Retry-After``; None where time alone does not help.
        sentence: all of it for a person.
    """

    status: Literal["exhausted", "asked"]
    caps: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ()
    spent: Spend = Spend()
    by_model: Mapping[str, Spend] = field(default_factory=dict)
    after: float | None = None
    sentence: str = ""


def budget_of(of: BaseMessage | Mapping[str, Any] | BudgetExhausted) -> BudgetOutcome | None:
    """How the budget of a run ended it; None where it did not.

    Args:
        of: what the agent returned, its last message, or the exception.

    Raises:
        ConfigError: it is none of these.

    Example:
        >>> from langchain_core.messages import AIMessage
        >>> budget_of({"messages": [AIMessage("42")]}) is None
        True
    """
    if isinstance(of, BudgetExhausted):
        told: dict[str, Any] = {"caps": of.caps, "accounts": of.accounts, "after": of.after}
        return BudgetOutcome(
            status="exhausted", spent=of.spent or Spend(), by_model=of.by_model, sentence=str(of), **told
        )
    if isinstance(of, Mapping):
        messages = of.get("messages")
        of = messages[-1] if isinstance(messages, Sequence) and messages else of
    if not isinstance(of, BaseMessage):
        raise ConfigError(
            f"budget_of: it was given {shown(of)}; give what the agent returned, its last message, or BudgetExhausted"
        )
    if not ended_by_budget(of):
        return None
    marks = of.response_metadata["rfx"]
    by_model = {str(name): Spend.read(spent) for name, spent in (marks.get("by_model") or {}).items()}
    return BudgetOutcome(
        status=marks["budget"],
        caps=tuple(marks.get("caps") or ()),
        accounts=tuple(marks.get("accounts") or ()),
        spent=Spend.read(marks.get("spent")),
        by_model=by_model,
        after=marks.get("after"),
        sentence=str(marks.get("sentence") or ""),
    )


def ending(scope: Scope, short: Short, messages: Sequence[BaseMessage], *, status: str) -> AIMessage:
    """The message that ends a run: the best answer so far, marked with how it ended.

    Args:
        scope: the run's budget.
        short: why the next call was refused.
        messages: the thread.
        status: ``exhausted`` or ``asked``.
    """
    ledger = scope.purse.ledger
    marks = {
        "outcome": status,
        "budget": status,
        "caps": list(short.caps),
        "accounts": list(short.accounts),
        "spent": ledger.spent.amounts(),
        "by_model": {name: spent.amounts() for name, spent in ledger.by_model.items()},
        "after": short.after,
        "sentence": short.sentence,
    }
    message = AIMessage(best_of(messages) or short.sentence, id=f"rfx-{scope.name}-{ledger.spent.calls}")
    return marked(message, marks)


def best_of(messages: Sequence[BaseMessage]) -> str | None:
    """The last text that the model wrote in this run; None where it wrote none."""
    for message in reversed(messages):
        if isinstance(message, HumanMessage):
            return None
        if isinstance(message, AIMessage) and (text := as_text(message)).strip():
            return text
    return None


def countdown(scope: Scope) -> str | None:
    """What is left of the cap that is nearest, in a sentence for the model; None where nothing is capped."""
    ledger = scope.purse.ledger
    left = ledger.remaining()
    shares = {cap: left[cap] / most for cap in CAPS if left[cap] is not None and (most := getattr(ledger.budget, cap))}
    if not shares:
        return None
    cap = min(shares, key=lambda name: shares[name])
    most = getattr(ledger.budget, cap)
    return f"[Budget of this task: {left[cap]:,.6g} of {most:,.6g} {cap.replace('_', ' ')} left.]"
