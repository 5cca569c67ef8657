"""What goes into and comes out of a chain, a node or an agent, as text, as a step and as an object."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from langchain_core.messages import BaseMessage, HumanMessage, convert_to_messages
from langchain_core.prompt_values import ChatPromptValue, PromptValue, StringPromptValue
from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_json

from rfx_agent.adapters.record import messages_of
from rfx_agent.errors import ConfigError
from rfx_agent.records import Step, Verdict
from rfx_agent.samplers.chat.read import text_of
from rfx_agent.thinking import after_thinking

_MOST_TOLD = 1_000  # characters of an error that a model is told
_LINKS = re.compile(r"[ \t]*For (?:troubleshooting|further information),? visit:? \S+[ \t]*\n?")

__all__ = [
    "Reading",
    "as_text",
    "checked_reading",
    "flawed",
    "messages_of",
    "read",
    "restored",
    "spoken",
    "step_of",
    "text_of",
    "told",
]


Reading: TypeAlias = str | Callable[[Any], Any]
"""A key of a mapping or an object, or a function of it."""


def checked_reading(who: str, given: Any) -> None:
    """Raise ``ConfigError`` on what is neither a key nor a function nor None."""
    if not (given is None or callable(given) or (isinstance(given, str) and given)):
        raise ConfigError(f"{who} is {given!r}; give a key, or a function")


def read(value: Any, reading: Reading, who: str) -> Any:
    """What ``reading`` finds in ``value``.

    Raises:
        ConfigError: ``value`` has no such key.
    """
    if not isinstance(reading, str):
        return reading(value)
    if isinstance(value, Mapping):
        if reading in value:
            return value[reading]
        has = f"it has {', '.join(map(repr, value))}"
    else:
        if hasattr(value, reading):
            return getattr(value, reading)
        has = f"it is a {type(value).__name__}"
    raise ConfigError(f"{who} is {reading!r}, and there is no such key: {has}; give one of its keys, or a function")


def as_text(value: Any) -> str:
    """What a verifier reads of a chain's input or output: text as it is, a message's text, anything else as JSON.

    Example:
        >>> as_text({"total": 42})
        '{"total":42}'
    """
    if isinstance(value, str):
        return value
    if isinstance(value, BaseMessage):
        return text_of(value)
    try:
        if isinstance(value, BaseModel):
            return value.model_dump_json()
        return to_json(value, fallback=str).decode()
    except (ValueError, RecursionError):  # bytes, circles, half a character: no JSON says them
        return str(value)


def step_of(value: Any) -> Step:
    """The step that a chain's input asks: its messages where it has some, else the input as text."""
    if isinstance(value, Step):
        return value
    if isinstance(value, str):
        return Step.of(value)
    messages: list[BaseMessage] | None = None
    if isinstance(value, PromptValue):
        messages = value.to_messages()
    elif isinstance(value, Mapping) and set(value) == {"messages"}:
        messages = _messages(value["messages"])
    else:
        messages = _messages(value)
    if messages:
        return Step.of(messages_of(messages))
    return Step.of(as_text(value))


def _messages(value: Any) -> list[BaseMessage] | None:
    """``value`` as messages, in any of the forms that chat models take in a list; None if it is no such list."""
    if isinstance(value, BaseMessage):
        return [value]
    if not isinstance(value, list) or not all(_is_message(m) for m in value):
        return None
    try:
        return convert_to_messages(value)
    except (NotImplementedError, TypeError, ValueError):  # pairs of texts that only look like messages
        return None


def _is_message(item: Any) -> bool:
    if isinstance(item, tuple):
        return len(item) == 2 and all(isinstance(part, str) for part in item)
    return isinstance(item, BaseMessage) or (isinstance(item, Mapping) and {"role", "content"} <= set(item))


def told(value: Any, addition: str, prompt: str | None = None) -> Any:
    """A chain's or node's input with ``addition`` behind its prompt; None where nothing tells where the prompt is.

    Args:
        value: text, messages, a prompt value, or a mapping: of ``messages``, of one text, or with the prompt in it.
        addition: what is added.
        prompt: the prompt, where it was read out of ``value``.
    """
    if isinstance(value, str):
        return f"{value}\n\n{addition}"
    if isinstance(value, StringPromptValue):
        return StringPromptValue(text=f"{value.text}\n\n{addition}")
    if isinstance(value, PromptValue):
        return ChatPromptValue(messages=_added(value.to_messages(), addition))
    if isinstance(value, Mapping):
        key = _prompt_key(value, prompt)
        changed = None if key is None else told(value[key], addition)
        return None if changed is None else {**value, key: changed}
    messages = _messages(value)
    return _added(messages, addition) if messages else None


def _prompt_key(value: Mapping[str, Any], prompt: str | None) -> str | None:
    texts = [key for key, item in value.items() if isinstance(item, str)]
    if prompt is not None and (same := [key for key in texts if value[key] == prompt]):
        return same[0]
    if "messages" in value:
        return "messages"
    return texts[0] if len(texts) == 1 and len(value) == 1 else None


def _added(messages: Sequence[BaseMessage], addition: str) -> list[BaseMessage]:
    *before, last = messages
    if not isinstance(last, HumanMessage):
        return [*messages, HumanMessage(addition)]
    text = {"type": "text", "text": addition}
    content = f"{last.content}\n\n{addition}" if isinstance(last.content, str) else [*last.content, text]
    return [*before, last.model_copy(update={"content": content})]


def flawed(error: Exception, what: str = "") -> Verdict:
    """The verdict on an output that could not be made: what raised says what is wrong with it."""
    said = _LINKS.sub("", str(error))[:_MOST_TOLD].strip()
    return Verdict(False, reason=f"{what or type(error).__name__}: {said}", feedback=said or None, kind="malformed")


def spoken(text: str) -> str:
    """A text that no run of the user's own thing gave, as it goes on: without what a model thought."""
    return after_thinking(text).text.strip() or text


def restored(text: str, *, like: Any = None, schema: Any = None) -> Any:
    """The object that ``text`` is the JSON of: of ``like``'s class, else one that ``schema`` accepts.

    Args:
        text: JSON.
        like: an object of the wanted class, or None where there is none yet.
        schema: a pydantic model, dataclass, TypedDict or union of them, or a JSON schema, which is not enforced.

    Raises:
        ValueError: text that is no such object.
    """
    # A plain dict says nothing of its keys, so the schema is the better guide there.
    wanted = type(like) if isinstance(like, BaseModel) or hasattr(like, "__dataclass_fields__") else schema
    if wanted is None or isinstance(wanted, dict):
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError(f"it is a JSON {type(value).__name__}; an object is wanted")
        return value
    return TypeAdapter(wanted).validate_json(text)
