"""What a collected dataset says of remedies, of the paper's rule and of the evidence, with 95 % intervals.

Units: rescue rates are shares of attempts that passed. Intervals are percentiles of a bootstrap over problems, each
kept whole with all its attempts; shares over independent problems have Wilson's.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from rfx_agent.evidence.calibration import Calibration
from rfx_agent.lab.calibrate import intervals
from rfx_agent.lab.evidence.associations import associations, proxies
from rfx_agent.lab.evidence.contest import contest, published_routes
from rfx_agent.lab.evidence.draws import predicted
from rfx_agent.lab.evidence.intervals import Bootstrap, wilson
from rfx_agent.lab.evidence.outcomes import DIAGNOSED, Outcomes, read_outcomes
from rfx_agent.lab.evidence.text import markdown, where_it_does_not_help

__all__ = ["analyse", "evidence", "markdown", "where_it_does_not_help"]


def evidence(folder: str | os.PathLike[str], *, seed: int = 0, draws: int = 2000) -> dict[str, Any]:
    """All figures of the dataset in ``folder``, as plain values for JSON.

    Args:
        folder: what ``rfx collect`` wrote.
        seed: of the resamples and of the halvings.
        draws: resamples.

    Raises:
        DatasetError: no such dataset.
        ConfigError: a library of the extra ``lab`` is missing; a dataset without failures.
    """
    return analyse(read_outcomes(folder), seed=seed, draws=draws)


def analyse(outcomes: Outcomes, *, seed: int = 0, draws: int = 2000) -> dict[str, Any]:
    """All figures of ``outcomes``; see ``evidence``."""
    bootstrap = Bootstrap(len(outcomes), draws=draws, seed=seed)
    return {
        "failures": len(outcomes),
        "generators": {g: int((outcomes.generators == g).sum()) for g in dict.fromkeys(outcomes.generators.tolist())},
        "screened": dict(outcomes.about.get("screened", {})),
        "seed": seed,
        "draws": draws,
        "rescue": _rescue(outcomes, bootstrap),
        "rule": contest(outcomes, bootstrap, seed=seed),
        "published": published_routes(outcomes, bootstrap),
        "no_pass": predicted(outcomes, bootstrap),
        "proxies": proxies(outcomes, bootstrap),
        "associations": associations(outcomes, bootstrap),
        "features": _features(outcomes, draws, seed),
        "agreement": _agreement(outcomes, bootstrap),
    }


def _rescue(outcomes: Outcomes, bootstrap: Bootstrap) -> dict[str, Any]:
    """Per remedy: attempts, rescue per attempt overall and per generator, and rescued once in the first four."""
    found = {}
    for remedy, table in outcomes.passed.items():
        made = np.isfinite(table).sum(axis=1).astype(float)
        passes = np.nansum(table, axis=1)
        first = table[:, :4]
        tried = np.isfinite(first).any(axis=1)
        once = (np.nansum(first, axis=1) > 0) & tried
        found[remedy] = {
            "attempts": int(made.sum()),
            "overall": bootstrap.ratio(passes, made, share=True),
            "once_in_four": wilson(float(once.sum()), int(tried.sum())),
            "generators": {
                g: bootstrap.ratio(passes * at, made * at, share=True)
                for g in dict.fromkeys(outcomes.generators.tolist())
                for at in [(outcomes.generators == g).astype(float)]
            },
        }
    return found


def _features(outcomes: Outcomes, draws: int, seed: int) -> dict[str, Any]:
    """Means and deviations of the features, beside the published ones."""
    published = Calibration.published().stats["two_model"]
    kinds = intervals(outcomes.population(), draws=draws, seed=seed)["features"]
    found = {name: figures for columns in kinds.values() for name, figures in columns.items()}
    for name, stats in published.items():
        if name in found:
            found[name] |= {
                "published": {"mean": stats.mean, "std": stats.std},
                "published_z": (found[name]["mean"] - stats.mean) / stats.std,
            }
    return found


def _agreement(outcomes: Outcomes, bootstrap: Bootstrap) -> dict[str, Any]:
    """How the answers of the first draws agree where none passed, and what the draws that follow then give."""
    none = outcomes.samples["passes"] == 0
    scattered = none & (outcomes.samples["distinct"] == DIAGNOSED)
    some, later = np.isfinite(outcomes.later), np.nan_to_num(outcomes.later)
    yes, no = (
        bootstrap.ratio(later * at, (some & at).astype(float), share=True) for at in (scattered, none & ~scattered)
    )
    return {
        "failures": int(none.sum()),
        "distinct": bootstrap.ratio(outcomes.samples["distinct"] * none, none.astype(float)),
        "modal_share": bootstrap.ratio(outcomes.samples["modal_share"] * none, none.astype(float)),
        "all_different": wilson(float(scattered.sum()), int(none.sum())),
        "retry_after_scattered": yes,
        "retry_after_agreeing": no,
    }
