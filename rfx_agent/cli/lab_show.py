"""What the lab's commands show on a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from rfx_agent.cli.show import plain

__all__ = ["accuracy_table", "finite", "population_table", "regime_table"]


def population_table(population: dict[str, Any]) -> Table:
    """Counts, means and intervals of one population, as ``intervals`` gives them."""
    table = Table(title=plain(f"{population['model']} on {population['task']}"), title_justify="left")
    for column in ("", "count", "mean", "95 % interval", "std"):
        table.add_column(column, justify="left" if column == "" else "right")
    rows = [(n, f) for kind in population["features"].values() for n, f in kind.items()]
    for what, f in [*rows, *((f"{op} rate", f) for op, f in population["rates"].items())]:
        low, high = f["mean_interval"]
        table.add_row(what, str(f["count"]), f"{f['mean']:.4f}", f"{low:.4f} to {high:.4f}", f"{f['std']:.4f}")
    return table


def regime_table(found: dict[str, Any]) -> Table:
    """Regimes per cell, as ``audit`` gives them."""
    table = Table(title="Regimes", title_justify="left")
    for column in ("model", "task", "failures", "stochastic", "structural", "out of reach", "retry"):
        table.add_column(column, justify="left" if column in ("model", "task") else "right")
    for cell in found["cells"]:
        held = cell.get("regimes", {})
        counts = [str(held.get(r, "")) for r in ("stochastic", "structural", "out_of_reach")]
        retry = cell["rates"].get("retry")
        shown = "" if retry is None else f"{retry:.3f}"
        table.add_row(plain(cell["model"]), plain(cell["task"]), str(cell["failures"]), *counts, shown)
    return table


def accuracy_table(questions: list[tuple[str, Any]]) -> Table:
    """What was told apart, and how well; a question without an answer shows dashes."""
    table = Table(title="Told apart, cross-validated", title_justify="left")
    for column in ("question", "accuracy", "std over folds", "majority"):
        table.add_column(column, justify="left" if column == "question" else "right")
    for what, scores in questions:
        cells = ("–",) * 3 if scores is None else [f"{scores[k]:.3f}" for k in ("accuracy", "std", "majority")]
        table.add_row(what, *cells)
    return table


def finite(value: Any) -> Any:
    """The same with infinities as text: JSON has none."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    return value
