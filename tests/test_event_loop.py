"""Long texts and an event loop: nothing of ours keeps it busy. ``benchmarks/holds.py`` measures the wall clock."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from pydantic import BaseModel

from rfx_agent import (
    ChatModelSampler,
    ExactVerifier,
    FunctionVerifier,
    JsonSchemaVerifier,
    JudgeVerifier,
    MathVerifier,
    PydanticVerifier,
    Recovery,
    RegexVerifier,
    RetryBudget,
    Rollout,
    SampleRequest,
    Step,
    TestsVerifier,
    Usage,
    scan,
)
from rfx_agent.ports import Verifier
from rfx_agent.testing import ScriptedSampler
from rfx_agent.thinking import LONG, after_thinking
from rfx_agent.verifiers import AgreementVerifier
from rfx_agent.verifiers.answers import find_answer

PROSE = "the sum of 3 and 4 is 7, so x = 7. " * 30_000
MARKS = "<think> [ { answer <" * 50_000
STEP = Step.of("What is 6 times 7?", expected="42")


class Items(BaseModel):
    items: list[dict[str, Any]]


def judge() -> JudgeVerifier:
    return JudgeVerifier(ScriptedSampler([], last='{"verdict": "fail"}'), rubric="right")


VERIFIERS: dict[str, Callable[[], Verifier]] = {
    "exact": ExactVerifier,
    "math": MathVerifier,
    "regex": lambda: RegexVerifier(r"answer: (\d+)\s*$"),
    "function": lambda: FunctionVerifier(lambda text: "42" in text),
    "schema": lambda: JsonSchemaVerifier({"required": ["items"]}),
    "pydantic": lambda: PydanticVerifier(Items),
    "tests": lambda: TestsVerifier("assert f(2) == 5", sandbox="monty"),
    "judge": judge,
    "agreement": AgreementVerifier,
}


@pytest.fixture
def busiest(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """Processor time in ms of the longest thing that the main thread's loop did at once."""
    took = [0.0]
    run = asyncio.events.Handle._run

    def timed(self: asyncio.events.Handle) -> None:
        begun = time.thread_time()
        run(self)
        if threading.current_thread() is threading.main_thread():
            took.append(time.thread_time() - begun)

    monkeypatch.setattr(asyncio.events.Handle, "_run", timed)
    return lambda: 1000 * max(took)


@pytest.mark.parametrize("text", [PROSE, MARKS, "x" * 10**6, "[{" * 400_000], ids=["prose", "marks", "line", "open"])
@pytest.mark.parametrize("name", VERIFIERS)
def test_an_answer_of_a_megabyte_is_judged_beside_the_loop(name: str, text: str, busiest: Callable[[], float]) -> None:
    budget = RetryBudget(samples=1, attempts=1, tokens=None)
    recovery = Recovery(ScriptedSampler([Rollout(text[:-1], usage=Usage(10, 10, 1))]), VERIFIERS[name](), budget=budget)
    case = asyncio.run(recovery.arun(STEP, candidate=text))
    assert case.outcome is not None
    assert not case.outcome.ok
    assert busiest() < 20


def test_the_draws_of_an_agreement_are_read_beside_the_loop_and_once(busiest: Callable[[], float]) -> None:
    read: list[str] = []

    def extract(text: str) -> str:
        read.append(text)
        return text[:10]

    texts = [f"{i:010} {'word ' * 400}" for i in range(40)]
    verifier = AgreementVerifier(extract=extract)
    budget = RetryBudget(samples=39, attempts=39, tokens=None, calls=None)
    asyncio.run(Recovery(ScriptedSampler(texts[1:]), verifier, budget=budget).arun(STEP, candidate=texts[0]))
    assert len(read) == len({*read})
    assert busiest() < 20


def test_the_tables_of_a_chat_model_are_read_beside_the_loop(busiest: Callable[[], float]) -> None:
    words = [f" w{i}" for i in range(512)]
    other = [{"token": f" x{i}", "logprob": -2.0 - i} for i in range(19)]
    content = [{"token": x, "logprob": -0.5, "top_logprobs": [{"token": x, "logprob": -0.5}, *other]} for x in words]
    said = AIMessage("".join(words), response_metadata={"logprobs": {"content": content}})
    sampler = ChatModelSampler(GenericFakeChatModel(messages=iter([said] * 8)))
    result = asyncio.run(sampler.asample(SampleRequest(STEP.messages, n=8)))
    assert all(x.logprobs is not None for x in result.rollouts)
    assert busiest() < 20


def test_json_that_is_too_long_is_not_read_and_the_reason_says_so() -> None:
    text = json.dumps({"items": [{"id": i} for i in range(20_000)]})
    for verifier in (JsonSchemaVerifier({}), PydanticVerifier(Items)):
        verdict = verifier.verify(STEP, Rollout(text))
        assert (verdict.passed, verdict.kind) == (False, "malformed")
        assert verdict.reason == f"The text has {len(text):,} characters; JSON is read of at most 200,000."
        assert verdict.feedback == verdict.reason
    assert JsonSchemaVerifier({}, longest=len(text)).verify(STEP, Rollout(text)).passed
    assert PydanticVerifier(Items, longest=len(text)).verify(STEP, Rollout(text)).passed


def test_code_that_is_too_long_is_not_run_and_the_reason_says_so() -> None:
    verifier = TestsVerifier("assert f(2) == 5", sandbox="monty")
    code = "def f(x):\n    return 5\n" + "x = 1\n" * 20_000
    verdict = verifier.verify(STEP, Rollout(code))
    assert verdict.reason == f"The code has {len(code):,} characters; at most 100,000 are run."
    short = f"```python\n{code}```\nShorter:\n```python\ndef f(x):\n    return 5\n```"
    assert verifier.verify(STEP, Rollout(short)).passed


def test_the_end_of_a_long_text_is_read_for_an_answer() -> None:
    found = find_answer("x" * 10**6 + "\nAnswer: 7")
    assert found is not None
    assert (found.text, found.start) == ("7", 10**6 + 1)
    assert find_answer("Answer: 7\n" + "x" * 10**6) is None
    assert MathVerifier("7").verify(STEP, Rollout("x" * 10**6 + "\nAnswer: 7")).passed
    assert ExactVerifier("7").verify(STEP, Rollout("x" * 10**6 + "\nAnswer: 7")).passed


PIECES = (
    *("Answer: 7", "\\boxed{3}", "{", "}", "\\fbox{", " the final answer is **18**.", "\n", "x ", "答案：9", "or "),
    *("<think>", "</think>", "<answer>", "</answer>", "\n#### 5", "<|channel|>final<|message|>", "<|end|>", "[THINK]"),
    *("[/THINK]", "`<think>`", "analysis", "assistant final", "<", "[", "final result", "Wait, no. ", '{"answer": 4}'),
)


def test_what_is_found_does_not_depend_on_where_a_window_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(0)  # noqa: S311
    texts = ["".join(chance.choices(PIECES, k=chance.randint(1, 30))) for _ in range(600)]
    whole = [(after_thinking(x), find_answer(x)) for x in texts]
    for window in (1, 7, 50):
        monkeypatch.setattr(scan, "_WINDOW", window)
        assert [(after_thinking(x), find_answer(x)) for x in texts] == whole


def test_what_a_long_text_says_is_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    from rfx_agent import thinking

    monkeypatch.setattr(thinking, "_known", type(thinking._known)())
    for i in range(100):
        text = f"<think>{i}</think>" + "x" * 100_000
        assert after_thinking(text).text == "x" * 100_000
    assert sum(map(len, thinking._known)) <= thinking._KEPT
    assert after_thinking("y" * LONG) is after_thinking("y" * LONG)
