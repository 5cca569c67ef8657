"""What happens at each node: a ``Case`` goes in, the next one comes out.

``diagnose`` judges what is new, asks for extra samples, and decides; the other nodes carry out a remedy. New rollouts
are judged, measured and made compact before a node ends, so that a checkpoint never holds a raw table.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from rfx_agent.budgets.step import Ledger
from rfx_agent.case import Attempt, Case, Outcome
from rfx_agent.engine import costs
from rfx_agent.engine.drive import Call, Flow, Reply
from rfx_agent.engine.examine import examine, price_of_verdicts, verdict_call
from rfx_agent.engine.run import Run
from rfx_agent.errors import ConfigError
from rfx_agent.escalation.ask import answer_person, open_case
from rfx_agent.escalation.request import payload
from rfx_agent.events import Decided
from rfx_agent.evidence.diagnosis import Option, diagnose_case
from rfx_agent.ports import Remedy
from rfx_agent.records import Rollout, Spend, Step
from rfx_agent.remedies.chosen import chosen
from rfx_agent.remedies.retry import draw

__all__ = ["First", "carry_out", "diagnose", "judged", "recover", "start", "until_asked"]


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
    bound = run.verifier.bound(step, candidate)
    if bound is not None and (run.settings.shared is not None or ledger.shortfall(costs.of_usage(run, bound))):
        # To be reserved in a shared budget, or more than the step's own can pay: that takes a case.
        case = yield from examine(run, start(run, step, candidate, ledger=ledger))
        return First(step, candidate, ledger, case.rollouts[0].passed, case=case)
    replies = yield (verdict_call(run, step, candidate, (candidate,)),)
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
    passed = next((x for x in case.rollouts if x.passed), None)
    options = {} if passed else _options(run, case)
    scored, priced = settings.scorer is not None and run.sampler is not None, settings.price is not None
    diagnosis = diagnose_case(case, settings.calibration, options, scored=scored, priced=priced)
    decision = settings.policy.decide(diagnosis, case.ledger)
    case = replace(case, diagnosis=diagnosis, decisions=(*case.decisions, decision))
    run.emit(Decided(case.step.id, decision, run_id=case.run_id))
    if decision.route == "accept" and passed is not None:
        return run.finish(case, _accepted(case, passed))
    if decision.route != "escalate" and diagnosis.nodes.get(decision.remedy or "") != decision.route:
        raise ConfigError(
            f"policy {decision.policy}: it chose route {decision.route!r}, remedy {decision.remedy!r} on step "
            f"{case.step.id}; give one of {', '.join(diagnosis.cost) or 'no remedy'} or escalate, and accept only "
            "where a rollout passed"
        )
    if decision.route == "escalate":
        case = yield from open_case(run, case, human=human)
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


def _options(run: Run, case: Case) -> dict[str, Option]:
    """Per remedy of the deployment, what it is called, where it is carried out, and what one attempt costs at most."""
    return {
        name: Option(
            _left_alone(case, remedy) or remedy.bound(run, case),
            remedy.node or name,
            remedy.words or name.replace("_", " "),
        )
        for name, remedy in chosen(run.settings).items()
    }


def _left_alone(case: Case, remedy: Remedy) -> str:
    """Why ``remedy`` is not tried on the case any more, or ""."""
    if case.blocked and not (remedy.elsewhere and case.blocked_by in _MODEL_DOWN):
        return case.blocked
    rounds = [x for x in case.attempts if x.remedy == remedy.name]
    if any(x.asked and not x.got and not x.misses for x in rounds):
        return "it gave nothing to judge"  # and cost nothing: it could go on for ever
    copies = sum(x.got for x in rounds) - len(case.draws(remedy.name))
    return "it repeats itself" if copies >= _COPIES else ""


_MODEL_DOWN = ("sampler_error", "circuit_open")
_COPIES = 6  # of draws that were had before, after which a remedy is left alone


def _paid(case: Case) -> Case:
    """With what is left after the remedy written into the decision that asked for it."""
    done = replace(case.decision, budget_after=case.ledger.remaining())
    return replace(case, decisions=(*case.decisions[:-1], done))


def _accepted(case: Case, rollout: Rollout) -> Outcome:
    as_it_was = rollout is case.rollouts[0] and len(case.decisions) == 1
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
