"""A budget that many runs share: a store, the limits kept in it, and the scopes that one run belongs to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import get_args

from rfx_agent.accepted import adopted
from rfx_agent.budgets.limits import (
    Claim,
    Grant,
    Limit,
    Ratio,
    Refused,
    Reservation,
    Unit,
    accounts_of,
    amount_of,
    claims_of,
)
from rfx_agent.checks import MOST_SECONDS, number, shown, spelled
from rfx_agent.errors import ConfigError
from rfx_agent.ports import BudgetStore
from rfx_agent.records import Spend

__all__ = ["SharedBudget"]

_SHORTEST, _LONGEST = 0.05, 1.0  # seconds between two looks at an account that had no room


@spelled("shared budget", {"tenant": "scopes={'tenant': ...}"})
@dataclass(frozen=True, slots=True, kw_only=True)
class SharedBudget:
    """What the runs of many processes may spend together, and the record of what they paid for.

    Beside the caps of one step (``RetryBudget``), every paid call reserves here before it is dispatched, and settles
    afterwards. With a store on disk the settlement also records what came back: a run that is killed and started
    again under the same id resumes from what it had paid for, and nothing is charged twice. Immutable.

    Attributes:
        store: where it is kept: a ``MemoryStore`` within one process, an ``SQLStore`` or ``RedisStore`` for several.
        limits: windows, ratios and in-flight limits. May be empty, where only the record is wanted.
        scopes: what this run belongs to, such as ``{"tenant": "acme"}``: see ``scoped``.
        wait: most seconds that a call waits for room before it is refused. 0 refuses at once.
        seconds: a reservation that nobody settled expires after so many; longer than any one call takes.

    Raises:
        ConfigError: a parameter that cannot work.

    Example:
        >>> from rfx_agent.budgets import MemoryStore, Window
        >>> shared = SharedBudget(store=MemoryStore(), limits=(Window("tenant", "usd", 5.0, per="day"),))
        >>> [x.account for x in shared.scoped(tenant="acme").claims(Spend(usd=0.01))]
        ['tenant=acme usd/86400s']
    """

    store: BudgetStore
    limits: tuple[Limit, ...] = ()
    scopes: Mapping[str, str] = field(default_factory=dict)
    wait: float = 0.0
    seconds: float = 600.0

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "store", adopted(BudgetStore, self.store, where="shared budget: store"))  # type: ignore[type-abstract]
        except ConfigError:
            raise ConfigError(
                f"shared budget: store is {shown(self.store)}; give one such as MemoryStore() or SQLStore(url)"
            ) from None
        if not isinstance(self.limits, (list, tuple)):
            raise ConfigError(
                f"shared budget: limits is {shown(self.limits)}; give a list such as [Window('tenant', 'usd', 5.0, "
                "per='day')]"
            )
        if not isinstance(self.scopes, Mapping):
            raise ConfigError(
                f"shared budget: scopes is {shown(self.scopes)}; give a mapping such as {{'tenant': 'acme'}}"
            )
        object.__setattr__(self, "limits", tuple(self.limits))
        for limit in self.limits:
            if not isinstance(limit, get_args(Limit)):
                raise ConfigError(f"shared budget: limits has {shown(limit)}; give Window, Ratio or InFlight")
        for name, key in self.scopes.items():
            if not isinstance(key, str) or not key or name == "global":
                raise ConfigError(f"shared budget: scope {name!r} is {key!r}; give a name and a key that is a text")
        for name, least in (("wait", 0.0), ("seconds", 1e-3)):
            number(
                f"shared budget: {name}",
                getattr(self, name),
                least=least,
                finite=False,
                unit="seconds",
                most=MOST_SECONDS,
            )

    def scoped(self, **scopes: str) -> SharedBudget:
        """The same budget for a run that belongs to ``scopes`` besides."""
        return replace(self, scopes={**self.scopes, **scopes})

    def units(self) -> frozenset[str]:
        """The units that the limits count."""
        return frozenset(x.unit for x in accounts_of(self.limits, self.scopes))

    def claims(self, cost: Spend, *, flight: bool = True) -> tuple[Claim, ...]:
        """What ``cost`` asks of this run's accounts; ``flight`` where it counts as a recovery in flight.

        Raises:
            ConfigError: a limit is of a scope that this run does not name.
        """
        return claims_of(accounts_of(self.limits, self.scopes), cost, flight=flight)

    def reserve(self, id: str, claims: tuple[Claim, ...]) -> Grant:  # noqa: A002  # the store's word
        """Set ``claims`` aside, waiting for room if need be: see ``ports.BudgetStore.reserve``."""
        pauses = self._pauses()
        next(pauses)
        while True:
            grant = self.store.reserve(id, claims, seconds=self.seconds)
            if not isinstance(grant, Refused) or (pause := pauses.send(grant)) is None:
                return grant
            time.sleep(pause)

    async def areserve(self, id: str, claims: tuple[Claim, ...]) -> Grant:  # noqa: A002  # the store's word
        """Do what ``reserve`` does, without blocking the event loop."""
        pauses = self._pauses()
        next(pauses)
        while True:
            grant = await self.store.areserve(id, claims, seconds=self.seconds)
            if not isinstance(grant, Refused) or (pause := pauses.send(grant)) is None:
                return grant
            await asyncio.sleep(pause)

    def settle(self, reservation: Reservation, actual: Spend, record: str | None) -> None:
        """Charge ``actual`` in place of ``reservation`` and record what came back."""
        self.store.settle(reservation, _amounts(actual), record)

    async def asettle(self, reservation: Reservation, actual: Spend, record: str | None) -> None:
        """Do what ``settle`` does, without blocking the event loop."""
        await self.store.asettle(reservation, _amounts(actual), record)

    def deposit(self, actual: Spend) -> None:
        """Credit the ratio accounts with normal traffic. Does no work where there is none."""
        if any(isinstance(limit, Ratio) for limit in self.limits):
            normal = [x for x in self.claims(actual, flight=False) if x.kind == "ratio"]
            if normal:
                self.store.deposit(normal)

    def _pauses(self) -> Generator[float | None, Refused, None]:
        """Sent a refusal, gives the seconds to wait before the next try, or None when it is time to give up."""
        ends, pause = time.monotonic() + self.wait, _SHORTEST
        refused = yield None
        while (left := ends - time.monotonic()) > 0:
            hint = pause if refused.after is None else max(refused.after, _SHORTEST)
            refused = yield min(hint, _LONGEST, left)
            pause = min(pause * 2, _LONGEST)
        yield None


def _amounts(actual: Spend) -> dict[str, int]:
    return {unit: amount for unit in get_args(Unit) if (amount := amount_of(actual, unit))}
