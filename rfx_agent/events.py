"""What happens inside a step, as typed events for hooks. Prompts and answers are not in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from rfx_agent._records import Decision
from rfx_agent._types import Operator, Spend, Usage
from rfx_agent.case import Outcome

__all__ = [
    "Decided",
    "Escalated",
    "Event",
    "Finished",
    "Judged",
    "Purpose",
    "Reserved",
    "Sampled",
    "Scored",
    "ToolRan",
]

Purpose: TypeAlias = Literal["sample", "tool", "score", "verify", "escalate"]


@dataclass(frozen=True, slots=True)
class Reserved:
    """The most that an action can cost was asked of the budget, before the action.

    Attributes:
        purpose: what for.
        cost: what was asked.
        refused: caps that it would cross; then nothing was set aside and nothing is done.
    """

    step_id: str
    purpose: Purpose
    cost: Spend
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """A model was asked, for a draw or for a tool's input; or a steerer, for a steered decode.

    Attributes:
        model: name of the sampler or steerer.
        error: why nothing came back, or "".
        tag: ``retry:attempt:N``, N counting the rounds from 1, as LangChain's retry tags its attempts.
    """

    step_id: str
    operator: Operator
    asked: int
    got: int
    usage: Usage
    seconds: float
    tag: str
    model: str = ""
    temperature: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """A verifier judged a rollout."""

    step_id: str
    rollout_id: str
    passed: bool
    weak: bool
    seconds: float
    verifier: str = ""
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class Scored:
    """An ancestor read ``rollouts`` failed rollouts, and ``scored`` of them got a table."""

    step_id: str
    scorer: str
    rollouts: int
    scored: int
    usage: Usage
    seconds: float


@dataclass(frozen=True, slots=True)
class ToolRan:
    """A tool ran; ``failed`` when it gave an error instead of an answer."""

    step_id: str
    tool: str
    failed: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Decided:
    """A policy decided."""

    step_id: str
    decision: Decision


@dataclass(frozen=True, slots=True)
class Escalated:
    """A case was put before a person; ``deadline`` in Unix seconds, or None."""

    step_id: str
    deadline: float | None


@dataclass(frozen=True, slots=True)
class Finished:
    """The step ended."""

    step_id: str
    outcome: Outcome


Event: TypeAlias = Reserved | Sampled | Judged | Scored | ToolRan | Decided | Escalated | Finished
