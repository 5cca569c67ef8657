"""What every policy is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from rfx_agent.case import Decision, Diagnosis

if TYPE_CHECKING:
    from rfx_agent.budgets.step import Ledger

__all__ = ["Policy", "draft", "settled"]


@runtime_checkable
class Policy(Protocol):
    """Decides what the next token of budget should buy."""

    @property
    def version(self) -> str:
        """Name and version, written into every decision so that logs can be told apart."""
        ...

    def decide(self, diagnosis: Diagnosis, ledger: Ledger) -> Decision:
        """The next route. Pure: the same arguments give the same decision."""
        ...


def draft(
    policy: Policy,
    diagnosis: Diagnosis,
    ledger: Ledger,
    route: str,
    remedy: str | None,
    reason: str,
    sentence: str,
    *,
    expected: Mapping[Any, float] | None = None,
    **more: Any,
) -> Decision:
    """A decision with what it rested on copied from the diagnosis and the ledger.

    Args:
        policy: whose decision it is.
        diagnosis: what was known.
        ledger: what was left.
        route, remedy, reason, sentence: see ``Decision``.
        expected: expected rescue; kept for the remedies that can be carried out.
        more: further fields of ``Decision``.
    """
    return Decision(
        route=route,
        remedy=remedy,
        regime=more.pop("regime", None),
        reason=reason,
        sentence=sentence,
        policy=policy.version,
        evidence=diagnosis.evidence,
        features=diagnosis.features,
        z=diagnosis.z,
        posterior=diagnosis.posterior,
        kinds=diagnosis.kinds,
        kind=diagnosis.kind,
        told=diagnosis.told,
        expected={op: p for op, p in (expected or {}).items() if op in diagnosis.cost},
        budget_before=ledger.remaining(),
        **more,
    )


def settled(policy: Policy, diagnosis: Diagnosis, ledger: Ledger) -> Decision | None:
    """The decision that no policy has a say in: what passed is accepted, and a model out of reach is asked no more."""
    if diagnosis.passed is not None:
        sentence = f"{diagnosis.passed} passed its verifier."
        return draft(policy, diagnosis, ledger, "accept", None, "passed", sentence)
    if diagnosis.blocked and not diagnosis.cost:
        reason = diagnosis.blocked_by or "sampler_error"
        return draft(policy, diagnosis, ledger, "escalate", "human", reason, diagnosis.blocked)
    return None
