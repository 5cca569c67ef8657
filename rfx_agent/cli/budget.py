"""``rfx budget``: the accounts of a shared budget, for whoever is on call."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from rfx_agent.budgets.at import store_at
from rfx_agent.budgets.limits import Account
from rfx_agent.cli.options import Json, Screen, plain, reported, table

__all__ = ["budget"]

Url = Annotated[
    str | None,
    typer.Argument(help="sqlite:///budgets.db, postgresql://user@host/database, redis://host; by default RFX_STORE."),
]


class _Shows(TyperGroup):
    """A group whose first command is the one that is meant where none is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["show", *args]
        given: list[str] = super().parse_args(ctx, args)
        return given


budget = typer.Typer(cls=_Shows, help="Budgets that many runs share: what is left of them, and what may go.")


@budget.command("show")
def show(
    url: Url = None,
    prefix: Annotated[str, typer.Option(help="Only accounts whose name begins so, such as tenant=acme.")] = "",
    as_json: Json = False,
) -> None:
    """Show what is left of budgets that many runs share. It only reads: no reservation expires by looking."""
    with reported(), store_at(_place(url)) as store:
        found = store.accounts(prefix)
    if as_json:
        typer.echo(json.dumps([asdict(x) for x in found]))
        return
    console = Screen()
    if not found:
        console.print("no account yet" + (f" begins with {plain(prefix, 60)}" if prefix else ""))
        return
    console.print(_table(found))
    if any(x.lost for x in found):
        console.print("expired: reserved by processes that died in mid-call; it counts as spent")


@budget.command("prune")
def prune(
    url: Url = None,
    days: Annotated[float, typer.Option(min=0, help="Only what ended, or last counted, so many days ago.")] = 7.0,
    shrink: Annotated[bool, typer.Option(help="Give the disk the room back; others wait for that.")] = False,
    as_json: Json = False,
) -> None:
    """Delete ended reservations and records, and accounts in which nothing counts any more."""
    with reported(), store_at(_place(url)) as store:
        pruned = store.prune(days * 86_400, shrink=shrink)
    if as_json:
        typer.echo(json.dumps(asdict(pruned)))
    else:
        typer.echo(f"deleted {pruned.accounts:,} accounts and {pruned.reservations:,} ended reservations")


def _place(url: str | None) -> str:
    place = url or os.environ.get("RFX_STORE")
    if not place:
        raise typer.BadParameter("give the store's URL, or set RFX_STORE")
    return place


def _table(found: list[Account]) -> Table:
    made = table("", "account", "limit", "spent", "reserved", "peak", "refused", "expired")
    for x in found:
        floor = "+" if x.kind == "ratio" else ""  # and a share of the traffic on top
        row = [_amount(x.most, x.unit) + floor, _amount(x.in_window, x.unit), _amount(x.reserved, x.unit)]
        row += [_amount(x.peak, x.unit), f"{x.refused:,}", _amount(x.lost, x.unit) if x.lost else "–"]
        used = x.in_window + x.reserved
        style = "red" if x.kind != "ratio" and used >= x.most else ""
        made.add_row(plain(x.name, 60), *row, style=style)
    return made


def _amount(amount: int, unit: str) -> str:
    """Billionths of a dollar as dollars, with as many digits as tell small amounts apart."""
    if unit != "usd":
        return f"{amount:,}"
    dollars = amount / 1e9
    return f"${dollars:,.2f}" if dollars >= 1 or not dollars else f"${dollars:.4f}"
