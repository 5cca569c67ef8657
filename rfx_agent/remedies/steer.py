"""The paper's decodes: the step is decoded again with the logits of two models mixed."""

from __future__ import annotations

from rfx_agent.case import Attempt, Case
from rfx_agent.engine import costs
from rfx_agent.engine.drive import Call, Flow
from rfx_agent.engine.run import Run
from rfx_agent.records import SampleRequest
from rfx_agent.remedies.base import candidates, seed_of

__all__ = ["steer"]


def steer(run: Run, case: Case) -> Flow[Case]:
    """Decode again with the decision's operator applied to a failed draw's junction."""
    operator, steerer = case.decision.remedy or "dense_steer", run.settings.steerer
    # A candidate from outside has no table, so the junction is another draw's.
    failed = min((x for x in case.draws() if not x.passed), key=lambda x: x.junction is None, default=None)
    if steerer is None or failed is None:
        note = "there is nothing to steer, or nothing to steer with"
        return case.add((), Attempt(operator, note=note))

    def call(n: int) -> Call:
        request = SampleRequest(case.step.messages, n, run.temperature, run.settings.max_tokens, seed_of(run, case))
        return Call(steerer.steer, steerer.asteer, (case.step, operator, failed, request))

    each = costs.of_steering(run, case, failed)
    heat = run.temperature
    return (yield from candidates(run, case, operator, 1, call, heat, each, model=steerer.name, blocks=False))
