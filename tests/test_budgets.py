import traceback
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfx_agent import ConfigError, Price, RetryBudget, Usage
from rfx_agent.budgets.at import store_at
from rfx_agent.budgets.redis.store import RedisStore
from rfx_agent.budgets.sql.store import SQLStore
from rfx_agent.budgets.step import CAPS, Ledger
from rfx_agent.errors import BudgetExhausted
from rfx_agent.policies.sql_store import SQLPolicyStore
from rfx_agent.records import Spend

deterministic = settings(derandomize=True, deadline=None)


def test_the_defaults_are_finite_except_money_which_needs_a_price() -> None:
    budget = RetryBudget()
    assert [cap for cap in CAPS if getattr(budget, cap) is None] == ["usd"]


@pytest.mark.parametrize("cap", CAPS)
def test_zero_means_zero_and_none_means_no_cap(cap: str) -> None:
    one = Spend(**{cap: 1})
    assert Ledger(RetryBudget(**{cap: 0})).shortfall(one) == (cap,)
    assert Ledger(RetryBudget(**{cap: None})).shortfall(one) == ()
    assert Ledger(RetryBudget(**{cap: 0})).shortfall(Spend()) == ()


@pytest.mark.parametrize("value", [-1, float("nan"), "3", True])
def test_a_cap_that_cannot_work_names_itself_and_the_value(value: object) -> None:
    with pytest.raises(ConfigError, match=r"seconds is .*; give a number"):
        RetryBudget(seconds=value)  # type: ignore[arg-type]


def test_counted_caps_are_whole_numbers() -> None:
    with pytest.raises(ConfigError, match=r"samples is 1\.5; give a whole number"):
        RetryBudget(samples=1.5)  # type: ignore[arg-type]


def test_an_unknown_cap_in_a_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown cap 'token'"):
        RetryBudget.of({"token": 3})


def test_a_reservation_that_cannot_be_paid_names_the_caps_and_sets_nothing_aside() -> None:
    ledger = Ledger(RetryBudget(samples=2, tokens=100, attempts=None))
    with pytest.raises(BudgetExhausted, match=r"samples \(needs 3, 2 left\)") as caught:
        ledger.reserve(Spend(samples=3, tokens=101))
    assert caught.value.caps == ("samples", "tokens")
    assert ledger.reserved == Spend()


def test_settling_replaces_the_reservation_by_the_real_cost_even_when_it_is_dearer() -> None:
    ledger = Ledger(RetryBudget(tokens=100)).reserve(Spend(tokens=60))
    assert ledger.remaining()["tokens"] == 40
    ledger = ledger.settle(Spend(tokens=60), Spend(tokens=130))
    assert (ledger.spent.tokens, ledger.reserved.tokens, ledger.remaining()["tokens"]) == (130, 0, 0)


def test_a_price_is_per_million_tokens() -> None:
    # 2,000 read at 3 $/M and 500 written at 15 $/M: 0.006 + 0.0075
    assert Price(prompt=3, completion=15).usd(Usage(2000, 500, 1)) == pytest.approx(0.0135)


amounts = st.builds(
    Spend,
    attempts=st.integers(0, 6),
    samples=st.integers(0, 6),
    tokens=st.integers(0, 500),
    usd=st.floats(0, 0.01),
)


@deterministic
@given(st.integers(0, 20), amounts, amounts, st.integers(0, 9))
def test_affordable_is_the_largest_count_that_can_be_reserved(
    samples: int, each: Spend, base: Spend, most: int
) -> None:
    ledger = Ledger(RetryBudget(samples=samples, tokens=900, usd=0.02, attempts=None))

    def total(n: int) -> Spend:
        cost = base
        for _ in range(n):
            cost += each
        return cost

    n = ledger.affordable(each, base, most=most)
    assert 0 <= n <= most
    assert n == 0 or ledger.shortfall(total(n)) == ()
    assert n == most or ledger.shortfall(total(n + 1)) != ()


@deterministic
@given(st.lists(st.tuples(amounts, st.floats(0, 1)), max_size=12))
def test_nothing_is_granted_beyond_the_caps_and_nothing_stays_reserved(actions: list[tuple[Spend, float]]) -> None:
    ledger = Ledger(RetryBudget(attempts=10, samples=10, tokens=1000, usd=0.02))
    for cost, share in actions:
        try:
            ledger = ledger.reserve(cost)
        except BudgetExhausted:
            continue
        ledger = ledger.settle(cost, Spend(cost.attempts, cost.samples, int(cost.tokens * share), cost.usd * share))
    assert ledger.spent.attempts <= 10
    assert ledger.spent.samples <= 10
    assert ledger.spent.tokens <= 1000
    assert ledger.spent.usd <= 0.02 + 1e-9
    assert ledger.reserved == Spend()


@pytest.mark.parametrize("store", [SQLStore, RedisStore, SQLPolicyStore, store_at])
@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("host=127.0.0.1 password=hunter2", "url is pairs of name=value, as in a DSN, and not a URL; give"),
        ("password = hunter2 x://h/db", "url is pairs of name=value"),
        ("hunter2", "url is a text without '://', and not a URL; give"),
        ("bud:hunter2@h/db", "url is a text without '://'"),
        ("bud:hunter2@h://db", "url is a text with more than a scheme before its '://'"),
        (" ", "url is an empty text"),
        ("mysql://u:hunter2@h/db", "the URL is for 'mysql'"),
        ("sqlite://u:x@hunter2/db", "three slashes|the URL is for 'sqlite'"),
    ],
)
def test_a_text_that_is_not_a_url_is_not_repeated(store: Callable[[str], object], text: str, shape: str) -> None:
    with pytest.raises(ConfigError, match=shape) as refused:
        store(text)
    assert "hunter2" not in "".join(traceback.format_exception(refused.value)).partition("ConfigError")[2]


@pytest.mark.parametrize(
    "text", ["postgresql://h/dbname=x password=hunter2", "redis://h/hunter2", "redis://h/0=hunter2"]
)
def test_what_stands_where_a_database_is_named_is_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        store_at(text)
    assert "hunter2" not in str(refused.value)
