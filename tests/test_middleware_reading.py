"""What the verifier and the tool are shown of an agent's request and of its answer: ``prompt`` and ``answer``."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_core.language_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompt_values import StringPromptValue
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import BaseModel
from test_middleware import ASKED, IS_42, SHORT, THREAD, agent, both, calls, look_up, middleware, model

from rfx_agent import (
    ConfigError,
    ExactVerifier,
    FunctionVerifier,
    Recovery,
    RetryBudget,
    Step,
    Unresolved,
    Verdict,
)
from rfx_agent.adapters.agent.middleware import RecoverabilityMiddleware
from rfx_agent.adapters.agent.tools import ToolHooks
from rfx_agent.ports import Escalator
from rfx_agent.testing import ScriptedSampler, ScriptedTool, ScriptedVerifier


class Seeing(ScriptedVerifier):
    """Passes 42, and remembers the steps."""

    def __init__(self) -> None:
        super().__init__(["42"])
        self.steps: list[Step] = []

    def verify(self, step: Any, rollout: Any, *, peers: Any = ()) -> Verdict:
        self.steps.append(step)
        return super().verify(step, rollout, peers=peers)


def last_line(message: AIMessage) -> str:
    return message.text.splitlines()[-1]


@both
@pytest.mark.parametrize(
    "made",
    ["6*7?", [HumanMessage("6*7?")], [("user", "6*7?")], (HumanMessage("6*7?"),), StringPromptValue(text="6*7?")],
)
def test_the_prompt_makes_the_step_and_the_draws_have_the_agents_request(invoke: Callable[..., Any], made: Any) -> None:
    verifier = Seeing()
    chat = model("40", "42")
    recovering = middleware(verifier, prompt=lambda request: made, expected=lambda request: 42, extra_samples=None)
    invoke(agent(chat, recovering, system_prompt="Be brief."), ASKED)
    assert {m["content"] for step in verifier.steps for m in step.messages} == {"6*7?"}
    assert {step.expected for step in verifier.steps} == {42}
    assert [c["messages"] for c in chat.calls] == [["Be brief.", "What is 6 times 7?"]] * 2


@both
def test_the_tool_is_asked_for_by_the_prompt(invoke: Callable[..., Any]) -> None:
    driver = ScriptedSampler(["6*7"])
    recovering = middleware(tool=ScriptedTool({"6*7": 42}), sampler=driver, prompt=lambda request: "only this")
    assert invoke(agent(model("40", "43", "44"), recovering), ASKED)["messages"][-1].text == "42"
    assert "only this" in str(driver.requests[0].messages)
    assert "6 times 7" not in str(driver.requests[0].messages)


@both
def test_a_whole_step_brings_its_own_id_and_reference_and_else_has_the_defaults(invoke: Callable[..., Any]) -> None:
    verifier = Seeing()
    defaults: Any = {"expected": lambda request: "theirs", "step_id": lambda request: "default"}

    def steps(step: Step) -> Step:
        invoke(agent(model("42"), middleware(verifier, prompt=lambda request: step, **defaults)), ASKED)
        return verifier.steps[-1]

    own = Step.of("q", expected="own", id="mine", task="sums")
    assert steps(own) == own
    assert steps(Step.of("q")) == Step.of("q", expected="theirs", id="default")


@both
def test_an_answer_is_read_by_the_function_of_draws_too_and_the_message_goes_on_whole(
    invoke: Callable[..., Any],
) -> None:
    chat = model("I think:\n41", "I was wrong:\n42")
    state = invoke(agent(chat, middleware(ExactVerifier("42"), answer=last_line, extra_samples=None)), ASKED)
    message = state["messages"][-1]
    assert (message.text, message.usage_metadata["total_tokens"]) == ("I was wrong:\n42", 12)
    assert message.response_metadata["rfx"]["outcome"] == "rescued"
    # One that passes at once.
    verifier = ScriptedVerifier(["42"])
    state = invoke(agent(model("So:\n42"), middleware(verifier, answer=last_line)), ASKED)
    assert (state["messages"][-1].text, verifier.judged) == ("So:\n42", ["42"])
    # What failed is in the case as it was read.
    with pytest.raises(Unresolved) as caught:
        invoke(agent(model("a\n40", "b\n41"), middleware(answer=last_line, budget=RetryBudget(samples=1))), ASKED)
    assert [x.text for x in caught.value.case.rollouts] == ["40", "41"]


@both
def test_an_answer_that_is_no_message_of_the_agent_is_not_read_by_the_function(invoke: Callable[..., Any]) -> None:
    parts: Any = {"tool": ScriptedTool({"6*7": 42}), "sampler": ScriptedSampler(["6*7"]), "answer": last_line}
    state = invoke(agent(model("a\n40", "b\n43", "c\n44"), middleware(**parts)), ASKED)
    assert state["messages"][-1].text == "42"


@both
def test_a_structured_response_is_read_by_the_function(invoke: Callable[..., Any]) -> None:
    class Answer(BaseModel):
        value: int

    def value(message: AIMessage) -> str:
        return str(message.tool_calls[0]["args"]["value"])

    chat = model(calls("Answer", {"value": 41}), calls("Answer", {"value": "x"}), calls("Answer", {"value": 42}))
    running = agent(chat, middleware(IS_42, answer=value), response_format=ToolStrategy(Answer))
    assert invoke(running, ASKED)["structured_response"] == Answer(value=42)


@both
def test_a_first_answer_that_a_person_approves_stays_whole(invoke: Callable[..., Any]) -> None:
    chat = model("a\n40", "b\n40", "c\n41")
    running = agent(chat, middleware(**SHORT, answer=last_line), checkpointer=InMemorySaver())
    invoke(running, ASKED, THREAD)
    state = invoke(running, Command(resume={"type": "approve"}), THREAD)
    assert state["messages"][-1].text == "a\n40"


@both
def test_a_function_that_gives_nothing_usable_is_named(invoke: Callable[..., Any]) -> None:
    for made in (None, "", [], 42, {}):
        with pytest.raises(ConfigError, match="prompt returned"):
            invoke(agent(model("42"), middleware(prompt=lambda request, made=made: made)), ASKED)
    with pytest.raises(ConfigError, match="answer returned 42"):
        invoke(agent(model("42"), middleware(answer=lambda message: 42)), ASKED)
    with pytest.raises(ConfigError, match="answer is 'text'"):
        middleware(answer="text")


# Mistakes.


def test_a_subclass_has_the_hooks_that_it_asks_for() -> None:
    class Mine(RecoverabilityMiddleware):
        pass

    chat = model("41", "40", "40")
    running = create_agent(
        chat, middleware=[Mine(verifier=IS_42, extra_samples=2, **SHORT)], checkpointer=InMemorySaver()
    )
    assert "__interrupt__" in running.invoke(ASKED, THREAD)
    assert isinstance(Mine(verifier=IS_42, recovers={"look_up": lambda *_: True}), (Mine, ToolHooks))
    assert type(Mine(verifier=IS_42)) is Mine


@both
def test_a_typing_error_in_recovers_is_named_when_the_tool_is_called(invoke: Callable[..., Any]) -> None:
    chat = model(calls("look_up", {"key": "a"}), "42")
    running = agent(chat, middleware(recovers={"lookup": lambda *_: False}), tools=[look_up])
    with pytest.raises(ConfigError, match="do you mean 'look_up'"):
        invoke(running, ASKED)
    chat = model(calls("look_up", {"key": "a"}), "42")
    elsewhere = {"fetch": lambda *_: False, "look_up": lambda *_: True}  # one that this agent does not have
    assert invoke(agent(chat, middleware(recovers=elsewhere), tools=[look_up]), ASKED)["messages"][-1].text == "42"


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"expected": "42"}, "expected is '42'; give a function of the model request; what is always the same goes to"),
        ({"answer": 1}, "answer is 1; give a function of the message"),
        ({"takes_temperature": "no"}, "takes_temperature is 'no'"),
        ({"failures": ValueError}, "failures is <class 'ValueError'>; give a tuple"),
        ({"promt": len}, "do you mean prompt="),
    ],
)
def test_a_mistake_says_what_to_give(parts: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        RecoverabilityMiddleware(**({"verifier": IS_42} | parts))


def test_a_recovery_or_a_verifier_and_not_both() -> None:
    recovery = Recovery(verifier=IS_42)
    with pytest.raises(ConfigError, match="verifier is missing; give a Recovery, or verifier="):
        RecoverabilityMiddleware()
    with pytest.raises(ConfigError, match="a verifier goes by name"):
        RecoverabilityMiddleware(IS_42)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"a Recovery and verifier=, accept= are given"):
        RecoverabilityMiddleware(recovery, verifier=IS_42, accept=0.5)
    with pytest.raises(ConfigError, match="interrupts is True and escalator is set"):
        RecoverabilityMiddleware(Recovery(verifier=IS_42, escalator=_Nobody()), interrupts=True)
    with pytest.raises(AssertionError, match="duplicate middleware"):
        create_agent(model(), middleware=[RecoverabilityMiddleware(recovery), RecoverabilityMiddleware(recovery)])
    with pytest.raises(ConfigError, match="step_id returned None"):
        agent(model("42"), middleware(step_id=lambda request: None)).invoke(ASKED)


class _Nobody(Escalator):
    def escalate(self, request: Any) -> Any:
        raise AssertionError("nobody is asked")


# A Recovery that other ways in share.


@both
def test_a_recovery_without_a_sampler_drives_its_tool_by_the_agents_model(invoke: Callable[..., Any]) -> None:
    recovery = Recovery(verifier=IS_42, tool=ScriptedTool({"6*7": 42}), extra_samples=2)
    chat = model("40", "41", "43", "6*7")
    assert invoke(agent(chat, RecoverabilityMiddleware(recovery)), ASKED)["messages"][-1].text == "42"
    driver = ScriptedSampler(["6*7"])
    recovery = Recovery(driver, verifier=IS_42, tool=ScriptedTool({"6*7": 42}), extra_samples=2)
    chat = model("40", "41", "43", "never")
    assert invoke(agent(chat, RecoverabilityMiddleware(recovery)), ASKED)["messages"][-1].text == "42"
    assert (chat.replies, [r.purpose for r in driver.requests]) == (["never"], ["tool_input"])


@both
@pytest.mark.parametrize("draws", [{}, {"temperature": 0.9}, {"max_tokens": 64}])
def test_a_recoverys_parameters_are_the_tools_and_the_agents_draws_are_left_alone(
    invoke: Callable[..., Any], draws: dict[str, Any]
) -> None:
    recovery = Recovery(verifier=IS_42, tool=ScriptedTool({"6*7": 42}), max_tokens=77, temperature=0.3, extra_samples=2)
    chat = model("40", "41", "43", "6*7", temperature=0.1, max_tokens=1000)
    running = agent(chat, RecoverabilityMiddleware(recovery, **draws))
    assert invoke(running, ASKED)["messages"][-1].text == "42"
    first, *drawn, tool_input = [{k: c[k] for k in ("temperature", "max_tokens") if k in c} for c in chat.calls]
    assert first == {}
    assert drawn == [draws, draws]
    assert tool_input["max_tokens"] == draws.get("max_tokens", 77)
    assert (recovery.max_tokens, recovery.temperature) == (77, 0.3)


@both
def test_a_recovery_shares_what_it_learns_of_its_draws(invoke: Callable[..., Any]) -> None:
    judge = FunctionVerifier(lambda text: text == "42", weak=True, rates=(0.9, 0.1))
    for draws in ({}, {"temperature": 0.9}):
        recovery = Recovery(ScriptedSampler(["42"]), judge)
        invoke(agent(model("42"), RecoverabilityMiddleware(recovery, **draws)), ASKED)
        assert recovery.right_rates.knows("")


@pytest.mark.parametrize("how", ["sync", "async"])
def test_two_answers_under_one_message_id_are_told_apart(how: str) -> None:
    model = FakeMessagesListChatModel(responses=[AIMessage("41", id="same"), AIMessage("42", id="same")])
    made = create_agent(model, [], middleware=[RecoverabilityMiddleware(verifier=lambda text: "42" in text)])
    asked = {"messages": [("user", "6 times 7?")]}
    state = made.invoke(asked) if how == "sync" else asyncio.run(made.ainvoke(asked))
    assert state["messages"][-1].text == "42"


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_refusal_is_no_answer_whatever_stands_in_it(how: str) -> None:
    refusal = AIMessage("", additional_kwargs={"refusal": "I cannot say 42"})
    recovery = Recovery(FakeMessagesListChatModel(responses=[refusal, AIMessage("42")]), lambda text: "42" in text)
    case = recovery.run("q") if how == "sync" else asyncio.run(recovery.arun("q"))
    assert [x.kind for x in case.rollouts] == ["refused", None]
    assert case.outcome.text == "42"
