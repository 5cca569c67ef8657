"""How a remedy asks a model: under the budget, and with what comes back taken in as candidates.

A remedy is a flow: the case goes in, and comes out with new rollouts that nobody has judged yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from rfx_agent.budgets.step import Price
from rfx_agent.case import Attempt, Case
from rfx_agent.engine import costs
from rfx_agent.engine.drive import Call, Flow, Reply, TimedOut
from rfx_agent.engine.run import Purchase, Run
from rfx_agent.errors import BudgetExhausted, CircuitOpen, SamplerError, SamplerTimeout
from rfx_agent.events import Sampled
from rfx_agent.fence import one_line
from rfx_agent.ports import Sampler
from rfx_agent.records import Rollout, SampleRequest, SampleResult, Spend

__all__ = ["NO_MODEL", "Asked", "ask_model", "asking", "before_junction", "candidates", "seed_of"]

_FAILURE = 600  # characters of why a model gave nothing, which stand in checkpoints

NO_MODEL = "there is no model to ask"


@dataclass(frozen=True, slots=True)
class Asked:
    """A model that a remedy asks, and what that takes.

    Attributes:
        call: asks for a number of completions.
        name: of the model.
        each: the most that one completion costs.
        price: of the model's tokens; by default the deployment's.
        blocks: whether nothing can be asked any more when this model cannot be reached. A second model or a steerer
            blocks nothing: others may help.
        normal: whether this is the step's first draw.
        elsewhere: whether it is another model than the deployment's.
        forgives: whether one failure is a failed attempt, and only the second in a row blocks: a run of the user's own
            chain, node or agent that raised.
    """

    call: Callable[[int], Call]
    name: str
    each: Spend
    price: Price | None = None
    blocks: bool = True
    normal: bool = False
    elsewhere: bool = False
    forgives: bool = False


def asking(sampler: Sampler, request: SampleRequest, each: Spend, **more: object) -> Asked:
    """``sampler``, to be asked for ``request``."""

    def call(n: int) -> Call:
        return Call(sampler.sample, sampler.asample, (replace(request, n=n),))

    return Asked(call, sampler.name, each, forgives=sampler.runs_again, **more)  # type: ignore[arg-type]  # its fields


def candidates(run: Run, case: Case, remedy: str, wanted: int, asked: Asked) -> Flow[Case]:
    """Ask for as many of ``wanted`` candidates as the budget can pay for; take in what came."""
    asked = replace(asked, each=asked.each + Spend(attempts=1))
    n = case.ledger.affordable(asked.each, most=wanted)
    if n == 0:
        caps = ", ".join(run.short(case, "sample", asked.each))
        return case.add((), Attempt(remedy, 0, note=f"the budget cannot pay for a draw: {caps}"))
    before = case.ledger.spent.tokens
    request = asked.call(n).args[-1]
    last = case.attempts[-1] if case.attempts else Attempt(remedy)
    first = asked.forgives and asked.blocks and n == 1 and not (last.misses and not last.got)
    asked = replace(asked, blocks=asked.blocks and not first)
    case, rollouts, failure = yield from ask_model(run, case, remedy, n, asked)
    start_ = len(request.prefix or "")
    made = tuple(
        replace(x, remedy=remedy, temperature=request.temperature, start=x.start or start_) for x in rollouts[:n]
    )
    note = failure or (f"{len(made)} of {n} came back" if len(made) < n else "")
    tokens = case.ledger.spent.tokens - before
    missed = int(first and bool(failure) and not case.blocked)
    return case.add(made, Attempt(remedy, n, len(made), misses=missed, tokens=tokens, note=note))


def ask_model(run: Run, case: Case, remedy: str, n: int, asked: Asked) -> Flow[tuple[Case, tuple[Rollout, ...], str]]:
    """Ask a model for ``n`` completions and pay for them.

    Returns:
        The case with what was spent; the rollouts; and why there are none, "" where there are some.
    """
    call, model, each = asked.call(n), asked.name, asked.each
    cost, request = each.times(n), call.args[-1]
    tag, heat = f"retry:attempt:{len(case.attempts) + 1}", getattr(request, "temperature", None)

    def price(replies: tuple[Reply, ...]) -> Spend:
        (reply,) = replies
        if isinstance(reply.error, TimedOut):
            return replace(cost.tried(reply.error.lost), seconds=reply.seconds)
        if reply.error is not None:
            return costs.of_failure(run, cost, reply.error, seconds=reply.seconds, price=asked.price)
        made = len(reply.value.rollouts)
        attempts = min(made, n) if each.attempts else 0
        usage = reply.value.usage
        spent = costs.of_usage(run, usage, samples=made, seconds=reply.seconds, price=asked.price)
        return spent + Spend(attempts=attempts, asked=1)

    def read(reply: Reply) -> tuple[SampleResult, str]:
        error = reply.error
        if isinstance(error, TimedOut):
            error = SamplerTimeout(f"it did not answer within the {reply.seconds:.3g} s that the budget had left")
        if error is not None and not isinstance(error, SamplerError):
            broken = SamplerError(f"{model}: {type(error).__name__}: {error}")
            if not asked.elsewhere and not isinstance(error, BudgetExhausted):
                raise broken from error
            error = broken  # a second model that is out of order ends nothing, nor does the budget of the run
        result = SampleResult((), costs.reported(error)) if error is not None else reply.value
        failure = "" if result.rollouts else f"{model} gave nothing: {error or 'no completion came back'}"
        return result, one_line(failure, _FAILURE)

    def tell(replies: tuple[Reply, ...]) -> list[Sampled]:
        result, failure = read(replies[0])
        got, took = len(result.rollouts[:n]), replies[0].seconds
        told = (case.step.id, remedy, n, got, result.usage, took, tag, model, heat, failure)
        return [Sampled(*told, run_id=case.run_id)]

    case, paid = yield from run.pay(
        case,
        Purchase(
            purpose="sample",
            cost=cost,
            calls=(replace(call, limit=case.ledger.remaining()["seconds"]),),
            about=(remedy, model, replace(request, purpose="answer")),  # the remedy says it already
            gives=SampleResult,
            price=price,
            model=model,
            tell=tell,
            normal=asked.normal,
            elsewhere=asked.elsewhere,
            remedy="" if asked.normal else remedy,
            attempt=len(case.attempts) + 1,
        ),
    )
    if paid.refused:
        return case, (), paid.why
    (reply,) = paid.replies
    result, failure = read(reply)
    case = case.note(*result.notes)
    if paid.replayed and request.want_logprobs and result.rollouts:
        case = case.note("draws of a run that was interrupted come back without their log-probabilities")
    if failure:
        case = replace(case, blocked=failure, blocked_by=_blocks(reply.error)) if asked.blocks else case.note(failure)
    return case, result.rollouts, failure


def seed_of(run: Run, case: Case) -> int | None:
    """The seed of the case's next call: its own for each round, the same in every run."""
    seed = run.settings.seed
    return None if seed is None else (seed + 7919 * (case.ledger.spent.samples + 1)) % 2**31


def before_junction(case: Case) -> str:
    """The text of a failed draw up to its junction; "" where none is known."""
    return next((x.text[: x.junction] for x in case.draws() if not x.passed and x.junction), "")


def _blocks(error: Exception | None) -> str:
    if isinstance(error, TimedOut):
        return "budget:seconds"
    if isinstance(error, BudgetExhausted):
        return f"budget:{(*error.caps, *error.accounts, 'run')[0]}"
    return "circuit_open" if isinstance(error, CircuitOpen) else "sampler_error"
