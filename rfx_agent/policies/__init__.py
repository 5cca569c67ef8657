"""Policies: diagnosis and ledger in, decision out. Pure, so that a decision can be replayed without a model."""

from rfx_agent.policies._base import Policy
from rfx_agent.policies._belief import Belief
from rfx_agent.policies._population import OperatorPrior, PopulationPrior
from rfx_agent.policies._seen import seen_in
from rfx_agent.policies._store import MemoryPolicyStore, PolicyStore
from rfx_agent.policies._worth import Worth
from rfx_agent.policies.default import DefaultPolicy
from rfx_agent.policies.fixed import FixedPolicy
from rfx_agent.policies.learned import LearnedPolicy
from rfx_agent.policies.shadow import Difference, ShadowPolicy

__all__ = [
    "Belief",
    "DefaultPolicy",
    "Difference",
    "FixedPolicy",
    "LearnedPolicy",
    "MemoryPolicyStore",
    "OperatorPrior",
    "Policy",
    "PolicyStore",
    "PopulationPrior",
    "ShadowPolicy",
    "Worth",
    "seen_in",
]
