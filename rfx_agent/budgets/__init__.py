"""What may be spent: the caps and the ledger of one step, and the limits that many runs share.

``SQLStore`` needs the extra ``production`` and ``RedisStore`` the extra ``redis``; they are loaded when they are first
used. ``store_at`` makes the one that a URL is for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rfx_agent._lazy import lazily
from rfx_agent.budgets.limits import InFlight, Ratio, Window
from rfx_agent.budgets.memory import MemoryStore
from rfx_agent.budgets.shared import SharedBudget
from rfx_agent.budgets.step import Ledger, Price, RetryBudget

if TYPE_CHECKING:
    from rfx_agent.budgets.at import store_at
    from rfx_agent.budgets.prices import price_of
    from rfx_agent.budgets.redis.store import RedisStore
    from rfx_agent.budgets.sql.store import SQLStore

__all__ = [
    "InFlight",
    "Ledger",
    "MemoryStore",
    "Price",
    "Ratio",
    "RedisStore",
    "RetryBudget",
    "SQLStore",
    "SharedBudget",
    "Window",
    "price_of",
    "store_at",
]

_LAZY = {"RedisStore": "redis.store", "SQLStore": "sql.store", "price_of": "prices", "store_at": "at"}

__getattr__, __dir__ = lazily(__name__, _LAZY)
