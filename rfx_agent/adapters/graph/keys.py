"""A state of any schema and a node's update of any form, read and written by declared keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, TypeAlias

from langchain_core.messages import AIMessage, convert_to_messages
from langgraph.types import Command
from pydantic import BaseModel

from rfx_agent.adapters.texts import spoken, step_of, told
from rfx_agent.errors import ConfigError
from rfx_agent.records import Step

__all__ = ["Answer", "Keys", "Reading", "answer_in", "located", "put", "read", "replaced"]

Reading: TypeAlias = str | Callable[[Any], Any]
"""A key of the state, or a function of the state."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer that a key holds.

    Attributes:
        text: what a verifier reads.
        message: the message it is the text of, or None where the key holds plain text.
        at: index of that message in the key's list, or None.
    """

    text: str
    message: AIMessage | None = None
    at: int | None = None


@dataclass(frozen=True, slots=True)
class Keys:
    """Where in the state the step is, and where its answer and outcome go.

    Attributes:
        prompt: the prompt: text, messages or a ``Step``.
        answer: the key that holds the answer: text, a message, or a list whose last AI message it is.
        expected: what the verifier compares with, or None.
        outcome: the key that takes the ``Outcome``, as ``rfx_agent.codec.plain`` writes it, or None.
    """

    prompt: Reading
    answer: str
    expected: Reading | None = None
    outcome: str | None = None

    def check(self, where: str) -> None:
        """Raise ``ConfigError`` on what can be no key."""
        readings = (("prompt", self.prompt), ("expected", self.expected))
        for name, value in readings:
            if not (callable(value) or (isinstance(value, str) and value) or (value is None and name == "expected")):
                raise ConfigError(f"{where}: {name} is {value!r}; give a key of the state or a function of the state")
        for name, key in (("answer", self.answer), ("outcome", self.outcome)):
            if not ((isinstance(key, str) and key) or (key is None and name == "outcome")):
                raise ConfigError(f"{where}: {name} is {key!r}; give a key of the state")

    @property
    def named(self) -> tuple[str, ...]:
        """Every key of the state that is declared by name."""
        given = (self.prompt, self.answer, self.expected, self.outcome)
        return tuple(dict.fromkeys(key for key in given if isinstance(key, str)))

    def step(self, state: Any, answer: Answer | None = None) -> Step:
        """The step that ``state`` asks. ``answer`` is left out of the prompt where it stands among its messages."""
        value = read(state, self.prompt)
        if value is None:
            raise ConfigError(f"recovery: prompt {self.prompt!r} is None in the state; there is no step to recover")
        if isinstance(value, Step):
            step = value
        else:
            if self.prompt == self.answer and answer is not None and answer.at is not None:
                value = list(value)[: answer.at]
            step = step_of(value)
        if self.expected is None:
            return step
        return replace(step, expected=read(state, self.expected))

    def told(self, state: Any, addition: str) -> Any:
        """``state`` with ``addition`` behind its prompt; None where nothing tells where the prompt is."""
        if isinstance(self.prompt, str):
            changed = told(read(state, self.prompt), addition)
            return None if changed is None else _with(state, {self.prompt: changed})
        if not isinstance(state, Mapping):
            return None
        return told(state, addition, self.step(state).messages[-1].get("content"))


def _with(state: Any, entries: dict[str, Any]) -> Any:
    if isinstance(state, Mapping):
        return {**state, **entries}
    return state.model_copy(update=entries) if isinstance(state, BaseModel) else replace(state, **entries)


def read(state: Any, key: Reading) -> Any:
    """The value of ``key`` in ``state``, a mapping or an object; None where it has none."""
    if not isinstance(key, str):
        return key(state)
    return state.get(key) if isinstance(state, Mapping) else getattr(state, key, None)


def answer_in(value: Any) -> Answer | None:
    """The answer that a key holds; None where it holds none: nothing, no AI message, or one that calls tools.

    Raises:
        ConfigError: a value that is neither text nor messages.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return Answer(value)
    given = value if isinstance(value, list) else [value]
    for at in range(len(given) - 1, -1, -1):
        try:
            (message,) = convert_to_messages([given[at]])
        except (NotImplementedError, ValueError, TypeError) as error:
            raise ConfigError(
                f"recovery: the answer is a {type(value).__name__}; let its key hold text or messages"
            ) from error
        if isinstance(message, AIMessage):
            if message.tool_calls:
                return None  # the agent goes on
            return Answer(str(message.text), message, at if isinstance(value, list) else None)
    return None


def replaced(value: Any, answer: Answer, text: str) -> Any:
    """``value`` with what ``text`` says in the place of ``answer``, in the same form. A message keeps its id."""
    text = spoken(text)
    if answer.message is None:
        return text
    message = AIMessage(text, id=answer.message.id, name=answer.message.name)
    if answer.at is None:
        return message
    return [*value[: answer.at], message, *value[answer.at + 1 :]]


def located(output: Any, key: str) -> Any:
    """The value that a node's output has for ``key``, or None.

    Raises:
        ConfigError: an output that is no update of a state.
    """
    if output is None:
        return None
    if isinstance(output, Command):
        return located(output.update, key)
    if isinstance(output, Mapping):
        return output.get(key)
    if isinstance(output, (list, tuple)):
        if _pairs(output):
            return dict(output).get(key)
        return next((value for part in output if (value := located(part, key)) is not None), None)
    if isinstance(output, BaseModel) or is_dataclass(output):
        return getattr(output, key, None)
    raise ConfigError(f"recoverable: the node gave a {type(output).__name__}; let it return an update of the state")


def put(output: Any, key: str, entries: Mapping[str, Any]) -> Any:
    """A node's ``output`` with ``entries`` added, in the form that the node gave it.

    Args:
        output: an update: a mapping, a ``Command``, pairs, an object, or a list of several updates.
        key: in a list of several updates, the entries go into the one that has this key.
        entries: values by key of the state.
    """
    if output is None:
        return dict(entries)
    if isinstance(output, Command):
        return replace(output, update=put(output.update, key, entries))
    if isinstance(output, Mapping):
        return {**output, **entries}
    if isinstance(output, (list, tuple)):
        if _pairs(output):
            return [*(pair for pair in output if pair[0] not in entries), *entries.items()]
        parts = list(output)
        at = next(i for i, part in enumerate(parts) if located(part, key) is not None)
        return [*parts[:at], put(parts[at], key, entries), *parts[at + 1 :]]
    if isinstance(output, BaseModel):
        return output.model_copy(update=dict(entries))
    return replace(output, **entries)


def _pairs(output: Sequence[Any]) -> bool:
    return all(isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], str) for x in output)
