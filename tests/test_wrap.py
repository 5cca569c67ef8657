"""Any chain with recovery behind it, and any LangChain chat model as a sampler."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from pydantic import BaseModel

from rfx_agent import (
    ChatModelSampler,
    ConfigError,
    FunctionVerifier,
    Recovery,
    SampleRequest,
    SamplerError,
    Step,
    Unresolved,
    with_recovery,
)
from rfx_agent.testing import ScriptedSampler, ScriptedTool, ScriptedVerifier

CALLS: dict[str, Callable[..., Any]] = {
    "sync": lambda runnable, value: runnable.invoke(value),
    "async": lambda runnable, value: asyncio.run(runnable.ainvoke(value)),
}
both = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
IS_42 = ScriptedVerifier(["42"])


def model(*texts: str) -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter([AIMessage(t, usage_metadata=_usage(t)) for t in texts]))


def _usage(text: str) -> Any:
    return {"input_tokens": 5, "output_tokens": len(text), "total_tokens": 5 + len(text)}


@both
def test_a_chain_that_passes_runs_once(call: Callable[..., Any]) -> None:
    runs: list[str] = []
    chain = with_recovery(RunnableLambda(lambda q: runs.append(q) or "42"), verifier=IS_42)
    assert call(chain, "6*7?") == "42"
    assert runs == ["6*7?"]


@both
def test_a_chain_that_fails_is_run_again_and_gives_its_own_output(call: Callable[..., Any]) -> None:
    prompt = ChatPromptTemplate.from_messages([("human", "{question}")])
    chain = with_recovery(prompt | model("40", "41", "42", "43"), verifier=IS_42)
    answer = call(chain, {"question": "6*7?"})
    assert isinstance(answer, AIMessage)
    assert answer.text == "42"


@both
def test_a_tools_answer_comes_back_as_the_chains_type(call: Callable[..., Any]) -> None:
    chain = with_recovery(
        model("40", "41", "43", "44") | StrOutputParser(),
        verifier=IS_42,
        sampler=ScriptedSampler(["6*7"]),
        tool=ScriptedTool({"6*7": 42}),
    )
    assert call(chain, [HumanMessage("6*7?")]) == "42"


class Answer(BaseModel):
    value: int


@both
def test_structured_output_needs_a_way_back_from_text(call: Callable[..., Any]) -> None:
    def chain(_: str) -> Answer:
        return Answer(value=41)

    parts: dict[str, Any] = {
        "verifier": FunctionVerifier(lambda text: text == '{"value":42}'),
        "tool": ScriptedTool({"go": '{"value":42}'}),
    }
    restored = with_recovery(chain, sampler=ScriptedSampler(["go"]), restore=Answer.model_validate_json, **parts)
    assert call(restored, "q") == Answer(value=42)
    with pytest.raises(Unresolved, match="give with_recovery a restore function"):
        call(with_recovery(chain, sampler=ScriptedSampler(["go"]), **parts), "q")


@both
def test_no_answer_is_a_typed_error_with_the_case(call: Callable[..., Any]) -> None:
    chain = with_recovery(RunnableLambda(lambda _: "41"), verifier=IS_42)
    with pytest.raises(Unresolved) as caught:
        call(chain, "q")
    assert caught.value.case.outcome is not None
    assert caught.value.case.outcome.status == "unresolved"
    assert {r.text for r in caught.value.case.rollouts} == {"41"}


@both
def test_a_chain_that_raises_is_never_an_answer(call: Callable[..., Any]) -> None:
    def broken(_: str) -> str:
        raise ConnectionError("reset by peer")

    with pytest.raises(Unresolved, match="ConnectionError: reset by peer"):
        call(with_recovery(broken, verifier=ScriptedVerifier(lambda _: True)), "q")


def test_config_reaches_the_chain_and_later_attempts_are_tagged() -> None:
    seen: list[list[str]] = []

    def chain(_: str, config: Any) -> str:
        seen.append(sorted(t for t in config["tags"] if not t.startswith("seq:")))
        return "42" if len(seen) == 3 else "41"

    wrapped = with_recovery(RunnableLambda(chain), verifier=IS_42, extra_samples=2)
    assert wrapped.invoke("q", {"tags": ["mine"]}) == "42"
    assert seen[0] == ["mine"]
    assert sorted(seen[1:]) == [["mine", "retry:attempt:1"], ["mine", "retry:attempt:2"]]


def test_a_tool_without_a_model_to_drive_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="give the model that is to drive it"):
        with_recovery(RunnableLambda(lambda _: "41"), verifier=IS_42, tool=ScriptedTool({}))


@both
def test_a_chat_model_samples_with_the_tokens_it_reports(call: Callable[..., Any]) -> None:
    recovery = Recovery(sampler=ChatModelSampler(model("40", "41", "42")), verifier=IS_42)
    run: Any = RunnableLambda(lambda _: recovery.run(Step.of("q"), "39"))
    case = call(run, "q")
    assert case.outcome.text == "42"
    assert case.ledger.spent.tokens == 3 * (5 + 2)
    assert case.diagnosis.evidence == "samples"


def test_a_chat_model_that_fails_is_a_sampler_error_with_its_cause() -> None:
    sampler = ChatModelSampler(model())  # an exhausted fake raises
    with pytest.raises(SamplerError, match="GenericFakeChatModel") as caught:
        sampler.sample(SampleRequest(Step.of("q").messages))
    assert caught.value.__cause__ is not None
