"""Failure profiles: one row per failed problem, with its features and the rescue rate of each remedy.

The columns are ``cell``, ``model``, ``task``, ``problem_id``, ``n_failed_rollouts``, one per measured remedy under its
name, and what else is known: the features, ``<remedy>_attempts``, ``<remedy>_tokens``, ``kind_<kind>``. How they are
told apart is in ``lab.columns``. Event logs are in ``lab.logs``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from rfx_agent._extras import need
from rfx_agent.lab.columns import COUNT, columns_of
from rfx_agent.lab.common import FEATURES, BadRow, OnBad, ProfileError, check_on_bad
from rfx_agent.lab.rows import IDENTIFIERS, as_number, by_hand, number_check, reasons, shares_check, text_check
from rfx_agent.records import Evidence, Kind

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Profile", "is_log", "read_profile"]

Floats: TypeAlias = npt.NDArray[np.float64]

_PARQUET = b"PAR1"
_Format: TypeAlias = Literal["csv", "parquet"]


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """Columns over n failures, in the order of the file; rows that were skipped are not in them.

    Attributes:
        cell, model, task, problem_id: identifiers; a cell is one model on one task.
        n_failed: failed rollouts that the features were averaged over, int64 of shape (n,), at least 1.
        features: per feature, float64 of shape (n,); two-model features, proxies, both or none.
        rates: per remedy, share of its attempts that passed, float64 of shape (n,), in [0, 1].
        bad_rows: (row number, reason) of every row that was skipped; the first row after the header is 1.
        ignored: columns of the file that are not understood: text, and names that no remedy can have.
        attempts: per remedy that has them, how many attempts its rate rests on, int64 of shape (n,), at least 1.
        tokens: per remedy that has them, mean tokens of one attempt, float64 of shape (n,), not negative.
        kinds: share of the failed rollouts that was of each kind, float64 of shape (n,) each; they add up to 1 at most.
    """

    cell: list[str]
    model: list[str]
    task: list[str]
    problem_id: list[str]
    n_failed: npt.NDArray[np.int64]
    features: Mapping[str, Floats]
    rates: Mapping[str, Floats]
    bad_rows: tuple[BadRow, ...] = ()
    ignored: tuple[str, ...] = field(default=())
    attempts: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    tokens: Mapping[str, Floats] = field(default_factory=dict)
    kinds: Mapping[Kind, Floats] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.cell)

    @property
    def evidence(self) -> Evidence:
        """The best kind of evidence that its features are."""
        return next((kind for kind, names in FEATURES.items() if set(names) <= set(self.features)), "samples")

    @property
    def cells(self) -> list[str]:
        """The cells, in order of appearance."""
        return list(dict.fromkeys(self.cell))

    def matrix(self) -> Floats:
        """The features of its evidence as one array of shape (n, 3); (n, 0) for ``samples``."""
        columns = [self.features[name] for name in FEATURES.get(self.evidence, ())]
        return np.stack(columns, axis=1) if columns else np.zeros((len(self), 0))

    def where(self, mask: npt.NDArray[np.bool_]) -> Profile:
        """The failures that ``mask`` (n,) selects; without the record of bad rows."""
        at = np.flatnonzero(mask)

        def of(column: list[str]) -> list[str]:
            return [column[i] for i in at]

        return Profile(
            of(self.cell),
            of(self.model),
            of(self.task),
            of(self.problem_id),
            self.n_failed[at],
            {name: column[at] for name, column in self.features.items()},
            {name: column[at] for name, column in self.rates.items()},
            attempts={name: column[at] for name, column in self.attempts.items()},
            tokens={name: column[at] for name, column in self.tokens.items()},
            kinds={kind: column[at] for kind, column in self.kinds.items()},
        )


def read_profile(path: str | os.PathLike[str], *, on_bad: OnBad = "raise") -> Profile:
    """Read a profile from CSV or Parquet (told apart by their first bytes), lazily and streaming.

    A row is bad when a value is missing, is no number, is NaN or infinite, when a rate or a share leaves [0, 1], shares
    of kinds add up to more than 1, tokens are negative, a count is no whole number of at least 1, its
    (cell, problem_id) was there before, its cell was another model or task before, or it has more or fewer fields than
    the header.

    Args:
        path: the file.
        on_bad: ``raise`` at the first bad row, or ``skip`` them all and name each in ``Profile.bad_rows``.

    Raises:
        ProfileError: a file that cannot be read, columns that are missing, of the wrong type or not understood, no
            usable row, or a bad row; names the row and the column.
        ConfigError: Polars is not installed; another ``on_bad``.
    """
    check_on_bad(on_bad)
    pl = need("polars", "lab")
    source, form = Path(path), _format(path)
    try:
        frame = pl.scan_parquet(source) if form == "parquet" else pl.scan_csv(source, infer_schema=False)
        return _collect(pl, frame, source, on_bad, {}, typed=form == "parquet")
    except pl.exceptions.PolarsError as error:
        if form == "parquet":
            raise ProfileError(f"{source}: {_line(error)}; give a Parquet file with the profile's columns") from error
        # Ragged or not UTF-8: Polars does not say where. Read again, slowly, to name the rows.
    try:
        slow, odd = by_hand(pl, source)
        return _collect(pl, slow.lazy(), source, on_bad, odd, typed=False)
    except pl.exceptions.PolarsError as error:
        raise ProfileError(f"{source}: {_line(error)}") from error


def is_log(path: str | os.PathLike[str]) -> bool:
    """Whether the file looks like an event log (its first character that is no blank is a brace).

    Raises:
        ProfileError: a file that cannot be opened.
    """
    return _head(path).lstrip().startswith(b"{")


def _format(path: str | os.PathLike[str]) -> _Format:
    head = _head(path)
    if not head.strip():
        raise ProfileError(f"{os.fspath(path)}: the file is empty; give a header and at least one failure")
    if head.lstrip().startswith(b"{"):
        raise ProfileError(f"{os.fspath(path)}: an event log, not a profile; read it with lab.logs.read_log")
    return "parquet" if head.startswith(_PARQUET) else "csv"


def _head(path: str | os.PathLike[str]) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(256)
    except OSError as error:
        raise ProfileError(f"{os.fspath(path)}: {error.strerror or error}") from error


def _collect(
    pl: Any, frame: pl.LazyFrame, source: Path, on_bad: OnBad, odd: Mapping[int, str], *, typed: bool
) -> Profile:
    columns = columns_of(pl, frame, source, typed=typed)
    checks = [text_check(pl, name) for name in IDENTIFIERS]
    for name in columns.numbers:
        rate, count = name in (*columns.rates, *columns.shares), name in columns.counts
        checks.append(number_check(pl, name, rate=rate, count=count, amount=name in columns.amounts))
    if columns.shares:
        checks.append(shares_check(pl, columns.shares))
    table = (
        frame.with_row_index("_row", offset=1)
        .select(
            "_row",
            *(pl.col(name).cast(pl.String).str.strip_chars() for name in IDENTIFIERS),
            *(as_number(pl, name) for name in columns.numbers),
            pl.coalesce(*checks).alias("_why"),
        )
        .collect(engine="streaming")
        .sort("_row")
    )
    bad = reasons(table, odd)
    if bad and on_bad == "raise":
        row, why = min(bad.items())
        raise ProfileError(
            f"{source}: row {row}: {why}; mend it, or skip such rows (on_bad='skip')",
            row=row,
            column=why.split(":", 1)[0],
        )
    good = table.filter(~pl.col("_row").is_in(list(bad)))
    if good.is_empty():
        raise ProfileError(f"{source}: no usable row among {len(table)}; give at least one failure")
    known = {*IDENTIFIERS, *columns.numbers}
    return Profile(
        **{name: good[name].to_list() for name in IDENTIFIERS},
        n_failed=good[COUNT].cast(pl.Int64).to_numpy(),
        features={name: good[name].to_numpy() for name in columns.features},
        rates={name: good[name].to_numpy() for name in columns.rates},
        bad_rows=tuple(sorted(bad.items())),
        ignored=tuple(name for name in frame.collect_schema().names() if name not in known),
        attempts={name: good[f"{name}_attempts"].cast(pl.Int64).to_numpy() for name in columns.attempts},
        tokens={name: good[f"{name}_tokens"].to_numpy() for name in columns.tokens},
        kinds={kind: good[f"kind_{kind}"].to_numpy() for kind in columns.kinds},
    )


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
