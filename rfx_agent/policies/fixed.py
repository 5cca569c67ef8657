"""A fixed sequence of remedies: the baseline that every other policy is held against."""

from __future__ import annotations

from dataclasses import dataclass, field

from rfx_agent.budgets.step import Ledger
from rfx_agent.case import Decision, Diagnosis
from rfx_agent.errors import ConfigError
from rfx_agent.policies.base import ROUTES, draft, settled

__all__ = ["FixedPolicy"]


@dataclass(frozen=True, slots=True)
class FixedPolicy:
    """Accept what passes, else the next remedy of a sequence, round and round, until the budget is spent.

    Attributes:
        remedies: the sequence; ``("retry",)`` is plain retry.
        lifted_temperature: decode temperature of ``local_temp``.
    """

    remedies: tuple[str, ...] = ("retry",)
    lifted_temperature: float = 1.0
    version: str = field(default="", init=False)

    def __post_init__(self) -> None:
        unknown = [op for op in self.remedies if op not in ROUTES]
        if unknown or not self.remedies:
            raise ConfigError(f"policy: remedies is {self.remedies!r}; give a sequence out of {', '.join(ROUTES)}")
        object.__setattr__(self, "version", f"fixed:{'+'.join(self.remedies)}/1")

    def decide(self, diagnosis: Diagnosis, ledger: Ledger) -> Decision:
        """The next remedy of the sequence that this deployment has and can pay for."""
        if (decision := settled(self, diagnosis, ledger)) is not None:
            return decision
        had = [op for op in self.remedies if op in diagnosis.cost]
        if not had:
            sentence = "No remedy of the sequence is available."
            return draft(self, diagnosis, ledger, "escalate", "human", "no_route", sentence)
        turn = sum(diagnosis.tried.get(op, 0) for op in dict.fromkeys(had))
        remedy = had[turn % len(had)]
        if short := ledger.shortfall(diagnosis.cost[remedy]):
            reason, sentence = f"budget:{short[0]}", f"The budget has too few {short[0]} left."
            return draft(self, diagnosis, ledger, "escalate", "human", reason, sentence)
        heat = self.lifted_temperature if remedy == "local_temp" else None
        reason, sentence = f"fixed:{remedy}", f"Next in turn: {remedy}."
        return draft(self, diagnosis, ledger, ROUTES[remedy], remedy, reason, sentence, temperature=heat)
