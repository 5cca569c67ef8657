"""What one call costs in a run's budget, and the clock that counts how long calls were under way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from rfx_agent.budgets.prices import Prices
from rfx_agent.budgets.shared import SharedBudget
from rfx_agent.records import Spend, Usage

__all__ = ["Charge", "Clock", "Key", "same_limits"]

Key: TypeAlias = tuple[Any, ...]


def same_limits(shared: SharedBudget) -> Key:
    """What tells one shared budget from another: calls that are charged in one are not charged in it again."""
    return id(shared.store), shared.limits, tuple(sorted(shared.scopes.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What a call costs, or may cost at most.

    Attributes:
        spend: everything but the time, which the scope's own clock counts; with the money where ``priced``.
        usage: the tokens, where it is known which were read and which written.
        model, provider: who is asked; "" where nobody is.
        priced: whether ``spend.usd`` is the price.
        tool: whether it is a tool.
        flight: whether it counts as a call in flight.
    """

    spend: Spend
    usage: Usage | None = None
    model: str = ""
    provider: str = ""
    priced: bool = False
    tool: bool = False
    flight: bool = True

    def at(self, prices: Prices) -> Spend:
        """With the money by ``prices``; ``ConfigError`` where money is capped and the price is not known."""
        if self.priced or not self.spend.tokens or (price := prices.of(self.model, self.provider)) is None:
            return self.spend
        if self.usage is not None:
            usd = price.usd(self.usage)
        else:
            usd = max(price.prompt, price.completion) * self.spend.tokens / 1e6
        return self.spend + Spend(usd=usd - self.spend.usd)


@dataclass(slots=True)
class Clock:
    """Seconds in which at least one call was under way."""

    under: int = 0
    since: float = 0.0

    def look(self, now: float, more: int) -> float:
        """Count ``more`` calls under way from ``now`` on; the seconds since the last look in which there was one."""
        passed = now - self.since if self.under else 0.0
        self.under, self.since = self.under + more, now
        return passed
