"""Judges what is new in a case: a verdict and a kind on each rollout, features on each failed draw with a table."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeAlias

from rfx_agent.bill import Operation
from rfx_agent.case import Case
from rfx_agent.engine import costs
from rfx_agent.engine.drive import Call, Flow, Reply, TimedOut
from rfx_agent.engine.run import Purchase, Run
from rfx_agent.errors import ConfigError, FeatureError, VerifierError
from rfx_agent.events import Judged, Reserved, Scored
from rfx_agent.evidence.features import evidence_of, places
from rfx_agent.evidence.kinds import REFUSAL, kind_of
from rfx_agent.evidence.tables import TopLogprobs
from rfx_agent.evidence.verdicts import joined, owned
from rfx_agent.records import Rollout, ScoreResult, Spend, Step, Usage, Verdict
from rfx_agent.thinking import LONG, after_thinking

__all__ = ["examine", "price_of_verdicts", "read", "verdict_call"]

Tables: TypeAlias = tuple[TopLogprobs | FeatureError | None, ...]

_NOTHING = Spend()
_UNPAID = Verdict(False, reason="not judged: the budget cannot pay for the verifier", kind="unchecked")


def examine(run: Run, case: Case, replies: tuple[Reply, ...] | None = None) -> Flow[Case]:
    """Judge the rollouts that have no verdict, measure the failed draws among them, and make them compact.

    Args:
        run: the deployment.
        case: the step so far.
        replies: of the verifier on those rollouts, where it was asked already.
    """
    new = {x.id for x in case.rollouts if x.verdict is None}
    if not new:
        return case
    case = yield from _judge(run, case, new, replies)
    fresh = [x for x in case.rollouts if x.id in new]
    if run.settings.traces is not None:
        (reply,) = yield (Call(run.settings.traces.put, run.settings.traces.aput, (case.step.id, fresh)),)
        if reply.error is not None:
            raise reply.error
    case = yield from _measure(run, case, [x for x in fresh if not x.passed and x.logprobs is not None])
    return replace(case, rollouts=tuple(x.compact() for x in case.rollouts))


def second(run: Run, case: Case, rollout: Rollout) -> Flow[Case]:
    """Ask the deployment's second opinion about ``rollout``, which an opinion passed; both must pass it.

    Where it comes to no verdict, because it broke, took too long or cannot be paid for, the first opinion stands.
    """
    other, first = run.settings.second_opinion, rollout.verdict
    assert other is not None and first is not None  # noqa: S101, PT018  # ``unasked`` says so
    asked = replace(case, rollouts=tuple(replace(x, verdict=None) if x is rollout else x for x in case.rollouts))
    asked = yield from _judge(replace(run, verifier=other), asked, {rollout.id}, None, lenient=True)
    given = next(x.verdict for x in asked.rollouts if x.id == rollout.id)
    both = first
    if given is None or given.kind == "unchecked":
        why = "" if given is None else given.reason
        asked = asked.note(_none_of(other.name, rollout, why))
    else:
        given = owned(given, other.name, other.rates, correlation=run.settings.correlation)
        parts = (False, other.partial)
        both = joined((first, given), passed=first.passed and given.passed, partial=parts)
    seen = [replace(x, verdict=both) if x.id == rollout.id else x for x in asked.rollouts]
    return replace(asked, rollouts=tuple(replace(x, kind=kind_of(x)) for x in seen))


def unasked(run: Run, case: Case, rollout: Rollout) -> bool:
    """Whether ``rollout`` still needs the second opinion."""
    other = run.settings.second_opinion
    if other is None or rollout.verdict is None or any(x.by == other.name for x in rollout.verdict.opinions):
        return False
    begun = _none_of(other.name, rollout, "")
    return not any(note.startswith(begun) for note in case.notes)


def _none_of(name: str, rollout: Rollout, why: str) -> str:
    return f"the second opinion, {name}, came to no verdict on {rollout.id}: {why}"


def read(rollouts: Iterable[Rollout]) -> Flow[None]:
    """Find out beside an event loop what long texts say, which the verifier and the engine then ask for on it."""
    if texts := [x.text for x in rollouts if len(x.text) >= LONG]:
        yield (Call(_said, _asaid, (texts,)),)


def _said(texts: Sequence[str]) -> None:
    for text in texts:
        after_thinking(text)


async def _asaid(texts: Sequence[str]) -> None:
    await asyncio.to_thread(_said, texts)


def verdict_call(run: Run, step: Step, rollout: Rollout, peers: Sequence[Rollout]) -> Call:
    """Ask the verifier about ``rollout``; cancelled after ``Recovery.verdict_seconds``, unless it cannot hang.

    What a model says in the place of an answer is none, whatever stands in it.
    """
    if rollout.finish_reason == REFUSAL:
        return Call(_refused, _arefused)
    verifier = run.verifier
    limit = None if verifier.instant else run.settings.verdict_seconds
    return Call(verifier.verify, verifier.averify, (step, rollout), {"peers": peers}, limit)


def _refused() -> Verdict:
    return Verdict(False, reason="the model refused to answer", kind="refused")


async def _arefused() -> Verdict:
    return _refused()


def price_of_verdicts(run: Run, replies: Sequence[Reply], bound: Spend | None = None) -> Spend:
    """What verdicts cost. One that was cancelled, or whose answer was lost, may have cost all that was reserved."""
    spent = _NOTHING
    for reply in replies:
        usage = reply.value.usage if reply.error is None else costs.reported(reply.error)
        one = costs.of_usage(run, usage, seconds=reply.seconds, asked=int(usage.calls > 0))
        spent = one if spent is _NOTHING else spent + one
    times = max((costs.lost_tries(x.error) for x in replies), default=0)
    return spent if bound is None or not times else replace(bound.tried(times), seconds=spent.seconds)


def _judge(
    run: Run, case: Case, new: set[str], replies: tuple[Reply, ...] | None, *, lenient: bool = False
) -> Flow[Case]:
    """With a verdict on each rollout in ``new``; with peers that matter, the failed ones are judged again.

    A rollout whose verdict the budget cannot pay for, or that did not come in time, is not accepted, and its verdict
    says why. So it is of a verifier that broke, with ``lenient``; else that is an error.
    """
    peers, name = case.rollouts, run.verifier.name
    wanted = [x for x in peers if x.id in new or (run.verifier.needs_peers and not x.passed)]
    verdicts: dict[str, Verdict] = {x.id: x.verdict or _UNPAID for x in wanted}
    yield from read(wanted)
    due, cost = (wanted, None) if replies is not None else _affordable(run, case, wanted)
    told, operation = True, case.next_operation
    newest = max(wanted, key=lambda x: x.attempt)  # others are judged again because of it
    remedy, attempt = case.source(newest), newest.attempt
    if cost is None:
        most: Spend | None = None
        if replies is None:
            replies = yield tuple([verdict_call(run, case.step, x, peers) for x in due])
        elif (usage := run.verifier.bound(case.step, due[0])) is not None:  # ``judged`` has asked, and it costs
            most = costs.of_usage(run, usage)
            run.emit(Reserved(case.step.id, "verify", most, run_id=case.run_id, operation=operation, attempt=attempt))
        spent = price_of_verdicts(run, replies, most)
        case = replace(case, ledger=case.ledger.charge(spent, name))
        if due:
            case = case.paid(Operation("verify", spent, remedy, name if spent.calls else "", attempt))
    else:
        bound, calls = cost, tuple([verdict_call(run, case.step, x, peers) for x in due])
        case, paid = yield from run.pay(
            case,
            Purchase(
                purpose="verify",
                cost=bound,
                calls=calls,
                about=(name, [(x.id, x.text) for x in due]),
                gives=Verdict,
                price=lambda given: price_of_verdicts(run, given, bound),
                model=name,
                remedy=remedy,
                attempt=attempt,
            ),
        )
        replies, told = paid.replies, not paid.replayed
        due = due if replies else []
    for rollout, reply in zip(due, replies, strict=True):
        verdict = verdicts[rollout.id] = _verdict(run, rollout, reply, lenient=lenient)
        if told:
            said = (verdict.passed, verdict.weak, reply.seconds, name, verdict.usage)
            kind = kind_of(replace(rollout, verdict=verdict))
            by = "" if rollout.round is None else rollout.remedy  # no remedy made what came from outside
            made = Judged(case.step.id, rollout.id, *said, kind, by, run_id=case.run_id)
            run.emit(replace(made, operation=operation, attempt=rollout.attempt))
    seen = [replace(x, verdict=verdicts.get(x.id, x.verdict)) for x in peers]
    return replace(case, rollouts=tuple(replace(x, kind=kind_of(x)) for x in seen))


def _affordable(run: Run, case: Case, wanted: list[Rollout]) -> tuple[list[Rollout], Spend | None]:
    """Those of ``wanted`` that can be judged together, and the most that it costs; None where nothing is to be paid."""
    due: list[Rollout] = []
    total: Spend | None = None
    for rollout in wanted:
        bound = run.verifier.bound(case.step, rollout)
        if bound is None:
            due.append(rollout)
            continue
        cost = costs.of_usage(run, bound)
        total = total or Spend()
        if not run.short(case, "verify", total + cost):
            due.append(rollout)
            total += cost
    return due, total if due else None


def _verdict(run: Run, rollout: Rollout, reply: Reply, *, lenient: bool) -> Verdict:
    error, name = reply.error, run.verifier.name
    if error is None:
        verdict: Verdict = reply.value
        return owned(verdict, name, run.verifier.rates)  # so that the record says whose it is, and what that is worth
    if isinstance(error, ConfigError):  # the deployment is wrong, and no verdict will ever come of it
        raise error
    if isinstance(error, TimedOut) or (lenient and isinstance(error, Exception)):
        return Verdict(False, reason=f"not judged: {name}: {error}", kind="unchecked")
    if isinstance(error, VerifierError):
        raise error
    raise VerifierError(
        f"{name} broke on rollout {rollout.id}: {type(error).__name__}: {error}", rollout=rollout
    ) from error


def _measure(run: Run, case: Case, failed: list[Rollout]) -> Flow[Case]:
    """With trajectory features on each of ``failed``, from two models where a scorer gives the ancestor's table."""
    if not failed:
        return case
    case, ancestors = yield from _scored(run, case, failed)
    found = evidence_of(failed, ancestors, temperature=run.temperature)
    measured = {}
    for rollout, features, window, peak in zip(failed, found.per_rollout, found.junctions, found.peaks, strict=True):
        first, top = places(rollout, window, peak)
        measured[rollout.id] = replace(rollout, features=features, junction=first, peak=top)
    rollouts = tuple(measured.get(x.id, x) for x in case.rollouts)
    return replace(case, rollouts=rollouts).note(*found.caveats)


def _scored(run: Run, case: Case, failed: list[Rollout]) -> Flow[tuple[Case, Tables | None]]:
    """The ancestor's tables of ``failed``, or None and a note where no ancestor is available or affordable."""
    scorer = run.settings.scorer
    if scorer is None:
        return case, None
    cost = costs.of_scores(run, case, failed)

    def usage(reply: Reply) -> Usage:
        return reply.value.usage if reply.error is None else costs.reported(reply.error)

    def price(replies: tuple[Reply, ...]) -> Spend:
        (reply,) = replies
        if isinstance(reply.error, TimedOut):
            return replace(cost.tried(reply.error.lost), seconds=reply.seconds)
        if reply.error is not None:
            return costs.of_failure(run, cost, reply.error, seconds=reply.seconds)
        return costs.of_usage(run, usage(reply), seconds=reply.seconds) + Spend(asked=1)

    def tell(replies: tuple[Reply, ...]) -> list[Scored]:
        (reply,) = replies
        tables: Tables = () if reply.error is not None else reply.value.tables
        scored = sum(isinstance(t, TopLogprobs) for t in tables)
        told = (case.step.id, scorer.name, len(failed), scored, usage(reply), reply.seconds)
        return [Scored(*told, run_id=case.run_id)]

    limit = case.ledger.remaining()["seconds"]
    case, paid = yield from run.pay(
        case,
        Purchase(
            purpose="score",
            cost=cost,
            calls=(Call(scorer.score, scorer.ascore, (case.step, failed), limit=limit),),
            about=(scorer.name, [x.text for x in failed]),
            gives=ScoreResult,
            price=price,
            model=scorer.name,
            tell=tell,
            remedy=case.source(failed[-1]),
            attempt=failed[-1].attempt,
        ),
    )
    if paid.refused:
        note = f"the budget cannot pay for the ancestor's scores: {', '.join(paid.refused)}"
        return (case if paid.shared else case.note(note)), None
    if paid.replayed:
        return case.note("the ancestor's scores were lost with the process that had asked for them"), None
    (reply,) = paid.replies
    if reply.error is not None:
        return case.note(f"{scorer.name} could not score: {type(reply.error).__name__}: {reply.error}"), None
    return case.note(*reply.value.notes), reply.value.tables
