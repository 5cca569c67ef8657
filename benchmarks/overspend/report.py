"""The tables of ``docs/overspend.md`` from a result: ``python -m benchmarks.overspend.report FILE`` prints Markdown."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.overspend.table import ENTRIES

_ORDER = ("asyncio", "threads", "stream", "lost", "processes", "kills", "agents")


def percent(row: dict[str, Any]) -> str:
    """How far over the cap a row is."""
    return "0" if not row["over"] else f"**+{row['over_percent']:.1f} %**"


def line(*cells: object) -> str:
    """One row of a table."""
    return "| " + " | ".join(str(x) for x in cells) + " |"


def over(rows: list[dict[str, Any]]) -> list[str]:
    """Who crosses the cap where: a column per scenario."""
    ways = [
        (x, u) for x in _ORDER for u in ("tokens", "usd") if any((r["scenario"], r["unit"]) == (x, u) for r in rows)
    ]
    found = {(r["peer"], r["scenario"], r["unit"]): r for r in rows}
    named = {r["peer"] for r in rows}
    names = [x.name for x in ENTRIES if x.name in named]
    lines = [line("", *(f"{x}, {u}" for x, u in ways)), line("---", *("---:" for _ in ways))]
    for name in names:
        cells = [percent(found[name, *way]) if (name, *way) in found else "" for way in ways]
        lines.append(line(name, *cells))
    return lines


def scenario(rows: list[dict[str, Any]], name: str, unit: str) -> list[str]:
    """All columns of one scenario."""
    some = [r for r in rows if (r["scenario"], r["unit"]) == (name, unit)]
    heads = (
        "",
        "granted",
        "answered",
        "billed",
        "over",
        "cap used",
        "refused",
        "unfinished",
        "it says",
        "median",
        "p95",
    )
    lines = [line(*heads), line("---", *("---:" for _ in heads[1:]))]
    for r in some:
        says = "" if r["says"] is None else f"{100 * r['says'] / r['cap']:.1f} %"
        took = [f"{r[x]:.0f} ms" if r[x] else "" for x in ("median_ms", "p95_ms")]
        counts = (r["granted"], r["answered"], r["billed"], percent(r), f"{r['used_percent']} %")
        lines.append(line(r["peer"], *counts, r["refused"], r["unfinished"], says, *took))
    return lines


def timed(rows: list[dict[str, Any]]) -> list[str]:
    """What the limit costs a call."""
    lines = [line("", "store", "bare", "limited", "ratio", "more"), line("---", "---", *("---:" for _ in range(4)))]
    for r in rows:
        ms = [f"{r[x]['median_ms']} ms (p95 {r[x]['p95_ms']})" for x in ("bare", "limited")]
        lines.append(line(r["peer"], r["store"], *ms, r["ratio"], f"{r['more_ms']} ms"))
    return lines


def main() -> None:
    """Print all tables."""
    result = json.loads(Path(sys.argv[1]).read_text())
    rows = result["rows"]
    print("\n".join(over(rows)))
    for name, unit in dict.fromkeys((r["scenario"], r["unit"]) for r in rows):
        cap = next(r["cap"] for r in rows if (r["scenario"], r["unit"]) == (name, unit))
        print(f"\n### {name}, a cap of {cap} {unit}\n\n" + "\n".join(scenario(rows, name, unit)))
    print("\n### timed\n\n" + "\n".join(timed(result["timed"])))


if __name__ == "__main__":
    main()
