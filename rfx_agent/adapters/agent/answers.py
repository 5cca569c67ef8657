"""Model responses that the middleware returns: marked with how they came to stand, or made of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from langchain.agents.middleware.types import ExtendedModelResponse, ModelRequest, ModelResponse
from langchain_core.messages import AIMessage
from langgraph.types import Command

from rfx_agent.adapters.agent.structured import Malformed, schema_of
from rfx_agent.adapters.agent.thing import Response, answer_of
from rfx_agent.adapters.attempts import RETRACT, Attempts
from rfx_agent.adapters.marks import marked
from rfx_agent.adapters.texts import restored, spoken
from rfx_agent.case import Case, Outcome
from rfx_agent.codec import dump
from rfx_agent.errors import EscalationError
from rfx_agent.records import Step

__all__ = ["Answer", "in_response", "open_case", "response_of", "retract", "with_update"]

Answer: TypeAlias = ModelResponse[Any] | ExtendedModelResponse[Any]


def with_update(response: ModelResponse[Any], update: dict[str, Any]) -> Answer:
    """``response``, and what else it changes in the agent's state."""
    return ExtendedModelResponse(response, Command(update=update)) if update else response


def in_response(response: ModelResponse[Any], marks: Mapping[str, Any]) -> ModelResponse[Any]:
    """A copy of ``response`` whose message carries ``marks``."""
    at = max(i for i, m in enumerate(response.result) if isinstance(m, AIMessage))
    message = response.result[at]
    assert isinstance(message, AIMessage)  # noqa: S101  # found by its class
    result = [*response.result[:at], marked(message, marks), *response.result[at + 1 :]]
    return replace(response, result=result)


def response_of(
    outcome: Outcome, case: Case, attempts: Attempts, request: ModelRequest[Any], first: ModelResponse[Any] | None
) -> ModelResponse[Any]:
    """The response that ``outcome`` stands for: a draw's whole, or one made of a tool's or a person's text."""
    text = outcome.text or ""
    same = [x for x in case.rollouts if x.text == text]
    winner = max(same, key=lambda x: x.passed, default=None)
    if winner is not None and (made := attempts.outputs.get(winner.response_id or "")) is not None:
        return made  # type: ignore[no-any-return]  # a run's response
    text = spoken(text)
    said = None if first is None else answer_of(first)
    like = None if first is None else first.structured_response
    schema = schema_of(request) if like is not None or first is None else None
    try:
        structured = None if schema is None else restored(text, like=like, schema=schema)
    except ValueError as error:  # a tool's text was looked at when it was judged
        raise EscalationError(f"escalation: the agent gives structured responses, and this is none: {error}") from error
    return ModelResponse([AIMessage(text, name=said and said.name)], structured)


def open_case(case: Case, response: ModelResponse[Any], marks: Mapping[str, Any]) -> dict[str, Any]:
    """What the node that asks a person needs of an open case.

    Only the last message of the user is kept, because the state has the rest. ``expected`` is left out, because nobody
    may see it.
    """
    last = next((m for m in reversed(case.step.messages) if m["role"] == "user"), case.step.messages[-1])
    message = answer_of(response)
    assert message is not None  # noqa: S101  # only an answer is asked about
    if message.id is None:
        message.id = f"rfx-{case.step.id}"  # our own copy; the node finds it by its id
    slim = replace(case, step=Step((last,), id=case.step.id))
    return {"case": dump(slim), "message": message.id, "marks": dict(marks)}


def retract(request: ModelRequest[Any], step: Step, first: Response) -> None:
    """Tell the custom stream that what was streamed of the first attempt is void."""
    message = first.message if isinstance(first, Malformed) else answer_of(first)
    if message is not None and request.runtime is not None:
        request.runtime.stream_writer({"type": RETRACT, "step_id": step.id, "message": message.id})
