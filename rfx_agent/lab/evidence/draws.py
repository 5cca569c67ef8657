"""What draws that did not pass say of the next one: the Beta posterior against what then happened."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfx_agent.errors import ConfigError
from rfx_agent.evidence.calibration import Calibration
from rfx_agent.evidence.posterior import Beta, mean, moments, update
from rfx_agent.lab.evidence.intervals import Bootstrap, Floats
from rfx_agent.lab.evidence.outcomes import Outcomes

__all__ = ["after_no_pass", "predicted"]


def predicted(outcomes: Outcomes, bootstrap: Bootstrap, *, most: int = 6) -> dict[str, Any]:
    """For n = 0 to ``most`` draws without a pass after the failed candidate: how often the next draw passes.

    Draws of one failure can be taken in any order, so each failure counts with the probability that its first n draws
    have no pass, over all orders of its recorded draws; that is the mean of what the single orders would give.

    Predictions are posterior means: ``published``, from the published prior and the n draws; ``with_candidate``, the
    same with the failed candidate counted as a draw, as the engine counts; ``fitted``, a prior by moments over the
    failures of all other generators. ``brier`` is each one's mean squared error on the next draw; ``best_constant``
    is that of the observed share itself, which no forecast without knowledge of the failure can beat.
    """
    table = outcomes.passed["retry"]
    draws, passes = np.isfinite(table).sum(axis=1).astype(float), np.nansum(table, axis=1)
    published = Calibration.published().prior("retry")
    priors = _others(outcomes, published)
    rows = []
    for n in range(min(most, int(draws.max()) - 1) + 1):
        weight, rate = after_no_pass(passes, draws, n)
        observed = bootstrap.ratio(weight * rate, weight, share=True)
        if observed["value"] is None:
            break
        forecasts = {
            "published": np.full(len(outcomes), mean(update(published, 0, n))),
            "with_candidate": np.full(len(outcomes), mean(update(published, 0, n + 1))),
            "fitted": np.array([mean(update(priors[g], 0, n)) for g in outcomes.generators.tolist()]),
        }
        constant = np.full(len(outcomes), observed["value"])
        rows.append(
            {
                "n": n,
                "failures": float(weight.sum()),
                "observed": observed,
                **{name: float(p @ weight / weight.sum()) for name, p in forecasts.items()},
                "over": {name: bootstrap.ratio((p - rate) * weight, weight) for name, p in forecasts.items()},
                "brier": {
                    name: bootstrap.ratio((rate * (1 - p) ** 2 + (1 - rate) * p**2) * weight, weight)
                    for name, p in ({"best_constant": constant} | forecasts).items()
                },
            }
        )
    return {"prior": {"published": published, "fitted": priors}, "rows": rows}


def after_no_pass(passes: Floats, draws: Floats, n: int) -> tuple[Floats, Floats]:
    """Per failure, the probability that its first n draws have no pass, and its pass rate among the rest.

    C(m - k, n) / C(m, n) for k passes in m draws, over all orders; then k / (m - n). Both 0 where no draw is left.
    """
    left = draws > n
    weight = left.astype(float)
    for i in range(n):
        weight = weight * np.clip(draws - passes - i, 0, None) / np.where(left, draws - i, 1.0)
    return weight, np.where(weight > 0, passes / np.where(left, draws - n, 1.0), 0.0)


def _others(outcomes: Outcomes, otherwise: Beta) -> dict[str, Beta]:
    """Per generator, the prior of the failures of all others; the published one where their rates fit none."""
    rates = outcomes.rates()["retry"]
    priors = {}
    for generator in dict.fromkeys(outcomes.generators.tolist()):
        rest = rates[(outcomes.generators != generator) & np.isfinite(rates)]
        try:
            priors[generator] = moments(rest)
        except ConfigError:  # no other generator, or rates without a spread: they name no prior
            priors[generator] = otherwise
    return priors
