"""What the recovery graph takes and refuses: messages, steps, interrupts; and the bill at the end of a step."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command

from rfx_agent import (
    Case,
    ConfigError,
    Recovery,
    RetryBudget,
    Rollout,
    Step,
    Usage,
    outcome_of,
    recovery_graph,
    step_input,
)
from rfx_agent.budgets.step import Ledger
from rfx_agent.codec import load
from rfx_agent.engine.drive import drive
from rfx_agent.engine.nodes import recover, start
from rfx_agent.engine.run import Run
from rfx_agent.events import Finished, as_record
from rfx_agent.records import Spend
from rfx_agent.testing import ScriptedSampler, ScriptedVerifier

INVOKES: dict[str, Callable[..., Any]] = {
    "sync": lambda graph, given: graph.invoke(given),
    "async": lambda graph, given: asyncio.run(graph.ainvoke(given)),
}
both = pytest.mark.parametrize("invoke", INVOKES.values(), ids=INVOKES)
CALL = AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}])
THREAD: Any = {"configurable": {"thread_id": "t"}}


def spoken(state: Any) -> list[tuple[str, str]]:
    return [(m.type, m.text) for m in state["messages"]]


ASKED: Any = {"messages": [("user", "What is 6 times 7?")]}


def answering(*texts: str, **more: Any) -> Recovery:
    return Recovery(sampler=ScriptedSampler([*texts]), verifier=ScriptedVerifier(["42"]), **more)


@both
def test_messages_are_the_prompt_and_get_the_answer(invoke: Callable[..., Any]) -> None:
    recovery = answering("41", "42")
    state = invoke(recovery_graph(recovery), ASKED)
    assert spoken(state) == [("human", "What is 6 times 7?"), ("ai", "42")]
    assert outcome_of(state).status == "rescued"
    assert recovery.sampler.requests[0].messages == Step.of("What is 6 times 7?").messages  # type: ignore[union-attr]


@both
@pytest.mark.parametrize(("text", "status"), [("42", "accepted"), ("41", "rescued"), ("40", "unresolved")])
def test_an_ai_message_at_the_end_is_the_candidate(invoke: Callable[..., Any], text: str, status: str) -> None:
    recovery = answering(*(["42"] if text == "41" else []), budget=RetryBudget(samples=1))
    state = invoke(recovery_graph(recovery), {"messages": [*ASKED["messages"], AIMessage(text, id="a")]})
    (_, last) = state["messages"]
    assert (last.id, last.text) == ("a", "40" if status == "unresolved" else "42")
    assert outcome_of(state).status == status


def test_a_thread_takes_steps_and_messages_in_turn() -> None:
    graph = recovery_graph(answering("42", "42", "41", "42", "42"), checkpointer=InMemorySaver())

    def asked(given: Any) -> list[str]:
        state = graph.invoke(given, THREAD)
        assert outcome_of(state).text == "42"
        return [m["content"] for m in load(Case, state["recovery"]).step.messages]

    first = ["What is 6 times 7?", "42", "And 7 times 6?"]
    assert asked(ASKED) == first[:1]
    assert asked({"messages": [("user", "And 7 times 6?")]}) == first
    assert asked(step_input("Say 42.")) == ["Say 42."]
    assert asked({"messages": [("user", "Once more.")]}) == [*first, "42", "Once more."]
    assert [text for _, text in spoken(graph.get_state(THREAD).values)][-2:] == ["Once more.", "42"]


def test_a_person_answers_a_conversation() -> None:
    graph = recovery_graph(answering("1", budget=RetryBudget(samples=1)), checkpointer=InMemorySaver(), interrupts=True)
    assert "__interrupt__" in graph.invoke(ASKED, THREAD)
    state = graph.invoke(Command(resume={"type": "respond", "message": "it is 42"}), THREAD)
    assert spoken(state)[-1] == ("ai", "it is 42")
    waits = graph.invoke({"messages": [("user", "And 7 times 6?")]}, THREAD)
    with pytest.raises(ConfigError, match="resume the thread"):
        outcome_of(waits)  # the outcome in it is the last run's


def test_it_is_a_chat_node_of_a_parent_with_messages() -> None:
    builder = StateGraph(MessagesState)
    builder.add_node("answer", recovery_graph(answering("41", "42")))
    builder.add_edge(START, "answer")
    assert spoken(builder.compile().invoke(ASKED)) == [("human", "What is 6 times 7?"), ("ai", "42")]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "neither a step nor messages"),
        ({"question": "q"}, "neither a step nor messages"),
        ({"messages": []}, "neither a step nor messages"),
        (Command(resume="x"), "neither a step nor messages"),
        ({"messages": [AIMessage("42")]}, "the user's message before it"),
        (
            {"messages": [("user", "q"), AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}])]},
            "calls tools",
        ),
    ],
)
def test_an_input_that_asks_nothing_is_refused(given: Any, why: str) -> None:
    graph = recovery_graph(answering(), checkpointer=InMemorySaver())
    with pytest.raises(ConfigError, match=why):
        graph.invoke(given, THREAD)


def test_a_step_and_a_candidate_are_what_they_should_be() -> None:
    step = Step.of("q")
    assert step_input("q", "a") == {"step": {"messages": step.messages, "id": step.id}, "candidate": "a"}
    for wrong in (None, 42):
        with pytest.raises(ConfigError, match=f"step is {wrong}; give a Step"):
            step_input(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="candidate is 42; give its text, or a Rollout"):
        step_input("q", candidate=42)  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [None, THREAD])
def test_an_interrupt_that_nobody_could_resume_is_refused_before_anything_is_spent(config: Any) -> None:
    recovery = answering("42")
    with pytest.raises(ConfigError, match=r"no checkpointer .* interrupts=False"):
        recovery_graph(recovery, interrupts=True).invoke(step_input("q"), config)
    assert recovery.sampler.requests == []  # type: ignore[union-attr]


def test_the_end_of_a_step_carries_its_bill_and_not_the_one_before() -> None:
    ends: list[Any] = []
    recovery = answering("41", "42", on_event=lambda e: ends.append(e) if type(e).__name__ == "Finished" else None)
    run = Run.of(recovery)
    before = Ledger(recovery.budget).charge(Spend(attempts=3, tokens=70))
    candidate = Rollout("41", usage=Usage(5, 2, 1))
    case = drive(recover(run, start(run, Step.of("q", task="sums"), candidate, ledger=before)))
    (end,) = ends
    assert end.spent == case.ledger.spent - before.spent
    assert (end.spent.attempts, end.candidate, end.regime, end.task) == (2, Usage(5, 2, 1), "stochastic", "sums")
    assert load(Finished, {k: v for k, v in as_record(end).items() if k != "type"}).spent == end.spent
    assert load(Finished, {"step_id": "s", "outcome": {"status": "accepted"}}).spent == Spend()  # of an older version
