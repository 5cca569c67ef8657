"""The budget that holds for everything inside a run, whoever pays: found by context, never handed on.

A ``Scope`` is one budget with its ledger. What runs inside joins it: the engine's purchases, and the models and tools
that LangChain calls. A scope made inside another has its own caps within the outer ones; each call is reserved in all
of them, and once in each shared budget. This file knows no framework: what finds a scope in one is in ``FINDERS``.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from rfx_agent.budgets.charge import Charge, Clock, Key, same_limits
from rfx_agent.budgets.limits import Claim, Grant, Refused, Reservation
from rfx_agent.budgets.prices import Prices
from rfx_agent.budgets.shared import SharedBudget
from rfx_agent.budgets.step import Ledger, Purse, RetryBudget
from rfx_agent.errors import BudgetExhausted, StoreError
from rfx_agent.records import Spend

__all__ = ["FINDERS", "Hold", "Scope", "Short", "current", "joined", "paying", "purchase"]

_log = logging.getLogger("rfx_agent")
_INSTANT = Spend(seconds=0.001)  # so that nothing begins when no time is left
_TOOL_INSTANT = Spend(seconds=0.001, tool_seconds=0.001)

FINDERS: list[Callable[[], Scope | None]] = []
"""Functions that find the scope of a run where no context variable says it."""


@dataclass(frozen=True, slots=True)
class Short:
    """Why a call was refused; nothing is set aside.

    Attributes:
        scope: whose budget has no room.
        caps: the caps that it would cross.
        accounts: the shared accounts that have no room, where it is these.
        after: seconds until they may have; None where time alone does not help.
        needs: what was asked for.
        why: the caps or accounts, with what they need and have.
    """

    scope: Scope
    caps: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ()
    after: float | None = None
    needs: Spend = Spend()
    why: str = ""

    @property
    def sentence(self) -> str:
        """The refusal in a sentence."""
        return f"The budget of the run cannot pay for the next call: {self.why}."

    def error(self, best: str | None = None) -> BudgetExhausted:
        """The refusal as an exception."""
        ledger = self.scope.purse.ledger
        told: dict[str, Any] = {"accounts": self.accounts, "after": self.after, "best": best}
        return BudgetExhausted(
            self.sentence, caps=self.caps, spent=ledger.spent, by_model=dict(ledger.by_model), **told
        )


class Hold:
    """What is set aside for one call, in every scope that it is in. It ends once; what comes later is ignored.

    Attributes:
        scopes: the scopes, the innermost first, each with what is set aside there.
        grants: what is set aside in shared budgets.
        covered: the shared budgets that somebody else charges for this call.
        inside: what was paid by calls of models that were made as part of this one, and counted by themselves.
    """

    def __init__(self, charge: Charge, covered: Collection[Key]) -> None:
        self._part_of: Hold | None = None if charge.tool else paying()
        self.scopes: list[tuple[Scope, Spend]] = []
        self.grants: list[tuple[SharedBudget, Reservation]] = []
        self.covered: frozenset[Key] = frozenset(covered)
        if self._part_of is not None:
            self.covered |= self._part_of.covered
        self.inside = Spend()
        self._charge, self._open, self._lock = charge, True, threading.Lock()

    def settle(self, actual: Charge | None = None) -> None:
        """Replace it by what the call cost; None for all that was set aside."""
        for shared, reservation, spent in self._settled(actual):
            with _expiring():
                shared.settle(reservation, spent, None)

    async def asettle(self, actual: Charge | None = None) -> None:
        """Do what ``settle`` does, without blocking the event loop."""
        for shared, reservation, spent in self._settled(actual):
            with _expiring():
                await shared.asettle(reservation, spent, None)

    def release(self, spent: Spend | None = None) -> None:
        """Give it back: the call was not made. With ``spent``, an earlier process has paid that for it."""
        for shared, reservation in self._released(spent):
            with _expiring():
                shared.store.release(reservation)

    async def arelease(self, spent: Spend | None = None) -> None:
        """Do what ``release`` does, without blocking the event loop."""
        for shared, reservation in self._released(spent):
            with _expiring():
                await shared.store.arelease(reservation)

    def make_way(self) -> None:
        """Give back what is set aside: the calls that it is for are made of others, which are counted one by one."""
        for shared, reservation in self._made_way():
            with _expiring():
                shared.store.release(reservation)

    async def amake_way(self) -> None:
        """Do what ``make_way`` does, without blocking the event loop."""
        for shared, reservation in self._made_way():
            with _expiring():
                await shared.store.arelease(reservation)

    def rest(self, actual: Spend) -> Spend:
        """What of ``actual`` was not paid by calls inside."""
        if self.inside.calls >= actual.calls:
            return Spend(attempts=actual.attempts, escalations=actual.escalations)
        less = actual - self.inside
        return Spend(*[max(0, getattr(less, name)) for name in less.__slots__])

    def _made_way(self) -> list[tuple[SharedBudget, Reservation]]:
        with self._lock:
            scopes, grants = (self.scopes, self.grants) if self._open else ([], [])
            self.scopes, self.grants = [(scope, Spend()) for scope, _ in self.scopes], []
        for scope, aside in scopes:
            scope.purse.settle(aside, Spend())
        return grants

    def _end(self) -> bool:
        with self._lock:
            first, self._open = self._open, False
            return first

    def _settled(self, actual: Charge | None) -> Iterator[tuple[SharedBudget, Reservation, Spend]]:
        if not self._end():
            return
        charge = self._charge if actual is None else actual
        found: dict[int, Spend] = {}
        for scope, aside in self.scopes:
            spent = found[id(scope)] = charge.at(scope.prices) if actual is not None else _timeless(aside)
            scope.clock(-1, tool=self._charge.tool)
            scope.purse.settle(aside, spent, charge.model)
        if self._part_of is not None and self.scopes:
            with self._part_of._lock:
                self._part_of.inside += found[id(self.scopes[0][0])]
        for shared, reservation in self.grants:
            owner = next(scope for scope, _ in self.scopes if scope.shared is shared)
            yield shared, reservation, found[id(owner)]

    def _released(self, spent: Spend | None) -> list[tuple[SharedBudget, Reservation]]:
        if not self._end():
            return []
        for scope, aside in self.scopes:
            scope.clock(-1, tool=self._charge.tool)
            scope.purse.settle(aside, Spend() if spent is None else _timeless(spent), self._charge.model)
        return self.grants


class Scope:
    """One budget, for everything that runs inside. Safe to use from any thread and event loop.

    Args:
        budget: the caps.
        shared: what many runs share, or None.
        prices: of the models.
        outer: the scope that this one is inside of.
        name: begins the names of its reservations in the shared store.
        spent, by_model: what was spent before, in another process.

    Attributes:
        purse: its ledger.
        chain: itself and what it is inside of, the innermost first.
        refusal: why the last call was refused; None once a model was granted one again.
    """

    def __init__(
        self,
        budget: RetryBudget,
        *,
        shared: SharedBudget | None = None,
        prices: Prices | None = None,
        outer: Scope | None = None,
        name: str = "",
        spent: Spend = Spend(),
        by_model: Mapping[str, Spend] | None = None,
    ) -> None:
        self.purse = Purse(Ledger(budget, spent, by_model=dict(by_model or {})))
        self.shared, self.prices = shared, prices or Prices()
        self.name = name or uuid.uuid4().hex
        self.chain: tuple[Scope, ...] = (self, *(outer.chain if outer is not None else ()))
        self.refusal: Short | None = None
        self.tied: Any = None  # what a framework keeps with it
        self._clocks = (Clock(), Clock())
        self._lock = threading.Lock()

    def reserve(self, charge: Charge, *, covered: Collection[Key] = ()) -> Hold | Short:
        """Set aside what ``charge`` may cost, in this scope, those around it and their shared budgets, or in none.

        Args:
            charge: the most that the call can cost.
            covered: shared budgets that are charged for it elsewhere.

        Raises:
            ConfigError: money is capped, and the price of the model is not known.
            StoreError: a shared store could not be reached.
        """
        if (whole := paying()) is not None and not charge.tool:
            whole.make_way()
        hold = self._held(charge, covered)
        if isinstance(hold, Short):
            return hold
        try:
            for shared, name, claims in _asked(hold, charge):
                if short := _granted(hold, shared, shared.reserve(name, claims)):
                    hold.release()
                    return short
        except BaseException:
            hold.release()
            raise
        return hold

    async def areserve(self, charge: Charge, *, covered: Collection[Key] = ()) -> Hold | Short:
        """Do what ``reserve`` does, without blocking the event loop."""
        if (whole := paying()) is not None and not charge.tool:
            await whole.amake_way()
        hold = self._held(charge, covered)
        if isinstance(hold, Short):
            return hold
        try:
            for shared, name, claims in _asked(hold, charge):
                if short := _granted(hold, shared, await shared.areserve(name, claims)):
                    await hold.arelease()
                    return short
        except BaseException:
            await hold.arelease()
            raise
        return hold

    def refused(self, short: Short) -> None:
        """Remember it here and in every scope up to the one that had no room."""
        for scope in self.chain:
            scope.refusal = short
            if scope is short.scope:
                return

    def granted(self) -> None:
        """A model was granted a call again."""
        for scope in self.chain:
            scope.refusal = None

    def clock(self, more: int, *, tool: bool) -> None:
        """Count one more call under way, or one fewer, and charge the time since the last look."""
        now = time.perf_counter()
        with self._lock:
            seconds, inside = self._clocks[0].look(now, more), self._clocks[1].look(now, more if tool else 0)
            if seconds or inside:
                self.purse.charge(Spend(seconds=seconds, tool_seconds=inside))

    def _held(self, charge: Charge, covered: Collection[Key]) -> Hold | Short:
        hold = Hold(charge, covered)
        for scope in self.chain:
            try:
                cost = charge.at(scope.prices)
            except BaseException:
                hold.release()
                raise
            aside = cost + (_TOOL_INSTANT if charge.tool else _INSTANT)
            scope.clock(1, tool=charge.tool)
            if caps := scope.purse.reserve(aside):
                scope.clock(-1, tool=charge.tool)
                hold.release()
                left = scope.purse.ledger.remaining()
                why = ", ".join(f"{cap} ({getattr(aside, cap):g} needed, {left[cap]:g} left)" for cap in caps)
                return Short(scope, caps=caps, needs=aside, why=why)
            hold.scopes.append((scope, aside))
        return hold


def _timeless(spend: Spend) -> Spend:
    return replace(spend, seconds=0.0, tool_seconds=0.0)


def _asked(hold: Hold, charge: Charge) -> Iterator[tuple[SharedBudget, str, tuple[Claim, ...]]]:
    """What to reserve in which shared budget, each once. A ratio limits recoveries, and is the engine's matter."""
    seen = set(hold.covered)
    for scope, aside in hold.scopes:
        if scope.shared is None or (key := same_limits(scope.shared)) in seen:
            continue
        seen.add(key)
        flight = charge.flight and not charge.tool
        claims = tuple(x for x in scope.shared.claims(aside, flight=flight) if x.kind != "ratio")
        if claims:
            yield scope.shared, f"{scope.name}/{uuid.uuid4().hex}", claims


def _granted(hold: Hold, shared: SharedBudget, grant: Grant) -> Short | None:
    if isinstance(grant, Reservation):
        hold.grants.append((shared, grant))
        return None
    assert isinstance(grant, Refused)  # noqa: S101  # the name is new, so nothing is recorded under it
    scope = next(scope for scope, _ in hold.scopes if scope.shared is shared)
    why = f"no room in {', '.join(grant.accounts)}"
    return Short(scope, accounts=grant.accounts, after=grant.after, why=why)


@contextlib.contextmanager
def _expiring() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        _log.warning("a shared budget could not be settled; the reservation expires as spent: %s", error)


_scope: ContextVar[Scope | None] = ContextVar("rfx_scope", default=None)
_purchase: ContextVar[Hold | None] = ContextVar("rfx_purchase", default=None)


def current() -> Scope | None:
    """The innermost scope that holds here."""
    found = _scope.get()
    for find in FINDERS:
        other = find()
        if other is not None and (found is None or len(other.chain) > len(found.chain)):
            found = other
    return found


@contextlib.contextmanager
def joined(scope: Scope) -> Iterator[None]:
    """What is called inside pays in ``scope``."""
    before = _scope.get()
    _scope.set(scope)
    try:
        yield
    finally:
        _scope.set(before)  # no token: a flow may be closed in another context


def paying() -> Hold | None:
    """The purchase of the engine's that is made here, or None."""
    return _purchase.get()


@contextlib.contextmanager
def purchase(hold: Hold | None) -> Iterator[None]:
    """Calls inside are part of a purchase that ``hold`` is set aside for."""
    before = _purchase.get()
    _purchase.set(hold)
    try:
        yield
    finally:
        _purchase.set(before)
