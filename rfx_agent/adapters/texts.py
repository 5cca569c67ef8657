"""What goes into and comes out of a chain, a node or an agent, as text, as a step and as an object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from langchain_core.messages import BaseMessage, convert_to_messages, convert_to_openai_messages
from langchain_core.prompt_values import PromptValue
from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_json

from rfx_agent.records import Step

__all__ = ["as_text", "restored", "step_of"]


def as_text(value: Any) -> str:
    """What a verifier reads of a chain's input or output: text as it is, a message's text, anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, BaseMessage):
        return str(value.text)
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    return to_json(value, fallback=str).decode()


def step_of(value: Any) -> Step:
    """The step that a chain's input asks: its messages where it has some, else the input as text."""
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
        return Step.of([dict(m) for m in convert_to_openai_messages(messages)])
    return Step.of(as_text(value))


def _messages(value: Any) -> list[BaseMessage] | None:
    """``value`` as messages, in any of the forms that chat models take in a list; None if it is no such list."""
    if isinstance(value, BaseMessage):
        return [value]
    if not isinstance(value, list) or not all(_is_message(m) for m in value):
        return None
    return convert_to_messages(value)


def _is_message(item: Any) -> bool:
    if isinstance(item, tuple):
        return len(item) == 2 and all(isinstance(part, str) for part in item)
    return isinstance(item, BaseMessage) or (isinstance(item, Mapping) and {"role", "content"} <= set(item))


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
