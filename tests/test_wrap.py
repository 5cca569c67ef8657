"""Any chain with recovery behind it, and any LangChain chat model as a sampler."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from typing import Any
from uuid import UUID

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import PydanticOutputParser, StrOutputParser
from langchain_core.prompt_values import ChatPromptValue, StringPromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import (
    ConfigurableField,
    RunnableConfig,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
    RunnableSerializable,
)
from pydantic import BaseModel

from rfx_agent import (
    ChatModelSampler,
    ExactVerifier,
    FunctionVerifier,
    JsonSchemaVerifier,
    Recovery,
    RetryBudget,
    SampleRequest,
    Step,
    Unresolved,
    Usage,
    with_recovery,
)
from rfx_agent.errors import SamplerError, VerifierError
from rfx_agent.testing import ScriptedSampler, ScriptedTool, ScriptedVerifier

CALLS: dict[str, Callable[..., Any]] = {
    "sync": lambda runnable, value, config=None: runnable.invoke(value, config),
    "async": lambda runnable, value, config=None: asyncio.run(runnable.ainvoke(value, config)),
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


class Runs(BaseCallbackHandler):
    """Every run as (name, its parent's name, tags, how it ended)."""

    def __init__(self) -> None:
        self.runs: dict[Any, list[Any]] = {}

    def on_chain_start(self, serialized: Any, inputs: Any, **about: Any) -> None:
        parent = self.runs.get(about["parent_run_id"])
        self.runs[about["run_id"]] = [about["name"], parent and parent[0], sorted(about["tags"]), None]

    def on_chain_end(self, outputs: Any, *, run_id: Any, **_: Any) -> None:
        self.runs[run_id][3] = outputs

    def on_chain_error(self, error: BaseException, *, run_id: Any, **_: Any) -> None:
        self.runs[run_id][3] = error

    def seen(self) -> list[tuple[Any, ...]]:
        return [tuple(run) for run in self.runs.values()]


@both
def test_a_call_is_one_run_and_recovered_attempts_are_children_without_errors(call: Callable[..., Any]) -> None:
    outputs = iter(["40", "41", "42"])
    wrapped = with_recovery(RunnableLambda(lambda _: next(outputs), name="work"), verifier=IS_42, extra_samples=2)
    runs = Runs()
    assert call(wrapped, "q", {"callbacks": [runs], "tags": ["mine"], "max_concurrency": 1}) == "42"
    assert runs.seen() == [
        ("with_recovery", None, ["mine"], "42"),
        ("work", "with_recovery", ["mine"], "40"),
        ("work", "with_recovery", ["mine", "retry:attempt:2"], "41"),
        ("work", "with_recovery", ["mine", "retry:attempt:3"], "42"),
    ]


@both
def test_attempts_are_tagged_as_langchains_retry_tags_them(call: Callable[..., Any]) -> None:
    def tags(wrap: Callable[[Any], Any]) -> list[list[str]]:
        outputs = iter(["41", "42"])

        def work(_: str) -> str:
            if (output := next(outputs)) != "42":
                raise ValueError(output)
            return output

        runs = Runs()
        call(wrap(RunnableLambda(work)), "q", {"callbacks": [runs]})
        return [run[2] for run in runs.seen()]

    theirs = tags(lambda chain: chain.with_retry(wait_exponential_jitter=False))
    assert theirs == [[], [], ["retry:attempt:2"]]
    assert tags(lambda c: with_recovery(c, verifier=IS_42, failures=(ValueError,), extra_samples=1)) == theirs


@both
def test_the_whole_config_reaches_every_attempt_and_the_run_takes_its_name(call: Callable[..., Any]) -> None:
    seen: list[Any] = []

    def work(_: str, config: RunnableConfig) -> str:
        seen.append((config["metadata"]["who"], config["configurable"]["thread_id"], config["recursion_limit"]))
        return "42" if len(seen) == 2 else "41"

    runs = Runs()
    config = {
        "callbacks": [runs],
        "metadata": {"who": "me"},
        "configurable": {"thread_id": "t"},
        "recursion_limit": 7,
        "run_name": "given",
        "run_id": UUID(int=5),
    }
    assert call(with_recovery(RunnableLambda(work), verifier=IS_42, extra_samples=1), "q", config) == "42"
    assert seen == [("me", "t", 7)] * 2
    assert [run[0] for run in runs.seen()] == ["given", "work", "work"]
    assert UUID(int=5) in runs.runs


@both
def test_runnables_that_a_verifier_calls_are_children_of_the_call(call: Callable[..., Any]) -> None:
    judge = RunnableLambda(lambda text: text == "42", name="judge")
    runs = Runs()
    wrapped = with_recovery(RunnableLambda(lambda _: "42", name="work"), verifier=FunctionVerifier(judge.invoke))
    assert call(wrapped, "q", {"callbacks": [runs]}) == "42"
    assert ("judge", "with_recovery", [], True) in runs.seen()


@both
def test_an_answer_that_does_not_parse_is_a_failed_answer(call: Callable[..., Any]) -> None:
    parser = PydanticOutputParser(pydantic_object=Answer)
    chain = with_recovery(
        model("forty-two", '{"value": 42}') | parser,
        verifier=FunctionVerifier(lambda _: True),  # even a verifier that passes everything
        extra_samples=1,
    )
    assert call(chain, "q") == Answer(value=42)


@both
def test_other_exceptions_are_failed_answers_where_the_caller_says_so(call: Callable[..., Any]) -> None:
    outcomes: list[Any] = [KeyError("answer"), "41", "42"]

    def work(_: str) -> str:
        if isinstance(outcome := outcomes.pop(0), Exception):
            raise outcome
        return str(outcome)

    assert call(with_recovery(work, verifier=IS_42, failures=(KeyError,), extra_samples=2), "q") == "42"


@both
def test_a_run_that_raised_is_no_peer_and_its_reason_is_kept(call: Callable[..., Any]) -> None:
    def work(_: str) -> str:
        raise KeyError("answer")

    with pytest.raises(Unresolved) as caught:
        call(with_recovery(work, verifier=IS_42, failures=(KeyError,), extra_samples=1), "q")
    assert isinstance(caught.value.__cause__, KeyError)
    verdicts = [x.verdict for x in caught.value.case.rollouts]
    assert {(v.passed, v.reason) for v in verdicts if v} == {(False, "KeyError: 'answer'")}


@both
def test_the_first_run_is_the_callers_own_and_asks_no_budget(call: Callable[..., Any]) -> None:
    none = RetryBudget(attempts=0)
    assert call(with_recovery(lambda _: "42", verifier=IS_42, budget=none), "q") == "42"
    with pytest.raises(Unresolved) as caught:
        call(with_recovery(lambda _: "41", verifier=IS_42, budget=none), "q")
    case = caught.value.case
    assert case.outcome is not None
    assert (case.outcome.reason, case.ledger.spent.attempts, len(case.rollouts)) == ("budget:attempts", 0, 1)


@both
def test_of_equal_outputs_the_one_that_passed_comes_back(call: Callable[..., Any]) -> None:
    verdicts = iter([False, False, True])
    chain = with_recovery(
        RunnableLambda(lambda _: AIMessage("42", id=f"m{next(numbers)}")),
        verifier=ScriptedVerifier(lambda _: next(verdicts)),
        extra_samples=2,
    )
    numbers = count()
    assert call(chain, "q", {"max_concurrency": 1}).id == "m2"


@both
def test_tokens_that_the_chains_models_report_are_charged(call: Callable[..., Any]) -> None:
    chain = with_recovery(model("40", "41", "43", "44") | StrOutputParser(), verifier=IS_42, extra_samples=3)
    with pytest.raises(Unresolved) as caught:
        call(chain, "q")
    spent = caught.value.case.ledger.spent
    # Three draws count what they used. Two raised, and count their prompt, as it is estimated, and their whole cap.
    assert (spent.samples, spent.tokens) == (5, 3 * (5 + 2) + 2 * (9 + 512))


@both
def test_a_hook_sees_an_acceptance_at_once_and_the_verifier_is_asked_once(call: Callable[..., Any]) -> None:
    events: list[Any] = []
    verifier = ScriptedVerifier(["42"])
    wrapped = with_recovery(RunnableLambda(lambda _: "42"), verifier=verifier, on_event=events.append)
    assert call(wrapped, "q") == "42"
    assert [type(e).__name__ for e in events] == ["Judged", "Decided", "Finished"]
    assert events[-1].outcome.status == "accepted"
    assert verifier.judged == ["42"]


@both
def test_a_verifier_that_costs_is_asked_only_if_the_budget_can_pay(call: Callable[..., Any]) -> None:
    class Judge(ScriptedVerifier):
        def bound(self, step: Any, rollout: Any) -> Usage:
            return Usage(100, 10, 1)

    judge = Judge(["42"])
    assert call(with_recovery(lambda _: "42", verifier=judge), "q") == "42"
    with pytest.raises(Unresolved):
        call(with_recovery(lambda _: "42", verifier=judge, budget=RetryBudget(tokens=50)), "q")
    assert judge.judged == ["42"]


@both
def test_a_verifier_that_breaks_is_its_own_error(call: Callable[..., Any]) -> None:
    def broken(_: str) -> bool:
        raise ZeroDivisionError("in the verifier")

    with pytest.raises(VerifierError, match="in the verifier"):
        call(with_recovery(lambda _: "42", verifier=FunctionVerifier(broken)), "q")


def flaky() -> Any:
    """The first answer to each input is wrong."""
    counts: dict[str, int] = {}
    lock = threading.Lock()

    def work(key: str) -> str:
        with lock:
            counts[key] = counts.get(key, 0) + 1
            return "42" if counts[key] > 1 and key != "never" else "41"

    return with_recovery(RunnableLambda(work), verifier=IS_42, extra_samples=1)


BATCHES: dict[str, Callable[..., Any]] = {
    "sync": lambda r, *args, **kwargs: r.batch(*args, **kwargs),
    "async": lambda r, *args, **kwargs: asyncio.run(r.abatch(*args, **kwargs)),
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_a_batch_is_recovered_each_on_its_own(batch: Callable[..., Any]) -> None:
    assert batch(flaky(), ["a", "b", "c"], {"max_concurrency": 2}) == ["42"] * 3
    made = batch(flaky(), ["a", "never"], return_exceptions=True)
    assert made[0] == "42"
    assert isinstance(made[1], Unresolved)
    with pytest.raises(Unresolved):
        batch(flaky(), ["a", "never"])


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_batch_keeps_to_its_concurrency(how: str) -> None:
    at_once, most = 0, 0
    lock = threading.Lock()

    def enter() -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)

    def leave() -> None:
        nonlocal at_once
        with lock:
            at_once -= 1

    def work(_: str) -> str:
        enter()
        time.sleep(0.01)
        leave()
        return "42"

    async def awork(_: str) -> str:
        enter()
        await asyncio.sleep(0.01)
        leave()
        return "42"

    wrapped = with_recovery(RunnableLambda(work, awork), verifier=IS_42)
    assert BATCHES[how](wrapped, ["q"] * 6, {"max_concurrency": 2}) == ["42"] * 6
    assert most <= 2


def test_a_plain_async_callable() -> None:
    async def work(question: str) -> str:
        await asyncio.sleep(0)
        return "42" if question == "6*7?" else "41"

    assert asyncio.run(with_recovery(work, verifier=IS_42).ainvoke("6*7?")) == "42"


def test_generators_as_callables() -> None:
    def work(questions: Iterator[str]) -> Iterator[str]:
        yield from ("4", "2") if "".join(questions) == "6*7?" else ("4", "1")

    async def awork(questions: AsyncIterator[str]) -> AsyncIterator[str]:
        for chunk in work(iter([q async for q in questions])):
            yield chunk

    assert with_recovery(work, verifier=IS_42).invoke("6*7?") == "42"
    assert asyncio.run(with_recovery(awork, verifier=IS_42).ainvoke("6*7?")) == "42"
    assert list(with_recovery(work, verifier=IS_42).stream("6*7?")) == ["4", "2"]


@both
def test_a_chat_model_itself(call: Callable[..., Any]) -> None:
    answer = call(with_recovery(model("41", "42"), verifier=IS_42, extra_samples=1), [HumanMessage("6*7?")])
    assert isinstance(answer, AIMessage)
    assert answer.text == "42"


@both
def test_parallel_branches_are_judged_as_json(call: Callable[..., Any]) -> None:
    values = iter([41, 42])
    parallel = RunnableParallel(value=RunnableLambda(lambda _: next(values)), same=RunnablePassthrough())
    passes = JsonSchemaVerifier(schema={"properties": {"value": {"const": 42}}})
    wrapped = with_recovery(parallel, verifier=passes, extra_samples=1)
    assert call(wrapped, "q") == {"value": 42, "same": "q"}


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        ("q", [("user", "q")]),
        ({"question": "q"}, [("user", '{"question":"q"}')]),
        ([HumanMessage("q")], [("user", "q")]),
        ([("system", "s"), ("human", "q")], [("system", "s"), ("user", "q")]),
        ([{"role": "user", "content": "q"}], [("user", "q")]),
        ({"messages": [HumanMessage("q"), AIMessage("a")]}, [("user", "q"), ("assistant", "a")]),
        (ChatPromptValue(messages=[HumanMessage("q")]), [("user", "q")]),
        (StringPromptValue(text="q"), [("user", "q")]),
        ([1, 2], [("user", "[1,2]")]),
    ],
)
def test_what_a_chain_is_given_is_the_step(given: Any, messages: Any) -> None:
    seen: list[Step] = []

    class Watching(ScriptedVerifier):
        def verify(self, step: Step, rollout: Any, *, peers: Any = ()) -> Any:
            seen.append(step)
            return super().verify(step, rollout, peers=peers)

    with_recovery(RunnableLambda(lambda _: "42"), verifier=Watching(["42"])).invoke(given)
    assert [(m["role"], m["content"]) for m in seen[0].messages] == messages


@both
def test_a_prompt_function_may_give_a_whole_step(call: Callable[..., Any]) -> None:
    wrapped = with_recovery(
        RunnableLambda(lambda given: given["guess"]),
        verifier=ExactVerifier(),
        prompt=lambda given: Step.of(given["question"], expected=given["right"]),
    )
    assert call(wrapped, {"question": "6*7?", "guess": "Answer: 42", "right": "42"}) == "Answer: 42"


def test_it_looks_like_the_chain_it_wraps() -> None:
    prompt = ChatPromptTemplate.from_messages([("human", "{question}")])
    chain = prompt | model("42") | StrOutputParser()
    wrapped = with_recovery(chain, verifier=IS_42)
    assert wrapped.get_name() == chain.get_name() == "RunnableSequence"
    assert wrapped.get_input_jsonschema() == chain.get_input_jsonschema()
    assert wrapped.get_output_jsonschema() == chain.get_output_jsonschema()
    assert (wrapped.InputType, wrapped.OutputType) == (chain.InputType, chain.OutputType)
    assert wrapped.get_graph().to_json() == chain.get_graph().to_json()


def test_configurable_fields_of_the_chain_are_its_own() -> None:
    field = ConfigurableField(id="answer")
    chain: Any = RunnablePassthrough.assign() | Echo(answer="41").configurable_fields(answer=field)
    wrapped = with_recovery(chain, verifier=IS_42, extra_samples=0, budget=RetryBudget(attempts=0))
    assert [spec.id for spec in wrapped.config_specs] == ["answer"]
    assert wrapped.invoke({}, {"configurable": {"answer": "42"}}) == "42"
    assert wrapped.with_config(configurable={"answer": "42"}).invoke({}) == "42"


class Echo(RunnableSerializable[Any, str]):
    answer: str

    def invoke(self, input: Any, config: Any = None, **kwargs: Any) -> str:  # noqa: A002  # LangChain's name
        return str(kwargs.get("instead", self.answer))


@both
def test_it_binds_and_composes(call: Callable[..., Any]) -> None:
    wrapped = with_recovery(Echo(answer="41"), verifier=IS_42, budget=RetryBudget(attempts=0))
    chain = RunnableLambda(lambda q: {"q": q}) | wrapped.bind(instead="42") | (lambda text: int(text) + 1)
    assert call(chain, "q") == 43
    down = with_recovery(Echo(answer="41"), verifier=IS_42, budget=RetryBudget(attempts=0))
    assert call(down.with_fallbacks([RunnableLambda(lambda _: "else")]), "q") == "else"


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
