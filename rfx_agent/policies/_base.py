"""What every policy is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from rfx_agent._records import Decision, Diagnosis, Route
    from rfx_agent._types import Operator
    from rfx_agent.budgets import Ledger

__all__ = ["ROUTES", "Policy"]

ROUTES: dict[Operator, Route] = {
    "retry": "resample",
    "local_temp": "resample",
    "tool": "tool_verify",
    "sparse_steer": "steer",
    "sparse_steer_random": "steer",
    "dense_steer": "steer",
}
"""The graph's node for each operator."""


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
