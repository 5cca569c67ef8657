"""Trajectory features over Arrow batches: one pure function, the same on a thread or on a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rfx_agent._errors import FeatureError
from rfx_agent._extras import need
from rfx_agent.lab._common import ProfileError
from rfx_agent.lab._kernel import available, fast_token_features
from rfx_agent.numerics.tokens import TokenFeatures, token_features
from rfx_agent.numerics.toplogprobs import TopLogprobs
from rfx_agent.numerics.trajectory import RolloutFeatures, rollout_features

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]  # ships no stubs

__all__ = ["INPUT", "check_schema", "features_of_batch", "output_schema", "token_features_of_batch"]

Array: TypeAlias = npt.NDArray[Any]

INPUT = ("rollout", "taken", "specialist_ids", "specialist_logprobs", "ancestor_ids", "ancestor_logprobs")
"""Columns of the input, one row a rollout of L tokens: its id; L taken tokens; L lists of ids; L lists of
log-probabilities (natural, T = 1), of the specialist and of the ancestor. Inner lists may be of fixed size or not."""


def features_of_batch(
    batch: pa.RecordBatch, *, temperature: float = 0.6, coverage_k: int = 20, window: int = 8, fast: bool | None = None
) -> pa.RecordBatch:
    """Per rollout: ``rollout``, the three features, ``positions``, ``peak``, the junction, and ``error``.

    A row as long as the input's for each rollout, in order. One that breaks its contract has its error in words and no
    features; one without a position has neither.

    Args:
        batch: rows with the columns of ``INPUT``.
        temperature: T of the features.
        coverage_k: size of the ancestor's preferred set.
        window: half-width of the junction.
        fast: whether to use the compiled kernel; by default, where numba is installed.

    Raises:
        ConfigError: pyarrow is not installed, or numba where ``fast`` is true.
    """
    pa = need("pyarrow", "lab")
    given = _Batch(batch)
    tokens, good = _fast(given, temperature, coverage_k, fast)
    found: list[RolloutFeatures | None] = []
    errors: list[str | None] = []
    for i in range(len(batch)):
        rows, one, error = given.positions(i), None, None
        try:
            if tokens is None or given.odd[i] or not good[rows].all():
                part = token_features(*given.tables(i), temperature=temperature, coverage_k=coverage_k)
            else:
                part = TokenFeatures(*(getattr(tokens, name)[rows] for name in TokenFeatures.__slots__))
            one = rollout_features(part, window=window)
        except FeatureError as broken:
            error = str(broken)
        found.append(one)
        errors.append(error)
    schema = output_schema(batch.schema)
    columns = {
        name: [None if f is None else getattr(f, name) for f in found]
        for name in ("spread", "concentration", "logit_dispersion", "positions", "peak")
    }
    junctions = [None if f is None else f.junction for f in found]
    for at, name in enumerate(("junction_start", "junction_stop")):
        columns[name] = [None if j is None else j[at] for j in junctions]
    arrays = [batch.column("rollout"), *(pa.array(columns[f.name], f.type) for f in list(schema)[1:-1])]
    return pa.RecordBatch.from_arrays([*arrays, pa.array(errors, pa.string())], schema=schema)


def token_features_of_batch(
    batch: pa.RecordBatch, *, temperature: float = 0.6, coverage_k: int = 20, fast: bool | None = None
) -> TokenFeatures:
    """The token features of all positions of all rollouts, one after the other; every row must keep its contract.

    Raises:
        FeatureError: a row that does not; names the rollout's place in the batch and the position.
    """
    given = _Batch(batch)
    tokens, good = _fast(given, temperature, coverage_k, fast)
    if tokens is not None and good.all() and not given.odd.any():
        return tokens
    parts = [
        token_features(*given.tables(i), temperature=temperature, coverage_k=coverage_k) for i in range(len(batch))
    ]
    return TokenFeatures(*(np.concatenate([getattr(p, n) for p in parts]) for n in TokenFeatures.__slots__))


def check_schema(schema: pa.Schema, source: str) -> None:
    """Refuse a file that has not the columns of ``INPUT``.

    Raises:
        ProfileError: a column that is missing or of another kind; names the file and the column.
    """
    types = need("pyarrow", "lab").types
    listed = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    for name in INPUT:
        if name not in schema.names:
            raise ProfileError(f"{source}: column {name!r} is missing; the file has {schema.names}", column=name)
        kind, depth = schema.field(name).type, 0
        while any(is_list(kind) for is_list in listed):
            kind, depth = kind.value_type, depth + 1
        wanted = 0 if name == "rollout" else 1 if name == "taken" else 2
        number = types.is_floating if name.endswith("logprobs") else types.is_integer
        if depth != wanted or (wanted and not number(kind)):
            what = "numbers" if name.endswith("logprobs") else "integers"
            raise ProfileError(
                f"{source}: column {name!r} is of type {schema.field(name).type}; "
                f"give {'list of ' * wanted}{what if wanted else 'one id'}",
                column=name,
            )


def output_schema(schema: pa.Schema) -> pa.Schema:
    """Columns of the output for an input of ``schema``."""
    pa = need("pyarrow", "lab")
    numbers = [(name, pa.float64()) for name in ("spread", "concentration", "logit_dispersion")]
    whole = [(name, pa.int32()) for name in ("positions", "peak", "junction_start", "junction_stop")]
    return pa.schema([schema.field("rollout"), *numbers, *whole, ("error", pa.string())])


class _Batch:
    """A batch's columns as NumPy arrays, without copies where Arrow's own are whole and regular."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.taken, self.ends, lost = _flat(batch.column("taken"))
        self.sides: dict[str, tuple[Array, Array, Array, Array]] = {}
        self.odd = lost
        for side in ("specialist", "ancestor"):
            ids, lps = batch.column(f"{side}_ids"), batch.column(f"{side}_logprobs")
            inner, ends, lost = _flat_lists(ids)
            inner_lps, ends_lps, lost_lps = _flat_lists(lps)
            values, edges, hollow = _flat(inner)
            numbers, edges_lps, hollow_lps = _flat(inner_lps)
            self.sides[side] = values, edges, numbers, edges_lps
            self.odd = self.odd | lost | lost_lps
            if not (np.array_equal(ends, self.ends) and np.array_equal(ends_lps, self.ends)):
                lengths = [np.diff(e) for e in (self.ends, ends, ends_lps)]
                self.odd = self.odd | (lengths[0] != lengths[1]) | (lengths[0] != lengths[2])
            self.regular = getattr(self, "regular", True) and not self.odd.any() and _width(edges, edges_lps) > 0
            self.regular = self.regular and not hollow.any() and not hollow_lps.any()
            self.ends_of = getattr(self, "ends_of", {}) | {side: (ends, ends_lps)}

    def positions(self, i: int) -> slice:
        return slice(int(self.ends[i]), int(self.ends[i + 1]))

    def arrays(self) -> list[Array]:
        """Ids and log-probabilities of both sides, (n, K) each; only where ``regular``."""
        found = []
        for values, edges, numbers, edges_lps in self.sides.values():
            width = _width(edges, edges_lps)
            found += [values.reshape(-1, width), numbers.reshape(-1, width)]
        return found

    def tables(self, i: int) -> tuple[TopLogprobs, TopLogprobs]:
        """Both tables of one rollout.

        Raises:
            FeatureError: lists of unequal lengths, and what ``TopLogprobs`` refuses.
        """
        rows, found = self.positions(i), []
        for side, (values, edges, numbers, edges_lps) in self.sides.items():
            ends, ends_lps = self.ends_of[side]
            first, length = int(ends[i]), rows.stop - rows.start
            if not (int(ends[i + 1]) - first == int(ends_lps[i + 1]) - int(ends_lps[i]) == length):
                raise FeatureError(
                    f"{length} tokens were taken, the {side} has {int(ends[i + 1]) - first} rows of ids and "
                    f"{int(ends_lps[i + 1] - ends_lps[i])} of log-probabilities"
                )
            counts = np.diff(edges[first : first + length + 1])
            start = int(ends_lps[i])
            if not np.array_equal(counts, np.diff(edges_lps[start : start + length + 1])):
                raise FeatureError(f"the {side} has rows with another number of ids than of log-probabilities")
            there = np.arange(max(int(counts.max(initial=0)), 1)) < counts[:, None]
            ids, lps = np.full(there.shape, -1, np.int64), np.full(there.shape, -np.inf)
            ids[there] = values[edges[first] : edges[first + length]]
            lps[there] = numbers[edges_lps[start] : edges_lps[start + length]]
            found.append(TopLogprobs(ids, lps, self.taken[rows]))
        return found[0], found[1]


def _fast(
    given: _Batch, temperature: float, coverage_k: int, fast: bool | None
) -> tuple[TokenFeatures | None, npt.NDArray[np.bool_]]:
    nothing = np.zeros(0, dtype=np.bool_)
    if fast is False or not given.regular or (fast is None and not available()):
        return None, nothing
    if not (1e-300 <= temperature < float("inf")) or coverage_k < 1:
        return None, nothing  # the NumPy path says what is wrong with them
    s_ids, s_lps, a_ids, a_lps = given.arrays()
    return fast_token_features(s_ids, s_lps, a_ids, a_lps, given.taken, temperature=temperature, coverage_k=coverage_k)


def _flat_lists(column: Any) -> tuple[Any, Array, Array]:
    """The lists inside a column's lists, where each row's begin and end among them, and which rows are null."""
    pa = need("pyarrow", "lab")
    lost = column.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(column.type):
        size = column.type.list_size
        return column.values.slice(column.offset * size, len(column) * size), np.arange(len(column) + 1) * size, lost
    ends = column.offsets.to_numpy().astype(np.int64)
    return column.values.slice(int(ends[0]), int(ends[-1] - ends[0])), ends - ends[0], lost


def _flat(column: Any) -> tuple[Array, Array, Array]:
    """The numbers inside a column's lists, their ends, and which lists are null or hold a null."""
    inner, ends, lost = _flat_lists(column)
    if inner.null_count:
        # A null becomes NaN or -2, which TopLogprobs names.
        where = np.flatnonzero(inner.is_null().to_numpy(zero_copy_only=False))
        lost = lost.copy()
        lost[np.searchsorted(ends, where, side="right") - 1] = True
        floating = need("pyarrow", "lab").types.is_floating(inner.type)
        inner = inner.fill_null(float("nan") if floating else -2)
    return inner.to_numpy(zero_copy_only=False), ends, lost


def _width(*edges: Array) -> int:
    """The width that all rows have, or 0."""
    widths = [np.diff(e) for e in edges]
    first = int(widths[0][0]) if len(widths[0]) else 0
    return first if all(bool((w == first).all()) for w in widths) else 0
