"""Token features compiled by numba (extra ``fast``): the formulas of ``numerics.tokens``, one position at a time.

Only whole, regular rows are taken: whatever breaks the contract of ``TopLogprobs``, and padding, is flagged and left to
the NumPy path, which names it. The exponentials stay with NumPy, whose vector instructions numba does not use.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from rfx_agent._extras import need
from rfx_agent.numerics.tokens import TokenFeatures
from rfx_agent.numerics.toplogprobs import ABSENT

__all__ = ["available", "fast_token_features"]

Floats: TypeAlias = npt.NDArray[np.float64]
Array: TypeAlias = npt.NDArray[Any]

_SLACK = 1e-3  # as TopLogprobs
_EPS = 1e-8  # of coverage_gap's definition
_ROUNDING = 1e-12  # as numerics.tokens
_ENTRIES = 65_536  # of one table worked on at a time, so that the temporaries stay in cache
_LARGEST_ID = 2**21 - 1  # a table of places by id is kept; vocabularies are far smaller, digests of texts are not
_STAMPS = 2**31 - 1


class _Side(NamedTuple):
    """One table's rows, the entries that are present moved to the front."""

    ids: Array  # (n, K)
    off: Floats  # (n, K), lp - max lp
    weight: Floats  # (n, K), exp(off / T)
    top: Floats  # (n,), max lp
    present: Array  # (n,), entries present
    first: Array  # (n,), index of the first largest
    sorted: Array  # (n,), whether descending


def available() -> bool:
    """Whether numba is installed."""
    return find_spec("numba") is not None


def fast_token_features(
    s_ids: Array, s_lps: Array, a_ids: Array, a_lps: Array, taken: Array, *, temperature: float, coverage_k: int
) -> tuple[TokenFeatures, npt.NDArray[np.bool_]]:
    """``token_features`` of n positions that may belong to any number of rollouts.

    Args:
        s_ids, a_ids: integer ids of shape (n, K) and (n, K'), as they come from Arrow; read only.
        s_lps, a_lps: their log-probabilities, float32 or float64.
        taken: integers of shape (n,).
        temperature: T > 0.
        coverage_k: size of the ancestor's preferred set.

    Returns:
        The features, and per position whether they hold: false where a row breaks its contract, is empty, or has ids
        of 2**21 and more.

    Raises:
        ConfigError: numba is not installed.
    """
    soften, combine = _compiled()
    n, width_s, width_a = len(taken), s_ids.shape[1], a_ids.shape[1]
    out = np.zeros((6, n))
    good = np.ones(n, dtype=np.bool_)
    step = max(_ENTRIES // max(width_s, width_a, 1), 1)
    # By id, where the row at hand has it: stamps that grow from row to row, so that nothing is ever cleared.
    largest = max((int(x.max()) for x in (s_ids, a_ids, taken) if x.size), default=0)
    place = np.zeros(min(largest, _LARGEST_ID) + 1, np.int32)
    stamp, stride = 1, width_a + 2
    spec, anc = _side(min(step, n), width_s), _side(min(step, n), width_a)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        if stamp + step * stride > _STAMPS:
            place[:], stamp = 0, 1
        soften(s_ids[rows], s_lps[rows], 1.0 / temperature, *spec, good[rows])
        soften(a_ids[rows], a_lps[rows], 1.0 / temperature, *anc, good[rows])
        with np.errstate(over="ignore"):  # entries beyond a row's count are left over, and never read
            np.exp(spec.weight, out=spec.weight)
            np.exp(anc.weight, out=anc.weight)
        combine(*spec, *anc, taken[rows], temperature, coverage_k, place, stamp, good[rows], out[:, rows])
        stamp += step * stride
    names = ("delta_path", "coverage_gap", "demotion_pressure", "logit_variance", "kl", "entropy")
    return TokenFeatures(**dict(zip(names, out, strict=True))), good


def _side(rows: int, width: int) -> _Side:
    counts, first = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    floats = np.zeros((rows, width)), np.zeros((rows, width)), np.zeros(rows)
    return _Side(np.zeros((rows, width), np.int32), *floats, counts, first, np.zeros(rows, np.bool_))


@cache
def _compiled() -> tuple[Any, Any]:
    numba = need("numba", "fast")
    # Sums may be reordered, so that they use vector instructions, as NumPy's own are; NaN and infinity keep meaning.
    loose = {"reassoc", "contract", "nsz"}
    soften = numba.njit(_soften, nogil=True, cache=True, error_model="numpy")
    return soften, numba.njit(_combine, nogil=True, cache=True, error_model="numpy", fastmath=loose)


def _soften(
    ids: Array,
    lps: Array,
    rate: float,
    kept: Array,
    off: Floats,
    weight: Floats,
    tops: Floats,
    counts: Array,
    firsts: Array,
    ordered: Array,
    good: Array,
) -> None:
    """Check the rows, move what is present to the front, write lp - max lp and the same over T."""
    for t in range(len(ids)):
        count, first, sound, descending, top, before = 0, 0, True, True, -np.inf, np.inf
        for j in range(ids.shape[1]):
            lp, token = float(lps[t, j]), ids[t, j]
            if lp <= ABSENT:
                continue
            # Written so that NaN fails it.
            sound = sound and lp <= _SLACK and token >= 0 and token <= _LARGEST_ID
            if lp > top:
                top, first = lp, count
            descending = descending and lp <= before
            before = lp
            kept[t, count], off[t, count] = token, lp
            count += 1
        good[t] = good[t] and sound and count > 0
        tops[t], counts[t], firsts[t], ordered[t] = top, count, first, descending
        if not good[t]:
            continue
        for j in range(count):
            off[t, j] -= top
            weight[t, j] = off[t, j] * rate


def _combine(
    s_ids: Array,
    s_off: Floats,
    s_weight: Floats,
    s_tops: Floats,
    s_counts: Array,
    s_firsts: Array,
    _s_sorted: Array,
    a_ids: Array,
    a_off: Floats,
    a_weight: Floats,
    a_tops: Floats,
    a_counts: Array,
    a_firsts: Array,
    a_sorted: Array,
    taken: Array,
    temperature: float,
    coverage_k: int,
    place: Array,
    stamp: int,
    good: Array,
    out: Floats,
) -> None:
    """The six features of each row."""
    width_s, width_a = s_ids.shape[1], a_ids.shape[1]
    # One more entry stands for all tokens that the ancestor's row lacks.
    other, preferred = np.empty(width_a + 1), np.empty(width_a + 1)
    column, seen = np.empty(width_s, np.int32), width_a + 1
    for t in range(len(taken)):
        base = stamp + t * (width_a + 2)
        if not good[t] or taken[t] < 0:
            good[t] = False
            continue
        m_s, m_a, x, top_s, top_a = s_counts[t], a_counts[t], taken[t], s_tops[t], a_tops[t]
        a_weight[t, a_firsts[t]] = s_weight[t, s_firsts[t]] = 0.0  # summed apart: it weighs 1
        twice, rest_a, rest_s = False, 0.0, 0.0
        for j in range(m_a):
            token = a_ids[t, j]
            twice |= place[token] >= base
            place[token] = base + j
        for j in range(m_a):
            rest_a += a_weight[t, j]
            other[j] = a_off[t, j]
        for j in range(m_s):
            rest_s += s_weight[t, j]
        other[width_a] = ABSENT - top_a
        a_weight[t, a_firsts[t]] = s_weight[t, s_firsts[t]] = 1.0
        total_a, log_total_a, total, log_total = 1.0 + rest_a, np.log1p(rest_a), 1.0 + rest_s, np.log1p(rest_s)
        # The ancestor's top k: above the k-th largest, and of those that tie with it the first given.
        preferred[:] = 0.0
        if m_a <= coverage_k:
            preferred[:m_a] = 1.0
        elif a_sorted[t]:
            preferred[:coverage_k] = 1.0
        else:
            edge = np.sort(other[:m_a])[m_a - coverage_k]
            room = coverage_k
            for j in range(m_a):
                room -= other[j] > edge
            for j in range(m_a):
                if other[j] > edge:
                    preferred[j] = 1.0
                elif other[j] == edge and room > 0:
                    preferred[j] = 1.0
                    room -= 1
        beyond = 0.0
        for j in range(m_a):
            beyond += a_weight[t, j] * (1.0 - preferred[j])
        # Where the specialist's tokens are in the ancestor's row.
        lp_a, lp_s = ABSENT, ABSENT
        if x < len(place) and place[x] >= base:
            lp_a = other[place[x] - base] + top_a
        for j in range(m_s):
            token = s_ids[t, j]
            at = place[token] - base
            twice |= at == seen
            column[j] = at if 0 <= at < width_a else width_a
            place[token] = base + seen
        for j in range(m_s):
            if s_ids[t, j] == x:
                lp_s = s_off[t, j] + top_s
        if twice:
            good[t] = False
            continue
        mean, square, apart, mass, outside, listed, different = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0
        for j in range(m_s):
            weight, off, there, inside = s_weight[t, j], s_off[t, j], other[column[j]], preferred[column[j]]
            mean += weight * off
            square += weight * off * off
            apart += weight * (off - there)
            mass += weight * inside
            outside += weight * (1.0 - inside)
            listed += inside
            different += there != off
        delta = ((lp_s - top_s) / temperature - log_total) - ((lp_a - top_a) / temperature - log_total_a)
        kl = apart / total / temperature - (log_total - log_total_a)
        mass, excess = mass / total, outside / total - beyond / total_a
        unlisted = np.exp((ABSENT - top_s) / temperature - log_total)
        if unlisted > 0.0:  # only at a temperature so high that a token outside the row weighs something
            extra = (min(m_a, coverage_k) - listed) * unlisted
            mass, excess = mass + extra, excess - extra
        gap = np.log1p(excess / (mass + _EPS))
        if different == 0 and m_s == m_a and top_s == top_a and abs(kl) < _ROUNDING:
            delta = gap = kl = 0.0
        mean, square = mean / total, square / total
        out[0, t], out[1, t] = delta, gap
        out[2, t] = max(delta, 0.0) + max(gap, 0.0)
        out[3, t] = max(square - mean * mean, 0.0)
        out[4, t] = max(kl, 0.0)
        out[5, t] = max(log_total - mean / temperature, 0.0)
