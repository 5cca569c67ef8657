"""Where a node runs: the graph's channels, how each takes an update, and the node's own name in the graph."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Annotated, Any, NotRequired, Required, get_args, get_origin

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.channels import BinaryOperatorAggregate, DeltaChannel, Topic
from langgraph.graph.message import add_messages

__all__ = ["ROOT", "Form", "Place", "form_of", "from_the_top", "saved"]

ROOT = "__root__"
"""LangGraph's key of a state that is one value."""

# LangGraph's own keys in a config. Where a version names them otherwise, nothing is known of the graph.
_READ = "__pregel_read"
_SCRATCHPAD = "__pregel_scratchpad"
_CHECKPOINTER = "__pregel_checkpointer"
_PUSH = "__pregel_push"
_DELTA_MESSAGES = "_messages_delta_reducer"


@dataclass(frozen=True, slots=True)
class Form:
    """How a key of a state takes an update; None where that is not known.

    Attributes:
        messages: whether the key holds messages that are merged by their ids.
        adds: whether a reducer adds an update to what is there.
        type: what the key is annotated with.
        collects: whether what was written once cannot be replaced.
    """

    messages: bool | None = None
    adds: bool | None = None
    type: Any = None
    collects: bool = False


def form_of(channel: Any) -> Form:
    """The form of the key behind ``channel``, LangGraph's or somebody's own."""
    kind = _bare(getattr(channel, "typ", None))
    if isinstance(channel, BinaryOperatorAggregate):
        return Form(_merges(channel.operator), True, kind)
    if isinstance(channel, DeltaChannel):
        return Form(getattr(channel.reducer, "__name__", "") == _DELTA_MESSAGES, True, kind)
    if isinstance(channel, Topic):
        return Form(False, True, None, collects=True)
    return Form(False, False, kind)


def _merges(operator: Any) -> bool:
    while isinstance(operator, functools.partial):
        operator = operator.func
    return operator is add_messages or getattr(operator, "__qualname__", "").startswith("_add_messages_wrapper.")


def _bare(kind: Any) -> Any:
    while get_origin(kind) in (Annotated, Required, NotRequired):
        kind = get_args(kind)[0]
    return kind


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node runs.

    Attributes:
        channels: the graph's channels by key; None where they cannot be seen, as outside of a graph.
        managed: keys that LangGraph itself keeps.
        node: the node's name in the graph, or "".
        nested: whether the graph is a node of another one.
    """

    channels: Mapping[str, Any] | None = None
    managed: Mapping[str, Any] | tuple[()] = ()
    node: str = ""
    nested: bool = False

    @classmethod
    def of(cls, state: Any, config: RunnableConfig | None = None) -> Place:
        """The place of the node that was given ``state`` under ``config``, by default the one that is active here.

        A function with recovery may also be called inside of some node, on a state of its own: then nothing is known.
        """
        config = config or var_child_runnable_config.get() or {}
        settings, told = config.get("configurable") or {}, config.get("metadata") or {}
        # LangGraph's ToolNode finds the channels in the same place.
        parts: tuple[Any, ...] = getattr(settings.get(_READ), "args", ())
        node, nested = str(told.get("langgraph_node") or ""), "|" in str(settings.get("checkpoint_ns") or "")
        if len(parts) < 3 or not isinstance(parts[1], Mapping):
            return cls(node=node, nested=nested)
        place = cls(parts[1], parts[2] if isinstance(parts[2], Mapping) else (), node, nested)
        sent = _PUSH in (told.get("langgraph_path") or ())
        foreign = isinstance(state, Mapping) and bool(state) and not any(map(place.knows, state))
        return cls(node=node) if not (place.root or place.keys) or (foreign and not sent) else place

    @property
    def root(self) -> bool:
        """Whether the state is one value without keys."""
        return self.channels is not None and ROOT in self.channels

    def knows(self, key: str) -> bool:
        """Whether the state has ``key``, or nothing is known of its keys."""
        return self.channels is None or self.root or key in self.channels or key in self.managed

    def form(self, key: str) -> Form:
        """How ``key`` takes an update."""
        channel = None if self.channels is None else self.channels.get(ROOT if self.root else key)
        return Form() if channel is None else form_of(channel)

    @property
    def keys(self) -> list[str]:
        """The keys of the state, for messages."""
        return sorted(key for key in self.channels or () if not key.startswith("__") and ":" not in key)


def saved(config: RunnableConfig | None = None) -> bool | None:
    """Whether the graph that runs keeps checkpoints, itself or by its parent; None where that cannot be seen."""
    settings = (config or var_child_runnable_config.get() or {}).get("configurable") or {}
    return settings[_CHECKPOINTER] is not None if _CHECKPOINTER in settings else None


def from_the_top(config: RunnableConfig) -> RunnableConfig:
    """``config`` for one more run of the node: its interrupts get the answers again that the task has already."""
    settings = config.get("configurable") or {}
    pad = settings.get(_SCRATCHPAD)
    if not is_dataclass(pad) or isinstance(pad, type) or not hasattr(pad, "interrupt_counter"):
        return config
    fresh = replace(pad, interrupt_counter=itertools.count().__next__)
    return {**config, "configurable": {**settings, _SCRATCHPAD: fresh}}
