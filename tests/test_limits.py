"""Limits against the scopes of a run: which accounts they open, and what a reservation asks of them."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfx_agent import ConfigError, InFlight, Ratio, Window
from rfx_agent.budgets.limits import Refused, Replayed, Reservation, accounts_of, amount_of, claims_of
from rfx_agent.budgets.memory import MemoryStore
from rfx_agent.budgets.shared import SharedBudget
from rfx_agent.records import Spend

LIMITS = (
    Window("tenant", "usd", 5.0, "day"),
    Ratio("model", "tokens", share=0.2, floor=1_000),
    InFlight("global", 7),
)


def test_every_key_of_a_scope_has_an_account_of_its_own() -> None:
    names = [x.account for x in accounts_of(LIMITS, {"tenant": "acme", "model": "m"})]
    assert names == ["tenant=acme usd/86400s", "model=m tokens ratio/60s", "global in flight"]


def test_one_key_may_have_another_limit() -> None:
    limits = (*LIMITS, Window("tenant", "usd", 50.0, 86_400, key="acme"), Window("tenant", "usd", 1.0, "hour"))
    for tenant, most in (("acme", 50), ("zebra", 5)):
        found = accounts_of(limits, {"tenant": tenant, "model": "m"})
        money = [x for x in found if x.account == f"tenant={tenant} usd/86400s"]
        assert [x.most for x in money] == [most * 10**9]
        assert f"tenant={tenant} usd/3600s" in [x.account for x in found]


def test_a_limit_of_a_scope_that_a_run_does_not_name_is_no_hole() -> None:
    with pytest.raises(ConfigError, match=r"scope 'model', which this run does not name.*call scoped\(model=...\)"):
        accounts_of(LIMITS, {"tenant": "acme"})


def test_what_a_reservation_asks() -> None:
    accounts = accounts_of(LIMITS, {"tenant": "acme", "model": "m"})
    asked = claims_of(accounts, Spend(usd=0.25, tokens=300), flight=True)
    assert [(x.unit, x.amount, x.most) for x in asked] == [
        ("usd", 250_000_000, 5 * 10**9),
        ("tokens", 300, 1_000),
        ("recoveries", 1, 7),
    ]
    assert (asked[0].seconds, asked[1].seconds, asked[1].share, asked[2].seconds) == (86_400, 60, 0.2, 0)
    assert claims_of(accounts, Spend(attempts=3), flight=False) == ()  # nobody limits attempts


@given(st.floats(0, 1e6, allow_nan=False))
def test_money_is_never_rounded_down(usd: float) -> None:
    nano = amount_of(Spend(usd=usd), "usd")
    assert nano >= usd * 1e9 * (1 - 1e-12) - 1e-6
    assert nano <= usd * 1e9 * (1 + 1e-12) + 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Window("", "usd", 1, "day"), "scope is ''"),
        (lambda: Window("tenant", "cents", 1, "day"), "unit is 'cents'; give one of 'attempts', 'tokens', 'usd'"),  # type: ignore[arg-type]
        (lambda: Window("tenant", "usd", -1, "day"), "most is -1"),
        (lambda: Window("tenant", "usd", float("inf"), "day"), "most is inf"),
        (lambda: Window("tenant", "usd", 1, "week"), "per is 'week'; give second, minute, hour, day, or seconds"),
        (lambda: Window("tenant", "usd", 1, 0), "per is 0; give a finite number above 0"),
        (lambda: Ratio("model", "tokens", share=-0.1, floor=0), "share is -0.1"),
        (lambda: Ratio("model", "escalations", share=0.1, floor=0), "a Ratio of escalations"),
        (lambda: InFlight("global", 1.5), "most is 1.5"),  # type: ignore[arg-type]
        (lambda: InFlight("global", True), "most is True"),
    ],
)
def test_a_limit_that_cannot_work_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        make()


def test_zero_is_a_limit() -> None:
    for limit in (Window("global", "usd", 0, "day"), Ratio("global", "tokens", 0, 0), InFlight("global", 0)):
        (account,) = accounts_of([limit], {})
        assert account.most == 0


def test_a_price_that_floats_cannot_hold_is_not_a_billionth_dearer() -> None:
    assert amount_of(Spend(usd=0.1 + 0.2), "usd") == 300_000_000
    assert amount_of(Spend(usd=1e-12), "usd") == 1


# --- the budget that runs share ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"store": None}, r"store is None; give one such as MemoryStore\(\) or SQLStore\(url\)"),
        ({"store": MemoryStore}, r"store is <class .*MemoryStore'>; give one"),
        ({"limits": ("usd",)}, "limits has 'usd'; give Window, Ratio or InFlight"),
        ({"scopes": {"tenant": 3}}, "scope 'tenant' is 3; give a name and a key that is a text"),
        ({"scopes": {"global": "x"}}, "scope 'global' is 'x'"),
        ({"wait": -1}, "wait is -1; give seconds of at least 0"),
        ({"seconds": 0}, r"seconds is 0; give seconds of at least 0\.001"),
    ],
)
def test_a_shared_budget_that_cannot_work_says_why(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SharedBudget(**{"store": MemoryStore(), **changes})


def test_runs_of_one_scope_share_and_those_of_others_do_not() -> None:
    store = MemoryStore()
    budget = SharedBudget(store=store, limits=(Window("tenant", "attempts", 2, "hour"),))
    acme, other = budget.scoped(tenant="acme"), budget.scoped(tenant="other")
    assert isinstance(acme.reserve("a", acme.claims(Spend(attempts=2))), Reservation)
    assert isinstance(acme.reserve("b", acme.claims(Spend(attempts=1))), Refused)
    assert isinstance(other.reserve("c", other.claims(Spend(attempts=2))), Reservation)


def test_what_was_settled_with_a_record_is_replayed() -> None:
    budget = SharedBudget(store=MemoryStore(), limits=(Window("global", "usd", 1, "hour"),))
    hold = budget.reserve("a", budget.claims(Spend(usd=0.5)))
    assert isinstance(hold, Reservation)
    budget.settle(hold, Spend(usd=0.25, tokens=7), "record")
    assert budget.reserve("a", budget.claims(Spend(usd=0.5))) == Replayed("record")
    (account,) = budget.store.accounts()
    assert (account.spent, account.reserved) == (250_000_000, 0)


def test_credit_comes_from_normal_traffic() -> None:
    budget = SharedBudget(store=MemoryStore(), limits=(Ratio("global", "tokens", 0.2, 0), InFlight("global", 9)))
    claims = budget.claims(Spend(tokens=20))
    assert isinstance(budget.reserve("a", claims), Refused)
    budget.deposit(Spend(tokens=99))
    assert isinstance(budget.reserve("a", claims), Refused)
    budget.deposit(Spend(tokens=1))
    assert isinstance(budget.reserve("a", claims), Reservation)


@pytest.mark.parametrize("how", ["sync", "async"])
def test_who_may_wait_is_granted_when_somebody_gives_back(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    budget = SharedBudget(store=store, limits=(InFlight("global", 1),), wait=3600.0)
    claims = budget.claims(Spend())
    first = budget.reserve("a", claims)
    assert isinstance(first, Reservation)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            store.release(first)

    async def asleep(seconds: float) -> None:
        sleep(seconds)

    monkeypatch.setattr("rfx_agent.budgets.shared.time.sleep", sleep)
    monkeypatch.setattr("rfx_agent.budgets.shared.asyncio.sleep", asleep)
    grant = budget.reserve("b", claims) if how == "sync" else asyncio.run(budget.areserve("b", claims))
    assert isinstance(grant, Reservation)
    assert slept == [0.05, 0.1, 0.2]


@pytest.mark.parametrize("how", ["sync", "async"])
def test_who_may_not_wait_is_refused_at_once(how: str) -> None:
    budget = SharedBudget(store=MemoryStore(), limits=(InFlight("global", 0),))
    claims = budget.claims(Spend())
    grant = budget.reserve("b", claims) if how == "sync" else asyncio.run(budget.areserve("b", claims))
    assert grant == Refused(("global in flight",))
