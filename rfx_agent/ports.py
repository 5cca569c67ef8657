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

__all__ = ["Escalator", "Sampler", "Scorer", "Steerer", "Tool", "TraceStore", "Verifier"]


@runtime_checkable
class Sampler(Protocol):
    """A model that can be sampled.

    Attributes:
        name: what it is, for records and messages.
        continues_prefix: whether ``SampleRequest.prefix`` is honoured.
        takes_temperature: optional, true when absent: whether ``SampleRequest.temperature`` is honoured.

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
