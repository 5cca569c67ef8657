"""Evidence and calibration in, diagnosis out: what is known of one failure, as far as it was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rfx_agent.case import Case, Diagnosis
from rfx_agent.evidence.agreement import agreement
from rfx_agent.evidence.calibration import Calibration
from rfx_agent.evidence.features import pool_features
from rfx_agent.evidence.kinds import was_cut
from rfx_agent.evidence.posterior import update
from rfx_agent.evidence.rescue import belief_in
from rfx_agent.records import Evidence, Spend

__all__ = ["Option", "diagnose_case"]


@dataclass(frozen=True, slots=True)
class Option:
    """What a diagnosis needs to know of one remedy: its price, its node and its name.

    Attributes:
        bound: the most that one attempt costs, or why it is not available.
        node: the node of the graph that carries it out.
        words: what a sentence calls it.
    """

    bound: Spend | str
    node: str
    words: str


def diagnose_case(
    case: Case,
    calibration: Calibration,
    options: Mapping[str, Option],
    *,
    passed: str | None = None,
    scored: bool = False,
    priced: bool = False,
) -> Diagnosis:
    """What the rollouts of ``case`` say.

    Features are the mean over the distinct failed plain draws: a rollout decoded at another temperature, steered, or
    made by a tool is no draw from the distribution that the features describe; one that was cut off is only the
    beginning of one.

    Args:
        case: the step with its judged rollouts.
        calibration: the population that features are scored against, and the priors.
        options: the deployment's remedies by name.
        passed: id of the rollout that stands, or None.
        scored: whether a further draw would come with features of two models.
        priced: whether the deployment's models have prices.
    """
    draws = case.draws("retry")
    whole = [r for r in draws if not r.passed and not was_cut(r)]
    failed = case.failed
    evidence: Evidence
    evidence, features, caveats = pool_features([r.features for r in whole])
    # Only what speaks against the calibration keeps features from routing; a rollout without a table does not.
    against = () if features is None else calibration.caveats(features, evidence)
    z = None if features is None else calibration.z(features, evidence)
    routable = z is not None and not against
    last = next(reversed(failed), None)
    kind = None if last is None else last.kind
    shown = case.revisable
    told = shown is not None and shown.told
    # Rollouts that were cut off say nothing of the failure, as soon as there is one that was not.
    believed = next((r.kind for r in reversed(failed) if r.kind != "cut"), kind)
    names = sorted({*(calibration.priors if routable else ()), *options, *(a.remedy for a in case.attempts)})
    tallies = {name: case.tally(name) for name in names}
    # What opened the case is no attempt: it failed by selection, not by chance.
    opened = next((r.remedy for r in case.rollouts), None)
    after = {name: max(0, tries - passes - int(name == opened)) for name, (tries, passes) in tallies.items()}
    beliefs = {
        name: belief_in(name, calibration, kind=believed, told=told, task=case.step.task, published=routable)
        for name in names
    }
    cost = {name: option.bound for name, option in options.items() if isinstance(option.bound, Spend)}
    return Diagnosis(
        step_id=case.step.id,
        evidence=evidence,
        features=features,
        z=z,
        calibration=calibration.name,
        routable=routable,
        caveats=(*caveats, *against),
        draws=len(draws),
        passes=sum(r.passed for r in draws),
        agreement=agreement([r.answer for r in draws], [r.response_id for r in draws]),
        posterior={
            # The paper's gate counts every draw. What was measured of failures holds behind the one that opened them.
            name: update(beliefs[name].beta, passes=passes, draws=tries if routable else passes + after[name])
            for name, (tries, passes) in tallies.items()
        },
        tried={name: n for name in names if (n := sum(a.remedy == name for a in case.attempts))},
        cost=cost,
        passed=passed,
        blocked=case.blocked,
        blocked_by=case.blocked_by,
        task=case.step.task,
        kinds=dict(Counter(r.kind for r in failed if r.kind is not None)),
        kind=kind,
        told=told,
        failed={name: n for name, n in after.items() if n},
        turn=len(case.decisions),
        nodes={name: options[name].node for name in cost},
        words={name: options[name].words for name in cost},
        unavailable={name: option.bound for name, option in options.items() if isinstance(option.bound, str)},
        measurable=scored and bool(calibration.stats.get("two_model")),
        priors={name: beliefs[name].said for name in cost},
        priced=priced,
    )
