"""The shared budget of our two peers, on the store that the plan names."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from rfx_agent import MemoryStore, SharedBudget, Window
from rfx_agent.budgets import store_at


def shared_budget(plan: dict[str, Any]) -> tuple[SharedBudget, Callable[[], Awaitable[float]]]:
    """The budget, and what says how much of its cap is spent and set aside."""
    url = plan.get(plan["variant"])
    store: Any = store_at(url) if url else MemoryStore()
    limit = Window("global", plan["unit"], plan["cap"], per="day")

    async def spent() -> float:
        (account,) = store.accounts()
        return (account.spent + account.reserved) / (1e9 if plan["unit"] == "usd" else 1)

    return SharedBudget(store=store, limits=(limit,), seconds=plan["expires"], wait=plan["wait"]), spent
