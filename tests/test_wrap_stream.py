"""Streams of a wrapped chain: the accepted attempt's own chunks, and the retraction of a speculative one."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypedDict

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.runnables.utils import AddableDict
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from rfx_agent import FunctionVerifier, SharedBudget, Unresolved, Usage, Window, with_recovery
from rfx_agent.adapters.chain.wrap import RETRACT, Retracted
from rfx_agent.adapters.total import total
from rfx_agent.budgets.memory import MemoryStore
from rfx_agent.testing import ScriptedSampler, ScriptedTool, ScriptedVerifier

IS_42 = ScriptedVerifier(["it is 42"])
QUESTION = {"q": "6*7?"}
VOID = Retracted(attempt=1, chunks=5, characters=8)  # "it", " ", "is", " ", "41"


async def _collected(runnable: Any, value: Any, config: Any) -> list[Any]:
    return [chunk async for chunk in runnable.astream(value, config)]


STREAMS: dict[str, Callable[..., list[Any]]] = {
    "sync": lambda runnable, value, config=None: list(runnable.stream(value, config)),
    "async": lambda runnable, value, config=None: asyncio.run(_collected(runnable, value, config)),
}
both = pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)


def model(*texts: str) -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter([AIMessage(text) for text in texts]))


def chain(*texts: str) -> Runnable[Any, str]:
    return ChatPromptTemplate.from_messages([("human", "{q}")]) | model(*texts) | StrOutputParser()


def wrapped(*texts: str, **options: Any) -> Any:
    return with_recovery(chain(*texts), verifier=IS_42, **({"extra_samples": 1} | options))


@both
def test_an_attempt_that_passes_streams_its_own_chunks(stream: Callable[..., Any]) -> None:
    made = [AIMessageChunk(content=text) for text in ("it is", " 42")]

    def source(_: Iterator[Any]) -> Iterator[AIMessageChunk]:
        yield from made

    async def asource(_: Any) -> Any:
        for chunk in made:
            yield chunk

    given = stream(with_recovery(RunnableGenerator(source, asource), verifier=IS_42), "q")
    assert [chunk is own for chunk, own in zip(given, made, strict=True)] == [True, True]


@both
def test_a_failed_attempt_is_never_half_streamed(stream: Callable[..., Any]) -> None:
    assert stream(wrapped("it is 41", "it is 42"), QUESTION) == ["it", " ", "is", " ", "42"]


@both
def test_several_extra_attempts_are_streamed_at_once_and_one_is_shown(stream: Callable[..., Any]) -> None:
    given = stream(wrapped("it is 41", "it is 40", "it is 42", "it is 43", extra_samples=3), QUESTION)
    assert given == ["it", " ", "is", " ", "42"]


@both
def test_a_tools_answer_is_one_chunk(stream: Callable[..., Any]) -> None:
    texts = ["it is 41", "it is 40", "it is 43", "it is 44"]
    parts = {"sampler": ScriptedSampler(["go", "go"]), "tool": ScriptedTool({"go": "it is 42"})}
    assert stream(wrapped(*texts, extra_samples=3, **parts), QUESTION) == ["it is 42"]
    (message,) = stream(with_recovery(model(*texts), verifier=IS_42, **parts), "6*7?")
    assert message == AIMessageChunk(content="it is 42", id=message.id)


@both
def test_nothing_is_streamed_where_nothing_was_accepted(stream: Callable[..., Any]) -> None:
    shown: list[Any] = []
    down = wrapped("it is 41", "it is 40", "it is 43", "it is 44", "it is 45")
    with pytest.raises(Unresolved):
        stream(down | RunnableLambda(shown.append), QUESTION)
    assert shown == []


@both
def test_streams_that_do_not_add_up_stand_for_their_last_chunk(stream: Callable[..., Any]) -> None:
    def snapshots(_: Iterator[Any]) -> Iterator[dict[str, int]]:
        yield {"a": 4}
        yield {"a": 42}

    async def asnapshots(_: Any) -> Any:
        for chunk in snapshots(iter(())):
            yield chunk

    last = with_recovery(
        RunnableGenerator(snapshots, asnapshots), verifier=FunctionVerifier(lambda text: text == '{"a":42}')
    )
    assert stream(last, "q") == [{"a": 4}, {"a": 42}]


@both
def test_branches_stream_as_they_came(stream: Callable[..., Any]) -> None:
    parallel: Any = RunnableParallel(answer=chain("it is 42"), asked=RunnablePassthrough())
    passes = FunctionVerifier(lambda text: '"answer":"it is 42"' in text)
    given = stream(with_recovery(parallel, verifier=passes), QUESTION)
    assert "".join(chunk.get("answer", "") for chunk in given) == "it is 42"
    assert len(given) == 6


@both
def test_a_stream_goes_on_through_what_comes_after(stream: Callable[..., Any]) -> None:
    def loud(chunks: Iterator[str]) -> Iterator[str]:
        for chunk in chunks:
            yield chunk.upper()

    async def aloud(chunks: Any) -> Any:
        async for chunk in chunks:
            yield chunk.upper()

    assert stream(wrapped("it is 41", "it is 42") | RunnableGenerator(loud, aloud), QUESTION) == [
        "IT",
        " ",
        "IS",
        " ",
        "42",
    ]


@both
def test_a_speculative_stream_that_passes_is_shown_once(stream: Callable[..., Any]) -> None:
    assert stream(wrapped("it is 42", stream="speculative"), QUESTION) == ["it", " ", "is", " ", "42"]


@both
def test_a_speculative_stream_that_fails_is_retracted_in_its_place(stream: Callable[..., Any]) -> None:
    given = stream(wrapped("it is 41", "it is 42", stream="speculative"), QUESTION)
    assert given == ["it", " ", "is", " ", "41", VOID, "it", " ", "is", " ", "42"]


@both
def test_a_retraction_may_go_to_a_function_instead(stream: Callable[..., Any]) -> None:
    order: list[Any] = []
    speculative = wrapped("it is 41", "it is 42", stream="speculative", on_retract=order.append)

    def watch(chunks: Iterator[str]) -> Iterator[str]:
        for chunk in chunks:
            order.append(chunk)
            yield chunk

    async def awatch(chunks: Any) -> Any:
        async for chunk in chunks:
            order.append(chunk)
            yield chunk

    given = stream(speculative | RunnableGenerator(watch, awatch), QUESTION)
    assert given == ["it", " ", "is", " ", "41", "it", " ", "is", " ", "42"]
    assert order == [*given[:5], VOID, *given[5:]]


@both
def test_callbacks_of_a_plain_stream_are_told_of_a_retraction(stream: Callable[..., Any]) -> None:
    told: list[Any] = []

    class Told(BaseCallbackHandler):
        def on_custom_event(self, name: str, data: Any, **_: Any) -> None:
            told.append((name, data))

    stream(wrapped("it is 41", "it is 42", stream="speculative"), QUESTION, {"callbacks": [Told()]})
    assert told == [(RETRACT, {"attempt": 1, "chunks": 5, "characters": 8})]


@both
def test_extra_attempts_of_a_stream_keep_to_the_concurrency(stream: Callable[..., Any]) -> None:
    at_once: list[int] = [0, 0]
    lock = threading.Lock()

    def count(change: int) -> None:
        with lock:
            at_once[0] += change
            at_once[1] = max(at_once)

    def work(_: str) -> str:
        count(1)
        time.sleep(0.01)
        count(-1)
        return "it is 41"

    async def awork(_: str) -> str:
        count(1)
        await asyncio.sleep(0.01)
        count(-1)
        return "it is 41"

    chain = with_recovery(RunnableLambda(work, awork), verifier=IS_42, extra_samples=6)
    with pytest.raises(Unresolved):
        stream(chain, "q", {"max_concurrency": 2})
    assert at_once == [0, 2]


@both
def test_an_attempt_that_breaks_off_is_retracted_too(stream: Callable[..., Any]) -> None:
    runs = iter([["it is ", ValueError("cut")], ["it is ", "42"]])

    def source(_: Iterator[Any]) -> Iterator[str]:
        for item in next(runs):
            if isinstance(item, Exception):
                raise item
            yield str(item)

    async def asource(_: Any) -> Any:
        for chunk in source(iter(())):
            yield chunk

    given = stream(
        with_recovery(
            RunnableGenerator(source, asource),
            verifier=IS_42,
            stream="speculative",
            failures=(ValueError,),
            extra_samples=1,
        ),
        "q",
    )
    assert given == ["it is ", Retracted(attempt=1, chunks=1, characters=6), "it is ", "42"]


@both
def test_a_speculative_stream_with_no_answer_is_retracted_and_raises(stream: Callable[..., Any]) -> None:
    voids: list[Any] = []
    texts = ["it is 41", "it is 40", "it is 43", "it is 44", "it is 45"]
    with pytest.raises(Unresolved):
        stream(wrapped(*texts, stream="speculative", on_retract=voids.append), QUESTION)
    assert voids == [VOID]


@both
def test_a_traced_run_holds_what_was_accepted(stream: Callable[..., Any]) -> None:
    ends: list[Any] = []

    class Ends(BaseCallbackHandler):
        def on_chain_end(self, outputs: Any, *, parent_run_id: Any = None, **_: Any) -> None:
            if parent_run_id is None:
                ends.append(outputs)

    for mode in ("accepted", "speculative"):
        stream(wrapped("it is 41", "it is 42", stream=mode), QUESTION, {"callbacks": [Ends()]})
    assert ends == ["it is 42", "it is 42"]


def test_a_reader_may_stop_early() -> None:
    ends: list[Any] = []

    class Ends(BaseCallbackHandler):
        def on_chain_end(self, outputs: Any, *, parent_run_id: Any = None, **_: Any) -> None:
            if parent_run_id is None:
                ends.append(outputs)

        def on_chain_error(self, error: Any, **_: Any) -> None:
            ends.append(error)

    source = wrapped("it is 42").stream(QUESTION, {"callbacks": [Ends()]})
    assert next(source) == "it"
    source.close()
    assert ends == ["it is 42"]

    async def stop() -> None:
        source = wrapped("it is 42").astream(QUESTION, {"callbacks": [Ends()]})
        assert await anext(source) == "it"
        await source.aclose()

    asyncio.run(stop())
    assert ends == ["it is 42"] * 2


def events(runnable: Any) -> list[tuple[str, str, Any]]:
    """(event, name with the attempt's tag, what it carries) of every event of a run."""

    async def run() -> list[tuple[str, str, Any]]:
        seen = []
        async for event in runnable.astream_events("6*7?", version="v2"):
            data: Any = event["data"]
            carried = data if event["event"] == "on_custom_event" else data.get("chunk", data.get("output"))
            carried = carried.text if isinstance(carried, AIMessage | AIMessageChunk) else carried
            tags = [tag for tag in event["tags"] if not tag.startswith("seq:")]
            seen.append((event["event"], " ".join([event["name"], *tags]), carried))
        return seen

    return asyncio.run(run())


def of_attempt(text: str, name: str) -> list[tuple[str, str, Any]]:
    """The events of one whole attempt of a model and a parser, whose own run is called ``name``."""
    streamed = []
    for i, chunk in enumerate(text.replace(" ", "\x00 \x00").split("\x00")):
        streamed += [
            ("on_chat_model_stream", "GenericFakeChatModel", chunk),
            *([("on_parser_start", "StrOutputParser", None)] if i == 0 else []),
            ("on_parser_stream", "StrOutputParser", chunk),
            ("on_chain_stream", name, chunk),
        ]
    return [
        ("on_chain_start", name, None),
        ("on_chat_model_start", "GenericFakeChatModel", None),
        *streamed,
        ("on_chat_model_end", "GenericFakeChatModel", text),
        ("on_parser_end", "StrOutputParser", text),
        ("on_chain_end", name, text),
    ]


SECOND = "RunnableSequence retry:attempt:2"


def bare(*texts: str, **options: Any) -> Any:
    """A wrapped chain of a model and a parser, without a prompt in front."""
    passes = ScriptedVerifier(["is 42"])
    return with_recovery(model(*texts) | StrOutputParser(), verifier=passes, extra_samples=1, **options)


def own(*chunks: Any) -> list[tuple[str, str, Any]]:
    return [("on_chain_stream", "with_recovery", chunk) for chunk in chunks]


def test_events_of_an_attempt_that_passes() -> None:
    assert events(bare("is 42")) == [
        ("on_chain_start", "with_recovery", None),
        *of_attempt("is 42", "RunnableSequence"),
        *own("is", " ", "42"),
        ("on_chain_end", "with_recovery", "is 42"),
    ]


def test_events_show_the_accepted_attempt_only() -> None:
    assert events(bare("no 41", "is 42")) == [
        ("on_chain_start", "with_recovery", None),
        *of_attempt("is 42", SECOND),
        *own("is", " ", "42"),
        ("on_chain_end", "with_recovery", "is 42"),
    ]


def test_events_retract_a_speculative_attempt() -> None:
    quiet = {"stream": "speculative", "on_retract": lambda _: None}
    seen = events(bare("no 41", "is 42", **quiet))
    at = seen.index(("on_custom_event", RETRACT, {"attempt": 1, "chunks": 3, "characters": 5}))
    # What went out before anybody judged it, with the call's own chunk behind each of the attempt's.
    speculative = []
    for event in of_attempt("no 41", "RunnableSequence"):
        speculative += [event, *(own(event[2]) if event[:2] == ("on_chain_stream", "RunnableSequence") else [])]
    assert seen[:at] == [("on_chain_start", "with_recovery", None), *speculative]
    assert seen[at + 1 :] == [
        *of_attempt("is 42", SECOND),
        *own("is", " ", "42"),
        ("on_chain_end", "with_recovery", "is 42"),
    ]
    marked = events(bare("no 41", "is 42", stream="speculative"))
    assert marked == [*seen[: at + 1], *own(Retracted(attempt=1, chunks=3, characters=5)), *seen[at + 1 :]]


def test_an_invoked_chain_shows_watchers_the_accepted_attempt_only() -> None:
    """The chain is not streamed here: its models stream because somebody watches."""
    wrapper = bare("no 41", "is 42")

    async def call(question: str) -> str:
        return str(await wrapper.ainvoke(question))

    seen = events(RunnableLambda(call))
    streamed = [data for event, _, data in seen if event == "on_chat_model_stream"]
    assert streamed == ["is", " ", "42"]
    assert not [data for _, _, data in seen if isinstance(data, str) and "no" in data]


class State(TypedDict, total=False):
    answer: str


@both
def test_a_graphs_message_stream_shows_the_accepted_attempt_only(stream: Callable[..., Any]) -> None:
    def sync_node(_: State) -> State:
        return {"answer": bare("no 41", "is 42").invoke("6*7?")}

    async def async_node(_: State, config: Any) -> State:
        return {"answer": await bare("no 41", "is 42").ainvoke("6*7?", config)}

    builder = StateGraph(State)
    builder.add_node("solve", RunnableLambda(sync_node, async_node))
    builder.add_edge(START, "solve")
    builder.add_edge("solve", END)
    graph = builder.compile()

    class Messages:
        def stream(self, value: Any, _: Any) -> Any:
            return graph.stream(value, stream_mode="messages")

        def astream(self, value: Any, _: Any) -> Any:
            return graph.astream(value, stream_mode="messages")

    assert [message.text for message, _ in stream(Messages(), {})] == ["is", " ", "42"]


@pytest.mark.filterwarnings("ignore:astream_log is deprecated")
def test_a_log_of_a_run_shows_the_accepted_attempt_only() -> None:
    async def run() -> Any:
        total: Any = None
        async for patch in bare("no 41", "is 42").astream_log("6*7?"):
            total = patch if total is None else total + patch
        return total.state

    state = asyncio.run(run())
    assert state["streamed_output"] == ["is", " ", "42"]
    assert [log["tags"] for log in state["logs"].values() if log["type"] == "chain"] == [["retry:attempt:2"]]


@both
def test_an_interrupt_inside_the_chain_passes_through(stream: Callable[..., Any]) -> None:
    def work(_: str) -> str:
        return str(interrupt("what is it?"))

    async def awork(_: str) -> str:
        return work(_)

    wrapper = with_recovery(RunnableLambda(work, awork), verifier=IS_42, failures=(Exception,))
    builder = StateGraph(State)
    builder.add_node("solve", RunnableLambda(lambda _: {"answer": "".join(wrapper.stream("q"))}, _solved(wrapper)))
    builder.add_edge(START, "solve")
    graph = builder.compile(checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "t"}}
    (asked,) = stream(graph, {}, thread)
    assert asked["__interrupt__"][0].value == "what is it?"
    assert stream(graph, Command(resume="it is 42"), thread) == [{"solve": {"answer": "it is 42"}}]


def _solved(wrapper: Any) -> Any:
    async def solve(_: State) -> State:
        return {"answer": "".join([chunk async for chunk in wrapper.astream("q")])}

    return solve


@both
@pytest.mark.parametrize(("text", "gone"), [("it is 42", False), ("it is 41", True)])
def test_a_verdict_out_of_a_shared_budget_is_waited_for(stream: Callable[..., Any], text: str, gone: bool) -> None:
    class Judge(ScriptedVerifier):
        def bound(self, step: Any, rollout: Any) -> Usage:
            return Usage(10, 10, 1)

    store, judge = MemoryStore(), Judge(["it is 42"])
    shared = SharedBudget(store=store, limits=(Window("global", "tokens", 10_000, "hour"),))
    speculative = with_recovery(
        chain(text, "it is 42"), verifier=judge, shared=shared, stream="speculative", extra_samples=1
    )
    given = stream(speculative, QUESTION)
    assert [chunk == VOID for chunk in given if isinstance(chunk, Retracted)] == [True] * gone
    assert given[-5:] == ["it", " ", "is", " ", "42"]
    assert judge.judged == [text, "it is 42"][: 1 + gone]
    (account,) = store.accounts()
    assert account.reserved == 0


def call_chunks(n: int) -> list[AIMessageChunk]:
    """A tool call in ``n`` chunks."""
    args = ['{"a": "', *["x" * 10] * (n - 2), '"}']
    return [
        AIMessageChunk("", tool_call_chunks=[{"name": "t" if i == 0 else None, "args": a, "id": None, "index": 0}])
        for i, a in enumerate(args)
    ]


@pytest.mark.parametrize(
    "chunks",
    [
        ["it", " is"],
        [AIMessageChunk("it"), AIMessageChunk(" is", id="m"), AIMessageChunk(" 42", chunk_position="last")],
        call_chunks(5),
        [AIMessageChunk("", additional_kwargs={"a": 1}), AIMessageChunk("", additional_kwargs={"a": "b"})],
        [AddableDict(a="it"), AddableDict(a=" is", b=None), AddableDict(b=call_chunks(3)[0]), AddableDict(b=None)],
        [AddableDict(a="it"), AddableDict(a=1), AddableDict(a=2)],
        [{"a": 1}, {"a": 2}],
        ["it", AIMessageChunk("is"), "42"],
        [[1], [2, 3], []],
        [1, 2.5],
        [None],
        ["it"],
        [],
    ],
)
def test_chunks_add_up_as_langchain_adds_them(chunks: list[Any]) -> None:
    expected: Any = chunks[0] if chunks else None
    for chunk in chunks[1:]:
        try:
            expected = expected + chunk
        except TypeError:
            expected = chunks[-1]
            break
    assert total(chunks) == expected
    assert type(total(chunks)) is type(expected)


@both
@pytest.mark.parametrize("nested", [False, True])
def test_a_long_tool_call_is_added_up_at_once(
    stream: Callable[..., Any], nested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = call_chunks(300)
    if nested:
        made = [AddableDict(answer=chunk) for chunk in made]
    added: list[int] = []
    add = AIMessageChunk.__add__
    monkeypatch.setattr(AIMessageChunk, "__add__", lambda self, other: added.append(1) or add(self, other))
    read: list[Any] = []

    def source(_: Iterator[Any]) -> Iterator[Any]:
        yield from made

    async def asource(_: Any) -> Any:
        for chunk in made:
            yield chunk

    class Ends(BaseCallbackHandler):
        def on_chain_end(self, outputs: Any, *, parent_run_id: Any = None, **_: Any) -> None:
            read.extend([outputs] if parent_run_id is None else [])

    wrapper = with_recovery(RunnableGenerator(source, asource), verifier=ScriptedVerifier(lambda _: True))
    assert stream(wrapper, "q", {"callbacks": [Ends()]}) == made
    (output,) = read
    message = output["answer"] if nested else output
    assert message.tool_calls[0]["args"] == {"a": "x" * 10 * 298}
    assert len(added) <= 2 + 300 * nested  # one of ours; LangChain's generator adds its dicts one by one
