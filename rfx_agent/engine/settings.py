"""What a deployment of recovery is made of: the parts, the limits, and their checks."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, Literal

from rfx_agent import ports
from rfx_agent.accepted import adopted, sampler_of, tool_of, verifier_of
from rfx_agent.budgets.shared import SharedBudget
from rfx_agent.budgets.step import Price, RetryBudget
from rfx_agent.checks import MOST_SECONDS, among, flags, instance, number, share, shown, spelled, whole
from rfx_agent.errors import ConfigError
from rfx_agent.escalation.notify import Notifier, Notify, notifier_of
from rfx_agent.events import Event
from rfx_agent.evidence.calibration import Calibration
from rfx_agent.evidence.opinions import CORRELATION, RightRates
from rfx_agent.policies.base import Policy
from rfx_agent.policies.default import DefaultPolicy
from rfx_agent.records import REMEDY_NAME

__all__ = ["MEANT", "Escalation", "Settings"]

MEANT = {
    "llm": "sampler=",
    "model": "sampler=",
    "check": "verifier=",
    "tools": "tool=, one tool,",
    **dict.fromkeys(("max_retries", "retries", "max_attempts", "attempts"), "budget=RetryBudget(samples=...)"),
}
"""What to write in place of a parameter that ``Recovery`` does not have."""


@spelled("escalation")
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
            number(
                "escalation: deadline",
                self.deadline,
                above=0,
                unit="None to wait for ever, or seconds",
                most=MOST_SECONDS,
            )
        among("escalation: default", self.default, ("approve", "reject"))
        callable_ = isinstance(self.notify, Notifier) or callable(self.notify)
        if self.notify is not None and (isinstance(self.notify, type) or not callable_):
            raise ConfigError(
                f"escalation: notify is {shown(self.notify)}; give a function of the payload, or a Notifier"
            )


@spelled("recovery", MEANT)
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
    right_rates: RightRates = field(default_factory=RightRates, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, taken in _PORTS.items():
            value = getattr(self, name)
            if value is not None or name == "verifier":
                object.__setattr__(self, name, taken(value, where=f"recovery: {name}"))
        for name, (kind, give) in _KINDS.items():
            value = getattr(self, name)
            if value is not None or name not in _MAY_BE_NONE:
                instance(f"recovery: {name}", value, kind, give)
        _function("on_event", self.on_event, "a plain function of one rfx_agent.events.Event, or None", none=True)
        _function("clock", self.clock, "a function that returns Unix time in seconds, such as time.time")
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
        flags("recovery", hold_first=self.hold_first)
        if self.seed is not None:
            whole("recovery: seed", self.seed)
        for name in ("concurrency", "max_tokens"):
            whole(f"recovery: {name}", getattr(self, name), least=1)
        for name in ("temperature", "tool_temperature"):
            number(f"recovery: {name}", getattr(self, name), least=0)
        if self.verdict_seconds is not None:
            number(
                "recovery: verdict_seconds",
                self.verdict_seconds,
                above=0,
                unit="None for no limit, or seconds",
                most=MOST_SECONDS,
            )
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
        raise ConfigError(f"recovery: remedies is {shown(given)}; give a list such as [Retry(), Revise()]")
    made: dict[str, ports.Remedy] = {}
    for value in given:
        named = value.__name__ if isinstance(value, type) else value.title() if isinstance(value, str) else ""
        if named.isidentifier():
            raise ConfigError(
                f"recovery: a remedy is {shown(value)}; give an instance of rfx_agent.remedies, such as {named}()"
            )
        remedy = adopted(ports.Remedy, value, where="recovery: a remedy")  # type: ignore[type-abstract]
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


def _port(port: Any) -> Callable[..., Any]:
    return partial(adopted, port)


_PORTS: dict[str, Callable[..., Any]] = {
    "sampler": sampler_of,
    "verifier": verifier_of,
    "second_opinion": verifier_of,
    "tool": tool_of,
    "scorer": _port(ports.Scorer),
    "steerer": _port(ports.Steerer),
    "escalator": _port(ports.Escalator),
    "traces": _port(ports.TraceStore),
}
_KINDS: dict[str, tuple[type, str]] = {
    "policy": (Policy, "an instance with the members of rfx_agent.policies.Policy, such as policies.DefaultPolicy()"),
    "right_rates": (RightRates, "the right_rates of another Recovery, or leave it out"),
    "calibration": (Calibration, "a Calibration, such as Calibration.published() or Calibration.load(path)"),
    "budget": (RetryBudget, "a RetryBudget, such as RetryBudget(samples=6)"),
    "shared": (SharedBudget, "a SharedBudget of a store and its limits"),
    "price": (Price, "price_of(the model's name), or a Price such as Price(prompt=2.5, completion=10)"),
    "escalation": (Escalation, "an Escalation, such as Escalation(deadline=3600)"),
}
_MAY_BE_NONE = ("shared", "price")


def _function(name: str, value: Any, give: str, *, none: bool = False) -> None:
    if value is None and none:
        return
    if not callable(value) or inspect.iscoroutinefunction(value):  # nobody would wait for a coroutine
        raise ConfigError(f"recovery: {name} is {shown(value)}; give {give}")
