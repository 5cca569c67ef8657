"""The recovery graph: the same branches through LangGraph, the interrupt, embedding, and the size of its state."""

import asyncio
import json
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command
from pydantic import BaseModel
from scenarios import EVERY, SCENARIOS, STEP, Scenario
from typing_extensions import TypedDict

from rfx_agent import (
    Case,
    ConfigError,
    Escalation,
    FunctionVerifier,
    MemoryStore,
    Recovery,
    RetryBudget,
    Rollout,
    SharedBudget,
    Step,
    Usage,
    Window,
    recovery_graph,
    step_input,
)
from rfx_agent.adapters.graph.recovery_graph import outcome_of
from rfx_agent.codec import load
from rfx_agent.events import Event, as_record
from rfx_agent.evidence.features import TopLogprobs
from rfx_agent.testing import ScriptedSampler, ScriptedVerifier

INVOKES: dict[str, Callable[..., Any]] = {
    "sync": lambda graph, given, config=None, **more: graph.invoke(given, config, **more),
    "async": lambda graph, given, config=None, **more: asyncio.run(graph.ainvoke(given, config, **more)),
}
both = pytest.mark.parametrize("invoke", INVOKES.values(), ids=INVOKES)
THREAD = {"configurable": {"thread_id": "t"}}


@both
@pytest.mark.parametrize("name", EVERY)
def test_every_branch_ends_as_without_a_graph(invoke: Callable[..., Any], name: str) -> None:
    scenario = SCENARIOS[name]
    state = invoke(recovery_graph(scenario.recovery()), step_input(STEP, scenario.candidate))
    case = load(Case, state["recovery"])
    outcome = outcome_of(state)
    assert (outcome.status, [d.route for d in case.decisions], outcome.reason) == (
        scenario.status,
        scenario.routes,
        scenario.reason,
    )


REPLIES: list[tuple[Any, str, str | None, str]] = [
    ({"decisions": [{"type": "approve"}]}, "human", "40", "human:approve"),
    (
        {"decisions": [{"type": "edit", "edited_action": {"name": "accept_answer", "args": {"answer": 42}}}]},
        "human",
        "42",
        "human:edit",
    ),
    ({"decisions": [{"type": "reject", "message": "ask the vendor"}]}, "rejected", None, "human:reject"),
    ({"decisions": [{"type": "respond", "message": "it is 42"}]}, "human", "it is 42", "human:respond"),
    ({"type": "approve"}, "human", "40", "human:approve"),
]
FAILING = Scenario(["40", "40", "44"], "", [], "", options=SCENARIOS["budget"].options)


@both
@pytest.mark.parametrize(("reply", "status", "text", "reason"), REPLIES)
def test_a_person_is_asked_once_and_their_answer_applied(
    invoke: Callable[..., Any], reply: Any, status: str, text: str | None, reason: str
) -> None:
    recovery = FAILING.recovery()
    graph = recovery_graph(recovery, checkpointer=InMemorySaver(), interrupts=True)
    state = invoke(graph, step_input(STEP, "41"), THREAD)
    asked = state["__interrupt__"][0].value
    assert asked["review_configs"][0]["allowed_decisions"] == ["approve", "edit", "reject", "respond"]
    assert asked["action_requests"][0]["args"] == {"answer": "40"}
    assert asked["rfx"]["answers"][0] == {"answer": "40", "count": 2, "rollouts": ["r1", "r2"]}
    assert json.loads(json.dumps(asked)) == asked
    before = len(recovery.sampler.requests)  # type: ignore[attr-defined]
    outcome = outcome_of(invoke(graph, Command(resume=reply), THREAD))
    assert (outcome.status, outcome.text, outcome.reason) == (status, text, reason)
    assert len(recovery.sampler.requests) == before  # type: ignore[attr-defined]


@both
def test_a_reply_that_does_not_fit_is_refused_and_the_case_stays_open(invoke: Callable[..., Any]) -> None:
    graph = recovery_graph(FAILING.recovery(), checkpointer=InMemorySaver(), interrupts=True)
    invoke(graph, step_input(STEP, "41"), THREAD)
    for bad, why in (({"decisions": []}, "decisions"), ("yes", "reply"), ({"type": "edit"}, "edited_action")):
        state = invoke(graph, Command(resume=bad), THREAD)
        assert why in state["__interrupt__"][0].value["error"]
    state = invoke(graph, Command(resume={"type": "reject"}), THREAD)
    assert outcome_of(state).status == "rejected"


@pytest.mark.parametrize(("default", "status"), [("reject", "rejected"), ("approve", "human")])
def test_after_the_deadline_the_default_stands(default: Any, status: str) -> None:
    now = [1_000.0]
    recovery = FAILING.recovery(escalation=Escalation(deadline=60, default=default), clock=lambda: now[0])
    graph = recovery_graph(recovery, checkpointer=InMemorySaver(), interrupts=True)
    asked = graph.invoke(step_input(STEP, "41"), THREAD)["__interrupt__"][0].value
    assert asked["rfx"]["deadline"] == "1970-01-01T00:17:40+00:00"
    now[0] += 61
    late = {"type": "respond", "message": "42"}
    outcome = outcome_of(graph.invoke(Command(resume=late), THREAD))
    assert (outcome.status, outcome.reason) == (status, f"deadline:{default}")


def test_waiting_for_a_person_costs_no_time_of_the_budget() -> None:
    graph = recovery_graph(FAILING.recovery(), checkpointer=InMemorySaver(), interrupts=True)
    state = graph.invoke(step_input(STEP, "41"), THREAD)
    before = load(Case, state["recovery"]).ledger.spent
    time.sleep(0.05)
    after = load(Case, graph.invoke(Command(resume={"type": "approve"}), THREAD)["recovery"]).ledger.spent
    assert after == before
    assert after.escalations == 1


def test_a_budget_without_escalations_asks_nobody() -> None:
    from rfx_agent import RetryBudget

    recovery = FAILING.recovery(budget=RetryBudget(samples=3, escalations=0))
    state = recovery_graph(recovery, checkpointer=InMemorySaver(), interrupts=True).invoke(
        step_input(STEP, "41"), THREAD
    )
    outcome = outcome_of(state)
    assert (outcome.status, outcome.reason) == ("unasked", "budget:escalations")
    assert "no escalation is left" in outcome.sentence


class Parent(TypedDict, total=False):
    question: str
    seen: list[str]
    step: Any
    candidate: str | None
    recovery: dict[str, Any]
    outcome: dict[str, Any]


@both
def test_it_embeds_and_leaves_the_parents_state_alone(invoke: Callable[..., Any]) -> None:
    recovery = SCENARIOS["tool"].recovery()

    def solve(state: Parent) -> dict[str, Any]:
        return dict(step_input(STEP, "41"))

    builder = StateGraph(Parent)
    builder.add_node("solve", solve)
    builder.add_node("recover", recovery_graph(recovery))
    builder.add_edge(START, "solve")
    builder.add_edge("solve", "recover")
    builder.add_edge("recover", END)
    state = invoke(builder.compile(), {"question": "q", "seen": ["a"]})
    assert (state["question"], state["seen"]) == ("q", ["a"])
    assert outcome_of(state).text == "42"


def test_a_thread_runs_one_step_after_another() -> None:
    recovery = SCENARIOS["tool"].recovery(sampler=ScriptedSampler(["40", "43", "44", "6*7"] * 2))
    graph = recovery_graph(recovery, checkpointer=InMemorySaver(), interrupts=True)
    for step in (STEP, Step.of("What is 7 times 6?"), STEP):
        given = step_input(step, "42" if step is STEP else "41")
        state = graph.invoke(given, THREAD)
        assert load(Case, state["recovery"]).step.id == step.id
        assert outcome_of(state).text == "42"


def test_what_is_not_a_recovery_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"give a Recovery, or a function from the run"):
        recovery_graph("recovery")  # type: ignore[arg-type]


def table(tokens: int, k: int = 20) -> TopLogprobs:
    rows = [[(i * k + j, -0.5 - j) for j in range(k)] for i in range(tokens)]
    return TopLogprobs.from_rows(rows, [i * k for i in range(tokens)])


def test_eight_rollouts_of_500_tokens_fit_in_32_kib_of_checkpoint() -> None:
    # Half of it not ASCII, as reasoning text may be; four characters a token, as English has.
    text = ("so 6×7 = "[:8] + "the sum → ") * 111
    rollouts = [
        Rollout(text[:2000], response_id=f"x:{i}", usage=Usage(80, 500, 1), logprobs=table(500)) for i in range(8)
    ]
    recovery = FAILING.recovery(
        sampler=ScriptedSampler(rollouts), extra_samples=8, budget=SCENARIOS["tool"].recovery().budget
    )
    saver = InMemorySaver()
    graph = recovery_graph(recovery, checkpointer=saver, interrupts=True)
    graph.invoke(step_input(STEP, "41"), THREAD)
    case = load(Case, graph.get_state(THREAD).values["recovery"])
    assert len(case.draws()) == 9
    assert case.diagnosis is not None
    assert case.diagnosis.evidence == "one_model"
    sizes = [len(saver.serde.dumps_typed(snapshot.values)[1]) for snapshot in graph.get_state_history(THREAD)]
    print(f"largest checkpointed state: {max(sizes)} bytes")  # noqa: T201  # the figure the limit is about
    assert max(sizes) <= 32 * 1024


@both
@pytest.mark.parametrize("name", EVERY)
def test_every_event_goes_to_the_custom_stream_and_to_the_hook(invoke: Callable[..., Any], name: str) -> None:
    scenario, seen = SCENARIOS[name], list[Event]()
    graph = recovery_graph(scenario.recovery(on_event=seen.append))
    given = step_input(STEP, scenario.candidate)
    told = [chunk for _, chunk in invoke(graph, given, stream_mode=["custom"])]
    assert told == [as_record(event) for event in seen]
    assert json.loads(json.dumps(told)) == told
    names = {"ToolRan": "rfx.tool_ran"}
    assert [t["type"] for t in told] == [names.get(n := type(e).__name__, f"rfx.{n.lower()}") for e in seen]
    assert all(t["step_id"] == STEP.id for t in told)
    assert told[-1]["outcome"]["status"] == scenario.status
    assert {"rfx.judged", "rfx.sampled"} & {t["type"] for t in told} or name == "no-budget-at-all"


@both
def test_what_was_said_stays_out_of_the_stream(invoke: Callable[..., Any]) -> None:
    said = ["candidate-said", "draw-said", "person-said"]
    recovery = FAILING.recovery(sampler=ScriptedSampler(["draw-said"] * 3))
    graph = recovery_graph(recovery, checkpointer=InMemorySaver(), interrupts=True)
    asked = Step.of("prompt-said", expected="expected-said")
    told = invoke(graph, step_input(asked, "candidate-said"), THREAD, stream_mode=["custom"])
    more = invoke(graph, Command(resume={"type": "reject", "message": "person-said"}), THREAD, stream_mode=["custom"])
    assert [t["type"] for _, t in more] == ["rfx.finished"]
    assert more[0][1]["outcome"] == {"status": "rejected", "by": "human", "reason": "human:reject"}
    text = json.dumps([*told, *more])
    assert not [word for word in (*said, "prompt-said", "expected-said") if word in text]


def test_a_hook_that_fails_costs_the_stream_nothing() -> None:
    def broken(event: Event) -> None:
        raise RuntimeError("the hook broke")

    recovery = SCENARIOS["accept"].recovery(on_event=broken)
    told = list(recovery_graph(recovery).stream(step_input(STEP, "42"), stream_mode="custom"))
    assert [t["type"] for t in told] == ["rfx.judged", "rfx.decided", "rfx.finished"]


class Chosen(BaseModel, frozen=True):
    """Hashable, so that a factory can be cached by it."""

    right: str = "42"


@both
def test_the_recovery_is_made_of_the_runs_context(invoke: Callable[..., Any]) -> None:
    made: list[Any] = []

    def make(context: Chosen | None) -> Recovery:
        made.append(context)
        right = (context or Chosen()).right
        return SCENARIOS["tool"].recovery(
            verifier=ScriptedVerifier([right]), sampler=ScriptedSampler(["40", "43", "44", "6*7"])
        )

    graph = recovery_graph(lru_cache(make), context_schema=Chosen)
    schema = graph.get_context_jsonschema()
    assert schema is not None
    assert schema["properties"]["right"]["default"] == "42"
    for context, status in (({"right": "41"}, "accepted"), ({"right": "42"}, "rescued"), (None, "rescued")):
        more = {} if context is None else {"context": context}
        assert outcome_of(invoke(graph, step_input(STEP, "41"), **more)).status == status
    assert made == [Chosen(right="41"), Chosen(right="42"), None]


@both
def test_a_person_may_be_asked_under_a_context(invoke: Callable[..., Any]) -> None:
    made = {default: FAILING.recovery(escalation=Escalation(default=default)) for default in ("approve", "reject")}
    graph = recovery_graph(
        lambda context: made[context], context_schema=str, checkpointer=InMemorySaver(), interrupts=True
    )
    asked = invoke(graph, step_input(STEP, "41"), THREAD, context="approve")["__interrupt__"][0].value
    assert asked["rfx"]["default"] == "approve"
    state = invoke(graph, Command(resume={"type": "approve"}), THREAD, context="approve")
    assert outcome_of(state).status == "human"


def test_a_factory_has_to_give_a_recovery() -> None:
    with pytest.raises(ConfigError, match=r"returned 3; let it make a Recovery of the run's context"):
        recovery_graph(lambda context: 3).invoke(step_input(STEP, "41"))  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigError, match="a function from the run's context to a Recovery"):
        recovery_graph(Recovery)


@pytest.mark.parametrize("shared", [False, True])
def test_a_fork_of_a_thread_pays_as_the_documentation_says(shared: bool) -> None:
    sampler, store = ScriptedSampler([], last="It is 41"), MemoryStore()
    recovery = Recovery(
        sampler,
        FunctionVerifier(lambda text: "42" in text),
        budget=RetryBudget(samples=3, attempts=3),
        shared=SharedBudget(store=store, limits=(Window("global", "tokens", 10**6, per="day"),)) if shared else None,
    )
    graph = recovery_graph(recovery, interrupts=True, checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}

    def calls(run: Callable[[], Any]) -> int:
        before = len(sampler.requests)
        run()
        return len(sampler.requests) - before

    def spent() -> int:
        return sum(x.spent for x in store.accounts())

    assert calls(lambda: graph.invoke(step_input(Step.of("q"), candidate="It is 40"), thread)) == 3
    once, found = spent(), list(graph.get_state_history(thread))
    middle = [x.config for x in found if x.next == ("resample",)]
    assert calls(lambda: graph.invoke(None, middle[-1])) == (0 if shared else 3)  # from before the first draw
    assert calls(lambda: graph.invoke(None, middle[0])) == (0 if shared else 1)  # from before the last
    assert spent() == once
    assert calls(lambda: graph.invoke(None, [x.config for x in found if x.next == ("diagnose",)][-1])) == 3  # a new run
    assert spent() == 2 * once
