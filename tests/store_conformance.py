"""What every store of shared budgets must do, sync and async alike.

Subclass ``StoreConformance`` in a test file (its name starting with ``Test``), and give it the fixture ``open_store``:
a function that takes ``clock`` and ``keep`` and gives a store. ``Literal`` is the slow definition: a list of
everything that happened, with every window added up anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from rfx_agent.budgets.limits import Account, Claim, Grant, Refused, Replayed, Reservation
from rfx_agent.errors import StoreError
from rfx_agent.ports import BudgetStore

__all__ = [
    "Clock",
    "Driven",
    "Literal",
    "LiteralReservation",
    "StoreConformance",
    "flight",
    "ratio",
    "survives_broken_connections",
    "window",
]

WEEK = 7 * 86_400.0


class Clock:
    """Seconds that pass when told to."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def window(amount: int, most: int = 10, *, seconds: float = 60.0, name: str = "w", unit: str = "tokens") -> Claim:
    return Claim(name, "window", unit, amount, most, seconds)


def ratio(amount: int, floor: int = 2, *, share: float = 0.5, seconds: float = 60.0, name: str = "r") -> Claim:
    return Claim(name, "ratio", "tokens", amount, floor, seconds, share)


def flight(most: int = 2, *, name: str = "f") -> Claim:
    return Claim(name, "in_flight", "recoveries", 1, most)


@dataclass
class Driven:
    """A store, asked on the side that ``how`` names; each async call has an event loop of its own."""

    store: Any
    how: str = "sync"

    def _do(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if self.how == "sync":
            return getattr(self.store, method)(*args, **kwargs)

        async def awaited() -> Any:
            return await getattr(self.store, "a" + method)(*args, **kwargs)

        return asyncio.run(awaited())

    def reserve(self, id: str, *claims: Claim, seconds: float = 600.0) -> Grant:  # noqa: A002
        return self._do("reserve", id, claims, seconds=seconds)

    def hold(self, id: str, *claims: Claim, seconds: float = 600.0) -> Reservation:  # noqa: A002
        grant = self.reserve(id, *claims, seconds=seconds)
        assert isinstance(grant, Reservation), grant
        return grant

    def settle(self, hold: Reservation, actual: Mapping[str, int] | None = None, record: str | None = None) -> None:
        assert self._do("settle", hold, actual or {}, record) is None

    def release(self, hold: Reservation) -> None:
        assert self._do("release", hold) is None

    def keep(self, id: str, record: str) -> str:  # noqa: A002
        return self._do("keep", id, record)

    def account(self, name: str) -> Account:
        found = {x.name: x for x in self.store.accounts(name)}
        return found[name]


def survives_broken_connections(store: BudgetStore, kill: Callable[[], Any]) -> None:
    """Calls go on after ``kill`` has ended all connections to the server of ``store``."""
    hold = store.reserve("a", (window(3),), seconds=60)
    assert isinstance(hold, Reservation)
    kill()
    store.settle(hold, {"tokens": 2}, "done")
    kill()
    assert store.reserve("a", (window(3),), seconds=60) == Replayed("done")
    kill()
    assert store.accounts()[0].spent == 2


@pytest.mark.parametrize("how", ["sync", "async"])
class StoreConformance:
    @pytest.fixture
    def open_store(self) -> Callable[..., Any]:
        raise NotImplementedError

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def s(self, open_store: Any, clock: Clock, how: str) -> Driven:
        return Driven(open_store(clock=clock, keep=WEEK), how)

    def test_has_the_port(self, s: Driven) -> None:
        assert isinstance(s.store, BudgetStore)

    def test_what_is_reserved_is_set_aside_and_what_is_settled_stands_in_its_place(self, s: Driven) -> None:
        hold = s.hold("a", window(6))
        assert (hold.id, hold.claims) == ("a", (window(6),))
        assert s.account("w") == Account("w", "window", "tokens", 10, 6, 0, 6, 0, 0, 0, 6)
        s.settle(hold, {"tokens": 4, "attempts": 7})
        assert s.account("w") == Account("w", "window", "tokens", 10, 6, 4, 0, 4, 0, 0, 6)

    def test_a_window_is_full_at_its_limit_and_not_before(self, s: Driven) -> None:
        s.settle(s.hold("a", window(4)), {"tokens": 4})
        s.hold("b", window(6))
        refused = s.reserve("c", window(1))
        assert isinstance(refused, Refused)
        assert refused.accounts == ("w",)
        assert s.account("w").refused == 1

    def test_zero_means_zero(self, s: Driven) -> None:
        assert s.reserve("a", window(1, most=0)) == Refused(("w",))
        assert s.reserve("b", flight(0)) == Refused(("f",))
        assert s.reserve("c", ratio(1, 0)) == Refused(("r",))

    def test_a_window_slides_and_says_when(self, s: Driven, clock: Clock) -> None:
        s.settle(s.hold("a", window(8)), {"tokens": 8})
        clock.now += 30
        s.settle(s.hold("b", window(2)), {"tokens": 2})
        refused = s.reserve("c", window(5))
        assert isinstance(refused, Refused)
        assert refused.after is not None
        assert 30 <= refused.after <= 31  # one bucket longer than it must, at most
        clock.now += refused.after - 0.001
        assert isinstance(s.reserve("c", window(5)), Refused)
        clock.now += 0.001
        hold = s.hold("c", window(5))
        assert s.account("w").in_window == 2
        s.release(hold)
        assert s.account("w").spent == 10

    def test_what_can_never_fit_says_no_time(self, s: Driven) -> None:
        s.settle(s.hold("a", window(8)), {"tokens": 8})
        assert s.reserve("b", window(11)) == Refused(("w",), None)

    def test_what_waits_for_others_to_give_back_says_no_time(self, s: Driven) -> None:
        s.hold("a", flight(), window(8))
        s.hold("b", flight())
        assert s.reserve("c", flight(), window(3)) == Refused(("f", "w"), None)

    def test_the_longest_of_several_waits_is_said(self, s: Driven) -> None:
        claims = (window(10), window(10, seconds=3600, name="v"))
        s.settle(s.hold("a", *claims), {"tokens": 10})
        refused = s.reserve("b", *claims)
        assert isinstance(refused, Refused)
        assert refused.accounts == ("w", "v")
        assert 3600 <= (refused.after or 0) <= 3661

    def test_all_or_nothing_over_several_claims(self, s: Driven) -> None:
        s.hold("a", window(8))
        before = (s.account("w"),)
        assert s.reserve("b", flight(), window(3), ratio(1)) == Refused(("w",))
        assert (replace(s.account("w"), refused=0),) == before
        assert (s.account("f").reserved, s.account("r").reserved) == (0, 0)
        assert (s.account("f").granted, s.account("r").refused) == (0, 0)
        s.hold("c", flight(), window(2), ratio(1))

    def test_a_ratio_lends_its_floor_and_a_share_of_normal_traffic(self, s: Driven, clock: Clock) -> None:
        s.settle(s.hold("a", ratio(2)), {"tokens": 2})
        assert isinstance(s.reserve("b", ratio(1)), Refused)
        s.store.deposit([ratio(7)])
        hold = s.hold("b", ratio(3))  # floor(0.5 * 7)
        assert isinstance(s.reserve("c", ratio(1)), Refused)
        s.release(hold)
        clock.now += 61  # the credit has expired, and so has what was spent
        s.hold("d", ratio(2))
        assert isinstance(s.reserve("e", ratio(1)), Refused)

    def test_credit_of_other_kinds_is_none(self, s: Driven) -> None:
        s.store.deposit([window(5), flight()])
        assert s.store.accounts() == []

    def test_recoveries_in_flight_are_counted_until_they_end(self, s: Driven) -> None:
        first, second = s.hold("a", flight()), s.hold("b", flight())
        assert s.reserve("c", flight()) == Refused(("f",))
        s.settle(first, {"tokens": 3})
        third = s.hold("c", flight())
        s.release(second)
        s.release(third)
        seen = s.account("f")
        assert (seen.granted, seen.reserved, seen.spent, seen.in_window, seen.peak) == (3, 0, 0, 0, 2)

    def test_more_than_was_reserved_is_charged_in_full(self, s: Driven) -> None:
        s.settle(s.hold("a", window(3)), {"tokens": 13})
        seen = s.account("w")
        assert (seen.spent, seen.in_window, seen.peak) == (13, 13, 13)
        assert isinstance(s.reserve("b", window(1)), Refused)

    def test_settled_twice_is_charged_once(self, s: Driven) -> None:
        hold = s.hold("a", window(3))
        s.settle(hold, {"tokens": 3}, "first")
        s.settle(hold, {"tokens": 2}, "second")
        assert s.account("w").spent == 3
        assert s.reserve("a", window(3)) == Replayed("first")

    def test_released_gives_everything_back_once(self, s: Driven) -> None:
        hold, other = s.hold("a", window(3), flight()), s.hold("b", window(3), flight())
        s.release(hold)
        s.release(hold)
        assert (s.account("w").reserved, s.account("f").reserved) == (3, 1)
        s.settle(other, {"tokens": 2})
        s.release(other)
        assert (s.account("w").spent, s.account("w").reserved) == (2, 0)
        assert isinstance(s.reserve("a", window(3)), Reservation)  # what was released can be asked for again

    def test_settled_after_it_was_released_is_charged(self, s: Driven) -> None:
        hold = s.hold("a", window(3))
        s.release(hold)
        s.settle(hold, {"tokens": 3}, "it was called after all")
        assert (s.account("w").spent, s.account("w").reserved) == (3, 0)
        assert s.reserve("a", window(3)) == Replayed("it was called after all")

    def test_settled_with_a_record_is_never_paid_for_again(self, s: Driven, clock: Clock) -> None:
        s.settle(s.hold("a", window(3)), {"tokens": 3}, "what came back")
        clock.now += WEEK - 1
        assert s.reserve("a", window(3)) == Replayed("what came back")
        assert s.account("w").granted == 3

    def test_settled_without_a_record_is_granted_again(self, s: Driven) -> None:
        first = s.hold("a", window(3))
        s.settle(first, {"tokens": 3})
        second = s.hold("a", window(3))
        assert second.token != first.token
        s.settle(first, {"tokens": 9})  # of a grant that is over
        assert (s.account("w").spent, s.account("w").reserved) == (3, 3)

    def test_an_open_reservation_expires_when_it_is_asked_for_again(self, s: Driven) -> None:
        first = s.hold("a", window(3), flight(1))
        second = s.hold("a", window(4), flight(1))
        seen = s.account("w")
        assert (seen.granted, seen.spent, seen.reserved, seen.lost) == (7, 3, 4, 3)
        s.settle(first, {"tokens": 1}, "from the dead")
        s.release(first)
        assert s.account("w") == seen
        s.settle(second, {"tokens": 2}, "from the living")
        assert (s.account("w").spent, s.account("f").reserved, s.account("f").lost) == (5, 0, 1)
        assert s.reserve("a") == Replayed("from the living")

    def test_one_that_is_asked_for_again_without_room_expires_all_the_same(self, s: Driven) -> None:
        hold = s.hold("a", window(6))
        assert isinstance(s.reserve("a", window(6)), Refused)
        assert (s.account("w").lost, s.account("w").reserved, s.account("w").in_window) == (6, 0, 6)
        s.settle(hold, {"tokens": 1})
        assert (s.account("w").lost, s.account("w").spent) == (0, 1)

    def test_a_reservation_whose_time_is_over_expires(self, s: Driven, clock: Clock) -> None:
        s.hold("a", window(6), flight(1), seconds=10)
        clock.now += 9.9
        assert isinstance(s.reserve("b", flight(1)), Refused)
        clock.now += 0.1
        assert (s.account("w").lost, s.account("w").reserved) == (6, 0)
        s.hold("b", flight(1))
        assert isinstance(s.reserve("c", window(5)), Refused)  # it counts as spent
        clock.now += 61
        s.hold("c", window(10))

    def test_it_expires_as_of_the_end_of_its_time(self, s: Driven, clock: Clock) -> None:
        s.hold("a", window(6), seconds=10)
        clock.now += 75  # nobody has looked meanwhile
        s.hold("b", window(10))
        assert (s.account("w").lost, s.account("w").in_window) == (6, 0)

    def test_a_late_settlement_corrects_what_expired(self, s: Driven, clock: Clock) -> None:
        hold = s.hold("a", window(6), flight(1), seconds=10)
        clock.now += 11
        assert isinstance(s.reserve("b", window(5)), Refused)
        s.settle(hold, {"tokens": 2}, "late")
        s.settle(hold, {"tokens": 2}, "later")
        seen = s.account("w")
        assert (seen.spent, seen.lost, seen.in_window, seen.reserved) == (2, 0, 2, 0)
        assert (s.account("f").lost, s.account("f").spent, s.account("f").reserved) == (0, 0, 0)
        s.hold("b", window(8))
        assert s.reserve("a", window(6)) == Replayed("late")

    def test_a_late_settlement_for_more_charges_the_rest_now(self, s: Driven, clock: Clock) -> None:
        hold = s.hold("a", window(4), seconds=10)
        clock.now += 40
        s.settle(hold, {"tokens": 9})
        assert (s.account("w").spent, s.account("w").in_window) == (9, 9)
        clock.now += 32  # 62 s after it expired, 32 s after the rest was spent
        assert s.account("w").in_window == 5

    def test_a_late_settlement_of_what_has_slid_out_touches_no_window(self, s: Driven, clock: Clock) -> None:
        hold = s.hold("a", window(6), seconds=10)
        clock.now += 100
        s.settle(s.hold("b", window(3)), {"tokens": 3})
        s.settle(hold, {"tokens": 2})
        assert (s.account("w").spent, s.account("w").in_window) == (5, 3)

    def test_a_release_after_it_expired_changes_nothing(self, s: Driven, clock: Clock) -> None:
        hold = s.hold("a", window(6), seconds=10)
        clock.now += 11
        s.release(hold)
        assert (s.account("w").spent, s.account("w").lost) == (6, 6)

    def test_the_first_record_stands(self, s: Driven) -> None:
        assert s.keep("k", "one") == "one"
        assert s.keep("k", "two") == "one"
        assert s.reserve("k", window(1)) == Replayed("one")
        s.settle(s.hold("a"), {}, "settled")
        assert s.keep("a", "kept") == "settled"

    def test_a_record_can_stand_beside_an_open_reservation(self, s: Driven, clock: Clock) -> None:
        hold = s.hold("a", window(3))
        assert s.keep("a", "kept") == "kept"
        assert s.reserve("a", window(3)) == Replayed("kept")
        s.settle(hold, {"tokens": 1}, "settled")
        assert s.reserve("a", window(3)) == Replayed("kept")
        assert (s.account("w").reserved, s.account("w").spent) == (0, 1)

    def test_nothing_claimed_is_a_pure_record(self, s: Driven) -> None:
        hold = s.hold("a")
        assert isinstance(s.reserve("a"), Reservation)
        s.settle(hold, {}, "of a dead owner")
        second = s.hold("a")
        s.settle(second, {}, "")
        assert s.reserve("a") == Replayed("")  # an empty record is one
        assert s.store.accounts() == []

    def test_two_limits_on_one_account_set_nothing_aside_twice(self, s: Driven) -> None:
        hold = s.hold("a", window(3, most=10), window(3, most=5))
        assert s.account("w").reserved == 3
        assert s.reserve("b", window(3, most=10), window(3, most=5)) == Refused(("w",))
        s.settle(hold, {"tokens": 2})
        assert (s.account("w").spent, s.account("w").most) == (2, 5)

    def test_the_limit_is_the_one_last_asked(self, s: Driven) -> None:
        s.hold("a", window(6, most=10))
        assert isinstance(s.reserve("b", window(1, most=5)), Refused)
        assert s.account("w").most == 5
        s.hold("b", window(14, most=20))
        assert s.account("w").most == 20

    def test_what_has_ended_is_forgotten_in_the_end(self, open_store: Any, clock: Clock, how: str) -> None:
        s = Driven(open_store(clock=clock, keep=10.0), how)
        s.settle(s.hold("a", window(1)), {"tokens": 1}, "old")
        long = s.hold("open", window(1), seconds=60)
        clock.now += 10
        s.hold("b", window(1))
        s.settle(long, {"tokens": 1}, "new")  # what is open is not forgotten
        assert s.reserve("open") == Replayed("new")

    def test_accounts_are_listed_by_name(self, s: Driven) -> None:
        for name in ("tenant=b x", "tenant=A x", "tenant=a_ x", "tenant=ab x", "100%"):
            s.hold(name, window(1, name=name))
        assert [x.name for x in s.store.accounts()] == sorted(x.name for x in s.store.accounts())
        assert [x.name for x in s.store.accounts("tenant=a")] == ["tenant=a_ x", "tenant=ab x"]
        assert [x.name for x in s.store.accounts("tenant=a_")] == ["tenant=a_ x"]
        assert [x.name for x in s.store.accounts("100%")] == ["100%"]

    def test_records_hold_whatever_a_model_writes(self, s: Driven) -> None:
        record = "nul \0, half a character \ud800, 'quotes\", \u2028 and \U0001f600; " + "x" * 100_000
        s.settle(s.hold("a"), {}, record)
        assert s.reserve("a") == Replayed(record)

    def test_names_are_any_text_and_are_not_run(self, s: Driven) -> None:
        name = "tenant=O'Brien\"; DROP TABLE rfx_holds; -- %s :x {} \\ ünï [1]"
        hold = s.hold(name, window(1, name=name))
        s.settle(hold, {"tokens": 1}, "fine")
        assert s.reserve(name) == Replayed("fine")
        assert s.account(name).spent == 1

    @pytest.mark.parametrize("name", ["a\0b", "\ud800"])
    def test_a_name_that_cannot_be_stored_is_refused_alone(self, s: Driven, name: str) -> None:
        with pytest.raises(StoreError, match="give one without NUL"):
            s.reserve(name)
        with pytest.raises(StoreError, match="give one without NUL"):
            s.reserve("a", window(1, name=name))
        with pytest.raises(StoreError, match="give one without NUL"):
            s.keep(name, "x")

    def test_amounts_are_large(self, s: Driven) -> None:
        most, amount = 10**30, 2**60 + 1
        s.settle(s.hold("a", window(amount, most=most)), {"tokens": amount})
        assert s.account("w").spent == amount
        with pytest.raises(StoreError, match="give an integer"):
            s.reserve("b", window(2**62, most=most))
        with pytest.raises(StoreError, match="give an integer"):
            s.settle(s.hold("c"), {"tokens": -1})

    @pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
    def test_a_time_that_is_none(self, s: Driven, seconds: float) -> None:
        with pytest.raises(StoreError, match=r"seconds is .*; give a number"):
            s.reserve("a", seconds=seconds)

    @pytest.mark.parametrize("seconds", [1e-6, 0.02, 1 / 3, 86_400.0 * 30])
    def test_a_window_of_any_length(self, s: Driven, clock: Clock, seconds: float) -> None:
        s.settle(s.hold("a", window(10, seconds=seconds)), {"tokens": 10})
        refused = s.reserve("b", window(1, seconds=seconds))
        assert isinstance(refused, Refused)
        assert refused.after is not None
        assert seconds - 1e-6 <= refused.after <= seconds * (1 + 1 / 60) + 3e-6
        clock.now += refused.after + 1e-5
        s.hold("b", window(1, seconds=seconds))

    def test_many_callers_at_once(self, s: Driven) -> None:
        async def one(i: int) -> Grant:
            grant: Grant = await s.store.areserve(f"{i}", (window(1, most=25), flight(100)), seconds=60)
            if isinstance(grant, Reservation):
                await s.store.asettle(grant, {"tokens": 1}, str(i))
            return grant

        async def everybody() -> list[Grant]:
            return await asyncio.gather(*(one(i) for i in range(60)))

        grants = asyncio.run(everybody())
        assert sum(isinstance(x, Reservation) for x in grants) == 25
        seen = s.account("w")
        assert (seen.granted, seen.spent, seen.reserved, seen.refused, seen.peak) == (25, 25, 0, 35, 25)


@dataclass
class LiteralReservation:
    """A reservation as the definition says it."""

    token: str
    claims: tuple[Claim, ...]
    due: float
    state: str = "open"
    ended: float = 0.0
    record: str | None = None


@dataclass
class Literal:
    """The definition: everything that happened, in a list, added up when it is asked for."""

    charges: list[list[Any]] = field(default_factory=list)  # [account, time, amount, of which reservation's token]
    credits: list[tuple[str, float, int]] = field(default_factory=list)
    reservations: dict[str, LiteralReservation] = field(default_factory=dict)
    granted: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)

    def open(self, account: str) -> int:
        still = [x for x in self.reservations.values() if x.state == "open"]
        return sum(c.amount for x in still for c in x.claims if c.account == account)

    def spent(self, account: str, since: float = float("-inf")) -> int:
        return sum(n for name, at, n, _ in self.charges if name == account and at > since)

    def lost(self, account: str) -> int:
        return sum(
            n for name, _, n, token in self.charges if name == account and token is not None and token in self._dead
        )

    @property
    def _dead(self) -> set[str]:
        return {x.token for x in self.reservations.values() if x.state == "lost"} | self._gone

    _gone: set[str] = field(default_factory=set)  # tokens that expired and were then asked for again

    def room(self, claim: Claim, now: float, slack: float = 0.0) -> int:
        """What is left; with ``slack`` seconds by which a window is longer and credit is shorter."""
        if claim.kind == "in_flight":
            return claim.most - self.open(claim.account)
        most: float = claim.most
        if claim.kind == "ratio":
            since = now - claim.seconds + slack
            most += claim.share * sum(n for name, at, n in self.credits if name == claim.account and at > since)
        return int(most // 1) - self.open(claim.account) - self.spent(claim.account, now - claim.seconds - slack)

    def expire(self, now: float) -> None:
        for hold in self.reservations.values():
            if hold.state == "open" and hold.due <= now:
                self._lose(hold, hold.due)

    def take_over(self, id: str, now: float) -> None:  # noqa: A002
        hold = self.reservations.get(id)
        if hold is not None and hold.state == "open" and hold.record is None:
            self._lose(hold, now)

    def _lose(self, hold: LiteralReservation, at: float) -> None:
        hold.state, hold.ended = "lost", at
        self.charges += [[c.account, at, c.amount, hold.token] for c in hold.claims]

    def grant(self, hold: Reservation, now: float, seconds: float) -> None:
        if hold.id in self.reservations and self.reservations[hold.id].state == "lost":
            self._gone.add(self.reservations[hold.id].token)
        self.reservations[hold.id] = LiteralReservation(hold.token, hold.claims, now + seconds)
        for c in hold.claims:
            self.granted[c.account] = self.granted.get(c.account, 0) + c.amount

    def settle(self, hold: Reservation, actual: Mapping[str, int], record: str | None, now: float) -> None:
        mine = self.reservations.get(hold.id)
        if mine is None or mine.token != hold.token or mine.state == "settled":
            return
        for c in mine.claims:
            cost = actual.get(c.unit, 0)
            if mine.state == "lost":
                (entry,) = (x for x in self.charges if x[0] == c.account and x[3] == mine.token)
                entry[2], entry[3] = min(cost, c.amount), None
                cost -= entry[2]
            self.charges.append([c.account, now, cost, None])
        mine.state = "settled"
        mine.record = record if mine.record is None else mine.record

    def release(self, hold: Reservation) -> None:
        mine = self.reservations.get(hold.id)
        if mine is not None and mine.token == hold.token and mine.state == "open":
            mine.state = "released"

    def mark(self, claims: Sequence[Claim], now: float) -> None:
        for c in claims:
            height = self.open(c.account) + (self.spent(c.account, now - c.seconds) if c.seconds else 0)
            self.peak[c.account] = max(self.peak.get(c.account, 0), height)
