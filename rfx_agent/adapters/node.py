"""Recovery in a graph that exists: around one of its nodes, or behind one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

from langchain_core.runnables import Runnable, RunnableConfig

from rfx_agent._errors import ConfigError, Unresolved
from rfx_agent.adapters._graph.behind import add_recovery
from rfx_agent.adapters._graph.draws import Call, NodeDraws
from rfx_agent.adapters._graph.source import Given, Source, streamed
from rfx_agent.adapters._graph.state import Answer, Keys, Reading, answer_in, located, put, replaced
from rfx_agent.adapters._passing import asked, free, passed, unseen
from rfx_agent.case import Case, encode
from rfx_agent.engine import Flow, Recovery, drive, drive_async, recover, resumed

__all__ = ["add_recovery", "recoverable"]

Node = TypeVar("Node")
Resample = Literal["node", "model"]


@overload
def recoverable(
    node: Node,
    *,
    recovery: Given,
    prompt: Reading = "messages",
    answer: str = "messages",
    reference: Reading | None = None,
    outcome: str | None = None,
    resample: Resample = "node",
) -> Node: ...


@overload
def recoverable(
    node: None = None,
    *,
    recovery: Given,
    prompt: Reading = "messages",
    answer: str = "messages",
    reference: Reading | None = None,
    outcome: str | None = None,
    resample: Resample = "node",
) -> Callable[[Node], Node]: ...


def recoverable(
    node: Any = None,
    *,
    recovery: Given,
    prompt: Reading = "messages",
    answer: str = "messages",
    reference: Reading | None = None,
    outcome: str | None = None,
    resample: Resample = "node",
) -> Any:
    """``node`` of a ``StateGraph`` with recovery behind it: its answer is verified, and recovered where it fails.

    The node's own run asks no budget. A run that failed is diagnosed and routed like any other failure; sampling
    again means running the node again on the same state, so it must not change its input. What comes back is the
    update of the run that passed, whole, its ``Command``'s ``goto`` included; an answer that no run gave (a tool's)
    stands in the first run's update in the place of the failed one, in the same form.

    A node that gives no answer has not failed: no update, no AI message, or one that calls tools goes through as it
    is. Nothing here interrupts, because a resume would run the node again from its top; to ask a person, use
    ``add_recovery``, or an ``escalator``. A retry policy on the node should leave ``Unresolved`` out, or every retry
    starts over.

    Functions stay functions with their signature, coroutines coroutines, Runnables Runnables. Every event goes to
    LangGraph's custom stream and to the recovery's own hook.

    Args:
        node: a function, coroutine function or Runnable, as ``StateGraph.add_node`` takes them; None to decorate.
        recovery: what to verify and spend; its sampler drives the tool. Or a function that makes it of the run's
            context.
        prompt: the key of the state that holds the prompt (text or messages), or a function from the state to text,
            messages or a ``Step``.
        answer: the key of the node's update that holds the answer: text, or messages, of which the last AI message
            is the answer.
        reference: the key of what the verifier compares with, or a function of the state.
        outcome: a key of the state that takes the outcome, as a dict with ``status``, for the edge behind the node to
            look at. A failure that nothing rescued then keeps the node's own update instead of raising ``Unresolved``.
        resample: what is sampled again, the ``node`` or the recovery's ``model``, on the prompt alone.

    Raises:
        ConfigError: on parameters that cannot work; when the graph runs, an answer that is neither text nor messages.
        Unresolved: when the graph runs, if there is no answer that anybody vouches for and no ``outcome`` key.
    """
    keys = Keys(prompt, answer, reference, outcome)
    keys.check("recoverable")
    source = Source(recovery, where="recoverable", streams=False)
    if resample not in ("node", "model"):
        raise ConfigError(f"recoverable: resample is {resample!r}; give 'node' or 'model'")
    make = functools.partial(_wrapped, source=source, keys=keys, again=resample == "node")
    return make if node is None else make(node)


def _wrapped(node: Any, *, source: Source, keys: Keys, again: bool) -> Any:
    if isinstance(node, Runnable):
        return RecoverableNode(node, source, keys, again=again)
    call = getattr(node, "__call__", None)  # noqa: B004  # an object may have an async one
    if not callable(node) or inspect.isgeneratorfunction(node) or inspect.isasyncgenfunction(node):
        raise ConfigError(f"recoverable: node is {node!r}; give a function that returns an update, or a Runnable")
    name = str(getattr(node, "__name__", type(node).__name__))

    def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Callable[[RunnableConfig], Any]]:
        """The state, and the node to be run again on it under another config."""

        def run(config: RunnableConfig) -> Any:
            return node(*args, **({**kwargs, "config": config} if "config" in kwargs else kwargs))

        return args[0] if args else next(iter(kwargs.values())), run

    if inspect.iscoroutinefunction(node) or inspect.iscoroutinefunction(call):

        @functools.wraps(node)
        async def arun(*args: Any, **kwargs: Any) -> Any:
            output = await node(*args, **kwargs)
            state, again_ = given(args, kwargs)
            return await _arecovered(name, output, state, Call(None, again_ if again else None), source, keys)

        return arun

    @functools.wraps(node)
    def run(*args: Any, **kwargs: Any) -> Any:
        output = node(*args, **kwargs)
        state, again_ = given(args, kwargs)
        return _recovered(name, output, state, Call(again_ if again else None, None), source, keys)

    return run


class RecoverableNode(Runnable[Any, Any]):
    """What ``recoverable`` makes of a Runnable."""

    def __init__(self, node: Runnable[Any, Any], source: Source, keys: Keys, *, again: bool) -> None:
        self.name = node.get_name()
        self._node, self._source, self._keys, self._again = node, source, keys, again

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002  # LangChain's name
        """The node's update for ``input``, recovered where it failed."""
        output = self._node.invoke(input, config, **kwargs)
        call = Call(lambda c: self._node.invoke(input, c, **kwargs), None) if self._again else Call(None, None)
        return _recovered(self.name or "", output, input, call, self._source, self._keys)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002  # LangChain's name
        """The same on the running event loop."""
        output = await self._node.ainvoke(input, config, **kwargs)
        call = Call(None, lambda c: self._node.ainvoke(input, c, **kwargs)) if self._again else Call(None, None)
        return await _arecovered(self.name or "", output, input, call, self._source, self._keys)


def _recovered(name: str, output: Any, state: Any, call: Call, source: Source, keys: Keys) -> Any:
    answer = answer_in(located(output, keys.answer))
    if answer is None:
        return output
    return drive(_First(name, keys, output, answer, state, call).recovered(source.get()))


async def _arecovered(name: str, output: Any, state: Any, call: Call, source: Source, keys: Keys) -> Any:
    answer = answer_in(located(output, keys.answer))
    if answer is None:
        return output
    return await drive_async(_First(name, keys, output, answer, state, call).recovered(await source.aget()))


@dataclass(frozen=True, slots=True)
class _First:
    """A node's first output that has an answer, and what it takes to recover it."""

    name: str
    keys: Keys
    output: Any
    answer: Answer
    state: Any
    call: Call

    def recovered(self, r: Recovery) -> Flow[Any]:
        """The update to give: the first one where it passes, else what recovery came to.

        A pass that no hook watches costs the verdict alone; the stream is told of what failed.
        """
        step = self.keys.step(self.state)
        draws = NodeDraws(self.name, self.call, self.keys.answer, step, r.sampler)
        candidate, replies = draws.take(self.output, self.answer), None
        if free(r) and unseen(r):
            replies = yield from asked(r, step, candidate)
            if passed(replies) and self.keys.outcome is None:
                return self.output
        r = streamed(r)
        if self.call.run is not None or self.call.arun is not None:
            r = r.with_parts(sampler=draws)
        return self._update((yield from resumed(recover(r, r.start(step, candidate)), replies)), draws)

    def _update(self, case: Case, draws: NodeDraws) -> Any:
        outcome = case.outcome
        assert outcome is not None  # noqa: S101  # recover gives one
        key, output = self.keys.answer, self.output
        record = {} if self.keys.outcome is None else {self.keys.outcome: encode(outcome)}
        if not outcome.ok or outcome.text is None:
            if not record:
                raise Unresolved(outcome.sentence, case=case)
        elif outcome.status != "accepted":
            same = [x for x in case.rollouts if x.text == outcome.text and x.response_id in draws.outputs]
            if same:
                output = draws.outputs[max(same, key=lambda x: x.passed).response_id or ""]
            else:
                output = put(output, key, {key: replaced(located(output, key), self.answer, outcome.text)})
        return put(output, key, record) if record else output
