"""Per-token features of one rollout (arXiv 2606.05145): how far the specialist left its ancestor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from rfx_agent.errors import FeatureError
from rfx_agent.evidence.tables import ABSENT, TopLogprobs

__all__ = ["OneModelTokenFeatures", "TokenFeatures", "one_model_token_features", "token_features"]

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

_LOWEST = float(np.nextafter(ABSENT, 0.0))  # every entry that is present lies at or above it
_EPS = 1e-8  # of coverage_gap's definition
_ROUNDING = 1e-12  # far above what sums of a few hundred float64 lose
_CHUNK = 49_152  # entries of one table worked on at a time: the temporaries stay in cache


@dataclass(frozen=True, slots=True, eq=False)
class TokenFeatures:
    """Features of the L positions of one rollout, float64 arrays of shape (L,), logarithms natural.

    Attributes:
        delta_path: log p_S^T(x_t) - log p_A^T(x_t).
        coverage_gap: log of the ancestor's mass on its own top 20 over the specialist's mass there.
        demotion_pressure: J = max(0, delta_path) + max(0, coverage_gap); its peak marks the junction.
        logit_variance: V, the variance of the specialist's T = 1 log-probabilities under p_S^T.
        kl: max(0, KL(p_S^T || p_A^T)) over the specialist's top K.
        entropy: of p_S^T over its top K.
    """

    delta_path: Floats
    coverage_gap: Floats
    demotion_pressure: Floats
    logit_variance: Floats
    kl: Floats
    entropy: Floats


@dataclass(frozen=True, slots=True, eq=False)
class OneModelTokenFeatures:
    """What one model says alone, float64 arrays of shape (L',), natural units; J is not available.

    Attributes:
        logit_variance: V, as in ``TokenFeatures``.
        entropy: as in ``TokenFeatures``.
        surprisal: -log p_S^T(x_t).
    """

    logit_variance: Floats
    entropy: Floats
    surprisal: Floats


def token_features(
    specialist: TopLogprobs, ancestor: TopLogprobs, *, temperature: float = 0.6, coverage_k: int = 20
) -> TokenFeatures:
    """Compare a specialist's table with its ancestor's (arXiv 2606.05145), one position at a time.

    Both are read at decode temperature T: log p^T(y) = lp(y)/T - logsumexp over the row of lp/T, with lp =
    -1000 for a token absent from the row. Rows may have any number of entries; the order inside a row matters
    only for ties at the edge of the ancestor's top ``coverage_k``. Positions at the end where both rows are
    empty are padding: all their features are 0. What is 0 by definition is exactly 0, not rounding: two rows
    with the same entries have ``delta_path``, ``coverage_gap`` and ``kl`` 0, in whatever order.

    Args:
        specialist: table of the model that failed, over the rollout it wrote.
        ancestor: table of the reference, over the same tokens.
        temperature: T > 0.
        coverage_k: size of the ancestor's preferred set.

    Raises:
        FeatureError: tables of different lengths, taken tokens or id spaces; an empty row that is not
            padding, with its position; a temperature or ``coverage_k`` that is not positive and finite.
    """
    _check_temperature(temperature)
    if isinstance(coverage_k, bool) or not isinstance(coverage_k, (int, np.integer)) or coverage_k < 1:
        raise FeatureError(f"coverage_k is {coverage_k!r}; give a whole number of at least 1")
    _check_aligned(specialist, ancestor)
    length = len(specialist)
    used = length - _padding(specialist, ancestor)

    out = {name: np.zeros(length) for name in TokenFeatures.__slots__}
    width = max(specialist.ids.shape[1], ancestor.ids.shape[1])
    for rows in _chunks(used, width):
        spec = _soften(specialist, rows, width, temperature)
        anc = _soften(ancestor, rows, width, temperature)
        score, edge = _preferred(anc, coverage_k)
        other = _align(spec, anc, score)
        lp_s, lp_a = _taken(spec, anc, other, specialist.taken[rows])
        delta = _log_p(spec, lp_s, temperature) - _log_p(anc, lp_a, temperature)
        kl = _kl(spec, anc, other, temperature)
        gap = _coverage_gap(spec, anc, other, score, edge, temperature)
        same = _identical(spec, anc, kl)
        delta[same] = gap[same] = kl[same] = 0.0

        out["delta_path"][rows] = delta
        out["coverage_gap"][rows] = gap
        out["demotion_pressure"][rows] = np.maximum(delta, 0.0) + np.maximum(gap, 0.0)
        out["kl"][rows] = np.maximum(kl, 0.0)
        out["logit_variance"][rows], out["entropy"][rows] = _variance_and_entropy(spec, temperature)
    return TokenFeatures(**out)


def one_model_token_features(specialist: TopLogprobs, *, temperature: float = 0.6) -> OneModelTokenFeatures:
    """What can be said without an ancestor: V and entropy as with one, and the taken token's surprisal.

    Empty rows at the end are padding and are left out, so the arrays may be shorter than the table.

    Raises:
        FeatureError: an empty row before the end, with its position; a temperature that is not positive and
            finite.
    """
    _check_temperature(temperature)
    used = len(specialist) - _padding(specialist)
    width = specialist.ids.shape[1]
    variance, entropy, surprisal = np.zeros(used), np.zeros(used), np.zeros(used)
    for rows in _chunks(used, width):
        spec = _soften(specialist, rows, width, temperature)
        variance[rows], entropy[rows] = _variance_and_entropy(spec, temperature)
        _, lp = _find(spec, specialist.taken[rows], np.arange(len(spec.ids)))
        surprisal[rows] = 0.0 - _log_p(spec, lp, temperature)
    return OneModelTokenFeatures(variance, entropy, surprisal)


class _Rows(NamedTuple):
    """n rows of a table at T, unnormalised: p^T = weight / total and log p^T = off / T - log_total."""

    ids: npt.NDArray[np.int64]  # (n, K), -1 where absent
    lp: Floats  # (n, K), at T = 1; -inf where absent
    ragged: bool  # whether any entry may be absent
    descending: bool  # whether lp is known to be sorted, largest first
    top: Floats  # (n,), the largest lp
    off: Floats  # (n, K), lp - top; 0 where absent, so that sums skip it
    weight: Floats  # (n, K), exp(off / T); 0 where absent
    total: Floats  # (n,), sum of the weights
    log_total: Floats  # (n,)


def _soften(table: TopLogprobs, rows: slice, width: int, temperature: float) -> _Rows:
    ids, lp, missing = table.ids[rows], table.logprobs[rows], width - table.ids.shape[1]
    if missing:
        # Sums over rows of one width round alike, whichever table they come from.
        pad = ((0, 0), (0, missing))
        ids, lp = np.pad(ids, pad, constant_values=-1), np.pad(lp, pad, constant_values=-np.inf)
    n = np.arange(len(lp))
    first = np.zeros(len(lp), dtype=np.intp) if table.descending else lp.argmax(axis=1)
    top = lp[n, first]
    off = lp - top[:, None]
    weight = off * (1.0 / temperature)
    np.exp(weight, out=weight)
    # Summed apart from the largest, which weighs 1: where a model is all but certain, the rest is lost in 1.
    weight[n, first] = 0.0
    rest = weight.sum(axis=1)
    weight[n, first] = 1.0
    ragged = table.ragged or missing > 0
    if ragged:
        off[ids < 0] = 0.0
    return _Rows(ids, lp, ragged, table.descending, top, off, weight, 1.0 + rest, np.log1p(rest))


def _preferred(anc: _Rows, k: int) -> tuple[Floats, Floats]:
    """Log-probabilities of which comparing with ``edge`` selects each row's k largest: (n, K) and (n,).

    Of entries that tie at the edge the first given are kept; the others are lowered by one unit in the last
    place, so that comparing is enough wherever an entry is moved to.
    """
    width = anc.lp.shape[1]
    if width <= k:
        return anc.lp, np.full(len(anc.lp), _LOWEST)
    if anc.descending:
        edge, beyond = anc.lp[:, k - 1], anc.lp[:, k]
    else:
        parted = np.partition(anc.lp, (width - k - 1, width - k), axis=1)
        edge, beyond = parted[:, width - k], parted[:, width - k - 1]
    score, crowded = anc.lp, np.flatnonzero((edge == beyond) & (edge > ABSENT))
    if len(crowded):
        score, tight = anc.lp.copy(), edge[crowded, None]
        level = anc.lp[crowded] == tight
        room = k - (anc.lp[crowded] > tight).sum(axis=1, keepdims=True)
        row, column = np.nonzero(level & (level.cumsum(axis=1) > room))
        score[crowded[row], column] = np.nextafter(edge[crowded[row]], -np.inf)
    return score, np.maximum(edge, _LOWEST)


def _align(spec: _Rows, anc: _Rows, score: Floats) -> Floats:
    """The ancestor's log-probabilities of the specialist's tokens, shape (n, K); -1000 where it lacks one.

    Ids are packed with their column into one key each, and each row's keys of both tables are sorted
    together: equal ids end up as neighbours, the specialist's first. NumPy sorts integers with vector
    instructions (32-bit ones fastest), so this beats binary search, one dense table per row, and a dense
    table of a chunk's ids.
    """
    n, width = spec.ids.shape
    bits = (2 * width - 1).bit_length()
    largest = int(max(spec.ids.max(), anc.ids.max()))
    if largest >= 1 << (63 - bits):
        raise FeatureError(f"ids up to {largest} in rows of {width} entries are too many; give fewer entries")
    keys = np.empty((n, 2 * width), dtype=np.int32 if largest < 1 << (31 - bits) else np.int64)
    keys[:, :width], keys[:, width:] = spec.ids, anc.ids
    keys <<= bits
    keys |= np.arange(2 * width, dtype=keys.dtype)
    keys.sort(axis=1)
    flat, column = keys.ravel(), (1 << bits) - 1
    equal = (flat[1:] ^ flat[:-1]) <= column
    equal[2 * width - 1 :: 2 * width] = False  # neighbours of different rows
    if spec.ragged or anc.ragged:
        equal &= flat[:-1] >= 0  # absent entries are all -1
    # Indices are made in place, and gathered with ``take``: a tenth of this module's time.
    first = np.flatnonzero(equal)
    at, mine = first // (2 * width), flat.take(first)
    first += 1
    theirs = flat.take(first)
    at *= width
    mine &= column
    theirs &= column
    theirs -= width
    other = np.full(n * width, ABSENT)
    other[at + mine] = score.ravel().take(at + theirs)
    return other.reshape(n, width)


def _find(rows: _Rows, taken: npt.NDArray[np.int64], at: Indices) -> tuple[Indices, Floats]:
    """Column and log-probability of one token in each of the rows ``at``; -1 and -1000 where it lacks it."""
    ids = rows.ids if len(at) == len(rows.ids) else rows.ids[at]
    hit = ids == taken[at, None]
    column = hit.argmax(axis=1)
    column[~hit[np.arange(len(at)), column]] = -1
    return column, np.where(column >= 0, rows.lp[at, column], ABSENT)


def _taken(spec: _Rows, anc: _Rows, other: Floats, taken: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Both log-probabilities of the taken tokens, shape (n,) each."""
    everywhere = np.arange(len(taken))
    column, lp_s = _find(spec, taken, everywhere)
    lp_a = other[everywhere, column]  # aligned already, where the specialist's row has it
    elsewhere = np.flatnonzero(column < 0)
    if len(elsewhere):
        lp_a[elsewhere] = _find(anc, taken, elsewhere)[1]
    return lp_s, lp_a


def _log_p(rows: _Rows, lp: Floats | np.float64, temperature: float) -> Floats:
    return (lp - rows.top) / temperature - rows.log_total


def _kl(spec: _Rows, anc: _Rows, other: Floats, temperature: float) -> Floats:
    mean = _mean(spec, spec.off - other) + anc.top
    return mean / temperature - (spec.log_total - anc.log_total)


def _coverage_gap(spec: _Rows, anc: _Rows, other: Floats, score: Floats, edge: Floats, temperature: float) -> Floats:
    beyond, listed = score < edge[:, None], other >= edge[:, None]
    mass = _mean(spec, listed)
    # By the masses outside A: where those inside are 1 to the last digit, rounding would decide if J > 0.
    excess = _mean(spec, ~listed) - _mean(anc, beyond)
    unlisted = np.exp(_log_p(spec, np.float64(ABSENT), temperature))
    if unlisted.any():  # only at a temperature so high that a token outside the row weighs something
        weight = (np.count_nonzero(~beyond, axis=1) - np.count_nonzero(listed, axis=1)) * unlisted
        mass, excess = mass + weight, excess - weight
    return np.log1p(excess / (mass + _EPS))


def _identical(spec: _Rows, anc: _Rows, kl: Floats) -> npt.NDArray[np.bool_]:
    """Rows whose two sides have the same entries; looked for only where nothing cheaper says otherwise."""
    same: npt.NDArray[np.bool_] = (np.abs(kl) < _ROUNDING) & (spec.top == anc.top)
    near = np.flatnonzero(same)
    if len(near):
        here, there = spec.ids[near].argsort(axis=1), anc.ids[near].argsort(axis=1)
        at = near[:, None]
        equal = (spec.ids[at, here] == anc.ids[at, there]) & (spec.lp[at, here] == anc.lp[at, there])
        same[near] = equal.all(axis=1)
    return same


def _variance_and_entropy(rows: _Rows, temperature: float) -> tuple[Floats, Floats]:
    # The row's largest, at off = 0, has p >= 1/K, so E[off^2] <= (K + 1) V: the difference keeps its digits.
    mean = _mean(rows, rows.off)
    square = np.vecdot(rows.weight * rows.off, rows.off) / rows.total
    variance = np.maximum(square - mean * mean, 0.0)
    return variance, np.maximum(rows.log_total - mean / temperature, 0.0)


def _mean(rows: _Rows, values: npt.NDArray[np.generic]) -> Floats:
    """Expectation of ``values`` under p^T, shape (n,)."""
    return cast("Floats", np.vecdot(rows.weight, values)) / rows.total


def _chunks(length: int, width: int) -> Iterator[slice]:
    step = max(_CHUNK // width, 1)
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _check_temperature(temperature: float) -> None:
    if not 1e-300 <= temperature < float("inf"):  # below, lp / T leaves float64
        raise FeatureError(f"temperature is {temperature!r}; give a positive, finite number")


def _check_aligned(specialist: TopLogprobs, ancestor: TopLogprobs) -> None:
    rollout = specialist.rollout
    if len(specialist) != len(ancestor):
        raise FeatureError(
            f"the specialist's table has {len(specialist)} positions, the ancestor's {len(ancestor)}",
            rollout=rollout,
        )
    if specialist.space != ancestor.space:
        raise FeatureError(
            f"the specialist's table is in {specialist.space}, the ancestor's in {ancestor.space}; "
            "give both the tokenizer's ids, or from_rows its vocabulary",
            rollout=rollout,
        )
    differ = np.flatnonzero(specialist.taken != ancestor.taken)
    if len(differ):
        raise FeatureError(
            "the two tables took different tokens; score the rollout's own tokens with the ancestor",
            rollout=rollout,
            position=int(differ[0]),
        )


def _padding(*tables: TopLogprobs) -> int:
    """How many positions at the end are empty in all ``tables``; an empty row before them is an error."""
    empty = np.zeros((len(tables), len(tables[0])), dtype=np.bool_)
    for i, table in enumerate(tables):
        if table.ragged:
            empty[i] = (table.ids < 0).all(axis=1)
    filled = np.flatnonzero(~empty.all(axis=0))
    used = int(filled[-1]) + 1 if len(filled) else 0
    broken = np.flatnonzero(empty[:, :used].any(axis=0))
    if len(broken):
        raise FeatureError("a row has no log-probabilities", rollout=tables[0].rollout, position=int(broken[0]))
    return empty.shape[1] - used
