"""The node after the model that puts an open case before a person. It samples nothing, so a resume costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.messages import AIMessage, RemoveMessage, ToolMessage

from rfx_agent._errors import EscalationError, Unresolved
from rfx_agent.adapters._agent.state import counted
from rfx_agent.adapters._graph.ask import ask_person
from rfx_agent.adapters._messages import restored
from rfx_agent.case import Case, Outcome, decode
from rfx_agent.engine import Flow, Recovery, drive, drive_async

__all__ = ["PersonHooks", "marked"]


class PersonHooks:
    """The hook after the model; a class without it adds no node to the agent's graph."""

    _recovery: Recovery
    _on_unresolved: str

    def after_model(self, state: Mapping[str, Any], runtime: Any) -> dict[str, Any] | None:
        """Ask a person about the answer that the model call left open, and let theirs stand in its place."""
        return drive(self._asked(state))

    async def aafter_model(self, state: Mapping[str, Any], runtime: Any) -> dict[str, Any] | None:
        """The same on the running event loop."""
        return await drive_async(self._asked(state))

    def _asked(self, state: Mapping[str, Any]) -> Flow[dict[str, Any] | None]:
        opened = state.get("rfx_open")
        if not opened:
            return None
        messages = state["messages"]
        at = next((i for i in range(len(messages) - 1, -1, -1) if isinstance(messages[i], AIMessage)), -1)
        if at < 0 or messages[at].id != opened["message"]:
            return {"rfx_open": None}  # of an earlier run, which was left before it was answered
        case = decode(Case, opened["case"])
        first = case.rollouts[0].text
        like = state.get("structured_response")

        def fits(outcome: Outcome) -> None:
            if like is not None and outcome.ok and outcome.text != first:
                try:
                    restored(outcome.text or "", like=like)
                except ValueError as error:
                    raise EscalationError(
                        f"escalation: the agent answers with a {type(like).__name__}, and this is none: {error}; "
                        "reply with approve, or with edit and its JSON as the answer"
                    ) from error

        case = yield from ask_person(self._recovery, case, fits)
        outcome = case.outcome
        assert outcome is not None  # noqa: S101  # ask_person gives one
        if not outcome.ok and self._on_unresolved == "raise":
            raise Unresolved(outcome.sentence, case=case)
        marks = opened["marks"] | {"outcome": outcome.status, "by": outcome.by}
        update: dict[str, Any] = {
            "rfx_open": None,
            "rfx_run": counted(state.get("rfx_run") or {}, outcome.status),
            "rfx_thread": counted(state.get("rfx_thread") or {}, outcome.status),
        }
        if not outcome.ok or outcome.text == first:
            return update | {"messages": [marked(messages[at], marks)]}
        said = AIMessage(outcome.text or "", id=messages[at].id, name=messages[at].name)
        if like is not None:
            update["structured_response"] = restored(outcome.text or "", like=like)
        # The tool message of a structured response answers a call that the new message does not make.
        gone = [RemoveMessage(id=m.id) for m in messages[at + 1 :] if isinstance(m, ToolMessage) and m.id]
        return update | {"messages": [marked(said, marks), *gone]}


def marked(message: AIMessage, marks: Mapping[str, Any]) -> AIMessage:
    """A copy of ``message`` that says under ``response_metadata["rfx"]`` how it came to stand."""
    return message.model_copy(update={"response_metadata": {**message.response_metadata, "rfx": dict(marks)}})
