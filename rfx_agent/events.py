"""What happens inside a step, as typed events for hooks. Prompts and answers are not in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from rfx_agent._records import Decision
from rfx_agent._types import Operator, Usage
from rfx_agent.case import Outcome

__all__ = ["Decided", "Escalated", "Event", "Finished", "Judged", "Sampled", "ToolRan"]


@dataclass(frozen=True, slots=True)
class Sampled:
    """A model was asked, for a draw or for a tool's input.

    Attributes:
        tag: ``retry:attempt:N``, N counting the rounds from 1, as LangChain's retry tags its attempts.
    """

    step_id: str
    operator: Operator
    asked: int
    got: int
    usage: Usage
    seconds: float
    tag: str


@dataclass(frozen=True, slots=True)
class Judged:
    """A verifier judged a rollout."""

    step_id: str
    rollout_id: str
    passed: bool
    weak: bool
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


Event: TypeAlias = Sampled | Judged | ToolRan | Decided | Escalated | Finished
