"""From a replay's sums to the figures that are reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rfx_agent.lab.replay import Cell, Floats, Tally

__all__ = ["mean_of", "summarise"]

_RESAMPLES = 1000
_EARLY = 50  # failures that count as the time in which a policy still learns


def summarise(
    cell: Cell,
    tally: Tally,
    retry: Tally,
    budgets: Sequence[int],
    rng: np.random.Generator,
    ceilings: Sequence[int] = (),
) -> dict[str, Any]:
    """Figures of one policy in one cell; see docs/policies.md for each."""
    at, hopeless = np.array(budgets) - 1, cell.hopeless
    rescued, attempts = tally.rescued / tally.orders, tally.attempts / tally.orders
    total = float(attempts[:, -1].sum())
    saved = float(rescued[:, -1].sum())
    lost = float(attempts[hopeless, -1].sum())
    return {
        "rescue_within": _named(budgets, rescued.mean(axis=0)[at]),
        "rescue_within_tokens": _named(ceilings, tally.in_tokens.mean(axis=0) / tally.orders),
        "rescue_early": _named(budgets, tally.by_position[:_EARLY].mean(axis=0)[at] / tally.orders),
        "rescue_sd_over_orders": _named(budgets, tally.by_order.std(axis=0)[at]),
        "attempts": total / len(rescued),
        "attempts_within": _named(budgets, attempts.mean(axis=0)[at]),
        "attempts_per_rescue": total / saved if saved else None,
        "cost_per_rescue": float(tally.cost.sum()) / tally.orders / saved if saved else None,
        "escalated": float(tally.stopped.mean()) / tally.orders,
        "wasted_attempts": lost / int(hopeless.sum()) if hopeless.any() else None,
        "wasted_share": lost / total if total else None,
        "against_retry": _against([(tally, retry)], budgets, rng),
        **_calibration(tally.bins),
    }


def mean_of(
    figures: Sequence[dict[str, Any]],
    tallies: Sequence[tuple[Tally, Tally]],
    retries: Sequence[Floats],
    budgets: Sequence[int],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """The mean over cells of each figure; reliability pooled over cells; intervals by resampling within each cell."""
    out: dict[str, Any] = {}
    for key, first in figures[0].items():
        column = [f[key] for f in figures]
        if key in ("against_retry", "reliability", "ece"):
            continue
        if isinstance(first, dict):
            out[key] = {b: float(np.mean([c[b] for c in column])) for b in first}
        else:
            known = [c for c in column if c is not None]
            out[key] = float(np.mean(known)) if known else None
    reached = float(np.mean([mine.rescued[:, -1].mean() / mine.orders for mine, _ in tallies]))
    # Retry spends its whole cap on what nothing rescues, so the cap is what it wastes on each.
    out["retry_wasted_at_equal_rescue"] = _cap_of_retry(retries, reached)
    out["against_retry"] = _against(tallies, budgets, rng)
    return out | _calibration(np.sum([mine.bins for mine, _ in tallies], axis=0))


def _named(budgets: Sequence[int], values: Floats) -> dict[str, float]:
    return {str(b): float(v) for b, v in zip(budgets, values, strict=True)}


def _against(
    tallies: Sequence[tuple[Tally, Tally]], budgets: Sequence[int], rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Rescue beyond retry's, mean over cells, with the 95 % percentile interval over failures resampled within each."""
    at, gain, resampled = np.array(budgets) - 1, np.zeros(len(budgets)), np.zeros((_RESAMPLES, len(budgets)))
    for mine, retry in tallies:
        difference = (mine.rescued / mine.orders - retry.rescued / retry.orders)[:, at]
        n = len(difference)
        gain += difference.mean(axis=0) / len(tallies)
        resampled += rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) @ difference / n / len(tallies)
    figures = zip(gain, *np.percentile(resampled, [2.5, 97.5], axis=0), strict=True)
    return {
        str(b): {"difference": float(d), "low": float(low), "high": float(high)}
        for b, (d, low, high) in zip(budgets, figures, strict=True)
    }


def _calibration(bins: Floats) -> dict[str, Any]:
    """Reliability table and expected calibration error of the predicted rescue of each attempt that was made."""
    weight = bins[:, 0]
    if not weight.sum():
        return {"ece": None, "reliability": []}
    used = np.flatnonzero(weight > 0)
    rows = [
        {
            "from": float(i / len(bins)),
            "to": float((i + 1) / len(bins)),
            "share": float(weight[i] / weight.sum()),
            "predicted": float(bins[i, 1] / weight[i]),
            "rescued": float(bins[i, 2] / weight[i]),
        }
        for i in used
    ]
    error = float(np.abs(bins[used, 1] - bins[used, 2]).sum() / weight.sum())
    return {"ece": error, "reliability": rows}


def _cap_of_retry(retries: Sequence[Floats], rescue: float, most: int = 200) -> float | None:
    """Attempts after which plain retry rescues as much, interpolated; None where ``most`` do not suffice."""
    curve = [float(np.mean([1 - ((1 - rates) ** b).mean() for rates in retries])) for b in range(most + 1)]
    return float(np.interp(rescue, curve, range(most + 1))) if rescue <= curve[-1] else None
