"""Typed calls of every way in, which mypy checks; what it must refuse carries the code of the error it must give."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, TypedDict, assert_type

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.tools import BaseTool
from langgraph.graph import StateGraph
from pydantic import BaseModel

from rfx_agent import (
    Case,
    Delegate,
    ExactVerifier,
    Outcome,
    ProgramTool,
    RecoverabilityMiddleware,
    Recovery,
    RetryBudget,
    Step,
    add_recovery,
    recoverable,
    recovery_graph,
    with_recovery,
)
from rfx_agent.adapters.chain.wrap import RecoveredRunnable, Retracted


class Answer(BaseModel):
    value: int


class State(TypedDict):
    question: str
    answer: str


def chains(
    recovery: Recovery, model: BaseChatModel, tool: BaseTool, chain: Runnable[str, Answer], text: Runnable[Any, str]
) -> None:
    """The chain's input and output types are kept."""
    assert_type(with_recovery(chain, recovery), RecoveredRunnable[str, Answer])
    assert_type(with_recovery(chain, recovery=recovery), RecoveredRunnable[str, Answer])
    assert_type(with_recovery(chain, verifier=lambda t: True, max_tokens=5), RecoveredRunnable[str, Answer])
    assert_type(with_recovery(chain, verifier=ExactVerifier(), expected="right").invoke("q"), Answer)
    with_recovery(
        chain,
        verifier=lambda step, rollout: rollout.text == step.expected,
        sampler=model,
        tool=tool,
        budget=RetryBudget(samples=3),
        prompt=lambda value: value.upper(),
        answer=lambda answer: str(answer.value),
        expected=lambda value: len(value),
        on_unresolved="return",
        restore=Answer.model_validate_json,
        revise=lambda value, addition: f"{value} {addition}",
        failures=(KeyError,),
        name="solver",
        temperature=0.5,
        remedies=[],
    )
    with_recovery(text, verifier=ExactVerifier(), sampler="openai:gpt-5.5", answer="text", prompt="question")
    assert_type(with_recovery(model, verifier=ExactVerifier()).invoke("q"), AIMessage)
    spoken = with_recovery(text, recovery, stream="speculative")
    assert_type(list(spoken.stream("q")), list[str | Retracted])
    assert_type(list(with_recovery(words, recovery, stream="speculative").stream("q")), list[str | Retracted])
    assert_type(list(with_recovery(text, recovery, stream="speculative", on_retract=print).stream("q")), list[str])

    with_recovery(chain, verifier=ExactVerifier(), budgt=RetryBudget())  # type: ignore[call-overload]
    with_recovery(chain, verifier=ExactVerifier(), budget=6)  # type: ignore[call-overload]
    with_recovery(chain, verifier=ExactVerifier(), on_unresolved="retrun")  # type: ignore[call-overload]
    with_recovery(chain, verifier=ExactVerifier(), max_tokens="5")  # type: ignore[call-overload]
    with_recovery(chain, verifier=ExactVerifier(), interrupts=True)  # type: ignore[call-overload]
    with_recovery(chain, ExactVerifier())  # type: ignore[call-overload]
    with_recovery("text", verifier=ExactVerifier())  # type: ignore[call-overload]
    with_recovery(text, recovery, stream="speculative", budgt=1)  # type: ignore[call-overload]


def work(question: str) -> int:
    """A chain that is a function."""
    return len(question)


async def later(question: str) -> int:
    """One that is a coroutine function."""
    return len(question)


def words(questions: Iterator[str]) -> Iterator[str]:
    """One that is a generator."""
    yield from questions


async def later_words(questions: AsyncIterator[str]) -> AsyncIterator[str]:
    """And one that is an asynchronous one."""
    async for question in questions:
        yield question


def functions(recovery: Recovery) -> None:
    """Plain callables too."""
    assert_type(with_recovery(work, recovery), RecoveredRunnable[str, int])
    assert_type(with_recovery(later, recovery), RecoveredRunnable[str, int])
    assert_type(with_recovery(words, recovery), RecoveredRunnable[str, str])
    assert_type(with_recovery(later_words, recovery), RecoveredRunnable[str, str])
    with_recovery(later, verifier=ExactVerifier(), prompt=lambda question: question.upper(), name="later")
    with_recovery(later, recovery, budgt=1)  # type: ignore[call-overload]
    with_recovery(words, recovery, budgt=1)  # type: ignore[call-overload]


def agents(recovery: Recovery, model: BaseChatModel) -> None:
    """The middleware, as ``create_agent`` takes it."""
    create_agent(model, [], middleware=[RecoverabilityMiddleware(recovery)])
    create_agent(model, [], middleware=[RecoverabilityMiddleware(verifier=lambda t: True, max_tokens=5)])
    RecoverabilityMiddleware(verifier=ExactVerifier(), expected=lambda request: request.model, accept=0.9)
    RecoverabilityMiddleware(verifier=ExactVerifier(), budgt=RetryBudget())  # type: ignore[call-arg]
    RecoverabilityMiddleware(ExactVerifier())  # type: ignore[arg-type]


@recoverable(verifier=ExactVerifier(), prompt="question", answer="answer", max_tokens=5)
def solve(state: State) -> dict[str, str]:
    """A node with its decorator."""
    return {"answer": state["question"]}


def graphs(recovery: Recovery, builder: "StateGraph[State, Any, State, State]") -> None:
    """A node, and what stands behind one."""
    assert_type(solve({"question": "q", "answer": ""}), dict[str, str])
    assert_type(recoverable(work, recovery)("q"), int)
    recoverable(RunnableLambda(work), lambda context: recovery, outcome="outcome", on_unresolved="return")
    recoverable(work, verifier=ExactVerifier(), budgt=1)  # type: ignore[call-overload]
    recoverable(work, ExactVerifier())  # type: ignore[call-overload]
    builder.add_node("solve", solve)
    add_recovery(builder, "solve", recovery, prompt="question", answer="answer", interrupts=True)
    add_recovery(builder, "solve", verifier=lambda t: True, sampler="openai:gpt-5.5", seed=1)
    add_recovery(builder, "solve", recovery, budgt=1)  # type: ignore[call-arg]
    recovery_graph(recovery)
    recovery_graph(verifier=ExactVerifier(), sampler="openai:gpt-5.5", concurrency=2)
    recovery_graph(recovery, budgt=1)  # type: ignore[call-arg]


async def engine(recovery: Recovery, step: Step) -> None:
    """The engine by itself."""
    case: Case = recovery.run(step, "41")
    assert_type(case.step, Step)
    assert_type(recovery.run("q").outcome.text, str | None)
    assert_type((await recovery.arun("q", run_id="r")).outcome, Outcome)
    recovery.run(step, 41)  # type: ignore[arg-type]


def parts(recovery: Recovery) -> None:
    """The constructor, and what is natural in it."""
    Recovery("openai:gpt-4o-mini", lambda text: text == "42", tool=ProgramTool(), accept=0.8)
    Recovery(verifier=ExactVerifier("42"), right_rates=recovery.right_rates)
    Recovery(verifier=42)  # type: ignore[arg-type]
    Recovery(verifier=ExactVerifier("42"), budgt=1)  # type: ignore[call-arg]
    Recovery(42, ExactVerifier("42"))  # type: ignore[arg-type]
    Delegate("openai:gpt-4o", "delegate_large")
    Delegate(42)  # type: ignore[arg-type]
