"""What may be spent: the caps and the ledger of one step, and the limits that many runs share.

``SQLStore`` needs the extra ``production``; it is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rfx_agent._lazy import lazily
from rfx_agent.budgets.limits import InFlight, Ratio, Window
from rfx_agent.budgets.memory import MemoryStore
from rfx_agent.budgets.shared import SharedBudget
from rfx_agent.budgets.step import Ledger, Price, RetryBudget

if TYPE_CHECKING:
    from rfx_agent.budgets.prices import price_of
    from rfx_agent.budgets.sql.store import SQLStore

__all__ = [
    "InFlight",
    "Ledger",
    "MemoryStore",
    "Price",
    "Ratio",
    "RetryBudget",
    "SQLStore",
    "SharedBudget",
    "Window",
    "price_of",
]


__getattr__, __dir__ = lazily(__name__, {"SQLStore": "sql.store", "price_of": "prices"})
