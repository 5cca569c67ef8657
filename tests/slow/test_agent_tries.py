"""An agent's own client asks again by itself: each try is reserved before it is sent, and charged if it was lost."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from servers import Answer, ChatServer, choice, completion

from rfx_agent import (
    BudgetMiddleware,
    MemoryStore,
    RecoverabilityMiddleware,
    RetryBudget,
    SharedBudget,
    Window,
    budget_of,
    with_budget,
)
from rfx_agent.errors import BudgetExhausted, StoreError
from rfx_agent.policies import FixedPolicy
from rfx_agent.samplers import http_client

langchain_openai = pytest.importorskip("langchain_openai")
agents = pytest.importorskip("langchain.agents")
runnables = pytest.importorskip("langchain_core.runnables")
tools = pytest.importorskip("langchain_core.tools")
rate_limiters = pytest.importorskip("langchain_core.rate_limiters")
pydantic = pytest.importorskip("pydantic")

CAP = 20
ASKED = {"messages": [("user", "What is 3 + 4?")]}


def late(body: Any) -> Answer:
    return replace(good(body), delay=2.0)


def cut(body: Any) -> Answer:
    return replace(good(body), cut=10)


def broken(_: Any) -> Answer:
    return Answer(500, {"error": {"message": "out of memory"}})


def busy(_: Any) -> Answer:
    return Answer(429, {"error": {"message": "slow down"}}, {"Retry-After": "0"})


def good(body: Any, text: str = "it is 7") -> Answer:
    """3 tokens after a prompt of 7; as events where a stream was asked for."""
    whole = completion(choice(text))
    if not body.get("stream"):
        return Answer(body=whole)
    one = {key: whole[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    chunks = [
        one | {"choices": [{"index": 0, "delta": {"role": "assistant", "content": text}}]}
        for text in (text[:3], text[3:])
    ]
    chunks += [one | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]
    chunks += [one | {"choices": [], "usage": whole["usage"] | {"total_tokens": 10}}]
    lines = "".join(f"data: {json.dumps(x)}\n\n" for x in chunks) + "data: [DONE]\n\n"
    return Answer(body=lines.encode(), headers={"Content-Type": "text/event-stream"})


def model_of(server: ChatServer, **clients: Any) -> Any:
    return langchain_openai.ChatOpenAI(
        model="fake", base_url=server.base_url, api_key="k", timeout=1.5, max_tokens=CAP, stream_usage=True, **clients
    )


def of(server: ChatServer, middleware: list[Any]) -> Any:
    return agents.create_agent(model_of(server), middleware=middleware)


def replies(*first: Callable[[Any], Answer]) -> Callable[[Any, int], Answer]:
    return lambda body, i: (first[i] if i < len(first) else good)(body)


def streamed(agent: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for mode, chunk in agent.stream(ASKED, stream_mode=["messages", "values"]):
        found = chunk if mode == "values" else found
    return found


async def astreamed(agent: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async for mode, chunk in agent.astream(ASKED, stream_mode=["messages", "values"]):
        found = chunk if mode == "values" else found
    return found


class Shared:
    """A budget that many runs share, and what its only account says."""

    def __init__(self, tokens: int = 10_000) -> None:
        self._store = MemoryStore()
        self.budget = SharedBudget(store=self._store, limits=(Window("global", "tokens", tokens, per="day"),))

    @property
    def spent(self) -> float:
        (account,) = self._store.accounts()
        assert account.reserved == 0
        return account.spent


USED = 10  # tokens of a good answer and its prompt
RESERVED = len("What is 3 + 4?") + 64 + CAP  # a token a byte, a message's template, and what it may write


def retrying(shared: Shared) -> RecoverabilityMiddleware:
    """One retry of an answer that says "wrong"."""
    return RecoverabilityMiddleware(
        verifier=lambda text: "wrong" not in text,
        shared=shared.budget,
        policy=FixedPolicy(["retry"]),
        budget=RetryBudget(samples=1),
        on_unresolved="return",
    )


ways = pytest.mark.parametrize(
    "run",
    [
        lambda agent: agent.invoke(ASKED),
        lambda agent: asyncio.run(agent.ainvoke(ASKED)),
        streamed,
        lambda agent: asyncio.run(astreamed(agent)),
    ],
    ids=["invoke", "ainvoke", "stream", "astream"],
)


@ways
@pytest.mark.parametrize(
    ("first", "lost"), [((late,), 1), ((late, broken), 2), ((broken,), 1), ((busy, broken), 1), ((busy, busy), 0)]
)
def test_a_try_that_was_lost_is_charged_and_one_that_was_refused_is_not(run: Any, first: Any, lost: int) -> None:
    shared = Shared()
    with ChatServer(replies(*first)) as server:
        run(of(server, [BudgetMiddleware({"samples": 1}, shared=shared.budget)]))
    assert len(server.bodies) == len(first) + 1
    assert shared.spent == lost * RESERVED + USED


@pytest.mark.parametrize("how", ["sync", "async"])
def test_an_answer_that_breaks_off_is_charged(how: str) -> None:
    """OpenAI's client repeats it, unless it is a stream."""
    shared = Shared()
    with ChatServer(replies(cut)) as server:
        agent = of(server, [BudgetMiddleware(shared=shared.budget)])
        _ = agent.invoke(ASKED) if how == "sync" else asyncio.run(agent.ainvoke(ASKED))
    assert len(server.bodies) == 2
    assert shared.spent == RESERVED + USED


@ways
def test_a_try_that_the_budget_cannot_pay_for_is_not_made(run: Any) -> None:
    shared = Shared(190)
    with ChatServer(replies(late, late, late)) as server:
        found = budget_of(run(of(server, [BudgetMiddleware(shared=shared.budget)])))
    assert len(server.bodies) == 1
    assert found is not None
    assert (found.status, found.accounts) == ("exhausted", ("global tokens/86400s",))
    assert shared.spent == RESERVED


@ways
def test_it_raises_where_that_was_asked_for(run: Any) -> None:
    with ChatServer(replies(late, late, late)) as server, pytest.raises(BudgetExhausted):
        run(of(server, [BudgetMiddleware({"tokens": 190}, at_cap="raise")]))
    assert len(server.bodies) == 1


@ways
def test_a_call_whose_tries_are_all_lost_is_charged_each(run: Any) -> None:
    shared = Shared()
    with ChatServer(replies(broken, late, broken)) as server, pytest.raises(openai.InternalServerError):
        run(of(server, [BudgetMiddleware(shared=shared.budget)]))
    assert len(server.bodies) == 3
    assert shared.spent == 3 * RESERVED


@ways
def test_a_model_of_a_middleware_is_counted_on_a_client_of_this_package(run: Any) -> None:
    """The middleware hands its own client only to the agent's model."""
    shared = Shared()
    with ChatServer(replies(late)) as server, ChatServer(replies()) as outer:
        clients = {"http_client": http_client(), "http_async_client": http_client(asynchronous=True)}
        inside = model_of(server, **clients)

        class Asks(agents.middleware.AgentMiddleware):  # type: ignore[misc,name-defined]
            def before_model(self, state: Any, runtime: Any) -> None:
                inside.invoke("What is 3 + 4?")

            async def abefore_model(self, state: Any, runtime: Any) -> None:
                await inside.ainvoke("What is 3 + 4?")

        run(of(outer, [BudgetMiddleware({"samples": 2}, shared=shared.budget), Asks()]))
    assert len(server.bodies) == 2
    assert shared.spent == RESERVED + 2 * USED


@ways
@pytest.mark.parametrize(("first", "lost"), [((late,), 1), ((late, broken), 2), ((busy, busy), 0)])
def test_recovery_alone_charges_what_further_draws_lost(run: Any, first: Any, lost: int) -> None:
    shared = Shared()
    recovery = retrying(shared)
    wrong = [lambda body: good(body, "it is wrong"), *first]
    with ChatServer(replies(*wrong)) as server:
        run(of(server, [recovery]))
    assert len(server.bodies) == len(first) + 2
    assert lost * CAP + USED <= shared.spent <= lost * (CAP + 60) + USED


@ways
def test_recovery_within_a_budget_is_charged_once(run: Any) -> None:
    shared = Shared()
    recovery = RecoverabilityMiddleware(
        verifier=lambda text: "wrong" not in text, policy=FixedPolicy(["retry"]), budget=RetryBudget(samples=1)
    )
    with ChatServer(replies(lambda body: good(body, "it is wrong"), late, busy)) as server:
        run(of(server, [BudgetMiddleware({"samples": 2}, shared=shared.budget), recovery]))
    assert len(server.bodies) == 4
    assert CAP + 2 * USED <= shared.spent <= CAP + 60 + 2 * USED


@pytest.fixture(params=["now", "before"])
def sdk(request: Any, monkeypatch: Any) -> None:
    """OpenAI's SDK as it is, and as version 3.0: that tries again after each error that is not its own."""
    if request.param == "before":
        monkeypatch.setattr("openai._base_client.request_exceptions", lambda: (Exception,), raising=False)


QUESTION = "What is 3 + 4?"


def own_model(server: ChatServer) -> Any:
    return model_of(server, http_client=http_client(), http_async_client=http_client(asynchronous=True))


@pytest.mark.usefixtures("sdk")
@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_refused_try_of_a_model_in_a_tool_is_a_refusal(how: str) -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "ask", "arguments": "{}"}}]
    first = Answer(body=completion(choice(None, tool_calls=calls), tokens=3))
    shared = Shared(250)
    with ChatServer(replies(late, late)) as server, ChatServer(lambda body, i: good(body) if i else first) as outer:
        inside = own_model(server)

        def ask() -> str:
            """Asks."""
            return str(inside.invoke(QUESTION).text)

        async def aask() -> str:
            return str((await inside.ainvoke(QUESTION)).text)

        tool = tools.StructuredTool.from_function(ask, aask, name="ask")
        agent = agents.create_agent(
            model_of(outer), tools=[tool], middleware=[BudgetMiddleware({"samples": 5}, shared=shared.budget)]
        )
        result = agent.invoke(ASKED) if how == "sync" else asyncio.run(agent.ainvoke(ASKED))
    found = budget_of(result)
    assert len(server.bodies) == 2
    assert found is not None
    assert found.spent.tokens == shared.spent == found.by_model["fake"].tokens


@pytest.mark.usefixtures("sdk")
@pytest.mark.parametrize("how", ["sync", "async"])
def test_with_budget_raises_a_refused_try(how: str) -> None:
    with ChatServer(replies(late)) as server:
        model = with_budget(own_model(server), {"tokens": 150})
        with pytest.raises(BudgetExhausted):
            _ = model.invoke(QUESTION) if how == "sync" else asyncio.run(model.ainvoke(QUESTION))
    assert len(server.bodies) == 1


class Failing(MemoryStore):
    """A store that is out of order when a second reservation is made."""

    asked = 0

    def reserve(self, *args: Any, **more: Any) -> Any:
        self.asked += 1
        if self.asked == 2:
            raise StoreError("the store is down")
        return super().reserve(*args, **more)


@pytest.mark.usefixtures("sdk")
@ways
def test_a_try_that_cannot_be_reserved_is_not_made(run: Any) -> None:
    shared = Shared()
    shared._store = Failing()
    shared.budget = SharedBudget(store=shared._store, limits=(Window("global", "tokens", 1_000, per="day"),))
    with ChatServer(replies(late)) as server, pytest.raises(StoreError):
        run(of(server, [BudgetMiddleware(shared=shared.budget)]))
    assert len(server.bodies) == 1
    assert shared.spent == RESERVED


def test_what_was_spent_by_model_has_the_lost_tries() -> None:
    with ChatServer(replies(late, late)) as server:
        agent = of(server, [BudgetMiddleware({"tokens": 250, "samples": 1})])
        found = budget_of(agent.invoke(ASKED))
    assert found is not None
    assert found.by_model["fake"].tokens == found.spent.tokens == 2 * RESERVED


def test_a_stream_that_ends_during_another_call_does_not_hide_its_tries() -> None:
    shared = Shared(250)

    async def both(model: Any) -> None:
        stream = model.astream(QUESTION)
        await anext(stream)
        asked = asyncio.create_task(model.ainvoke(QUESTION))
        await asyncio.sleep(0.3)
        async for _ in stream:
            pass
        await asked

    with ChatServer(replies(good, late, late)) as server:
        model = own_model(server)
        work = runnables.RunnableLambda(lambda _: asyncio.run(both(model)))
        with pytest.raises(BudgetExhausted):
            with_budget(work, shared=shared.budget).invoke("")
    assert len(server.bodies) == 3
    assert shared.spent == USED + 2 * RESERVED


def test_calls_that_begin_at_once_are_no_further_tries() -> None:
    shared = Shared()
    slowly = rate_limiters.InMemoryRateLimiter(requests_per_second=5, check_every_n_seconds=0.05)
    with ChatServer(lambda body, _: replace(good(body), delay=0.8)) as server:
        model = own_model(server).model_copy(update={"rate_limiter": slowly})  # each is sent while others are under way
        messages = [[("user", QUESTION)]] * 3
        work = runnables.RunnableLambda(
            lambda _: asyncio.run(model.agenerate([model._convert_input(x).to_messages() for x in messages]))
        )
        with_budget(work, shared=shared.budget).invoke("")
    assert len(server.bodies) == 3
    assert shared.spent == 3 * USED


@pytest.mark.skipif(sys.platform != "linux", reason="counts the files of /proc")
def test_connections_of_event_loops_that_are_over_are_not_kept() -> None:
    with ChatServer(replies()) as server:
        agent = of(server, [BudgetMiddleware({"samples": 9})])

        async def three() -> None:
            await asyncio.gather(*(agent.ainvoke(ASKED) for _ in range(3)))

        def after(runs: int) -> int:
            for _ in range(runs):
                asyncio.run(three())
            gc.collect()
            return len([*Path("/proc/self/fd").iterdir()])

        before = after(3)
        assert after(20) <= before + 20


def test_a_model_keeps_what_its_class_and_others_put_into_it() -> None:
    class Counting(langchain_openai.ChatOpenAI):  # type: ignore[misc]
        _asked: int = pydantic.PrivateAttr(0)

        def _generate(self, *args: Any, **more: Any) -> Any:
            self._asked += 1
            return super()._generate(*args, **more)

    with ChatServer(replies()) as server:
        model = Counting(model="fake", base_url=server.base_url, api_key="k", max_tokens=CAP)
        agent = agents.create_agent(model, middleware=[BudgetMiddleware({"samples": 5})])
        agent.invoke(ASKED)
        model.root_client.organization = "other"
        agent.invoke(ASKED)
        assert server.headers[-1]["openai-organization"] == "other"
    assert model._asked == 2


def test_a_client_that_is_traced_is_left_as_it_is() -> None:
    traced: list[Any] = []
    with ChatServer(replies()) as server:
        model = model_of(server)
        create = model.client.create

        def tracing(**asked: Any) -> Any:
            traced.append(asked)
            return create(**asked)

        model.client.create = tracing
        agents.create_agent(model, middleware=[BudgetMiddleware({"samples": 5})]).invoke(ASKED)
    assert len(traced) == 1


def test_a_refusal_can_be_pickled_and_copied() -> None:
    with ChatServer(replies(late, late)) as server, pytest.raises(BudgetExhausted) as caught:
        of(server, [BudgetMiddleware({"tokens": 190}, at_cap="raise")]).invoke(ASKED)
    for again in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):  # noqa: S301  # our own
        assert isinstance(again, BudgetExhausted)
        assert (str(again), again.caps, again.spent) == (str(caught.value), caught.value.caps, caught.value.spent)


@ways
def test_an_answer_that_langchain_cannot_read_is_charged(run: Any) -> None:
    def unreadable(body: Any) -> Answer:
        if body.get("stream"):
            return Answer(body=b"data: {\n\n", headers={"Content-Type": "text/event-stream"})
        return Answer(body=good(body).body | {"usage": [1]})

    shared = Shared()
    with ChatServer(replies(unreadable)) as server, pytest.raises(Exception, match=r".") as raised:
        run(of(server, [BudgetMiddleware(shared=shared.budget)]))
    assert not isinstance(raised.value, BudgetExhausted)
    assert len(server.bodies) == 1
    assert shared.spent == RESERVED


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_draw_of_recovery_that_langchain_cannot_read_is_charged(how: str) -> None:
    shared = Shared()
    recovery = retrying(shared)
    first = [lambda body: good(body, "it is wrong"), lambda body: Answer(body=good(body).body | {"usage": [1]})]
    with ChatServer(replies(*first)) as server:
        agent = of(server, [recovery])
        _ = agent.invoke(ASKED) if how == "sync" else asyncio.run(agent.ainvoke(ASKED))
    assert len(server.bodies) == 2
    assert shared.spent >= CAP


@ways
def test_a_stream_may_take_longer_than_a_request(run: Any) -> None:
    def slow(body: Any) -> Answer:
        return replace(good(body), pause=2.5 / len(good(body).raw())) if body.get("stream") else good(body)

    shared = Shared()
    with ChatServer(replies(slow)) as server:
        run(of(server, [BudgetMiddleware(shared=shared.budget)]))
    assert shared.spent == USED
