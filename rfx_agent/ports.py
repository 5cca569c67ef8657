"""What the engine asks of the outside: one Protocol per port.

Each port is sync and async; both do the same, with the same parameters. An implementation that has only one side
should derive from the helper beside it in its own package, not fake the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from rfx_agent._types import (
        Message,
        Rollout,
        SampleRequest,
        SampleResult,
        ScoreResult,
        Spend,
        Step,
        ToolResult,
        Verdict,
    )
    from rfx_agent.limits import Account, Claim, Grant, Hold

__all__ = ["BudgetStore", "Escalator", "Sampler", "Scorer", "Steerer", "Tool", "TraceStore", "Verifier"]


@runtime_checkable
class Sampler(Protocol):
    """A model that can be sampled.

    Attributes:
        name: what it is, for records and messages.
        continues_prefix: whether ``SampleRequest.prefix`` is honoured.
        takes_temperature: optional, true when absent: whether ``SampleRequest.temperature`` is honoured.
        max_calls: optional, 1 when absent: the most requests that one draw may cause, transport retries included;
            so many are reserved under ``RetryBudget.calls``.

    ``sample`` raises only ``SamplerError`` (and control flow). It returns at most ``request.n`` rollouts; where the
    server returned fewer it has already asked again once. Usage is what really came back.
    """

    name: str
    continues_prefix: bool

    def sample(self, request: SampleRequest) -> SampleResult:
        """Draw ``request.n`` completions."""
        ...

    async def asample(self, request: SampleRequest) -> SampleResult:
        """The same, without blocking the event loop."""
        ...


@runtime_checkable
class Verifier(Protocol):
    """Something that tells a success from a failure.

    Attributes:
        name: what it is, for records and messages.
        needs_peers: true when a verdict depends on the other rollouts (agreement); then failed rollouts are
            judged again when more samples arrive.
        instant: optional, false when absent: whether a verdict cannot hang, so that nobody need watch over it.
        bound: optional method ``(step, rollout) -> Usage``: the most that one verdict can cost in model calls,
            reserved before it is asked for. Without it a verdict is free of them.

    A "no" is a ``Verdict``. An exception is a broken verifier; the engine turns it into ``VerifierError``.
    """

    name: str
    needs_peers: bool

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Judge ``rollout``; ``peers`` are all draws of the step so far, this one included."""
        ...

    async def averify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """The same, without blocking the event loop."""
        ...


@runtime_checkable
class Tool(Protocol):
    """A tool that a model drives to produce an answer by other means than reasoning in text.

    Attributes:
        name: what it is, for records and messages.
        bound: the most that one run may cost (``tool_seconds``), reserved before it starts.

    The engine asks a model for the tool's input with ``prompt``, reads it with ``parse``, and runs it. A run that
    fails is shown to the model once with ``repair``. Neither prompt ever contains a sampled answer.
    """

    name: str
    bound: Spend

    def prompt(self, step: Step, *, prefix: str | None = None) -> tuple[Message, ...]:
        """Messages that ask a model for the tool's input; ``prefix`` is trusted-for-nothing work up to the junction."""
        ...

    def repair(self, step: Step, source: str, result: ToolResult) -> tuple[Message, ...]:
        """Messages that show the model its own input and the error, and ask again."""
        ...

    def parse(self, text: str) -> str:
        """The tool's input from a completion; raises ``ToolInputError`` when there is none."""
        ...

    def run(self, source: str) -> ToolResult:
        """Run the input. A failing input is a ``ToolResult`` with ``error``; ``ToolError`` means the tool broke."""
        ...

    async def arun(self, source: str) -> ToolResult:
        """The same, without blocking the event loop."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """Gives an ancestor's top-K log-probabilities at every position of a specialist's rollouts.

    A rollout's tokens are those of its ``logprobs``, read after its ``prompt_ids``; where it has none, a scorer that
    has the specialist's tokenizer may encode the step's messages and the text itself, if they survive the round trip.
    Rows hold the K most probable tokens and no others: a taken token outside them is absent, as the features define.

    ``score`` raises ``TokenizerMismatch`` before anything is scored, and ``SamplerError`` when the model cannot be
    reached. What is wrong with one rollout is a value in its place.
    """

    name: str

    def score(self, step: Step, rollouts: Sequence[Rollout]) -> ScoreResult:
        """One table per rollout, aligned with its ``logprobs``."""
        ...

    async def ascore(self, step: Step, rollouts: Sequence[Rollout]) -> ScoreResult:
        """The same, without blocking the event loop."""
        ...


@runtime_checkable
class Steerer(Protocol):
    """Carries out decoding operators that need the logits.

    Attributes:
        operators: the operators it offers, among ``sparse_steer``, ``sparse_steer_random``, ``dense_steer`` and
            ``local_temp``.

    The rollout that is steered may come from a checkpoint, with its text and the offsets of its junction and peak but
    without its tokens. ``steer`` raises only ``SamplerError`` (and control flow); a steerer that fails costs the
    attempt and blocks nothing else.
    """

    name: str
    operators: tuple[str, ...]

    def steer(self, step: Step, operator: str, rollout: Rollout, request: SampleRequest) -> SampleResult:
        """Decode ``step`` again with ``operator`` applied at ``rollout``'s junction."""
        ...

    async def asteer(self, step: Step, operator: str, rollout: Rollout, request: SampleRequest) -> SampleResult:
        """The same, without blocking the event loop."""
        ...


@runtime_checkable
class Escalator(Protocol):
    """Puts a case before a person outside LangGraph's interrupts."""

    def escalate(self, payload: Mapping[str, Any]) -> Any:
        """Return the human's reply (the shape of ``rfx_agent.escalation.HumanReply``), or None for no reply."""
        ...

    async def aescalate(self, payload: Mapping[str, Any]) -> Any:
        """The same, without blocking the event loop."""
        ...


@runtime_checkable
class TraceStore(Protocol):
    """Keeps raw rollouts (whole text, top-K tables) outside the checkpoint."""

    def put(self, step_id: str, rollouts: Sequence[Rollout]) -> None:
        """Keep ``rollouts``; called once for each, before they are made compact."""
        ...


@runtime_checkable
class BudgetStore(Protocol):
    """Keeps what many runs, in many processes, may spend together, and what they paid for.

    A reservation is all or nothing over its claims. It is open until its owner settles or releases it; one that was
    neither by the end of its time is written off: it counts as spent in full, because nobody knows what it cost.
    Settling is charging and recording in one transaction: a call that was settled with a record is never paid for
    again, whatever happened to the process that made it.

    Every method raises only ``StoreError``, when the store cannot be reached or is broken; then nothing happened, or
    all of it did and doing it again does nothing.
    """

    def reserve(self, id: str, claims: Sequence[Claim], *, seconds: float) -> Grant:  # noqa: A002  # the field is called id
        """Set ``claims`` aside for at most ``seconds``, or say why not.

        What is known of ``id`` decides first: settled with a record, the record comes back and nothing is set aside;
        open, its owner is taken for dead: that hold is written off and a new one granted; released, written off, or
        settled without a record, a new one is granted.

        An account has room for an amount ``a`` when, with ``open`` everything reserved on it and ``spent`` everything
        settled on it within the window that ends now: ``open + spent + a <= most`` (window),
        ``open + spent + a <= most + share * credit`` with the credit deposited in the window (ratio), and
        ``open + a <= most`` (in flight). A window may be kept in parts, as long as that errs towards refusing.
        """
        ...

    async def areserve(self, id: str, claims: Sequence[Claim], *, seconds: float) -> Grant:  # noqa: A002  # as above
        """The same, without blocking the event loop."""
        ...

    def settle(self, hold: Hold, actual: Mapping[str, int], record: str | None = None) -> None:
        """Charge ``actual`` (amount by unit; a unit not named cost nothing) in place of what ``hold`` set aside.

        More than was reserved is charged in full. A hold that was written off meanwhile is corrected; one that
        another owner has taken over, or that was settled before, is left alone.
        """
        ...

    async def asettle(self, hold: Hold, actual: Mapping[str, int], record: str | None = None) -> None:
        """The same, without blocking the event loop."""
        ...

    def release(self, hold: Hold) -> None:
        """Give back what ``hold`` set aside: nothing was dispatched. Without effect on a hold that is not open."""
        ...

    async def arelease(self, hold: Hold) -> None:
        """The same, without blocking the event loop."""
        ...

    def keep(self, id: str, record: str) -> str:  # noqa: A002  # as above
        """Record ``record`` under ``id`` unless there is one already; returns the one that stands."""
        ...

    async def akeep(self, id: str, record: str) -> str:  # noqa: A002  # as above
        """The same, without blocking the event loop."""
        ...

    def deposit(self, claims: Sequence[Claim]) -> None:
        """Credit ratio accounts with ``amount`` of normal traffic. Returns at once; a store may write it later, at
        the latest with its next reservation. Credit lost with a process only makes a budget stricter."""
        ...

    def accounts(self, prefix: str = "") -> list[Account]:
        """All accounts whose name begins with ``prefix``, by name."""
        ...
