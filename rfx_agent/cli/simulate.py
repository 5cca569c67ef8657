"""``rfx simulate``: policies replayed on a profile or a log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from rfx_agent.cli.options import BadRows, Engine, Json, Screen, reported, table, warn
from rfx_agent.errors import ConfigError
from rfx_agent.lab.logs import Log, read_log
from rfx_agent.lab.profiles import Profile, is_log, read_profile
from rfx_agent.lab.simulate import NAMES, Simulation
from rfx_agent.lab.simulate import simulate as run
from rfx_agent.records import REMEDY_NAME

__all__ = ["simulate"]


def simulate(
    source: Annotated[Path, typer.Argument(help="Failure profiles (CSV, Parquet) or an event log (JSON lines).")],
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Policy to replay, again for more: {', '.join(NAMES)}, fixed:REMEDY+REMEDY, learned:PRICE.",
            show_default="those five; paper_rule only where it can be played",
        ),
    ] = None,
    budget: Annotated[
        list[int] | None,
        typer.Option(min=1, max=60, help="Attempts per failure, again for more.", show_default="1 2 3 4 6 8"),
    ] = None,
    tokens: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Tokens per failure, again for more; needs what an attempt of each remedy costs.",
            show_default=False,
        ),
    ] = None,
    orders: Annotated[int, typer.Option(min=1, help="Seeded orders per cell.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of orders, outcomes and intervals.")] = 0,
    cost: Annotated[
        list[str] | None,
        typer.Option(
            help="REMEDY=COST of one attempt, of any remedy that was measured, again for more; 1 each otherwise.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads, or Ray's workers.")] = 1,
    engine: Annotated[Engine, typer.Option(help="What the workers are.")] = "threads",
    on_bad: BadRows = "raise",
    as_json: Json = False,
) -> None:
    """Replay policies on measured failures: rescue within budgets, attempts, escalations, waste.

    A remedy is whatever SOURCE has rates or attempts of; its name is of small letters, digits and underscores.

    Prequential: in each order every failure is met once, and a policy learns only from its own attempts.
    """
    with reported() as err:
        read: Profile | Log
        read = read_log(source, on_bad=on_bad) if is_log(source) else read_profile(source, on_bad=on_bad)
        found = run(
            read,
            policy or None,
            budgets=tuple(dict.fromkeys(budget or (1, 2, 3, 4, 6, 8))),
            tokens=tuple(dict.fromkeys(tokens or ())),
            orders=orders,
            seed=seed,
            costs=_costs(cost or []),
            workers=workers,
            engine=engine,
        )
        warn(err, source, read.bad_rows)
    Screen(stderr=as_json).print(*_tables(found))
    if as_json:
        bad = [{"row": number, "reason": reason} for number, reason in read.bad_rows]
        typer.echo(json.dumps({"source": str(source), "skipped": bad} | found.as_dict(), allow_nan=False))


def _costs(given: list[str]) -> dict[str, float]:
    costs: dict[str, float] = {}
    for item in given:
        name, _, amount = item.partition("=")
        try:
            value = float(amount)
        except ValueError:
            value = -1.0
        if not REMEDY_NAME.fullmatch(name) or not 0 <= value < float("inf"):
            raise ConfigError(f"--cost {item!r}: give REMEDY=COST, such as revise=1.5")
        costs[name] = value
    return costs


def _tables(found: Simulation) -> tuple[Table, ...]:
    """What each policy rescues, and what it spends: several tables, so that 80 columns suffice."""
    last = str(max(found.budgets))
    title = f"Rescued within B attempts, mean over {len(found.cells)} cells, {found.orders} orders"
    rescued = table(title, "policy", *(f"B={b}" for b in found.budgets), f"over retry, B={last}")
    spent = table("Spent per failure", "policy", "attempts", "escalated", "attempts on what nothing rescues")
    for name in found.policies:
        figures = found.mean[name]
        gain, wasted = figures["against_retry"][last], figures["wasted_attempts"]
        beyond = f"{gain['difference']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"
        rescued.add_row(name, *(f"{figures['rescue_within'][str(b)]:.3f}" for b in found.budgets), beyond)
        lost = "–" if wasted is None else f"{wasted:.2f}"
        spent.add_row(name, f"{figures['attempts']:.2f}", f"{figures['escalated']:.1%}", lost)
    if not found.tokens:
        return rescued, spent
    title = f"Rescued within T tokens and {last} attempts"
    within = table(title, "policy", *(f"T={t}" for t in found.tokens))
    for name in found.policies:
        within.add_row(name, *(f"{found.mean[name]['rescue_within_tokens'][str(t)]:.3f}" for t in found.tokens))
    return rescued, spent, within
