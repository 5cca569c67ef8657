"""``rfx budget``: what an on-call engineer sees of the accounts."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rfx_agent import InFlight, Ratio, SharedBudget, SQLStore, Window
from rfx_agent.budgets.limits import Reservation
from rfx_agent.cli.app import app
from rfx_agent.records import Spend


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store with some traffic: one tenant that has spent its money, one call in flight."""
    url = f"sqlite:///{tmp_path}/budgets.db"
    limits = (
        Window("tenant", "usd", 0.05, "day"),
        Ratio("global", "tokens", share=0.2, floor=5_000, per="minute"),
        InFlight("global", 50),
    )
    with SQLStore(url) as store:
        shared = SharedBudget(store=store, limits=limits)
        for tenant, usd in (("acme\x1b[31m corp", 0.05), ("zebra", 0.0021)):
            mine = shared.scoped(tenant=tenant)
            hold = mine.reserve(tenant, mine.claims(Spend(usd=usd, tokens=900)))
            assert isinstance(hold, Reservation)
            if tenant != "zebra":
                mine.settle(hold, Spend(usd=usd, tokens=700), None)
        assert not isinstance(mine.reserve("more", mine.claims(Spend(usd=1.0))), Reservation)
    return url


def run(*args: str, width: int = 100, **env: str) -> Any:
    return CliRunner().invoke(app, ["budget", *args], env={"COLUMNS": str(width), **env})


@pytest.mark.parametrize("width", [80, 120])
def test_what_is_left_is_one_look_away(url: str, width: int) -> None:
    done = run(url, width=width)
    assert done.exit_code == 0, done.output
    assert "\x1b[31m" not in done.output  # a key may be anything
    assert max(map(len, done.output.splitlines())) <= width
    if width == 80:
        return  # long names are folded
    words = " ".join(done.output.split())
    assert "tenant=zebra usd/86400s $0.0500 $0.00 $0.0021 $0.0021 1 –" in words
    assert "global in flight 50 0 1 1 0 –" in words
    assert "global tokens ratio/60s 5,000+ 700 900 1,600 0 –" in words


@pytest.mark.parametrize("name", ["[/] oops [/red]", "[bold]x[/bold]", "a\u202eb", ":bomb:"])
def test_a_name_is_text(tmp_path: Path, name: str) -> None:
    url = f"sqlite:///{tmp_path}/budgets.db"
    with SQLStore(url) as store:
        mine = SharedBudget(store=store, limits=(Window("tenant", "tokens", 9, "day"),), scopes={"tenant": name})
        mine.reserve("r", mine.claims(Spend(tokens=7)))
    done = run(url, width=200)
    assert done.exit_code == 0, done.output
    assert f"tenant={name}".replace("\u202e", " ") in done.output


def test_json_has_every_figure(url: str) -> None:
    found = json.loads(run(url, "--prefix", "tenant=zebra", "--json").output)
    (account,) = found
    assert (account["most"], account["reserved"], account["refused"]) == (50_000_000, 2_100_000, 1)


def test_the_environment_names_the_store(url: str) -> None:
    assert "global in flight" in run(RFX_STORE=url).output


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ((), 2, "RFX_STORE"),
        (("budgets.db",), 1, "sqlite:///"),
        (("sqlite:////nowhere/at/all.db",), 1, "make the folder"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_line(args: tuple[str, ...], code: int, said: str) -> None:
    done = run(*args, RFX_STORE="")
    assert done.exit_code == code, done.output
    assert said in done.output


def test_an_empty_store_says_so(tmp_path: Path) -> None:
    done = run(f"sqlite:///{tmp_path}/none.db", "--prefix", "tenant=")
    assert done.exit_code == 0, done.output
    assert done.output.strip() == "no account yet begins with tenant="
