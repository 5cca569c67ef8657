"""``BudgetMiddleware`` and ``with_budget``: every model and tool call of a run on one ledger, however it is called."""

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelFallbackMiddleware, ModelRetryMiddleware, SummarizationMiddleware
from langchain.agents.structured_output import ToolStrategy
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command
from pydantic import BaseModel, PrivateAttr

from rfx_agent import (
    BudgetMiddleware,
    ConfigError,
    InFlight,
    JudgeVerifier,
    MemoryStore,
    Price,
    RecoverabilityMiddleware,
    Recovery,
    RetryBudget,
    SharedBudget,
    Window,
    budget_of,
    recoverable,
    with_budget,
)
from rfx_agent.adapters.budget import runs
from rfx_agent.errors import BudgetExhausted
from rfx_agent.testing import ScriptedSampler, ScriptedVerifier

READ, WROTE = 20, 10
ASKED: Any = {"messages": [HumanMessage("What is 6 times 7?")]}
THREAD: Any = {"configurable": {"thread_id": "t"}}
INVOKES: dict[str, Callable[..., Any]] = {
    "sync": lambda agent, given, config=None: agent.invoke(given, config),
    "async": lambda agent, given, config=None: asyncio.run(agent.ainvoke(given, config)),
}
both = pytest.mark.parametrize("invoke", INVOKES.values(), ids=INVOKES)


class Model(BaseChatModel):
    """Says ``says`` and calls ``calls`` each time, or gives ``replies`` in order; counts what it wrote."""

    calls: list[dict[str, Any]] = []  # noqa: RUF012  # pydantic copies it
    replies: list[Any] = []  # noqa: RUF012
    model: str = "looping"
    says: str = "I look."
    max_tokens: int | None = 50
    pause: float = 0.0
    counts: bool = True
    _asked: list[list[str]] = PrivateAttr(default_factory=list)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    @property
    def _llm_type(self) -> str:
        return "looping"

    @property
    def asked(self) -> int:
        return len(self._asked)

    def bind_tools(self, tools: Any, **_: Any) -> Any:
        return self

    def _message(self, messages: Any) -> AIMessage:
        with self._lock:
            self._asked.append([m.text for m in messages])
            number = len(self._asked)
            reply = self.replies.pop(0) if self.replies else self.says
        if isinstance(reply, Exception):
            raise reply
        usage = {"input_tokens": READ, "output_tokens": WROTE, "total_tokens": READ + WROTE} if self.counts else None
        calls = [{**call, "id": f"c{number}-{i}"} for i, call in enumerate(self.calls)]
        return AIMessage(reply, tool_calls=calls if reply == self.says else [], usage_metadata=usage)  # type: ignore[arg-type]

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        time.sleep(self.pause)
        return ChatResult(generations=[ChatGeneration(message=self._message(messages))])

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        await asyncio.sleep(self.pause)
        return ChatResult(generations=[ChatGeneration(message=self._message(messages))])


class Streaming(Model):
    """The same word by word."""

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **_: Any
    ) -> Iterator[ChatGenerationChunk]:
        message = self._message(messages)
        for word in message.text.split():
            time.sleep(self.pause)
            yield ChatGenerationChunk(message=AIMessageChunk(f"{word} "))
        chunks = [
            {"name": c["name"], "args": "{}", "id": c["id"], "index": i} for i, c in enumerate(message.tool_calls)
        ]
        last = AIMessageChunk("", tool_call_chunks=chunks, usage_metadata=message.usage_metadata)  # type: ignore[arg-type]
        yield ChatGenerationChunk(message=last)


LOOK: Any = {"name": "look", "args": {}}


@tool
def look() -> str:
    """Look."""
    return "nothing"


def looping(**fields: Any) -> Model:
    return Model(calls=[LOOK], **fields)


def asking() -> Model:
    return Model(calls=[{"name": "ask", "args": {}}])


def spent(agent: Any, config: Any = THREAD) -> dict[str, Any]:
    record: dict[str, Any] = agent.get_state(config).values["rfx_budget"]
    return record


def whole(messages: list[Any]) -> None:
    """No tool call is without its answer, so the thread can go on."""
    called = [c["id"] for m in messages if isinstance(m, AIMessage) for c in m.tool_calls]
    assert sorted(called) == sorted(m.tool_call_id for m in messages if isinstance(m, ToolMessage))


@both
@pytest.mark.parametrize(
    ("budget", "asked", "cap"),
    [
        ({"calls": 4}, 2, "calls"),
        ({"calls": 5}, 3, "calls"),
        ({"samples": 3}, 3, "samples"),
        ({"tokens": 500}, 8, "tokens"),
        ({"usd": 0.001}, 17, "usd"),
        ({"tool_seconds": 0}, 1, "tool_seconds"),
        ({"seconds": 0}, 0, "seconds"),
        (RetryBudget.only(samples=1, calls=9), 1, "samples"),
    ],
)
def test_a_loop_ends_at_its_cap(invoke: Any, budget: Any, asked: int, cap: str) -> None:
    model = looping()
    prices = {"looping": Price(prompt=1, completion=2)}
    agent = create_agent(model, [look], middleware=[BudgetMiddleware(budget, prices=prices)])
    result = invoke(agent, ASKED)
    outcome = budget_of(result)
    assert outcome is not None
    assert (outcome.status, outcome.caps, outcome.after) == ("exhausted", (cap,), None)
    assert model.asked == outcome.spent.samples
    if cap in ("tokens", "usd"):
        assert model.asked >= asked
    else:
        assert model.asked == asked
    assert outcome.spent.tokens == model.asked * (READ + WROTE)
    assert outcome.spent.usd == pytest.approx(model.asked * (READ + 2 * WROTE) / 1e6)
    if model.asked:
        assert outcome.by_model["looping"].calls == model.asked
        assert result["messages"][-1].text == "I look."
    most = getattr(budget, cap) if isinstance(budget, RetryBudget) else budget[cap]
    assert getattr(outcome.spent, cap) <= most + (0.05 if "seconds" in cap else 0)
    whole(result["messages"])


WAYS: dict[str, Callable[[Any], Any]] = {
    "invoke": lambda agent: agent.invoke(ASKED),
    "stream values": lambda agent: list(agent.stream(ASKED, stream_mode="values"))[-1],
    "stream updates": lambda agent: [x["model"] for x in agent.stream(ASKED, stream_mode="updates") if "model" in x][
        -1
    ],
    "stream messages": lambda agent: {"messages": [m for m, _ in agent.stream(ASKED, stream_mode="messages")]},
    "stream all": lambda agent: [
        x for mode, x in agent.stream(ASKED, stream_mode=["values", "messages", "custom", "debug"]) if mode == "values"
    ][-1],
    "batch": lambda agent: agent.batch([ASKED])[0],
    "ainvoke": lambda agent: asyncio.run(agent.ainvoke(ASKED)),
    "astream": lambda agent: asyncio.run(_collected(agent.astream(ASKED, stream_mode="values")))[-1],
    "astream messages": lambda agent: {
        "messages": [m for m, _ in asyncio.run(_collected(agent.astream(ASKED, stream_mode="messages")))]
    },
    "astream_events": lambda agent: asyncio.run(_collected(agent.astream_events(ASKED, version="v2")))[-1]["data"][
        "output"
    ],
    "abatch": lambda agent: asyncio.run(agent.abatch([ASKED]))[0],
}


async def _collected(stream: Any) -> list[Any]:
    return [x async for x in stream]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", [Model, Streaming])
def test_a_loop_ends_at_its_cap_in_each_way_of_streaming(way: Any, kind: Any) -> None:
    model = kind(calls=[LOOK])
    agent = create_agent(model, [look], middleware=[BudgetMiddleware({"calls": 5})])
    outcome = budget_of(way(agent))
    assert outcome is not None
    assert outcome.spent.calls == 5
    assert outcome.spent.samples == model.asked == 3
    assert outcome.spent.tokens == 3 * (READ + WROTE)


@both
def test_at_the_cap_it_raises_where_that_is_asked_for(invoke: Any) -> None:
    agent = create_agent(looping(), [look], middleware=[BudgetMiddleware({"samples": 2}, at_cap="raise")])
    with pytest.raises(BudgetExhausted) as caught:
        invoke(agent, ASKED)
    error = caught.value
    assert (error.caps, error.best, error.spent.samples) == (("samples",), "I look.", 2)
    assert error.by_model["looping"].calls == 2
    outcome = budget_of(error)
    assert outcome is not None
    assert outcome.spent == error.spent


def test_the_next_turn_of_a_thread_works_and_has_a_budget_of_its_own() -> None:
    agent = create_agent(looping(), [look], middleware=[BudgetMiddleware({"calls": 2})], checkpointer=InMemorySaver())
    first = agent.invoke(ASKED, THREAD)
    second = agent.invoke({"messages": [HumanMessage("Again?")]}, THREAD)
    assert [budget_of(x).spent.calls for x in (first, second)] == [2, 2]  # type: ignore[union-attr]
    whole(second["messages"])


@both
def test_a_run_within_its_budget_is_left_alone(invoke: Any) -> None:
    model = Model(replies=["42"], calls=[LOOK])
    agent = create_agent(model, [look], middleware=[BudgetMiddleware({"calls": 1})], checkpointer=InMemorySaver())
    result = invoke(agent, ASKED, THREAD)
    assert result["messages"][-1].text == "42"
    assert budget_of(result) is None
    assert "rfx_budget" not in result
    assert spent(agent)["spent"]["tokens"] == READ + WROTE


class TestInside:
    """What is called inside is on the same ledger, whoever calls it."""

    @both
    def test_a_model_that_a_tool_calls(self, invoke: Any) -> None:
        inner = Model(model="inner")

        @tool
        def ask() -> str:
            """Ask."""
            return str(inner.invoke("hello").text)

        outer = asking()
        agent = create_agent(outer, [ask], middleware=[BudgetMiddleware({"samples": 4})])
        outcome = budget_of(invoke(agent, ASKED))
        assert outcome is not None
        assert outer.asked + inner.asked == outcome.spent.samples == 4
        assert {name: x.calls for name, x in outcome.by_model.items()} == {"looping": 2, "inner": 2}
        assert outcome.spent.calls == 4 + 2

    def test_a_sync_model_in_an_async_tool(self) -> None:
        inner = Model()

        @tool
        async def ask() -> str:
            """Ask."""
            return str(inner.invoke("hello").text)

        agent = create_agent(asking(), [ask], middleware=[BudgetMiddleware({"samples": 2})])
        outcome = budget_of(asyncio.run(agent.ainvoke(ASKED)))
        assert outcome is not None
        assert outcome.spent.samples == 2

    @both
    def test_a_subagent_without_a_budget_of_its_own(self, invoke: Any) -> None:
        sub = create_agent(looping(model="sub"), [look])

        @tool
        def ask() -> str:
            """Ask."""
            return str(sub.invoke(ASKED)["messages"][-1].text)

        agent = create_agent(asking(), [ask], middleware=[BudgetMiddleware({"calls": 9})])
        result = invoke(agent, ASKED)
        outcome = budget_of(result)
        assert outcome is not None
        assert outcome.spent.calls == 9
        whole(result["messages"])

    @both
    def test_a_subagent_with_a_budget_of_its_own_has_it_within_the_outer_one(self, invoke: Any) -> None:
        model = looping(model="sub")
        sub = create_agent(model, [look], middleware=[BudgetMiddleware({"calls": 3})])
        texts: list[Any] = []

        @tool
        def ask() -> str:
            """Ask."""
            texts.append(budget_of(said := sub.invoke(ASKED)))
            return str(said["messages"][-1].text)

        agent = create_agent(asking(), [ask], middleware=[BudgetMiddleware({"calls": 13})])
        outcome = budget_of(invoke(agent, ASKED))
        assert outcome is not None
        assert outcome.spent.calls == 13
        assert [x.spent.calls for x in texts] == [3, 3, 1]  # the last is stopped by the outer one
        assert model.asked == 5

    @both
    def test_parallel_tool_calls_share_it(self, invoke: Any) -> None:
        inner = Model(model="inner", pause=0.02)

        @tool
        def ask() -> str:
            """Ask."""
            return str(inner.invoke("hello").text)

        agent = create_agent(
            Model(calls=[{"name": "ask", "args": {}}] * 6), [ask], middleware=[BudgetMiddleware({"samples": 4})]
        )
        result = invoke(agent, ASKED)
        outcome = budget_of(result)
        assert outcome is not None
        assert (inner.asked, outcome.spent.samples) == (3, 4)
        whole(result["messages"])

    @both
    def test_the_model_of_another_middleware_in_a_node_of_its_own(self, invoke: Any) -> None:
        def agent(most: int) -> Any:
            summarizes = SummarizationMiddleware(Model(model="summary"), trigger=("messages", 2), keep=("messages", 1))
            model = Model(replies=["I look.", "42"], calls=[LOOK])
            budget = BudgetMiddleware({"samples": most})
            return create_agent(model, [look], middleware=[budget, summarizes], checkpointer=InMemorySaver())

        assert invoke(roomy := agent(9), ASKED, THREAD)["messages"][-1].text == "42"
        assert {name: x["calls"] for name, x in spent(roomy)["by_model"].items()} == {"looping": 2, "summary": 1}
        with pytest.raises(BudgetExhausted):  # no message can be put in the place of what that node does
            invoke(agent(1), ASKED, THREAD)

    @both
    def test_a_fallback_and_a_retry(self, invoke: Any) -> None:
        broken = Model(model="broken", replies=[ValueError("down")] * 9)
        other = Model(model="other", replies=["42"])
        budget = BudgetMiddleware({"samples": 9})
        retry = ModelRetryMiddleware(max_retries=1, initial_delay=0.0, jitter=False, on_failure="error")
        agent = create_agent(
            broken, middleware=[budget, ModelFallbackMiddleware(other), retry], checkpointer=InMemorySaver()
        )
        assert invoke(agent, ASKED, THREAD)["messages"][-1].text == "42"
        assert spent(agent)["spent"]["samples"] == 3

    def test_a_retry_that_makes_an_answer_of_the_refusal_is_seen(self) -> None:
        retry = ModelRetryMiddleware(max_retries=1, initial_delay=0.0, jitter=False)
        agent = create_agent(looping(), [look], middleware=[BudgetMiddleware({"samples": 2}), retry])
        result = agent.invoke(ASKED)
        assert budget_of(result) is not None
        assert result["messages"][-1].text == "I look."


class TestBesideRecovery:
    """One ledger with ``RecoverabilityMiddleware``, in either order."""

    @both
    @pytest.mark.parametrize("first", [True, False])
    def test_draws_are_counted_once(self, invoke: Any, first: bool) -> None:
        model = Model(replies=["41", "41", "42"])
        recovers = RecoverabilityMiddleware(verifier=ScriptedVerifier(["42"]), extra_samples=0)
        both_of: list[Any] = [BudgetMiddleware({"samples": 9}), recovers]
        agent = create_agent(model, middleware=both_of if first else both_of[::-1], checkpointer=InMemorySaver())
        assert invoke(agent, ASKED, THREAD)["messages"][-1].text == "42"
        record = spent(agent)
        assert model.asked == 3
        assert (record["spent"]["samples"], record["spent"]["calls"]) == (3, 3)
        assert record["spent"]["tokens"] == 3 * (READ + WROTE)

    @both
    @pytest.mark.parametrize("first", [True, False])
    def test_the_whole_budget_holds_for_recovery_too(self, invoke: Any, first: bool) -> None:
        model = Model(says="41")
        recovers = RecoverabilityMiddleware(
            verifier=ScriptedVerifier(["42"]), extra_samples=0, on_unresolved="return", budget=RetryBudget(samples=9)
        )
        both_of: list[Any] = [BudgetMiddleware({"samples": 3}), recovers]
        agent = create_agent(model, middleware=both_of if first else both_of[::-1])
        result = invoke(agent, ASKED)
        assert model.asked == 3
        assert result["messages"][-1].text == "41"
        assert result["messages"][-1].response_metadata["rfx"]["outcome"] == "unresolved"

    @both
    @pytest.mark.parametrize("first", [True, False])
    def test_what_the_budget_says_is_not_judged(self, invoke: Any, first: bool) -> None:
        recovers = RecoverabilityMiddleware(verifier=ScriptedVerifier(["42"]))
        both_of: list[Any] = [BudgetMiddleware({"samples": 0}), recovers]
        result = invoke(create_agent(Model(), middleware=both_of if first else both_of[::-1]), ASKED)
        assert budget_of(result).caps == ("samples",)  # type: ignore[union-attr]

    @both
    @pytest.mark.parametrize("first", [True, False])
    def test_a_judge_that_langchain_does_not_know_is_counted(self, invoke: Any, first: bool) -> None:
        judge, model = ScriptedSampler([], last="It is right."), Model(says="42")  # no verdict that can be read
        recovers = RecoverabilityMiddleware(
            verifier=JudgeVerifier(judge, rubric="It is 42."), extra_samples=0, on_unresolved="return"
        )
        both_of: list[Any] = [BudgetMiddleware({"calls": 9}), recovers]
        agent = create_agent(model, middleware=both_of if first else both_of[::-1], checkpointer=InMemorySaver())
        invoke(agent, ASKED, THREAD)
        assert model.asked
        assert 1 < model.asked + len(judge.requests) <= 9
        assert spent(agent)["spent"]["calls"] == model.asked + len(judge.requests)

    def test_the_same_shared_limits_are_charged_once(self) -> None:
        shared = SharedBudget(store=MemoryStore(), limits=(Window("global", "tokens", 100_000, per="day"),))
        recovers = RecoverabilityMiddleware(verifier=ScriptedVerifier(["42"]), extra_samples=0, shared=shared)
        agent = create_agent(Model(replies=["41", "42"]), middleware=[BudgetMiddleware(shared=shared), recovers])
        agent.invoke(ASKED)
        (account,) = shared.store.accounts()
        assert (account.spent, account.reserved) == (2 * (READ + WROTE), 0)

    @both
    def test_a_node_under_recovery_in_a_graph_under_a_budget(self, invoke: Any) -> None:
        model = Model(replies=["41", "42"])

        def answer(state: MessagesState) -> Any:
            return {"messages": [model.invoke(state["messages"])]}

        builder = StateGraph(MessagesState)
        builder.add_node("answer", recoverable(answer, verifier=ScriptedVerifier(["42"]), extra_samples=0))
        builder.add_edge(START, "answer")
        shared = SharedBudget(store=MemoryStore(), limits=(Window("global", "tokens", 100_000, per="day"),))
        graph = with_budget(builder.compile(), {"samples": 2}, shared=shared)
        assert invoke(graph, ASKED)["messages"][-1].text == "42"
        assert shared.store.accounts()[0].spent == 2 * (READ + WROTE)

    def test_what_the_engine_pays_for_by_itself(self) -> None:
        sampler = ScriptedSampler(["41", "42"])
        recovery = Recovery(sampler, ScriptedVerifier(["42"]), extra_samples=0)
        chain = with_budget(RunnableLambda(lambda _: recovery.run("6 times 7?").outcome), {"samples": 2, "calls": 2})
        assert chain.invoke("").text == "42"
        short = Recovery(ScriptedSampler(["41", "42"]), ScriptedVerifier(["42"]), extra_samples=0)
        outcome = with_budget(RunnableLambda(lambda _: short.run("6 times 7?").outcome), {"samples": 1}).invoke("")
        assert outcome.status == "unresolved"
        assert "samples" in outcome.sentence or "samples" in outcome.reason


class TestCharges:
    """What is charged for calls that do not end well, or that nobody counted."""

    def run(self, call: Callable[[Any], Any], model: Any = None, **budget: Any) -> Any:
        limits = (Window("global", "tokens", 10_000, per="day"), InFlight("global", 9))
        shared = SharedBudget(store=MemoryStore(), limits=limits)
        chain = with_budget(model or Streaming(says="one two three four five"), budget or {"calls": 99}, shared=shared)
        call(chain)
        gc.collect()
        account, flight = sorted(shared.store.accounts(), key=lambda x: x.kind, reverse=True)
        assert account.reserved == flight.reserved == 0
        return account.spent

    def test_a_stream(self) -> None:
        assert self.run(lambda chain: list(chain.stream("hello"))) == READ + WROTE
        assert self.run(lambda chain: asyncio.run(_collected(chain.astream("hello")))) == READ + WROTE

    def test_an_abandoned_stream_is_charged_as_it_was_written(self) -> None:
        def leave(chain: Any) -> None:
            stream = chain.stream("hello")
            next(stream)
            next(stream)
            stream.close()

        assert self.run(leave) == 2 + 8 + 3  # "hello", what a chat adds to it, "one two "

        async def aleave(chain: Any) -> None:
            stream = chain.astream("hello")
            await anext(stream)
            await stream.aclose()

        assert self.run(lambda chain: asyncio.run(aleave(chain))) == 2 + 8 + 2

    def test_a_call_of_which_nobody_knows_is_charged_as_it_was_reserved(self) -> None:
        def fails(chain: Any) -> None:
            with pytest.raises(ValueError, match="down"):
                chain.invoke("hello")

        assert self.run(fails, Model(replies=[ValueError("down")])) == 5 + 64 + 50

    def test_a_call_that_the_server_refused_is_not(self) -> None:
        refused = RuntimeError("429")
        refused.status_code = 429  # type: ignore[attr-defined]

        def fails(chain: Any) -> None:
            with pytest.raises(RuntimeError):
                chain.invoke("hello")

        assert self.run(fails, Model(replies=[refused])) == 0

    def test_a_cancelled_call_of_an_agent_is_charged(self) -> None:
        shared = SharedBudget(store=MemoryStore(), limits=(Window("global", "tokens", 10_000, per="day"),))
        agent = create_agent(Model(pause=5.0), middleware=[BudgetMiddleware(shared=shared)])

        async def cancel() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(agent.ainvoke(ASKED), 0.3)

        asyncio.run(cancel())
        (account,) = shared.store.accounts()
        assert account.reserved == 0
        assert account.spent > 50

    def test_what_nobody_counted_is_estimated(self) -> None:
        assert self.run(lambda chain: chain.invoke("hello"), Model(says="one two three", counts=False)) == 2 + 8 + 5

    def test_the_schemas_of_tools_are_estimated_too(self) -> None:
        @tool
        def verbose() -> str:
            """V."""
            return ""

        verbose.description = "Do something long. " * 200
        schemas = [convert_to_openai_tool(verbose)]
        for model in (Model(counts=False, says="one"), Streaming(counts=False, says="one")):
            assert self.run(lambda chain: list(chain.stream("hello")), model.bind(tools=schemas)) > 3_800 / 4

    @both
    def test_an_answer_out_of_the_cache_of_langchain_costs_nothing(self, invoke: Any) -> None:
        model = Model(says="one", cache=InMemoryCache())

        def three(chain: Any) -> None:
            for _ in range(3):
                assert invoke(chain, "hello").text == "one"

        assert self.run(three, model) == READ + WROTE
        assert model.asked == 1

    def test_a_tool_call_in_a_prompt_is_text_and_no_picture(self) -> None:
        call: Any = {"type": "tool_call", "name": "look", "args": {"at": "x" * 400}, "id": "c1"}
        thread = [HumanMessage("hello"), AIMessage([call], tool_calls=[call]), ToolMessage("none", tool_call_id="c1")]
        model = Model(says="one", counts=False)
        assert 100 < self.run(lambda chain: chain.invoke(thread), model) < 500
        odd = [HumanMessage("hello"), AIMessage([call, {**call, "id": "c2"}], tool_calls=[call])]
        assert 200 < self.run(lambda chain: chain.invoke(odd), Model(says="one", counts=False)) < 800

    def test_a_price_that_is_not_known_is_refused_and_not_free(self) -> None:
        agent = create_agent(looping(model="nobody-knows-this"), [look], middleware=[BudgetMiddleware({"usd": 1.0})])
        with pytest.raises(ConfigError, match="not a free one"):
            agent.invoke(ASKED)

    def test_parallel_runs_stay_within_shared_limits(self) -> None:
        shared = SharedBudget(store=MemoryStore(), limits=(Window("global", "tokens", 1_500, per="day"),))
        agent = create_agent(looping(pause=0.001), [look], middleware=[BudgetMiddleware({"calls": 40}, shared=shared)])

        async def together() -> list[Any]:
            return await asyncio.gather(*[agent.ainvoke(ASKED) for _ in range(20)])

        outcomes = [budget_of(x) for x in (*asyncio.run(together()), *agent.batch([ASKED] * 10))]
        (account,) = shared.store.accounts()
        assert account.spent <= account.peak <= 1_500
        assert account.reserved == 0
        assert all(x is not None and (x.accounts or x.caps) for x in outcomes)
        waits = [x.after for x in outcomes if x is not None and x.accounts]
        assert waits
        assert all(x is None or 80_000 < x < 90_000 for x in waits)
        assert any(waits)

    def test_a_call_waits_for_room(self) -> None:
        shared = SharedBudget(store=MemoryStore(), limits=(InFlight("global", 1),), wait=5.0)
        agent = create_agent(Model(pause=0.05), middleware=[BudgetMiddleware(shared=shared)])

        async def together() -> list[Any]:
            return await asyncio.gather(*[agent.ainvoke(ASKED) for _ in range(4)])

        assert [budget_of(x) for x in asyncio.run(together())] == [None] * 4
        assert shared.store.accounts()[0].peak == 1


@both
def test_a_refusal_says_whether_the_tool_began_and_is_no_warning(invoke: Any, caplog: Any) -> None:
    inner = Model()

    @tool
    def ask() -> str:
        """Ask."""
        return str(inner.invoke("hello").text)

    for most, said in ((1, "ask was not run."), (2, "ask was not run to its end.")):
        agent = create_agent(asking(), [ask], middleware=[BudgetMiddleware({"calls": most})])
        (told,) = [m for m in invoke(agent, ASKED)["messages"] if isinstance(m, ToolMessage)]
        assert told.text.startswith(said)
    assert "BudgetExhausted" not in caplog.text


class TestCutOff:
    """What writes no state, and is resumed with None, refills nothing."""

    def test_a_cancelled_run(self) -> None:
        model = looping(pause=0.3)
        agent = create_agent(model, [look], middleware=[BudgetMiddleware({"samples": 2})], checkpointer=InMemorySaver())

        async def cancel(given: Any) -> Any:
            return await asyncio.wait_for(agent.ainvoke(given, THREAD), 0.15)

        for given in (ASKED, None):
            with pytest.raises(TimeoutError):
                asyncio.run(cancel(given))
        result = asyncio.run(cancel(None))
        assert budget_of(result).caps == ("samples",)  # type: ignore[union-attr]
        assert spent(agent)["by_model"]["looping"]["samples"] == 2
        assert not model.asked  # each was cancelled before it answered

    @both
    def test_a_tool_that_raises(self, invoke: Any) -> None:
        inner = Model(model="inner")

        @tool
        def ask() -> str:
            """Ask."""
            inner.invoke("hello")
            raise RuntimeError("down")

        saver = InMemorySaver()
        for given in (ASKED, None, None):
            agent = create_agent(asking(), [ask], middleware=[BudgetMiddleware({"samples": 3})], checkpointer=saver)
            if given or inner.asked < 2:
                with pytest.raises(RuntimeError):
                    invoke(agent, given, THREAD)
        assert inner.asked == 2
        assert budget_of(invoke(agent, None, THREAD)).spent.samples == 3  # type: ignore[union-attr]
        assert inner.asked == 2


class TestPerson:
    """A person may raise the caps of a run."""

    def agent(self, model: Model | None = None, saver: Any = None, **options: Any) -> Any:
        options = {"budget": {"samples": 2, "tokens": 90_000}, "interrupts": True} | options
        return create_agent(
            model or looping(), [look], middleware=[BudgetMiddleware(**options)], checkpointer=saver or InMemorySaver()
        )

    @both
    def test_approve_edit_and_reject(self, invoke: Any) -> None:
        model = looping()
        agent = self.agent(model)
        (asked,) = invoke(agent, ASKED, THREAD)["__interrupt__"]
        assert asked.value["action_requests"][0]["args"] == {"samples": 4}
        assert asked.value["rfx"]["spent"]["samples"] == 2
        assert asked.value["review_configs"][0]["allowed_decisions"] == ["approve", "edit", "reject"]
        (asked,) = invoke(agent, Command(resume={"type": "approve"}), THREAD)["__interrupt__"]
        assert (model.asked, asked.value["action_requests"][0]["args"]) == (4, {"samples": 6})
        edit = {"type": "edit", "edited_action": {"name": "raise_budget", "args": {"samples": "5"}}}
        (asked,) = invoke(agent, Command(resume=edit), THREAD)["__interrupt__"]
        assert (model.asked, spent(agent)["caps"]) == (5, {"samples": 5})
        result = invoke(agent, Command(resume={"decisions": [{"type": "reject"}]}), THREAD)
        outcome = budget_of(result)
        assert outcome is not None
        assert (outcome.status, outcome.spent.samples, model.asked) == ("exhausted", 5, 5)
        assert sum(budget_of(m) is not None for m in result["messages"]) == 1
        whole(result["messages"])

    @pytest.mark.parametrize(
        ("reply", "why"),
        [
            ("more", "reply"),
            ({"type": "respond", "message": "more"}, "approve, reject, or edit"),
            ({"samples": 9}, "reply"),
            ({"samples": 2}, "at least 3"),
            ({"samples": "many"}, "no number"),
            ({"samples": 3.5}, "whole number"),
            ({"samples": True}, "no number"),
            ({"samples": float("nan")}, "no number"),
            ({"calls": 9}, "no cap"),
            ({"tokens": 99_000}, "samples is to be raised too"),
            ({"samples": 9, "tokens": 1}, "at least 90000"),
            ({"samples": 2**63 + 1}, "whole number"),
        ],
    )
    def test_a_reply_that_does_not_fit_is_asked_for_again(self, reply: Any, why: str) -> None:
        agent = self.agent()
        agent.invoke(ASKED, THREAD)
        if isinstance(reply, dict) and "type" not in reply and why != "reply":
            reply = {"type": "edit", "edited_action": {"name": "raise_budget", "args": reply}}
        (asked,) = agent.invoke(Command(resume=reply), THREAD)["__interrupt__"]
        assert why in asked.value["error"]
        assert "caps" not in spent(agent)
        agent.invoke(Command(resume={"type": "approve"}), THREAD)
        assert spent(agent)["caps"] == {"samples": 4}

    def test_two_processes_that_resume_at_once_leave_what_the_last_said(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(runs._runs, "get", lambda _: None)  # a process knows only its own
        saver, model = InMemorySaver(), looping()
        self.agent(model, saver).invoke(ASKED, THREAD)
        meet = threading.Barrier(2)

        def resume(most: int) -> None:
            agent = self.agent(model, saver)  # as another process makes it
            meet.wait()
            edit = {"type": "edit", "edited_action": {"name": "raise_budget", "args": {"samples": most}}}
            agent.invoke(Command(resume=edit), THREAD)

        threads = [threading.Thread(target=resume, args=(most,)) for most in (4, 7)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        record = spent(self.agent(model, saver))
        assert record["caps"]["samples"] in (4, 7)
        assert record["spent"]["samples"] <= record["caps"]["samples"]

    def test_a_resume_elsewhere_does_not_refill_the_budget(self) -> None:
        saver = InMemorySaver()
        first, second = looping(), looping()
        self.agent(first, saver).invoke(ASKED, THREAD)
        self.agent(second, saver).invoke(Command(resume={"type": "approve"}), THREAD)
        assert (first.asked, second.asked) == (2, 2)

    @pytest.mark.parametrize("named", [True, False])
    def test_a_reply_that_names_its_question_is_not_applied_to_the_next(self, named: bool) -> None:
        agent = self.agent()
        (asked,) = agent.invoke(ASKED, THREAD)["__interrupt__"]
        question = asked.value["rfx"]["question"]
        assert question in asked.value["action_requests"][0]["description"]
        reply: Any = {"decisions": [{"type": "approve"}]}
        resume = {**reply, "question": question} if named else {asked.id: reply}  # ours, and LangGraph's own
        agent.invoke(Command(resume=resume), THREAD)
        assert spent(agent)["caps"] == {"samples": 4}
        (again,) = agent.invoke(Command(resume=resume), THREAD)["__interrupt__"]  # the second person's
        assert spent(agent)["caps"] == {"samples": 4}
        assert again.value["rfx"]["question"] != question
        assert ("the reply is to the question" in again.value.get("error", "")) is named
        agent.invoke(Command(resume={"type": "approve", "question": again.value["rfx"]["question"]}), THREAD)
        assert spent(agent)["caps"] == {"samples": 6}

    def test_a_number_that_no_checkpointer_can_write_leaves_the_question_open(self) -> None:
        agent = self.agent()
        agent.invoke(ASKED, THREAD)
        edit = {"type": "edit", "edited_action": {"name": "raise_budget", "args": {"samples": 2**64}}}
        with pytest.raises(TypeError, match="64-bit"):  # LangGraph writes the reply before the node sees it
            agent.invoke(Command(resume=edit), THREAD)
        edit["edited_action"]["args"] = {"samples": str(2**64)}  # type: ignore[index]
        (asked,) = agent.invoke(Command(resume=edit), THREAD)["__interrupt__"]
        assert "whole number" in asked.value["error"]

    def test_questions_are_capped(self) -> None:
        agent = self.agent(budget={"samples": 1, "escalations": 1})
        assert agent.invoke(ASKED, THREAD)["__interrupt__"]
        result = agent.invoke(Command(resume={"type": "approve"}), THREAD)
        assert "__interrupt__" not in result
        assert budget_of(result).caps == ("samples",)  # type: ignore[union-attr]

    def test_a_question_that_is_left_unanswered_does_not_hold_up_the_thread(self) -> None:
        model = looping()
        agent = self.agent(model)
        agent.invoke(ASKED, THREAD)
        model.replies = ["42"]
        result = agent.invoke({"messages": [HumanMessage("Never mind: 6 times 7?")]}, THREAD)
        assert result["messages"][-1].text == "42"
        assert "__interrupt__" not in result

    def test_reject_raises_where_that_is_asked_for(self) -> None:
        agent = self.agent(at_cap="raise")
        agent.invoke(ASKED, THREAD)
        with pytest.raises(BudgetExhausted) as caught:
            agent.invoke(Command(resume={"type": "reject"}), THREAD)
        assert (caught.value.caps, caught.value.best, caught.value.spent.samples) == (("samples",), "I look.", 2)

    def test_it_needs_a_checkpointer(self) -> None:
        agent = create_agent(looping(), middleware=[BudgetMiddleware({"calls": 1}, interrupts=True)])
        with pytest.raises(ConfigError, match="checkpointer"):
            agent.invoke(ASKED)

    def test_nobody_is_asked_about_a_shared_limit(self) -> None:
        shared = SharedBudget(store=MemoryStore(), limits=(Window("global", "tokens", 10, per="day"),))
        result = self.agent(shared=shared).invoke(ASKED, THREAD)
        assert "__interrupt__" not in result
        assert budget_of(result).accounts == ("global tokens/86400s",)  # type: ignore[union-attr]


@both
def test_the_countdown_is_in_the_request_and_in_no_state(invoke: Any) -> None:
    model = looping()
    agent = create_agent(model, [look], middleware=[BudgetMiddleware({"samples": 2, "calls": 40}, countdown=True)])
    result = invoke(agent, ASKED)
    assert [x[-1] for x in model._asked] == [
        "[Budget of this task: 2 of 2 samples left.]",
        "[Budget of this task: 1 of 2 samples left.]",
    ]
    assert not any("Budget of this task" in m.text for m in result["messages"])


def test_a_structured_agent_ends_at_its_cap() -> None:
    class Answer(BaseModel):
        value: int

    agent = create_agent(looping(), response_format=ToolStrategy(Answer), middleware=[BudgetMiddleware({"samples": 2})])
    result = agent.invoke(ASKED)
    assert budget_of(result) is not None
    assert result.get("structured_response") is None


def test_a_prompt_is_reserved_by_what_is_known_of_its_beginning() -> None:
    """A long thread is read again with each call; what the server counted once bounds it better than its bytes."""
    long: Any = {"messages": [HumanMessage("x" * 3_000)]}
    agent = create_agent(looping(), [look], middleware=[BudgetMiddleware({"tokens": 3_300})])
    outcome = budget_of(agent.invoke(long))
    assert outcome is not None
    assert outcome.spent.samples > 50


class TestWithBudget:
    """The same around any runnable."""

    @both
    def test_each_call_has_a_budget_of_its_own_and_raises_at_the_cap(self, invoke: Any) -> None:
        model = looping()
        agent = with_budget(create_agent(model, [look]), {"calls": 4})
        for _ in range(2):
            with pytest.raises(BudgetExhausted) as caught:
                invoke(agent, ASKED)
            assert caught.value.spent.calls == 4
        assert model.asked == 4

    def test_a_model_on_a_thread_that_has_only_the_config(self) -> None:
        model = Model()

        def elsewhere(_: Any, config: Any) -> None:
            errors: list[Exception] = []

            def run() -> None:
                try:
                    for _ in range(3):
                        model.invoke("hello", config)
                except BudgetExhausted as error:
                    errors.append(error)

            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
            raise errors[0]

        with pytest.raises(BudgetExhausted):
            with_budget(RunnableLambda(elsewhere), {"samples": 2}).invoke("")
        assert model.asked == 2

    def test_an_agent_with_a_middleware_is_inside(self) -> None:
        model = looping()
        agent = create_agent(model, [look], middleware=[BudgetMiddleware({"calls": 50})])
        outcome = budget_of(with_budget(agent, {"calls": 4}).invoke(ASKED))
        assert outcome is not None
        assert outcome.spent.calls == 4

    @pytest.mark.parametrize(
        ("options", "why"),
        [
            ({}, "there is no budget"),
            ({"budget": 5}, "RetryBudget.only"),
            ({"budget": {"steps": 5}}, "unknown cap"),
            ({"budget": {"calls": -1}}, "calls"),
            ({"budget": {"calls": 1}, "shared": "redis"}, "SharedBudget"),
            ({"budget": {"calls": 1}, "prices": 3}, "prices"),
            ({"budget": {"calls": 1}, "prices": {"m": 3}}, "table"),
            ({"budget": {"calls": 1}, "max_tokens": 0}, "max_tokens"),
            ({"shared": SharedBudget(store=MemoryStore(), limits=(InFlight("tenant", 1),))}, "scoped"),
        ],
    )
    def test_what_cannot_work_is_refused(self, options: Any, why: str) -> None:
        with pytest.raises(ConfigError, match=why):
            with_budget(Model(), **options)
        with pytest.raises(ConfigError, match=why):
            BudgetMiddleware(**options)

    def test_what_is_no_runnable_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="with_budget: runnable"):
            with_budget(len, {"calls": 1})  # type: ignore[arg-type]


def test_the_outcome_of_what_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="budget_of"):
        budget_of("42")  # type: ignore[arg-type]
    assert budget_of(AIMessage("42", response_metadata={"rfx": "odd"})) is None


def test_the_example_of_the_page_runs() -> None:
    text = (Path(__file__).parent.parent / "docs" / "budgets.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    exec(compile(code, "budgets.md", "exec"), {})  # noqa: S102  # our own text
