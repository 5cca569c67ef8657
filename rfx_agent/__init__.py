"""Recovery for failed reasoning steps in LangGraph agents: diagnose, route, rescue, under a budget.

Importing this package loads neither a provider's SDK nor LangGraph; the names that need one load it when they are
first used. The names here are those that most programs need. The others are public by their module:
``rfx_agent.errors``, ``.records``, ``.policies``, ``.samplers``, ``.evidence``, ``.escalation``, ``.testing``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rfx_agent._lazy import lazily
from rfx_agent.budgets.limits import InFlight, Ratio, Window
from rfx_agent.budgets.shared import SharedBudget
from rfx_agent.budgets.step import Price, RetryBudget
from rfx_agent.case import Case, Outcome
from rfx_agent.errors import BudgetExhausted, ConfigError, RfxError, Unresolved
from rfx_agent.records import Rollout, SampleRequest, SampleResult, Step, Usage, Verdict
from rfx_agent.recovery import Escalation, Recovery

if TYPE_CHECKING:
    from rfx_agent.adapters.agent.middleware import RecoverabilityMiddleware
    from rfx_agent.adapters.budget.middleware import BudgetMiddleware
    from rfx_agent.adapters.budget.outcome import budget_of
    from rfx_agent.adapters.budget.wrap import with_budget
    from rfx_agent.adapters.chain.wrap import with_recovery
    from rfx_agent.adapters.graph.behind import add_recovery
    from rfx_agent.adapters.graph.node import recoverable
    from rfx_agent.adapters.graph.recovery_graph import outcome_of, recovery_graph, step_input
    from rfx_agent.budgets.memory import MemoryStore
    from rfx_agent.budgets.prices import price_of
    from rfx_agent.budgets.redis.store import RedisStore
    from rfx_agent.budgets.sql.store import SQLStore
    from rfx_agent.remedies.delegate import Delegate
    from rfx_agent.remedies.extend import Extend
    from rfx_agent.remedies.revise import Revise
    from rfx_agent.samplers.chat import ChatModelSampler
    from rfx_agent.samplers.local import LocalSampler
    from rfx_agent.samplers.openai import OpenAISampler
    from rfx_agent.tools.program import ProgramTool
    from rfx_agent.verifiers.function import FunctionVerifier
    from rfx_agent.verifiers.judge import JudgeVerifier
    from rfx_agent.verifiers.math import MathVerifier
    from rfx_agent.verifiers.schema import JsonSchemaVerifier, PydanticVerifier
    from rfx_agent.verifiers.text import ExactVerifier, RegexVerifier
    from rfx_agent.verifiers.unit_tests import TestsVerifier

__all__ = [
    "BudgetExhausted",
    "BudgetMiddleware",
    "Case",
    "ChatModelSampler",
    "ConfigError",
    "Delegate",
    "Escalation",
    "ExactVerifier",
    "Extend",
    "FunctionVerifier",
    "InFlight",
    "JsonSchemaVerifier",
    "JudgeVerifier",
    "LocalSampler",
    "MathVerifier",
    "MemoryStore",
    "OpenAISampler",
    "Outcome",
    "Price",
    "ProgramTool",
    "PydanticVerifier",
    "Ratio",
    "RecoverabilityMiddleware",
    "Recovery",
    "RedisStore",
    "RegexVerifier",
    "RetryBudget",
    "Revise",
    "RfxError",
    "Rollout",
    "SQLStore",
    "SampleRequest",
    "SampleResult",
    "SharedBudget",
    "Step",
    "TestsVerifier",
    "Unresolved",
    "Usage",
    "Verdict",
    "Window",
    "add_recovery",
    "budget_of",
    "outcome_of",
    "price_of",
    "recoverable",
    "recovery_graph",
    "step_input",
    "with_budget",
    "with_recovery",
]

_LAZY = {
    "BudgetMiddleware": "adapters.budget.middleware",
    "ChatModelSampler": "samplers.chat",
    "Delegate": "remedies.delegate",
    "ExactVerifier": "verifiers.text",
    "Extend": "remedies.extend",
    "FunctionVerifier": "verifiers.function",
    "JsonSchemaVerifier": "verifiers.schema",
    "JudgeVerifier": "verifiers.judge",
    "LocalSampler": "samplers.local",
    "MathVerifier": "verifiers.math",
    "MemoryStore": "budgets.memory",
    "OpenAISampler": "samplers.openai",
    "ProgramTool": "tools.program",
    "PydanticVerifier": "verifiers.schema",
    "RecoverabilityMiddleware": "adapters.agent.middleware",
    "RedisStore": "budgets.redis.store",
    "RegexVerifier": "verifiers.text",
    "Revise": "remedies.revise",
    "SQLStore": "budgets.sql.store",
    "TestsVerifier": "verifiers.unit_tests",
    "add_recovery": "adapters.graph.behind",
    "budget_of": "adapters.budget.outcome",
    "outcome_of": "adapters.graph.recovery_graph",
    "price_of": "budgets.prices",
    "recoverable": "adapters.graph.node",
    "recovery_graph": "adapters.graph.recovery_graph",
    "step_input": "adapters.graph.recovery_graph",
    "with_budget": "adapters.budget.wrap",
    "with_recovery": "adapters.chain.wrap",
}


__getattr__, __dir__ = lazily(__name__, _LAZY)
