"""Policies: diagnosis and ledger in, decision out. Pure, so that a decision can be replayed without a model."""

from rfx_agent.policies._base import Policy
from rfx_agent.policies.default import DefaultPolicy
from rfx_agent.policies.fixed import FixedPolicy

__all__ = ["DefaultPolicy", "FixedPolicy", "Policy"]
