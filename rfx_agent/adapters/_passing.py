"""A step that passes at once costs a verdict and no more, where nobody would see the rest."""

from __future__ import annotations

from typing import Any

from rfx_agent._types import Rollout, Step
from rfx_agent.budgets import Ledger
from rfx_agent.engine import Flow, Recovery, Reply, verdict_call
from rfx_agent.policies import DefaultPolicy, FixedPolicy, LearnedPolicy

__all__ = ["asked", "free", "ours", "passed", "unseen"]

_POLICIES = (DefaultPolicy, FixedPolicy, LearnedPolicy)


def free(r: Recovery) -> bool:
    """Whether a verdict costs no model calls."""
    return getattr(r.verifier, "bound", None) is None


def ours(r: Recovery) -> bool:
    """Whether what passed is sure to be accepted: somebody else's policy need not do so."""
    return type(r.policy) in _POLICIES


def unseen(r: Recovery) -> bool:
    """Whether nobody would see the engine accept: no hook, no trace store, no shared budget that counts traffic."""
    return ours(r) and r.on_event is None and r.traces is None and r.shared is None


def asked(r: Recovery, step: Step, rollout: Rollout) -> Flow[tuple[Reply, ...] | None]:
    """The verdict on a first candidate, before there is a case; for ``resumed``, which spares the engine its call.

    None where the engine has to see to it: what a verdict costs is to be reserved in a shared budget, or more than
    the step's own can pay.
    """
    if not free(r):
        bound: Any = getattr(r.verifier, "bound", None)
        if r.shared is not None or Ledger(r.budget).shortfall(r.spend(bound(step, rollout))):
            return None
    return (yield (verdict_call(r, step, rollout, (rollout,)),))


def passed(replies: tuple[Reply, ...] | None) -> bool:
    """Whether the candidate was accepted."""
    return replies is not None and replies[0].error is None and bool(replies[0].value.passed)
