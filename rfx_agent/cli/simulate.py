"""``rfx simulate``: policies replayed on a profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from rfx_agent._errors import ConfigError
from rfx_agent._types import Operator
from rfx_agent.cli.options import Engine, reported
from rfx_agent.lab.simulate import NAMES, Simulation
from rfx_agent.lab.simulate import simulate as run
from rfx_agent.policies._base import ROUTES

__all__ = ["simulate"]


def simulate(
    profile: Annotated[Path, typer.Argument(help="Failure profile, CSV or Parquet.", show_default=False)],
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Policy to replay, again for more: {', '.join(NAMES)}, fixed:OP+OP, learned:PRICE.",
            show_default="those five",
        ),
    ] = None,
    budget: Annotated[
        list[int] | None,
        typer.Option(min=1, max=60, help="Attempts per failure, again for more.", show_default="1 2 3 4 6 8"),
    ] = None,
    orders: Annotated[int, typer.Option(min=1, help="Seeded orders per cell.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of orders, outcomes and intervals.")] = 0,
    cost: Annotated[
        list[str] | None,
        typer.Option(help="OPERATOR=COST of one attempt, again for more; 1 each otherwise.", show_default=False),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads, or Ray's workers.")] = 1,
    engine: Annotated[Engine, typer.Option(help="What the workers are.")] = Engine.threads,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Skip malformed rows, and name them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Replay policies on measured failures: rescue within budgets, attempts, escalations, waste.

    Prequential: in each order every failure is met once, and a policy learns only from its own attempts.
    """
    console = Console(stderr=as_json, soft_wrap=False)
    with reported(Console(stderr=True)):
        from rfx_agent.lab.profiles import read_profile

        read = read_profile(profile, on_bad="skip" if skip_bad else "raise")
        found = run(
            read,
            policy or NAMES,
            budgets=tuple(dict.fromkeys(budget or (1, 2, 3, 4, 6, 8))),
            orders=orders,
            seed=seed,
            costs=_costs(cost or []),
            workers=workers,
            engine=engine.value,
        )
    for number, reason in read.bad_rows:
        Console(stderr=True).print(f"row {number} skipped: {reason}", style="yellow", markup=False, highlight=False)
    console.print(_table(found))
    if as_json:
        bad = [{"row": number, "reason": reason} for number, reason in read.bad_rows]
        typer.echo(json.dumps({"profile": str(profile), "skipped": bad} | found.as_dict(), allow_nan=False))


def _costs(given: list[str]) -> dict[Operator, float]:
    costs: dict[Operator, float] = {}
    for item in given:
        name, _, amount = item.partition("=")
        operator = next((op for op in ROUTES if op == name), None)
        try:
            value = float(amount)
        except ValueError:
            value = -1.0
        if operator is None or not 0 <= value < float("inf"):
            raise ConfigError(f"--cost {item!r}: give OPERATOR=COST with one of {', '.join(ROUTES)}")
        costs[operator] = value
    return costs


def _table(found: Simulation) -> Table:
    table = Table(title=f"Rescued within B attempts, mean over {len(found.cells)} cells, {found.orders} orders")
    table.add_column("policy")
    for b in found.budgets:
        table.add_column(f"B={b}", justify="right")
    last = str(max(found.budgets))
    for heading in ("attempts", "escalated", "wasted", f"over retry, B={last}"):
        table.add_column(heading, justify="right")
    for name in found.policies:
        figures = found.mean[name]
        gain = figures["against_retry"][last]
        wasted = figures["wasted_attempts"]
        table.add_row(
            name,
            *(f"{figures['rescue_within'][str(b)]:.3f}" for b in found.budgets),
            f"{figures['attempts']:.2f}",
            f"{figures['escalated']:.1%}",
            "–" if wasted is None else f"{wasted:.2f}",
            f"{gain['difference']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})",
        )
    return table
