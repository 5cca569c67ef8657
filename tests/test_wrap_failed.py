"""A wrapped chain that raises, and one whose failure nothing rescues."""

import asyncio
import copy
import pickle
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.runnables import RunnableGenerator, RunnableLambda
from langgraph.errors import GraphInterrupt

from rfx_agent import FunctionVerifier, RetryBudget, SharedBudget, Unresolved, Window, with_recovery
from rfx_agent.adapters.chain.wrap import Retracted
from rfx_agent.budgets.memory import MemoryStore
from rfx_agent.errors import BudgetExhausted, CircuitOpen, FeatureError, SamplerTimeout, VerifierError
from rfx_agent.events import Finished
from rfx_agent.testing import ScriptedVerifier


async def _collected(runnable: Any, value: Any, config: Any) -> list[Any]:
    return [chunk async for chunk in runnable.astream(value, config)]


CALLS: dict[str, Callable[..., Any]] = {
    "sync": lambda runnable, value, config=None: runnable.invoke(value, config),
    "async": lambda runnable, value, config=None: asyncio.run(runnable.ainvoke(value, config)),
}
STREAMS: dict[str, Callable[..., list[Any]]] = {
    "stream": lambda runnable, value, config=None: list(runnable.stream(value, config)),
    "astream": lambda runnable, value, config=None: asyncio.run(_collected(runnable, value, config)),
}
both = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
streams = pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
all_four = pytest.mark.parametrize("call", (CALLS | STREAMS).values(), ids=CALLS | STREAMS)
IS_42 = ScriptedVerifier(["42"])


class Own(Exception):
    """The chain's own."""


def outcomes(*items: Any) -> RunnableLambda[str, Any]:
    """A chain that gives or raises its items in order, the last one again and again."""
    left = list(items)

    def work(_: str) -> Any:
        item = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(item, BaseException):
            raise item
        return item

    return RunnableLambda(work, name="work")


class Runs(BaseCallbackHandler):
    """Every run as (name, how it ended)."""

    def __init__(self) -> None:
        self.runs: dict[Any, list[Any]] = {}

    def on_chain_start(self, serialized: Any, inputs: Any, **about: Any) -> None:
        self.runs[about["run_id"]] = [about["name"], None]

    def on_chain_end(self, outputs: Any, *, run_id: Any, **_: Any) -> None:
        self.runs[run_id][1] = outputs

    def on_chain_error(self, error: BaseException, *, run_id: Any, **_: Any) -> None:
        self.runs[run_id][1] = error


@all_four
@pytest.mark.parametrize("how", ["accepted", "speculative"])
def test_the_chains_own_exception_passes_through_and_nothing_is_recovered(call: Callable[..., Any], how: Any) -> None:
    error, runs, told = Own("mine"), Runs(), []
    judge = ScriptedVerifier(lambda _: True)
    wrapped = with_recovery(outcomes(error, "42"), verifier=judge, on_event=told.append, stream=how)
    with pytest.raises(Own) as caught:
        call(wrapped, "q", {"callbacks": [runs]})
    assert caught.value is error
    assert (error.__cause__, error.__context__) == (None, None)
    assert list(runs.runs.values()) == [["with_recovery", error], ["work", error]]
    assert (told, judge.judged) == ([], [])


@all_four
def test_handlers_around_it_see_the_chains_own_exception(call: Callable[..., Any]) -> None:
    def wrapped(*items: Any) -> Any:
        return with_recovery(outcomes(*items), verifier=IS_42)

    retried = wrapped(Own("once"), "42").with_retry(retry_if_exception_type=(Own,), wait_exponential_jitter=False)
    other = [RunnableLambda(lambda given: "other" if isinstance(given, str) else repr(given["error"]))]
    keyed: Any = wrapped(Own("mine")).with_fallbacks(other, exceptions_to_handle=(Own,), exception_key="error")
    if call in CALLS.values():  # LangChain retries no stream
        assert call(retried, "q") == "42"
    assert "".join(call(wrapped(Own("mine")).with_fallbacks(other, exceptions_to_handle=(Own,)), "q")) == "other"
    assert "".join(call(keyed, {"q": "q"})) == "Own('mine')"
    with pytest.raises(Own):
        call(wrapped(Own("mine")).with_fallbacks(other, exceptions_to_handle=(ValueError,)), "q")


@pytest.mark.parametrize("batch", ["batch", "abatch"])
def test_a_batch_gives_the_chains_own_exception_in_its_place(batch: str) -> None:
    def work(value: str) -> str:
        if value == "bad":
            raise Own("mine")
        return "42"

    wrapped = with_recovery(work, verifier=IS_42)
    given = getattr(wrapped, batch)(["good", "bad"], return_exceptions=True)
    good, bad = asyncio.run(given) if batch == "abatch" else given
    assert (good, type(bad)) == ("42", Own)


@both
@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt(), GraphInterrupt()])
def test_what_cancels_or_steers_passes_through(call: Callable[..., Any], error: BaseException) -> None:
    with pytest.raises(type(error)):
        call(with_recovery(outcomes(error), verifier=IS_42, failures=(Exception,)), "q")
    with pytest.raises(type(error)):
        call(with_recovery(outcomes("41", error), verifier=IS_42, failures=(Exception,)), "q")


@both
def test_in_a_later_attempt_it_is_a_note_and_the_cause(call: Callable[..., Any]) -> None:
    with pytest.raises(Unresolved, match="Own: mine") as caught:
        call(with_recovery(outcomes("41", Own("mine")), verifier=IS_42), "q")
    assert isinstance(caught.value.__cause__, Own)
    assert [x.text for x in caught.value.case.rollouts] == ["41"]


def refusal(status: int, key: str) -> openai.APIStatusError:
    request = httpx2.Request("POST", "http://m.test/v1", headers={"authorization": f"Bearer {key}"})
    said = f"the key {key} is refused"
    return openai.APIStatusError(said, response=httpx2.Response(status, request=request), body={"message": said})


@both
def test_a_key_that_a_provider_echoes_in_a_later_attempt_is_seen_nowhere(call: Callable[..., Any]) -> None:
    key, events = "own/key+of-the-chain", list[Any]()
    with pytest.raises(Unresolved, match=r"\[key\]") as caught:
        call(with_recovery(outcomes("41", refusal(401, key)), verifier=IS_42, on_event=events.append), "q")
    printed = "".join(traceback.format_exception(caught.value))
    assert not any(key in text for text in (printed, repr(caught.value.case), repr(events)))


@both
@pytest.mark.parametrize(("status", "lost"), [(429, 0), (503, 0), (500, 1), (504, 1)])
def test_a_later_attempt_that_ended_in_a_status_is_charged_where_the_provider_may_have_worked(
    call: Callable[..., Any], status: int, lost: int
) -> None:
    chain = outcomes("41", refusal(status, "a-key-of-the-chain"))
    with pytest.raises(Unresolved) as caught:
        call(with_recovery(chain, verifier=IS_42, max_tokens=64, budget=RetryBudget(calls=1)), "q")
    spent = caught.value.case.ledger.spent
    assert spent.calls == 1
    assert (spent.tokens >= 64) == bool(lost)
    assert bool(spent.tokens) == bool(lost)


@both
def test_an_attempt_that_was_lost_beside_one_that_came_is_charged(call: Callable[..., Any]) -> None:
    chain = outcomes("41", "42", ConnectionError("dropped"))
    answers: list[Any] = []
    wrapped = with_recovery(
        chain, verifier=IS_42, max_tokens=64, extra_samples=2, on_event=answers.append, budget=RetryBudget(samples=2)
    )
    assert call(wrapped, "q") == "42"
    (spent,) = [event.spent for event in answers if isinstance(event, Finished)]
    assert spent.tokens >= 64
    assert spent.calls == 2


@both
def test_what_the_models_before_the_one_that_broke_have_used_is_charged_too(call: Callable[..., Any]) -> None:
    used = {"input_tokens": 900, "output_tokens": 100, "total_tokens": 1000}
    first = GenericFakeChatModel(messages=iter([AIMessage("41", usage_metadata=used) for _ in range(2)]))
    chain = first | outcomes("41", refusal(429, "a-key-of-the-chain"))
    with pytest.raises(Unresolved) as caught:
        call(with_recovery(chain, verifier=IS_42, budget=RetryBudget(calls=1)), "q")
    assert caught.value.case.ledger.spent.tokens == 1000


@both
def test_a_failed_answer_that_raised_is_the_cause_unless_the_chain_broke_down_later(call: Callable[..., Any]) -> None:
    unread = OutputParserException("no JSON", llm_output="forty")
    with pytest.raises(Unresolved) as caught:
        call(with_recovery(outcomes(unread, "41"), verifier=IS_42, extra_samples=1), "q")
    assert caught.value.__cause__ is unread
    with pytest.raises(Unresolved, match="Own: mine") as caught:
        call(with_recovery(outcomes(unread, Own("mine")), verifier=IS_42), "q")
    assert isinstance(caught.value.__cause__, Own)


@both
@pytest.mark.parametrize("error", [Own("mine"), OutputParserException("no JSON")])
def test_a_first_run_that_raises_leaves_nothing_reserved(call: Callable[..., Any], error: Exception) -> None:
    store = MemoryStore()
    shared = SharedBudget(store=store, limits=(Window("global", "tokens", 10_000, "hour"),))
    with pytest.raises(Own if isinstance(error, Own) else Unresolved):
        call(with_recovery(outcomes(error), verifier=IS_42, shared=shared), "q")
    assert [account.reserved for account in store.accounts()] in ([], [0])


def test_an_unresolved_call_can_be_copied_and_pickled() -> None:
    with pytest.raises(Unresolved) as caught:
        with_recovery(outcomes("41"), verifier=IS_42).invoke("q")
    error = caught.value
    for twin in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301  # our own
        assert (type(twin), str(twin), twin.case) == (Unresolved, str(error), error.case)


@pytest.mark.parametrize(
    "error",
    [
        BudgetExhausted("no room", caps=("tokens",)),
        CircuitOpen("down", seconds=2.0),
        FeatureError("bad", rollout=1, position=2),
        SamplerTimeout("late", status=504, calls=2),
        VerifierError("broke", rollout=None),
    ],
)
def test_our_other_exceptions_too(error: Exception) -> None:
    twin = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own
    assert (type(twin), str(twin), twin.__dict__) == (type(error), str(error), error.__dict__)


@all_four
def test_a_failed_output_comes_back_whole_where_the_caller_wants_it(call: Callable[..., Any]) -> None:
    own = AIMessage("41", id="m", additional_kwargs={"mine": 1}, response_metadata={"model_name": "x"})
    wrapped = with_recovery(outcomes(own), verifier=IS_42, on_unresolved="return", budget=RetryBudget(samples=1))
    given = call(wrapped, "q")
    (message,) = given if isinstance(given, list) else [given]
    assert (message.text, message.id, message.additional_kwargs) == ("41", "m", {"mine": 1})
    marks = message.response_metadata["rfx"]
    assert (message.response_metadata["model_name"], marks["outcome"]) == ("x", "unresolved")
    assert (marks["failed"], marks["samples"]) == (2, 1)
    assert "rfx" not in own.response_metadata


@all_four
def test_what_is_no_message_comes_back_as_it_is(call: Callable[..., Any]) -> None:
    given = call(with_recovery(outcomes("41", "40"), verifier=IS_42, on_unresolved="return"), "q")
    assert "".join(given) in ("41", "40")


@both
def test_a_first_run_that_raised_gives_way_to_a_later_output(call: Callable[..., Any]) -> None:
    unread = OutputParserException("no JSON")
    assert call(with_recovery(outcomes(unread, "41"), verifier=IS_42, on_unresolved="return"), "q") == "41"


@all_four
def test_where_there_is_no_output_at_all_it_raises_all_the_same(call: Callable[..., Any]) -> None:
    unread = OutputParserException("no JSON")
    with pytest.raises(Unresolved) as caught:
        call(with_recovery(outcomes(unread), verifier=IS_42, on_unresolved="return"), "q")
    assert caught.value.__cause__ is unread


def spoken(*texts: str) -> RunnableGenerator[Any, AIMessageChunk]:
    """A chain that streams each text in two chunks, the last one again and again."""
    left = list(texts)

    def source(_: Iterator[Any]) -> Iterator[AIMessageChunk]:
        text = left.pop(0) if len(left) > 1 else left[0]
        yield AIMessageChunk(text[:1], id="m")
        yield AIMessageChunk(text[1:], id="m", response_metadata={"model_name": "x"})

    async def asource(_: Any) -> Any:
        for chunk in source(iter(())):
            yield chunk

    return RunnableGenerator(source, asource)


@streams
def test_a_failed_stream_comes_back_in_its_chunks_with_the_mark_on_the_last(stream: Callable[..., Any]) -> None:
    first, last = stream(with_recovery(spoken("41"), verifier=IS_42, on_unresolved="return"), "q")
    total = first + last
    assert (first.text, last.text, "rfx" in first.response_metadata) == ("4", "1", False)
    assert total.response_metadata["rfx"]["outcome"] == "unresolved"
    assert total.response_metadata["model_name"] == "x"


@streams
def test_a_retracted_stream_that_stands_in_the_end_is_shown_again(stream: Callable[..., Any]) -> None:
    given = stream(with_recovery(spoken("41"), verifier=IS_42, on_unresolved="return", stream="speculative"), "q")
    assert [x if isinstance(x, Retracted) else x.text for x in given] == ["4", "1", Retracted(1, 2, 2), "4", "1"]
    opinion = FunctionVerifier(lambda text: text == "42", weak=True)
    held = with_recovery(spoken("42"), verifier=opinion, hold_first=True, accept=0.0, stream="speculative")
    assert [x if isinstance(x, Retracted) else x.text for x in stream(held, "q")] == [
        "4",
        "2",
        Retracted(1, 2, 2),
        "4",
        "2",
    ]
