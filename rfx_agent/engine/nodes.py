"""What happens at each node: a ``Case`` goes in, the next one comes out.

``diagnose`` judges what is new, asks for extra samples, and decides; the other nodes carry out a remedy. New rollouts
are judged, measured and made compact before a node ends, so that a checkpoint never holds a raw table.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from rfx_agent.accepted import CandidateLike, candidate_of
from rfx_agent.budgets.ambient import current
from rfx_agent.budgets.step import Ledger
from rfx_agent.case import Attempt, Case, Outcome
from rfx_agent.checks import shown
from rfx_agent.engine import costs
from rfx_agent.engine.drive import Call, Flow, Reply
from rfx_agent.engine.examine import examine, price_of_verdicts, read, second, unasked, verdict_call
from rfx_agent.engine.run import Run
from rfx_agent.errors import ConfigError
from rfx_agent.escalation.ask import answer_person, open_case
from rfx_agent.escalation.request import payload
from rfx_agent.events import Decided
from rfx_agent.evidence.diagnosis import Option, diagnose_case
from rfx_agent.evidence.opinions import probability_right
from rfx_agent.evidence.rescue import PSEUDO_FAILURES, belief_in
from rfx_agent.evidence.verdicts import confidence, likelihoods_of, owned, source_of
from rfx_agent.ports import Remedy
from rfx_agent.records import Kind, Prompt, Rollout, Spend, Step, Verdict
from rfx_agent.remedies.chosen import chosen
from rfx_agent.remedies.retry import draw

__all__ = ["First", "carry_out", "diagnose", "judged", "recover", "start", "until_asked"]


def start(
    run: Run,
    step: Step | Prompt,
    candidate: CandidateLike | None = None,
    *,
    run_id: str = "",
    ledger: Ledger | None = None,
) -> Case:
    """The case of ``step`` before anything happened.

    Args:
        run: the deployment.
        step: the step, or its prompt: a text or chat messages.
        candidate: what the agent already has (``accepted.candidate_of``); without it the sampler is asked for the
            first draw.
        run_id: of this run of the step (see ``Recovery.run``); by default a new one, where anybody reads it.
        ledger: what it may spend; by default an untouched one under the settings' budget.

    Raises:
        ConfigError: there is neither a candidate nor a sampler; what is given is neither; the verifier cannot judge
            any answer to the step; the sampler cannot be sent it.
    """
    if not isinstance(step, Step):
        step = Step.of(step)
    settings = run.settings
    for verifier in (run.verifier, settings.second_opinion):
        if verifier is not None:
            verifier.check_step(step)
    if run.sampler is not None and not run.sampler.runs_again:
        step.check_sendable()
    if not isinstance(run_id, str):
        raise ConfigError(f"recovery: run_id is {shown(run_id)}; give a text")
    if not run_id and (run.on_event is not None or settings.shared is not None):
        run_id = secrets.token_hex(8)
    ledger = Ledger(settings.budget) if ledger is None else ledger
    case = Case(step=step, ledger=ledger, run_id=run_id, before=ledger.spent)
    if candidate is None:
        if run.sampler is None:
            raise ConfigError(f"recovery: step {step.id} has no candidate and sampler is None; give one of the two")
        return case
    given = candidate_of(candidate)
    return replace(case, rollouts=(replace(given, id="r0", round=None, verdict=None),))


@dataclass(frozen=True, slots=True)
class First:
    """A first candidate and the verdict on it. A passing one needs no case.

    Attributes:
        passed: whether it is accepted.
        replies: the verifier's, where it was asked before there was a case.
        case: set only where the verdict had to be paid for through a case.
    """

    step: Step
    candidate: Rollout
    ledger: Ledger
    passed: bool = False
    replies: tuple[Reply, ...] | None = None
    case: Case | None = None

    def let_through(self, run: Run) -> bool:
        """Whether it goes on at once, without a case: it passed, and nobody is to be told."""
        if not self.passed or not run.unseen:
            return False
        verdict: Verdict | None = self.case.rollouts[0].verdict if self.case is not None else None
        if self.replies:
            verdict = self.replies[0].value
        rates, task = run.settings.right_rates, self.step.task
        if verdict is not None and (verdict.weak or rates.knows(task)):  # a finished case counts its own
            told = likelihoods_of(owned(verdict, run.verifier.name, run.verifier.rates))
            if told is not None:
                rates.add(task, "", 0, told)
        return True

    def spent(self, run: Run) -> Spend:
        """What the verdict cost."""
        if self.case is not None:
            return self.case.ledger.spent - self.ledger.spent
        return price_of_verdicts(run, self.replies or ())

    def opened(self, run: Run) -> Flow[Case]:
        """Open a case for the candidate. The verdict that was given before is used, and not asked for again."""
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
    yield from read((candidate,))
    bound = run.verifier.bound(step, candidate)
    elsewhere = bound is not None and (run.settings.shared is not None or current() is not None)
    if bound is not None and (elsewhere or ledger.shortfall(costs.of_usage(run, bound))):
        # To be reserved in another budget, or more than the step's own can pay: that takes a case.
        case = yield from examine(run, start(run, step, candidate, ledger=ledger))
        return First(step, candidate, ledger, _accepts(run, case.rollouts[0].verdict), case=case)
    replies = yield (verdict_call(run, step, candidate, (candidate,)),)
    passed = replies[0].error is None and _accepts(run, replies[0].value)
    return First(step, candidate, ledger, passed, replies)


def _accepts(run: Run, verdict: Verdict | None) -> bool:
    """Whether a first answer with this verdict is accepted, before it is known what the verdict is worth."""
    return verdict is not None and verdict.passed and not (verdict.weak and run.settings.hold_first)


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
        case = yield from carry_out(run, case)


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
    passed, unconfirmed = _passed(run, case)
    while unconfirmed is not None and unasked(run, case, unconfirmed):
        case = yield from second(run, case, unconfirmed)
        passed, unconfirmed = _passed(run, case)
    options = {} if passed is not None else _options(run, case, unconfirmed)
    scored, priced = settings.scorer is not None and run.sampler is not None, settings.price is not None
    standing = None if passed is None else passed.id
    diagnosis = diagnose_case(case, settings.calibration, options, passed=standing, scored=scored, priced=priced)
    if first and passed is None:
        case = replace(case, plain_retry=costs.plain_retry(run, case, diagnosis))
    decision = settings.policy.decide(diagnosis, case.ledger)
    case = replace(case, diagnosis=diagnosis, decisions=(*case.decisions, decision))
    run.emit(Decided(case.step.id, decision, run_id=case.run_id))
    if decision.route == "accept" and passed is not None:
        return run.finish(case, _accepted(run, case, passed))
    if decision.route != "escalate" and diagnosis.nodes.get(decision.remedy or "") != decision.route:
        raise ConfigError(
            f"policy {decision.policy}: it chose route {decision.route!r}, remedy {decision.remedy!r} on step "
            f"{case.step.id}; give one of {', '.join(diagnosis.cost) or 'no remedy'} or escalate, and accept only "
            "where a rollout passed"
        )
    if decision.route == "escalate":
        held = None
        if unconfirmed is not None:
            held = _accepted(run, case, unconfirmed)
            case = replace(case, decisions=(*case.decisions[:-1], replace(decision, sentence=held.sentence)))
            if settings.unconfirmed == "unresolved":
                held = None
        case = yield from open_case(run, case, human=human, otherwise=held)
        return _paid(case) if case.ask is not None else case
    return case


def carry_out(run: Run, case: Case) -> Flow[Case]:
    """One attempt of the decision's remedy, and the verdicts on what came of it."""
    name = case.decision.remedy or ""
    remedy = chosen(run.settings).get(name)
    if remedy is None:  # the deployment changed under a case that was under way
        case = case.add((), Attempt(name, note=f"the deployment has no remedy {name!r}"))
    else:
        case = yield from remedy.attempt(run, case)
    return _paid((yield from examine(run, case)))


def _prior(run: Run, case: Case, rollout: Rollout) -> float | None:
    """Probability that an answer from this source is right, without a verdict on it; None where it is not known."""
    remedy, before = source_of(case, rollout)
    if not remedy:
        return run.settings.right_rates.of_first(case.step.task)
    tried = case.attempts[rollout.round] if rollout.round is not None else Attempt(remedy)
    return _expected(run, case, remedy, before, tried.kind, told=tried.told)


def _expected(run: Run, case: Case, remedy: str, before: int, kind: Kind | None, *, told: bool) -> float:
    """The same for an attempt of ``remedy`` behind ``before`` failed ones of it."""
    known = belief_in(remedy, run.settings.calibration, kind=kind, told=told, task=case.step.task)
    belief, weight = known.beta, PSEUDO_FAILURES
    if known.attempts:  # counted by the deployment, behind any number of failures: so that it falls little with each
        weight = min(max(known.attempts, weight), _MEASURED)
        belief = (_STEADY * belief[0] / sum(belief), _STEADY * belief[1] / sum(belief))
    return run.settings.right_rates.of(case.step.task, remedy, before, belief, weight=weight)


def _passed(run: Run, case: Case) -> tuple[Rollout | None, Rollout | None]:
    """The first rollout that stands, and where none does, the surest of those that only opinions passed.

    One stands that was proved, or that opinions passed which are worth enough; so does a first answer that an opinion
    passed, unless the deployment holds it to more.
    """
    unconfirmed, most = None, -1.0
    for rollout in case.rollouts:
        if not rollout.passed or rollout.verdict is None:
            continue
        first = rollout is case.rollouts[0] and not case.decisions
        if not rollout.verdict.weak or run.settings.accept == 0 or (first and not run.settings.hold_first):
            return rollout, None
        sure = confidence(rollout.verdict, _prior(run, case, rollout))
        if sure is not None and sure >= run.settings.accept:
            return rollout, None
        if (sure or 0.0) > most:
            unconfirmed, most = rollout, sure or 0.0
    return None, unconfirmed


def _options(run: Run, case: Case, unconfirmed: Rollout | None) -> dict[str, Option]:
    """Per remedy of the deployment, what it is called, where it is carried out, and what one attempt costs at most.

    Behind an answer that only opinions passed, a remedy is of use only if the same opinions would be worth enough on
    what it gives.
    """
    return {
        name: Option(
            _left_alone(case, remedy) or _doubted(run, case, name, unconfirmed) or remedy.bound(run, case),
            remedy.node or name,
            remedy.words or name.replace("_", " "),
        )
        for name, remedy in chosen(run.settings).items()
    }


def _doubted(run: Run, case: Case, remedy: str, unconfirmed: Rollout | None) -> str:
    """Why a pass of ``remedy`` would be worth no more than the one that there is, or ""."""
    if unconfirmed is None or unconfirmed.verdict is None:
        return ""
    kind = case.failed[-1].kind if case.failed else None
    told = bool(case.revisable and case.revisable.told)
    before = sum(x.remedy == remedy and not x.passed for x in case.rollouts[1:])
    prior = _expected(run, case, remedy, before, kind, told=told)
    sure = probability_right(prior, unconfirmed.verdict.opinions)
    return "" if sure is not None and sure >= run.settings.accept else "the verifier's pass would not be worth enough"


def _left_alone(case: Case, remedy: Remedy) -> str:
    """Why ``remedy`` is not tried on the case any more, or ""."""
    if case.blocked and not (remedy.elsewhere and case.blocked_by in _MODEL_DOWN):
        return case.blocked
    rounds = [x for x in case.attempts if x.remedy == remedy.name]
    if any(x.asked and not x.got and not x.misses for x in rounds):
        return "it gave nothing to judge"  # and cost nothing: it could go on for ever
    copies = sum(x.got for x in rounds) - len(case.draws(remedy.name))
    return "it repeats itself" if copies >= _COPIES else ""


_MEASURED = 200.0  # draws that a deployment's own counts are worth at most against those of this process
_STEADY = 64.0  # strength of a belief that hardly falls with each failure
_MODEL_DOWN = ("sampler_error", "circuit_open")
_COPIES = 6  # of draws that were had before, after which a remedy is left alone


def _paid(case: Case) -> Case:
    """With what is left after the remedy written into the decision that asked for it."""
    done = replace(case.decision, budget_after=case.ledger.remaining())
    return replace(case, decisions=(*case.decisions[:-1], done))


def _accepted(run: Run, case: Case, rollout: Rollout) -> Outcome:
    as_it_was = rollout is case.rollouts[0] and len(case.decisions) == 1
    same = tuple(
        x.id
        for x in case.rollouts
        if x.remedy != rollout.remedy and x.answer is not None and x.answer == rollout.answer
    )
    sure = confidence(rollout.verdict, _prior(run, case, rollout))
    stands = case.decision.route == "accept"
    said = case.decision.sentence
    if not stands:
        worth = "nobody measured what its pass is worth" if sure is None else f"the answer is right with {sure:.0%}"
        said = f"{rollout.id} passed its verifier, which gives an opinion: {worth}. {said}"
    return Outcome(
        ("accepted" if as_it_was else "rescued") if stands else "unconfirmed",
        rollout.text,
        rollout.answer,
        rollout.remedy,
        confidence=sure,
        weak=rollout.verdict is not None and rollout.verdict.weak,
        reason="passed" if stands else "unconfirmed",
        sentence=said,
        confirmed_by=same,
    )
