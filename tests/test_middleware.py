"""``RecoverabilityMiddleware`` in agents of ``create_agent``, with a scripted chat model, sync and async."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from adapter_conformance import QUESTION, Limits, Parts, ReferenceWay, ScriptedChat, Way, message_of, observe
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    HumanInTheLoopMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    SummarizationMiddleware,
    ToolCallLimitMiddleware,
    hook_config,
)
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage, convert_to_openai_messages
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphInterrupt
from langgraph.types import Command, interrupt
from pydantic import BaseModel, PrivateAttr
from scenarios import EVERY, SCENARIOS, STEP

from rfx_agent import (
    ChatModelSampler,
    ConfigError,
    Escalation,
    FunctionVerifier,
    RetryBudget,
    SampleRequest,
    Unresolved,
    Usage,
    Verdict,
)
from rfx_agent.adapters.agent.middleware import RecoverabilityMiddleware
from rfx_agent.errors import SamplerError, VerifierError
from rfx_agent.remedies import Delegate, Retry
from rfx_agent.testing import ScriptedSampler, ScriptedTool, ScriptedVerifier

INVOKES: dict[str, Callable[..., Any]] = {
    "sync": lambda agent, given, config=None: agent.invoke(given, config),
    "async": lambda agent, given, config=None: asyncio.run(agent.ainvoke(given, config)),
}
both = pytest.mark.parametrize("invoke", INVOKES.values(), ids=INVOKES)
IS_42 = ScriptedVerifier(["42"])
ASKED = {"messages": [HumanMessage("What is 6 times 7?")]}
THREAD: Any = {"configurable": {"thread_id": "t"}}


class Scripted(BaseChatModel):
    """Gives its replies in order, and remembers what it was asked with."""

    replies: list[Any]
    temperature: float | None = None
    max_tokens: int | None = None
    _calls: list[dict[str, Any]] = PrivateAttr(default_factory=list)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    @property
    def calls(self) -> list[dict[str, Any]]:
        return self._calls

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        with self._lock:
            texts = [m.text for m in messages]
            self._calls.append({"messages": texts, "tags": sorted(getattr(run_manager, "tags", [])), **kwargs})
            if not self.replies:
                raise AssertionError("the model was asked once more than it has replies")
            reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, str):
            used: Any = {"input_tokens": 10, "output_tokens": 2, "total_tokens": 12}
            reply = AIMessage(reply, usage_metadata=used)
        return ChatResult(generations=[ChatGeneration(message=reply)])

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Iterator[Any]:
        message = self._generate(messages, stop, run_manager, **kwargs).generations[0].message
        chunk = ChatGenerationChunk(message=AIMessageChunk(content=message.content, id=message.id))
        if run_manager:
            run_manager.on_llm_new_token(message.text, chunk=chunk)
        yield chunk

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any) -> Any:
        names = [t.get("name") if isinstance(t, dict) else t.name for t in tools]
        return self.bind(tools=names, **kwargs)


def model(*replies: Any, **fields: Any) -> Scripted:
    return Scripted(replies=list(replies), **fields)


def calls(name: str, *args: dict[str, Any]) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": a, "id": f"{name}{i}"} for i, a in enumerate(args)])


def middleware(verifier: Any = IS_42, **parts: Any) -> RecoverabilityMiddleware:
    return RecoverabilityMiddleware(verifier=verifier, **({"extra_samples": 2} | parts))


def agent(chat: Scripted, *others: Any, tools: Sequence[Any] = (), **options: Any) -> Any:
    return create_agent(chat, tools, middleware=list(others) or [middleware()], **options)


@tool
def look_up(key: str) -> str:
    """Look something up."""
    return f"value of {key}"


# The same decisions as the engine.


class Chat(ScriptedChat):
    """The suite's chat model, with the parameters that the middleware sets on it."""

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        if self.candidate:
            return super()._generate(messages, stop, run_manager)
        asked = tuple(dict(m) for m in convert_to_openai_messages(messages))
        (rollout,) = self.source.sample(SampleRequest(asked, **kwargs)).rollouts
        return ChatResult(generations=[ChatGeneration(message=message_of(rollout))])


class AgentWay(Way):
    """The middleware in an agent. Each draw has a seed of its own; all else reaches the model."""

    name = "agent"
    limits = Limits(
        own_candidate=True,
        single=True,
        takes_prefix=False,
        draw_fields=("n", "temperature", "max_tokens", "prefix", "messages"),
    )

    def run(self, parts: Parts) -> str | None:
        try:
            return str(self._agent(parts).invoke({"messages": QUESTION})["messages"][-1].text)
        except Unresolved:
            return None

    async def arun(self, parts: Parts) -> str | None:
        try:
            return str((await self._agent(parts).ainvoke({"messages": QUESTION}))["messages"][-1].text)
        except Unresolved:
            return None

    @staticmethod
    def _agent(parts: Parts) -> Any:
        chat = Chat(source=parts.model, candidate=[parts.scenario.candidate])
        options = parts.options() | {"takes_temperature": True, "step_id": lambda _: STEP.id}
        return create_agent(chat, middleware=[RecoverabilityMiddleware(sampler=parts.model, **options)])


@pytest.mark.parametrize("use_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("name", EVERY)
def test_same_decisions_as_the_engine(name: str, use_async: bool) -> None:
    way = AgentWay()
    seen = observe(way, name, use_async=use_async)
    assert seen == observe(ReferenceWay(way.limits), name, use_async=False)
    scenario = SCENARIOS[name]
    assert (seen.outcome[0], [d[0] for d in seen.decisions], seen.outcome[4]) == (
        scenario.status,
        scenario.routes,
        scenario.reason,
    )


def test_sync_and_async_ask_the_model_for_the_same() -> None:
    asked = []
    for invoke in INVOKES.values():
        chat = model("40", *["41"] * 30, temperature=0.2)
        second = Delegate(ChatModelSampler(chat), temperature=1.0)
        parts: Any = {"remedies": [Retry(), second], "tool": ScriptedTool({}), "seed": 3, "max_tokens": 64}
        invoke(agent(chat, middleware(**parts, on_unresolved="return"), tools=[look_up]), ASKED)
        asked.append(chat.calls)
    assert asked[0] == asked[1]
    # The agent's own, the tool's, the second model's.
    assert {c.get("temperature") for c in asked[0]} == {None, 0.6, 1.0}
    assert all(c["max_tokens"] == 64 for c in asked[0][1:])


# What passes, and what is no answer.


@both
def test_an_answer_that_passes_is_untouched_and_the_model_called_once(invoke: Callable[..., Any]) -> None:
    chat = model("42")
    message = invoke(agent(chat), ASKED)["messages"][-1]
    assert (message.text, len(chat.calls)) == ("42", 1)
    assert "rfx" not in message.response_metadata


@both
def test_an_empty_answer_is_no_failure_unless_the_verifier_says_so(invoke: Callable[..., Any]) -> None:
    chat = model("")
    state = invoke(agent(chat, middleware(FunctionVerifier(lambda text: text == ""))), ASKED)
    assert (state["messages"][-1].text, len(chat.calls)) == ("", 1)


@both
def test_calls_of_tools_pass_on_and_the_answer_after_them_is_judged(invoke: Callable[..., Any]) -> None:
    verifier = ScriptedVerifier(["42"])
    chat = model(calls("look_up", {"key": "a"}, {"key": "b"}), "41", "42", "42")
    state = invoke(agent(chat, middleware(verifier), tools=[look_up]), ASKED)
    assert [m.type for m in state["messages"]] == ["human", "ai", "tool", "tool", "ai"]
    assert "41" in verifier.judged
    assert "" not in verifier.judged
    # Every draw starts from the same request; no failed answer is shown to the model.
    assert chat.calls[1]["messages"] == chat.calls[2]["messages"] == chat.calls[3]["messages"]


@both
def test_a_rescued_message_is_the_draws_own_and_says_how(invoke: Callable[..., Any]) -> None:
    state = invoke(agent(model("40", "41", "42"), name="solver"), ASKED)
    message = state["messages"][-1]
    assert (message.text, message.name, message.usage_metadata["total_tokens"]) == ("42", "solver", 12)
    marks = message.response_metadata["rfx"]
    assert (marks["outcome"], marks["by"], marks["failed"]) == ("rescued", "retry", 2)
    assert (marks["attempts"], marks["samples"], marks["tokens"]) == (2, 2, 24)


@both
def test_a_tools_result_becomes_the_agents_answer(invoke: Callable[..., Any]) -> None:
    driver = ScriptedSampler(["6*7"])
    recovering = middleware(tool=ScriptedTool({"6*7": 42}), sampler=driver)
    message = invoke(agent(model("40", "43", "44"), recovering), ASKED)["messages"][-1]
    assert (message.text, message.response_metadata["rfx"]["by"]) == ("42", "tool")
    assert len(driver.requests) == 1


@both
def test_a_draw_that_calls_tools_is_taken_only_where_nothing_succeeds(invoke: Callable[..., Any]) -> None:
    again = calls("look_up", {"key": "a"})
    state = invoke(agent(model("40", again, "42"), tools=[look_up]), ASKED)
    assert [m.type for m in state["messages"]] == ["human", "ai"]

    budget = RetryBudget(samples=3)
    chat = model("40", again, "41", "42")
    state = invoke(agent(chat, middleware(budget=RetryBudget(samples=2)), tools=[look_up]), ASKED)
    assert [m.type for m in state["messages"]] == ["human", "ai", "tool", "ai"]
    assert state["messages"][1].response_metadata["rfx"]["outcome"] == "continued"

    chat = model("40", again, "41", "43", "44")
    with pytest.raises(Unresolved):
        invoke(agent(chat, middleware(budget=budget, per="call"), tools=[look_up]), ASKED)


# Unresolved answers and broken parts.


@both
def test_no_answer_is_a_typed_error_or_comes_back_with_its_outcome(invoke: Callable[..., Any]) -> None:
    budget = RetryBudget(samples=2)
    with pytest.raises(Unresolved) as caught:
        invoke(agent(model("39", "40", "41"), middleware(budget=budget)), ASKED)
    assert [r.text for r in caught.value.case.rollouts] == ["39", "40", "41"]
    state = invoke(agent(model("39", "40", "41"), middleware(budget=budget, on_unresolved="return")), ASKED)
    message = state["messages"][-1]
    assert (message.text, message.response_metadata["rfx"]["outcome"]) == ("39", "unresolved")


@both
def test_what_the_first_call_raises_is_not_swallowed_and_a_failed_draw_is_no_answer(invoke: Callable[..., Any]) -> None:
    with pytest.raises(ConnectionError, match="reset"):
        invoke(agent(model(ConnectionError("reset"))), ASKED)
    state = invoke(agent(model("40", ConnectionError("reset"), "42")), ASKED)
    assert state["messages"][-1].text == "42"


@both
def test_a_broken_verifier_is_an_error_of_its_own(invoke: Callable[..., Any]) -> None:
    def broken(_: str) -> bool:
        raise KeyError("x")

    with pytest.raises(VerifierError, match="KeyError"):
        invoke(agent(model("42"), middleware(ScriptedVerifier(broken))), ASKED)


@both
def test_what_steers_the_graph_passes_through(invoke: Callable[..., Any]) -> None:
    with pytest.raises(GraphInterrupt):
        middleware().wrap_model_call(_request(model()), _raising(GraphInterrupt()))
    chat = model("40", GraphInterrupt(), "42")
    assert "messages" in invoke(agent(chat, checkpointer=InMemorySaver()), ASKED, THREAD)
    assert len(chat.calls) <= 3


def _raising(error: Exception) -> Callable[[Any], Any]:
    def handler(_: Any) -> Any:
        raise error

    return handler


def _request(chat: Scripted) -> Any:
    from langchain.agents.middleware.types import ModelRequest

    return ModelRequest(model=chat, messages=[HumanMessage("q")])


# Budgets and counts.


class Paid(ScriptedVerifier):
    """A verifier that costs tokens, as a judge does."""

    def bound(self, *_: Any) -> Usage:
        return Usage(5, 5, 1)

    def verify(self, *args: Any, **kwargs: Any) -> Verdict:
        verdict = super().verify(*args, **kwargs)
        return Verdict(verdict.passed, verdict.answer, usage=Usage(4, 3, 1))


@both
def test_counts_of_the_run_and_of_the_thread_are_kept_apart(invoke: Callable[..., Any]) -> None:
    chat = model("40", "41", "42", "42", "43", "42", "41")
    running = agent(chat, middleware(Paid(["42"])), checkpointer=InMemorySaver())
    for _ in range(3):
        state = invoke(running, ASKED, THREAD)
    assert not [key for key in state if key.startswith("rfx")]
    values = running.get_state(THREAD).values
    assert (values["rfx_run"]["rescued"], values["rfx_run"].get("accepted")) == (1, None)
    assert (values["rfx_thread"]["rescued"], values["rfx_thread"]["accepted"]) == (2, 1)
    assert (values["rfx_run"]["spent"]["samples"], values["rfx_thread"]["spent"]["samples"]) == (2, 4)
    assert values["rfx_run"]["spent"]["tokens"] == 3 * 7 + 2 * 12
    assert values["rfx_thread"]["spent"]["tokens"] == 7 * 7 + 4 * 12  # the verdict that passed at once included


@both
@pytest.mark.parametrize("per", ["run", "call"])
def test_one_budget_for_the_run_or_for_each_call(invoke: Callable[..., Any], per: Any) -> None:
    """The agent answers, is told to go on by other middleware, and answers again."""
    chat = model("40", "41", "42", "50", "51", "42")
    recovering = middleware(budget=RetryBudget(samples=2), per=per)
    running = agent(chat, _Again(), recovering)
    if per == "call":
        assert invoke(running, ASKED)["messages"][-1].text == "42"
        assert len(chat.calls) == 6
    else:
        with pytest.raises(Unresolved, match="samples"):
            invoke(running, ASKED)
        assert len(chat.calls) == 4


class _Again(AgentMiddleware):  # type: ignore[type-arg]
    @hook_config(can_jump_to=["model"])
    def after_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        if sum(m.type == "human" for m in state["messages"]) > 1:
            return None
        return {"messages": [HumanMessage("Again.")], "jump_to": "model"}


@both
def test_each_run_has_a_budget_of_its_own_on_one_instance(invoke: Callable[..., Any]) -> None:
    recovering = middleware(budget=RetryBudget(samples=2))
    for _ in range(3):
        state = invoke(agent(model("40", "41", "42"), recovering), ASKED)
        assert state["messages"][-1].text == "42"


@both
def test_an_interrupt_in_between_does_not_refill_the_budget(invoke: Callable[..., Any]) -> None:
    """The first answer is continued by a tool call, which a person approves; then the same run goes on."""
    again = calls("look_up", {"key": "a"})
    chat = model("40", again, "41", "43", "44", "45")
    people = HumanInTheLoopMiddleware(interrupt_on={"look_up": True})
    running = agent(
        chat,
        people,
        middleware(budget=RetryBudget(samples=3)),
        tools=[look_up],
        checkpointer=InMemorySaver(),
    )
    assert "__interrupt__" in invoke(running, ASKED, THREAD)
    before = len(chat.calls)
    with pytest.raises(Unresolved, match="samples"):
        invoke(running, Command(resume={"decisions": [{"type": "approve"}]}), THREAD)
    assert len(chat.calls) == before + 1  # the answer after the tool, and no draw more


# A person.


REPLIES: list[tuple[Any, str, str]] = [
    ({"decisions": [{"type": "approve"}]}, "human", "40"),
    (
        {"decisions": [{"type": "edit", "edited_action": {"name": "accept_answer", "args": {"answer": 42}}}]},
        "human",
        "42",
    ),
    ({"decisions": [{"type": "reject", "message": "ask the vendor"}]}, "rejected", "41"),
    ({"type": "respond", "message": "it is 42"}, "human", "it is 42"),
]
SHORT: Any = {"budget": RetryBudget(samples=2), "interrupts": True, "on_unresolved": "return"}


@both
@pytest.mark.parametrize(("reply", "outcome", "text"), REPLIES)
def test_a_person_is_asked_after_the_model_and_a_resume_calls_it_no_more(
    invoke: Callable[..., Any], reply: Any, outcome: str, text: str
) -> None:
    chat = model("41", "40", "40")
    running = agent(chat, middleware(**SHORT), checkpointer=InMemorySaver())
    asked = invoke(running, ASKED, THREAD)["__interrupt__"][0].value
    assert asked["review_configs"][0]["allowed_decisions"] == ["approve", "edit", "reject", "respond"]
    assert len(chat.calls) == 3
    state = invoke(running, Command(resume=reply), THREAD)
    assert len(chat.calls) == 3
    message = state["messages"][-1]
    assert (message.text, message.response_metadata["rfx"]["outcome"]) == (text, outcome)
    assert [m.type for m in state["messages"]] == ["human", "ai"]
    values = running.get_state(THREAD).values
    assert values["rfx_open"] is None
    assert (values["rfx_thread"]["asked"], values["rfx_thread"][outcome]) == (1, 1)
    # The thread goes on.
    chat.replies.append("42")
    assert invoke(running, ASKED, THREAD)["messages"][-1].text == "42"


@both
def test_a_rejected_answer_raises_where_unresolved_ones_do(invoke: Callable[..., Any]) -> None:
    parts = SHORT | {"on_unresolved": "raise"}
    running = agent(model("41", "40", "40"), middleware(**parts), checkpointer=InMemorySaver())
    invoke(running, ASKED, THREAD)
    with pytest.raises(Unresolved) as caught:
        invoke(running, Command(resume={"type": "reject"}), THREAD)
    assert caught.value.case.outcome is not None
    assert caught.value.case.outcome.status == "rejected"


@both
def test_a_reply_that_does_not_fit_is_refused_and_the_case_stays_open(invoke: Callable[..., Any]) -> None:
    running = agent(model("41", "40", "40"), middleware(**SHORT), checkpointer=InMemorySaver())
    invoke(running, ASKED, THREAD)
    for bad, why in (({"decisions": []}, "decisions"), ("yes", "reply"), ({"type": "edit"}, "edited_action")):
        state = invoke(running, Command(resume=bad), THREAD)
        assert why in state["__interrupt__"][0].value["error"]
    state = invoke(running, Command(resume={"type": "approve"}), THREAD)
    assert state["messages"][-1].text == "40"


@pytest.mark.parametrize(("default", "outcome"), [("reject", "rejected"), ("approve", "human")])
def test_after_the_deadline_the_default_stands(default: Any, outcome: str) -> None:
    now = [1_000.0]
    parts = SHORT | {"escalation": Escalation(deadline=60, default=default), "clock": lambda: now[0]}
    running = agent(model("41", "40", "40"), middleware(**parts), checkpointer=InMemorySaver())
    asked = running.invoke(ASKED, THREAD)["__interrupt__"][0].value
    assert asked["rfx"]["deadline"] == "1970-01-01T00:17:40+00:00"
    now[0] += 61
    state = running.invoke(Command(resume={"type": "respond", "message": "42"}), THREAD)
    assert state["messages"][-1].response_metadata["rfx"]["outcome"] == outcome


def test_asking_a_person_needs_a_checkpointer() -> None:
    chat = model("41")
    with pytest.raises(ConfigError, match="give create_agent a checkpointer"):
        agent(chat, middleware(**SHORT)).invoke(ASKED)
    assert chat.calls == []


@both
def test_a_case_that_was_left_open_is_nobodys_when_the_thread_goes_on(invoke: Callable[..., Any]) -> None:
    chat = model("41", "40", "40", "42")
    running = agent(chat, middleware(**SHORT), checkpointer=InMemorySaver())
    assert "__interrupt__" in invoke(running, ASKED, THREAD)
    state = invoke(running, ASKED, THREAD)
    assert "__interrupt__" not in state
    assert (state["messages"][-1].text, running.get_state(THREAD).values["rfx_open"]) == ("42", None)


@both
def test_a_thread_that_ended_unresolved_may_be_tried_again(invoke: Callable[..., Any]) -> None:
    chat = model("41", "40", "40", "39", "38", "42")
    running = agent(chat, middleware(budget=RetryBudget(samples=2)), checkpointer=InMemorySaver())
    with pytest.raises(Unresolved):
        invoke(running, ASKED, THREAD)
    assert invoke(running, None, THREAD)["messages"][-1].text == "42"


@both
def test_a_subagents_person_is_asked_through_the_parent_and_nothing_runs_twice(invoke: Callable[..., Any]) -> None:
    inner = model("41", "40", "40")
    delegate_agent = agent(inner, middleware(**SHORT))

    @tool
    def delegate(question: str) -> str:
        """Ask the other agent."""
        return str(delegate_agent.invoke({"messages": [HumanMessage(question)]})["messages"][-1].text)

    outer = model(calls("delegate", {"question": "6*7?"}), "42")
    running = agent(outer, middleware(), tools=[delegate], checkpointer=InMemorySaver())
    assert invoke(running, ASKED, THREAD)["__interrupt__"][0].value["rfx"]["reason"] == "budget:samples"
    state = invoke(running, Command(resume={"type": "respond", "message": "42"}), THREAD)
    assert [m.text for m in state["messages"][-2:]] == ["42", "42"]
    assert (len(inner.calls), len(outer.calls)) == (3, 2)


@both
def test_parallel_subagents_have_a_run_each(invoke: Callable[..., Any]) -> None:
    shared = middleware(budget=RetryBudget(samples=2))
    inners = [model("40", "41", "42") for _ in range(3)]
    agents = {f"k{i}": agent(inner, shared) for i, inner in enumerate(inners)}

    @tool
    def delegate(key: str) -> str:
        """Ask another agent."""
        return str(agents[key].invoke(ASKED)["messages"][-1].text)

    outer = model(calls("delegate", {"key": "k0"}, {"key": "k1"}, {"key": "k2"}), "42")
    state = invoke(agent(outer, shared, tools=[delegate]), ASKED)
    assert [m.text for m in state["messages"] if isinstance(m, ToolMessage)] == ["42"] * 3
    assert [len(inner.calls) for inner in inners] == [3, 3, 3]


def test_async_draws_run_at_once_and_their_seeds_differ() -> None:
    waiting: list[int] = []

    class Meeting(Scripted):
        async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
            result = self._generate(*args, **kwargs)
            if len(self.calls) > 1:  # each draw waits for the other
                waiting.append(1)
                while len(waiting) < 2:
                    await asyncio.sleep(0)
            return result

    chat = Meeting(replies=["40", "41", "42"])
    running = agent(chat, middleware(seed=1))
    state = asyncio.run(asyncio.wait_for(running.ainvoke(ASKED), timeout=20))
    assert state["messages"][-1].text == "42"
    assert len({c["seed"] for c in chat.calls[1:]}) == 2


def test_a_cached_copy_is_no_fresh_draw() -> None:
    copy = AIMessage("40", id="same")
    with pytest.raises(Unresolved) as caught:
        agent(model(*[copy] * 3), middleware(budget=RetryBudget(samples=2))).invoke(ASKED)
    diagnosis = caught.value.case.diagnosis
    assert diagnosis is not None
    assert diagnosis.draws == 1


# Structured responses.


class Answer(BaseModel):
    value: int


IS_STRUCTURED = FunctionVerifier(lambda text: text == '{"value":42}')


def structured(value: Any) -> AIMessage:
    return calls("Answer", {"value": value})


@both
def test_a_structured_response_by_a_tool_call_is_judged_as_json(invoke: Callable[..., Any]) -> None:
    chat = model(structured(41), structured("no number"), structured(42))
    running = agent(chat, middleware(IS_STRUCTURED), response_format=ToolStrategy(Answer))
    state = invoke(running, ASKED)
    assert state["structured_response"] == Answer(value=42)
    assert state["messages"][-2].response_metadata["rfx"]["outcome"] == "rescued"
    assert len(chat.calls) == 3


@both
def test_a_structured_response_by_the_provider_is_judged_as_json(invoke: Callable[..., Any]) -> None:
    chat = model('{"value": 41}', "no JSON", '{"value": 42}')
    running = agent(chat, middleware(IS_STRUCTURED), response_format=ProviderStrategy(Answer))
    assert invoke(running, ASKED)["structured_response"] == Answer(value=42)
    # What LangChain cannot parse is a failed answer, and not an error of the agent.
    chat = model("no JSON", '{"value": 41}', '{"value": 42}')
    running = agent(chat, middleware(IS_STRUCTURED), response_format=ProviderStrategy(Answer))
    assert invoke(running, ASKED)["structured_response"] == Answer(value=42)


@both
@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
def test_a_tools_text_must_be_a_structured_response(invoke: Callable[..., Any], strategy: Any) -> None:
    wrong: Any = [structured(n) if strategy is ToolStrategy else f'{{"value": {n}}}' for n in range(12)]
    parts: Any = {
        "verifier": FunctionVerifier(lambda text: "42" in text),
        "tool": ScriptedTool({"a": "42", "b": '{"value":42}'}),
        "sampler": ScriptedSampler(["a", "b"]),
    }
    running = agent(model(*wrong), middleware(**parts), response_format=strategy(Answer))
    state = invoke(running, ASKED)
    assert state["structured_response"] == Answer(value=42)
    assert state["messages"][-1].text == '{"value":42}'


@both
@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
def test_a_persons_edit_must_be_a_structured_response(invoke: Callable[..., Any], strategy: Any) -> None:
    wrong: Any = [structured(n) if strategy is ToolStrategy else f'{{"value": {n}}}' for n in (40, 41, 43)]
    running = agent(
        model(*wrong),
        middleware(IS_STRUCTURED, **SHORT),
        response_format=strategy(Answer),
        checkpointer=InMemorySaver(),
    )
    invoke(running, ASKED, THREAD)
    state = invoke(running, Command(resume={"type": "respond", "message": "it is 42"}), THREAD)
    assert "Answer" in state["__interrupt__"][0].value["error"]
    edit = {"name": "accept_answer", "args": {"answer": '{"value": 42}'}}
    state = invoke(running, Command(resume={"type": "edit", "edited_action": edit}), THREAD)
    assert state["structured_response"] == Answer(value=42)
    assert [m.type for m in state["messages"]] == ["human", "ai"]


# Beside LangChain's own middleware.


@both
def test_a_retry_inside_serves_every_draw(invoke: Callable[..., Any]) -> None:
    chat = model(ConnectionError("a"), "40", ConnectionError("b"), "41", "42")
    retry = ModelRetryMiddleware(max_retries=1, initial_delay=0, on_failure="error")
    assert INVOKES["sync"](agent(chat, middleware(), retry), ASKED)["messages"][-1].text == "42"
    chat = model(ConnectionError("a"), "40", ConnectionError("b"), "41", "42")
    state = invoke(agent(chat, middleware(extra_samples=1), retry), ASKED)
    assert state["messages"][-1].text == "42"


@both
def test_a_retry_outside_is_refused_and_draws_nothing_more(invoke: Callable[..., Any]) -> None:
    chat = model("40", "41", "43", "never")
    retry = ModelRetryMiddleware(max_retries=2, initial_delay=0, on_failure="error")
    with pytest.raises(ConfigError, match="put ModelRetryMiddleware and its like after it"):
        invoke(agent(chat, retry, middleware(budget=RetryBudget(samples=2))), ASKED)
    assert chat.replies == ["never"]


@both
def test_a_fallback_inside_and_outside(invoke: Callable[..., Any]) -> None:
    other = model("41", "42")
    chat = model("40", ConnectionError("down"), ConnectionError("down"))
    state = invoke(agent(chat, middleware(), ModelFallbackMiddleware(other)), ASKED)
    assert (state["messages"][-1].text, other.replies) == ("42", [])
    # Outside, the next model answers what stayed unresolved, under what is left of one budget.
    for other, replies in ((model("42"), []), (model("50", "never"), ["never"])):
        stack = [ModelFallbackMiddleware(other), middleware(budget=RetryBudget(samples=3))]
        running = agent(model("40", "41", "43", "44"), *stack)
        if replies:
            with pytest.raises(Unresolved, match="samples"):
                invoke(running, ASKED)
        else:
            assert invoke(running, ASKED)["messages"][-1].text == "42"
        assert other.replies == replies


@both
@pytest.mark.parametrize("first", [True, False])
def test_call_limits_count_answers_and_not_draws(invoke: Callable[..., Any], first: bool) -> None:
    chat = model(calls("look_up", {"key": "a"}), "40", "41", "42", "never")
    limits: list[Any] = [
        ModelCallLimitMiddleware(run_limit=2, exit_behavior="error"),
        ToolCallLimitMiddleware(run_limit=1, exit_behavior="error"),
    ]
    stack = [*limits, middleware()] if first else [middleware(), *limits]
    state = invoke(agent(chat, *stack, tools=[look_up]), ASKED)
    assert (state["messages"][-1].text, chat.replies) == ("42", ["never"])


@both
def test_a_limits_own_message_is_not_judged(invoke: Callable[..., Any]) -> None:
    verifier = ScriptedVerifier(["42"])
    chat = model(calls("look_up", {"key": "a"}))
    running = agent(chat, ModelCallLimitMiddleware(run_limit=1), middleware(verifier), tools=[look_up])
    assert "limit" in invoke(running, ASKED)["messages"][-1].text
    assert verifier.judged == []


@both
@pytest.mark.parametrize("first", [True, False])
def test_people_approve_tools_and_answers_in_one_thread(invoke: Callable[..., Any], first: bool) -> None:
    chat = model(calls("look_up", {"key": "a"}), "41", "40", "40")
    people = HumanInTheLoopMiddleware(interrupt_on={"look_up": True})
    stack = [people, middleware(**SHORT)] if first else [middleware(**SHORT), people]
    running = agent(chat, *stack, tools=[look_up], checkpointer=InMemorySaver())
    asked = invoke(running, ASKED, THREAD)["__interrupt__"][0].value
    assert asked["action_requests"][0]["name"] == "look_up"
    asked = invoke(running, Command(resume={"decisions": [{"type": "approve"}]}), THREAD)["__interrupt__"][0].value
    assert asked["action_requests"][0]["name"] == "accept_answer"
    state = invoke(running, Command(resume={"decisions": [{"type": "approve"}]}), THREAD)
    assert (state["messages"][-1].text, chat.replies) == ("40", [])


@both
@pytest.mark.parametrize("first", [True, False])
def test_a_summary_is_no_answer_and_draws_start_from_the_summarised_request(
    invoke: Callable[..., Any], first: bool
) -> None:
    verifier = ScriptedVerifier(["42"])
    chat = model("40", "41", "42")
    summary = SummarizationMiddleware(model("they talked"), trigger=("messages", 4), keep=("messages", 1))
    recovering = middleware(verifier)
    stack = [summary, recovering] if first else [recovering, summary]
    talk = [HumanMessage("a"), AIMessage("b"), HumanMessage("c"), AIMessage("d"), HumanMessage("6*7?")]
    assert invoke(agent(chat, *stack), {"messages": talk})["messages"][-1].text == "42"
    assert len({str(c["messages"]) for c in chat.calls}) == 1
    assert "they talked" in str(chat.calls[0]["messages"])
    assert "they talked" not in verifier.judged


# Tool calls.


def flaky(*results: str) -> tuple[Any, list[str]]:
    left, seen = list(results), []
    lock = threading.Lock()

    @tool
    def fetch(key: str) -> str:
        """Fetch something."""
        with lock:
            seen.append(key)
            return left.pop(0) if left else "nothing"

    return fetch, seen


def found(request: Any, message: ToolMessage) -> bool | str:
    return "nothing" not in message.text or "it found nothing"


@both
def test_a_tools_result_that_fails_its_check_is_asked_for_again(invoke: Callable[..., Any]) -> None:
    fetch, seen = flaky("nothing", "a thing")
    chat = model(calls("fetch", {"key": "a"}), "42")
    running = agent(chat, middleware(recovers={"fetch": found}), tools=[fetch, look_up], checkpointer=InMemorySaver())
    state = invoke(running, ASKED, THREAD)
    assert (state["messages"][2].text, seen) == ("a thing", ["a", "a"])
    assert running.get_state(THREAD).values["rfx_run"]["spent"]["attempts"] == 1


@both
def test_a_tool_call_that_is_not_rescued_is_explained_to_the_model(invoke: Callable[..., Any]) -> None:
    fetch, seen = flaky()
    chat = model(calls("fetch", {"key": "a"}), "42")
    state = invoke(agent(chat, middleware(recovers={"fetch": found}, tool_retries=1), tools=[fetch]), ASKED)
    message = state["messages"][2]
    assert (message.status, message.tool_call_id, len(seen)) == ("error", "fetch0", 2)
    assert "it found nothing. It was called 2x" in message.text


@both
def test_parallel_tool_calls_share_one_budget(invoke: Callable[..., Any]) -> None:
    fetch, seen = flaky()
    chat = model(calls("fetch", *[{"key": str(i)} for i in range(8)]), "41")
    recovering = middleware(recovers={"fetch": found}, tool_retries=3, budget=RetryBudget(attempts=5))
    with pytest.raises(Unresolved, match="attempts"):
        invoke(agent(chat, recovering, tools=[fetch]), ASKED)
    assert len(seen) == 8 + 5
    assert len(chat.calls) == 2  # and nothing is left for draws


@both
def test_tool_calls_with_a_budget_each(invoke: Callable[..., Any]) -> None:
    fetch, seen = flaky()
    chat = model(calls("fetch", *[{"key": str(i)} for i in range(3)]), "42")
    recovering = middleware(recovers={"fetch": found}, per="call", budget=RetryBudget(attempts=1))
    running = agent(chat, recovering, tools=[fetch], checkpointer=InMemorySaver())
    invoke(running, ASKED, THREAD)
    assert len(seen) == 6
    assert running.get_state(THREAD).values["rfx_run"]["spent"]["attempts"] == 3


@both
def test_tools_that_are_not_named_commands_and_interrupts_are_left_alone(invoke: Callable[..., Any]) -> None:
    @tool
    def ask(question: str) -> str:
        """Ask somebody."""
        return str(interrupt(question))

    recovering = middleware(recovers={"ask": lambda request, message: message.text == "yes"})
    chat = model(calls("ask", {"question": "sure?"}), "42")
    running = agent(chat, recovering, tools=[ask, look_up], checkpointer=InMemorySaver())
    assert invoke(running, ASKED, THREAD)["__interrupt__"][0].value == "sure?"
    assert invoke(running, Command(resume="yes"), THREAD)["messages"][-1].text == "42"


def test_a_check_that_breaks_or_says_nothing_is_an_error() -> None:
    for check in (lambda request, message: None, lambda request, message: 1 / 0):
        fetch, _ = flaky("a")
        running = agent(model(calls("fetch", {"key": "a"})), middleware(recovers={"fetch": check}), tools=[fetch])
        with pytest.raises(VerifierError, match="the check of tool fetch"):
            running.invoke(ASKED)


# Streams and traces.


def test_a_stream_shows_the_first_attempt_retracts_it_and_gives_the_message_that_stands() -> None:
    seen: list[Any] = []
    running = agent(model("40", "41", "42"))
    for mode, item in running.stream(ASKED, stream_mode=["messages", "custom"]):
        seen.append(item[0].text if mode == "messages" else item["type"])
    assert [text for text in seen if text] == [
        "40",
        "rfx.judged",
        "rfx.retract",
        "rfx.reserved",
        "rfx.sampled",
        "rfx.judged",
        "rfx.judged",
        "rfx.decided",
        "rfx.finished",
        "42",
    ]


def test_an_async_stream_does_the_same_and_a_tools_input_is_not_shown() -> None:
    async def seen() -> list[Any]:
        recovering = middleware(tool=ScriptedTool({"6*7": 42}))
        stream = agent(model("40", "41", "43", "6*7"), recovering).astream(ASKED, stream_mode="messages")
        return [item[0].text async for item in stream if item[0].text]

    assert asyncio.run(seen()) == ["40", "42"]


@both
def test_further_attempts_are_tagged(invoke: Callable[..., Any]) -> None:
    chat = model("40", "41", "42")
    invoke(agent(chat), ASKED)
    tags = [[t for t in c["tags"] if t.startswith("retry")] for c in chat.calls]
    assert tags == [[], ["retry:attempt:2"], ["retry:attempt:3"]]


# Parameters.


@both
def test_draws_differ_from_the_agents_own_call_only_where_they_are_told_to(invoke: Callable[..., Any]) -> None:
    for parts, wanted in (
        ({}, [{}, {}, {}]),
        ({"temperature": 0.9}, [{}, {"temperature": 0.9}, {"temperature": 0.9}]),
        ({"max_tokens": 9}, [{}, {"max_tokens": 9}, {"max_tokens": 9}]),
    ):
        chat = model("40", "41", "42")
        invoke(agent(chat, middleware(**parts)), ASKED)
        assert [{k: c[k] for k in ("temperature", "max_tokens") if k in c} for c in chat.calls] == wanted


@both
def test_reference_and_step_id_come_from_the_request(invoke: Callable[..., Any]) -> None:
    events: list[Any] = []
    seen: list[Any] = []

    class Referenced(ScriptedVerifier):
        def verify(self, step: Any, rollout: Any, *, peers: Any = ()) -> Verdict:
            seen.append((step.expected, step.messages[-1]["content"]))
            return Verdict(True)

    recovering = middleware(
        Referenced([]),
        expected=lambda request: request.messages[-1].text[-2],
        step_id=lambda request: "mine",
        on_event=events.append,
    )
    invoke(agent(model("x"), recovering), ASKED)
    assert seen == [("7", "What is 6 times 7?")]
    assert {e.step_id for e in events} == {"mine"}


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"verifier": "42"}, "verifier is a str; give ExactVerifier"),
        ({"per": "thread"}, "per is 'thread'; give one of 'run', 'call'"),
        ({"on_unresolved": "ignore"}, "on_unresolved is 'ignore'"),
        ({"interrupts": 2}, "interrupts is 2"),
        ({"tool": "x"}, "tool is 'x'"),
        ({"sampler": "x"}, "sampler is 'x'"),
        ({"recovers": ["fetch"]}, "recovers is"),
        ({"recovers": {"fetch": 1}}, r"recovers\['fetch'\] is 1"),
        ({"tool_retries": -1}, "tool_retries is -1"),
        ({"expected": "42"}, "expected is '42'"),
        ({"max_token": 5}, "there is no parameter 'max_token'; do you mean max_tokens="),
        ({"temperature": -1}, "temperature is -1"),
    ],
)
def test_a_parameter_that_cannot_work_fails_at_once(parts: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        RecoverabilityMiddleware(**({"verifier": IS_42} | parts))


def test_hooks_that_are_not_asked_for_add_no_node() -> None:
    nodes = {
        (interrupts, bool(recovers)): set(
            agent(model(), middleware(interrupts=interrupts, recovers=recovers), tools=[look_up]).get_graph().nodes
        )
        for interrupts in (False, True)
        for recovers in ({}, {"look_up": found})
    }
    plain = {"__start__", "model", "tools", "__end__"}
    assert nodes[False, False] == nodes[False, True] == plain
    assert nodes[True, False] == nodes[True, True] == plain | {"RecoverabilityMiddleware.after_model"}
    assert isinstance(middleware(interrupts=True), RecoverabilityMiddleware)


def test_a_model_that_fails_is_a_sampler_error_in_the_case() -> None:
    chat = model("40", ConnectionError("a"), ConnectionError("b"))
    with pytest.raises(Unresolved) as caught:
        agent(chat).invoke(ASKED)
    assert "ConnectionError: a" in caught.value.case.blocked


def test_one_exception_in_a_further_call_is_a_failed_attempt_and_the_second_in_a_row_the_end() -> None:
    one_by_one = middleware(extra_samples=None)
    chat = model("40", ConnectionError("a"), "42")
    assert agent(chat, one_by_one).invoke(ASKED)["messages"][-1].content == "42"
    chat = model("40", ConnectionError("a"), ConnectionError("b"))
    with pytest.raises(Unresolved) as caught:
        agent(chat, one_by_one).invoke(ASKED)
    assert [x.misses for x in caught.value.case.attempts] == [1, 0]
    assert "ConnectionError: b" in caught.value.case.blocked
    assert issubclass(SamplerError, Exception)


class Strict(Scripted):
    """Its client takes no temperature by argument: what the field says counts."""

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        if "temperature" in kwargs:
            raise TypeError("chat() got an unexpected keyword argument 'temperature'")
        kwargs["field"] = self.temperature
        return super()._generate(messages, stop, run_manager, **kwargs)


@both
def test_draws_and_tool_of_a_model_whose_calls_take_no_parameters(invoke: Any) -> None:
    chat = Strict(replies=["41", "40", "39", "6 * 7"])
    recovery = middleware(tool=ScriptedTool({"6 * 7": 42}), temperature=0.4)
    state = invoke(agent(chat, recovery), ASKED)
    assert state["messages"][-1].response_metadata["rfx"]["by"] == "tool"
    assert [call["field"] for call in chat.calls] == [None, 0.4, 0.4, 0.6]  # the tool is asked at the deployment's own


class Silent(Scripted):
    """Says much, and reports no tokens."""

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        self._calls.append(kwargs)
        return ChatResult(generations=[ChatGeneration(message=AIMessage("word " * 300))])


@both
def test_draws_that_nobody_counted_are_charged(invoke: Any) -> None:
    chat = Silent(replies=[])
    recovery = middleware(budget=RetryBudget(samples=40, attempts=40, tokens=2_000), on_unresolved="return")
    message = invoke(agent(chat, recovery), ASKED)["messages"][-1]
    assert 2 <= len(chat.calls) <= 5
    assert message.response_metadata["rfx"]["tokens"] >= 500 * (len(chat.calls) - 1)
