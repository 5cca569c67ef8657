"""Recovery in a graph that exists: around one of its nodes, or behind one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, Unpack, overload

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import set_config_context
from langgraph.errors import GraphInterrupt

from rfx_agent.adapters.attempts import (
    FAILURES,
    Again,
    Attempts,
    Made,
    Thing,
    checked_failures,
    in_context,
    response_id,
)
from rfx_agent.adapters.given import (
    OnUnresolved,
    Options,
    SamplerLike,
    ToolLike,
    VerifierLike,
    checked_unresolved,
    recovery_of,
)
from rfx_agent.adapters.graph.keys import Answer, Keys, Reading, answer_in, located, put, replaced
from rfx_agent.adapters.graph.source import Given, Source, streaming
from rfx_agent.budgets.step import RetryBudget
from rfx_agent.case import Case
from rfx_agent.checks import among
from rfx_agent.codec import plain
from rfx_agent.engine.drive import Flow, drive, drive_async
from rfx_agent.engine.nodes import judged, recover
from rfx_agent.engine.run import Run
from rfx_agent.errors import ConfigError, Unresolved
from rfx_agent.ports import Sampler
from rfx_agent.records import Rollout
from rfx_agent.recovery import Recovery
from rfx_agent.samplers.chat import rollout_of

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
    again means running the node again on the same state, so it must not change its input. What comes back is the
    update of the run that passed, whole, its ``Command``'s ``goto`` included; an answer that no run gave (a tool's)
    stands in the first run's update in the place of the failed one, in the same form.

    A node that gives no answer has not failed: no update, no AI message, or one that calls tools goes through as it
    is. Nothing here interrupts, because a resume would run the node again from its top; to ask a person, use
    ``add_recovery``, or an ``escalator``. A retry policy on the node should leave ``Unresolved`` out, or every retry
    starts over.

    Functions stay functions with their signature, coroutines coroutines, Runnables Runnables. Every event goes to
    LangGraph's custom stream and to the recovery's own hook.

    An exception of the node's own passes through, so that a retry policy of the node sees it; one of ``failures`` is a
    failed answer.

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
        answer: the key of the node's update that holds the answer: text, or messages, of which the last AI message
            is the answer.
        expected: the key of what the verifier compares with, or a function of the state.
        outcome: a key of the state that takes the outcome, as a dict with ``status``, for the edge behind the node to
            look at.
        on_unresolved: whether a failure that nothing rescued raises ``Unresolved``, or keeps the node's own update. By
            default it raises, unless there is an ``outcome`` key to tell it.
        failures: exceptions of the node that are failed answers, not a node out of order.
        resample: what is sampled again, the ``node`` or the recovery's ``model``, on the prompt alone.
        options: further parameters of ``Recovery``, such as ``remedies``, ``on_event`` or ``policy``.

    Raises:
        ConfigError: on parameters that cannot work; when the graph runs, an answer that is neither text nor messages.
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
    plan = _Plan(source, keys, resample == "node", returns, failures)
    make = functools.partial(_wrapped, plan=plan)
    return make if node is None else make(node)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The parameters of ``recoverable``, checked; ``again`` says whether the node is what is sampled again."""

    source: Source
    keys: Keys
    again: bool
    returns: bool
    failures: tuple[type[Exception], ...]


def _wrapped(node: Any, *, plan: _Plan) -> Any:
    if isinstance(node, Runnable):
        return RecoverableNode(node, plan)
    call = getattr(node, "__call__", None)  # noqa: B004  # an object may have an async one
    if not callable(node) or inspect.isgeneratorfunction(node) or inspect.isasyncgenfunction(node):
        raise ConfigError(f"recoverable: node is {node!r}; give a function that returns an update, or a Runnable")
    name = str(getattr(node, "__name__", type(node).__name__))

    def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Callable[[RunnableConfig, Any], Any]]:
        """The state, and the node to be run again on it under another config."""

        def run(config: RunnableConfig, state: Any) -> Any:
            named = {**kwargs, "config": config} if "config" in kwargs else kwargs
            if args:
                return node(state, *args[1:], **named)
            return node(**{**named, next(iter(kwargs)): state})

        return args[0] if args else next(iter(kwargs.values())), run

    if inspect.iscoroutinefunction(node) or inspect.iscoroutinefunction(call):

        @functools.wraps(node)
        async def arun(*args: Any, **kwargs: Any) -> Any:
            output = await node(*args, **kwargs)
            state, again_ = given(args, kwargs)
            return await _arecovered(name, output, state, Rerun(None, again_ if plan.again else None), plan)

        return arun

    @functools.wraps(node)
    def run(*args: Any, **kwargs: Any) -> Any:
        output = node(*args, **kwargs)
        state, again_ = given(args, kwargs)
        return _recovered(name, output, state, Rerun(again_ if plan.again else None, None), plan)

    return run


class RecoverableNode(Runnable[Any, Any]):
    """What ``recoverable`` makes of a Runnable."""

    def __init__(self, node: Runnable[Any, Any], plan: _Plan) -> None:
        self.name = node.get_name()
        self._node, self._plan = node, plan

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002  # LangChain's name
        """The node's update for ``input``, recovered where it failed."""
        output = self._node.invoke(input, config, **kwargs)
        again = self._plan.again
        call = Rerun(lambda c, state: self._node.invoke(state, c, **kwargs), None) if again else Rerun(None, None)
        return _recovered(self.name or "", output, input, call, self._plan)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002  # LangChain's name
        """The same on the running event loop."""
        output = await self._node.ainvoke(input, config, **kwargs)
        again = self._plan.again
        call = Rerun(None, lambda c, state: self._node.ainvoke(state, c, **kwargs)) if again else Rerun(None, None)
        return await _arecovered(self.name or "", output, input, call, self._plan)


def _recovered(name: str, output: Any, state: Any, call: Rerun, plan: _Plan) -> Any:
    answer = answer_in(located(output, plan.keys.answer))
    if answer is None:
        return output
    return drive(_First(name, plan, output, answer, state, call).recovered(plan.source.get()))


async def _arecovered(name: str, output: Any, state: Any, call: Rerun, plan: _Plan) -> Any:
    answer = answer_in(located(output, plan.keys.answer))
    if answer is None:
        return output
    return await drive_async(_First(name, plan, output, answer, state, call).recovered(await plan.source.aget()))


@dataclass(frozen=True, slots=True)
class Rerun:
    """A node, to be run again under another config, on the state that it was given or a revised one."""

    run: Callable[[RunnableConfig, Any], Any] | None
    arun: Callable[[RunnableConfig, Any], Awaitable[Any]] | None


class NodeAgain(Thing):
    """The node as a thing that can be run again, on the same state."""

    def __init__(self, name: str, call: Rerun, keys: Keys, state: Any, model: Sampler | None) -> None:
        self.name = name
        self._call, self._keys, self._state, self._model = call, keys, state, model
        self.takes_revision = keys.told(state, "") is not None

    def _given(self, again: Again) -> Any:
        addition = again.request.revision
        return self._state if addition is None else self._keys.told(self._state, addition)

    def driver(self) -> Sampler | None:
        """The recovery's own sampler."""
        return self._model

    def run(self, again: Again) -> Any:
        """One more run of the node."""
        assert self._call.run is not None  # noqa: S101  # a sync node is driven by sync code
        config = again.config(sync=True)
        with set_config_context(config) as context:
            return context.run(self._call.run, config, self._given(again))

    async def arun(self, again: Again) -> Any:
        """The same on the running event loop."""
        assert self._call.arun is not None  # noqa: S101  # an async node is driven by async code
        config = again.config(sync=False)
        with set_config_context(config) as context:
            return await in_context(_awaited(self._call.arun, config, self._given(again)), context)

    def tried(self, again: Again) -> Made:
        """One more run. An interrupt in it is refused: a resume would run the node, and all it paid, from its top."""
        try:
            return super().tried(again)
        except GraphInterrupt:
            return self.failed(self._interrupted(), again)

    async def atried(self, again: Again) -> Made:
        """The same on the running event loop."""
        try:
            return await super().atried(again)
        except GraphInterrupt:
            return self.failed(self._interrupted(), again)

    def made(self, output: Any, again: Again) -> Made:
        """A run's update of the state; no draw where it has no answer."""
        answer, usage = answer_in(located(output, self._keys.answer)), again.reported.usage()
        if answer is None:
            return Made(output=output, usage=usage)
        return Made(replace(rollout_in(answer), usage=usage), output, usage=usage)

    def _interrupted(self) -> ConfigError:
        return ConfigError(
            f"recoverable: {self.name} asked for an interrupt in a further attempt; put the interrupt into a node "
            "of its own"
        )


def rollout_in(answer: Answer) -> Rollout:
    """The node's answer as a rollout."""
    return Rollout(answer.text, id="r0") if answer.message is None else rollout_of(answer.message, name="r0")


async def _awaited(run: Callable[[RunnableConfig, Any], Awaitable[Any]], config: RunnableConfig, state: Any) -> Any:
    return await run(config, state)


@dataclass(frozen=True, slots=True)
class _First:
    """A node's first output that has an answer, and what it takes to recover it."""

    name: str
    plan: _Plan
    output: Any
    answer: Answer
    state: Any
    call: Rerun

    def recovered(self, recovery: Recovery) -> Flow[Any]:
        """The update to give: the first one where it passes, else what recovery came to.

        A pass that no hook watches costs the verdict alone; the stream is told of what failed.
        """
        run = Run.of(recovery, on_event=streaming(recovery))
        candidate = rollout_in(self.answer)
        candidate = replace(candidate, response_id=candidate.response_id or response_id(1))
        keys = self.plan.keys
        first = yield from judged(run, keys.step(self.state), candidate)
        if keys.outcome is None and first.let_through(run):
            return self.output
        attempts = Attempts(NodeAgain(self.name, self.call, keys, self.state, recovery.sampler))
        attempts.first(Made(candidate, self.output))
        if self.call.run is not None or self.call.arun is not None:
            run = replace(run, sampler=attempts)
        return self._update((yield from recover(run, (yield from first.opened(run)))), attempts)

    def _update(self, case: Case, attempts: Attempts) -> Any:
        outcome = case.outcome
        assert outcome is not None  # noqa: S101  # recover gives one
        keys, output = self.plan.keys, self.output
        key = keys.answer
        record = {} if keys.outcome is None else {keys.outcome: plain(outcome)}
        if not outcome.ok or outcome.text is None:
            if not self.plan.returns:
                raise Unresolved(outcome.sentence, case=case)
        elif outcome.status != "accepted":
            same = [x for x in case.rollouts if x.text == outcome.text and x.response_id in attempts.outputs]
            if same:
                output = attempts.outputs[max(same, key=lambda x: x.passed).response_id or ""]
            else:
                output = put(output, key, {key: replaced(located(output, key), self.answer, outcome.text)})
        return put(output, key, record) if record else output
