"""The calls that flows make: what each is asked, the most that it can cost, and what comes of it.

New rollouts are judged, measured and made compact before a node ends, so that a checkpoint never holds a raw table.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from rfx_agent._errors import (
    CircuitOpen,
    FeatureError,
    SamplerError,
    SamplerTimeout,
    ToolError,
    ToolInputError,
)
from rfx_agent._types import (
    Message,
    Operator,
    Rollout,
    SampleRequest,
    SampleResult,
    ScoreResult,
    Spend,
    ToolResult,
    Usage,
)
from rfx_agent.case import Case
from rfx_agent.engine.drivers import Call, Flow, Reply, TimedOut
from rfx_agent.engine.paid import paid, refused
from rfx_agent.engine.verdicts import judge
from rfx_agent.events import Sampled, Scored, ToolRan
from rfx_agent.features import TopLogprobs, evidence_of, places

if TYPE_CHECKING:
    from rfx_agent.engine.recovery import Recovery

Tables: TypeAlias = tuple[TopLogprobs | FeatureError | None, ...]

__all__ = ["ask_model", "ask_tool", "examine", "run_tool", "seed_of"]

_GRACE = 1.0  # seconds that a tool may take to break off its own run


def seed_of(r: Recovery, case: Case) -> int | None:
    """The seed of the case's next call: its own for each round, the same in every run."""
    return None if r.seed is None else (r.seed + 7919 * (case.ledger.spent.samples + 1)) % 2**31


def ask_model(
    r: Recovery,
    case: Case,
    call: Call,
    operator: Operator,
    each: Spend,
    n: int,
    *,
    steerer: str = "",
    normal: bool = False,
) -> Flow[tuple[Case, tuple[Rollout, ...], str]]:
    """Ask for ``n`` completions that cost at most ``each``; with the rollouts, why there is none, or "".

    A model that cannot be reached blocks the case. A ``steerer``, by name, that fails does not: others may help.
    ``normal`` where this is the step's first draw, which is no recovery.
    """
    name = steerer or r.sampler.name
    cost, request = _times(each, n), call.args[-1]
    call = replace(call, limit=case.ledger.remaining()["seconds"])

    def price(replies: tuple[Reply, ...]) -> Spend:
        (reply,) = replies
        if isinstance(reply.error, TimedOut):
            return replace(cost, seconds=reply.seconds)
        if reply.error is not None:
            return _failed(r, cost, reply)
        made = len(reply.value.rollouts)
        attempts = min(made, n) if each.attempts else 0
        spent = r.spend(reply.value.usage, samples=made, seconds=reply.seconds)
        return spent + Spend(attempts=attempts, asked=1)

    about = (operator, name, request)
    case, done = yield from paid(
        r, case, "sample", cost, (call,), about=about, gives=SampleResult, price=price, normal=normal
    )
    if not done.replies:
        return case, (), case.blocked
    (reply,) = done.replies
    error = reply.error
    if isinstance(error, TimedOut):
        error = SamplerTimeout(f"it did not answer within the {reply.seconds:.3g} s that the budget had left")
    if error is not None and not isinstance(error, SamplerError):
        raise SamplerError(f"{name}: {type(error).__name__}: {error}") from error
    result = SampleResult((), Usage(calls=error.calls)) if error is not None else reply.value
    got = len(result.rollouts[:n])
    case = case.note(*result.notes)
    if done.replayed:
        if request.want_logprobs:
            case = case.note("draws of a run that was broken off come back without their log-probabilities")
        return case, result.rollouts, ""
    failure = "" if got else f"{name} gave nothing: {error or 'no completion came back'}"
    if failure:
        why = _blocks(reply.error)
        case = case.note(failure) if steerer else replace(case, blocked=failure, blocked_by=why)
    tag = f"retry:attempt:{len(case.attempts) + 1}"
    heat = getattr(request, "temperature", None)
    told = (case.step.id, operator, n, got, result.usage, reply.seconds, tag, name, heat, failure)
    r.emit(Sampled(*told, run_id=case.run_id))
    return case, result.rollouts, failure


def _failed(r: Recovery, cost: Spend, reply: Reply) -> Spend:
    """What a request cost that brought nothing. A server that sent a status did no work; of one that did not answer,
    or not legibly, nobody knows: all that was reserved, except that there is nothing to judge."""
    calls, status = getattr(reply.error, "calls", 0), getattr(reply.error, "status", None)
    if calls and status is None:
        return replace(cost, attempts=0, seconds=reply.seconds, calls=calls, asked=1)
    return r.spend(Usage(calls=calls), seconds=reply.seconds) + Spend(asked=1)


def _blocks(error: Exception | None) -> str:
    if isinstance(error, TimedOut):
        return "budget:seconds"
    return "circuit_open" if isinstance(error, CircuitOpen) else "sampler_error"


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
    """Run what the model wrote. Its failure is a result; ``ToolError`` ends in a result too, and a note.

    A tool that has not ended a second after the most that a run of it may take is broken off.
    """
    assert r.tool is not None  # noqa: S101  # tool_verify has looked
    try:
        source = r.tool.parse(text)
    except ToolInputError as unreadable:
        return case, text, ToolResult(None, error=str(unreadable))
    if refused(r, case, "tool", r.tool.bound):
        return case, source, ToolResult(None, error="the budget cannot pay for a run of the tool")
    most = r.tool.bound.tool_seconds
    call = Call(r.tool.run, r.tool.arun, (source,), limit=most + _GRACE if most else None)

    def price(replies: tuple[Reply, ...]) -> Spend:
        return Spend(seconds=replies[0].seconds, tool_seconds=replies[0].seconds)

    about = (r.tool.name, source)
    case, done = yield from paid(r, case, "tool", r.tool.bound, (call,), about=about, gives=ToolResult, price=price)
    if not done.replies:
        return case, source, ToolResult(None, error=case.blocked)
    (reply,) = done.replies
    error = reply.error
    if error is not None and not isinstance(error, (ToolError, TimedOut)):
        raise ToolError(f"{r.tool.name}: {type(error).__name__}: {error}") from error
    said = f"{r.tool.name}: {error}" if isinstance(error, TimedOut) else str(error)
    result = ToolResult(None, error=said) if error is not None else reply.value
    if error is not None:
        case = case.note(said)
    if not done.replayed:
        r.emit(ToolRan(case.step.id, r.tool.name, result.answer is None, reply.seconds, run_id=case.run_id))
    return case, source, result


def examine(r: Recovery, case: Case) -> Flow[Case]:
    """Judge the rollouts that have no verdict, measure the failed draws among them, and make them compact."""
    new = {x.id for x in case.rollouts if x.verdict is None}
    if not new:
        return case
    case = yield from judge(r, case, new)
    fresh = [x for x in case.rollouts if x.id in new]
    if r.traces is not None:
        r.traces.put(case.step.id, fresh)
    case = yield from _measure(r, case, [x for x in fresh if not x.passed and x.logprobs is not None])
    return replace(case, rollouts=tuple(x.compact() for x in case.rollouts))


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
    cost, scorer = r.scoring(case, failed), r.scorer
    if caps := refused(r, case, "score", cost):
        return case.note(f"the budget cannot pay for the ancestor's scores: {', '.join(caps)}"), None
    call = Call(scorer.score, scorer.ascore, (case.step, failed), limit=case.ledger.remaining()["seconds"])

    def usage(reply: Reply) -> Usage:
        return reply.value.usage if reply.error is None else Usage(calls=getattr(reply.error, "calls", 0))

    def price(replies: tuple[Reply, ...]) -> Spend:
        (reply,) = replies
        if isinstance(reply.error, TimedOut):
            return replace(cost, seconds=reply.seconds)
        return r.spend(usage(reply), seconds=reply.seconds) + Spend(asked=1)

    about = (scorer.name, [x.text for x in failed])
    case, done = yield from paid(r, case, "score", cost, (call,), about=about, gives=ScoreResult, price=price)
    if not done.replies:
        return case, None
    if done.replayed:
        return case.note("the ancestor's scores were lost with the process that had asked for them"), None
    (reply,) = done.replies
    error = reply.error
    tables: Tables = () if error is not None else reply.value.tables
    scored = sum(isinstance(t, TopLogprobs) for t in tables)
    told = (case.step.id, scorer.name, len(failed), scored, usage(reply), reply.seconds)
    r.emit(Scored(*told, run_id=case.run_id))
    if error is not None:
        return case.note(f"{scorer.name} could not score: {type(error).__name__}: {error}"), None
    return case.note(*reply.value.notes), tables


def _times(each: Spend, n: int) -> Spend:
    total = Spend()
    for _ in range(n):
        total += each
    return total
