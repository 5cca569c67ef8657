"""A wrapped chain does what LangChain's own runnables do; one that passes everything cannot be told from its chain."""

import asyncio
import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListLLM, GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import (
    ConfigurableField,
    Runnable,
    RunnableBranch,
    RunnableGenerator,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langgraph.graph import END, START, MessagesState, StateGraph
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from rfx_agent import Unresolved, with_recovery
from rfx_agent.adapters.chain.wrap import RecoveredRunnable
from rfx_agent.testing import ScriptedVerifier

IS_42 = ScriptedVerifier(["42"])


def passing(runnable: Any, **options: Any) -> RecoveredRunnable[Any, Any]:
    return with_recovery(runnable, verifier=ScriptedVerifier(lambda _: True), **options)


def chain() -> Runnable[Any, str]:
    model = GenericFakeChatModel(messages=iter([AIMessage("it is 42")] * 9))
    return ChatPromptTemplate.from_messages([("human", "{q}")]) | model | StrOutputParser()


def boom(value: Any) -> Any:
    raise ValueError(value)


def words(texts: Iterator[str]) -> Iterator[str]:
    for text in texts:
        yield from text.split()


async def _streamed(runnable: Any, value: Any) -> list[Any]:
    return [x async for x in runnable.astream(value)]


async def _transformed(runnable: Any, values: list[Any]) -> list[Any]:
    async def given() -> Any:
        for value in values:
            yield value

    return [x async for x in runnable.atransform(given())]


FEATURES: dict[str, Callable[[Any], Any]] = {
    "invoke": lambda wrap: wrap(chain()).invoke({"q": "6*7?"}),
    "ainvoke": lambda wrap: asyncio.run(wrap(chain()).ainvoke({"q": "6*7?"})),
    "stream": lambda wrap: list(wrap(chain()).stream({"q": "6*7?"})),
    "astream": lambda wrap: asyncio.run(_streamed(wrap(chain()), {"q": "6*7?"})),
    "transform": lambda wrap: list(wrap(RunnableGenerator(words)).transform(iter(["a ", "b"]))),
    "atransform": lambda wrap: asyncio.run(_transformed(wrap(RunnableLambda(lambda x: x[::-1])), ["a", "b"])),
    "batch": lambda wrap: wrap(RunnableLambda(lambda x: x + 1)).batch([1, 2, 3], {"max_concurrency": 2}),
    "abatch": lambda wrap: asyncio.run(wrap(RunnableLambda(lambda x: x + 1)).abatch([1, 2, 3])),
    "batch_as_completed": lambda wrap: sorted(wrap(RunnableLambda(lambda x: x + 1)).batch_as_completed([1, 2])),
    "batch of nothing": lambda wrap: wrap(RunnableLambda(boom)).batch([]),
    "map": lambda wrap: wrap(RunnableLambda(lambda x: x + 1)).map().invoke([1, 2]),
    "pipe": lambda wrap: (wrap(RunnableLambda(lambda x: x + 1)) | (lambda x: x * 2)).invoke(1),
    "behind": lambda wrap: ({"x": RunnablePassthrough()} | wrap(RunnableLambda(lambda x: x["x"]))).invoke(1),
    "parallel": lambda wrap: RunnableParallel(a=wrap(RunnableLambda(str)), b=RunnablePassthrough()).invoke(1),
    "branch": lambda wrap: RunnableBranch(
        (lambda x: x > 1, wrap(RunnableLambda(str))), wrap(RunnableLambda(repr))
    ).invoke(2),
    "assign": lambda wrap: wrap(RunnablePassthrough()).assign(b=lambda x: x["a"] + 1).invoke({"a": 1}),
    "pick": lambda wrap: wrap(RunnablePassthrough()).pick("a").invoke({"a": 1}),
    "bind": lambda wrap: wrap(RunnableLambda(lambda x, y=0: x + y)).bind(y=2).invoke(1),
    "with_types": lambda wrap: wrap(RunnableLambda(boom)).with_types(input_type=int).get_input_jsonschema()["type"],
    "with_retry": lambda wrap: wrap(flaky()).with_retry(wait_exponential_jitter=False).invoke("x"),
    "retry inside, in a batch": lambda wrap: wrap(flaky().with_retry(wait_exponential_jitter=False)).batch(["x"] * 3),
    "with_fallbacks": lambda wrap: wrap(RunnableLambda(boom)).with_fallbacks([RunnableLambda(str)]).invoke(1),
    "fallbacks inside, in a batch": lambda wrap: wrap(
        RunnableLambda(boom).with_fallbacks([RunnableLambda(lambda x: type(x["e"]).__name__)], exception_key="e")
    ).batch([{"q": 1}, {"q": 2}]),
    "exceptions of a batch": lambda wrap: [
        repr(x) for x in wrap(RunnableLambda(lambda x: x or boom(x))).batch([0, 1], return_exceptions=True)
    ],
    "config_specs": lambda wrap: [x.id for x in wrap(configurable()).config_specs],
    "configurable": lambda wrap: wrap(configurable()).invoke("q", {"configurable": {"says": ["other"]}}),
    "schemas": lambda wrap: (wrap(chain()).get_input_jsonschema(), wrap(chain()).get_output_jsonschema()),
    "prompts": lambda wrap: wrap(chain()).get_prompts(),
    "graph": lambda wrap: len((wrap(chain()) | (lambda x: x)).get_graph().nodes),
    "as_tool": lambda wrap: wrap(RunnableLambda(twice)).as_tool(name="t", description="d").invoke({"a": 1}),
    "name": lambda wrap: wrap(RunnableLambda(twice, name="mine")).get_name("input"),
    "an attribute": lambda wrap: wrap(FakeListLLM(responses=["a"])).responses,
    "no attribute": lambda wrap: hasattr(wrap(FakeListLLM(responses=["a"])), "nothing"),
    "a copy": lambda wrap: copy.copy(wrap(RunnableLambda(twice))).invoke({"a": 1}),
}


class Given(TypedDict):
    a: int


def twice(given: Given) -> int:
    return given["a"] * 2


def flaky() -> RunnableLambda[str, str]:
    """It raises on its first call."""
    calls: list[str] = []
    lock = threading.Lock()

    def work(value: str) -> str:
        with lock:
            calls.append(value)
            if len(calls) == 1:
                raise ValueError("once")
        return value

    return RunnableLambda(work)


def configurable() -> Any:
    return FakeListLLM(responses=["a"]).configurable_fields(responses=ConfigurableField(id="says"))


@pytest.mark.parametrize("feature", FEATURES.values(), ids=FEATURES)
@pytest.mark.filterwarnings("ignore:This API is in beta")
def test_it_cannot_be_told_from_its_chain(feature: Callable[[Any], Any]) -> None:
    assert feature(passing) == feature(lambda runnable: runnable)


def test_its_name_is_shown_wherever_one_is() -> None:
    started: list[str] = []

    class Starts(BaseCallbackHandler):
        def on_chain_start(self, *_: Any, parent_run_id: Any = None, **about: Any) -> None:
            started.extend([about["name"]] if parent_run_id is None else [])

    heard: Any = {"callbacks": [Starts()]}
    named, bare = passing(RunnableLambda(str), name="solver"), passing(RunnableLambda(str, name="work"))
    assert [named.get_name(), named.get_name("output"), bare.get_name()] == ["solver", "solver_output", "work"]
    for runnable in (named, bare, named.with_config(run_name="given"), bare.with_config(run_name="given")):
        runnable.invoke(1, heard)
        runnable.batch([1, 2], heard)
    assert started == ["solver"] * 3 + ["with_recovery"] * 3 + ["given"] * 6
    assert repr(named).startswith("with_recovery(RunnableLambda(")
    assert repr(named).endswith(", verifier='scripted', name='solver')")


def test_what_a_models_methods_make_is_recovered_too() -> None:
    class Model(GenericFakeChatModel):
        def bind_tools(self, tools: Any, **_: Any) -> Any:
            return self.bind(tools=tools)

    model = Model(messages=iter([AIMessage("41"), AIMessage("42")]))
    bound = with_recovery(model, verifier=IS_42, name="solver", extra_samples=1).bind_tools([])
    assert isinstance(bound, RecoveredRunnable)
    assert (bound.get_name(), bound.invoke("q").text) == ("solver", "42")


def test_a_graph_in_it_is_not_taken_for_a_subgraph() -> None:
    def build(node: Any) -> Any:
        builder = StateGraph(MessagesState)
        builder.add_node("solve", node)
        builder.add_edge(START, "solve")
        builder.add_edge("solve", END)
        return builder.compile()

    inner = build(lambda _: {"messages": [AIMessage("42")]})
    wrapped = with_recovery(inner, verifier=IS_42, answer=lambda state: state["messages"][-1].text)
    assert build(wrapped).invoke({"messages": [("user", "q")]})["messages"][-1].text == "42"


class Calls(BaseCallbackHandler):
    """How each run of a call's own ended, by its run."""

    def __init__(self) -> None:
        self.ends: dict[Any, Any] = {}
        self.attempts: list[list[str]] = []

    def on_chain_start(self, *_: Any, run_id: Any, parent_run_id: Any = None, tags: Any = None, **__: Any) -> None:
        if parent_run_id is None:
            self.ends[run_id] = None
        elif parent_run_id in self.ends:
            self.attempts.append(tags or [])

    def on_chain_end(self, outputs: Any, *, run_id: Any, **_: Any) -> None:
        if run_id in self.ends:
            self.ends[run_id] = outputs

    on_chain_error = on_chain_end


@pytest.mark.parametrize("how", ["batch", "abatch"])
def test_the_first_runs_of_a_batch_are_one_batch_of_the_chain(how: str) -> None:
    batches: list[list[Any]] = []

    class Batching(RunnableLambda[str, str]):
        def batch(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            batches.append(inputs)
            return super().batch(inputs, *args, **kwargs)

        async def abatch(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            batches.append(inputs)
            return await super().abatch(inputs, *args, **kwargs)

    def run(runnable: Any, inputs: list[Any], **options: Any) -> Any:
        given = getattr(runnable, how)(inputs, {"callbacks": [calls]}, **options)
        return asyncio.run(given) if how == "abatch" else given

    seen: dict[str, int] = {}

    def work(value: str) -> str:
        seen[value] = seen.get(value, 0) + 1
        if value == "broken":
            raise ValueError(value)
        return "42" if value == "right" or (value == "late" and seen[value] > 1) else "41"

    calls = Calls()
    wrapped = with_recovery(Batching(work), verifier=IS_42, extra_samples=1, budget=None)
    assert run(wrapped, ["right", "late"]) == ["42", "42"]
    assert batches == [["right", "late"]]
    assert (list(calls.ends.values()), calls.attempts) == (["42", "42"], [[], [], ["retry:attempt:2"]])
    seen.clear()
    calls = Calls()
    given = run(wrapped, ["right", "broken", "never", "late"], return_exceptions=True)
    assert [given[0], type(given[1]), type(given[2]), given[3]] == ["42", ValueError, Unresolved, "42"]
    assert [type(x) for x in calls.ends.values()] == [str, ValueError, Unresolved, str]
    seen.clear()
    with pytest.raises(ValueError, match="broken"):
        run(wrapped, ["late", "broken"])
    assert seen == {"late": 1, "broken": 1}  # nothing is recovered for a batch that raises


@pytest.mark.parametrize("how", ["batch", "abatch"])
@pytest.mark.filterwarnings("error")
def test_every_run_of_a_batch_that_raises_ends(how: str) -> None:
    calls = Calls()
    config: Any = {"callbacks": [calls], "max_concurrency": 1}
    wrapped = with_recovery(RunnableLambda(lambda _: "41"), verifier=IS_42, extra_samples=0)
    batch: Any = {
        "batch": lambda: wrapped.batch(["q"] * 4, config),
        "abatch": lambda: asyncio.run(wrapped.abatch(["q"] * 4, config)),
    }
    with pytest.raises(Unresolved):
        batch[how]()
    assert [type(x) for x in calls.ends.values()] == [Unresolved] * 4


@pytest.mark.parametrize("how", ["batch", "abatch"])
def test_an_input_or_output_that_cannot_be_read_is_one_error_of_a_batch(how: str) -> None:
    wrapped = with_recovery(RunnablePassthrough(), verifier=IS_42, prompt="q", answer="a")
    inputs = [{"q": "x", "a": "42"}, {"a": "42"}, {"q": "x"}]
    given = getattr(wrapped, how)(inputs, return_exceptions=True)
    right, *wrong = asyncio.run(given) if how == "abatch" else given
    assert right == inputs[0]
    assert ["prompt is 'q'" in str(wrong[0]), "answer is 'a'" in str(wrong[1])] == [True, True]


def streaming_model(*texts: str) -> Any:
    return GenericFakeChatModel(messages=iter([AIMessage(text) for text in texts]))


@pytest.mark.parametrize(
    "bound", [lambda m: m.bind(x=1), lambda m: m.with_config(tags=["t"]), lambda m: m.with_retry()]
)
@pytest.mark.parametrize("how", ["stream", "invoke", "batch"])
def test_watchers_see_the_accepted_attempt_of_a_bound_model_once(bound: Callable[[Any], Any], how: str) -> None:
    wrapped = with_recovery(bound(streaming_model("41", "41", "42", "42")), verifier=IS_42, extra_samples=1)

    async def call(value: str) -> Any:
        return await (wrapped.abatch([value, value]) if how == "batch" else wrapped.ainvoke(value))

    async def watch() -> list[str]:
        watched: Any = wrapped if how == "stream" else RunnableLambda(call)
        seen = [x async for x in watched.astream_events("q", version="v2") if x["event"] == "on_chat_model_stream"]
        return [x["data"]["chunk"].text for x in seen if x["data"]["chunk"].text]

    assert asyncio.run(watch()) == ["42"] * (2 if how == "batch" else 1)


def test_a_chunk_of_a_passing_model_is_its_own() -> None:
    chunks = list(passing(streaming_model("it is")).stream("q"))
    assert [type(x) for x in chunks] == [AIMessageChunk] * len(chunks)
