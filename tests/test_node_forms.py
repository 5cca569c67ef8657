"""What a failed node's update becomes: an answer in any form is found, and replaced in its own form."""

import asyncio
import logging
import operator
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES, add_messages
from langgraph.types import Command, Overwrite, interrupt
from pydantic import BaseModel, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from rfx_agent import ConfigError, ExactVerifier, Recovery, RetryBudget, Step, Unresolved, add_recovery, recoverable
from rfx_agent.ports import Escalator
from rfx_agent.testing import ScriptedSampler, ScriptedTool, ScriptedVerifier

INVOKES: dict[str, Callable[..., Any]] = {
    "sync": lambda graph, given, config=None: graph.invoke(given, config),
    "async": lambda graph, given, config=None: asyncio.run(graph.ainvoke(given, config)),
}
both = pytest.mark.parametrize("invoke", INVOKES.values(), ids=INVOKES)
QUESTION = "What is 6 times 7?"
KEYS: Any = {"prompt": "question", "answer": "answer"}
AI = {"role": "assistant"}
THREAD: Any = {"configurable": {"thread_id": "t"}}


class State(TypedDict, total=False):
    question: str
    answer: str
    outcome: dict[str, Any]
    note: str


class Sum(BaseModel):
    value: int


def is_42(text: str) -> bool:
    return "42" in text


def deployment(*texts: str, **more: Any) -> Recovery:
    return Recovery(**({"sampler": ScriptedSampler([*texts]), "verifier": ScriptedVerifier(is_42)} | more))


def with_tool(says: Any) -> Recovery:
    """Its first remedy that can help is the tool: the node's own runs give nothing new."""
    return deployment("6*7", tool=ScriptedTool({"6*7": says}), extra_samples=0)


def built(schema: Any, node: Any, **more: Any) -> Any:
    builder = StateGraph(schema)
    builder.add_node("solve", node)
    builder.add_edge(START, "solve")
    builder.add_edge("solve", END)
    return builder if more.pop("open", False) else builder.compile(**more)


class Person(Escalator):
    def escalate(self, payload: Any) -> Any:
        return {"type": "respond", "message": "it is 42"}


def typed(kind: Any) -> Any:
    return TypedDict("typed", {"question": str, "answer": kind}, total=False)


# Keys.


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"prompt": "question", "answer": "answr"}, "answer is 'answr', .* do you mean answer='answer'"),
        ({}, "prompt is 'messages'|answer is 'messages'"),
        ({"prompt": "qestion", "answer": "answer"}, "do you mean prompt='question'"),
        (KEYS | {"expected": "expcted"}, "expected is 'expcted'"),
        (KEYS | {"outcome": "outcme"}, "do you mean outcome='outcome'"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_key_that_the_state_does_not_have_is_refused(keys: dict[str, Any], why: str, nested: bool) -> None:
    graph = built(State, recoverable(lambda state: {"answer": "41"}, deployment("42"), **keys))
    graph = built(State, graph) if nested else graph
    with pytest.raises(ConfigError, match=why):
        graph.invoke({"question": QUESTION})
    with pytest.raises(ConfigError, match=why):
        add_recovery(built(State, lambda state: {"answer": "41"}, open=True), "solve", deployment("42"), **keys)


def test_a_function_with_recovery_may_be_called_inside_of_another_node() -> None:
    texts = iter(["41", "42"])
    solve = recoverable(lambda state: {"answer": next(texts)}, deployment(), **KEYS)
    graph = built(MessagesState, lambda state: {"messages": [("ai", solve({"question": QUESTION})["answer"])]})
    assert graph.invoke({"messages": [HumanMessage("hello")]})["messages"][-1].text == "42"


def test_it_is_refused_before_the_node_runs() -> None:
    runs: list[Any] = []
    node = recoverable(lambda state: runs.append(state), deployment(), prompt="question", answer="answr")
    with pytest.raises(ConfigError):
        built(State, node).invoke({"question": QUESTION})
    assert runs == []


def test_a_node_that_never_answers_under_its_key_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    graph = built(State, recoverable(lambda state: {"note": "41"}, deployment(), **KEYS))
    with caplog.at_level(logging.WARNING, "rfx_agent"):
        for _ in range(3):
            assert graph.invoke({"question": QUESTION})["note"] == "41"
    assert [record.getMessage() for record in caplog.records] == [
        "recoverable: solve wrote note and nothing under answer='answer', so there was nothing to verify"
    ]


# Forms. A run that passed is returned whole; a text that no run gave takes the place of the failed answer.

MESSAGES: dict[str, Callable[[Any, Any], Any]] = {
    "message": lambda text, state: {"messages": AIMessage(text)},
    "list": lambda text, state: {"messages": [AIMessage(text)]},
    "tuple": lambda text, state: {"messages": [("ai", text)]},
    "mapping": lambda text, state: {"messages": [{"role": "assistant", "content": text}]},
    "overwrite": lambda text, state: {"messages": Overwrite([*state["messages"], AIMessage(text)])},
    "overwrite as a mapping": lambda text, state: {
        "messages": {"__overwrite__": [*state["messages"], AIMessage(text)]}
    },
    "removal": lambda text, state: {
        "messages": [RemoveMessage(REMOVE_ALL_MESSAGES), *state["messages"], AIMessage(text)]
    },
    "command": lambda text, state: Command(update={"messages": [AIMessage(text)]}, goto=END),
    "commands": lambda text, state: [Command(update={}), {"messages": [AIMessage(text)]}],
    "overwrite in a command": lambda text, state: Command(
        update={"messages": Overwrite([*state["messages"], AIMessage(text)])}
    ),
}


@pytest.mark.parametrize("by", ["node", "tool"])
@pytest.mark.parametrize("form", MESSAGES)
def test_a_failed_message_is_replaced(form: str, by: str) -> None:
    texts = iter(["41", "42"]) if by == "node" else iter(["41"] * 99)
    node = recoverable(lambda state: MESSAGES[form](next(texts), state), with_tool("42"))
    state = built(MessagesState, node).invoke({"messages": [HumanMessage(QUESTION)]})
    assert [m.text for m in state["messages"]] == [QUESTION, "42"]


@pytest.mark.parametrize("by", ["node", "tool"])
@pytest.mark.parametrize(
    ("kind", "wrong", "right", "says"),
    [
        (int, 41, 42, "42"),
        (Sum, Sum(value=41), Sum(value=42), '{"value": 42}'),
        (dict, {"value": 41}, {"value": 42}, '{"value": 42}'),
        (list[int], [4, 1], [42], "[42]"),  # without a reducer the whole list is the answer
        (Annotated[list[str], operator.add], ["41"], ["42"], "42"),
        (Annotated[list[str], operator.add], Overwrite(["so", "41"]), ["so", "42"], "42"),
        (Annotated[list[Sum], operator.add], [Sum(value=41)], [Sum(value=42)], '{"value": 42}'),
        (Annotated[list, operator.add], [AI | {"content": "41"}], [AI | {"content": "42"}], "42"),
    ],
)  # fmt: skip
def test_a_failed_object_is_replaced(kind: Any, wrong: Any, right: Any, says: str, by: str) -> None:
    gives = iter([wrong, Overwrite(right) if isinstance(wrong, Overwrite) else right] if by == "node" else [wrong] * 99)
    node = recoverable(lambda state: {"answer": next(gives)}, with_tool(says), **KEYS)
    assert built(typed(kind), node).invoke({"question": QUESTION})["answer"] == right


def test_a_text_that_is_no_such_object_is_no_answer() -> None:
    node = recoverable(lambda state: {"answer": 41}, with_tool("it is 42"), **KEYS)
    with pytest.raises(Unresolved) as raised:
        built(typed(int), node).invoke({"question": QUESTION})
    assert "malformed" in {rollout.kind for rollout in raised.value.case.failed}
    recovery = deployment(escalator=Person(), budget=RetryBudget(samples=1))
    node = recoverable(lambda state: {"answer": 41}, recovery, **KEYS)
    with pytest.raises(Unresolved, match="does not fit the key 'answer'"):
        built(typed(int), node).invoke({"question": QUESTION})


@pytest.mark.parametrize(
    ("kind", "wrong", "right", "says"),
    [
        (int, 41, 42, "42"),
        (Sum, Sum(value=41), Sum(value=42), '{"value": 42}'),
        (Annotated[list[str], operator.add], ["so", "41"], ["so", "42"], "42"),
        (Annotated[list[AnyMessage], operator.add], [AIMessage("41")], [AIMessage("42")], "42"),
        (Annotated[list[AnyMessage], add_messages], [AIMessage("41", id="a")], [AIMessage("42", id="a")], "42"),
    ],
)
def test_add_recovery_leaves_no_failed_answer_beside_the_new_one(kind: Any, wrong: Any, right: Any, says: str) -> None:
    builder = built(typed(kind), lambda state: {"answer": wrong}, open=True)
    add_recovery(builder, "solve", deployment(says), **KEYS)
    assert builder.compile().invoke({"question": QUESTION})["answer"] == right


def test_a_message_that_the_node_appends_in_place_is_a_new_one() -> None:
    def solve(state: Any) -> Any:
        state["messages"].append(AIMessage("41", id="a"))
        return state

    with pytest.raises(Unresolved):
        built(MessagesState, recoverable(solve, deployment())).invoke({"messages": [HumanMessage(QUESTION)]})


def test_a_state_of_one_value_is_the_answer() -> None:
    texts = iter(["41", "42"])
    assert built(str, recoverable(lambda state: next(texts), deployment())).invoke(QUESTION) == "42"


@both
def test_generators_are_recovered_and_their_chunks_held(invoke: Callable[..., Any]) -> None:
    texts = iter(["41", "42"])

    def solve(state: State) -> Iterator[dict[str, Any]]:
        yield {"note": "thinking"}
        yield {"answer": next(texts)}

    assert invoke(built(State, recoverable(solve, deployment(), **KEYS)), {"question": QUESTION})["answer"] == "42"


# Exceptions.


def broken(error: Exception, times: int) -> Callable[[Any], Any]:
    left = [error] * times

    def solve(state: Any) -> dict[str, Any]:
        if left:
            raise left.pop()
        return {"answer": "42"}

    return solve


def failures() -> list[Exception]:
    errors: list[Exception] = [OutputParserException("no JSON", llm_output="{")]
    try:
        TypeAdapter(int).validate_python("x")
    except ValidationError as error:
        errors.append(error)
    return errors


@both
@pytest.mark.parametrize("error", failures(), ids=lambda error: type(error).__name__)
def test_an_output_that_could_not_be_made_is_a_failed_answer(invoke: Callable[..., Any], error: Exception) -> None:
    def graph(times: int, recovery: Recovery, **more: Any) -> Any:
        node = broken(error, times)

        async def anode(state: State) -> Any:
            return node(state)

        chosen: Any = node if invoke is INVOKES["sync"] else anode
        return built(State, recoverable(chosen, recovery, **KEYS, **more))

    given = {"question": QUESTION}
    assert invoke(graph(1, deployment()), given)["answer"] == "42"
    assert invoke(graph(99, with_tool("42")), given)["answer"] == "42"
    with pytest.raises(Unresolved) as raised:
        invoke(graph(99, deployment()), given)
    assert raised.value.__cause__ is error
    assert raised.value.case.rollouts[0].kind == "malformed"
    with pytest.raises(type(error)):
        invoke(graph(99, deployment(), on_unresolved="return"), given)
    state = invoke(graph(99, deployment(), outcome="outcome"), given)
    assert (state.get("answer"), state["outcome"]["status"]) == (None, "unresolved")
    with pytest.raises(type(error)):
        invoke(graph(1, deployment(), failures=()), given)


def test_a_reply_that_does_not_fit_an_interrupt_is_no_failed_answer() -> None:
    def solve(state: State) -> dict[str, Any]:
        return {"answer": str(interrupt("how many?", response_schema=int))}

    graph = built(State, recoverable(solve, deployment(), **KEYS), checkpointer=InMemorySaver())
    graph.invoke({"question": QUESTION}, THREAD)
    with pytest.raises(ValidationError):
        graph.invoke(Command(resume="many"), THREAD)
    assert graph.invoke(Command(resume=42), THREAD)["answer"] == "42"


# Names and events.


def test_nodes_with_one_prompt_are_told_apart() -> None:
    events: list[Any] = []
    recovery = deployment(on_event=events.append)
    builder = StateGraph(State)
    for name, texts in {"one": iter(["41", "42"]), "two": iter(["41", "42"])}.items():
        builder.add_node(name, recoverable(lambda state, texts=texts: {"answer": next(texts)}, recovery, **KEYS))
    builder.add_edge(START, "one")
    builder.add_edge("one", "two")
    builder.compile().invoke({"question": QUESTION})
    assert {event.step_id for event in events} == {f"{name}:{Step.of(QUESTION).id}" for name in ("one", "two")}
    ends = [event for event in events if type(event).__name__ == "Finished"]
    assert [(end.task, end.spent.attempts, end.regime) for end in ends] == [
        (x, 1, "stochastic") for x in ("one", "two")
    ]


def test_a_step_of_ones_own_keeps_its_id_and_its_task() -> None:
    events: list[Any] = []
    own = Step.of(QUESTION, id="mine", task="sums")
    node = recoverable(
        lambda state: {"answer": "42"}, deployment(on_event=events.append), prompt=lambda state: own, answer="answer"
    )
    built(State, node).invoke({"question": QUESTION})
    assert [(event.step_id, event.task) for event in events if hasattr(event, "task")] == [("mine", "sums")]


@pytest.mark.parametrize("first", ["41", "42"])
def test_what_was_streamed_of_a_failed_message_is_retracted(first: str) -> None:
    texts = iter([first, "42"])
    node = recoverable(lambda state: {"messages": [AIMessage(next(texts), id="a")]}, deployment())
    told = list(built(MessagesState, node).stream({"messages": [HumanMessage(QUESTION)]}, stream_mode="custom"))
    void = [event for event in told if event["type"] == "rfx.retract"]
    step = f"solve:{Step.of(QUESTION).id}"
    assert void == ([] if first == "42" else [{"type": "rfx.retract", "step_id": step, "message": "a"}])


# What cannot work.


def test_what_cannot_work_is_refused_with_the_remedy() -> None:
    builder = built(State, lambda state: {"answer": "41"}, open=True)
    with pytest.raises(ConfigError, match=r"give graph\.compile\(\)"):
        recoverable(builder, deployment())
    with pytest.raises(ConfigError, match="give sampler="):
        add_recovery(builder, "solve", verifier=ExactVerifier(), **KEYS)
    add_recovery(builder, "solve", deployment("1", "2", budget=RetryBudget(samples=1)), interrupts=True, **KEYS)
    for config in (None, THREAD):
        with pytest.raises(ConfigError, match="no checkpointer"):
            builder.compile().invoke({"question": QUESTION}, config)
    graph = built(State, builder.compile(), checkpointer=InMemorySaver())
    assert "__interrupt__" in graph.invoke({"question": QUESTION}, THREAD)


def test_a_verifier_in_the_place_of_a_recovery_is_named() -> None:
    node = recoverable(lambda state: {"answer": "41"}, lambda text: "42" in text, prompt="question", answer="answer")
    with pytest.raises(ConfigError, match="verifier="):
        built(State, node).invoke({"question": "6 times 7?"})


def test_a_state_without_keys_is_refused_behind_a_node() -> None:
    builder = StateGraph(Annotated[list, operator.add])
    builder.add_node("solve", lambda state: ["41"])
    builder.add_edge(START, "solve")
    with pytest.raises(ConfigError, match="recoverable"):
        add_recovery(builder, "solve", deployment("42"))
