"""Structured responses that an agent was asked for and did not give: recognised, and told from calls of its tools.

``ToolStrategy`` answers a malformed one with a ``ToolMessage`` and calls the model again, outside of all middleware, so
that nothing but LangGraph's recursion limit ends it. Here it is a failed answer like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from langchain.agents.middleware.types import ModelRequest, ModelResponse
from langchain.agents.structured_output import (
    AutoStrategy,
    MultipleStructuredOutputsError,
    OutputToolBinding,
    ProviderStrategy,
    StructuredOutputError,
    StructuredOutputValidationError,
    ToolStrategy,
)
from langchain_core.messages import AIMessage, ToolMessage

from rfx_agent.adapters.attempts import FAILURES
from rfx_agent.adapters.texts import as_text, flawed
from rfx_agent.records import Verdict

__all__ = ["Malformed", "malformed", "said", "schema_of"]

_NONE = "it is no structured response"


@dataclass(frozen=True, slots=True)
class Malformed:
    """A model call that came to no answer of the form that was asked for.

    Attributes:
        error: what LangChain raises for it, or the exception that the call raised.
        flaw: the verdict on it.
        text: what the model gave in place of an answer.
        message: its message; None where the call raised and there is none.
    """

    error: Exception
    flaw: Verdict
    text: str = ""
    message: AIMessage | None = None


def malformed(
    made: ModelResponse[Any] | Exception,
    request: ModelRequest[Any],
    *,
    ends: bool = False,
    failures: tuple[type[Exception], ...] = FAILURES,
) -> Malformed | None:
    """``made`` as a failed answer; None where it is a response to go on with, or an exception of another kind.

    Args:
        made: what a call of the model gave.
        request: what it was asked.
        ends: whether an agent without tools ends with an answer in plain text; else it calls the model again.
        failures: exceptions of a model call that are failed answers.
    """
    if isinstance(made, StructuredOutputError):
        asked: AIMessage | None = getattr(made, "ai_message", None)
        return Malformed(made, flawed(made, _NONE), _text(asked, asked.tool_calls) if asked else "", asked)
    if isinstance(made, failures):
        text = getattr(made, "llm_output", None)
        return Malformed(made, flawed(made), text if isinstance(text, str) else "")
    wanted: Any = request.response_format
    if isinstance(made, Exception) or wanted is None or isinstance(wanted, ProviderStrategy):
        return None
    message = said(made)
    if message is None or made.structured_response is not None:
        return None
    tools = {_name(tool) for tool in request.tools}
    answered = {m.tool_call_id: m for m in made.result if isinstance(m, ToolMessage)}
    calls = [call for call in message.tool_calls if call["id"] in answered and call["name"] not in tools]
    if calls:
        told = as_text(answered[calls[0]["id"] or ""])  # LangChain's message to the model
        error = _error(wanted, calls, message, told)
        flaw = flawed(error, _NONE)
        if _own_words(wanted):
            flaw = Verdict(False, reason=flaw.reason, feedback=told, kind="malformed")
        return Malformed(error, flaw, _text(message, calls), message)
    unread = [call for call in message.invalid_tool_calls if call["name"] not in tools]
    if unread and not message.tool_calls:
        why = ValueError(f"its arguments are no JSON: {unread[0]['error'] or unread[0]['args']}")
        error = StructuredOutputValidationError(unread[0]["name"] or "", why, message)
        return Malformed(error, flawed(error, _NONE), unread[0]["args"] or "", message)
    if not (message.tool_calls or ends or any(not isinstance(tool, dict) for tool in request.tools)):
        specs = _strategy(wanted).schema_specs  # a schema without a title has a name that is drawn anew
        names = [x.name for x in specs if not isinstance(x.schema, dict) or "title" in x.schema]
        call = f"a call of {' or '.join(names) or 'its tool'}"
        why = ValueError(f"it is plain text; {call} is wanted")
        error = StructuredOutputValidationError(" or ".join(names) or "response_format", why, message)
        flaw = Verdict(False, reason=f"{_NONE}: {why}", feedback=f"Answer by {call}.", kind="no_answer")
        return Malformed(error, flaw, as_text(message), message)
    return None


def said(response: ModelResponse[Any]) -> AIMessage | None:
    """The model's message in ``response``."""
    return next((m for m in reversed(response.result) if isinstance(m, AIMessage)), None)


def schema_of(request: ModelRequest[Any]) -> Any:
    """What a structured response must fit: a type or a JSON schema, or None."""
    given: Any = request.response_format
    return given if isinstance(given, type) else getattr(given, "schema", given)


def _name(tool: Any) -> str | None:
    """What a model calls a tool; None for a provider's own that has no name."""
    if isinstance(tool, dict):
        inner = tool.get("function")
        name = inner.get("name") if isinstance(inner, dict) else tool.get("name")
    else:
        name = getattr(tool, "name", None) or getattr(tool, "__name__", None)
    return name if isinstance(name, str) else None


def _text(message: AIMessage, calls: Any) -> str:
    """What was given in place of a structured response: the arguments of its calls, else the text."""
    given = [call["args"] for call in calls]
    return as_text(given[0] if len(given) == 1 else given or message)


def _strategy(wanted: Any) -> ToolStrategy[Any]:
    if isinstance(wanted, ToolStrategy):
        return wanted
    return ToolStrategy(wanted.schema if isinstance(wanted, AutoStrategy) else wanted)


def _own_words(wanted: Any) -> bool:
    """Whether the deployment says itself what the model is told of an error."""
    handles = _strategy(wanted).handle_errors
    return isinstance(handles, str) or (callable(handles) and not isinstance(handles, type))


def _error(wanted: Any, calls: list[Any], message: AIMessage, told: str) -> StructuredOutputError:
    """What LangChain raises where it does not call the model again itself."""
    if len(calls) > 1:
        return MultipleStructuredOutputsError([call["name"] for call in calls], message)
    name, why = calls[0]["name"], Exception(told)
    spec = next((spec for spec in _strategy(wanted).schema_specs if spec.name == name), None)
    if spec is not None:
        try:
            OutputToolBinding.from_schema_spec(spec).parse(calls[0]["args"])
        except ValueError as error:
            why = error
    return StructuredOutputValidationError(name, why, message)
