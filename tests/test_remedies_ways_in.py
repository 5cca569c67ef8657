"""The remedies in a chain, a node and an agent: what the user's own thing is told, and what stays in the thread."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import PydanticOutputParser, StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from pydantic import BaseModel, Field

from rfx_agent import (
    ChatModelSampler,
    FunctionVerifier,
    RecoverabilityMiddleware,
    Recovery,
    RetryBudget,
    Verdict,
    recoverable,
    with_recovery,
)
from rfx_agent.errors import Unresolved
from rfx_agent.events import Event, Judged
from rfx_agent.remedies import Delegate, Extend, Retry, Revise
from rfx_agent.testing import ScriptedSampler

HINT = "line 4 is missing"


class Chat(BaseChatModel):
    """Is right where its prompt has the hint; remembers what it was asked and with which arguments."""

    right: str = "right"
    needs: str = HINT
    seen: list[Any] = Field(default_factory=list)
    asked: list[dict[str, Any]] = Field(default_factory=list)
    max_tokens: int | None = None
    cut_below: int = 0
    model_name: str = "chat"

    @property
    def _llm_type(self) -> str:
        return "told"

    def _generate(self, messages: list[BaseMessage], *_: Any, **kwargs: Any) -> ChatResult:
        self.seen.append(list(messages))
        self.asked.append(kwargs)
        text = " ".join(str(m.content) for m in messages)
        most = kwargs.get("max_tokens") or self.max_tokens or 10**6
        done = most >= self.cut_below
        content = self.right if self.needs in text and done else "wrong" if done else "wron"
        used = {"input_tokens": 9, "output_tokens": min(most, 20), "total_tokens": 9 + min(most, 20)}
        message = AIMessage(
            content,
            usage_metadata=used,  # type: ignore[arg-type]
            response_metadata={"finish_reason": "stop" if done else "length", "model_name": self.model_name},
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def bind_tools(self, tools: Any, **_: Any) -> Runnable[Any, Any]:
        return self


VERIFIER = FunctionVerifier(
    lambda text: Verdict(text == "right", answer=text, feedback=None if text == "right" else HINT)
)


def sync(runnable: Any, value: Any, config: Any = None) -> Any:
    return runnable.invoke(value, config)


def async_(runnable: Any, value: Any, config: Any = None) -> Any:
    return asyncio.run(runnable.ainvoke(value, config))


both = pytest.mark.parametrize("run", [sync, async_])


def asked(text: str) -> ChatPromptTemplate:
    return ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", text)])


def spoken(model: Chat) -> Callable[[Any], str]:
    return lambda prompt: str(model.invoke(prompt).content)


def prompted(model: Chat, *keys: str) -> Runnable[Any, Any]:
    text = "\n".join(f"{{{key}}}" for key in keys)
    return ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", text)]) | model | StrOutputParser()


@both
@pytest.mark.parametrize(
    ("value", "make"),
    [
        ("How much?", lambda model: model | StrOutputParser()),
        ([HumanMessage("How much?")], lambda model: model | StrOutputParser()),
        ([SystemMessage("Be brief."), HumanMessage("How much?")], lambda model: model | StrOutputParser()),
        ([("user", "How much?")], lambda model: model | StrOutputParser()),
        (ChatPromptTemplate.from_messages([("user", "How much?")]).invoke({}), lambda m: m | StrOutputParser()),
        ({"question": "How much?"}, lambda model: prompted(model, "question")),
        ({"question": "How much?"}, lambda model: asked("{question}") | model),
        ({"question": "How much?"}, lambda model: asked("{question}") | RunnableLambda(spoken(model))),
        ("How much?", lambda model: {"question": RunnableLambda(str)} | asked("{question}") | model),
    ],
)
def test_a_chain_is_told_in_whatever_form_its_prompt_comes(
    run: Any, value: Any, make: Callable[[Chat], Runnable[Any, Any]]
) -> None:
    model = Chat()
    chain = with_recovery(make(model), verifier=VERIFIER)
    given = run(chain, value)
    assert getattr(given, "content", given) == "right"
    first, second = model.seen
    assert HINT not in str(first)
    assert [m.type for m in second] == [m.type for m in first]
    assert str(second[-1].content).startswith("How much?\n")


@both
def test_a_prompt_function_tells_which_value_is_the_prompt(run: Any) -> None:
    model = Chat()
    chain = with_recovery(prompted(model, "context", "question"), verifier=VERIFIER, prompt=lambda x: x["question"])
    assert run(chain, {"context": "a letter", "question": "How much?"}) == "right"
    assert "a letter\nHow much?\n" in str(model.seen[-1][-1].content)


@both
def test_an_input_that_nothing_tells_the_prompt_of_needs_a_function(run: Any) -> None:
    model = Chat()
    value = {"context": "a letter", "question": "How much?"}
    chain = RunnableLambda(lambda given: f"{given['context']} {given['question']}") | model | StrOutputParser()
    with pytest.raises(Unresolved) as raised:
        run(with_recovery(chain, verifier=VERIFIER, remedies=[Revise()]), value)
    assert "cannot be told of a failed answer" in str(raised.value)
    told = with_recovery(
        chain,
        verifier=VERIFIER,
        remedies=[Revise()],
        revise=lambda given, addition: {**given, "context": f"{given['context']}\n{addition}"},
    )
    assert run(told, value) == "right"


@both
def test_behind_a_template_the_revision_stands_behind_the_whole_prompt(run: Any) -> None:
    model, large = Chat(), ScriptedSampler(["wrong", "right"])
    text = "Translate '{text}' into French."
    chain = ChatPromptTemplate.from_messages([("user", text)]) | model | StrOutputParser()
    assert run(with_recovery(chain, verifier=VERIFIER), {"text": "hello"}) == "right"
    assert str(model.seen[-1][-1].content).startswith("Translate 'hello' into French.\n\nAn earlier answer")
    delegated = with_recovery(chain, verifier=VERIFIER, remedies=[Delegate(large)])
    assert run(delegated, {"text": "hello"}) == "right"
    assert large.requests[0].messages == ({"role": "user", "content": "Translate 'hello' into French."},)


@both
def test_what_comes_before_the_template_never_sees_the_revision(run: Any) -> None:
    """A retriever must search for the question alone, not for the failed answer too."""
    model, queries = Chat(), list[str]()

    def search(query: str) -> str:
        queries.append(query)
        return "a letter"

    context = {"context": RunnableLambda(search), "question": RunnableLambda(str)}
    chain = context | asked("{context}: {question}") | model | StrOutputParser()
    assert run(with_recovery(chain, verifier=VERIFIER), "How much?") == "right"
    assert queries == ["How much?", "How much?"]
    assert HINT in str(model.seen[-1])


@both
def test_of_a_chains_message_nothing_is_read_but_how_it_ended(run: Any) -> None:
    odd = AIMessage("right", response_metadata={"logprobs": ["in a form of its own"], "finish_reason": "stop"})
    assert run(with_recovery(RunnableLambda(lambda _: odd), verifier=VERIFIER), "How much?") is odd


@both
def test_a_chains_cut_message_is_cut_and_not_wrong(run: Any) -> None:
    model, kinds = Chat(max_tokens=20, cut_below=40), list[str | None]()

    def watch(event: Event) -> None:
        if isinstance(event, Judged):
            kinds.append(event.kind)

    with pytest.raises(Unresolved):
        run(with_recovery(model, verifier=VERIFIER, on_event=watch, budget=RetryBudget(attempts=1)), "How much?")
    assert kinds == ["cut", "cut"]  # its cap is its own, so it is drawn again


class Total(BaseModel):
    """What is to be read."""

    total: int


@both
def test_an_exception_of_the_chain_is_feedback(run: Any) -> None:
    model = Chat(right='{"total": 7}', needs="Invalid json output")
    chain = model | PydanticOutputParser(pydantic_object=Total)
    kinds: list[str | None] = []

    def watch(event: Event) -> None:
        if isinstance(event, Judged):
            kinds.append(event.kind)

    told = with_recovery(chain, verifier=FunctionVerifier(lambda _: True), on_event=watch)
    assert run(told, "How much?") == Total(total=7)
    assert kinds == ["malformed", None]
    assert len(model.seen) == 2


class Messages(TypedDict):
    messages: Annotated[list[BaseMessage], add_messages]


class Texts(TypedDict):
    question: str
    answer: str


def graph(schema: Any, node: Any) -> Any:
    builder = StateGraph(schema)
    builder.add_node("answer", node)
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    return builder.compile()


@both
def test_a_node_on_messages_is_told_and_its_thread_is_not(run: Any) -> None:
    model = Chat()

    def answer(state: Messages) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    async def aanswer(state: Messages) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    node = recoverable(answer if run is sync else aanswer, recovery=Recovery(None, VERIFIER))
    state = run(graph(Messages, node), {"messages": [HumanMessage("How much?")]})
    assert [m.content for m in state["messages"]] == ["How much?", "right"]
    assert len(model.seen) == 2


@both
def test_a_node_on_text_is_told(run: Any) -> None:
    model = Chat()

    def answer(state: Texts) -> dict[str, Any]:
        return {"answer": model.invoke(state["question"]).content}

    async def aanswer(state: Texts) -> dict[str, Any]:
        return {"answer": (await model.ainvoke(state["question"])).content}

    wrapped = answer if run is sync else aanswer
    node = recoverable(wrapped, recovery=Recovery(None, VERIFIER), prompt="question", answer="answer")
    state = run(graph(Texts, node), {"question": "How much?"})
    assert state == {"question": "How much?", "answer": "right"}


@both
def test_an_agent_is_told_in_its_request_and_never_in_its_thread(run: Any) -> None:
    model = Chat()
    agent = create_agent(
        model, [], system_prompt="Be brief.", middleware=[RecoverabilityMiddleware(verifier=VERIFIER)],
        checkpointer=InMemorySaver(),
    )  # fmt: skip
    config = {"configurable": {"thread_id": "1"}}
    state = run(agent, {"messages": [HumanMessage("How much?")]}, config)
    assert [m.content for m in state["messages"]] == ["How much?", "right"]
    assert state["messages"][-1].response_metadata["rfx"]["by"] == "revise"
    assert HINT in str(model.seen[1])
    saved = str(agent.get_state(config).values)
    assert HINT not in saved
    assert "wrong" not in saved


@both
def test_an_agents_cut_answer_is_drawn_again_under_a_larger_cap(run: Any) -> None:
    model = Chat(needs="How much?", max_tokens=20, cut_below=40)
    middleware = RecoverabilityMiddleware(verifier=VERIFIER, remedies=[Extend()])
    agent = create_agent(model, [], middleware=[middleware])
    state = run(agent, {"messages": [HumanMessage("How much?")]})
    assert state["messages"][-1].content == "right"
    assert [kwargs.get("max_tokens") for kwargs in model.asked] == [None, 40]


@both
def test_an_agent_delegates_its_whole_request_to_a_second_model(run: Any) -> None:
    small, large = Chat(needs="nothing"), Chat(needs="How much?", model_name="large")

    def look(what: str) -> str:
        """Look something up."""
        return what

    middleware = RecoverabilityMiddleware(
        verifier=VERIFIER, remedies=[Delegate(ChatModelSampler(large))], budget=RetryBudget(attempts=2)
    )
    agent = create_agent(small, [look], system_prompt="Be brief.", middleware=[middleware])
    state = run(agent, {"messages": [HumanMessage("How much?")]})
    message = state["messages"][-1]
    assert (message.content, message.response_metadata["model_name"]) == ("right", "large")
    assert message.response_metadata["rfx"]["by"] == "delegate"
    assert [m.type for m in large.seen[0]] == ["system", "human"]
    assert len(small.seen) == 1


@both
def test_a_chain_delegates_its_step_to_a_second_model(run: Any) -> None:
    large = ScriptedSampler(["right"])
    chain = with_recovery(RunnableLambda(lambda _: "wrong"), verifier=VERIFIER, remedies=[Retry(), Delegate(large)])
    assert run(chain, "How much?") == "right"
    assert large.requests[0].messages == ({"role": "user", "content": "How much?"},)


@both
@pytest.mark.parametrize("asked", [False, True])
def test_an_agent_with_tools_is_told_only_where_that_is_asked_for(run: Any, asked: bool) -> None:
    def look(what: str) -> str:
        """Look something up."""
        return what

    model = Chat()
    more: dict[str, Any] = {"remedies": [Revise()]} if asked else {}
    middleware = RecoverabilityMiddleware(verifier=VERIFIER, budget=RetryBudget(attempts=1), **more)
    agent = create_agent(model, [look], middleware=[middleware])
    if asked:
        assert run(agent, {"messages": [HumanMessage("How much?")]})["messages"][-1].content == "right"
    else:
        with pytest.raises(Unresolved):
            run(agent, {"messages": [HumanMessage("How much?")]})
        assert HINT not in str(model.seen)
