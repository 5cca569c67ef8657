"""A state of any schema, read by declared keys."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from langchain_core.messages import BaseMessage
from pydantic import BaseModel

from rfx_agent.adapters.graph.place import Place
from rfx_agent.adapters.graph.updates import Answer
from rfx_agent.adapters.texts import step_of, told
from rfx_agent.errors import ConfigError
from rfx_agent.records import Step

__all__ = ["Keys", "Reading", "no_key", "read"]

Reading: TypeAlias = str | Callable[[Any], Any]
"""A key of the state, or a function of the state."""
_BARE = (str, int, float, list, tuple, BaseMessage)


@dataclass(frozen=True, slots=True)
class Keys:
    """Where in the state the step is, and where its answer and outcome go.

    Attributes:
        prompt: the prompt: text, messages or a ``Step``.
        answer: the key that holds the answer: text, an object, a message, or a list of which it is the last.
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

    def unknown(self, place: Place, state: Any) -> list[tuple[str, str]]:
        """The parameters, with their keys, that name no key of the graph that runs; none where that is not known.

        What is read may also be in ``state`` alone, as in what a ``Send`` brings.
        """
        read = (("prompt", self.prompt), ("expected", self.expected))
        has = state if isinstance(state, Mapping) else ()
        here = [x for x in read if isinstance(x[1], str) and x[1] not in has]
        given = [("answer", self.answer), ("outcome", self.outcome), *here]
        return [(name, key) for name, key in given if isinstance(key, str) and not place.knows(key)]

    @property
    def named(self) -> tuple[str, ...]:
        """Every key of the state that is declared by name."""
        given = (self.prompt, self.answer, self.expected, self.outcome)
        return tuple(dict.fromkeys(key for key in given if isinstance(key, str)))

    def step(self, state: Any, node: str, answer: Answer | None = None) -> Step:
        """The step that ``state`` asks at ``node``, which names it and is its task unless it has its own.

        ``answer`` is left out of the prompt where it stands among its messages.
        """
        value = read(state, self.prompt)
        if value is None:
            raise ConfigError(f"recovery: prompt {self.prompt!r} is None in the state; there is no step to recover")
        if isinstance(value, Step):
            step = value if value.task else replace(value, task=node)
        else:
            if self.prompt == self.answer and answer is not None and answer.at is not None:
                value = list(value)[: answer.at]
            step = step_of(value)
            step = replace(step, id=f"{node}:{step.id}", task=node)
        if self.expected is None:
            return step
        return replace(step, expected=read(state, self.expected))

    def told(self, state: Any, addition: str) -> Any:
        """``state`` with ``addition`` behind its prompt; None where nothing tells where the prompt is."""
        if isinstance(self.prompt, str):
            changed = told(read(state, self.prompt), addition)
            return changed if changed is None or isinstance(state, _BARE) else _with(state, {self.prompt: changed})
        if not isinstance(state, Mapping):
            return None
        return told(state, addition, self.step(state, "").messages[-1].get("content"))


def _with(state: Any, entries: dict[str, Any]) -> Any:
    if isinstance(state, Mapping):
        return {**state, **entries}
    return state.model_copy(update=entries) if isinstance(state, BaseModel) else replace(state, **entries)


def read(state: Any, key: Reading) -> Any:
    """The value of ``key`` in ``state``, a mapping or an object; None where it has none. A bare value is its own."""
    if not isinstance(key, str):
        return key(state)
    if isinstance(state, Mapping):
        return state.get(key)
    return state if isinstance(state, _BARE) else getattr(state, key, None)


def no_key(who: str, parameter: str, key: str, keys: list[str]) -> ConfigError:
    """What to raise where ``key`` is none of the state's ``keys``."""
    near = difflib.get_close_matches(key, keys, n=1)
    remedy = f"do you mean {parameter}={near[0]!r}?" if near else f"give {parameter}=, one of them"
    has = ", ".join(keys) or "no keys"
    return ConfigError(
        f"{who}: {parameter} is {key!r}, and the state of the graph has no such key: it has {has}; {remedy}"
    )
