"""What two models, or one, say of rollouts: the records of scored draws, and the proxies of all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from rfx_agent.errors import FeatureError, SamplerError
from rfx_agent.evidence.features import ONE_MODEL, TWO_MODEL, TopLogprobs, places
from rfx_agent.evidence.tokens import one_model_token_features, token_features
from rfx_agent.evidence.trajectory import RolloutFeatures, rollout_features, rollout_proxies
from rfx_agent.lab.collect.journal import Key, Unit
from rfx_agent.lab.collect.work import Done, Failed, as_text, asked
from rfx_agent.records import Rollout, ScoreResult

if TYPE_CHECKING:
    from rfx_agent.lab.collect.plan import Plan
    from rfx_agent.lab.problems.problem import Problem
    from rfx_agent.ports import Scorer

__all__ = ["proxies", "score"]

_TWO = ("delta_path", "coverage_gap", "logit_variance", "kl", "entropy")


async def score(plan: Plan, problem: Problem, failed: Sequence[Failed]) -> Done:
    """Both models' view of ``failed``: token features, trajectory features, and where the failure was decided."""
    rollouts = [one.rollout() for one in failed]
    specialist, ancestor = plan.scorers
    own: Sequence[Any] = [rollout.logprobs for rollout in rollouts]
    failure = None
    if specialist is not None:
        own, failure = await _scores(problem, specialist, rollouts)
        # A table of the same tokens gives the ancestor what to score, where the sampler gave none.
        rollouts = [
            r if r.logprobs is not None or not isinstance(t, TopLogprobs) else replace(r, logprobs=t)
            for r, t in zip(rollouts, own, strict=True)
        ]
    theirs: Sequence[Any] = [None] * len(rollouts)
    if ancestor is not None and failure is None:
        theirs, failure = await _scores(problem, ancestor, rollouts)
    units = []
    for one, rollout, ours, other in zip(failed, rollouts, own, theirs, strict=True):
        key = Key(problem.id, "score", one.attempt)
        units.append(Unit(key, _measured(plan, rollout, ours, other, two=ancestor is not None, failure=failure)))
    return Done(tuple(units), failure)


def _measured(
    plan: Plan, rollout: Rollout, own: Any, other: Any, *, two: bool, failure: SamplerError | None
) -> dict[str, Any]:
    """The record of one scored draw; what could not be computed is None, with the reason among the notes."""
    record: dict[str, Any] = {"features": None, "tokens": None, "junction": None, "peak": None}
    missing = failure or _missing(own, "specialist") or (_missing(other, "ancestor") if two else None)
    if missing is not None:
        return record | {"notes": [as_text(f"a draw was not scored: {missing}")]}
    try:
        if two:
            tokens = token_features(own, other, temperature=plan.temperature)
            found = rollout_features(tokens)
            record["tokens"] = {name: _floats(getattr(tokens, name)) for name in _TWO}
            if found is not None:
                values = (found.spread, found.concentration, found.logit_dispersion)
                record["features"] = dict(zip(TWO_MODEL, values, strict=True))
                record |= _places(rollout, found)
        record |= proxies(plan.temperature, own, rollout, located=False)
    except FeatureError as error:
        record["notes"] = [as_text(f"a draw was not scored: {error}")]
    return record


def proxies(temperature: float, table: TopLogprobs | None, rollout: Rollout, *, located: bool = True) -> dict[str, Any]:
    """Surprisal and proxies from one table; nothing where there is none."""
    if table is None or not len(table):
        return {}
    tokens = one_model_token_features(table, temperature=temperature)
    found = rollout_proxies(tokens)
    record: dict[str, Any] = {"surprisal": _floats(tokens.surprisal)}
    if found is not None:
        values = (found.spread, found.concentration, found.logit_dispersion)
        record["proxies"] = dict(zip(ONE_MODEL, values, strict=True))
        if located:
            record |= _places(rollout, found)
    return record


def _places(rollout: Rollout, found: RolloutFeatures) -> dict[str, int | None]:
    return dict(zip(("junction", "peak"), places(rollout, found.junction, found.peak), strict=True))


async def _scores(
    problem: Problem, scorer: Scorer, rollouts: Sequence[Rollout]
) -> tuple[Sequence[TopLogprobs | FeatureError | None], SamplerError | None]:
    failure = None
    for _ in range(2):
        try:
            result: ScoreResult = await asked(problem, scorer.name, partial(scorer.ascore, problem.step, rollouts))
        except SamplerError as error:
            failure = error
            continue
        if len(result.tables) != len(rollouts):
            raise FeatureError(
                f"{scorer.name}: {len(result.tables)} tables for {len(rollouts)} rollouts; give one each"
            )
        return result.tables, None
    return [None] * len(rollouts), failure


def _missing(table: TopLogprobs | FeatureError | None, whose: str) -> str | None:
    if isinstance(table, TopLogprobs):
        return None
    return f"there is no table of the {whose}'s" if table is None else str(table)


def _floats(values: Any) -> list[float]:
    """As the dataset keeps them: rounded to float32."""
    kept: list[float] = np.asarray(values, dtype=np.float32).tolist()
    return kept
