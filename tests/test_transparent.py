"""A node behind an always-pass ``recoverable`` is the node: LangGraph sees the same, and the same comes of it."""

import asyncio
import functools
import operator
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any, Literal

import pytest
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage
from langchain_core.runnables import RunnableConfig, RunnableGenerator, RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command, Overwrite, RetryPolicy, Send, StreamWriter, interrupt
from typing_extensions import TypedDict

from rfx_agent import recoverable
from rfx_agent.testing import ScriptedVerifier

THREAD: Any = {"configurable": {"thread_id": "t"}}
Wrap = Callable[[Any], Any]


class State(TypedDict, total=False):
    question: str
    answer: str
    note: str
    seen: Annotated[list[str], operator.add]


class Narrow(TypedDict):
    question: str


def judged(**keys: Any) -> tuple[Wrap, ScriptedVerifier]:
    """A wrapper whose verifier passes everything, and that verifier, which remembers what it was asked."""
    verifier = ScriptedVerifier(lambda _: True)
    keys = {"prompt": "question", "answer": "answer"} | keys
    return (lambda node: recoverable(node, verifier=verifier, **keys)), verifier


def one(node: Any, schema: Any = State, name: str | None = "solve", **more: Any) -> StateGraph[Any, Any, Any, Any]:
    builder = StateGraph(schema)
    builder.add_node(*([node] if name is None else [name, node]), **more)
    (name,) = builder.nodes
    builder.add_edge(START, name)
    builder.add_edge(name, END)
    return builder


class Thing:
    ticks = 0

    def __call__(self, state: Narrow) -> dict[str, Any]:
        self.ticks += 1
        return {"answer": ",".join(sorted(state))}

    def method(self, state: State) -> dict[str, Any]:
        return {"answer": "method"}


class AsyncThing:
    async def __call__(self, state: Narrow) -> dict[str, Any]:
        return {"answer": ",".join(sorted(state))}


def function(state: State, k: str = "f") -> dict[str, Any]:
    return {"answer": k}


async def coroutine(state: State) -> dict[str, Any]:
    return {"answer": "co"}


def generator(state: State) -> Iterator[dict[str, Any]]:
    yield {"note": "thinking"}
    yield {"answer": "g"}


async def async_generator(state: State) -> AsyncIterator[dict[str, Any]]:
    yield {"note": "thinking"}
    yield {"answer": "ag"}


def of_stream(given: Iterator[Any]) -> Iterator[dict[str, Any]]:
    for _ in given:
        yield {"answer": "rg"}


KINDS: dict[str, Any] = {
    "function": function,
    "lambda": lambda state: {"answer": "l"},
    "partial": functools.partial(function, k="p"),
    "object": Thing(),
    "method": Thing().method,
    "decorated": functools.wraps(function)(lambda *args: function(*args)),
    "coroutine": coroutine,
    "async partial": functools.partial(coroutine),
    "async object": AsyncThing(),
    "generator": generator,
    "async generator": async_generator,
    "runnable": RunnableLambda(function, name="named"),
    "sequence": RunnableLambda(function) | RunnableLambda(lambda update: update),
    "configured": RunnableLambda(function).with_config(run_name="given"),
    "retrying": RunnableLambda(function).with_retry(),
    "streaming runnable": RunnableGenerator(of_stream),
    "node that gives a runnable": lambda state: RunnableLambda(function),
    "subgraph": one(function).compile(),
}


ASYNC = {kind for kind in KINDS if kind.startswith(("async", "coroutine"))}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_node_keeps_its_name_and_its_result(kind: str) -> None:
    wrap, verifier = judged()

    def told(node: Any) -> tuple[Any, Any]:
        graph = one(node, name=None).compile()
        given = {"question": "q", "note": "n"}
        called = asyncio.run(graph.ainvoke(given)) if kind in ASYNC else graph.invoke(given)
        return list(graph.nodes), called

    plain = told(KINDS[kind])
    assert told(wrap(KINDS[kind])) == plain
    assert verifier.judged == [plain[1]["answer"]]


def test_an_object_is_still_the_object() -> None:
    thing = Thing()
    wrapped = judged()[0](thing)
    one(wrapped).compile().invoke({"question": "q"})
    assert (wrapped.ticks, thing.ticks) == (1, 1)


def test_everything_that_a_node_may_ask_for_is_given() -> None:
    def solve(
        state: State, config: RunnableConfig, runtime: Runtime[str], *, writer: StreamWriter, store: BaseStore
    ) -> dict[str, Any]:
        writer("working")
        return {"answer": f"{config['configurable']['thread_id']} {runtime.context} {type(store).__name__}"}

    wrap, verifier = judged()
    builder = StateGraph(State, context_schema=str)  # type: ignore[type-var]
    builder.add_node("solve", wrap(solve))
    builder.add_edge(START, "solve")
    graph = builder.compile(store=InMemoryStore())
    told = list(graph.stream({"question": "q"}, THREAD, context="c", stream_mode=["custom", "values"]))
    assert ("custom", "working") in told
    assert verifier.judged == ["t c InMemoryStore"]


def test_a_subgraph_is_seen_in_every_way() -> None:
    def inner(state: State) -> dict[str, Any]:
        return {"answer": interrupt("who?")}

    def told(wrap: Wrap) -> list[Any]:
        graph = one(wrap(one(inner, name="inner").compile())).compile(checkpointer=InMemorySaver())
        streamed = list(graph.stream({"question": "q"}, THREAD, stream_mode="updates", subgraphs=True))
        (task,) = graph.get_state(THREAD, subgraphs=True).tasks
        drawn = graph.get_graph(xray=True)
        answered = graph.invoke(Command(resume="me"), THREAD)
        return [
            [name for name, _ in graph.get_subgraphs()],
            [sorted(update) for _, update in streamed],
            None if task.state is None else task.state.next,  # type: ignore[union-attr]
            (list(drawn.nodes), [(edge.source, edge.target) for edge in drawn.edges]),
            answered,
        ]

    plain = told(lambda node: node)
    assert plain[2] == ("inner",)
    wrap, verifier = judged()
    assert told(wrap) == plain
    assert verifier.judged == ["me"]


def test_a_subgraph_that_a_function_calls_is_seen() -> None:
    child = one(function, name="inner").compile()

    def calls(state: State) -> Any:
        return child.invoke(state)

    for wrap in (lambda node: node, judged()[0]):
        assert [name for name, _ in one(wrap(calls)).compile().get_subgraphs()] == ["solve"]


def test_a_command_leads_where_its_hint_says() -> None:
    def solve(state: State) -> Command[Literal["good", "bad"]]:
        return Command(update={"answer": "42"}, goto="good")

    def told(wrap: Wrap) -> Any:
        builder = StateGraph(State)
        builder.add_node(wrap(solve))
        builder.add_node("good", lambda state: {"note": "good"})
        builder.add_node("bad", lambda state: {"note": "bad"})
        builder.add_edge(START, "solve")
        graph = builder.compile()
        return graph.invoke({"question": "q"}), sorted((e.source, e.target) for e in graph.get_graph().edges)

    assert told(judged()[0]) == told(lambda node: node)


def test_a_command_for_the_parent_has_the_parents_keys() -> None:
    class Parent(TypedDict, total=False):
        question: str
        found: str

    def solve(state: Narrow) -> Any:
        return Command(graph=Command.PARENT, update={"found": "42"}, goto="after")

    wrap, verifier = judged(answer="found")
    builder = StateGraph(Parent)
    builder.add_node("sub", one(wrap(solve), Narrow).compile())
    builder.add_node("after", lambda state: {"found": f"{state['found']}!"})
    builder.add_edge(START, "sub")
    assert builder.compile().invoke({"question": "q"})["found"] == "42!"
    assert verifier.judged == ["42"]


UPDATES: dict[str, Any] = {
    "message": lambda state: {"messages": AIMessage("a", id="1")},
    "tuple": lambda state: {"messages": [("ai", "a")]},
    "text of a person": lambda state: {"messages": "hello"},
    "overwrite": lambda state: {"messages": Overwrite([*state["messages"], AIMessage("a", id="1")])},
    "overwrite as a mapping": lambda state: {"messages": {"__overwrite__": [AIMessage("a", id="1")]}},
    "removal": lambda state: {"messages": [RemoveMessage(REMOVE_ALL_MESSAGES), AIMessage("a", id="1")]},
    "commands": lambda state: [Command(update={}), {"messages": [AIMessage("a", id="1")]}],
    "nothing": lambda state: None,
    "nothing new": lambda state: {"messages": state["messages"]},
}


@pytest.mark.parametrize("update", UPDATES)
def test_an_update_is_applied_as_it_was_given(update: str) -> None:
    def told(wrap: Wrap) -> Any:
        graph = one(wrap(UPDATES[update]), MessagesState).compile()
        state = graph.invoke({"messages": [HumanMessage("q", id="h"), AIMessage("old", id="o")]})
        return [(m.type, m.text) for m in state["messages"]]

    wrap, verifier = judged(prompt="messages", answer="messages")
    assert told(wrap) == told(lambda node: node)
    assert verifier.judged == ([] if update in ("nothing", "nothing new", "text of a person") else ["a"])


@pytest.mark.parametrize(
    ("schema", "given", "gives"),
    [
        (str, "q", "42"),
        (Annotated[int, operator.add], 1, 42),
        (Annotated[list, operator.add], ["q"], ["42"]),
        (dict, {"question": "q"}, {"answer": "42"}),
    ],
)
def test_a_state_may_be_one_value(schema: Any, given: Any, gives: Any) -> None:
    wrap, verifier = judged()
    plain, ours = (one(node, schema).compile().invoke(given) for node in (lambda _: gives, wrap(lambda _: gives)))
    assert ours == plain
    assert verifier.judged == ["42"]


def test_policies_of_the_node_still_hold() -> None:
    runs: list[int] = []

    def solve(state: State) -> dict[str, Any]:
        runs.append(1)
        if len(runs) == 1:
            raise OSError
        return {"answer": "42"}

    policy = RetryPolicy(retry_on=OSError, initial_interval=0.01)
    graph = one(judged()[0](solve), retry_policy=policy).compile()
    assert graph.invoke({"question": "q"})["answer"] == "42"
    assert len(runs) == 2


def test_a_send_may_bring_keys_that_the_state_does_not_have() -> None:
    wrap, verifier = judged(prompt="part", answer="seen")
    builder = StateGraph(State)
    builder.add_node("fan", lambda state: {})
    builder.add_node("work", wrap(lambda state: {"seen": [state["part"].upper()]}))
    builder.add_edge(START, "fan")
    builder.add_conditional_edges("fan", lambda state: [Send("work", {"part": x}) for x in "ab"], ["work"])
    assert sorted(builder.compile().invoke({})["seen"]) == ["A", "B"]
    assert sorted(verifier.judged) == ["A", "B"]
