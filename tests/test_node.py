"""Recovery around one node of somebody's graph, and behind one: any schema, any form of update, nothing paid twice."""

import asyncio
import dataclasses
import operator
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from adapter_conformance import Limits, Parts, ReferenceWay, ScriptedChat, Way, observe
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command, interrupt
from pydantic import BaseModel
from scenarios import EVERY, STEP
from typing_extensions import TypedDict

from rfx_agent import ConfigError, Ratio, Recovery, RetryBudget, SharedBudget, Unresolved, codec
from rfx_agent.adapters.graph.behind import add_recovery
from rfx_agent.adapters.graph.node import recoverable
from rfx_agent.budgets.memory import MemoryStore
from rfx_agent.budgets.step import Ledger
from rfx_agent.case import Decision, Diagnosis
from rfx_agent.policies import DefaultPolicy
from rfx_agent.testing import ScriptedSampler, ScriptedTool, ScriptedVerifier

INVOKES: dict[str, Callable[..., Any]] = {
    "sync": lambda graph, given, config=None, **more: graph.invoke(given, config, **more),
    "async": lambda graph, given, config=None, **more: asyncio.run(graph.ainvoke(given, config, **more)),
}
both = pytest.mark.parametrize("invoke", INVOKES.values(), ids=INVOKES)
THREAD = {"configurable": {"thread_id": "t"}}
QUESTION = "What is 6 times 7?"
CALL = AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}])


class Typed(TypedDict, total=False):
    question: str
    expected: str
    answer: str
    outcome: dict[str, Any]
    note: str


@dataclasses.dataclass
class Data:
    question: str = ""
    expected: str = ""
    answer: str | None = None
    outcome: dict[str, Any] | None = None
    note: str = ""


class Model(BaseModel):
    question: str = ""
    expected: str = ""
    answer: str | None = None
    outcome: dict[str, Any] | None = None
    note: str = ""


SCHEMAS = {"TypedDict": Typed, "dataclass": Data, "pydantic": Model}
schemas = pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)


def get(state: Any, key: str) -> Any:
    return state[key] if isinstance(state, dict) else getattr(state, key)


def deployment(texts: list[Any] | None = None, **more: Any) -> Recovery:
    """Draws three times at once before it decides, unless told otherwise."""
    parts: dict[str, Any] = {
        "sampler": ScriptedSampler(texts or []),
        "verifier": ScriptedVerifier(["42"]),
        "extra_samples": 3,
    }
    return Recovery(**(parts | more))


class Solver:
    """A node's work: gives its answers in order, and counts."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.calls = list(answers), 0

    def __call__(self) -> str:
        self.calls += 1
        return self.answers.pop(0)


def chain(schema: Any, node: Any, **nodes: Any) -> Any:
    builder = StateGraph(schema)
    builder.add_node("solve", node)
    builder.add_edge(START, "solve")
    builder.add_edge("solve", END)
    for name, more in nodes.items():
        builder.add_node(name, more)
        builder.add_edge(name, END)
    return builder


KEYS: Any = {"prompt": "question", "answer": "answer", "expected": "expected"}


class TestRecoverable:
    @both
    @schemas
    def test_a_failed_answer_is_replaced_by_the_run_that_passed(self, invoke: Callable[..., Any], schema: Any) -> None:
        work = Solver("40", "41", "42", "43")

        def solve(state: Any) -> dict[str, Any]:
            assert get(state, "question") == QUESTION
            made = work()
            return {"answer": made, "note": f"by run {work.calls}"}

        recovery = deployment()
        graph = chain(schema, recoverable(solve, recovery=recovery, **KEYS)).compile()
        state = invoke(graph, {"question": QUESTION, "expected": "42"})
        assert (state["answer"], state["note"], work.calls) == ("42", "by run 3", 4)

    @both
    def test_what_passes_runs_once_and_is_returned_as_it_is(self, invoke: Callable[..., Any]) -> None:
        work, out = Solver("42"), []

        def solve(state: Typed) -> dict[str, Any]:
            out.append({"answer": work()})
            return out[0]

        node = recoverable(solve, recovery=deployment(), **KEYS)
        assert invoke(chain(Typed, node).compile(), {"question": QUESTION})["answer"] == "42"
        assert work.calls == 1
        work.answers = ["42"]
        out.clear()
        assert node({"question": QUESTION}) is out[0]  # on its own, outside a graph

    @pytest.mark.parametrize(
        "output",
        [
            lambda text: {"answer": text, "note": "n"},
            lambda text: Model(answer=text, note="n"),
            lambda text: Data(answer=text, note="n"),
            lambda text: [("answer", text), ("note", "n")],
            lambda text: Command(update={"answer": text, "note": "n"}),
            lambda text: Command(update=[("answer", text), ("note", "n")]),
            lambda text: [Command(update={"note": "n"}), {"answer": text}],
        ],
    )
    def test_an_answer_that_no_run_gave_stands_in_the_first_update(self, output: Callable[[str], Any]) -> None:
        work = Solver("40", "41", "43", "44")
        recovery = deployment(["6*7"], tool=ScriptedTool({"6*7": 42}))
        node = recoverable(lambda state: output(work()), recovery=recovery, outcome="outcome", **KEYS)
        made = node({"question": QUESTION})
        assert type(made) is type(output("40"))
        if not isinstance(made, list) or isinstance(made[0], Command):
            builder = StateGraph(Typed)
            builder.add_node("solve", lambda state: made)
            builder.add_edge(START, "solve")
            state = builder.compile().invoke({"question": QUESTION})
        else:
            state = dict(made)
        assert (state["answer"], state["note"]) == ("42", "n")
        assert (state["outcome"]["status"], state["outcome"]["by"]) == ("rescued", "tool")

    @both
    def test_a_commands_goto_is_kept(self, invoke: Callable[..., Any]) -> None:
        work = Solver("40", "42", "41", "43")

        def solve(state: Typed) -> Command[Literal["right", "wrong"]]:
            made = work()
            return Command(goto="right" if made == "42" else "wrong", update={"answer": made})

        builder = StateGraph(Typed)
        builder.add_node("solve", recoverable(solve, recovery=deployment(), **KEYS))
        builder.add_node("right", lambda state: {"note": "right"})
        builder.add_node("wrong", lambda state: {"note": "wrong"})
        builder.add_edge(START, "solve")
        graph = builder.compile()
        # The hints of the function are still read, so the drawing has both destinations.
        assert {("solve", "right"), ("solve", "wrong")} <= {(e.source, e.target) for e in graph.get_graph().edges}
        assert invoke(graph, {"question": QUESTION})["note"] == "right"

    def test_coroutines_stay_coroutines_and_run_at_once(self) -> None:
        running, most = 0, 0

        @recoverable(recovery=deployment(), **KEYS)
        async def solve(state: Typed) -> dict[str, Any]:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            running -= 1
            return {"answer": "41" if most == 1 else "42"}

        assert asyncio.iscoroutinefunction(solve)
        assert asyncio.run(chain(Typed, solve).compile().ainvoke({"question": QUESTION}))["answer"] == "42"
        assert most == 3

    @both
    def test_a_node_may_take_config_and_runtime(self, invoke: Callable[..., Any]) -> None:
        seen: list[tuple[Any, Any]] = []

        def with_both(state: Typed, config: RunnableConfig, runtime: Runtime[str]) -> dict[str, Any]:
            seen.append((config["configurable"]["thread_id"], runtime.context))
            return {"answer": "42" if len(seen) == 3 else "41"}

        async def with_runtime(state: Typed, runtime: Runtime[str]) -> dict[str, Any]:
            seen.append((None, runtime.context))
            return {"answer": "42" if len(seen) == 3 else "41"}

        for node in (with_both, with_runtime) if invoke is INVOKES["async"] else (with_both,):
            seen.clear()
            builder = StateGraph(Typed, context_schema=str)  # type: ignore[type-var]
            builder.add_node("solve", recoverable(node, recovery=deployment(), **KEYS))
            builder.add_edge(START, "solve")
            state = invoke(builder.compile(), {"question": QUESTION}, THREAD, context="c")
            assert state["answer"] == "42"
            assert {context for _, context in seen} == {"c"}
            assert len(seen) == 4

    @both
    def test_attempts_are_tagged_for_everything_they_run(self, invoke: Callable[..., Any]) -> None:
        tags: list[list[str]] = []

        class Watch(BaseCallbackHandler):
            def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
                tags.append(sorted(t for t in kwargs.get("tags") or [] if t.startswith(("retry", "nostream"))))

        source = ScriptedSampler(["40", "41", "42", "43"])
        model = ScriptedChat(source=source, candidate=[])

        def solve(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
            # Once by the config that it is given, once by the context that it runs in.
            with_config = len(source.requests) % 2 == 0
            return {"messages": [model.invoke(state["messages"], config if with_config else None)]}

        events: list[Any] = []
        recovery = deployment(on_event=events.append)
        graph = chain(MessagesState, recoverable(solve, recovery=recovery)).compile()
        state = invoke(graph, {"messages": [HumanMessage(QUESTION)]}, {"callbacks": [Watch()]})
        assert [m.text for m in state["messages"]] == [QUESTION, "42"]
        assert tags == [[], *(["nostream", f"retry:attempt:{i}"] for i in (2, 3, 4))]
        sampled = next(e for e in events if type(e).__name__ == "Sampled")
        assert (sampled.usage.prompt_tokens, sampled.usage.completion_tokens, sampled.usage.calls) == (30, 3, 3)

    @both
    def test_a_runnable_stays_one(self, invoke: Callable[..., Any]) -> None:
        work = Solver("40", "41", "42", "43")
        node = recoverable(RunnableLambda(lambda state: {"answer": work()}), recovery=deployment(), **KEYS)
        assert invoke(chain(Typed, node).compile(), {"question": QUESTION})["answer"] == "42"

    @both
    def test_the_models_draws_may_take_the_nodes_place(self, invoke: Callable[..., Any]) -> None:
        work, recovery = Solver("40"), deployment(["41", "42", "43"])
        node = recoverable(lambda state: {"answer": work()}, recovery=recovery, resample="model", **KEYS)
        state = invoke(chain(Typed, node).compile(), {"question": QUESTION})
        assert (state["answer"], work.calls) == ("42", 1)
        assert recovery.sampler.requests[0].messages == ({"role": "user", "content": QUESTION},)  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        "output",
        [
            None,
            {},
            {"note": "nothing yet"},
            {"messages": []},
            {"messages": [HumanMessage("and you?")]},
            {"messages": [CALL]},
            {"messages": [CALL, ToolMessage("x", tool_call_id="1")]},
        ],
    )
    def test_a_node_without_an_answer_has_not_failed(self, output: Any) -> None:
        recovery = deployment()
        node = recoverable(lambda state: output, recovery=recovery)
        assert node({"messages": [HumanMessage(QUESTION)]}) is output
        assert recovery.verifier.judged == []  # type: ignore[attr-defined]

    @pytest.mark.parametrize("listed", [True, False])
    @pytest.mark.parametrize(
        "wrong", [AIMessage("41", id="a"), ("ai", "41"), {"role": "assistant", "content": "41", "id": "a"}]
    )
    def test_messages_in_any_form(self, wrong: Any, listed: bool) -> None:
        recovery = deployment(["6*7"], tool=ScriptedTool({"6*7": 42}), extra_samples=0)
        seen = [HumanMessage("thinking"), wrong] if listed else wrong
        made = recoverable(lambda state: {"messages": seen}, recovery=recovery)({"messages": [HumanMessage(QUESTION)]})
        last = made["messages"][-1] if listed else made["messages"]
        assert (last.text, last.id) == ("42", None if isinstance(wrong, tuple) else "a")
        assert not listed or made["messages"][0] is seen[0]

    def test_unresolved_is_raised_or_written_to_the_declared_key(self) -> None:
        budget = RetryBudget(samples=1)
        node = recoverable(lambda state: {"answer": "41"}, recovery=deployment(budget=budget), **KEYS)
        with pytest.raises(Unresolved, match="samples") as raised:
            node({"question": QUESTION})
        assert raised.value.case.outcome is not None
        assert raised.value.case.outcome.status == "unresolved"
        node = recoverable(
            lambda state: {"answer": "41"}, recovery=deployment(budget=budget), outcome="outcome", **KEYS
        )
        made = node({"question": QUESTION})
        assert (made["answer"], made["outcome"]["status"]) == ("41", "unresolved")

    @both
    def test_an_error_of_the_first_run_is_the_nodes_and_of_a_further_one_is_noted(
        self, invoke: Callable[..., Any]
    ) -> None:
        calls = 0

        def solve(state: Typed) -> dict[str, Any]:
            nonlocal calls
            calls += 1
            if calls in (1, 3):
                raise OSError(f"broke in {calls}")
            return {"answer": "42" if calls == 5 else "41"}

        graph = chain(Typed, recoverable(solve, recovery=deployment(), **KEYS)).compile()
        with pytest.raises(OSError, match="broke in 1"):
            invoke(graph, {"question": QUESTION})
        assert invoke(graph, {"question": QUESTION})["answer"] == "42"

    @both
    def test_an_interrupt_of_the_nodes_own_works_before_anything_is_paid_and_not_after(
        self, invoke: Callable[..., Any]
    ) -> None:
        work = Solver("42")

        def asks_first(state: Typed) -> dict[str, Any]:
            return {"note": interrupt("which?"), "answer": work()}

        builder = chain(Typed, recoverable(asks_first, recovery=deployment(), **KEYS))
        graph = builder.compile(checkpointer=InMemorySaver())
        invoke(graph, {"question": QUESTION}, THREAD)
        assert invoke(graph, Command(resume="this"), THREAD)["note"] == "this"

        def asks_more(state: Typed) -> dict[str, Any]:
            asked.append(interrupt("which?"))
            return {"answer": "41" if len(asked) == 1 else interrupt("and then?")}

        asked: list[str] = []
        graph = chain(Typed, recoverable(asks_more, recovery=deployment(), **KEYS)).compile(
            checkpointer=InMemorySaver()
        )
        invoke(graph, {"question": QUESTION}, THREAD)
        with pytest.raises(ConfigError, match="something new by an interrupt"):
            invoke(graph, Command(resume="this"), THREAD)

    @both
    def test_a_further_run_gets_the_replies_that_the_first_one_got(self, invoke: Callable[..., Any]) -> None:
        work = Solver("40", "41", "43")

        def solve(state: Typed) -> dict[str, Any]:
            who, what = interrupt("who?"), interrupt("what?")
            return {"note": f"{who}, {what}", "answer": work() if work.answers else "42"}

        node = recoverable(solve, recovery=deployment(), **KEYS)
        graph = chain(Typed, node).compile(checkpointer=InMemorySaver())
        invoke(graph, {"question": QUESTION}, THREAD)
        invoke(graph, Command(resume="me"), THREAD)
        state = invoke(graph, Command(resume="this"), THREAD)
        assert (state["answer"], state["note"], work.calls) == ("42", "me, this", 3)

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ({"recovery": "no"}, "recovery is 'no'"),
            ({"resample": "both"}, "resample is 'both'"),
            ({"prompt": None}, "prompt is None"),
            ({"answer": ""}, "answer is ''"),
            ({"outcome": 3}, "outcome is 3"),
            ({"node": 3}, "node is 3"),
        ],
    )
    def test_parameters_that_cannot_work_are_refused(self, change: dict[str, Any], why: str) -> None:
        given: dict[str, Any] = {"node": lambda state: {}, "recovery": deployment()}
        with pytest.raises(ConfigError, match=why):
            recoverable(**(given | change))

    def test_a_prompt_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="prompt 'question' is None"):
            recoverable(lambda state: {"answer": "41"}, recovery=deployment(), **KEYS)({})

    @both
    def test_a_factory_makes_the_recovery_of_the_runs_context(self, invoke: Callable[..., Any]) -> None:
        given: list[str | None] = []

        def make(context: str | None) -> Recovery:
            given.append(context)
            return deployment(verifier=ScriptedVerifier([context or "42"]))

        builder = StateGraph(Typed, context_schema=str)  # type: ignore[type-var]
        builder.add_node("solve", recoverable(lambda state: {"answer": "seven"}, recovery=make, **KEYS))
        builder.add_edge(START, "solve")
        assert invoke(builder.compile(), {"question": QUESTION}, context="seven")["answer"] == "seven"
        assert given == ["seven"]

    @both
    def test_events_go_to_the_custom_stream(self, invoke: Callable[..., Any]) -> None:
        work = Solver("40", "41", "42", "43")
        node = recoverable(lambda state: {"answer": work()}, recovery=deployment(), **KEYS)
        told = invoke(chain(Typed, node).compile(), {"question": QUESTION}, stream_mode=["custom"])
        names = [event["type"] for _, event in told]
        assert names == [
            "rfx.judged",
            "rfx.reserved",
            "rfx.sampled",
            *["rfx.judged"] * 3,
            "rfx.decided",
            "rfx.finished",
        ]


class TestPassing:
    """A step that passes at once: what is spared, and what is told all the same."""

    @both
    def test_a_hook_is_told_the_same_whether_anybody_reads_the_stream(self, invoke: Callable[..., Any]) -> None:
        told: list[Any] = []
        recovery = deployment(on_event=told.append)
        graph = chain(Typed, recoverable(lambda state: {"answer": "42"}, recovery=recovery, **KEYS)).compile()
        invoke(graph, {"question": QUESTION})
        unread = [type(event).__name__ for event in told]
        streamed = invoke(graph, {"question": QUESTION}, stream_mode=["custom"])
        assert unread == ["Judged", "Decided", "Finished"]
        assert [type(event).__name__ for event in told[3:]] == unread
        assert [len({e.run_id for e in told[i : i + 3]}) for i in (0, 3)] == [1, 1]
        assert told[0].run_id not in ("", told[3].run_id)
        assert [event["type"] for _, event in streamed] == ["rfx.judged", "rfx.decided", "rfx.finished"]

    @both
    def test_without_a_hook_the_stream_is_told_of_what_failed(self, invoke: Callable[..., Any]) -> None:
        for answers in (["42"], ["41", "42"]):
            verifier, work = ScriptedVerifier(["42"]), Solver(*answers)
            recovery = deployment(verifier=verifier, extra_samples=1)
            graph = chain(Typed, recoverable(lambda state, work=work: {"answer": work()}, recovery=recovery, **KEYS))
            streamed = invoke(graph.compile(), {"question": QUESTION}, stream_mode=["custom"])
            ends = [event["type"] for _, event in streamed][-2:]
            assert ends == ([] if answers == ["42"] else ["rfx.decided", "rfx.finished"])
            assert verifier.judged == answers

    @both
    def test_the_outcome_is_the_engines(self, invoke: Callable[..., Any]) -> None:
        node = recoverable(lambda state: {"answer": "42"}, recovery=deployment(), outcome="outcome", **KEYS)
        outcome = deployment().run(QUESTION, "42").outcome
        assert invoke(chain(Typed, node).compile(), {"question": QUESTION})["outcome"] == codec.plain(outcome)

    @both
    @pytest.mark.parametrize("answers", [["42"], ["40", "41", "42", "43"]])
    def test_nothing_is_judged_twice(self, invoke: Callable[..., Any], answers: list[str]) -> None:
        verifier, work = ScriptedVerifier(["42"]), Solver(*answers)
        node = recoverable(lambda state: {"answer": work()}, recovery=deployment(verifier=verifier), **KEYS)
        assert invoke(chain(Typed, node).compile(), {"question": QUESTION})["answer"] == "42"
        assert verifier.judged == answers

    @both
    def test_somebody_elses_policy_has_its_say(self, invoke: Callable[..., Any]) -> None:
        seen: list[bool] = []

        class Own:
            version = "own/1"

            def decide(self, diagnosis: Diagnosis, ledger: Ledger) -> Decision:
                seen.append(diagnosis.passed is not None)
                return DefaultPolicy().decide(diagnosis, ledger)

        node = recoverable(lambda state: {"answer": "42"}, recovery=deployment(policy=Own()), **KEYS)
        invoke(chain(Typed, node).compile(), {"question": QUESTION})
        assert seen == [True]

    @both
    def test_it_counts_as_traffic_of_a_shared_budget(self, invoke: Callable[..., Any]) -> None:
        store = MemoryStore()
        shared = SharedBudget(store=store, limits=(Ratio("global", "attempts", share=0.5, floor=0),))
        recovery = deployment(shared=shared, extra_samples=1)
        passes = recoverable(lambda state: {"answer": "42"}, recovery=recovery, **KEYS)
        for _ in range(2):
            invoke(chain(Typed, passes).compile(), {"question": QUESTION})
        work = Solver("41", "42")
        fails = recoverable(lambda state: {"answer": work()}, recovery=recovery, **KEYS)
        assert invoke(chain(Typed, fails).compile(), {"question": QUESTION})["answer"] == "42"


FAILING: Any = {"budget": RetryBudget(samples=3)}


def plain(schema: Any, work: Solver) -> Any:
    return chain(schema, lambda state: {"answer": work()})


class TestAddRecovery:
    @both
    @schemas
    def test_one_call_puts_recovery_behind_a_node(self, invoke: Callable[..., Any], schema: Any) -> None:
        work, seen = Solver("41"), []
        builder = StateGraph(schema)
        builder.add_node("solve", lambda state: {"answer": work()})
        builder.add_node("finish", lambda state: seen.append(get(state, "answer")))
        builder.add_edge(START, "solve")
        builder.add_edge("solve", "finish")
        add_recovery(builder, "solve", recovery=deployment(["40", "42", "43"]), **KEYS)
        graph = builder.compile()
        edges = {(e.source, e.target) for e in graph.get_graph().edges}
        assert {("solve", "recover"), ("recover", "finish")} <= edges
        assert ("solve", "finish") not in edges
        state = invoke(graph, {"question": QUESTION, "expected": "42", "note": "kept"})
        assert (state["answer"], state["note"], seen, work.calls) == ("42", "kept", ["42"], 1)

    @both
    def test_messages_are_replaced_by_id_and_the_failed_one_is_not_in_the_prompt(
        self, invoke: Callable[..., Any]
    ) -> None:
        recovery = deployment(["40", "42", "43"])
        builder = chain(MessagesState, lambda state: {"messages": [AIMessage("41", id="a", name="bob")]})
        add_recovery(builder, "solve", recovery=recovery)
        state = invoke(builder.compile(), {"messages": [HumanMessage(QUESTION)]})
        assert [(m.text, m.id) for m in state["messages"]][1:] == [("42", "a")]
        assert state["messages"][1].name == "bob"
        assert recovery.sampler.requests[0].messages == ({"role": "user", "content": QUESTION},)  # type: ignore[attr-defined]

    def test_lists_without_a_reducer_and_texts_with_one(self) -> None:
        class Plain(TypedDict):
            messages: list[AnyMessage]

        builder = chain(Plain, lambda state: {"messages": [*state["messages"], AIMessage("41")]})
        add_recovery(builder, "solve", recovery=deployment(["40", "42", "43"]))
        state = builder.compile().invoke({"messages": [HumanMessage(QUESTION)]})
        assert [m.text for m in state["messages"]] == [QUESTION, "42"]

        class Added(TypedDict):
            question: str
            answer: Annotated[str, operator.add]

        builder = chain(Added, lambda state: {"answer": "41"})
        with pytest.raises(ConfigError, match="has a reducer"):
            add_recovery(builder, "solve", recovery=deployment(["42"]), prompt="question", answer="answer")

    def test_a_turn_that_calls_tools_has_not_failed(self) -> None:
        recovery = deployment()
        builder = chain(MessagesState, lambda state: {"messages": [CALL]})
        add_recovery(builder, "solve", recovery=recovery)
        assert builder.compile().invoke({"messages": [HumanMessage(QUESTION)]})["messages"][-1].tool_calls
        assert recovery.verifier.judged == []  # type: ignore[attr-defined]

    @both
    @schemas
    @pytest.mark.parametrize(
        ("reply", "answer", "status"),
        [
            ({"type": "approve"}, "40", "human"),
            ({"type": "edit", "edited_action": {"name": "accept_answer", "args": {"answer": "42"}}}, "42", "human"),
            ({"type": "respond", "message": "it is 42"}, "it is 42", "human"),
            ({"type": "reject", "message": "no"}, "41", "rejected"),
        ],
    )
    def test_a_person_answers_and_nothing_is_paid_twice(
        self, invoke: Callable[..., Any], schema: Any, reply: Any, answer: str, status: str
    ) -> None:
        work, verifier, events = Solver("41"), ScriptedVerifier(["42"]), list[Any]()
        recovery = deployment(["40", "40", "44"], verifier=verifier, on_event=events.append, **FAILING)
        builder = plain(schema, work)
        add_recovery(builder, "solve", recovery=recovery, outcome="outcome", **KEYS, interrupts=True)
        graph = builder.compile(checkpointer=InMemorySaver())
        asked = invoke(graph, {"question": QUESTION, "expected": "42"}, THREAD)["__interrupt__"][0].value
        assert asked["action_requests"][0]["args"] == {"answer": "40"}
        sampler: Any = recovery.sampler
        paid = (work.calls, len(sampler.requests), len(verifier.judged), len(events))
        assert paid[:3] == (1, 1, 4)
        # A reply that does not fit is asked for again, and costs nothing either.
        again = invoke(graph, Command(resume={"decisions": []}), THREAD)["__interrupt__"][0].value
        assert "decisions" in again["error"]
        state = invoke(graph, Command(resume={"decisions": [reply]}), THREAD)
        assert (state["answer"], state["outcome"]["status"]) == (answer, status)
        assert (work.calls, len(sampler.requests), len(verifier.judged), len(events) - 1) == paid

    @both
    def test_a_loop_visits_it_anew(self, invoke: Callable[..., Any]) -> None:
        work = Solver("41", "42")
        recovery = deployment(["40", "40", "44"], **FAILING)
        builder = StateGraph(Typed)
        builder.add_node("solve", lambda state: {"answer": work()})
        builder.add_edge(START, "solve")
        add_recovery(
            builder,
            "solve",
            recovery=recovery,
            outcome="outcome",
            goto=END,
            unresolved="solve",
            **KEYS,
            interrupts=True,
        )
        graph = builder.compile(checkpointer=InMemorySaver())
        invoke(graph, {"question": QUESTION}, THREAD)
        state = invoke(graph, Command(resume={"type": "reject"}), THREAD)
        assert (state["answer"], state["outcome"]["status"], work.calls) == ("42", "accepted", 2)

    @both
    def test_without_an_answer_it_raises_or_goes_where_it_was_told(self, invoke: Callable[..., Any]) -> None:
        builder = plain(Typed, Solver("41"))
        add_recovery(builder, "solve", recovery=deployment(["1", "2", "3"], **FAILING), **KEYS)
        with pytest.raises(Unresolved, match="samples"):
            invoke(builder.compile(), {"question": QUESTION})

        for texts, note in ((["1", "2", "3"], "gave up"), (["1", "42", "3"], "went on")):
            builder = StateGraph(Typed)
            builder.add_node("solve", lambda state: {"answer": "41"})
            builder.add_node("on", lambda state: {"note": "went on"})
            builder.add_node("out", lambda state: {"note": "gave up"})
            builder.add_edge(START, "solve")
            builder.add_edge("solve", "on")
            recovery = deployment(texts, **FAILING)
            add_recovery(builder, "solve", recovery=recovery, unresolved="out", **KEYS)
            assert invoke(builder.compile(), {"question": QUESTION})["note"] == note

    def test_joins_are_led_through_it(self) -> None:
        class Joined(Typed, total=False):
            seen: Annotated[list[str], operator.add]

        builder = StateGraph(Joined)
        builder.add_node("solve", lambda state: {"answer": "41"})
        builder.add_node("other", lambda state: {"seen": ["other"]})
        builder.add_node("join", lambda state: {"seen": [f"join {state['answer']}"]})
        builder.add_edge(START, "solve")
        builder.add_edge(START, "other")
        builder.add_edge(["solve", "other"], "join")
        with pytest.raises(ConfigError, match="branch behind the join"):
            add_recovery(builder, "solve", recovery=deployment(), unresolved="other", **KEYS, interrupts=True)
        add_recovery(builder, "solve", recovery=deployment(["40", "42", "43"]), **KEYS)
        assert builder.compile().invoke({"question": QUESTION})["seen"] == ["other", "join 42"]

    def test_the_subgraph_is_found_and_its_events_reach_the_parents_stream(self) -> None:
        builder = plain(Typed, Solver("41"))
        add_recovery(builder, "solve", recovery=deployment(["40", "40", "44"], **FAILING), **KEYS, interrupts=True)
        graph = builder.compile(checkpointer=InMemorySaver())
        told = list(graph.stream({"question": QUESTION}, THREAD, stream_mode="custom", subgraphs=True))
        assert {place[0].split(":")[0] for place, _ in told} == {"recover"}
        assert [t["type"] for _, t in told][-2:] == ["rfx.reserved", "rfx.escalated"]
        inner = graph.get_state(THREAD, subgraphs=True).tasks[0].state
        assert inner is not None
        assert "recovery" in inner.values
        assert [name for name, _ in graph.get_subgraphs()] == ["recover"]

    def test_a_factory_gets_the_parents_context(self) -> None:
        def make(context: str) -> Recovery:
            return deployment(["40", context, "44"], verifier=ScriptedVerifier([context]))

        made = {"seven": make("seven")}
        builder = StateGraph(Typed, context_schema=str)  # type: ignore[type-var]
        builder.add_node("solve", lambda state: {"answer": "41"})
        builder.add_edge(START, "solve")
        add_recovery(builder, "solve", recovery=lambda context: made[context], **KEYS)
        assert builder.compile().invoke({"question": QUESTION}, context="seven")["answer"] == "seven"

    def test_graphs_that_do_not_fit_are_refused(self) -> None:
        def refused(why: str, builder: Any, after: str = "solve", **change: Any) -> None:
            with pytest.raises(ConfigError, match=why):
                add_recovery(builder, after, recovery=deployment(), **(KEYS | change), interrupts=True)

        builder = plain(Typed, Solver())
        refused("before it is compiled", builder.compile())
        refused(r"give one of the nodes \['solve'\]", builder, "solver")
        refused("already", builder, name="solve")
        refused("answer is 'reply', and the state of the graph has no such key", builder, answer="reply")
        builder.add_conditional_edges("solve", lambda state: END)
        refused(r"add_conditional_edges\('recover', ...\) in their place", builder)

        def goes(state: Typed) -> Command[Literal["solve"]]:
            return Command(goto="solve")

        refused("says itself where to go", chain(Typed, goes))

    def test_a_key_of_the_nodes_own_schema_will_do(self) -> None:
        class Private(TypedDict):
            question: str
            draft: str

        class Public(TypedDict):
            question: str

        def solve(state: Private) -> dict[str, Any]:
            return {"draft": "41"}

        def last(state: Private) -> dict[str, Any]:
            return {"question": state["draft"]}

        builder = StateGraph(Public)
        builder.add_node("solve", solve)
        builder.add_node("last", last)
        builder.add_edge(START, "solve")
        builder.add_edge("solve", "last")
        add_recovery(
            builder,
            "solve",
            recovery=deployment(["40", "42", "43"]),
            prompt="question",
            answer="draft",
        )
        assert builder.compile().invoke({"question": QUESTION})["question"] == "42"


class NodeWay(Way):
    """``recoverable`` around a node that calls a chat model on its messages."""

    name = "node"
    limits = Limits(
        own_candidate=True, single=True, takes_prefix=False, takes_max_tokens=False, draw_fields=("n", "messages")
    )

    def graph(self, parts: Parts) -> Any:
        model = ScriptedChat(source=parts.model, candidate=[parts.scenario.candidate])

        def solve(state: MessagesState) -> dict[str, Any]:
            return {"messages": [model.invoke(state["messages"])]}

        async def asolve(state: MessagesState) -> dict[str, Any]:
            return {"messages": [await model.ainvoke(state["messages"])]}

        node = RunnableLambda(solve, asolve)
        recovery = parts.recovery()
        return chain(MessagesState, recoverable(node, recovery=recovery, prompt=lambda _: STEP)).compile()

    def run(self, parts: Parts) -> str | None:
        try:
            return str(self.graph(parts).invoke(self.given(parts))["messages"][-1].text)
        except Unresolved:
            return None

    async def arun(self, parts: Parts) -> str | None:
        try:
            # One at a time, so that the script's order is the draws' order.
            state = await self.graph(parts).ainvoke(self.given(parts), {"max_concurrency": 1})
        except Unresolved:
            return None
        return str(state["messages"][-1].text)

    def given(self, parts: Parts) -> Any:
        return {"messages": [HumanMessage(m["content"]) for m in STEP.messages]}


class BehindWay(NodeWay):
    """``add_recovery`` behind such a node: the engine itself samples, with everything it asks for."""

    name = "behind"
    limits = Limits(own_candidate=True)

    def graph(self, parts: Parts) -> Any:
        model = ScriptedChat(source=parts.model, candidate=[parts.scenario.candidate])
        builder = chain(MessagesState, lambda state: {"messages": [model.invoke(state["messages"])]})
        add_recovery(builder, "solve", recovery=parts.recovery(), prompt=lambda _: STEP)
        return builder.compile()


@pytest.mark.parametrize("use_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("way", [NodeWay(), BehindWay()], ids=lambda way: way.name)
@pytest.mark.parametrize("name", EVERY)
def test_both_ways_do_what_the_engine_does(way: Way, name: str, use_async: bool) -> None:
    assert observe(way, name, use_async=use_async) == observe(ReferenceWay(way.limits), name, use_async=False)
