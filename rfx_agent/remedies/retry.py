"""Another draw from the original prompt: as it was, or at a lifted temperature from the junction."""

from __future__ import annotations

from rfx_agent.case import Attempt, Case
from rfx_agent.engine import costs
from rfx_agent.engine.drive import Call, Flow
from rfx_agent.engine.run import Run
from rfx_agent.records import SampleRequest
from rfx_agent.remedies.base import before_junction, candidates, seed_of

__all__ = ["draw", "resample"]


def resample(run: Run, case: Case) -> Flow[Case]:
    """Draw again from the original prompt: with new seeds, or at a lifted temperature from the junction."""
    decision = case.decision
    continues = decision.from_junction and run.sampler is not None and run.sampler.continues_prefix
    prefix = before_junction(case) if continues else ""
    wanted = run.settings.resample_draws
    return (yield from draw(run, case, decision.remedy or "retry", wanted, decision.temperature, prefix))


def draw(
    run: Run,
    case: Case,
    remedy: str,
    wanted: int,
    temperature: float | None = None,
    prefix: str = "",
    *,
    normal: bool = False,
) -> Flow[Case]:
    """Up to ``wanted`` draws from the original prompt; ``normal`` where this is the step's first."""
    heat, sampler = run.temperature if temperature is None else temperature, run.sampler
    if sampler is None:
        return case.add((), Attempt(remedy, wanted, note="there is no sampler"))

    def call(n: int) -> Call:
        request = SampleRequest(
            case.step.messages, n, heat, run.settings.max_tokens, seed_of(run, case), prefix or None
        )
        return Call(sampler.sample, sampler.asample, (request,))

    each = costs.of_draw(run, case, prefix)
    return (
        yield from candidates(run, case, remedy, wanted, call, heat, each, prefix, model=sampler.name, normal=normal)
    )
