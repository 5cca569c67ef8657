"""A budget around any runnable: a chain, a graph, an agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import RunnableBinding

from rfx_agent.adapters.budget.payer import WRITTEN, payers
from rfx_agent.budgets import ambient
from rfx_agent.budgets.ambient import Scope
from rfx_agent.budgets.prices import Prices
from rfx_agent.budgets.shared import SharedBudget
from rfx_agent.budgets.step import Price, RetryBudget
from rfx_agent.checks import instance, shown, whole
from rfx_agent.errors import ConfigError

__all__ = ["PriceLike", "Terms", "terms_of", "with_budget"]

Input = TypeVar("Input")
Output = TypeVar("Output")
PriceLike: TypeAlias = Price | Mapping[str, Price | Mapping[str, float]] | None
"""What models cost: one price of all, or one by model."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What was configured: the caps, what is shared, the prices, and what a call is taken to write at most."""

    budget: RetryBudget
    shared: SharedBudget | None
    prices: Prices
    written: int


def with_budget(
    runnable: Runnable[Input, Output],
    budget: RetryBudget | Mapping[str, float | None] | None = None,
    *,
    shared: SharedBudget | None = None,
    prices: PriceLike = None,
    max_tokens: int = WRITTEN,
) -> Runnable[Input, Output]:
    """``runnable`` with a budget of its own for each call of it: every model and tool inside, on one ledger.

    The call that the budget cannot pay for raises ``BudgetExhausted``, where it is made. The parameters, and what the
    caps mean, are those of ``BudgetMiddleware``, which ends an agent with its best answer, asks a person and keeps
    what was spent in the agent's state. Here each call begins with nothing spent, one that resumes a graph too: give
    ``shared`` where that matters.

    Args:
        runnable: a chain, a graph, an agent.
        budget: caps on one call of it.
        shared: limits that many calls share.
        prices: what models cost.
        max_tokens: what a model is taken to write at most where it names no cap.

    Raises:
        ConfigError: a parameter that cannot work; or, at a call, money is capped and the price is not known.

    Example:
        >>> from langchain_core.language_models import FakeListChatModel
        >>> with_budget(FakeListChatModel(responses=["42"]), {"tokens": 2_000}).invoke("What is 6 times 7?").text
        '42'
    """
    terms = terms_of("with_budget", budget, shared, prices, max_tokens)
    if not isinstance(runnable, Runnable):
        raise ConfigError(f"with_budget: runnable is {shown(runnable)}; give a chain, a graph or an agent of LangChain")

    def begin(_: RunnableConfig) -> RunnableConfig:
        scope = Scope(terms.budget, shared=terms.shared, prices=terms.prices, outer=ambient.current())
        return {"callbacks": list(payers(scope, terms.written))}

    return RunnableBinding(bound=runnable, config_factories=[begin])


def terms_of(who: str, budget: Any, shared: SharedBudget | None, prices: Any, max_tokens: int) -> Terms:
    """What was given, checked.

    Raises:
        ConfigError: a parameter that cannot work.
    """
    if budget is None and shared is None:
        raise ConfigError(f"{who}: there is no budget; give one such as RetryBudget.only(usd=0.5, calls=40), or shared")
    if isinstance(budget, Mapping):
        budget = RetryBudget.only(**{str(name): most for name, most in budget.items()})
    elif budget is None:
        budget = RetryBudget.only()
    instance(f"{who}: budget", budget, RetryBudget, "RetryBudget.only(usd=0.5, calls=40)")
    units = frozenset[str]()
    if shared is not None:
        instance(f"{who}: shared", shared, SharedBudget, "SharedBudget(store=MemoryStore(), limits=[...])")
        units = shared.units()
    if prices is not None and not isinstance(prices, (Price, Mapping)):
        raise ConfigError(
            f"{who}: prices is {shown(prices)}; give a Price, or a mapping such as {{'gpt-5-mini': Price(...)}}"
        )
    needed = budget.usd is not None or "usd" in units
    return Terms(budget, shared, Prices(prices, needed=needed), whole(f"{who}: max_tokens", max_tokens, least=1))
