"""``Recovery``: the settings of ``rfx_agent.engine.settings``, and how a step is run under them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack, cast

from rfx_agent import ports
from rfx_agent.accepted import CandidateLike, SamplerLike, ToolLike, VerifierLike
from rfx_agent.budgets.shared import SharedBudget
from rfx_agent.budgets.step import Price, RetryBudget
from rfx_agent.case import FinishedCase
from rfx_agent.checks import spelled
from rfx_agent.engine.drive import drive, drive_async
from rfx_agent.engine.nodes import recover, start
from rfx_agent.engine.run import Run
from rfx_agent.engine.settings import MEANT, Escalation, Settings
from rfx_agent.events import Event
from rfx_agent.evidence.calibration import Calibration
from rfx_agent.evidence.opinions import RightRates
from rfx_agent.policies.base import Policy
from rfx_agent.records import Prompt, Step

__all__ = ["AgentOptions", "Escalation", "Options", "Recovery"]


class AgentOptions(TypedDict, total=False):
    """Further parameters of ``rfx_agent.Recovery``, which documents them; those of an agent's draws are its own."""

    remedies: Sequence[ports.Remedy] | None
    on_event: Callable[[Event], None] | None
    scorer: ports.Scorer | None
    steerer: ports.Steerer | None
    escalator: ports.Escalator | None
    policy: Policy
    calibration: Calibration
    shared: SharedBudget | None
    price: Price | None
    accept: float
    hold_first: bool
    second_opinion: VerifierLike | None
    correlation: float
    unconfirmed: Literal["return", "unresolved"]
    extra_samples: int | None
    concurrency: int
    tool_temperature: float
    verdict_seconds: float | None
    seed: int | None
    escalation: Escalation
    traces: ports.TraceStore | None
    clock: Callable[[], float]
    right_rates: RightRates


class Options(AgentOptions, total=False):
    """Further parameters of ``rfx_agent.Recovery``, which documents them."""

    temperature: float
    max_tokens: int


@spelled("recovery", MEANT)
@dataclass(frozen=True, slots=True)
class Recovery(Settings):
    """A sampler, a verifier and the limits under which failed steps are recovered.

    Immutable settings: one object serves any number of concurrent steps. One thing passes from step to step: how often
    answers are right, by task and remedy, learned from verdicts with measured rates. A confidence rests on it.

    Attributes:
        sampler: the model that fails, and that is sampled again: a sampler, a LangChain chat model or what wraps one,
            or its name as ``init_chat_model`` takes it. None where the step comes from a chain, a node or an
            agent, which is run again itself; then there is no model to drive ``tool``.
        verifier: tells a success from a failure. A plain function of the text, or of the step and the rollout, is one
            whose pass is a proof; ``FunctionVerifier(fn, weak=True)`` says that it is an opinion.
        remedies: what may be tried on a failure, ``rfx_agent.remedies``; by default ``default_remedies()``: another
            draw, going on from a cut answer, a revision where the verifier says what is wrong. ``tool`` and
            ``steerer`` add theirs.
        tool: what ``tool_verify`` runs: a tool, a LangChain tool, or a function with a docstring; without it there is
            no such route.
        scorer: gives an ancestor's log-probabilities, for two-model evidence.
        steerer: carries out operators on the logits; without it there is no such route.
        escalator: puts cases before a person where there is no LangGraph interrupt.
        policy: decides.
        calibration: the population that features are scored against, and the priors.
        budget: caps on one step.
        shared: limits over many runs, in whatever process, and the record that lets a run survive its process; or
            None.
        price: of the sampler's tokens; required by a cap on money, in ``budget`` or in ``shared``. See
            ``rfx_agent.price_of``.
        accept: least confidence from which an answer that only an opinion passed is ``rescued``. 0 accepts every
            pass, measured or not.
        hold_first: whether a first answer that only an opinion passes is held to ``accept`` too. By default it is
            accepted, with its confidence.
        second_opinion: another verifier, asked only about an answer that ``verifier`` passed as an opinion and with a
            confidence below ``accept``; both must pass it then. It may be a proof that is too dear for every answer.
        correlation: of the second opinion with the first: 0 if it is formed alone, 1 if they agree as often as their
            rates allow.
        unconfirmed: what becomes of an answer that only opinions passed, with a confidence below ``accept``, where no
            person can be asked: ``return`` gives it, with status ``unconfirmed``; ``unresolved`` keeps it back in
            ``Outcome.best``, and what raises on an unresolved case raises.
        extra_samples: draws asked for at once when the candidate failed, before the first decision, as the paper has
            it; None leaves it to the policy, which draws as long as a draw is the best that can be bought.
        concurrency: draws of one round, at once. One after another they stop at the first pass; several at once cost
            more and take less time.
        temperature: decode temperature of draws.
        tool_temperature: decode temperature when the model writes the tool's input.
        max_tokens: most tokens per completion.
        verdict_seconds: a verifier that has not answered by then is cancelled, and what it was judging is not
            accepted; None waits for ever, and lets a sync verifier run on the thread that asks.
        seed: of all draws, or None to leave it to the server.
        escalation: deadline and default of a case before a person.
        on_event: called with every event; what it raises is logged, never passed on.
        traces: keeps raw rollouts outside the checkpoint.
        clock: Unix time in seconds, for deadlines.
        right_rates: how often answers are right, as learned so far. ``dataclasses.replace`` keeps it, so that a changed
            recovery knows what the first one has learned.

    Raises:
        ConfigError: a parameter that cannot work.

    Example:
        >>> from rfx_agent import Recovery
        >>> from rfx_agent.testing import ScriptedSampler, ScriptedVerifier
        >>> recovery = Recovery(ScriptedSampler(["6", "7"]), ScriptedVerifier(["7"]), extra_samples=1)
        >>> recovery.run("What is 3 + 4?").outcome.text
        '7'
    """

    if TYPE_CHECKING:  # what may be given; the fields hold what was made of it

        def __init__(
            self,
            sampler: SamplerLike | None = None,
            verifier: VerifierLike = ...,
            *,
            tool: ToolLike | None = None,
            budget: RetryBudget = ...,
            **options: Unpack[Options],
        ) -> None: ...

    def run(self, step: Step | Prompt, candidate: CandidateLike | None = None, *, run_id: str = "") -> FinishedCase:
        """Recover ``step`` without a graph, blocking.

        Args:
            step: the step, or its prompt: a text or chat messages, in any form that ``Step.of`` takes.
            candidate: what the agent already has: its text, a ``Rollout``, or an ``AIMessage``. Without it the sampler
                is asked for the first draw.
            run_id: of this run of the step, the same when it is started again after its process died: with a
                ``shared`` budget it then pays for nothing twice. By default a new one.

        Returns:
            The case, with its ``outcome``.

        Raises:
            ConfigError: there is neither a candidate nor a sampler; a step or candidate of another kind; nothing that
                the verifier could compare with; a prompt with a lone surrogate, which no model can be sent.
            VerifierError: the verifier broke.
            ToolError: the tool broke with an exception that is none of its own.
            SamplerError: only where the sampler itself is at fault; a model that cannot be reached is an outcome.
        """
        run = Run.of(self)
        return cast("FinishedCase", drive(recover(run, start(run, step, candidate, run_id=run_id))))

    async def arun(
        self, step: Step | Prompt, candidate: CandidateLike | None = None, *, run_id: str = ""
    ) -> FinishedCase:
        """Do what ``run`` does, without blocking the event loop."""
        run = Run.of(self)
        return cast("FinishedCase", await drive_async(recover(run, start(run, step, candidate, run_id=run_id))))
