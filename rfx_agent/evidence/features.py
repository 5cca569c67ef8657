"""From failed rollouts to evidence: of two models, of one, or of none, and never a mixture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rfx_agent.errors import FeatureError
from rfx_agent.evidence.tables import TopLogprobs
from rfx_agent.evidence.tokens import TokenFeatures, one_model_token_features, token_features
from rfx_agent.evidence.trajectory import (
    RolloutFeatures,
    TrajectoryFeatures,
    Window,
    rollout_features,
    rollout_proxies,
    trajectory_features,
)
from rfx_agent.records import Evidence, Rollout

__all__ = [
    "ONE_MODEL",
    "TWO_MODEL",
    "FailureFeatures",
    "TokenFeatures",
    "TopLogprobs",
    "TrajectoryFeatures",
    "evidence_of",
    "places",
    "pool_features",
    "token_features",
    "token_offset",
    "trajectory_features",
]

TWO_MODEL = ("spread", "concentration", "logit_dispersion")
"""Names of the trajectory features (arXiv 2606.05145)."""

ONE_MODEL = ("spread_proxy", "concentration_proxy", "logit_dispersion_proxy")
"""Names of their stand-ins without an ancestor (ours; see ``evidence.trajectory.ProxyFeatures``)."""


@dataclass(frozen=True, slots=True)
class FailureFeatures:
    """The evidence of one failure.

    Attributes:
        evidence: what the features were computed from.
        per_rollout: per rollout given, its features by name; None where it has none of this evidence's kind.
        features: their mean over the distinct draws, or None where there is no such rollout.
        junctions: per rollout given, the window around the peak of J (of J_proxy for ``one_model``), or None.
        peaks: per rollout given, the position of that peak, or None.
        caveats: sentences that say what was missing or broken.
    """

    evidence: Evidence
    per_rollout: tuple[Mapping[str, float] | None, ...]
    features: Mapping[str, float] | None
    junctions: tuple[Window | None, ...]
    peaks: tuple[int | None, ...]
    caveats: tuple[str, ...]


def evidence_of(
    rollouts: Sequence[Rollout],
    ancestors: Sequence[TopLogprobs | FeatureError | None] | None = None,
    *,
    temperature: float = 0.6,
    coverage_k: int = 20,
    window: int = 8,
) -> FailureFeatures:
    """Compute the best evidence that a failure's rollouts carry.

    ``two_model`` when any rollout that has a table with positions has an ancestor's table too, else ``one_model``
    when any has a table, else ``samples``. Kinds are not mixed: beside two-model features, a rollout that has only
    its own table has none. A table that breaks its contract costs that rollout its features, never the others
    theirs; a caveat names the rollout and the position.

    Args:
        rollouts: the failed rollouts of one step.
        ancestors: the ancestor's tables aligned with them, None where there is none, or why there is none.
        temperature: T of the features; the built-in calibration is for 0.6.
        coverage_k: size of the ancestor's preferred set.
        window: half-width of the junction, in positions.

    Raises:
        FeatureError: ``ancestors`` of another length than ``rollouts``; parameters that cannot work.
    """
    if ancestors is not None and len(ancestors) != len(rollouts):
        raise FeatureError(f"{len(rollouts)} rollouts and {len(ancestors)} ancestor tables; give one each, or None")
    # A parameter that cannot work is the caller's mistake; the rollouts must not take the blame.
    nothing = TopLogprobs.from_rows([], [])
    token_features(nothing, nothing, temperature=temperature, coverage_k=coverage_k)
    trajectory_features([], window=window)
    tables = {i: r.logprobs for i, r in enumerate(rollouts) if r.logprobs is not None and len(r.logprobs)}
    scored = {i: a for i, a in enumerate(ancestors or ()) if isinstance(a, TopLogprobs) and i in tables}
    notes = [f"rollout {i} could not be scored: {a}" for i, a in enumerate(ancestors or ()) if isinstance(a, Exception)]

    def both(i: int) -> RolloutFeatures | None:
        tokens = token_features(tables[i], scored[i], temperature=temperature, coverage_k=coverage_k)
        return rollout_features(tokens, window=window, rollout=i)

    def alone(i: int) -> RolloutFeatures | None:
        tokens = one_model_token_features(tables[i], temperature=temperature)
        return rollout_proxies(tokens, window=window, rollout=i)

    if tables and ancestors is not None and len(scored) < len(tables):
        notes.append(f"{len(tables) - len(scored)} of {len(tables)} tables have no ancestor's beside them")
    if scored:
        found, broken = _each(scored, both)
        notes += broken
        if any(found.values()):
            return _gather(rollouts, found, "two_model", notes)
        if not broken:
            notes.append("the two models differ nowhere in any rollout")

    found, broken = _each(tables, alone)
    notes += broken
    return _gather(rollouts, found, "one_model" if any(found.values()) else "samples", notes)


def pool_features(
    per_rollout: Iterable[Mapping[str, float] | None],
) -> tuple[Evidence, Mapping[str, float] | None, tuple[str, ...]]:
    """Mean features of a failure from its rollouts' own, as ``evidence_of`` gave them, over any number of
    rounds.

    Kinds are never mixed: where rounds differ, the rollouts with two-model features count and the others do
    not.

    Args:
        per_rollout: one mapping per distinct failed draw; None where it has no features.

    Returns:
        The kind of evidence, the means by name (None for ``samples``), and caveats.

    Raises:
        FeatureError: names that are neither kind's, or values that are not finite.
    """
    given = list(per_rollout)
    by_kind: dict[Evidence, list[Mapping[str, float]]] = {"two_model": [], "one_model": []}
    for i, features in enumerate(given):
        if features is None:
            continue
        names = set(features)
        if names not in (set(TWO_MODEL), set(ONE_MODEL)):
            raise FeatureError(f"features are {sorted(names)}; give {TWO_MODEL} or {ONE_MODEL}", rollout=i)
        if not all(math.isfinite(value) for value in features.values()):
            raise FeatureError(f"features are {dict(features)}; give finite numbers", rollout=i)
        by_kind["two_model" if names == set(TWO_MODEL) else "one_model"].append(features)
    kinds: tuple[tuple[Evidence, tuple[str, ...]], ...] = (("two_model", TWO_MODEL), ("one_model", ONE_MODEL))
    for kind, names_of in kinds:
        if usable := by_kind[kind]:
            means = {name: math.fsum(f[name] for f in usable) / len(usable) for name in names_of}
            left = len(given) - len(usable)
            caveats = (f"{left} of {len(given)} failed rollouts have no {kind} features",) if left else ()
            return kind, means, caveats
    return (
        "samples",
        None,
        ("no failed rollout has log-probabilities to compute features from",) if given else (),
    )


def places(rollout: Rollout, junction: Window | None, peak: int | None) -> tuple[int | None, int | None]:
    """Where a rollout's junction begins and where its peak is, as offsets in characters of its text.

    None for what is not known, and for both where the rollout has no token texts.
    """
    known = (None if junction is None else junction[0], peak)
    texts = rollout.tokens
    first, top = (None if at is None or not texts else rollout.start + token_offset(texts, at) for at in known)
    return first, top


def token_offset(tokens: Sequence[str], position: int) -> int:
    """Characters before the token at ``position``: where a prefix ends that is continued from there.

    Args:
        tokens: text of each token of the rollout.
        position: 0 to ``len(tokens)``, as ``FailureFeatures.junctions`` and ``peaks`` give them.

    Raises:
        FeatureError: a position that does not lie within the tokens.
    """
    if not 0 <= position <= len(tokens):
        raise FeatureError(f"position {position} does not lie within {len(tokens)} tokens")
    return sum(map(len, tokens[:position]))


def _each(
    indices: Iterable[int], compute: Callable[[int], RolloutFeatures | None]
) -> tuple[dict[int, RolloutFeatures | None], list[str]]:
    found, broken = {}, []
    for i in indices:
        try:
            found[i] = compute(i)
        except FeatureError as error:
            broken.append(f"rollout {i} is left out: {error}")
    return found, broken


def _gather(
    rollouts: Sequence[Rollout],
    found: Mapping[int, RolloutFeatures | None],
    evidence: Evidence,
    notes: Sequence[str],
) -> FailureFeatures:
    names = ONE_MODEL if evidence == "one_model" else TWO_MODEL
    per_rollout: list[Mapping[str, float] | None] = []
    junctions: list[Window | None] = []
    peaks: list[int | None] = []
    for i in range(len(rollouts)):
        one = found.get(i)
        values = None if one is None else (one.spread, one.concentration, one.logit_dispersion)
        per_rollout.append(None if values is None else dict(zip(names, values, strict=True)))
        junctions.append(None if one is None else one.junction)
        peaks.append(None if one is None else one.peak)

    draws: dict[object, Mapping[str, float] | None] = {}
    for i, (rollout, features) in enumerate(zip(rollouts, per_rollout, strict=True)):
        key: object = i if rollout.response_id is None else rollout.response_id
        if draws.get(key) is None:
            draws[key] = features
    _, means, missing = pool_features(draws.values())
    return FailureFeatures(evidence, tuple(per_rollout), means, tuple(junctions), tuple(peaks), (*notes, *missing))
