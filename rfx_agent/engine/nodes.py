"""What happens at each node: a ``Case`` goes in, the next one comes out.

``diagnose`` judges what is new, asks for extra samples, and decides; the other nodes carry out a remedy. New rollouts
are judged, measured and made compact before a node ends, so that a checkpoint never holds a raw table.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from rfx_agent.budgets.step import Ledger
from rfx_agent.case import Case, Outcome
from rfx_agent.engine import costs
from rfx_agent.engine.drive import Call, Flow, Reply, TimedOut
from rfx_agent.engine.run import Purchase, Run
from rfx_agent.errors import ConfigError, FeatureError, VerifierError
from rfx_agent.escalation.ask import answer_person, open_case
from rfx_agent.escalation.request import payload
from rfx_agent.events import Decided, Judged, Reserved, Scored
from rfx_agent.evidence.diagnosis import diagnose_case
from rfx_agent.evidence.features import evidence_of, places
from rfx_agent.evidence.tables import TopLogprobs
from rfx_agent.records import Rollout, ScoreResult, Spend, Step, Usage, Verdict
from rfx_agent.remedies.retry import draw, resample
from rfx_agent.remedies.steer import steer
from rfx_agent.remedies.tool import tool_verify

__all__ = ["REMEDIES", "First", "diagnose", "examine", "judged", "recover", "start", "until_asked"]

Tables: TypeAlias = tuple[TopLogprobs | FeatureError | None, ...]

_NOTHING = Spend()
_UNPAID = Verdict(False, reason="not judged: the budget cannot pay for the verifier")


def start(
    run: Run,
    step: Step | str,
    candidate: Rollout | str | None = None,
    *,
    run_id: str = "",
    ledger: Ledger | None = None,
) -> Case:
    """The case of ``step`` before anything happened.

    Args:
        run: the deployment.
        step: the step, or its prompt.
        candidate: what the agent already has; without it the sampler is asked for the first draw.
        run_id: of this run of the step (see ``Recovery.run``); by default a new one, where anybody reads it.
        ledger: what it may spend; by default an untouched one under the settings' budget.

    Raises:
        ConfigError: there is neither a candidate nor a sampler.
    """
    if isinstance(step, str):
        step = Step.of(step)
    if not run_id and (run.on_event is not None or run.settings.shared is not None):
        run_id = secrets.token_hex(8)
    case = Case(step=step, ledger=Ledger(run.settings.budget) if ledger is None else ledger, run_id=run_id)
    if candidate is None:
        if run.sampler is None:
            raise ConfigError(f"recovery: step {step.id} has no candidate and sampler is None; give one of the two")
        return case
    if isinstance(candidate, str):
        candidate = Rollout(text=candidate)
    return replace(case, rollouts=(replace(candidate, id="r0", round=None, verdict=None),))


@dataclass(frozen=True, slots=True)
class First:
    """A first candidate and the verdict on it. A passing one needs no case.

    Attributes:
        passed: whether the verifier accepted it.
        replies: the verifier's, where it was asked before there was a case.
        case: set only where the verdict had to be paid for through a case.
    """

    step: Step
    candidate: Rollout
    ledger: Ledger
    passed: bool = False
    replies: tuple[Reply, ...] | None = None
    case: Case | None = None

    def spent(self, run: Run) -> Spend:
        """What the verdict cost."""
        if self.case is not None:
            return self.case.ledger.spent - self.ledger.spent
        return _price_of_verdicts(run, self.replies or ())

    def opened(self, run: Run) -> Flow[Case]:
        """The case, with the candidate judged. A verdict that there is already is not asked for again."""
        if self.case is not None:
            return self.case
        case = start(run, self.step, self.candidate, ledger=self.ledger)
        return case if self.replies is None else (yield from examine(run, case, self.replies))


def judged(run: Run, step: Step, candidate: Rollout, ledger: Ledger | None = None) -> Flow[First]:
    """Ask for the verdict on a step's first candidate, before anything else is done about it.

    Args:
        run: the deployment.
        step: the step.
        candidate: its first candidate.
        ledger: what the step may spend; by default an untouched one under the settings' budget.
    """
    ledger = Ledger(run.settings.budget) if ledger is None else ledger
    bound = run.verifier.bound(step, candidate)
    if bound is not None and (run.settings.shared is not None or ledger.shortfall(costs.of_usage(run, bound))):
        # To be reserved in a shared budget, or more than the step's own can pay: that takes a case.
        case = yield from examine(run, start(run, step, candidate, ledger=ledger))
        return First(step, candidate, ledger, case.rollouts[0].passed, case=case)
    replies = yield (_verdict_call(run, step, candidate, (candidate,)),)
    passed = replies[0].error is None and bool(replies[0].value.passed)
    return First(step, candidate, ledger, passed, replies)


def recover(run: Run, case: Case) -> Flow[Case]:
    """Diagnose and remedy until the step has an outcome. The budget makes it end."""
    escalator = run.settings.escalator
    case = yield from until_asked(run, case, human=escalator is not None)
    if case.outcome is not None or escalator is None:
        return case
    call = Call(escalator.escalate, escalator.aescalate, (payload(case),))
    (reply,) = yield (call,)  # a person's time is not on the clock
    if reply.error is not None:
        raise reply.error
    return (yield from answer_person(run, case, reply.value))


def until_asked(run: Run, case: Case, *, human: bool) -> Flow[Case]:
    """Diagnose and remedy until the step has an outcome, or waits for a person."""
    while True:
        case = yield from diagnose(run, case, human=human)
        if case.outcome is not None or case.ask is not None:
            return case
        case = yield from REMEDIES[case.decision.route](run, case)


def diagnose(run: Run, case: Case, *, human: bool) -> Flow[Case]:
    """Verify the candidate, ask for extra samples if it failed, and decide.

    The case that comes back has an ``outcome``, or an ``ask`` for a person, or a decision whose route is a remedy.

    Args:
        run: the deployment.
        case: the step so far.
        human: whether a person can be asked.
    """
    first, settings = not case.decisions, run.settings
    if case.rollouts or case.attempts:
        if first and settings.shared is not None and case.rollouts:
            settings.shared.deposit(costs.of_candidate(run, case))
    else:
        case = yield from draw(run, case, "retry", 1, normal=True)
    case = yield from examine(run, case)
    failed = not case.blocked and not any(x.passed for x in case.rollouts)
    if first and failed and settings.extra_samples and run.sampler is not None:
        case = yield from draw(run, case, "retry", settings.extra_samples)
        case = yield from examine(run, case)
    passed = next((x for x in case.rollouts if x.passed), None)
    diagnosis = diagnose_case(case, settings.calibration, {} if passed else costs.per_remedy(run, case))
    decision = settings.policy.decide(diagnosis, case.ledger)
    case = replace(case, diagnosis=diagnosis, decisions=(*case.decisions, decision))
    run.emit(Decided(case.step.id, decision, run_id=case.run_id))
    if decision.route == "accept" and passed is not None:
        return run.finish(case, _accepted(case, passed))
    if decision.route not in ("escalate", *REMEDIES):
        raise ConfigError(
            f"policy {decision.policy}: it chose route {decision.route!r}, remedy {decision.remedy!r} on step "
            f"{case.step.id}; give one of {', '.join(REMEDIES)} or escalate, and accept only where a rollout passed"
        )
    if decision.route == "escalate":
        case = yield from open_case(run, case, human=human)
        return _paid(case) if case.ask is not None else case
    return case


def _node(remedy: Callable[[Run, Case], Flow[Case]]) -> Callable[[Run, Case], Flow[Case]]:
    """The node that carries out ``remedy`` and judges what it made."""

    def node(run: Run, case: Case) -> Flow[Case]:
        case = yield from remedy(run, case)
        return _paid((yield from examine(run, case)))

    return node


REMEDIES: Mapping[str, Callable[[Run, Case], Flow[Case]]] = {
    "resample": _node(resample),
    "tool_verify": _node(tool_verify),
    "steer": _node(steer),
}
"""The flow of each node that carries out remedies, by the node's name."""


def _paid(case: Case) -> Case:
    """With what is left after the remedy written into the decision that asked for it."""
    done = replace(case.decision, budget_after=case.ledger.remaining())
    return replace(case, decisions=(*case.decisions[:-1], done))


def _accepted(case: Case, rollout: Rollout) -> Outcome:
    as_it_was = rollout is case.rollouts[0]
    same = tuple(
        x.id
        for x in case.rollouts
        if x.remedy != rollout.remedy and x.answer is not None and x.answer == rollout.answer
    )
    return Outcome(
        "accepted" if as_it_was else "rescued",
        rollout.text,
        rollout.answer,
        rollout.remedy,
        weak=rollout.verdict is not None and rollout.verdict.weak,
        reason="passed",
        sentence=case.decision.sentence,
        confirmed_by=same,
    )


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
        run.settings.traces.put(case.step.id, fresh)
    case = yield from _measure(run, case, [x for x in fresh if not x.passed and x.logprobs is not None])
    return replace(case, rollouts=tuple(x.compact() for x in case.rollouts))


def _verdict_call(run: Run, step: Step, rollout: Rollout, peers: Sequence[Rollout]) -> Call:
    """Ask the verifier about ``rollout``; cancelled after ``Recovery.verdict_seconds``, unless it cannot hang."""
    verifier = run.verifier
    limit = None if verifier.instant else run.settings.verdict_seconds
    return Call(verifier.verify, verifier.averify, (step, rollout), {"peers": peers}, limit)


def _price_of_verdicts(run: Run, replies: Sequence[Reply], bound: Spend | None = None) -> Spend:
    """What verdicts cost. One that was cancelled may have cost all that was reserved for them."""
    spent = _NOTHING
    for reply in replies:
        usage = reply.value.usage if reply.error is None else costs.reported(reply.error)
        one = costs.of_usage(run, usage, seconds=reply.seconds, asked=int(usage.calls > 0))
        spent = one if spent is _NOTHING else spent + one
    if bound is not None and any(isinstance(x.error, TimedOut) for x in replies):
        return replace(bound, seconds=spent.seconds)
    return spent


def _judge(run: Run, case: Case, new: set[str], replies: tuple[Reply, ...] | None) -> Flow[Case]:
    """With a verdict on each rollout in ``new``; with peers that matter, the failed ones are judged again.

    A rollout whose verdict the budget cannot pay for, or that did not come in time, is not accepted, and its verdict
    says why.
    """
    peers, name = case.rollouts, run.verifier.name
    wanted = [x for x in peers if x.id in new or (run.verifier.needs_peers and not x.passed)]
    verdicts: dict[str, Verdict] = {x.id: x.verdict or _UNPAID for x in wanted}
    due, cost = (wanted, None) if replies is not None else _affordable(run, case, wanted)
    told = True
    if cost is None:
        most: Spend | None = None
        if replies is None:
            replies = yield tuple([_verdict_call(run, case.step, x, peers) for x in due])
        elif (usage := run.verifier.bound(case.step, due[0])) is not None:  # ``judged`` has asked, and it costs
            most = costs.of_usage(run, usage)
            run.emit(Reserved(case.step.id, "verify", most, run_id=case.run_id))
        case = replace(case, ledger=case.ledger.charge(_price_of_verdicts(run, replies, most), name))
    else:
        bound, calls = cost, tuple([_verdict_call(run, case.step, x, peers) for x in due])
        case, paid = yield from run.pay(
            case,
            Purchase(
                purpose="verify",
                cost=bound,
                calls=calls,
                about=(name, [(x.id, x.text) for x in due]),
                gives=Verdict,
                price=lambda given: _price_of_verdicts(run, given, bound),
                model=name,
            ),
        )
        replies, told = paid.replies, not paid.replayed
        due = due if replies else []
    for rollout, reply in zip(due, replies, strict=True):
        verdict = verdicts[rollout.id] = _verdict(run, rollout, reply)
        if told:
            said = (verdict.passed, verdict.weak, reply.seconds, name, verdict.usage)
            run.emit(Judged(case.step.id, rollout.id, *said, run_id=case.run_id))
    return replace(case, rollouts=tuple(replace(x, verdict=verdicts.get(x.id, x.verdict)) for x in peers))


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


def _verdict(run: Run, rollout: Rollout, reply: Reply) -> Verdict:
    error, name = reply.error, run.verifier.name
    if error is None:
        return reply.value  # type: ignore[no-any-return]  # what a verifier gives
    if isinstance(error, TimedOut):
        return Verdict(False, reason=f"not judged: {name}: {error}")
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
            return replace(cost, seconds=reply.seconds)
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
