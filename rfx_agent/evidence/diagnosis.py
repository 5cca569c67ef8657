"""Evidence and calibration in, diagnosis out: what is known of one failure, as far as it was measured."""

from __future__ import annotations

from collections.abc import Mapping

from rfx_agent.case import Case, Diagnosis
from rfx_agent.evidence.agreement import agreement
from rfx_agent.evidence.calibration import Calibration
from rfx_agent.evidence.features import pool_features
from rfx_agent.evidence.posterior import update
from rfx_agent.records import Evidence, Spend

__all__ = ["diagnose_case"]


def diagnose_case(case: Case, calibration: Calibration, cost: Mapping[str, Spend]) -> Diagnosis:
    """What the rollouts of ``case`` say.

    Features are the mean over the distinct failed plain draws: a rollout decoded at another temperature, steered, or
    made by a tool is no draw from the distribution that the features describe.

    Args:
        case: the step with its judged rollouts.
        calibration: the population that features are scored against, and the priors.
        cost: per remedy that can be carried out, the most that one attempt may cost.
    """
    draws = case.draws("retry")
    failed = [r for r in draws if not r.passed]
    evidence: Evidence
    evidence, features, caveats = pool_features([r.features for r in failed])
    # Only what speaks against the calibration keeps features from routing; a rollout without a table does not.
    against = () if features is None else calibration.caveats(features, evidence)
    z = None if features is None else calibration.z(features, evidence)
    passed = next((r.id for r in case.rollouts if r.passed), None)
    remedies = set(calibration.priors) | set(cost)
    tallies = {op: case.tally(op) for op in sorted(remedies)}
    return Diagnosis(
        step_id=case.step.id,
        evidence=evidence,
        features=features,
        z=z,
        calibration=calibration.name,
        routable=z is not None and not against,
        caveats=(*caveats, *against),
        draws=len(draws),
        passes=sum(r.passed for r in draws),
        agreement=agreement([r.answer for r in draws], [r.response_id for r in draws]),
        posterior={
            op: update(prior, passes=passes, draws=tries) if tries else prior
            for op, (tries, passes) in tallies.items()
            for prior in (calibration.prior(op),)
        },
        tried={op: n for op in sorted(remedies) if (n := sum(a.remedy == op for a in case.attempts))},
        cost=cost,
        passed=passed,
        blocked=case.blocked,
        blocked_by=case.blocked_by,
    )
