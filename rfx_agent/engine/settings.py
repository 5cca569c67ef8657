"""What a deployment of recovery is made of: the parts, the limits, and their checks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

from rfx_agent import ports
from rfx_agent.budgets.shared import SharedBudget
from rfx_agent.budgets.step import Price, RetryBudget
from rfx_agent.checks import among, number, share, whole
from rfx_agent.errors import ConfigError
from rfx_agent.escalation.notify import Notifier, Notify, notifier_of
from rfx_agent.events import Event
from rfx_agent.evidence.calibration import Calibration
from rfx_agent.evidence.opinions import CORRELATION, RightRates
from rfx_agent.policies.base import Policy
from rfx_agent.policies.default import DefaultPolicy
from rfx_agent.records import REMEDY_NAME

__all__ = ["Escalation", "Settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Escalation:
    """How a person is asked.

    Attributes:
        deadline: seconds that a case stays open, or None for ever.
        default: what applies when nobody answered in time: ``reject``, or ``approve`` for the proposed answer, if
            the verifier found an answer in it. It is applied when the case is next looked at, and once.
        notify: called when a case opens: a function of what the person will be shown, sync or async, or a
            ``Notifier`` such as ``rfx_agent.escalation.Webhook``. A notification that fails is a note of the case.
    """

    deadline: float | None = 86_400.0
    default: Literal["approve", "reject"] = "reject"
    notify: Notify | None = None

    @property
    def notifier(self) -> Notifier | None:
        """``notify``, with both its sides."""
        return None if self.notify is None else notifier_of(self.notify)

    def __post_init__(self) -> None:
        if self.deadline is not None:
            number("escalation: deadline", self.deadline, above=0, unit="None to wait for ever, or seconds")
        among("escalation: default", self.default, ("approve", "reject"))
        callable_ = isinstance(self.notify, Notifier) or callable(self.notify)
        if self.notify is not None and (isinstance(self.notify, type) or not callable_):
            raise ConfigError(f"escalation: notify is {self.notify!r}; give a function of the payload, or a Notifier")


@dataclass(frozen=True, slots=True)
class Settings:
    """The fields of ``rfx_agent.Recovery``, where they are documented, and their checks.

    The engine reads them here, so that it need not know ``Recovery``, which runs the engine.
    """

    sampler: ports.Sampler | None = None
    verifier: ports.Verifier = None  # type: ignore[assignment]  # required; __post_init__ says so by name
    _: KW_ONLY
    remedies: Sequence[ports.Remedy] | None = None
    tool: ports.Tool | None = None
    scorer: ports.Scorer | None = None
    steerer: ports.Steerer | None = None
    escalator: ports.Escalator | None = None
    policy: Policy = field(default_factory=DefaultPolicy)
    calibration: Calibration = field(default_factory=Calibration.published)
    budget: RetryBudget = field(default_factory=RetryBudget)
    shared: SharedBudget | None = None
    price: Price | None = None
    accept: float = 0.9
    hold_first: bool = False
    second_opinion: ports.Verifier | None = None
    correlation: float = CORRELATION
    unconfirmed: Literal["return", "unresolved"] = "return"
    extra_samples: int | None = None
    concurrency: int = 1
    temperature: float = 0.6
    tool_temperature: float = 0.6
    max_tokens: int = 512
    verdict_seconds: float | None = 60.0
    seed: int | None = None
    escalation: Escalation = field(default_factory=Escalation)
    on_event: Callable[[Event], None] | None = None
    traces: ports.TraceStore | None = None
    clock: Callable[[], float] = time.time
    right_rates: RightRates = field(default_factory=RightRates, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, port in _PORTS.items():
            value = getattr(self, name)
            if value is not None or name == "verifier":
                adopted = ports.adopted(port, value, where=f"recovery: {name}")
                object.__setattr__(self, name, adopted)
        if isinstance(self.policy, type) or not isinstance(self.policy, Policy):
            raise ConfigError(
                f"recovery: policy is {self.policy!r}; give an instance with the members of rfx_agent.policies.Policy"
            )
        if self.remedies is not None:
            object.__setattr__(self, "remedies", _remedies(self.remedies))
        if self.extra_samples is not None:
            whole("recovery: extra_samples", self.extra_samples)
        share("recovery: accept", self.accept)
        if self.second_opinion is not None and self.second_opinion.needs_peers:
            raise ConfigError(
                f"recovery: second_opinion is {self.second_opinion!r}, which compares answers with each other; give a "
                "verifier that judges one answer"
            )
        if self.second_opinion is not None and self.second_opinion.name == self.verifier.name:
            raise ConfigError(
                f"recovery: verifier and second_opinion are both called {self.verifier.name!r}; two opinions of one "
                "verifier are one opinion. If they are two, give one of them a name="
            )
        share("recovery: correlation", self.correlation)
        among("recovery: unconfirmed", self.unconfirmed, ("return", "unresolved"))
        among("recovery: hold_first", self.hold_first, (True, False))
        for name in ("concurrency", "max_tokens"):
            whole(f"recovery: {name}", getattr(self, name), least=1)
        for name in ("temperature", "tool_temperature"):
            number(f"recovery: {name}", getattr(self, name), least=0)
        if self.verdict_seconds is not None:
            number("recovery: verdict_seconds", self.verdict_seconds, above=0, unit="None for no limit, or seconds")
        if self.shared is not None and not isinstance(self.shared, SharedBudget):
            raise ConfigError(f"recovery: shared is {self.shared!r}; give a SharedBudget of a store and its limits")
        money = None if self.budget.usd is None else f"budget.usd is {self.budget.usd}"
        if self.shared is not None and "usd" in self.shared.units():
            money = "shared limits usd"
        if money is not None and self.price is None:
            raise ConfigError(
                f"recovery: {money} but price is None; give price_of(the model's name) or a Price, because an unknown "
                "price is not a free one"
            )
        for remedy in self.remedies or ():
            # A remedy that brings a model of its own has a price of its own, or the ledger would lie.
            if getattr(remedy, "sampler", None) is None:
                continue
            theirs = getattr(remedy, "price", None)
            if (self.price is None) != (theirs is None):
                mine, other = ("the recovery", f"remedy {remedy.name}") if theirs is None else (
                    f"remedy {remedy.name}", "the recovery")  # fmt: skip
                raise ConfigError(
                    f"recovery: {mine} has a price and {other} has none, so that the two could not be compared; give "
                    "both price=price_of(the model's name), or a Price, of 0 for a model that costs nothing"
                )


def _remedies(given: Sequence[ports.Remedy]) -> tuple[ports.Remedy, ...]:
    if not isinstance(given, (list, tuple)):
        raise ConfigError(f"recovery: remedies is {given!r}; give a list such as [Retry(), Revise()]")
    made: dict[str, ports.Remedy] = {}
    for value in given:
        remedy = ports.adopted(ports.Remedy, value, where="recovery: a remedy")  # type: ignore[type-abstract]
        for what, name in (("name", remedy.name), ("node", remedy.node or remedy.name)):
            if not isinstance(name, str) or not REMEDY_NAME.fullmatch(name) or name in _TAKEN:
                raise ConfigError(
                    f"recovery: the {what} of remedy {value!r} is {name!r}; give one of [a-z0-9_] that is none of "
                    f"{', '.join(_TAKEN)}"
                )
        if remedy.name in made:
            raise ConfigError(f"recovery: two remedies are called {remedy.name!r}; give each a name of its own")
        made[remedy.name] = remedy
    return tuple(made.values())


_TAKEN = ("accept", "diagnose", "escalate", "human", "__start__", "__end__")
_PORTS: dict[str, Any] = {
    "sampler": ports.Sampler,
    "verifier": ports.Verifier,
    "second_opinion": ports.Verifier,
    "tool": ports.Tool,
    "scorer": ports.Scorer,
    "steerer": ports.Steerer,
    "escalator": ports.Escalator,
    "traces": ports.TraceStore,
}
