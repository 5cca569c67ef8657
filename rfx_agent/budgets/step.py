"""The budget of one step: caps, and a ledger that is a value.

Reserve before dispatch, settle after. A reservation is the most that an action can cost, so nothing is ever
dispatched that the budget cannot pay for; what it really cost replaces the reservation when it is over. Work that
turned out dearer than was reserved is recorded in full and its result is kept: a valid answer is never thrown away
because it crossed the budget.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from rfx_agent.checks import MOST_SECONDS, number, shown, spelled, whole
from rfx_agent.errors import BudgetExhausted, ConfigError
from rfx_agent.records import Spend, Usage

__all__ = ["CAPS", "Ledger", "Price", "Purse", "RetryBudget"]

_INTEGER_CAPS = ("attempts", "samples", "tokens", "escalations", "calls")


_MEANT = {
    **dict.fromkeys(("retries", "max_retries", "n"), "samples="),
    **dict.fromkeys(("max_attempts", "tries"), "attempts="),
    **dict.fromkeys(("timeout", "time"), "seconds="),
    **dict.fromkeys(("cost", "dollars", "money"), "usd="),
}


@spelled("budget", _MEANT)
@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudget:
    """Caps on what one failing step may spend. Zero means zero, ``None`` means no cap.

    Attributes:
        attempts: candidate answers produced to be judged: rollouts, tool results, steered decodes.
        samples: completions asked of a model, those for the tool included.
        tokens: tokens read and written, by all layers.
        usd: US dollars; needs a price (see ``Price``), because an unknown price is not a free one.
        seconds: wall-clock seconds of work. A human's waiting time does not count.
        tool_seconds: seconds inside tools.
        escalations: cases put before a person.
        calls: requests to a server, transport retries included: one ledger for all layers that retry.
    """

    attempts: int | None = 12
    samples: int | None = 16
    tokens: int | None = 32_000
    usd: float | None = None
    seconds: float | None = 300.0
    tool_seconds: float | None = 30.0
    escalations: int | None = 1
    calls: int | None = 64

    def __post_init__(self) -> None:
        for cap in CAPS:
            value = getattr(self, cap)
            if value is None:
                continue
            if cap in _INTEGER_CAPS:
                whole(f"budget: {cap}", value)
            elif cap == "usd":
                number("budget: usd", value, least=0, unit="US dollars")
            else:
                number(f"budget: {cap}", value, least=0, most=MOST_SECONDS, unit="a number of seconds")

    @classmethod
    def of(cls, caps: Mapping[str, Any]) -> RetryBudget:
        """A budget from a mapping such as a configuration file; unknown names are a ``ConfigError``."""
        if not isinstance(caps, Mapping):
            raise ConfigError(f"budget: the caps are {shown(caps)}; give a mapping such as {{'samples': 6}}")
        unknown = sorted(set(caps) - set(CAPS), key=str)
        if unknown:
            raise ConfigError(f"budget: unknown cap {unknown[0]!r}; the caps are {', '.join(CAPS)}")
        return cls(**caps)

    @classmethod
    def only(cls, **caps: float | None) -> RetryBudget:
        """A budget with these caps and no others, as for a whole agent: the defaults are for one step.

        Example:
            >>> RetryBudget.only(usd=0.5, calls=40).tokens is None
            True
        """
        return cls.of({**dict.fromkeys(CAPS), **caps})


CAPS: tuple[str, ...] = tuple(f.name for f in fields(RetryBudget))
_AMOUNTS = tuple(f.name for f in fields(Spend))


@spelled("price", {"input": "prompt=", "output": "completion="})
@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a model's tokens cost.

    Attributes:
        prompt: US dollars per million tokens read.
        completion: US dollars per million tokens written.
    """

    prompt: float
    completion: float

    def __post_init__(self) -> None:
        for name in ("prompt", "completion"):
            number(f"price: {name}", getattr(self, name), least=0, unit="US dollars per million tokens,")

    def usd(self, usage: Usage) -> float:
        """Dollars for ``usage``."""
        return (usage.prompt_tokens * self.prompt + usage.completion_tokens * self.completion) / 1e6


@dataclass(frozen=True, slots=True)
class Ledger:
    """What one failing step has spent and set aside under its budget. A value: every operation returns a new one.

    Attributes:
        budget: the caps.
        spent: settled, cumulative, on success too.
        reserved: set aside for what is under way; zero when nothing is.
        by_model: the part of ``spent`` that went to models, by the model's name.
    """

    budget: RetryBudget = field(default_factory=RetryBudget)
    spent: Spend = Spend()
    reserved: Spend = Spend()
    by_model: Mapping[str, Spend] = field(default_factory=dict)

    def remaining(self) -> dict[str, int | float | None]:
        """Per cap what is neither spent nor reserved, at least 0; None where there is no cap."""
        return {
            cap: None
            if (limit := getattr(self.budget, cap)) is None
            else max(0, limit - getattr(self.spent, cap) - getattr(self.reserved, cap))
            for cap in CAPS
        }

    def shortfall(self, cost: Spend) -> tuple[str, ...]:
        """The caps that ``cost`` would cross, in the order of the budget's fields; empty when it can be paid."""
        return tuple(
            cap
            for cap, left in self.remaining().items()
            # Sums of floats: a billionth over the cap is rounding, not spending.
            if left is not None and (need := getattr(cost, cap)) > 0 and need > left + 1e-9
        )

    def affordable(self, each: Spend, base: Spend = Spend(), *, most: int) -> int:
        """The largest count of at most ``most`` for which ``base`` plus ``each`` that many times can be paid."""
        count = most
        for cap, left in self.remaining().items():
            unit = getattr(each, cap)
            if left is None or (unit <= 0 and getattr(base, cap) <= 0):
                continue
            room = left - getattr(base, cap) + 1e-9
            if room < 0:
                return 0
            if unit > 0:
                count = int(min(count, room // unit))
        return max(0, count)

    def reserve(self, cost: Spend) -> Ledger:
        """Set ``cost`` aside.

        Raises:
            BudgetExhausted: naming the caps that it would cross; nothing is set aside then.
        """
        if caps := self.shortfall(cost):
            left = self.remaining()
            detail = ", ".join(f"{cap} (needs {getattr(cost, cap):g}, {left[cap]:g} left)" for cap in caps)
            raise BudgetExhausted(f"the budget cannot pay for this: {detail}", caps=caps)
        return Ledger(self.budget, self.spent, self.reserved + cost, self.by_model)

    def settle(self, reserved: Spend, actual: Spend, model: str = "") -> Ledger:
        """Replace a reservation by what the action really cost, which may be more or less.

        Args:
            reserved: what was set aside.
            actual: what it cost.
            model: name of the model that was asked, or "".
        """
        left = Spend(*[max(0, getattr(self.reserved, name) - getattr(reserved, name)) for name in _AMOUNTS])
        charged = self.charge(actual, model)
        return Ledger(self.budget, charged.spent, left, charged.by_model)

    def charge(self, actual: Spend, model: str = "") -> Ledger:
        """Record a cost that could not be known before, such as the seconds a verifier took."""
        by_model = self.by_model
        if model and (actual.calls or actual.tokens):  # a lost try is charged by its tokens alone
            by_model = {**by_model, model: by_model.get(model, Spend()) + actual}
        return Ledger(self.budget, self.spent + actual, self.reserved, by_model)


class Purse:
    """A ledger that several callers share, behind a lock. Safe to call from any thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._lock = threading.Lock()
        self._ledger = ledger

    @property
    def ledger(self) -> Ledger:
        """As it is now."""
        return self._ledger

    def reserve(self, cost: Spend) -> tuple[str, ...]:
        """Set ``cost`` aside, or name the caps that it would cross and set nothing aside."""
        with self._lock:
            try:
                self._ledger = self._ledger.reserve(cost)
            except BudgetExhausted as refused:
                return refused.caps
            return ()

    def settle(self, reserved: Spend, actual: Spend, model: str = "") -> None:
        """Replace a reservation by what the action really cost."""
        with self._lock:
            self._ledger = self._ledger.settle(reserved, actual, model)

    def limit(self, budget: RetryBudget) -> None:
        """Put other caps in the place of these; what was spent stays."""
        with self._lock:
            self._ledger = replace(self._ledger, budget=budget)

    def charge(self, actual: Spend, model: str = "") -> None:
        """Record what was paid for elsewhere."""
        with self._lock:
            self._ledger = self._ledger.charge(actual, model)
