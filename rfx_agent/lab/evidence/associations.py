"""Rank correlations: proxies with what they stand for, and all evidence with what then rescued."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfx_agent.evidence.features import ONE_MODEL, TWO_MODEL
from rfx_agent.lab.evidence.intervals import Bootstrap, Floats
from rfx_agent.lab.evidence.outcomes import STEERING, Outcomes

__all__ = ["associations", "proxies"]


def proxies(outcomes: Outcomes, bootstrap: Bootstrap) -> dict[str, Any]:
    """Spearman's correlation of each proxy with its two-model feature, over failures."""
    return {
        proxy: bootstrap.spearman(outcomes.features[proxy], outcomes.features[feature])
        for feature, proxy in zip(TWO_MODEL, ONE_MODEL, strict=True)
    }


def associations(outcomes: Outcomes, bootstrap: Bootstrap) -> dict[str, dict[str, Any]]:
    """Spearman's correlation of each piece of evidence with each outcome.

    Outcomes are ``retry`` (share of passes among the draws that come after those of the diagnosis, so that no draw is
    both evidence and outcome), ``tool``, and ``steering gain``: the best decoding operator's rate minus that share.
    """
    rates = outcomes.rates()
    targets: dict[str, Floats] = {"retry": outcomes.later}
    if "tool" in rates:
        targets["tool"] = rates["tool"]
    steered = [rates[op] for op in STEERING if op in rates]
    if steered:
        targets["steering gain"] = np.fmax.reduce(steered) - outcomes.later  # fmax: the other one's, where one is NaN
    evidence = {**outcomes.features, **outcomes.samples}
    return {
        name: {target: bootstrap.spearman(column, rate) for target, rate in targets.items()}
        for name, column in evidence.items()
    }
