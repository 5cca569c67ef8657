"""The answer in a node's update of any form: found, replaced, and put back in the form that it had."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, get_args, get_origin

from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from langgraph.types import Command, Overwrite
from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticUserError

from rfx_agent.adapters.graph.place import ROOT, Form
from rfx_agent.adapters.texts import as_text, flawed, restored, spoken, text_of
from rfx_agent.records import Verdict

__all__ = ["Answer", "answer_in", "fits", "located", "made_of", "put", "replaced", "written"]

_OVERWRITE = "__overwrite__"
_SCALARS = (str, int, float, bool, bytes, type(None))


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer that a key holds.

    Attributes:
        text: what a verifier reads.
        message: the message it is the text of, or None where the key holds something else.
        at: its index in the key's list, or None.
        value: the answer itself: text, a message, or an object.
        record: whether the message is a mapping, and stays one.
    """

    text: str
    message: AIMessage | None = None
    at: int | None = None
    value: Any = None
    record: bool = False


def answer_in(value: Any, form: Form = Form(), old: Any = None) -> Answer | None:  # noqa: B008  # a frozen value
    """The answer that a key holds; None where it holds none: nothing, no AI message, or one that calls tools.

    Text is an answer, and so is any object, which is judged by its JSON. Of a list of messages it is the last AI
    message; of another list the last item, or the whole list where the key has no reducer.

    Args:
        value: what a node wrote, or what the state has.
        form: how the graph merges an update into the key.
        old: what the state had before; a message that it had already is no answer to it.
    """
    value, _ = _opened(value)
    if value is None:
        return None
    message = _message(value)
    if message is not None or not isinstance(value, (list, tuple)):
        if message is None and form.messages and isinstance(value, str):
            return None  # add_messages takes a text for a person's
        return _read(value, message, None, form, old)
    if form.messages or any(_message(item) is not None for item in value):
        for at in range(len(value) - 1, -1, -1):
            message = _message(value[at])
            if isinstance(message, AIMessage):
                return _read(value[at], message, at, form, old)
        return None
    if not value:
        return None
    if form.adds is False:
        return Answer(_text(value), value=value)
    return _read(value[-1], None, len(value) - 1, form, old)


def _read(item: Any, message: BaseMessage | None, at: int | None, form: Form, old: Any) -> Answer | None:
    if message is None:
        return None if item is None else Answer(_text(item), None, at, item)
    if not isinstance(message, AIMessage) or message.tool_calls or _seen(message, old):
        return None  # the agent goes on, or the node said nothing new
    record = form.messages is False and isinstance(item, Mapping)
    return Answer(text_of(message), message, at, item, record)


def _text(value: Any) -> str:
    try:
        return as_text(value)
    except ValueError:  # bytes that are no text
        return str(value)


def _seen(message: AIMessage, old: Any) -> bool:
    if not isinstance(old, (list, tuple)):
        return old is message
    return any(
        m is message or (m.id is not None and m.id == message.id and m.content == message.content)
        for m in old
        if isinstance(m, AIMessage)
    )


def _message(item: Any) -> BaseMessage | None:
    """``item`` as a message, in any of the forms that a list of messages takes; None where it is none."""
    if isinstance(item, BaseMessage):
        return item
    pair = isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item)
    record = isinstance(item, Mapping) and "content" in item and ("role" in item or "type" in item)
    if not pair and not record:
        return None
    try:
        (message,) = convert_to_messages([item])
    except (NotImplementedError, ValueError, TypeError, KeyError):
        return None
    return message


def _opened(value: Any) -> tuple[Any, Callable[[Any], Any]]:
    """What an update overwrites with, and what puts it back; any other value as it is."""
    if isinstance(value, Overwrite):
        return value.value, Overwrite
    if isinstance(value, Mapping):
        if set(value) == {_OVERWRITE}:
            return value[_OVERWRITE], lambda made: {_OVERWRITE: made}
        if value.get("type") == _OVERWRITE and "value" in value:
            return value["value"], lambda made: {**value, "value": made}
    return value, lambda made: made


def replaced(value: Any, answer: Answer, text: str) -> Any:
    """``value`` with what ``text`` says in the place of ``answer``, in the same form. A message keeps its id.

    Raises:
        ValueError: the answer is an object, and ``text`` is none of its kind.
    """
    value, closed = _opened(value)
    made = _formed(answer, spoken(text))
    if answer.at is None:
        return closed(made)
    items = [*value[: answer.at], made, *value[answer.at + 1 :]]
    return closed(tuple(items) if isinstance(value, tuple) else items)


def _formed(answer: Answer, text: str) -> Any:
    if answer.record:
        return {**answer.value, "content": text}
    if answer.message is not None:
        return AIMessage(text, id=answer.message.id, name=answer.message.name)
    if isinstance(answer.value, str):
        return text
    return _of_kind(text, answer.value, type(answer.value))


def _of_kind(text: str, like: Any, kind: Any) -> Any:
    if isinstance(like, (BaseModel, Mapping)) or is_dataclass(like):
        return restored(text, like=like)
    try:
        return TypeAdapter(kind).validate_json(text)
    except PydanticUserError as error:
        raise ValueError(f"nothing makes a {getattr(kind, '__name__', kind)} of a text") from error


def made_of(text: str, form: Form, old: Any) -> Any:
    """A value for a key that no run has written, made of ``text``.

    Args:
        text: the answer.
        form: how the graph merges an update into the key.
        old: what the state has under the key.

    Raises:
        ValueError: the key holds objects, and ``text`` is none.
    """
    text = spoken(text)
    if form.messages:
        return [AIMessage(text)]
    if isinstance(old, list) and old and all(isinstance(m, BaseMessage) for m in old):
        return [AIMessage(text)] if form.adds else [*old, AIMessage(text)]
    kind = form.type
    if form.adds and get_origin(kind) in (list, Sequence):
        (item,) = get_args(kind) or (str,)
        return [text if item in (str, Any) else _of_kind(text, None, item)]
    if kind in (None, Any, str) or not (isinstance(kind, type) or get_origin(kind)):
        return text
    if isinstance(kind, type) and issubclass(kind, BaseMessage):
        return AIMessage(text)
    return text if str in get_args(kind) else _of_kind(text, None, kind)


def fits(answer: Answer | None, form: Form, old: Any) -> Callable[[str], Verdict | None]:
    """Tells why a text that no run gave cannot stand in the place of ``answer``, for ``Shield``."""

    def flaw(text: str) -> Verdict | None:
        try:
            made_of(text, form, old) if answer is None else _formed(answer, spoken(text))
        except ValueError as error:
            return flawed(error, "it does not fit the key")
        return None

    return flaw


def written(value: Any, answer: Answer, text: str, form: Form) -> Any:
    """An update of a state that has ``value`` under a key already, so that ``text`` takes the answer's place.

    Raises:
        ValueError: the answer is an object, and ``text`` is none of its kind.
    """
    made = replaced(value, answer, text)
    if not form.adds:
        return made
    if form.messages and answer.message is not None and answer.at is not None:
        return [made[answer.at]]  # which is merged by its id
    return Overwrite(made)


def located(output: Any, key: str, *, root: bool = False) -> Any:
    """The value that a node's output has for ``key``, or None.

    Args:
        output: a mapping, a ``Command``, pairs, an object, or a list of several of them.
        key: of the state.
        root: whether the state is one value; then an output without keys is that value.
    """
    if output is None:
        return None
    if isinstance(output, Command):
        return located(output.update, key, root=root)
    if isinstance(output, Mapping) and not (root and _message(output)):
        return output.get(key)
    if isinstance(output, (list, tuple)) and output:
        if _pairs(output, root=root):
            return dict(output).get(ROOT if root else key)
        if any(isinstance(part, Command) for part in output):
            return next((x for part in output if (x := located(part, key, root=root)) is not None), None)
    if root:
        return output
    return getattr(output, key, None) if _has_fields(output) else None


def put(output: Any, key: str, entries: Mapping[str, Any], *, root: bool = False) -> Any:
    """A node's ``output`` with ``entries`` added, in the form that the node gave it.

    Args:
        output: as ``located`` takes it.
        key: in a list of several updates, the entries go into the one that has this key.
        entries: values by key of the state.
        root: whether the state is one value; then the entry of ``key`` is all of it.
    """
    if output is None:
        return entries[key] if root and key in entries else dict(entries)
    if isinstance(output, Command):
        return replace(output, update=put(output.update, key, entries, root=root))
    if isinstance(output, Mapping) and not (root and _message(output)):
        return {**output, **entries}
    if isinstance(output, (list, tuple)) and output:
        if _pairs(output, root=root):
            named = {ROOT if root and name == key else name: value for name, value in entries.items()}
            return [*(pair for pair in output if pair[0] not in named), *named.items()]
        if any(isinstance(part, Command) for part in output):
            parts = list(output)
            at = next((i for i, part in enumerate(parts) if located(part, key, root=root) is not None), None)
            if at is None:
                return [*parts, Command(update=dict(entries))]
            return [*parts[:at], put(parts[at], key, entries, root=root), *parts[at + 1 :]]
    if root:
        return entries.get(key, output)
    if isinstance(output, BaseModel) and set(entries) <= set(type(output).model_fields):
        return output.model_copy(update=dict(entries))
    if all(hasattr(output, name) for name in entries):
        changed = copy.copy(output)
        for name, value in entries.items():
            object.__setattr__(changed, name, value)
        return changed
    return [output, Command(update=dict(entries))]


def _has_fields(output: Any) -> bool:
    return not isinstance(output, (*_SCALARS, list, tuple, BaseMessage)) and bool(
        isinstance(output, BaseModel) or getattr(type(output), "__annotations__", None)
    )


def _pairs(output: Sequence[Any], *, root: bool) -> bool:
    pairs = all(isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], str) for x in output)
    return pairs and (not root or output[0][0] == ROOT)
