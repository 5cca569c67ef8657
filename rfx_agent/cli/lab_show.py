"""What the lab's commands show on a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from rfx_agent.cli.options import plain, table
from rfx_agent.lab.evidence.intervals import wilson

__all__ = ["accuracy_table", "counts_table", "finite", "kinds_lines", "population_table", "regime_table"]


def population_table(population: dict[str, Any]) -> Table:
    """Counts, means and intervals of one population, as ``intervals`` gives them."""
    made = table(plain(f"{population['model']} on {population['task']}"), "", "count", "mean", "95 % interval", "std")
    rows = [(n, f) for kind in population["features"].values() for n, f in kind.items()]
    for what, f in [*rows, *((f"{op} rate", f) for op, f in population["rates"].items())]:
        low, high = f["mean_interval"]
        made.add_row(what, str(f["count"]), f"{f['mean']:.4f}", f"{low:.4f} to {high:.4f}", f"{f['std']:.4f}")
    return made


def counts_table(population: dict[str, Any]) -> Table | None:
    """How often each remedy rescued, by how the answer before it had failed; None where no attempt was counted."""
    counts = {key: held for key, held in population["counts"].items() if "@" not in key}
    if not counts:
        return None
    heads = ("remedy", "after", "told why", "attempts", "rescued", "rate", "95 % interval")
    made = table("Rescued, by how the answer before had failed", *heads, left=3)
    for key, held in counts.items():
        remedy, *rest = key.split("|")
        told = "yes" if "told" in rest else "no" if rest else ""
        kind = next((part.replace("_", " ") for part in rest if part != "told"), "not known")
        passes, attempts = held["passes"], held["attempts"]
        between = wilson(passes, int(attempts))
        interval = f"{between['low']:.2f} to {between['high']:.2f}"
        made.add_row(remedy, kind, told, f"{attempts:g}", f"{passes:g}", f"{held['rate']:.3f}", interval)
    return made


def kinds_lines(found: dict[str, Any]) -> list[str]:
    """One line for each cell that says how its rollouts failed."""
    lines = []
    for cell in found["cells"]:
        shares = sorted(cell.get("kinds", {}).items(), key=lambda item: -item[1])
        if shares:
            said = ", ".join(f"{kind.replace('_', ' ')} {share:.1%}" for kind, share in shares)
            lines.append(f"kinds of failure, {plain(cell['model'])} on {plain(cell['task'])}: {said}")
    return lines


def regime_table(found: dict[str, Any]) -> Table:
    """Build the table of regimes per cell from what ``audit`` found."""
    counts = ("failures", "stochastic", "structural", "out of reach", "retry")
    made = table("Regimes", "model", "task", *counts, left=2)
    for cell in found["cells"]:
        held = cell.get("regimes", {})
        held_in = [str(held.get(r, "")) for r in ("stochastic", "structural", "out_of_reach")]
        retry = cell["rates"].get("retry")
        shown = "" if retry is None else f"{retry:.3f}"
        made.add_row(plain(cell["model"]), plain(cell["task"]), str(cell["failures"]), *held_in, shown)
    return made


def accuracy_table(questions: list[tuple[str, Any]]) -> Table:
    """What was told apart, and how well; a question without an answer shows dashes."""
    made = table("Told apart, cross-validated", "question", "accuracy", "std over folds", "majority")
    for what, scores in questions:
        cells = ("–",) * 3 if scores is None else [f"{scores[k]:.3f}" for k in ("accuracy", "std", "majority")]
        made.add_row(what, *cells)
    return made


def finite(value: Any) -> Any:
    """The same with infinities as text: JSON has none."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    return value
