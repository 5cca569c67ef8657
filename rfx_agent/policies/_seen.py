"""From a finished case to what it teaches."""

from __future__ import annotations

from rfx_agent._types import Operator
from rfx_agent.case import Case
from rfx_agent.policies._belief import Belief

__all__ = ["seen_in"]


def seen_in(case: Case) -> Belief:
    """What one finished case teaches, for ``LearnedPolicy.learn`` or ``PolicyStore.add``."""
    attempts: list[tuple[Operator, bool]] = []
    seen: set[str] = set()
    by_round: dict[int, list[bool]] = {}
    for rollout in case.rollouts:
        if rollout.response_id is not None:
            if rollout.response_id in seen:
                continue
            seen.add(rollout.response_id)
        if rollout.round is not None and rollout.verdict is not None:
            by_round.setdefault(rollout.round, []).append(rollout.passed)
    outside = any(rollout.round is None for rollout in case.rollouts)
    for number, attempt in enumerate(case.attempts):
        attempts += [(attempt.operator, passed) for passed in by_round.get(number, [])]
        attempts += [(attempt.operator, False)] * attempt.misses
    if not outside:
        if attempts and attempts[0][1]:
            return Belief()  # the first draw passed: no failure
        attempts = attempts[1:]
    elif any(r.round is None and r.passed for r in case.rollouts):
        return Belief()
    return Belief().of(attempts)
