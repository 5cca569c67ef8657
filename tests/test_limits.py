"""Limits against the scopes of a run: which accounts they open, and what a reservation asks of them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfx_agent import ConfigError, InFlight, Ratio, Window
from rfx_agent._types import Spend
from rfx_agent.limits import accounts_of, amount_of, claims_of

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
        (lambda: Window("", "usd", 1, "day"), "scope ''"),
        (lambda: Window("tenant", "cents", 1, "day"), "unit 'cents'; give one of attempts, tokens, usd, escalations"),  # type: ignore[arg-type]
        (lambda: Window("tenant", "usd", -1, "day"), "most -1"),
        (lambda: Window("tenant", "usd", float("inf"), "day"), "most inf"),
        (lambda: Window("tenant", "usd", 1, "week"), "per 'week'; give second, minute, hour, day, or seconds"),
        (lambda: Window("tenant", "usd", 1, 0), "per 0; give a finite number above 0"),
        (lambda: Ratio("model", "tokens", share=-0.1, floor=0), "share -0.1"),
        (lambda: Ratio("model", "escalations", share=0.1, floor=0), "a Ratio of escalations"),
        (lambda: InFlight("global", 1.5), "most is 1.5"),  # type: ignore[arg-type]
        (lambda: InFlight("global", True), "most True"),
    ],
)
def test_a_limit_that_cannot_work_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        make()
