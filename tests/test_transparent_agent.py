"""An always-pass middleware changes nothing that an agent does: each feature with it and without it, sync and async.

LangChain's own agent tests, run with such a middleware in every ``create_agent``, differ only where a structured
response cannot be parsed, which is a failed answer here (see the class's docstring).
"""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, NotRequired

import pytest
from langchain.agents import AgentState, create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    HumanInTheLoopMiddleware,
    ModelFallbackMiddleware,
    ModelRequest,
    SummarizationMiddleware,
    dynamic_prompt,
    hook_config,
    wrap_model_call,
)
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain.tools import InjectedState, ToolRuntime
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command
from pydantic import BaseModel
from test_middleware import ASKED, THREAD, Scripted, calls, model

from rfx_agent import FunctionVerifier, RecoverabilityMiddleware


class Answer(BaseModel):
    value: int


class State(AgentState[Any]):
    looked: NotRequired[int]


@tool
def look_up(key: str) -> str:
    """Look something up."""
    return f"value of {key}"


@tool(return_direct=True)
def direct(key: str) -> str:
    """Answer at once."""
    return f"directly {key}"


@tool
def injected(key: str, state: Annotated[dict[str, Any], InjectedState], runtime: ToolRuntime) -> str:
    """Read what is injected."""
    assert runtime.store is not None
    runtime.store.put(("seen",), key, {"messages": len(state["messages"])})
    runtime.stream_writer({"looking": key})
    return f"{key} of {len(state['messages'])}"


@tool
def counting(key: str, runtime: ToolRuntime) -> Command[Any]:
    """Change the state."""
    done = ToolMessage(f"counted {key}", tool_call_id=runtime.tool_call_id)
    return Command(update={"looked": 1, "messages": [done]})


@tool
def broken(key: str) -> str:
    """Break."""
    raise ConnectionError(key)


@dynamic_prompt
def prompted(request: ModelRequest[Any]) -> str:
    return f"You have seen {len(request.messages)}."


@wrap_model_call
def shouting(request: Any, handler: Any) -> Any:
    response = handler(request.override(messages=[*request.messages, HumanMessage("loud")]))
    response.result[-1].content = response.result[-1].content.upper()
    return response


class Once(AgentMiddleware[Any, Any, Any]):
    """Counts by hooks, and sends the agent round once more."""

    def before_agent(self, state: Any, runtime: Any) -> dict[str, Any]:
        return {"looked": 10}

    @hook_config(can_jump_to=["model"])
    def after_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        if state["looked"] > 10:
            return None
        return {"looked": 11, "messages": [HumanMessage("Again.")], "jump_to": "model"}


MODES: Any = ["values", "messages", "custom"]
Parts = dict[str, Any]
FEATURES: dict[str, tuple[Callable[[], list[Any]], Callable[[], Parts]]] = {
    "an answer": (lambda: ["42"], lambda: {"system_prompt": "Be brief.", "name": "solver"}),
    "parallel tools": (
        lambda: [calls("look_up", {"key": "a"}, {"key": "b"}), calls("look_up", {"key": "c"}), "42"],
        lambda: {"tools": [look_up]},
    ),
    "a direct tool": (lambda: [calls("direct", {"key": "a"})], lambda: {"tools": [direct, look_up]}),
    "injected state, store and writer": (
        lambda: [calls("injected", {"key": "a"}), "42"],
        lambda: {"tools": [injected], "store": InMemoryStore()},
    ),
    "a tool that changes the state": (
        lambda: [calls("counting", {"key": "a"}), "42"],
        lambda: {"tools": [counting], "state_schema": State},
    ),
    "a tool that breaks": (lambda: [calls("broken", {"key": "a"}), "42"], lambda: {"tools": [broken]}),
    "a tool that is not there": (lambda: [calls("nothing", {"key": "a"}), "42"], lambda: {"tools": [look_up]}),
    "a model that breaks": (lambda: [ConnectionError("reset")], dict),
    "a structured response by a tool": (
        lambda: [calls("look_up", {"key": "a"}), calls("Answer", {"value": 42})],
        lambda: {"tools": [look_up], "response_format": ToolStrategy(Answer)},
    ),
    "a structured response by the provider": (
        lambda: ['{"value": 42}'],
        lambda: {"response_format": ProviderStrategy(Answer)},
    ),
    "a text where a structured response was wanted": (
        lambda: ["It is 42."],
        lambda: {"tools": [look_up], "response_format": Answer},
    ),
    "a dynamic prompt": (
        lambda: [calls("look_up", {"key": "a"}), "42"],
        lambda: {"tools": [look_up], "middleware": [prompted]},
    ),
    "a middleware around the model": (lambda: ["so it is"], lambda: {"middleware": [shouting]}),
    "hooks that jump": (lambda: ["41", "42"], lambda: {"middleware": [Once()], "state_schema": State}),
    "a fallback": (lambda: [ConnectionError("a")], lambda: {"middleware": [ModelFallbackMiddleware(model("42"))]}),
    "a summary": (
        lambda: ["42"],
        lambda: {
            "middleware": [SummarizationMiddleware(model("they talked"), trigger=("messages", 1), keep=("messages", 1))]
        },
    ),
}


def transparent() -> RecoverabilityMiddleware:
    return RecoverabilityMiddleware(verifier=FunctionVerifier(lambda text: True))


def made(chat: Scripted, parts: Parts, *, ours: bool, first: bool = False) -> Any:
    others = list(parts.get("middleware", []))
    mine = [transparent()] if ours else []
    parts = {"tools": [], **parts, "middleware": [*mine, *others] if first else [*others, *mine]}
    return create_agent(chat, **parts)


def plain(value: Any) -> Any:
    """A value without ids that LangChain draws anew, and without the middleware's counts, which are in the state."""
    if isinstance(value, BaseMessage):
        told = value.model_dump(exclude={"id", "response_metadata"})
        return told | {"metadata": {k: v for k, v in value.response_metadata.items() if k != "id"}}
    if isinstance(value, dict):
        drawn = ("langgraph_", "ls_", "lc_", "checkpoint", "rfx_")
        return {k: plain(v) for k, v in value.items() if not k.startswith(drawn)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def seen(feature: str, *, use_async: bool, **how: bool) -> dict[str, Any]:
    replies, parts = FEATURES[feature]
    chat = model(*replies())
    running = made(chat, parts(), **how)

    async def astream() -> None:
        items.extend([item async for item in running.astream(ASKED, stream_mode=MODES)])

    items: list[Any] = []
    error = None
    use_async = use_async and feature != "a middleware around the model"  # that one has only a sync hook
    try:
        if use_async:
            asyncio.run(astream())
        else:
            items.extend(running.stream(ASKED, stream_mode=MODES))
    except ConnectionError as raised:
        error = f"{type(raised).__name__}: {raised}"
    return {
        "error": error,
        "stream": [(mode, plain(item)) for mode, item in items],
        "asked": chat.calls,
        "nodes": sorted(running.get_graph().nodes),  # LangChain draws an edge more for any middleware around the model
        "schemas": [running.get_input_jsonschema(), running.get_output_jsonschema()],
    }


@pytest.mark.parametrize("first", [False, True], ids=["inner", "outer"])
@pytest.mark.parametrize("use_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_is_the_same_with_it_and_without_it(feature: str, use_async: bool, first: bool) -> None:
    bare = seen(feature, use_async=use_async, ours=False)
    assert seen(feature, use_async=use_async, ours=True, first=first) == bare
    assert bare["asked"]


@pytest.mark.parametrize("first", [False, True], ids=["inner", "outer"])
def test_a_thread_with_an_interrupt_is_the_same(first: bool) -> None:
    def thread(*, ours: bool) -> list[Any]:
        chat = model(calls("look_up", {"key": "a"}), "41", "42")
        parts: Parts = {"tools": [look_up], "middleware": [HumanInTheLoopMiddleware({"look_up": True})]}
        running = made(chat, parts | {"checkpointer": InMemorySaver()}, ours=ours, first=first)
        (asked,) = running.invoke(ASKED, THREAD)["__interrupt__"]
        approved = running.invoke(Command(resume={"decisions": [{"type": "approve"}]}), THREAD)
        more = running.invoke(ASKED, THREAD)
        states = [(x.next, len(x.tasks), len(x.interrupts)) for x in running.get_state_history(THREAD)]
        return [asked.value, plain(approved), plain(more), states, chat.calls]

    assert thread(ours=True) == thread(ours=False)


def test_a_subagent_streams_the_same() -> None:
    def stream(*, ours: bool) -> list[Any]:
        inner = made(model("41", "42"), {"name": "inner"}, ours=ours)

        @tool
        def delegate(question: str) -> str:
            """Ask the other agent."""
            return str(inner.invoke({"messages": [HumanMessage(question)]})["messages"][-1].text)

        outer = made(model(calls("delegate", {"question": "6*7?"}), "42"), {"tools": [delegate]}, ours=ours)
        items = outer.stream(ASKED, stream_mode=["updates", "messages"], subgraphs=True)
        return [(len(where), mode, plain(item)) for where, mode, item in items]

    assert stream(ours=True) == stream(ours=False)


def test_the_message_that_passes_is_the_models_own() -> None:
    said = AIMessage("42", id="mine", response_metadata={"model": "m"})
    state = made(model(said), {}, ours=True).invoke(ASKED)
    assert (state["messages"][-1].id, state["messages"][-1].response_metadata) == ("mine", {"model": "m"})
