"""What happens at each node, as flows: a ``Case`` goes in, the next one comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from rfx_agent._records import Attempt
from rfx_agent._types import Operator, Rollout, SampleRequest, Spend, ToolResult
from rfx_agent.case import Case, Outcome
from rfx_agent.diagnosis import diagnose_case
from rfx_agent.engine.calls import ask_model, ask_tool, examine, run_tool, seed_of
from rfx_agent.engine.drivers import Call, Flow
from rfx_agent.engine.paid import refused
from rfx_agent.engine.people import answer_human, finish, open_case
from rfx_agent.escalation import payload
from rfx_agent.events import Decided

if TYPE_CHECKING:
    from rfx_agent.engine.recovery import Recovery

__all__ = ["answer_human", "diagnose", "recover", "resample", "steer", "tool_verify"]


def recover(r: Recovery, case: Case) -> Flow[Case]:
    """Diagnose and remedy until the step has an outcome. The budget makes it end."""
    remedies = {"resample": resample, "tool_verify": tool_verify, "steer": steer}
    while True:
        case = yield from diagnose(r, case, human=r.escalator is not None)
        if case.outcome is not None:
            return case
        if case.ask is not None and r.escalator is not None:
            call = Call(r.escalator.escalate, r.escalator.aescalate, (payload(case),))
            (reply,) = yield (call,)  # a person's time is not on the clock
            if reply.error is not None:
                raise reply.error
            return (yield from answer_human(r, case, reply.value))
        case = yield from remedies[case.decision.route](r, case)


def diagnose(r: Recovery, case: Case, *, human: bool) -> Flow[Case]:
    """Verify the candidate, ask for extra samples if it failed, and decide.

    The case that comes back has an ``outcome``, or an ``ask`` for a person, or a decision whose route is a remedy.

    Args:
        r: the deployment.
        case: the step so far.
        human: whether a person can be asked.
    """
    first = not case.decisions
    if case.rollouts or case.attempts:
        if first and r.shared is not None:
            r.shared.deposit(r.traffic(case))
        case = yield from examine(r, case)
    else:
        case = yield from _draw(r, case, "retry", 1, normal=True)
    if first and r.extra_samples and not case.blocked and not any(x.passed for x in case.rollouts):
        case = yield from _draw(r, case, "retry", r.extra_samples)
    passed = any(x.passed for x in case.rollouts)
    diagnosis = diagnose_case(case, r.calibration, {} if passed else r.costs(case))
    decision = r.policy.decide(diagnosis, case.ledger)
    case = replace(case, diagnosis=diagnosis, decisions=(*case.decisions, decision))
    r.emit(Decided(case.step.id, decision, run_id=case.run_id))
    if decision.route == "accept":
        return finish(r, case, _accepted(case, next(x for x in case.rollouts if x.passed)))
    if decision.route == "escalate":
        case = yield from open_case(r, case, human=human)
        return _paid(case) if case.ask is not None else case
    return case


def resample(r: Recovery, case: Case) -> Flow[Case]:
    """Draw again from the original prompt: with new seeds, or at a lifted temperature from the junction."""
    decision = case.decision
    prefix = _before_junction(case) if decision.from_junction and r.sampler.continues_prefix else None
    case = yield from _draw(r, case, decision.operator or "retry", r.resample_draws, decision.temperature, prefix)
    return _paid(case)


def steer(r: Recovery, case: Case) -> Flow[Case]:
    """Decode again with the decision's operator applied to a failed draw's junction."""
    operator = case.decision.operator or "dense_steer"
    # A candidate from outside has no table, so the junction is another draw's.
    failed = min((x for x in case.draws() if not x.passed), key=lambda x: x.junction is None, default=None)
    if r.steerer is None or failed is None:
        note = "there is nothing to steer, or nothing to steer with"
        return _paid(case.add((), Attempt(operator, 1, 0, note=note)))
    steerer = r.steerer

    def call(n: int) -> Call:
        ask = SampleRequest(case.step.messages, n, r.temperature, r.max_tokens, seed_of(r, case))
        return Call(steerer.steer, steerer.asteer, (case.step, operator, failed, ask))

    each = r.steering(case, failed)
    return _paid((yield from _taken(r, case, operator, 1, call, r.temperature, each, steerer=steerer.name)))


def tool_verify(r: Recovery, case: Case) -> Flow[Case]:
    """Let the model drive the tool from the original prompt, and take its result for a candidate like any other.

    An input that fails is shown to the model once, with its error. No failed answer is ever shown.
    """
    if r.tool is None:
        return _paid(case.add((), Attempt("tool", 1, 0, note="there is no tool")))
    before = case.ledger.spent.tokens
    prefix = _before_junction(case) if case.decision.from_junction else None
    messages = r.tool.prompt(case.step, prefix=prefix)
    result = ToolResult(None)
    for turn in range(2):
        case, text = yield from ask_tool(r, case, messages, Spend(attempts=1 - turn))
        if text is None:  # the model could not be asked, or asking again cannot be paid for
            break
        case, source, result = yield from run_tool(r, case, text)
        if result.answer is not None:
            break
        messages = r.tool.repair(case.step, source, result)
    made = () if result.answer is None else (Rollout(text=result.answer, operator="tool"),)
    failed = result.error is not None and not made
    cost = case.ledger.spent.tokens - before
    case = case.add(
        made, Attempt("tool", 1, len(made), misses=int(failed), tokens=cost, note=(result.error or "")[:300])
    )
    case = yield from examine(r, case)
    return _paid(case)


def _draw(
    r: Recovery,
    case: Case,
    operator: Operator,
    wanted: int,
    temperature: float | None = None,
    prefix: str | None = None,
    *,
    normal: bool = False,
) -> Flow[Case]:
    """Up to ``wanted`` draws from the original prompt; ``normal`` where this is the step's first."""
    heat = r.temperature if temperature is None else temperature

    def call(n: int) -> Call:
        ask = SampleRequest(case.step.messages, n, heat, r.max_tokens, seed_of(r, case), prefix)
        return Call(r.sampler.sample, r.sampler.asample, (ask,))

    each = r.bound(case, case.step.messages, prefix or "")
    return (yield from _taken(r, case, operator, wanted, call, heat, each, prefix or "", normal=normal))


def _taken(
    r: Recovery,
    case: Case,
    operator: Operator,
    wanted: int,
    call: Callable[[int], Call],
    temperature: float,
    each: Spend,
    prefix: str = "",
    steerer: str = "",
    *,
    normal: bool = False,
) -> Flow[Case]:
    """Ask for as many of ``wanted`` candidates, each at most ``each``, as the budget can pay for; take in what came."""
    each += Spend(attempts=1)
    n = case.ledger.affordable(each, most=wanted)
    if n == 0:
        caps = ", ".join(refused(r, case, "sample", each))
        return case.add((), Attempt(operator, wanted, 0, note=f"the budget cannot pay for a draw: {caps}"))
    before = case.ledger.spent.tokens
    case, rollouts, failure = yield from ask_model(r, case, call(n), operator, each, n, steerer=steerer, normal=normal)
    start = len(prefix)
    made = tuple(replace(x, operator=operator, temperature=temperature, start=x.start or start) for x in rollouts[:n])
    note = failure or (f"{len(made)} of {n} came back" if len(made) < n else "")
    tokens = case.ledger.spent.tokens - before
    case = case.add(made, Attempt(operator, n, len(made), tokens=tokens, note=note))
    return (yield from examine(r, case))


def _before_junction(case: Case) -> str | None:
    return next((x.text[: x.junction] for x in case.draws() if not x.passed and x.junction), None)


def _paid(case: Case) -> Case:
    """With what is left after the remedy written into the decision that asked for it."""
    done = replace(case.decision, budget_after=case.ledger.remaining())
    return replace(case, decisions=(*case.decisions[:-1], done))


def _accepted(case: Case, rollout: Rollout) -> Outcome:
    as_it_was = rollout is case.rollouts[0]
    same = tuple(
        x.id
        for x in case.rollouts
        if x.operator != rollout.operator and x.answer is not None and x.answer == rollout.answer
    )
    return Outcome(
        "accepted" if as_it_was else "rescued",
        rollout.text,
        rollout.answer,
        rollout.operator,
        weak=rollout.verdict is not None and rollout.verdict.weak,
        reason="passed",
        sentence=case.decision.sentence,
        confirmed_by=same,
    )
