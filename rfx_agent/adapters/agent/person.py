"""The node after the model that puts an open case before a person. It samples nothing, so a resume costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.messages import AIMessage, RemoveMessage, ToolMessage

from rfx_agent.adapters.agent.state import counted
from rfx_agent.adapters.graph.ask import ask_person
from rfx_agent.adapters.graph.source import streaming
from rfx_agent.adapters.marks import marked
from rfx_agent.adapters.texts import restored, spoken
from rfx_agent.case import Case, Outcome
from rfx_agent.codec import load_case, unreadable
from rfx_agent.engine.drive import Flow, drive, drive_async
from rfx_agent.engine.run import Run
from rfx_agent.engine.settings import Settings
from rfx_agent.errors import EscalationError, StateError, Unresolved

__all__ = ["PersonHooks"]


class PersonHooks:
    """The hook after the model; a class without it adds no node to the agent's graph."""

    _settings: Settings
    _on_unresolved: str

    def after_model(self, state: Mapping[str, Any], runtime: Any) -> dict[str, Any] | None:
        """Ask a person about the answer that the model call left open, and let theirs stand in its place."""
        return drive(self._asked(state))

    async def aafter_model(self, state: Mapping[str, Any], runtime: Any) -> dict[str, Any] | None:
        """Do what ``after_model`` does, without blocking the event loop."""
        return await drive_async(self._asked(state))

    def _asked(self, state: Mapping[str, Any]) -> Flow[dict[str, Any] | None]:
        opened = state.get("rfx_open")
        if not opened:
            return None
        messages = state["messages"]
        at = next((i for i in range(len(messages) - 1, -1, -1) if isinstance(messages[i], AIMessage)), -1)
        marks = messages[at].response_metadata.get("rfx", {}) if at >= 0 else {}
        about = opened.get("message") if isinstance(opened, Mapping) else None
        if marks.get("outcome") != "asked" or about not in (None, messages[at].id):
            return {"rfx_open": None}  # of an earlier run, which was left before it was answered
        try:
            case = load_case(opened.get("case") if isinstance(opened, Mapping) else opened, answered=True)
        except StateError as error:
            return self._closed(state, marks, at, unreadable(error))
        first = case.rollouts[0].text
        like = state.get("structured_response")

        def fits(outcome: Outcome) -> None:
            if like is not None and outcome.ok and outcome.text != first:
                try:
                    restored(spoken(outcome.text or ""), like=like)
                except ValueError as error:
                    raise EscalationError(
                        f"escalation: the agent answers with a {type(like).__name__}, and this is none: {error}; "
                        "reply with approve, or with edit and its JSON as the answer"
                    ) from error

        run = Run.of(self._settings, on_event=streaming(self._settings))
        return self._closed(state, marks, at, (yield from ask_person(run, case, fits)))

    def _closed(self, state: Mapping[str, Any], marks: Mapping[str, Any], at: int, case: Case) -> dict[str, Any]:
        """The update of state that ends the case: the person's answer stands, or the failed one is marked."""
        messages, outcome, like = state["messages"], case.outcome, state.get("structured_response")
        assert outcome is not None  # noqa: S101  # ask_person gives one
        if not outcome.ok and self._on_unresolved == "raise":
            raise Unresolved(outcome.sentence, case=case)
        marks = {**marks} | {"outcome": outcome.status, "by": outcome.by}
        update: dict[str, Any] = {
            "rfx_open": None,
            "rfx_run": counted(state.get("rfx_run") or {}, outcome.status),
            "rfx_thread": counted(state.get("rfx_thread") or {}, outcome.status),
        }
        if not outcome.ok or outcome.text == case.rollouts[0].text:
            return update | {"messages": [marked(messages[at], marks)]}
        text = spoken(outcome.text or "")
        said = AIMessage(text, id=messages[at].id, name=messages[at].name)
        if like is not None:
            update["structured_response"] = restored(text, like=like)
        # The tool message of a structured response answers a call that the new message does not make.
        gone = [RemoveMessage(id=m.id) for m in messages[at + 1 :] if isinstance(m, ToolMessage) and m.id]
        return update | {"messages": [marked(said, marks), *gone]}
