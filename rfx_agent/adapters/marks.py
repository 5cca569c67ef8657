"""What a message says of how it came to stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from langchain_core.messages import BaseMessage

from rfx_agent.case import Case
from rfx_agent.records import Spend

__all__ = ["BUDGET", "ended_by_budget", "marked", "marks_of"]

Message = TypeVar("Message", bound=BaseMessage)
BUDGET = ("exhausted", "asked")
"""How a run ends that its budget ended: for good, or until a person has said whether to raise it."""


def ended_by_budget(message: BaseMessage) -> bool:
    """Whether a run's budget stands in the place of an answer."""
    marks = message.response_metadata.get("rfx")
    return isinstance(marks, Mapping) and marks.get("budget") in BUDGET


def marks_of(case: Case, spent: Spend) -> dict[str, Any]:
    """What the message that stands says of the case: how it ended and what that took; no prompt and no answer."""
    outcome = case.outcome
    return {
        "step": case.step.id,
        "outcome": "asked" if outcome is None else outcome.status,
        "by": None if outcome is None else outcome.by,
        "weak": outcome is not None and outcome.weak,
        "confidence": None if outcome is None else outcome.confidence,
        "failed": sum(not x.passed for x in case.rollouts),
        "attempts": spent.attempts,
        "samples": spent.samples,
        "tokens": spent.tokens,
    }


def marked(message: Message, marks: Mapping[str, Any]) -> Message:
    """A copy of ``message`` that says under ``response_metadata["rfx"]`` how it came to stand."""
    return message.model_copy(update={"response_metadata": {**message.response_metadata, "rfx": dict(marks)}})
