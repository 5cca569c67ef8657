"""Policies: diagnosis and ledger in, decision out. Pure, so that a decision can be replayed without a model."""

from rfx_agent.policies.base import Policy
from rfx_agent.policies.belief import Belief, seen_in
from rfx_agent.policies.default import DefaultPolicy
from rfx_agent.policies.fixed import FixedPolicy
from rfx_agent.policies.learned import LearnedPolicy
from rfx_agent.policies.population import PopulationPrior, RemedyPrior
from rfx_agent.policies.shadow import Difference, ShadowPolicy
from rfx_agent.policies.store import MemoryPolicyStore, PolicyStore
from rfx_agent.policies.worth import Worth

__all__ = [
    "Belief",
    "DefaultPolicy",
    "Difference",
    "FixedPolicy",
    "LearnedPolicy",
    "MemoryPolicyStore",
    "Policy",
    "PolicyStore",
    "PopulationPrior",
    "RemedyPrior",
    "ShadowPolicy",
    "Worth",
    "seen_in",
]
