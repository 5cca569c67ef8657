"""What a run of the recovery graph begins with: a step and a candidate, or a conversation; and where it all ends."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from rfx_agent.adapters.texts import spoken, step_of
from rfx_agent.case import Case
from rfx_agent.codec import load, plain
from rfx_agent.errors import ConfigError, StateError
from rfx_agent.records import Rollout, Step
from rfx_agent.samplers.chat import rollout_of

__all__ = ["Opening", "ended_with", "opening"]

_NOTHING = (
    "recovery graph: there is neither a step nor messages; invoke it with step_input(step, candidate), with "
    "{'messages': [...]}, or with a Command(resume=...) on a thread that has been asked something"
)


@dataclass(frozen=True, slots=True)
class Opening:
    """How a visit of ``diagnose`` begins.

    Attributes:
        step: what is asked.
        candidate: what the agent already has, or None.
        returns: whether a case of the step comes back from its remedy.
        update: what the state is to keep of it, so that the next run of the thread tells what is new.
    """

    step: Step
    candidate: Rollout | str | None = None
    returns: bool = False
    update: dict[str, Any] = field(default_factory=dict)


def opening(state: Mapping[str, Any]) -> Opening:
    """How the graph begins, or goes on, in ``state``.

    A thread keeps the step of its last run. So messages are what is asked where they are new and the step is not.

    Raises:
        ConfigError: nothing is asked.
    """
    given, messages, kept = state.get("step"), state.get("messages") or [], state.get("recovery")
    last, seen = messages[-1].id if messages else None, state.get("seen") or {}
    step = None if given is None else _step(given)
    if messages and (step is None or ("last" in seen and seen["last"] != last and _of(kept, step))):
        return _conversation(messages)
    if step is None:
        raise ConfigError(_NOTHING)
    if _returns(kept, step):
        return Opening(step, returns=True)
    candidate = state.get("candidate")
    candidate = _candidate(candidate) if isinstance(candidate, Mapping) else candidate
    return Opening(step, candidate, update={"seen": {"last": last}})


def ended_with(case: Case, state: Mapping[str, Any], opened: Mapping[str, Any]) -> dict[str, Any]:
    """What a conversation gets of a case that has ended: the answer, behind it or in the candidate's place.

    Args:
        case: with its outcome.
        state: the graph's, as the node was given it.
        opened: what the opening put into it.
    """
    seen, outcome = opened.get("seen") or state.get("seen") or {}, case.outcome
    if "answer" not in seen or outcome is None or not outcome.ok or outcome.text is None:
        return {}
    if outcome.status == "accepted" and seen["answer"] is not None:
        return {}
    message = AIMessage(spoken(outcome.text), id=seen["answer"] or f"rfx-{uuid.uuid4()}")
    return {"messages": [message], "seen": {"last": message.id}}


def _conversation(messages: Sequence[BaseMessage]) -> Opening:
    last, asked, candidate = messages[-1], messages, None
    if isinstance(last, AIMessage):
        if last.tool_calls:
            raise ConfigError("recovery graph: the last of the messages calls tools; give it an answer to verify")
        asked, candidate = messages[:-1], rollout_of(last, name="r0", prompt=messages[:-1])
    if not asked:
        raise ConfigError("recovery graph: messages has an answer alone; give the user's message before it")
    step = step_of(list(asked))
    answer = None if candidate is None else last.id
    update = {"step": plain(step), "seen": {"last": last.id, "answer": answer}}
    return Opening(step, candidate, update=update)


def _candidate(given: Mapping[str, Any]) -> Rollout:
    try:
        return load(Rollout, given)
    except StateError as error:  # it is the caller's input, and no state
        raise ConfigError(f"recovery graph: candidate is {given!r}: {error}; give a text") from error


def _step(given: Any) -> Step:
    if isinstance(given, str):
        return Step.of(given)
    try:
        return load(Step, given)
    except StateError as error:  # it is the caller's input, and no state
        raise ConfigError(
            f"recovery graph: step is {given!r}: {error}; give a prompt, or what step_input makes"
        ) from error


def _of(kept: Any, step: Step) -> bool:
    try:
        return bool(kept["step"]["id"] == step.id)
    except (TypeError, KeyError):
        return False


def _returns(kept: Any, step: Step) -> bool:
    """Whether ``kept`` is a case of ``step`` that comes back from its remedy.

    Any other belongs to an earlier run of the thread: it has ended, was left before a person, or was interrupted. That
    one need not be readable.
    """
    try:
        paid = kept["decisions"][-1]["budget_after"] is not None
        return bool(paid and _of(kept, step) and not kept.get("outcome") and not kept.get("ask"))
    except (TypeError, KeyError, IndexError, AttributeError):
        return False
