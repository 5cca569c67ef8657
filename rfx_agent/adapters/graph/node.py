"""Recovery around a node of a graph that exists."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Unpack, overload

from rfx_agent.adapters.attempts import FAILURES, checked_failures
from rfx_agent.adapters.given import (
    OnUnresolved,
    Options,
    SamplerLike,
    ToolLike,
    VerifierLike,
    checked_unresolved,
    recovery_of,
)
from rfx_agent.adapters.graph.keys import Keys, Reading
from rfx_agent.adapters.graph.source import Given, Source
from rfx_agent.adapters.graph.visit import Plan
from rfx_agent.adapters.graph.wrapped import wrapped
from rfx_agent.budgets.step import RetryBudget
from rfx_agent.checks import among
from rfx_agent.errors import ConfigError

__all__ = ["recoverable"]

Node = TypeVar("Node")
Resample = Literal["node", "model"]


@overload
def recoverable(
    node: Node,
    recovery: Given | None = None,
    *,
    verifier: VerifierLike | None = None,
    sampler: SamplerLike | None = None,
    tool: ToolLike | None = None,
    budget: RetryBudget | None = None,
    prompt: Reading = "messages",
    answer: str = "messages",
    expected: Reading | None = None,
    outcome: str | None = None,
    on_unresolved: OnUnresolved | None = None,
    failures: tuple[type[Exception], ...] = ...,
    resample: Resample = "node",
    **options: Unpack[Options],
) -> Node: ...


@overload
def recoverable(
    node: None = None,
    recovery: Given | None = None,
    *,
    verifier: VerifierLike | None = None,
    sampler: SamplerLike | None = None,
    tool: ToolLike | None = None,
    budget: RetryBudget | None = None,
    prompt: Reading = "messages",
    answer: str = "messages",
    expected: Reading | None = None,
    outcome: str | None = None,
    on_unresolved: OnUnresolved | None = None,
    failures: tuple[type[Exception], ...] = ...,
    resample: Resample = "node",
    **options: Unpack[Options],
) -> Callable[[Node], Node]: ...


def recoverable(
    node: Any = None,
    recovery: Given | None = None,
    *,
    verifier: VerifierLike | None = None,
    sampler: SamplerLike | None = None,
    tool: ToolLike | None = None,
    budget: RetryBudget | None = None,
    prompt: Reading = "messages",
    answer: str = "messages",
    expected: Reading | None = None,
    outcome: str | None = None,
    on_unresolved: OnUnresolved | None = None,
    failures: tuple[type[Exception], ...] = FAILURES,
    resample: Resample = "node",
    **options: Unpack[Options],
) -> Any:
    """``node`` of a ``StateGraph`` with recovery behind it: its answer is verified, and recovered where it fails.

    The node's own run asks no budget. A run that failed is diagnosed and routed like any other failure; sampling
    again means running the node again on the same state, so it must not change its input (a subgraph that is compiled
    with ``checkpointer=True`` remembers a failed run). What comes back is the update of the run that passed, whole, its
    ``Command``'s ``goto`` included; an answer that no run gave (a tool's) stands in the first run's update in the place
    of the failed one, in the same form.

    A node that gives no answer has not failed: no update, no AI message, or one that calls tools goes through as it
    is; a node that has never written its answer's key is told of in the log. A message that the state had already is no
    answer. Nothing here interrupts, because a resume would run the node again from its top; to ask a person, use
    ``add_recovery``, or an ``escalator``. An interrupt of the node's own is asked before the first run is judged, and
    further runs get the same reply. A retry policy on the node should leave ``Unresolved`` out, or every retry starts
    over.

    What can be a node stays what it is: functions, coroutines and generators with their signature, objects with their
    name, subgraphs visible. A generator's chunks are held until they are judged. Every event goes to LangGraph's custom
    stream and to the recovery's own hook; where a message that was streamed fails, ``rfx.retract`` names it.

    A step is named by the node and a digest of its prompt, and its ``task`` is the node's name.

    An exception of the node's own passes through, so that a retry policy of the node sees it; one of ``failures`` is a
    failed answer. Where nothing rescues it, ``Unresolved`` has it for its cause; under ``on_unresolved="return"`` it is
    raised itself, because there is no update to keep.

    Args:
        node: a function, coroutine function or Runnable, as ``StateGraph.add_node`` takes them; None to decorate.
        recovery: what to verify and spend; its sampler drives the tool. Or a function that makes it of the run's
            context. Or give ``verifier`` and what else differs from ``Recovery``'s defaults by name.
        verifier: judges the answer as text.
        sampler: the model that drives ``tool``, and that ``resample="model"`` samples.
        tool: what ``tool_verify`` runs.
        budget: caps on one run of the node.
        prompt: the key of the state that holds the prompt (text or messages), or a function from the state to text,
            messages or a ``Step``.
        answer: the key of the node's update that holds the answer: text; an object, judged by its JSON; messages, of
            which the last AI message is the answer; or a list with a reducer, whose last item is. ``Overwrite`` is
            looked into. Where the state is one value, that is the answer.
        expected: the key of what the verifier compares with, or a function of the state.
        outcome: a key of the state that takes the outcome, as a dict with ``status``, for the edge behind the node to
            look at.
        on_unresolved: whether a failure that nothing rescued raises ``Unresolved``, or keeps the node's own update. By
            default it raises, unless there is an ``outcome`` key to tell it.
        failures: exceptions of the node that are failed answers, not a node out of order.
        resample: what is sampled again, the ``node`` or the recovery's ``model``, on the prompt alone.
        options: further parameters of ``Recovery``, such as ``remedies``, ``on_event`` or ``policy``.

    Raises:
        ConfigError: on parameters that cannot work; when the graph runs, on a key that its state does not have.
        Unresolved: when the graph runs, if there is no answer that anybody vouches for, as ``on_unresolved`` says.
    """
    keys = Keys(prompt, answer, expected, outcome)
    keys.check("recoverable")
    named = {"verifier": verifier, "sampler": sampler, "tool": tool, "budget": budget}
    source = Source(recovery_of(recoverable, recovery, named, options, factory=True), where="recoverable")
    among("recoverable: resample", resample, ("node", "model"))
    if source.fixed is not None and source.fixed.sampler is None:
        if source.fixed.tool is not None:
            raise ConfigError("recoverable: the recovery has a tool and no sampler; give the model that is to drive it")
        if resample == "model":
            raise ConfigError("recoverable: resample is 'model' and there is no sampler; give sampler=")
    returns = outcome is not None
    if on_unresolved is not None:
        returns = checked_unresolved("recoverable", on_unresolved) == "return"
    checked_failures("recoverable", failures)
    plan = Plan(source, keys, resample == "node", returns, failures)
    make = functools.partial(wrapped, plan=plan)
    return make if node is None else make(node)
