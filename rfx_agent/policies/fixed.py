"""A fixed sequence of remedies: the baseline that every other policy is held against."""

from __future__ import annotations

from dataclasses import dataclass, field

from rfx_agent.budgets.step import Ledger
from rfx_agent.case import Decision, Diagnosis
from rfx_agent.errors import ConfigError
from rfx_agent.policies.base import draft, settled
from rfx_agent.records import REMEDY_NAME

__all__ = ["FixedPolicy"]


@dataclass(frozen=True, slots=True)
class FixedPolicy:
    """Accept what passes, else the next remedy of a sequence, round and round, until the budget is spent.

    Attributes:
        remedies: the sequence; ``("retry",)`` is plain retry. One that is not available for a failure is left out.
    """

    remedies: tuple[str, ...] = ("retry",)
    version: str = field(default="", init=False)

    def __post_init__(self) -> None:
        given = self.remedies
        named = isinstance(given, (tuple, list)) and all(isinstance(x, str) and REMEDY_NAME.fullmatch(x) for x in given)
        if not named or not given:
            raise ConfigError(f"policy: remedies is {given!r}; give a sequence of remedies' names, such as ('retry',)")
        object.__setattr__(self, "version", f"fixed:{'+'.join(given)}/1")

    def decide(self, diagnosis: Diagnosis, ledger: Ledger) -> Decision:
        """The next remedy of the sequence that is available and can be paid for."""
        if (decision := settled(self, diagnosis, ledger)) is not None:
            return decision
        had = [name for name in self.remedies if name in diagnosis.cost]
        if not had:
            sentence = "No remedy of the sequence is available."
            return draft(self, diagnosis, ledger, "escalate", "human", "no_route", sentence)
        remedy = had[diagnosis.turn % len(had)]
        if short := ledger.shortfall(diagnosis.cost[remedy]):
            reason, sentence = f"budget:{short[0]}", f"The budget has too few {short[0]} left."
            return draft(self, diagnosis, ledger, "escalate", "human", reason, sentence)
        reason, sentence = f"fixed:{remedy}", f"Next in turn: {remedy}."
        return draft(self, diagnosis, ledger, diagnosis.nodes[remedy], remedy, reason, sentence)
