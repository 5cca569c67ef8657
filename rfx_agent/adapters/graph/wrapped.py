"""A node of any kind with recovery behind it, still of that kind: LangGraph sees its name, its hints and its graph."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnableParallel
from langgraph.errors import ParentCommand
from langgraph.graph import StateGraph

from rfx_agent.adapters.graph.visit import Plan, Rerun, Visit
from rfx_agent.adapters.total import total
from rfx_agent.engine.drive import drive, drive_async
from rfx_agent.errors import ConfigError

__all__ = ["RecoverableNode", "wrapped"]


def wrapped(node: Any, *, plan: Plan) -> Any:
    """``node`` with recovery behind it.

    Raises:
        ConfigError: it is nothing that can be a node.
    """
    if isinstance(node, Runnable):
        return RecoverableNode(node, plan)
    if isinstance(node, dict):
        return RecoverableNode(RunnableParallel(node), plan)
    if isinstance(node, StateGraph):
        raise ConfigError("recoverable: node is a StateGraph that is not compiled; give graph.compile()")
    if not callable(node):
        raise ConfigError(f"recoverable: node is {node!r}; give a function that returns an update, or a Runnable")
    call = node if inspect.isroutine(node) else getattr(node, "__call__", node)  # noqa: B004  # an async one counts
    name = str(getattr(node, "__name__", type(node).__name__))
    if inspect.isasyncgenfunction(node) or inspect.isasyncgenfunction(call):
        made = _async_generator(node, name, plan)
    elif inspect.isgeneratorfunction(node):
        made = _generator(node, name, plan)
    elif inspect.iscoroutinefunction(node) or inspect.iscoroutinefunction(call):
        made = _coroutine(node, name, plan)
    else:
        made = _function(node, name, plan)
    if not inspect.isroutine(node):
        return _Object(node, made, name, call if inspect.ismethod(call) else made)
    functools.update_wrapper(made, node)
    made.__wrapped__ = getattr(node, "__wrapped__", node)  # LangGraph looks for subgraphs behind one wrapper
    return made


class _Object:
    """A callable object with recovery behind it. LangGraph reads its name and the hints of its ``__call__``."""

    def __init__(self, node: Any, made: Callable[..., Any], name: str, call: Any) -> None:
        self.__wrapped__, self._made, self.__name__ = node, made, name
        vars(self)["__call__"] = call  # what is read; the method is what is called

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._made(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__wrapped__, name)


def _visit(name: str, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any], again: Any, *, sync: bool) -> Visit:
    """The visit of a call of the node; ``again`` makes an update of the arguments of a call."""

    def run(config: RunnableConfig, state: Any) -> Any:
        named = {**kwargs, "config": config} if "config" in kwargs else kwargs
        if args:
            return again(state, *args[1:], **named)
        return again(**{**named, next(iter(kwargs)): state})

    state = args[0] if args else next(iter(kwargs.values()), None)
    return Visit(name, plan, state, Rerun(run=run) if sync else Rerun(arun=run))


def _function(node: Callable[..., Any], name: str, plan: Plan) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        visit = _visit(name, plan, args, kwargs, node, sync=True)
        try:
            output = node(*args, **kwargs)
        except plan.failures as error:
            return drive(visit.failed(error, plan.source.get()))
        if isinstance(output, Runnable):  # LangGraph runs it in the node's place
            return RecoverableNode(output, plan)
        return _recovered(visit, output)

    return run


def _coroutine(node: Callable[..., Any], name: str, plan: Plan) -> Any:
    async def run(*args: Any, **kwargs: Any) -> Any:
        visit = _visit(name, plan, args, kwargs, node, sync=False)
        try:
            output = await node(*args, **kwargs)
        except plan.failures as error:
            return await drive_async(visit.failed(error, await plan.source.aget()))
        if isinstance(output, Runnable):
            return RecoverableNode(output, plan)
        return await _arecovered(visit, output)

    return run


def _generator(node: Callable[..., Iterator[Any]], name: str, plan: Plan) -> Any:
    def again(*args: Any, **kwargs: Any) -> Any:
        return total(list(node(*args, **kwargs)))

    def run(*args: Any, **kwargs: Any) -> Iterator[Any]:
        visit = _visit(name, plan, args, kwargs, again, sync=True)
        try:
            chunks = list(node(*args, **kwargs))
        except plan.failures as error:
            yield drive(visit.failed(error, plan.source.get()))
            return
        output = total(chunks)
        made = _recovered(visit, output)
        yield from chunks if made is output else [made]

    return run


def _async_generator(node: Callable[..., AsyncIterator[Any]], name: str, plan: Plan) -> Any:
    async def again(*args: Any, **kwargs: Any) -> Any:
        return total([chunk async for chunk in node(*args, **kwargs)])

    async def run(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        visit = _visit(name, plan, args, kwargs, again, sync=False)
        try:
            chunks = [chunk async for chunk in node(*args, **kwargs)]
        except plan.failures as error:
            yield await drive_async(visit.failed(error, await plan.source.aget()))
            return
        output = total(chunks)
        made = await _arecovered(visit, output)
        for chunk in chunks if made is output else [made]:
            yield chunk

    return run


class RecoverableNode(RunnableLambda[Any, Any]):
    """What ``recoverable`` makes of a Runnable. LangGraph looks for a subgraph in a ``RunnableLambda``'s ``deps``."""

    def __init__(self, node: Runnable[Any, Any], plan: Plan) -> None:
        super().__init__(self.invoke, self.ainvoke, name=node.get_name())
        self._node, self._plan = node, plan
        self.deps = [node]

    stream, astream = Runnable.stream, Runnable.astream
    transform, atransform = Runnable.transform, Runnable.atransform

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002  # LangChain's name
        """The node's update for ``input``, recovered where it failed."""
        call = Rerun(run=lambda again, state: self._node.invoke(state, again, **kwargs))
        visit = Visit(self.name or "", self._plan, input, call, config)
        try:
            output = self._node.invoke(input, config, **kwargs)
        except self._plan.failures as error:
            return drive(visit.failed(error, self._plan.source.get()))
        except ParentCommand:
            visit.left()
            raise
        return _recovered(visit, output)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002  # LangChain's name
        """Do what ``invoke`` does, without blocking the event loop."""
        call = Rerun(arun=lambda again, state: self._node.ainvoke(state, again, **kwargs))
        visit = Visit(self.name or "", self._plan, input, call, config)
        try:
            output = await self._node.ainvoke(input, config, **kwargs)
        except self._plan.failures as error:
            return await drive_async(visit.failed(error, await self._plan.source.aget()))
        except ParentCommand:
            visit.left()
            raise
        return await _arecovered(visit, output)


def _recovered(visit: Visit, output: Any) -> Any:
    answer = visit.looked(output)
    return output if answer is None else drive(visit.judged(output, answer, visit.plan.source.get()))


async def _arecovered(visit: Visit, output: Any) -> Any:
    answer = visit.looked(output)
    if answer is None:
        return output
    return await drive_async(visit.judged(output, answer, await visit.plan.source.aget()))
