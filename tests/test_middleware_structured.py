"""Structured responses that the model does not give: LangChain's own loop is taken over, under the budget."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain.agents.structured_output import (
    AutoStrategy,
    MultipleStructuredOutputsError,
    ProviderStrategy,
    StructuredOutputError,
    StructuredOutputValidationError,
    ToolStrategy,
)
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphInterrupt
from pydantic import BaseModel
from test_middleware import ASKED, THREAD, agent, both, calls, look_up, middleware, model

from rfx_agent import FunctionVerifier, RetryBudget, Unresolved
from rfx_agent.testing import ScriptedSampler, ScriptedTool

PASSES = FunctionVerifier(lambda text: True)
FEW = RetryBudget(samples=4)
LIMIT: Any = {"recursion_limit": 60}


class Answer(BaseModel):
    value: int


class Refusal(BaseModel):
    why: str


def wrong(value: Any = "x") -> AIMessage:
    return calls("Answer", {"value": value})


def both_at_once() -> AIMessage:
    message = wrong(1)
    return AIMessage("", tool_calls=[*message.tool_calls, {"name": "Refusal", "args": {"why": "no"}, "id": "2"}])


def unread() -> AIMessage:
    bad: Any = {"name": "Answer", "args": "{value", "id": "1", "error": None, "type": "invalid_tool_call"}
    return AIMessage("", invalid_tool_calls=[bad])


STRATEGIES: dict[str, Any] = {
    "schema": Answer,
    "auto": AutoStrategy(Answer),
    "tool": ToolStrategy(Answer),
    "text": ToolStrategy(Answer, handle_errors="try again"),
    "class": ToolStrategy(Answer, handle_errors=StructuredOutputValidationError),
    "tuple": ToolStrategy(Answer, handle_errors=(ValueError, StructuredOutputError)),
    "function": ToolStrategy(Answer, handle_errors=lambda error: f"no: {error}"),
    "union": ToolStrategy(Answer | Refusal),
    "raised": ToolStrategy(Answer, handle_errors=False),
    "not caught": ToolStrategy(Answer, handle_errors=(KeyError,)),
}
FAILURES: dict[str, Callable[[], AIMessage]] = {
    "malformed": wrong,
    "no arguments": lambda: calls("Answer", {}),
    "no JSON": unread,
    "plain text": lambda: AIMessage("It is 42."),
}


@both
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize(
    ("failure", "tools"),
    [(failure, tools) for failure in FAILURES for tools in ([], [look_up]) if not (tools and failure == "plain text")],
)
def test_a_model_that_never_gives_one_is_bounded_by_the_budget(
    invoke: Callable[..., Any], strategy: Any, tools: Any, failure: str
) -> None:
    for parts, wanted in (({}, Unresolved), ({"on_unresolved": "return"}, StructuredOutputError)):
        chat = model(*[FAILURES[failure]() for _ in range(5)])
        running = agent(chat, middleware(PASSES, budget=FEW, **parts), tools=tools, response_format=strategy)
        with pytest.raises(wanted) as caught:
            invoke(running, ASKED, LIMIT)
        assert chat.replies == []
        if isinstance(caught.value, Unresolved):
            kinds = {x.kind for x in caught.value.case.rollouts}
            assert kinds == {"no_answer" if failure == "plain text" else "malformed"}
            assert isinstance(caught.value.__cause__, StructuredOutputError)


@both
@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_the_next_draw_gives_it_and_the_thread_has_nothing_of_the_failed_one(
    invoke: Callable[..., Any], strategy: Any, failure: Any
) -> None:
    chat = model(failure(), wrong(42))
    state = invoke(agent(chat, middleware(PASSES, extra_samples=None), response_format=strategy), ASKED)
    assert state["structured_response"] == Answer(value=42)
    assert [m.type for m in state["messages"]] == ["human", "ai", "tool"]
    assert state["messages"][1].response_metadata["rfx"]["outcome"] == "rescued"
    assert chat.replies == []


@both
def test_two_at_once_are_one_failure(invoke: Callable[..., Any]) -> None:
    chat = model(*[both_at_once() for _ in range(5)])
    running = agent(chat, middleware(PASSES, budget=FEW), response_format=ToolStrategy(Answer | Refusal))
    with pytest.raises(Unresolved) as caught:
        invoke(running, ASKED, LIMIT)
    assert isinstance(caught.value.__cause__, MultipleStructuredOutputsError)
    assert caught.value.case.rollouts[0].text == '[{"value":1},{"why":"no"}]'


@both
def test_a_malformed_one_beside_the_call_of_a_tool_does_not_end_the_agent_without_an_answer(
    invoke: Callable[..., Any],
) -> None:
    def mixed() -> AIMessage:
        return AIMessage("", tool_calls=[*wrong().tool_calls, *calls("look_up", {"key": "a"}).tool_calls])

    bare = invoke(create_agent(model(mixed()), [look_up], response_format=ToolStrategy(Answer)), ASKED)
    assert bare.get("structured_response") is None  # LangChain's own, which this is about
    chat = model(mixed(), wrong(42))
    running = agent(chat, middleware(PASSES), tools=[look_up], response_format=ToolStrategy(Answer))
    assert invoke(running, ASKED)["structured_response"] == Answer(value=42)


@both
@pytest.mark.parametrize("tools", [[], [look_up]], ids=["alone", "with tools"])
def test_a_revision_tells_the_model_what_is_wrong(invoke: Callable[..., Any], tools: Any) -> None:
    for strategy, said in ((ToolStrategy(Answer), "valid integer"), (STRATEGIES["text"], "try again")):
        chat = model(wrong("many"), wrong(42))
        running = agent(chat, middleware(PASSES, extra_samples=None), tools=tools, response_format=strategy)
        assert invoke(running, ASKED)["structured_response"] == Answer(value=42)
        prompt = chat.calls[1]["messages"][-1]
        assert said in prompt
        assert '{"value":"many"}' in prompt


@both
def test_a_draw_that_calls_tools_goes_on_and_the_budget_is_the_runs(invoke: Callable[..., Any]) -> None:
    chat = model(wrong(), calls("look_up", {"key": "a"}), wrong(), wrong(), wrong(), wrong(), "never")
    running = agent(chat, middleware(PASSES, budget=FEW), tools=[look_up], response_format=ToolStrategy(Answer))
    with pytest.raises(Unresolved):
        invoke(running, ASKED, LIMIT)
    assert chat.replies == ["never"]


@both
def test_a_tools_text_stands_in_for_it(invoke: Callable[..., Any]) -> None:
    parts: Any = {"tool": ScriptedTool({"a": "42", "b": '{"value":42}'}), "sampler": ScriptedSampler(["a", "b"])}
    chat = model(*[wrong() for _ in range(12)])
    running = agent(chat, middleware(PASSES, **parts), response_format=ToolStrategy(Answer | Refusal))
    state = invoke(running, ASKED, LIMIT)
    assert state["structured_response"] == Answer(value=42)
    assert [m.type for m in state["messages"]] == ["human", "ai"]


@both
def test_with_interrupts_it_ends_too(invoke: Callable[..., Any]) -> None:
    chat = model(*[wrong() for _ in range(5)])
    running = agent(
        chat,
        middleware(PASSES, budget=FEW, interrupts=True),
        response_format=ToolStrategy(Answer),
        checkpointer=InMemorySaver(),
    )
    with pytest.raises(Unresolved):
        invoke(running, ASKED, THREAD | LIMIT)


def test_a_stream_takes_it_back() -> None:
    chat = model(wrong(), wrong(42))
    running = agent(chat, middleware(PASSES, extra_samples=None), response_format=ToolStrategy(Answer))
    custom = [item["type"] for item in running.stream(ASKED, stream_mode="custom")]
    assert "rfx.retract" in custom
    assert custom[-1] == "rfx.finished"


@both
def test_a_text_ends_an_agent_with_tools_as_without_the_middleware(invoke: Callable[..., Any]) -> None:
    for parts, tools in (({}, [look_up]), ({"recovers": {"look_up": lambda *_: True}}, [])):
        chat = model("It is 42.")
        running = agent(chat, middleware(PASSES, **parts), tools=tools, response_format=ToolStrategy(Answer))
        assert invoke(running, ASKED)["messages"][-1].text == "It is 42."


@both
def test_a_raw_schema_is_not_validated_by_langchain_and_goes_to_the_verifier(invoke: Callable[..., Any]) -> None:
    schema = {"title": "Answer", "type": "object", "properties": {"value": {"type": "integer"}}}
    chat = model(wrong(), wrong(42))
    wants = FunctionVerifier(lambda text: "42" in text)
    state = invoke(agent(chat, middleware(wants, extra_samples=None), response_format=schema), ASKED)
    assert state["structured_response"] == {"value": 42}


@both
def test_what_the_provider_gives_is_parsed_by_langchain(invoke: Callable[..., Any]) -> None:
    chat = model(*["no JSON"] * 5)
    running = agent(chat, middleware(PASSES, budget=FEW), response_format=ProviderStrategy(Answer))
    with pytest.raises(Unresolved) as caught:
        invoke(running, ASKED)
    assert {x.kind for x in caught.value.case.rollouts} == {"malformed"}


# The agent's own exceptions.


class Own(Exception):
    pass


@both
def test_an_exception_of_the_agents_own_passes_through_at_once(invoke: Callable[..., Any]) -> None:
    mine = Own("mine")
    chat = model(mine, "never")
    with pytest.raises(Own) as caught:
        invoke(agent(chat), ASKED)
    assert (caught.value, chat.replies) == (mine, ["never"])


@both
def test_an_exception_of_failures_is_a_failed_answer(invoke: Callable[..., Any]) -> None:
    chat = model(OutputParserException("no number", llm_output="about forty"), "42")
    assert invoke(agent(chat, middleware(extra_samples=None)), ASKED)["messages"][-1].text == "42"
    chat = model(*[OutputParserException("no number", llm_output="about forty") for _ in range(5)])
    with pytest.raises(Unresolved) as caught:
        invoke(agent(chat, middleware(budget=FEW)), ASKED)
    assert isinstance(caught.value.__cause__, OutputParserException)
    first = caught.value.case.rollouts[0]
    assert (first.text, first.kind, first.verdict and first.verdict.feedback) == (
        "about forty",
        "malformed",
        "no number",
    )
    chat = model(OutputParserException("no number"), "never")
    with pytest.raises(OutputParserException):
        invoke(agent(chat, middleware(failures=())), ASKED)
    chat = model(Own("x"), Own("y"), "42")
    state = invoke(agent(chat, middleware(failures=(Own,), on_unresolved="return")), ASKED)
    assert state["messages"][-1].text == "42"


@both
def test_what_steers_the_graph_is_no_failed_answer_whatever_failures_says(invoke: Callable[..., Any]) -> None:
    chat = model(GraphInterrupt(), "never")
    running = agent(chat, middleware(failures=(Exception,)), checkpointer=InMemorySaver())
    invoke(running, ASKED, THREAD)
    assert chat.replies == ["never"]


@both
def test_tools_of_every_form_are_told_from_structured_responses(invoke: Callable[..., Any]) -> None:
    hosted = [{"type": "web_search"}, {"type": "function", "function": {"name": "theirs"}}]
    chat = model("It is 42.", wrong(42))
    running = agent(chat, middleware(PASSES, extra_samples=None), tools=hosted, response_format=ToolStrategy(Answer))
    assert invoke(running, ASKED)["structured_response"] == Answer(value=42)
    schema = {"type": "object", "properties": {"value": {"type": "integer"}}, "required": ["value"]}
    with pytest.raises(Unresolved) as caught:
        invoke(agent(model(*["42"] * 5), middleware(PASSES, budget=FEW), response_format=schema), ASKED)
    verdict = caught.value.case.rollouts[0].verdict
    assert verdict is not None
    assert verdict.feedback == "Answer by a call of its tool."


def test_an_error_of_a_middleware_inside_that_has_no_message_is_a_failed_answer_too() -> None:
    class Strict(AgentMiddleware[Any, Any, Any]):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            response = handler(request)
            if response.result[0].text != "42":
                raise StructuredOutputError("not this one")
            return response

    chat = model("41", "42")
    assert agent(chat, middleware(extra_samples=None), Strict()).invoke(ASKED)["messages"][-1].text == "42"
