"""Every part that reads what a model wrote reads what follows its thinking, or, where that is right, the whole."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph
from pydantic import BaseModel
from typing_extensions import TypedDict

from rfx_agent import ProgramTool, Recovery, RetryBudget, Rollout, Step, Verdict, add_recovery, recoverable
from rfx_agent.adapters.agent.thing import fits
from rfx_agent.adapters.attempts import Attempts
from rfx_agent.adapters.chain.wrap import with_recovery
from rfx_agent.adapters.shield import Shield
from rfx_agent.errors import ToolInputError
from rfx_agent.lab.problems.gym import GymVerifier
from rfx_agent.remedies import Delegate, Extend, Revise, Tool
from rfx_agent.testing import ScriptedSampler
from rfx_agent.tools import LangChainTool
from rfx_agent.verifiers import FunctionVerifier

STEP = Step.of("The capital of France?")
DRAFT = "<think>Paris? Answer: Paris</think>"
IS_PARIS = FunctionVerifier(lambda text: Verdict(text.strip() == "Paris", feedback="It is on the Seine."))


def asked(sampler: ScriptedSampler, at: int = 0) -> str:
    return str(sampler.requests[at].messages[-1]["content"])


def test_a_function_is_given_what_follows() -> None:
    seen: list[str] = []
    verifier = FunctionVerifier(lambda text: bool(seen.append(text)) or "Paris" in text)
    assert not verifier.verify(STEP, Rollout(f"{DRAFT}Lyon")).passed
    assert seen == ["Lyon"]
    assert not verifier.verify(STEP, Rollout("<think>Paris")).passed


def test_a_revision_shows_the_answer_without_its_thinking() -> None:
    sampler = ScriptedSampler(["Paris"])
    recovery = Recovery(sampler, IS_PARIS, remedies=[Revise()])
    case = recovery.run(STEP, f"{DRAFT}Lyon")
    assert case.outcome is not None
    assert case.outcome.status == "rescued"
    assert "Lyon" in asked(sampler)
    assert "Paris" not in asked(sampler)
    assert case.rollouts[0].text == f"{DRAFT}Lyon"  # which the record keeps


def test_going_on_starts_from_the_whole_text() -> None:
    sampler = ScriptedSampler(["</think>Paris"], continues_prefix=True)
    cut = Rollout("<think>It lies on the", finish_reason="length")
    Recovery(sampler, IS_PARIS, remedies=[Extend()], budget=RetryBudget(attempts=1)).run(STEP, cut)
    assert sampler.requests[0].prefix == cut.text


PROGRAM = "```python\nanswer = {!r}\n```"


def test_a_program_of_the_thinking_is_not_run_and_not_shown_again() -> None:
    draft = f"<think>{PROGRAM.format('Paris')}</think>"
    sampler = ScriptedSampler([f"{draft}I cannot.", f"{draft}{PROGRAM.format('Lyon')}"])
    tool = Tool(ProgramTool(sandbox="monty"))
    case = Recovery(sampler, IS_PARIS, remedies=[tool], budget=RetryBudget(attempts=1)).run(STEP, "Nice")
    assert [x.text for x in case.rollouts] == ["Nice", "Lyon"]
    assert "I cannot." in asked(sampler, 1)
    assert "Paris" not in asked(sampler, 1)
    assert case.attempts[0].note == "it ran in Monty, a subset of Python"


def test_arguments_of_the_thinking_are_not_a_tools() -> None:
    @tool
    def find(name: str) -> str:
        "Find it."
        return name

    found = LangChainTool(find)
    assert found.parse('<think>{"name": "Paris"}</think>{"name": "Lyon"}') == '{"name": "Lyon"}'
    with pytest.raises(ToolInputError, match="while the model thinks"):
        found.parse('<think>{"name": "Paris"}')


def test_begun_work_cannot_open_a_thinking_part_of_its_own() -> None:
    shown = str(ProgramTool().prompt(STEP, prefix="<think>It lies on\x1b[31m</think><|im_end|>")[0]["content"])
    assert "It lies on" in shown
    assert not any(mark in shown for mark in ("<think>", "</think>", "<|im_end|>", "\x1b"))


class City(BaseModel):
    """A structured response."""

    name: str


def test_a_structured_response_of_another_model_is_read_behind_its_thinking() -> None:
    shield = Shield(FunctionVerifier(lambda text: "Paris" in text), Attempts(_Chain()), fits(None, City))
    for text, passed in (
        ('<think>{"name": "Nice"}</think>{"name": "Paris"}', True),
        ('<think>{"name": "Paris"}</think>Paris', False),
        ('<think>{"name": "Paris"}</think>{"name": "Lyon"}', False),
    ):
        assert shield.verify(STEP, Rollout(text)).passed is passed


class _Chain:
    """As much of a thing as ``Attempts`` looks at."""

    name, takes_temperature, takes_max_tokens, takes_revision = "chain", False, False, False

    def driver(self) -> None:
        return None


def large() -> Delegate:
    return Delegate(ScriptedSampler(["<think>Lyon?</think>Paris"]), name="delegate")


def test_a_chain_gives_what_another_model_says() -> None:
    chain = RunnableLambda(lambda _: "Lyon")
    assert with_recovery(chain, verifier=IS_PARIS, remedies=[large()]).invoke("The capital?") == "Paris"
    objects = with_recovery(chain, verifier=IS_PARIS, remedies=[large()], restore=lambda text: {"city": text})
    assert objects.invoke("The capital?") == {"city": "Paris"}


class State(TypedDict, total=False):
    question: str
    answer: str


@pytest.mark.parametrize("behind", [False, True])
def test_a_graphs_state_holds_what_another_model_says(behind: bool) -> None:
    recovery = Recovery(ScriptedSampler([]), IS_PARIS, remedies=[large()])
    keys: dict[str, Any] = {"recovery": recovery, "prompt": "question", "answer": "answer"}

    def solve(state: State) -> State:
        return {"answer": "Lyon"}

    builder = StateGraph(State)
    builder.add_node("solve", solve if behind else recoverable(solve, **keys))
    builder.add_edge(START, "solve")
    builder.add_edge("solve", END)
    if behind:
        add_recovery(builder, "solve", **keys)
    assert builder.compile().invoke({"question": "The capital?"})["answer"] == "Paris"


def test_a_generators_scorer_is_given_what_follows() -> None:
    class Dataset:
        def score_answer(self, answer: str, entry: Any) -> float:
            return float(answer == "8")

    verifier = GymVerifier(Dataset(), {"answer": "8"})
    assert verifier.verify(STEP, Rollout("<think>Answer: 7</think>Answer: 8")).passed
    assert not verifier.verify(STEP, Rollout("<think>Answer: 8</think>Answer: 7")).passed
    assert not verifier.verify(STEP, Rollout("<think>Answer: 8")).passed


def test_a_generators_verifier_says_where_no_answer_was_marked() -> None:
    class Dataset:
        def score_answer(self, answer: str, entry: Any) -> float:
            return float(answer == "8")

    verifier = GymVerifier(Dataset(), {"answer": "8"})
    given = [verifier.verify(STEP, Rollout(x)) for x in ("8", "I worked it out.", "\\boxed{7}", "")]
    assert [(x.passed, x.kind, "boxed" in (x.feedback or "")) for x in given] == [
        (True, None, False),
        (False, "no_answer", True),
        (False, None, False),
        (False, "no_answer", True),
    ]
