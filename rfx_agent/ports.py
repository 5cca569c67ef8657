"""What the engine asks of the outside: one base class per port.

Ports are sync and async; both sides do the same, with the same parameters. Derive from the base class: it has a default
for every optional member, and runs the sync side in a thread where there is no async one. What else is taken in the
place of a port, such as a function or a chat model, is in ``rfx_agent.accepted``.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rfx_agent.budgets.limits import Account, Claim, Grant, Reservation
    from rfx_agent.case import Case
    from rfx_agent.records import (
        Message,
        Rollout,
        SampleRequest,
        SampleResult,
        ScoreResult,
        Spend,
        Step,
        ToolResult,
        Usage,
        Verdict,
    )

__all__ = [
    "BudgetStore",
    "Escalator",
    "Remedy",
    "Sampler",
    "Scorer",
    "Steerer",
    "Tool",
    "TraceStore",
    "Verifier",
]


class Sampler(ABC):
    """A model that can be sampled.

    ``sample`` raises only ``SamplerError`` (and control flow). It returns at most ``request.n`` rollouts; where the
    server returned fewer it has already asked again once. Usage is what really came back.

    Attributes:
        name: what it is, for records and messages.
        continues_prefix: whether ``SampleRequest.prefix`` is honoured.
        takes_temperature: whether ``SampleRequest.temperature`` is honoured.
        takes_max_tokens: whether ``SampleRequest.max_tokens`` is honoured.
        takes_revision: whether it can be told of a failed answer: ``messages`` is read, or ``revision``.
        drives_tools: whether it can be asked for a tool's input.
        runs_again: whether a draw is a run of the user's own chain, node or agent on its own input, so that of
            ``messages`` only what ``revision`` says reaches it.
        max_calls: the most requests that one draw may cause, transport retries included; so many are reserved under
            ``RetryBudget.calls``.
    """

    name: str
    continues_prefix: bool = False
    takes_temperature: bool = True
    takes_max_tokens: bool = True
    takes_revision: bool = True
    drives_tools: bool = True
    runs_again: bool = False
    max_calls: int = 1

    @abstractmethod
    def sample(self, request: SampleRequest) -> SampleResult:
        """Draw ``request.n`` completions."""

    async def asample(self, request: SampleRequest) -> SampleResult:
        """Do what ``sample`` does, without blocking the event loop."""
        return await asyncio.to_thread(self.sample, request)

    def on(self, other: Sampler) -> Sampler:
        """What asks ``other`` in this one's place: by default ``other`` itself.

        A sampler that runs the user's own agent again gives the other model the agent's whole request.
        """
        return other


class Remedy(ABC):
    """Something that may turn a failure into a verified success.

    A remedy of one's own is simplest made of ``rfx_agent.remedies.Custom``, which needs to know nothing of flows.

    Attributes:
        name: what records, policies, budgets and logs know it by: ``[a-z0-9_]+``.
        node: the node of the graph that carries it out; by default the remedy's own name.
        words: what a decision's sentence calls it; by default its name.
        elsewhere: whether an attempt needs nothing of the deployment's own model, so that it can help where that model
            is out of reach.
    """

    name: str
    node: str = ""
    words: str = ""
    elsewhere: bool = False

    @abstractmethod
    def bound(self, run: Any, case: Case) -> Spend | str:
        """The most that one attempt on ``case`` can cost, or why it is not available. Pure, and asks nobody.

        Args:
            run: the deployment, a ``rfx_agent.engine.run.Run``.
            case: the failure.
        """

    @abstractmethod
    def attempt(self, run: Any, case: Case) -> Generator[Any, Any, Case]:
        """One attempt, as a flow: the case with the candidates that came of it, which nobody has judged yet."""


class Verifier(ABC):
    """Something that tells a success from a failure.

    A "no" is a ``Verdict``. An exception is a broken verifier; the engine turns it into ``VerifierError``, but for a
    ``ConfigError``, which stays one.

    Attributes:
        name: what it is, for records and messages.
        needs_peers: whether a verdict depends on the other rollouts (agreement); then failed rollouts are judged
            again when more samples arrive.
        instant: whether a verdict cannot hang, so that no timeout has to watch over it.
        rates: of one whose pass is an opinion, how often it passes right and wrong answers (``evidence.opinions``); a
            verdict's own come first.
        partial: whether a pass proves only a part of what makes an answer right, such as its form. In a panel with
            others it is then no proof; its "no" still is.
        blind: whether its feedback cannot hold what the answer is compared with, because it never reads
            ``step.expected``. Any other's feedback is searched for it before a model is told.
    """

    name: str
    needs_peers: bool = False
    instant: bool = False
    blind: bool = False
    partial: bool = False
    rates: tuple[float, float] | None = None

    @abstractmethod
    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Judge ``rollout``; ``peers`` are all draws of the step so far, this one included."""

    async def averify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Do what ``verify`` does, without blocking the event loop."""
        return await asyncio.to_thread(self.verify, step, rollout, peers=peers)

    def bound(self, step: Step, rollout: Rollout) -> Usage | None:
        """The most that this verdict can cost in model calls; reserved before it is asked for. None: it is free."""
        return None

    def check_step(self, step: Step) -> None:  # noqa: B027  # most verifiers need nothing of a step
        """Raise ``ConfigError`` where no answer to ``step`` can be judged, such as for want of anything to compare
        with. Asked when a step begins, before a model is paid; by default every step will do."""


class Tool(ABC):
    """A tool that a model drives to produce an answer by other means than reasoning in text.

    The engine asks a model for the tool's input with ``prompt``, reads it with ``parse``, and runs it. A run that
    fails is shown to the model once with ``repair``. Neither prompt ever contains a sampled answer.

    Attributes:
        name: what it is, for records and messages.
        bound: the most that one run may cost (``tool_seconds``), reserved before it starts.
    """

    name: str
    bound: Spend

    @abstractmethod
    def prompt(self, step: Step, *, prefix: str | None = None) -> tuple[Message, ...]:
        """Messages that ask a model for the tool's input; ``prefix`` is untrusted work up to the junction."""

    @abstractmethod
    def repair(self, step: Step, source: str, result: ToolResult) -> tuple[Message, ...]:
        """Messages that show the model its own input and the error, and ask again."""

    @abstractmethod
    def parse(self, text: str) -> str:
        """The tool's input from a completion; raises ``ToolInputError`` when there is none."""

    @abstractmethod
    def run(self, source: str) -> ToolResult:
        """Run the input. A failing input is a ``ToolResult`` with ``error``; ``ToolError`` means the tool broke."""

    async def arun(self, source: str) -> ToolResult:
        """Do what ``run`` does, without blocking the event loop."""
        return await asyncio.to_thread(self.run, source)

    def ran(self, result: ToolResult) -> str:
        """What a person may want to know of how ``result`` came about, such as the sandbox; by default nothing."""
        return ""


class Scorer(ABC):
    """Gives an ancestor's top-K log-probabilities at every position of a specialist's rollouts.

    A rollout's tokens are those of its ``logprobs``, read after its ``prompt_ids``; where it has none, a scorer that
    has the specialist's tokenizer may encode the step's messages and the text itself, if they survive the round trip.
    Rows hold the K most probable tokens and no others: a taken token outside them is absent, as the features define.

    ``score`` raises ``TokenizerMismatch`` before anything is scored, and ``SamplerError`` when the model cannot be
    reached. What is wrong with one rollout is a value in its place.

    Attributes:
        name: what it is, for records and messages.
        max_calls: the most requests that one rollout may cause.
    """

    name: str
    max_calls: int = 1

    @abstractmethod
    def score(self, step: Step, rollouts: Sequence[Rollout]) -> ScoreResult:
        """One table per rollout, aligned with its ``logprobs``."""

    async def ascore(self, step: Step, rollouts: Sequence[Rollout]) -> ScoreResult:
        """Do what ``score`` does, without blocking the event loop."""
        return await asyncio.to_thread(self.score, step, rollouts)


class Steerer(ABC):
    """Carries out decoding operators that need the logits.

    The rollout that is steered may come from a checkpoint, with its text and the offsets of its junction and peak but
    without its tokens. ``steer`` raises only ``SamplerError`` (and control flow); a steerer that fails costs the
    attempt and blocks nothing else.

    Attributes:
        name: what it is, for records and messages.
        operators: the operators it offers, among ``sparse_steer``, ``sparse_steer_random``, ``dense_steer`` and
            ``local_temp``.
        max_calls: the most requests that one decode may cause.
    """

    name: str
    operators: tuple[str, ...]
    max_calls: int = 1

    @abstractmethod
    def steer(self, step: Step, operator: str, rollout: Rollout, request: SampleRequest) -> SampleResult:
        """Decode ``step`` again with ``operator`` applied at ``rollout``'s junction."""

    async def asteer(self, step: Step, operator: str, rollout: Rollout, request: SampleRequest) -> SampleResult:
        """Do what ``steer`` does, without blocking the event loop."""
        return await asyncio.to_thread(self.steer, step, operator, rollout, request)


class Escalator(ABC):
    """Puts a case before a person outside LangGraph's interrupts."""

    @abstractmethod
    def escalate(self, payload: Mapping[str, Any]) -> Any:
        """Return the person's reply (the shape of ``rfx_agent.escalation.HumanReply``), or None for no reply."""

    async def aescalate(self, payload: Mapping[str, Any]) -> Any:
        """Do what ``escalate`` does, without blocking the event loop."""
        return await asyncio.to_thread(self.escalate, payload)


class TraceStore(ABC):
    """Keeps raw rollouts (whole text, top-K tables) outside the checkpoint."""

    @abstractmethod
    def put(self, step_id: str, rollouts: Sequence[Rollout]) -> None:
        """Keep ``rollouts``; called once for each, before they are made compact."""

    async def aput(self, step_id: str, rollouts: Sequence[Rollout]) -> None:
        """Do what ``put`` does, without blocking the event loop."""
        await asyncio.to_thread(self.put, step_id, rollouts)


class BudgetStore(ABC):
    """Keeps what many runs, in many processes, may spend together, and what they paid for.

    A reservation is all or nothing over its claims. It is open until its owner settles or releases it; one that was
    neither by the end of its time has expired: it counts as spent in full, because nobody knows what it cost.
    Settling is charging and recording in one transaction: a call that was settled with a record is never paid for
    again, whatever happened to the process that made it.

    Every method raises only ``StoreError``, when the store cannot be reached or is broken. After one, either nothing
    was done or all of it; the same call may be repeated.
    """

    @abstractmethod
    def reserve(self, id: str, claims: Sequence[Claim], *, seconds: float) -> Grant:  # noqa: A002  # the field is called id
        """Set ``claims`` aside for at most ``seconds``, or say why not.

        What is known of ``id`` decides first. Settled with a record: the record comes back and nothing is set aside.
        Open: assume that its owner crashed; that reservation expires and a new one is granted. Released, expired, or
        settled without a record: a new one is granted.

        An account has room for an amount ``a`` when, with ``open`` everything reserved on it and ``spent`` everything
        settled on it within the window that ends now: ``open + spent + a <= most`` (window),
        ``open + spent + a <= most + share * credit`` with the credit deposited in the window (ratio), and
        ``open + a <= most`` (in flight). A window may be kept in buckets, as long as that errs towards refusing.
        """

    @abstractmethod
    async def areserve(self, id: str, claims: Sequence[Claim], *, seconds: float) -> Grant:  # noqa: A002  # as above
        """Do what ``reserve`` does, without blocking the event loop."""

    @abstractmethod
    def settle(self, reservation: Reservation, actual: Mapping[str, int], record: str | None = None) -> None:
        """Charge ``actual`` (amount by unit; a unit not named cost nothing) in place of what ``reservation`` set aside.

        More than was reserved is charged in full. A reservation that expired meanwhile is corrected; one that
        another owner has taken over, or that was settled before, is left alone.
        """

    @abstractmethod
    async def asettle(self, reservation: Reservation, actual: Mapping[str, int], record: str | None = None) -> None:
        """Do what ``settle`` does, without blocking the event loop."""

    @abstractmethod
    def release(self, reservation: Reservation) -> None:
        """Give back what ``reservation`` set aside: nothing was dispatched. Without effect on one that is not open."""

    @abstractmethod
    async def arelease(self, reservation: Reservation) -> None:
        """Do what ``release`` does, without blocking the event loop."""

    @abstractmethod
    def keep(self, id: str, record: str) -> str:  # noqa: A002  # as above
        """Record ``record`` under ``id`` unless there is one already; returns the one that stands."""

    @abstractmethod
    async def akeep(self, id: str, record: str) -> str:  # noqa: A002  # as above
        """Do what ``keep`` does, without blocking the event loop."""

    @abstractmethod
    def deposit(self, claims: Sequence[Claim]) -> None:
        """Credit ratio accounts with ``amount`` of normal traffic. Returns at once; a store may write it later, at
        the latest with its next reservation. Credit lost with a process only makes a budget stricter."""

    @abstractmethod
    def accounts(self, prefix: str = "") -> list[Account]:
        """All accounts whose name begins with ``prefix``, by name."""
