"""The calls that flows make, each under the budget: reserve the most it can cost, call, settle what it did cost.

New rollouts are judged, measured and made compact before a node ends, so that a checkpoint never holds a raw table.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from rfx_agent._errors import BudgetExhausted, FeatureError, SamplerError, ToolError, ToolInputError, VerifierError
from rfx_agent._types import Message, Operator, Rollout, SampleRequest, SampleResult, Spend, ToolResult, Usage, Verdict
from rfx_agent.case import Case
from rfx_agent.engine.drivers import Call, Flow
from rfx_agent.events import Judged, Purpose, Reserved, Sampled, Scored, ToolRan
from rfx_agent.features import TopLogprobs, evidence_of, places

if TYPE_CHECKING:
    from rfx_agent.engine.recovery import Recovery

Tables: TypeAlias = tuple[TopLogprobs | FeatureError | None, ...]

__all__ = ["ask_model", "ask_tool", "examine", "refused", "run_tool", "seed_of", "set_aside"]


def seed_of(r: Recovery, case: Case) -> int | None:
    """The seed of the case's next call: its own for each round, the same in every run."""
    return None if r.seed is None else (r.seed + 7919 * (case.ledger.spent.samples + 1)) % 2**31


def ask_model(
    r: Recovery, case: Case, call: Call, operator: Operator, each: Spend, n: int, *, steerer: str = ""
) -> Flow[tuple[Case, tuple[Rollout, ...], str]]:
    """Ask for ``n`` completions that cost at most ``each``; with the rollouts, why there is none, or "".

    A model that cannot be reached blocks the case. A ``steerer``, by name, that fails does not: others may help.
    """
    name = steerer or r.sampler.name
    cost = _times(each, n)
    case = set_aside(r, case, "sample", cost)
    (reply,) = yield (call,)
    error = reply.error
    if error is not None and not isinstance(error, SamplerError):
        raise SamplerError(f"{name}: {type(error).__name__}: {error}") from error
    result = SampleResult((), Usage(calls=error.calls)) if isinstance(error, SamplerError) else reply.value
    got = len(result.rollouts[:n])
    actual = r.spend(result.usage, samples=len(result.rollouts), seconds=reply.seconds)
    actual += Spend(attempts=got if each.attempts else 0)
    case = replace(case, ledger=case.ledger.settle(cost, actual)).note(*result.notes)
    failure = "" if got else f"{name} gave nothing: {error or 'no completion came back'}"
    if failure:
        case = case.note(failure) if steerer else replace(case, blocked=failure)
    tag = f"retry:attempt:{len(case.attempts) + 1}"
    heat = getattr(call.args[-1], "temperature", None)
    told = (case.step.id, operator, n, got, result.usage, reply.seconds, tag, name, heat, failure)
    r.emit(Sampled(*told, run_id=case.run_id))
    return case, result.rollouts, failure


def ask_tool(r: Recovery, case: Case, messages: tuple[Message, ...], attempt: Spend) -> Flow[tuple[Case, str | None]]:
    """The model's text for the tool's input, or None when it cannot be asked or paid for with the run to follow."""
    assert r.tool is not None  # noqa: S101  # tool_verify has looked
    each = r.bound(case, messages) + attempt
    if refused(r, case, "sample", each + r.tool.bound):
        return case, None
    ask = SampleRequest(messages, 1, r.tool_temperature, r.max_tokens, seed_of(r, case), want_logprobs=False)
    call = Call(r.sampler.sample, r.sampler.asample, (ask,))
    case, rollouts, _ = yield from ask_model(r, case, call, "tool", each, 1)
    return case, rollouts[0].text if rollouts else None


def run_tool(r: Recovery, case: Case, text: str) -> Flow[tuple[Case, str, ToolResult]]:
    """Run what the model wrote. Its failure is a result; ``ToolError`` ends in a result too, and a note."""
    assert r.tool is not None  # noqa: S101  # tool_verify has looked
    try:
        source = r.tool.parse(text)
    except ToolInputError as error:
        return case, text, ToolResult(None, error=str(error))
    try:
        case = set_aside(r, case, "tool", r.tool.bound)
    except BudgetExhausted as error:
        return case, source, ToolResult(None, error=str(error))
    (reply,) = yield (Call(r.tool.run, r.tool.arun, (source,)),)
    if reply.error is not None and not isinstance(reply.error, ToolError):
        raise ToolError(f"{r.tool.name}: {type(reply.error).__name__}: {reply.error}") from reply.error
    result = ToolResult(None, error=str(reply.error)) if reply.error is not None else reply.value
    actual = Spend(seconds=reply.seconds, tool_seconds=reply.seconds)
    case = replace(case, ledger=case.ledger.settle(r.tool.bound, actual))
    if reply.error is not None:
        case = case.note(str(reply.error))
    r.emit(ToolRan(case.step.id, r.tool.name, result.answer is None, reply.seconds, run_id=case.run_id))
    return case, source, result


def examine(r: Recovery, case: Case) -> Flow[Case]:
    """Judge the rollouts that have no verdict, measure the failed draws among them, and make them compact."""
    new = {x.id for x in case.rollouts if x.verdict is None}
    if not new:
        return case
    case = yield from _judge(r, case, new)
    fresh = [x for x in case.rollouts if x.id in new]
    if r.traces is not None:
        r.traces.put(case.step.id, fresh)
    case = yield from _measure(r, case, [x for x in fresh if not x.passed and x.logprobs is not None])
    return replace(case, rollouts=tuple(x.compact() for x in case.rollouts))


def _judge(r: Recovery, case: Case, new: set[str]) -> Flow[Case]:
    """With a verdict on each rollout in ``new``; with peers that matter, the failed ones are judged again.

    A rollout whose verdict the budget cannot pay for is not accepted, and its verdict says why.
    """
    peers = case.rollouts
    wanted = [x for x in peers if x.id in new or (r.verifier.needs_peers and not x.passed)]
    case, due = _affordable(r, case, wanted)
    verify, averify = r.verifier.verify, r.verifier.averify
    replies = yield tuple([Call(verify, averify, (case.step, x), {"peers": peers}) for x, _ in due])
    unpaid = Verdict(False, reason="not judged: the budget cannot pay for the verifier")
    verdicts: dict[str, Verdict] = {x.id: x.verdict or unpaid for x in wanted}
    for (rollout, cost), reply in zip(due, replies, strict=True):
        if isinstance(reply.error, VerifierError):
            raise reply.error
        if reply.error is not None:
            raise VerifierError(
                f"{r.verifier.name} broke on rollout {rollout.id}: {type(reply.error).__name__}: {reply.error}",
                rollout=rollout,
            ) from reply.error
        verdict = verdicts[rollout.id] = reply.value
        actual = r.spend(verdict.usage, seconds=reply.seconds)
        case = replace(case, ledger=case.ledger.settle(cost, actual))
        r.emit(
            Judged(
                case.step.id,
                rollout.id,
                verdict.passed,
                verdict.weak,
                reply.seconds,
                r.verifier.name,
                verdict.usage,
                run_id=case.run_id,
            )
        )
    return replace(case, rollouts=tuple(replace(x, verdict=verdicts.get(x.id, x.verdict)) for x in peers))


def _affordable(r: Recovery, case: Case, wanted: list[Rollout]) -> tuple[Case, list[tuple[Rollout, Spend]]]:
    """Those of ``wanted`` whose verdicts can be paid for, with what was set aside for each."""
    bound = getattr(r.verifier, "bound", None)
    if bound is None:
        return case, [(x, Spend()) for x in wanted]
    due = []
    for rollout in wanted:
        cost = r.spend(bound(case.step, rollout))
        if not refused(r, case, "verify", cost):
            case = set_aside(r, case, "verify", cost)
            due.append((rollout, cost))
    return case, due


def _measure(r: Recovery, case: Case, failed: list[Rollout]) -> Flow[Case]:
    """With trajectory features on each of ``failed``, from two models where a scorer gives the ancestor's table."""
    if not failed:
        return case
    case, ancestors = yield from _scored(r, case, failed)
    found = evidence_of(failed, ancestors, temperature=r.temperature)
    measured = {}
    for rollout, features, window, peak in zip(failed, found.per_rollout, found.junctions, found.peaks, strict=True):
        first, top = places(rollout, window, peak)
        measured[rollout.id] = replace(rollout, features=features, junction=first, peak=top)
    rollouts = tuple(measured.get(x.id, x) for x in case.rollouts)
    return replace(case, rollouts=rollouts).note(*found.caveats)


def _scored(r: Recovery, case: Case, failed: list[Rollout]) -> Flow[tuple[Case, Tables | None]]:
    """The ancestor's tables of ``failed``, or None and a note where there is no ancestor to be had or paid for."""
    if r.scorer is None:
        return case, None
    cost = r.scoring(case, failed)
    if caps := refused(r, case, "score", cost):
        return case.note(f"the budget cannot pay for the ancestor's scores: {', '.join(caps)}"), None
    case = set_aside(r, case, "score", cost)
    (reply,) = yield (Call(r.scorer.score, r.scorer.ascore, (case.step, failed)),)
    error = reply.error
    usage = reply.value.usage if error is None else Usage(calls=getattr(error, "calls", 0))
    case = replace(case, ledger=case.ledger.settle(cost, r.spend(usage, seconds=reply.seconds)))
    if error is not None:
        r.emit(Scored(case.step.id, r.scorer.name, len(failed), 0, usage, reply.seconds, run_id=case.run_id))
        return case.note(f"{r.scorer.name} could not score: {type(error).__name__}: {error}"), None
    tables: Tables = reply.value.tables
    scored = sum(isinstance(t, TopLogprobs) for t in tables)
    r.emit(Scored(case.step.id, r.scorer.name, len(failed), scored, usage, reply.seconds, run_id=case.run_id))
    return case.note(*reply.value.notes), tables


def refused(r: Recovery, case: Case, purpose: Purpose, cost: Spend) -> tuple[str, ...]:
    """The caps that ``cost`` would cross, told to the hook; empty when it can be paid."""
    if caps := case.ledger.shortfall(cost):
        r.emit(Reserved(case.step.id, purpose, cost, caps, run_id=case.run_id))
    return caps


def set_aside(r: Recovery, case: Case, purpose: Purpose, cost: Spend) -> Case:
    """With ``cost`` reserved; raises ``BudgetExhausted`` where it cannot be paid."""
    case = replace(case, ledger=case.ledger.reserve(cost))
    r.emit(Reserved(case.step.id, purpose, cost, run_id=case.run_id))
    return case


def _times(each: Spend, n: int) -> Spend:
    total = Spend()
    for _ in range(n):
        total += each
    return total
