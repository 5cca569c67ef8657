"""The runs of an agent under a budget: what its state keeps of one, and the scope that is found by it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import astuple, replace
from typing import Annotated, Any, NotRequired

from langchain.agents.middleware.types import AgentState, PrivateStateAttr
from langchain_core.messages import ToolMessage
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.runtime import get_runtime

from rfx_agent.adapters.budget.payer import payers
from rfx_agent.adapters.budget.wrap import Terms
from rfx_agent.adapters.kept import Kept
from rfx_agent.budgets import ambient
from rfx_agent.budgets.ambient import Scope
from rfx_agent.records import Spend

__all__ = ["BudgetState", "begun", "record_of", "scope_of"]


class BudgetState(AgentState[Any]):
    """The middleware's key, in no input and no output schema; ``agent.get_state(config).values`` shows it.

    ``rfx_budget`` has the run's ``id``, what it has ``spent`` and ``by_model``, the ``caps`` that a person has raised,
    absolute, how often one was ``asked``, and what is ``open`` now.
    """

    rfx_budget: NotRequired[Annotated[dict[str, Any], PrivateStateAttr]]


_scopes: Kept[Scope] = Kept()  # by the run's id, and LangGraph's object for the invocation
_runs: Kept[Scope] = Kept()  # the last one of each run: its state does not say what was cut off
_invocations: Kept[Scope] = Kept()  # by that object, and the graph's namespace within it


def begun(state: Mapping[str, Any]) -> dict[str, Any]:
    """The record of the run that begins: a new one, unless a tool's result goes on with the one before."""
    kept, messages = state.get("rfx_budget"), state.get("messages") or [None]
    if kept and isinstance(messages[-1], ToolMessage):
        return dict(kept)
    return {"id": uuid.uuid4().hex}


def scope_of(terms: Terms, state: Mapping[str, Any]) -> Scope:
    """The budget of the run that ``state`` is in.

    An invocation that resumes a run goes on from what its state says, and what this process knows besides: a call that
    was cancelled, or a tool that raised, wrote no state. So neither these nor an interrupt refill anything.
    """
    record = state.get("rfx_budget") or {}
    run_id = record.get("id") or _task()
    control, namespace = _place()
    key = (run_id, id(control))
    scope = _scopes.get(key)
    caps = record.get("caps") or {}
    if scope is None:
        by_model = {name: Spend.read(spent) for name, spent in (record.get("by_model") or {}).items()}
        spent = Spend.read(record.get("spent"))
        if (before := _runs.get((run_id,))) is not None:
            ledger = before.purse.ledger
            spent = _most(spent, ledger.spent)
            by_model |= {name: _most(by_model.get(name, Spend()), x) for name, x in ledger.by_model.items()}
        made = Scope(
            replace(terms.budget, **caps),
            shared=terms.shared,
            prices=terms.prices,
            outer=ambient.current(),
            name=run_id,
            spent=spent,
            by_model=by_model,
        )
        payers(made, terms.written)
        scope = _scopes.put(key, lambda: made, control)
        _runs.replace((run_id,), scope, scope)
        if control is not None:
            _invocations.replace((id(control), namespace), scope, control)
    elif caps and any(getattr(scope.purse.ledger.budget, name) != most for name, most in caps.items()):
        scope.purse.limit(replace(terms.budget, **caps))
    return scope


def _most(one: Spend, two: Spend) -> Spend:
    return Spend(*map(max, astuple(one), astuple(two)))


def record_of(scope: Scope, state: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What the state is to say of the run from now on."""
    ledger = scope.purse.ledger
    spent = {name: amount.amounts() for name, amount in ledger.by_model.items()}
    kept = {"id": scope.name, **(state.get("rfx_budget") or {})}
    return {**kept, "spent": ledger.spent.amounts(), "by_model": spent, **more}


def _task() -> str:
    info = _info(_runtime())
    return str(getattr(info, "task_id", None) or uuid.uuid4().hex)


def _runtime() -> Any:
    if var_child_runnable_config.get() is None:
        return None
    try:
        return get_runtime()
    except (RuntimeError, KeyError):
        return None  # called outside a graph


def _info(runtime: Any) -> Any:
    return getattr(runtime, "execution_info", None)


def _place() -> tuple[object, str]:
    """LangGraph's object for the invocation, which its subgraphs share, and the namespace of the graph within it."""
    runtime = _runtime()
    namespace = str(getattr(_info(runtime), "checkpoint_ns", None) or "")
    return getattr(runtime, "control", None), namespace.rpartition("|")[0]


def _scope_of_invocation() -> Scope | None:
    """The budget of the graph whose node this is called in, or of the nearest one around it."""
    if not len(_invocations):
        return None
    control, namespace = _place()
    while control is not None:
        if (scope := _invocations.get((id(control), namespace))) is not None:
            return scope
        if not namespace:
            break
        namespace = namespace.rpartition("|")[0]
    return None


ambient.FINDERS.append(_scope_of_invocation)
