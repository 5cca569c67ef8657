"""Recovery for failed reasoning steps in LangGraph agents: diagnose, route, rescue, under a budget.

Importing this package loads neither a provider's SDK nor LangGraph; the names that need one load it when they are
first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rfx_agent._errors import (
    BudgetExhausted,
    CalibrationError,
    CircuitOpen,
    ConfigError,
    EscalationError,
    FeatureError,
    RfxError,
    SamplerError,
    SamplerTimeout,
    StoreError,
    TokenizerMismatch,
    ToolError,
    ToolInputError,
    Unresolved,
    VerifierError,
    WeightsCorrupt,
    WeightsError,
)
from rfx_agent._records import Decision, Diagnosis
from rfx_agent._types import Rollout, SampleRequest, SampleResult, ScoreResult, Step, Usage, Verdict
from rfx_agent.budgets import Ledger, Price, RetryBudget
from rfx_agent.calibration import Calibration
from rfx_agent.case import Case, Outcome
from rfx_agent.engine import Escalation, Recovery
from rfx_agent.limits import InFlight, Ratio, Window
from rfx_agent.policies import DefaultPolicy, FixedPolicy, LearnedPolicy, ShadowPolicy, Worth
from rfx_agent.routing import RoutingRule, route
from rfx_agent.shared import SharedBudget

if TYPE_CHECKING:
    from rfx_agent.adapters.langchain import ChatModelSampler
    from rfx_agent.adapters.langgraph import outcome_of, recovery_graph, step_input
    from rfx_agent.adapters.middleware import RecoverabilityMiddleware
    from rfx_agent.adapters.node import add_recovery, recoverable
    from rfx_agent.adapters.overdue import aclose_overdue, close_overdue
    from rfx_agent.adapters.wrap import with_recovery
    from rfx_agent.backends.breaker import CircuitBreaker
    from rfx_agent.backends.local import LocalSampler
    from rfx_agent.backends.openai import OpenAISampler
    from rfx_agent.backends.prefix import PrefixSteerer
    from rfx_agent.backends.transformers import (
        CausalModel,
        TransformersSampler,
        TransformersScorer,
        TransformersSteerer,
    )
    from rfx_agent.backends.vllm import VLLMScorer, vllm_sampler
    from rfx_agent.escalation.webhook import Webhook
    from rfx_agent.prices import price_of
    from rfx_agent.stores import MemoryStore, SQLStore
    from rfx_agent.tools import LangChainTool, ProgramTool
    from rfx_agent.verifiers import (
        AgreementVerifier,
        ExactVerifier,
        FunctionVerifier,
        JsonSchemaVerifier,
        JudgeVerifier,
        MathVerifier,
        PydanticVerifier,
        RegexVerifier,
    )

__all__ = [
    "AgreementVerifier",
    "BudgetExhausted",
    "Calibration",
    "CalibrationError",
    "Case",
    "CausalModel",
    "ChatModelSampler",
    "CircuitBreaker",
    "CircuitOpen",
    "ConfigError",
    "Decision",
    "DefaultPolicy",
    "Diagnosis",
    "Escalation",
    "EscalationError",
    "ExactVerifier",
    "FeatureError",
    "FixedPolicy",
    "FunctionVerifier",
    "InFlight",
    "JsonSchemaVerifier",
    "JudgeVerifier",
    "LangChainTool",
    "LearnedPolicy",
    "Ledger",
    "LocalSampler",
    "MathVerifier",
    "MemoryStore",
    "OpenAISampler",
    "Outcome",
    "PrefixSteerer",
    "Price",
    "ProgramTool",
    "PydanticVerifier",
    "Ratio",
    "RecoverabilityMiddleware",
    "Recovery",
    "RegexVerifier",
    "RetryBudget",
    "RfxError",
    "Rollout",
    "RoutingRule",
    "SQLStore",
    "SampleRequest",
    "SampleResult",
    "SamplerError",
    "SamplerTimeout",
    "ScoreResult",
    "ShadowPolicy",
    "SharedBudget",
    "Step",
    "StoreError",
    "TokenizerMismatch",
    "ToolError",
    "ToolInputError",
    "TransformersSampler",
    "TransformersScorer",
    "TransformersSteerer",
    "Unresolved",
    "Usage",
    "VLLMScorer",
    "Verdict",
    "VerifierError",
    "Webhook",
    "WeightsCorrupt",
    "WeightsError",
    "Window",
    "Worth",
    "aclose_overdue",
    "add_recovery",
    "close_overdue",
    "outcome_of",
    "price_of",
    "recoverable",
    "recovery_graph",
    "route",
    "step_input",
    "vllm_sampler",
    "with_recovery",
]

_LAZY = {
    "AgreementVerifier": "verifiers",
    "CircuitBreaker": "backends.breaker",
    "CausalModel": "backends.transformers",
    "ChatModelSampler": "adapters.langchain",
    "ExactVerifier": "verifiers",
    "FunctionVerifier": "verifiers",
    "JsonSchemaVerifier": "verifiers",
    "JudgeVerifier": "verifiers",
    "LangChainTool": "tools",
    "LocalSampler": "backends.local",
    "MathVerifier": "verifiers",
    "MemoryStore": "stores",
    "OpenAISampler": "backends.openai",
    "PrefixSteerer": "backends.prefix",
    "ProgramTool": "tools",
    "PydanticVerifier": "verifiers",
    "RecoverabilityMiddleware": "adapters.middleware",
    "RegexVerifier": "verifiers",
    "SQLStore": "stores",
    "TransformersSampler": "backends.transformers",
    "TransformersScorer": "backends.transformers",
    "TransformersSteerer": "backends.transformers",
    "VLLMScorer": "backends.vllm",
    "Webhook": "escalation.webhook",
    "aclose_overdue": "adapters.overdue",
    "add_recovery": "adapters.node",
    "close_overdue": "adapters.overdue",
    "outcome_of": "adapters.langgraph",
    "price_of": "prices",
    "recoverable": "adapters.node",
    "recovery_graph": "adapters.langgraph",
    "step_input": "adapters.langgraph",
    "vllm_sampler": "backends.vllm",
    "with_recovery": "adapters.wrap",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"rfx_agent.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
