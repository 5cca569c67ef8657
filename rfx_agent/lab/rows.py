"""What makes a profile's row bad: Polars expressions for one row, plain Python for what takes several."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rfx_agent.lab.common import ProfileError

if TYPE_CHECKING:
    import polars as pl

__all__ = ["IDENTIFIERS", "as_number", "by_hand", "number_check", "reasons", "shares_check", "text_check"]

IDENTIFIERS = ("cell", "model", "task", "problem_id")


def as_number(pl: Any, name: str) -> Any:
    """The column as numbers, from whatever type; null where a value is none."""
    return pl.col(name).cast(pl.String).str.strip_chars().cast(pl.Float64, strict=False)


def text_check(pl: Any, name: str) -> Any:
    """What is wrong with an identifier, or null."""
    raw = pl.col(name).cast(pl.String).str.strip_chars()
    return pl.when(raw.is_null() | (raw == "")).then(pl.lit(f"{name}: missing"))


def number_check(pl: Any, name: str, *, rate: bool = False, count: bool = False, amount: bool = False) -> Any:
    """What is wrong with a number, or null: a rate lies in [0, 1], a count is whole and at least 1, an amount is not
    negative.
    """
    raw = pl.col(name).cast(pl.String).str.strip_chars()
    value = as_number(pl, name)
    shown = raw.str.slice(0, 40)
    reason = pl.when(raw.is_null() | (raw == "")).then(pl.lit(f"{name}: missing"))
    reason = reason.when(value.is_null()).then(pl.format("{}: '{}' is no number", pl.lit(name), shown))
    reason = reason.when(~value.is_finite()).then(pl.format("{}: {} is not finite", pl.lit(name), shown))
    if rate:
        outside = (value < 0) | (value > 1)
        reason = reason.when(outside).then(pl.format("{}: {} lies outside [0, 1]", pl.lit(name), shown))
    if count:
        odd = (value < 1) | (value != value.round(0)) | (value > 2**53)
        reason = reason.when(odd).then(pl.format("{}: {} is no whole number of at least 1", pl.lit(name), shown))
    if amount:
        reason = reason.when(value < 0).then(pl.format("{}: {} is below 0", pl.lit(name), shown))
    return reason


def shares_check(pl: Any, names: Sequence[str]) -> Any:
    """What is wrong with columns that are shares of one whole, or null."""
    total = pl.sum_horizontal(*(as_number(pl, name) for name in names))
    text = f"{names[0]}: it and the other shares of kinds add up to more than 1"
    return pl.when(total > 1 + 1e-6).then(pl.lit(text))


def reasons(table: pl.DataFrame, odd: Mapping[int, str]) -> dict[int, str]:
    """What is wrong with each bad row; repeats and contradictions are looked for among the good ones."""
    found = dict(odd)
    first: dict[tuple[str, str], int] = {}
    cells: dict[str, tuple[str, str, int]] = {}
    for row, cell, model, task, problem, why in table.select("_row", *IDENTIFIERS, "_why").iter_rows():
        if row in found:
            continue
        if why is not None:
            found[row] = why
        elif (before := first.setdefault((cell, problem), row)) != row:
            found[row] = f"problem_id: {problem!r} of cell {cell!r} is in row {before} already"
        elif (known := cells.setdefault(cell, (model, task, row)))[:2] != (model, task):
            found[row] = f"cell: {cell!r} is {model!r} on {task!r} here, {known[0]!r} on {known[1]!r} in row {known[2]}"
    return found


def by_hand(pl: Any, source: Path) -> tuple[pl.DataFrame, dict[int, str]]:
    """The file as strings, with every row that has the wrong number of fields or bytes that are no UTF-8."""
    with source.open(newline="", encoding="utf-8", errors="replace") as file:
        lines: Iterator[list[str]] = csv.reader(file)
        try:
            header = next(lines, [])
            rows, odd = [], {}
            for number, fields in enumerate((f for f in lines if f), start=1):
                if len(fields) != len(header):
                    odd[number] = f"fields: {len(fields)} where the header has {len(header)}"
                    fields = (fields + [""] * len(header))[: len(header)]  # padded to stay in place
                elif any("\ufffd" in field for field in fields):
                    odd[number] = "bytes: not UTF-8"
                rows.append(fields)
        except csv.Error as error:
            raise ProfileError(f"{source}: {error}") from error
    if len(set(header)) < len(header):
        raise ProfileError(f"{source}: the header {header} names a column twice")
    return pl.DataFrame(rows, schema=dict.fromkeys(header, pl.String), orient="row"), odd
