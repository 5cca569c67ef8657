"""Where budgets that many runs share are kept: in memory for one process, in a database beyond one."""

from rfx_agent.stores.memory import MemoryStore
from rfx_agent.stores.policy import SQLPolicyStore
from rfx_agent.stores.sql import SQLStore

__all__ = ["MemoryStore", "SQLPolicyStore", "SQLStore"]
