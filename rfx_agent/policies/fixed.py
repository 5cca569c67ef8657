"""A fixed sequence of operators: the baseline that every other policy is held against."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

from rfx_agent._errors import ConfigError
from rfx_agent._records import Decision, Diagnosis
from rfx_agent._types import Operator
from rfx_agent.budgets import Ledger
from rfx_agent.policies._base import ROUTES, draft, settled

__all__ = ["FixedPolicy"]


@dataclass(frozen=True, slots=True)
class FixedPolicy:
    """Accept what passes, else the next operator of a sequence, round and round, until the budget is spent.

    Attributes:
        operators: the sequence; ``("retry",)`` is plain retry.
        lifted_temperature: decode temperature of ``local_temp``.
    """

    operators: tuple[Operator, ...] = ("retry",)
    lifted_temperature: float = 1.0
    version: str = field(default="", init=False)

    def __post_init__(self) -> None:
        unknown = [op for op in self.operators if op not in ROUTES]
        if unknown or not self.operators:
            raise ConfigError(
                f"policy: operators is {self.operators!r}; give a sequence out of "
                f"{', '.join(op for op in get_args(Operator) if op in ROUTES)}"
            )
        object.__setattr__(self, "version", f"fixed:{'+'.join(self.operators)}/1")

    def decide(self, diagnosis: Diagnosis, ledger: Ledger) -> Decision:
        """The next operator of the sequence that this deployment has and can pay for."""
        if (decision := settled(self, diagnosis, ledger)) is not None:
            return decision
        had = [op for op in self.operators if op in diagnosis.cost]
        if not had:
            sentence = "No operator of the sequence is to be had."
            return draft(self, diagnosis, ledger, "escalate", "human", "no_route", sentence)
        turn = sum(diagnosis.tried.get(op, 0) for op in dict.fromkeys(had))
        operator = had[turn % len(had)]
        if short := ledger.shortfall(diagnosis.cost[operator]):
            reason, sentence = f"budget:{short[0]}", f"The budget has too few {short[0]} left."
            return draft(self, diagnosis, ledger, "escalate", "human", reason, sentence)
        heat = self.lifted_temperature if operator == "local_temp" else None
        reason, sentence = f"fixed:{operator}", f"Next in turn: {operator}."
        return draft(self, diagnosis, ledger, ROUTES[operator], operator, reason, sentence, temperature=heat)
