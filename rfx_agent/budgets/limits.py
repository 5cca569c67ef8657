"""Limits that many runs share: sliding windows, ratios to normal traffic, and recoveries in flight.

A limit is configuration; against the scopes of a run (``{"tenant": "acme", "agent": "solver"}``) it becomes a
``Claim`` on one account of a ``ports.BudgetStore``. Amounts travel as integers, so that what was reserved and given
back sums to exactly zero: whole attempts and tokens, and billionths of a dollar.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from rfx_agent.checks import MOST_SECONDS, among, number, shown, spelled, whole
from rfx_agent.errors import ConfigError
from rfx_agent.records import Spend

__all__ = [
    "Account",
    "Claim",
    "Grant",
    "InFlight",
    "Limit",
    "Ratio",
    "Refused",
    "Replayed",
    "Reservation",
    "Unit",
    "Window",
    "accounts_of",
    "amount_of",
    "claims_of",
]

Unit: TypeAlias = Literal["attempts", "tokens", "usd", "escalations"]
Kind: TypeAlias = Literal["window", "ratio", "in_flight"]

_PERIODS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86_400.0}
_NANO = 10**9


@spelled("limit: Window")
@dataclass(frozen=True, slots=True)
class Window:
    """At most ``most`` of ``unit`` within any stretch of ``per``: sliding, never a calendar hour.

    Attributes:
        scope: name of the scope, such as ``"tenant"``; ``"global"`` is every run's.
        unit: what is counted: ``attempts``, ``tokens``, ``usd`` or ``escalations``.
        most: how much; zero means zero. US dollars for ``usd``.
        per: ``"second"``, ``"minute"``, ``"hour"``, ``"day"``, or seconds.
        key: one key of the scope. This limit then takes the place of the one for every key. None for every key.

    Example:
        >>> Window("tenant", "usd", 5.00, per="day").seconds
        86400.0
    """

    scope: str
    unit: Unit
    most: float
    per: str | float
    key: str | None = None

    def __post_init__(self) -> None:
        _check(self, "most", "per")

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return _seconds(self.per)


@spelled("limit: Ratio")
@dataclass(frozen=True, slots=True)
class Ratio:
    """Recovery may spend ``share`` of what normal traffic spent within the last ``per``, and ``floor`` besides.

    Normal traffic is every step's first draw or candidate, whether it passed or not. Credit that is older than
    ``per`` has expired. As the retry budgets of Finagle and Envoy, over any unit.

    Attributes:
        scope, unit, key: see ``Window``.
        share: 0.2 lets recovery spend a fifth of what normal traffic does.
        floor: what may be spent per ``per`` with no traffic at all, so that a quiet service can recover.
        per: how long credit lasts: see ``Window``.

    Example:
        >>> Ratio("model", "tokens", share=0.2, floor=20_000, per="minute").seconds
        60.0
    """

    scope: str
    unit: Unit
    share: float
    floor: float
    per: str | float = 60.0
    key: str | None = None

    def __post_init__(self) -> None:
        _check(self, "share", "floor", "per")
        if self.unit == "escalations":
            raise ConfigError("limit: a Ratio of escalations has no normal traffic to be a share of; give a Window")

    @property
    def seconds(self) -> float:
        """How long credit lasts."""
        return _seconds(self.per)


@spelled("limit: InFlight")
@dataclass(frozen=True, slots=True)
class InFlight:
    """At most ``most`` recoveries have a paid call under way at once.

    Attributes:
        scope, key: see ``Window``.
        most: how many.

    Example:
        >>> InFlight("global", 50).most
        50
    """

    scope: str
    most: int
    key: str | None = None

    def __post_init__(self) -> None:
        _check(self)
        whole("limit: InFlight.most", self.most)


Limit: TypeAlias = Window | Ratio | InFlight


@dataclass(frozen=True, slots=True)
class Claim:
    """What one reservation asks of one account.

    Attributes:
        account: the account's name, the same in every process: ``tenant=acme usd/3600s``.
        kind: how the account counts.
        unit: what it counts; ``"recoveries"`` for ``in_flight``.
        amount: how much is asked: whole units, billionths of a dollar for ``usd``.
        most: the limit in the same unit; the floor of a ratio.
        seconds: length of the window, or how long credit lasts; 0 for ``in_flight``.
        share: of a ratio.
    """

    account: str
    kind: Kind
    unit: str
    amount: int
    most: int
    seconds: float = 0.0
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Reservation:
    """A reservation that a store granted.

    Attributes:
        id: the caller's name for it. The same call of the same run always has the same id.
        token: tells this grant from an earlier one under the same id, whose owner died.
        claims: what is set aside.
    """

    id: str
    token: str
    claims: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """No account was touched.

    Attributes:
        accounts: the accounts that have no room, in the order of the claims.
        after: seconds until there may be room in all of them, as far as it can be told; None where it cannot.
    """

    accounts: tuple[str, ...]
    after: float | None = None


@dataclass(frozen=True, slots=True)
class Replayed:
    """The call was made and paid for before: its owner died, or another process was faster.

    Attributes:
        record: what was recorded with its settlement.
    """

    record: str


Grant: TypeAlias = Reservation | Refused | Replayed


@dataclass(frozen=True, slots=True)
class Account:
    """What one account has seen, in the unit of its claims.

    Attributes:
        name: see ``Claim.account``.
        kind, unit: see ``Claim``.
        most: the limit (a ratio's floor) as last asked.
        granted: total of all reservations granted.
        spent: total settled; what expired is included.
        reserved: set aside for what is under way now.
        in_window: spent within the window that ends now; 0 for ``in_flight``.
        lost: total expired: reserved by owners that died during a call, whose cost nobody knows.
        refused: reservations refused.
        peak: the most that was ever reserved and spent in one window.
    """

    name: str
    kind: Kind
    unit: str
    most: int
    granted: int
    spent: int
    reserved: int
    in_window: int
    lost: int
    refused: int
    peak: int


def amount_of(spend: Spend, unit: str) -> int:
    """``spend`` in whole units; a fraction of a billionth of a dollar is rounded up."""
    return _whole(getattr(spend, unit), unit)


def accounts_of(limits: Sequence[Limit], scopes: Mapping[str, str]) -> tuple[Claim, ...]:
    """The accounts that ``limits`` open for a run with ``scopes``, as claims of nothing.

    Raises:
        ConfigError: a limit of a scope that the run does not name; it would limit nobody.
    """
    named = {"global": "", **scopes}
    chosen: list[Limit] = []
    for limit in limits:
        if limit.scope not in named:
            raise ConfigError(
                f"limit: {limit!r} is of scope {limit.scope!r}, which this run does not name; its scopes are "
                f"{sorted(scopes)}: call scoped({limit.scope}=...)"
            )
        if limit.key is not None and limit.key != named[limit.scope]:
            continue
        if limit.key is None and any(_same(limit, x) and x.key == named[limit.scope] for x in limits):
            continue  # a limit of this very key stands in its place
        chosen.append(limit)
    return tuple(_claim(limit, named[limit.scope]) for limit in chosen)


def claims_of(accounts: Sequence[Claim], spend: Spend, *, flight: bool) -> tuple[Claim, ...]:
    """What ``spend`` asks of ``accounts``; those that it asks nothing of are left out.

    Args:
        accounts: see ``accounts_of``.
        spend: what is to be reserved.
        flight: whether it counts as a recovery in flight.
    """
    asked = ((a, int(flight) if a.kind == "in_flight" else amount_of(spend, a.unit)) for a in accounts)
    return tuple(
        Claim(a.account, a.kind, a.unit, amount, a.most, a.seconds, a.share) for a, amount in asked if amount > 0
    )


def _same(a: Limit, b: Limit) -> bool:
    """Whether ``b`` limits the same thing, so that one for a key can stand in place of one for every key."""
    if type(a) is not type(b) or a.scope != b.scope:
        return False
    if isinstance(a, InFlight) or isinstance(b, InFlight):
        return True
    return a.unit == b.unit and a.seconds == b.seconds


def _claim(limit: Limit, key: str) -> Claim:
    place = f"{limit.scope}={key}" if limit.scope != "global" else "global"
    if isinstance(limit, InFlight):
        return Claim(f"{place} in flight", "in_flight", "recoveries", 0, limit.most)
    span = f"{limit.seconds:g}s"
    if isinstance(limit, Window):
        most = _whole(limit.most, limit.unit)
        return Claim(f"{place} {limit.unit}/{span}", "window", limit.unit, 0, most, limit.seconds)
    floor = _whole(limit.floor, limit.unit)
    name = f"{place} {limit.unit} ratio/{span}"
    return Claim(name, "ratio", limit.unit, 0, floor, limit.seconds, limit.share)


_MOST_AMOUNT = 2**61  # totals are kept in 64 bits
_MOST_USD = 2e9  # the same in billionths


def _whole(value: float, unit: str) -> int:
    return math.ceil(value * _NANO - 1e-6) if unit == "usd" else math.floor(value)


def _seconds(per: str | float) -> float:
    return _PERIODS[per] if isinstance(per, str) else float(per)


def _check(limit: Any, *numbers: str) -> None:
    kind = f"limit: {type(limit).__name__}"
    if not isinstance(limit.scope, str) or not limit.scope.strip():
        raise ConfigError(f"{kind}.scope is {shown(limit.scope)}; give a name such as 'tenant' or 'global'")
    key = limit.key
    if key is not None and (not isinstance(key, str) or not key):
        raise ConfigError(f"{kind}.key is {shown(key)}; give a text, one key of the scope, or None for every key")
    if numbers:
        among(f"{kind}.unit", limit.unit, get_args(Unit))
    for name in numbers:
        value = getattr(limit, name)
        if name != "per":
            number(f"{kind}.{name}", value, least=0, most=_MOST_USD if limit.unit == "usd" else _MOST_AMOUNT)
        elif isinstance(value, str):
            if value not in _PERIODS:
                raise ConfigError(f"{kind}.per is {value!r}; give {', '.join(_PERIODS)}, or seconds")
        else:
            number(f"{kind}.per", value, above=0, most=MOST_SECONDS)
