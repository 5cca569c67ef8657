"""What ``with_recovery`` is given: readings of input and output, and what it refuses."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from pydantic import BaseModel

from rfx_agent import (
    ConfigError,
    ExactVerifier,
    FunctionVerifier,
    JsonSchemaVerifier,
    Recovery,
    RetryBudget,
    Step,
    with_recovery,
)
from rfx_agent.testing import ScriptedSampler, ScriptedTool, ScriptedVerifier

CALLS: dict[str, Callable[..., Any]] = {
    "sync": lambda runnable, value: runnable.invoke(value),
    "async": lambda runnable, value: asyncio.run(runnable.ainvoke(value)),
}
both = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
IS_42 = ScriptedVerifier(["42"])


class Watching(ExactVerifier):
    """Keeps the steps that it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []

    def verify(self, step: Step, rollout: Any, *, peers: Any = ()) -> Any:
        self.steps.append(step)
        return super().verify(step, rollout, peers=peers)


READINGS: list[Any] = [
    ("question", "right", "says"),
    (lambda value: value["question"], lambda value: value["right"], lambda output: output["says"]),
]


@both
@pytest.mark.parametrize("reading", READINGS, ids=["keys", "functions"])
def test_prompt_expected_and_answer_are_keys_or_functions(call: Callable[..., Any], reading: Any) -> None:
    prompt, expected, answer = reading
    verifier = Watching()
    wrapped = with_recovery(
        RunnablePassthrough(), verifier=verifier, prompt=prompt, expected=expected, answer=answer, extra_samples=0
    )
    value = {"question": "6*7?", "right": "42", "says": "Answer: 42", "more": 1}
    assert call(wrapped, value) == value
    (step,) = verifier.steps
    assert (step.messages[-1]["content"], step.expected) == ("6*7?", "42")


class Said(BaseModel):
    text: str


@both
def test_an_answer_is_a_key_of_an_object_too(call: Callable[..., Any]) -> None:
    assert call(with_recovery(lambda _: Said(text="42"), verifier=IS_42, answer="text"), "q") == Said(text="42")
    with pytest.raises(ConfigError, match="answer is 'words', and there is no such key: it is a Said"):
        call(with_recovery(lambda _: Said(text="42"), verifier=IS_42, answer="words"), "q")


@both
def test_an_output_without_text_names_the_remedy(call: Callable[..., Any]) -> None:
    class Opaque:
        pass

    given = Opaque()
    with pytest.raises(ConfigError, match="no text to judge in a Opaque; give answer="):
        call(with_recovery(lambda _: given, verifier=IS_42), "q")
    assert call(with_recovery(lambda _: given, verifier=IS_42, answer=lambda _: "42"), "q") is given


@both
def test_an_input_without_a_prompt_is_read_as_json_and_goes_to_the_chain_as_it_is(call: Callable[..., Any]) -> None:
    verifier, value = Watching(), {"a": object(), "b": [1]}
    wrapped = with_recovery(
        lambda given: "Answer: 42" if given is value else "", verifier=verifier, expected=lambda _: 42
    )
    assert call(wrapped, value) == "Answer: 42"
    assert verifier.steps[0].messages[0]["content"].startswith('{"a":"<object object at')


def calls(*values: int, text: str = "") -> AIMessage:
    return AIMessage(text, tool_calls=[{"name": "put", "args": {"value": x}, "id": f"c{x}"} for x in values])


@both
@pytest.mark.parametrize("text", ["", "I look it up: 41"])
def test_a_message_that_calls_tools_is_no_answer_and_passes_on(call: Callable[..., Any], text: str) -> None:
    read: list[str] = []
    wrapped = with_recovery(lambda _: calls(41, text=text), verifier=FunctionVerifier(lambda t: bool(read.append(t))))
    assert call(wrapped, "q") == calls(41, text=text)
    assert read == []


@both
def test_a_further_attempt_that_calls_tools_is_a_failed_one(call: Callable[..., Any]) -> None:
    said = iter([AIMessage("41"), calls(42), AIMessage("42")])
    wrapped = with_recovery(lambda _: next(said), verifier=FunctionVerifier(lambda text: text == "42"))
    assert call(wrapped, "q").text == "42"


@both
def test_tool_calls_are_judged_where_they_are_the_answer(call: Callable[..., Any]) -> None:
    said = iter([calls(41), calls(42, 43)])
    schema = {"type": "array", "items": {"properties": {"args": {"properties": {"value": {"minimum": 42}}}}}}
    verifier = JsonSchemaVerifier(schema=schema)
    wrapped = with_recovery(lambda _: next(said), verifier=verifier, answer="tool_calls", extra_samples=1)
    assert [x["args"] for x in call(wrapped, "q").tool_calls] == [{"value": 42}, {"value": 43}]


async def later(*_: Any) -> str:
    return "42"


class Later:
    async def __call__(self, _: Any) -> str:
        return "42"


RECOVERY = Recovery(verifier=IS_42)
WRONG: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    ((None,), {"verifier": IS_42}, "runnable is None; give a chain, a chat model or a function"),
    (("text",), {"verifier": IS_42}, "runnable is 'text'; give a chain"),
    ((str.upper,), {}, "verifier is missing; give a Recovery, or verifier="),
    ((str.upper, IS_42), {}, "a verifier goes by name: verifier="),
    ((str.upper, RECOVERY), {"verifier": IS_42}, "a Recovery and verifier= are given"),
    ((str.upper,), {"verifier": IS_42, "budgt": RetryBudget()}, "do you mean budget="),
    ((str.upper,), {"verifier": IS_42, "on_unresolved": "retrun"}, "on_unresolved is 'retrun'; give one of 'raise'"),
    ((str.upper,), {"verifier": IS_42, "interrupts": True}, "add_recovery"),
    ((str.upper,), {"verifier": IS_42, "stream": "fast"}, "stream is 'fast'"),
    ((str.upper,), {"verifier": IS_42, "on_retract": print}, "only stream='speculative'"),
    (
        (str.upper,),
        {"verifier": IS_42, "on_retract": "print", "stream": "speculative"},
        "on_retract is 'print'; give a",
    ),
    ((str.upper,), {"verifier": IS_42, "failures": ValueError}, "give a tuple of exception classes"),
    ((str.upper,), {"verifier": IS_42, "failures": (ValueError(),)}, "give a tuple of exception classes"),
    ((str.upper,), {"verifier": IS_42, "tool": ScriptedTool({})}, "give the model that is to drive it"),
    ((str.upper,), {"verifier": IS_42, "prompt": 5}, "prompt is 5; give a key, or a function"),
    ((str.upper,), {"verifier": IS_42, "answer": later}, "answer is an async function; give a plain one"),
    ((str.upper,), {"verifier": IS_42, "prompt": Later()}, "prompt is an async function; give a plain one"),
    ((str.upper,), {"verifier": IS_42, "expected": later}, "expected is an async function; give a plain one"),
    ((str.upper,), {"verifier": IS_42, "restore": "Answer"}, "restore is 'Answer'; give a function, such as"),
    ((str.upper,), {"verifier": IS_42, "revise": 5}, "revise is 5; give a function, such as"),
    ((str.upper,), {"verifier": IS_42, "restore": later}, "restore is an async function; give a plain one"),
    ((str.upper,), {"verifier": IS_42, "name": 5}, "name is 5; give a text"),
    ((str.upper,), {"verifier": IS_42, "name": ""}, "name is ''; give a text"),
]


@pytest.mark.parametrize(("args", "options", "says"), WRONG, ids=[says for *_, says in WRONG])
def test_what_cannot_work_is_refused_with_its_remedy(args: Any, options: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        with_recovery(*args, **options)
    assert str(caught.value).startswith("with_recovery: ")


@both
def test_a_recovery_goes_by_position_or_name(call: Callable[..., Any]) -> None:
    whole = Recovery(
        sampler=ScriptedSampler([], last="go"), tool=ScriptedTool({"go": "42"}), verifier=IS_42, extra_samples=0
    )
    assert call(with_recovery(RunnableLambda(lambda _: "41"), whole), "q") == "42"
    assert call(with_recovery(RunnableLambda(lambda _: "41"), recovery=whole), "q") == "42"


@both
@pytest.mark.parametrize("answer", [None, "messages"])
def test_of_an_agents_state_the_last_message_is_judged(call: Callable[..., Any], answer: str | None) -> None:
    said = iter(["no", "yes"])
    agent = RunnableLambda(lambda state: {"messages": [*state["messages"], AIMessage(next(said))]})
    wrapped = with_recovery(agent, verifier=lambda text: text == "yes", answer=answer)
    assert call(wrapped, {"messages": [HumanMessage("say yes")]})["messages"][-1].text == "yes"


def test_a_future_is_no_answer_yet() -> None:
    with pytest.raises(ConfigError, match=r"task\(x\)\.result\(\)"):
        with_recovery(lambda _: Future(), verifier=lambda text: True).invoke("q")
