"""``ChatModelSampler`` over LangChain's client of OpenAI, against servers that are broken or want too much."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import traceback
from typing import Any

import openai
import pytest
from servers import Answer, ChatServer, choice, completion, dripping_server, unused_port
from untrusted import KEY, PROMPT, asked, both, refuses_too_large_a_body, refuses_too_many_values

from rfx_agent import ChatModelSampler, Recovery, RetryBudget, SampleRequest
from rfx_agent.codec import dump
from rfx_agent.errors import SamplerError, SamplerTimeout
from rfx_agent.records import SampleResult
from rfx_agent.samplers import http_client
from rfx_agent.samplers.chat.connected import connected
from rfx_agent.samplers.openai.secrets import spellings
from rfx_agent.testing import ScriptedVerifier

langchain_openai = pytest.importorskip("langchain_openai")


def of(url: str, **options: Any) -> ChatModelSampler:
    given = {"model": "fake", "base_url": url, "api_key": KEY, "max_retries": 0, "timeout": 5} | options
    return ChatModelSampler(langchain_openai.ChatOpenAI(**given))


@both
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(status: int, how: str) -> None:
    with (
        ChatServer(lambda *_: Answer(body=completion(choice("7")))) as other,
        ChatServer(lambda *_: Answer(status, {}, {"Location": f"{other.base_url}/chat/completions"})) as server,
        pytest.raises(SamplerError, match=str(status)) as raised,
    ):
        asked(of(server.base_url), how)
    assert (len(server.bodies), len(other.bodies)) == (1, 0)
    assert raised.value.calls == 1


LOST = {
    "too late": lambda: Answer(body=completion(choice("7")), delay=1.5),
    "cut": lambda: Answer(body=completion(choice("7")), cut=10),
}


@both
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("kind", LOST)
def test_each_try_that_was_lost_is_charged(kind: str, times: int, how: str) -> None:
    def reply(_: dict[str, Any], i: int) -> Answer:
        return LOST[kind]() if i < times else Answer(body=completion(choice("it is 7")))

    with ChatServer(reply) as server:
        made = asked(of(server.base_url, timeout=0.6, max_retries=2), how)
    assert (len(server.bodies), made.usage.calls) == (times + 1, times + 1)
    assert made.usage.completion_tokens == 3 + 20 * times
    assert any("lost on its way" in note for note in made.notes)


@both
@pytest.mark.parametrize("answer", [
    Answer(body=b"<html/>", headers={"Content-Type": "text/html"}),
    Answer(body={"choices": []}),
    Answer(body=completion(choice("7")) | {"usage": [7]}),
], ids=["html", "no choice", "usage a list"])  # fmt: skip
def test_an_answer_that_langchain_cannot_read_is_charged(answer: Answer, how: str) -> None:
    with ChatServer(lambda *_: answer) as server, pytest.raises(SamplerError) as raised:
        asked(of(server.base_url), how)
    assert (raised.value.calls, raised.value.lost) == (1, 1)


@both
@pytest.mark.parametrize("status", [401, 429, 503])
def test_a_status_that_did_no_work_costs_nothing(status: int, how: str) -> None:
    with (
        ChatServer(lambda *_: Answer(status, {}, {"Retry-After": "0"})) as server,
        pytest.raises(SamplerError) as raised,
    ):
        asked(of(server.base_url, max_retries=1), how)
    assert (raised.value.calls, raised.value.lost) == (len(server.bodies), 0)


@both
def test_one_lost_draw_of_several_is_charged(how: str) -> None:
    def reply(_: dict[str, Any], i: int) -> Answer:
        return Answer(body=completion(choice("it is 7")), delay=1.5 if i == 0 else 0.0)

    with ChatServer(reply) as server:
        made = asked(of(server.base_url, timeout=0.6), how, n=3)
    assert (len(made.rollouts), made.usage.calls) == (2, 3)
    assert made.usage.completion_tokens == 2 * 3 + 20


@both
def test_where_nobody_listens_nothing_is_charged(how: str) -> None:
    with pytest.raises(SamplerError) as raised:
        asked(of(f"http://127.0.0.1:{unused_port()}/v1", max_retries=1), how)
    assert (raised.value.calls, raised.value.lost) == (0, 0)


@both
def test_an_answer_that_drips_ends_in_time(how: str) -> None:
    before = time.monotonic()
    with (
        ChatServer(lambda *_: Answer(body=completion(choice("7")), pause=0.05)) as server,
        pytest.raises(SamplerTimeout),
    ):
        asked(of(server.base_url, timeout=0.4), how)
    with dripping_server() as url, pytest.raises(SamplerTimeout):
        asked(of(f"{url}/v1", timeout=0.4), how)
    assert time.monotonic() - before < 6


@both
def test_a_body_that_is_too_large_is_not_read_to_its_end(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses_too_large_a_body(lambda server: of(server.base_url), how, monkeypatch)
    large = json.dumps(completion(choice("x" * 2**21))).encode()
    # Of an error only the beginning is read, and less of it is said.
    with ChatServer(lambda *_: Answer(502, large)) as server, pytest.raises(SamplerError, match="502") as caught:
        asked(of(server.base_url), how)
    assert len(str(caught.value)) < 1_000


@both
def test_a_body_of_too_many_values_is_not_read_to_its_end(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses_too_many_values(lambda server: of(server.base_url), how, monkeypatch)


@both
def test_a_key_that_is_echoed_reaches_nobody(how: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    told = " ".join(spellings(KEY, least=8))
    for answer in (
        Answer(401, f"no such key: {told}".encode(), reason=KEY),
        Answer(401, {"error": {"message": told}}),
        Answer(200, completion(choice(f"your key is {told}", finish_reason=KEY), name=KEY)),
        Answer(307, {}, {"Location": f"/v1/x?key={KEY}"}),
    ):
        events: list[Any] = []
        with ChatServer(lambda *_, answer=answer: answer) as server:
            sampler = of(server.base_url, default_headers={"X-Token": KEY})
            recovery = Recovery(sampler, ScriptedVerifier(["7"]), budget=RetryBudget(samples=2), on_event=events.append)
            case = recovery.run("3 + 4?") if how == "sync" else asyncio.run(recovery.arun("3 + 4?"))
            told_of = json.dumps(dump(case)) + repr(events) + caplog.text
            try:
                asked(sampler, how)
            except SamplerError as error:
                told_of += "".join(traceback.format_exception(error))
        assert not [text for text in spellings(KEY, least=8) if text in told_of], answer.status


def test_event_loops_do_not_share_connections() -> None:
    with ChatServer(lambda *_: Answer(body=completion(choice("7")))) as server:
        sampler = of(server.base_url)
        for _ in range(3):
            assert asked(sampler, "async", n=2).rollouts


def test_connections_that_somebody_chose_stay() -> None:
    given = {"model": "fake", "api_key": KEY, "base_url": "http://127.0.0.1/v1"}
    chosen = [
        {"http_client": openai.DefaultHttpxClient()},
        {"http_async_client": openai.DefaultAsyncHttpxClient()},
        {"http_socket_options": ()},
        {"openai_proxy": "http://127.0.0.1:1"},
    ]
    for more in chosen:
        model = langchain_openai.ChatOpenAI(**given, **more)
        assert connected(model, asynchronous=False) is model
    model = langchain_openai.ChatOpenAI(**given)
    model.client = object()  # somebody's own
    assert connected(model, asynchronous=False) is model


def test_a_copy_keeps_all_but_the_connections() -> None:
    for model in (
        langchain_openai.ChatOpenAI(
            model="m", api_key=KEY, base_url="http://a/v1", timeout=7, max_retries=5, default_headers={"X-A": "b"}
        ),
        langchain_openai.AzureChatOpenAI(
            azure_deployment="d", azure_endpoint="http://a", api_version="1", api_key=KEY, timeout=7, max_retries=5
        ),
    ):
        made: Any = connected(model, asynchronous=False)
        assert made is not model
        assert type(made.root_client) is type(model.root_client)
        for name in ("base_url", "api_key", "timeout", "max_retries", "default_query"):
            assert getattr(made.root_client, name) == getattr(model.root_client, name), name
        assert made.root_client.default_headers.get("X-A") == model.root_client.default_headers.get("X-A")
        assert made.model_dump() == model.model_dump()
    endless: Any = connected(langchain_openai.ChatOpenAI(model="m", api_key=KEY), asynchronous=False)
    assert endless.root_client.timeout == openai.DEFAULT_TIMEOUT


@both
def test_a_client_that_was_made_with_ours_is_bounded_and_charged(how: str) -> None:
    def reply(_: dict[str, Any], i: int) -> Answer:
        late = Answer(body=completion(choice("7")), delay=1.5)
        return (late, Answer(body=completion(choice("it is 7"))), Answer(307, {}, {"Location": "/elsewhere"}))[i]

    async def all_on_one_loop(sampler: ChatModelSampler) -> SampleResult:
        made = await sampler.asample(SampleRequest(PROMPT, max_tokens=20))
        with pytest.raises(SamplerError, match="307"):
            await sampler.asample(SampleRequest(PROMPT, max_tokens=20))
        return made

    with ChatServer(reply) as server:
        own = {"http_client": http_client(), "http_async_client": http_client(asynchronous=True)}
        sampler = of(server.base_url, timeout=0.6, max_retries=1, **own)
        if how == "async":
            made = asyncio.run(all_on_one_loop(sampler))
        else:
            made = asked(sampler, how)
            with pytest.raises(SamplerError, match="307"):
                asked(sampler, how)
    assert made.usage.completion_tokens == 3 + 20
    assert made.usage.calls == 2
