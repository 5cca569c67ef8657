"""The OpenAI sampler against servers that are broken, that lie, or that want what is not theirs."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import os
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import openai
import pytest
from servers import Answer, ChatServer, choice, completion, dripping_server, entry, unused_port
from untrusted import KEY, PROMPT, asked, both, refuses_too_large_a_body, refuses_too_many_values

from rfx_agent import (
    MemoryStore,
    OpenAISampler,
    Recovery,
    RetryBudget,
    SampleRequest,
    SharedBudget,
    Window,
)
from rfx_agent.codec import dump
from rfx_agent.errors import ConfigError, SamplerError, SamplerTimeout
from rfx_agent.fence import visible
from rfx_agent.records import SampleResult, Usage
from rfx_agent.samplers.openai.provider_errors import map_error, words_of
from rfx_agent.samplers.openai.rows import read_table
from rfx_agent.samplers.openai.secrets import spellings
from rfx_agent.samplers.refusals import refused_parameter
from rfx_agent.testing import ScriptedVerifier

MANY_DIGITS = 7_777_777_777  # stands for more digits than Python reads as a number


def of(server: ChatServer, **options: Any) -> OpenAISampler:
    return OpenAISampler("fake", **({"base_url": server.base_url, "api_key": KEY, "max_retries": 0} | options))


# As a server may write the key in JSON: its punctuation escaped, and with what nobody sees in it.
HIDDEN = ["".join(c if c.isalnum() else f"\\u{ord(c):04X}" for c in KEY)]
HIDDEN += [f"{KEY[:6]}\\u{point}{KEY[6:]}" for point in ("200b", "00ad", "0007", "202e")]
REFUSED = "temperature is not supported by this model"
ENVELOPES = {
    "openai": {"error": {"message": REFUSED, "param": "temperature"}},
    "a list": [{"error": {"code": 400, "message": REFUSED, "status": "INVALID_ARGUMENT"}}],
    "detail": {"detail": REFUSED},
    "detail of fastapi": {
        "detail": [{"type": "extra_forbidden", "loc": ["body", "temperature"], "msg": "Extra inputs are not permitted"}]
    },
    "detail.error": {"detail": {"error": {"message": REFUSED}}},
    "error is text": {"error": REFUSED},
    "message": {"message": REFUSED, "type": "invalid_request"},
    "errors": {"errors": [{"message": REFUSED}]},
    "text": REFUSED.encode(),
    "html": f"<html><body><h1>Bad</h1><p>{REFUSED}</p></body></html>".encode(),
}


@both
@pytest.mark.parametrize("body", ENVELOPES.values(), ids=list(ENVELOPES))
def test_a_refused_parameter_is_left_out_whatever_the_envelope(body: Any, how: str) -> None:
    def reply(sent: dict[str, Any], _: int) -> Answer:
        return Answer(400, body) if "temperature" in sent else Answer(body=completion(choice("7")))

    with ChatServer(reply) as server:
        made = asked(of(server), how)
    assert [x.text for x in made.rollouts] == ["7"]
    assert len(server.bodies) == 2
    assert any("temperature" in note for note in made.notes)


def test_a_long_error_is_not_read_to_its_end() -> None:
    said = "x" * 3_000_000
    begun = time.process_time()
    assert refused_parameter(["temperature", "n", "seed"], said) is None
    map_error(OSError(said), tuple(f"key-{i}-0123456789" for i in range(5)))
    assert time.process_time() - begun < 0.5


def test_a_table_that_is_longer_than_its_text_is_not_read() -> None:
    entries = [entry("a", [("a", -0.1)])] * 200_000
    begun = time.process_time()
    tokens, table, note = read_table("it is 7", entries, None)
    assert (tokens, table) == (None, None)
    assert "200000 positions for a text of 7 bytes" in note
    assert time.process_time() - begun < 0.05


@pytest.mark.parametrize("body", [*ENVELOPES.values(), {"a": {"b": 1}}, [], 7, None, "x" * 10_000], ids=repr)
def test_the_words_of_an_error_are_the_servers_and_short(body: Any) -> None:
    said = words_of(body if not isinstance(body, bytes) else body.decode())
    assert len(said) <= 400
    assert "<" not in said


@both
def test_a_key_that_is_echoed_reaches_nobody(how: str) -> None:
    spelled = [KEY, json.dumps(KEY)[1:-1], "rk-0123456789%2Fabcdef%2Bxyz", "cmstMDEyMzQ1Njc4OS9hYmNkZWYreHl6"]
    bodies = [
        Answer(401, f"no such key: {' or '.join(spelled)}".encode()),
        Answer(401, {"detail": {"error": " or ".join(spelled)}}),
        Answer(200, {"error": {"message": " or ".join(spelled)}}),
        Answer(200, completion(choice(f"your key is {KEY}", finish_reason=KEY), name=KEY)),
        *(
            Answer(status, json.dumps(body).replace(KEY, hidden).encode())
            for hidden in HIDDEN
            for status, body in (
                (401, {"error": {"message": f"no such key: {KEY}"}}),
                (200, {"error": {"message": KEY}}),
                (200, {"choices": [{"message": KEY}, {"error": KEY}]}),
                (200, completion(choice(f"your key is {KEY}", finish_reason=KEY), name=KEY)),
            )
        ),
    ]
    for answer in bodies:
        events: list[Any] = []
        with ChatServer(lambda *_, answer=answer: answer) as server:
            sampler = of(server)
            recovery = Recovery(sampler, ScriptedVerifier(["7"]), budget=RetryBudget(samples=2), on_event=events.append)
            case = recovery.run("3 + 4?") if how == "sync" else asyncio.run(recovery.arun("3 + 4?"))
            told = json.dumps(dump(case)) + repr(events)
            try:
                asked(sampler, how)
            except SamplerError as error:
                told += f"{error!r} {error.__cause__!r} {vars(error.__cause__)}"
        assert KEY[8:] not in told, answer  # nor what stands behind a character that is written out
        told = visible(told) + visible(told.encode().decode("unicode_escape", "replace"))
        assert not [text for text in spelled[:3] if text in told], answer
        assert spelled[3].rstrip("=") not in told


def told_of(server: ChatServer, sampler: OpenAISampler, how: str) -> str:
    """All that a failing run of ``sampler`` keeps, raises and tells."""
    events: list[Any] = []
    recovery = Recovery(sampler, ScriptedVerifier(["7"]), budget=RetryBudget(samples=2), on_event=events.append)
    case = recovery.run("3 + 4?") if how == "sync" else asyncio.run(recovery.arun("3 + 4?"))
    assert server.bodies
    try:
        asked(sampler, how)
    except SamplerError as error:
        return json.dumps(dump(case)) + repr(events) + "".join(traceback.format_exception(error))
    return json.dumps(dump(case)) + repr(events)


@both
def test_no_secret_of_a_client_reaches_anybody(how: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def echo(_: dict[str, Any], i: int) -> Answer:
        return Answer(401, {"error": f"bad {server.headers[i]} {server.paths[i]}"})

    with ChatServer(echo) as server:
        given = {"base_url": server.base_url, "api_key": "unused", "max_retries": 0}
        for more in ({"default_headers": {"X-Gateway-Token": KEY}}, {"default_query": {"api-key": KEY}}):
            clients = openai.OpenAI(**given, **more), openai.AsyncOpenAI(**given, **more)
            sampler = OpenAISampler("fake", client=clients[0], async_client=clients[1])
            assert not [text for text in spellings(KEY, least=8) if text in told_of(server, sampler, how)]
        caplog.clear()  # a client that was given logs its URLs itself
        sampler = of(server, base_url=f"{server.base_url}?key={quote(KEY, safe='')}")
        told = told_of(server, sampler, how) + caplog.text
    assert not [text for text in spellings(KEY, least=8) if text in told]


@both
def test_what_stands_beside_a_status_is_neither_kept_nor_logged(how: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with ChatServer(lambda *_: Answer(401, {}, reason=KEY)) as server:
        told = told_of(server, of(server), how) + caplog.text
    assert "401" in caplog.text
    assert KEY not in told


def test_a_url_that_is_none_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match="no http or https URL") as raised:
        OpenAISampler("fake", base_url=f"htp://user:{KEY}@host/v1")
    assert KEY not in str(raised.value)


@both
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed(status: int, how: str) -> None:
    with (
        ChatServer(lambda *_: Answer(body=completion(choice("7")))) as other,
        ChatServer(lambda *_: Answer(status, {}, {"Location": f"{other.base_url}/chat/completions"})) as server,
        pytest.raises(SamplerError, match=str(status)) as raised,
    ):
        asked(of(server), how)
    assert (len(server.bodies), len(other.bodies)) == (1, 0)
    assert raised.value.calls == 1


@both
def test_a_body_that_drips_ends_in_time(how: str) -> None:
    with ChatServer(lambda *_: Answer(body=completion(choice("7")), pause=0.05)) as server:
        before = time.monotonic()
        with pytest.raises(SamplerError):
            asked(of(server, timeout=0.4), how)
    assert time.monotonic() - before < 3


@both
def test_a_head_that_drips_ends_in_time(how: str) -> None:
    with dripping_server() as url:
        before = time.monotonic()
        with pytest.raises(SamplerTimeout):
            asked(OpenAISampler("fake", base_url=f"{url}/v1", api_key=KEY, timeout=0.4, max_retries=0), how)
    assert time.monotonic() - before < 3


@both
@pytest.mark.parametrize(
    ("whole", "drip"), [(b"5;", b"a=b;"), (b"2\r\n{}\r\n0\r\n", b"X-T: a\r\n")], ids=["chunk extension", "trailer"]
)
def test_a_body_without_data_ends_in_time(whole: bytes, drip: bytes, how: str) -> None:
    with dripping_server(whole=b"Transfer-Encoding: chunked\r\n\r\n" + whole, drip=drip) as url:
        before = time.monotonic()
        with pytest.raises(SamplerTimeout):
            asked(OpenAISampler("fake", base_url=f"{url}/v1", api_key=KEY, timeout=0.4, max_retries=0), how)
    assert time.monotonic() - before < 3


@both
def test_a_body_that_is_too_large_is_not_read_to_its_end(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses_too_large_a_body(of, how, monkeypatch)


@both
def test_a_body_of_too_many_values_is_not_read_to_its_end(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses_too_many_values(of, how, monkeypatch)


@both
def test_a_compressed_body_is_read(how: str) -> None:
    body = gzip.compress(json.dumps(completion(choice("7"))).encode())
    with ChatServer(lambda *_: Answer(body=body, headers={"Content-Encoding": "gzip"})) as server:
        assert asked(of(server), how).rollouts[0].text == "7"


@both
def test_each_try_that_was_lost_is_charged(how: str) -> None:
    def reply(_: dict[str, Any], i: int) -> Answer:
        return Answer(body=completion(choice("it is 7")), delay=0.6 if i < 2 else 0.0)

    with ChatServer(reply) as server:
        made = asked(of(server, timeout=0.2, max_retries=2), how)
    assert len(server.bodies) == 3
    assert made.usage.calls == 3
    assert made.usage.completion_tokens == 3 + 2 * 20  # what came, and the cap of each of the two that did not
    assert any("lost on its way" in note for note in made.notes)


@both
def test_where_nobody_listens_nothing_is_charged(how: str) -> None:
    nobody = OpenAISampler("fake", base_url=f"http://127.0.0.1:{unused_port()}/v1", api_key=KEY, max_retries=1)
    with pytest.raises(SamplerError) as raised:
        asked(nobody, how)
    assert (raised.value.calls, raised.value.lost) == (0, 0)


@both
@pytest.mark.parametrize("status", [429, 503])
def test_a_status_that_did_no_work_costs_nothing(status: int, how: str) -> None:
    def reply(_: dict[str, Any], i: int) -> Answer:
        return Answer(status, {}, {"Retry-After": "0"}) if i < 2 else Answer(body=completion(choice("it is 7")))

    with ChatServer(reply) as server:
        made = asked(of(server, max_retries=2), how)
    assert made.usage == Usage(7, 3, 3)


@both
@pytest.mark.parametrize("status", [408, 500, 502, 504, 524])
def test_a_status_of_a_server_that_broke_off_is_charged(status: int, how: str) -> None:
    def reply(_: dict[str, Any], i: int) -> Answer:
        return Answer(status, {}, {"Retry-After": "0"}) if i < 2 else Answer(body=completion(choice("it is 7")))

    with ChatServer(reply) as server:
        made = asked(of(server, max_retries=2), how)
    assert made.usage.completion_tokens == 3 + 2 * 20
    assert made.usage.calls == 3


@both
def test_a_lost_try_is_charged_where_the_last_one_was_refused(how: str) -> None:
    def reply(_: dict[str, Any], i: int) -> Answer:
        return Answer(503, {}, {"Retry-After": "0"}) if i == 2 else Answer(body=completion(choice("7")), cut=10)

    with ChatServer(reply) as server:
        recovery = Recovery(of(server, max_retries=2), ScriptedVerifier(["7"]), budget=RetryBudget(samples=1))
        case = recovery.run("3 + 4?") if how == "sync" else asyncio.run(recovery.arun("3 + 4?"))
    assert len(server.bodies) == 3
    assert case.ledger.spent.calls == 3
    assert case.ledger.spent.tokens >= 2 * recovery.max_tokens


@both
@pytest.mark.parametrize(
    "logprobs",
    [{"content": [entry("7", [("7", -0.1)]), None]}, {"content": [{"logprob": -1}]}, {"content": "text"}, [7], "text"],
    ids=repr,
)
def test_an_unreadable_table_costs_the_table_and_not_the_answer(logprobs: Any, how: str) -> None:
    made = choice("7") | {"logprobs": logprobs}
    with ChatServer(lambda *_: Answer(body=completion(choice("7")) | {"choices": [made]})) as server:
        result = asked(of(server), how, want_logprobs=True)
    assert len(server.bodies) == 1
    assert result.rollouts[0].text == "7"
    assert result.rollouts[0].logprobs is None
    assert any("log-probabilities" in note for note in result.notes)


@both
def test_a_table_that_covers_the_thinking_too_is_dropped(how: str) -> None:
    words = ["Let", " me", " see", ": 3", " + 4", " is", " 7", ".", "7"]
    entries = [entry(word, [(word, -0.5), ("other", -1.5)]) for word in words]
    made = choice("7", entries=entries, reasoning_content="".join(words[:-1]))
    with ChatServer(lambda *_: Answer(body=completion(made))) as server:
        result = asked(of(server), how, want_logprobs=True)
    assert result.rollouts[0].logprobs is None
    assert any("begin before it" in note for note in result.notes)


def test_a_table_with_an_end_of_turn_token_stays() -> None:
    entries = [entry(word, [(word, -0.5), ("other", -1.5)]) for word in ("it is", " 7", "<|im_end|>")]
    with ChatServer(lambda *_: Answer(body=completion(choice("it is 7", entries=entries)))) as server:
        result = asked(of(server), "sync", want_logprobs=True)
    assert result.rollouts[0].logprobs is not None


@pytest.mark.parametrize("reason", [7, ["stop"], {"a": 1}, "x" * 100_000, "stop\x1b[31m"], ids=lambda x: repr(x)[:20])
def test_what_a_server_names_is_short_and_plain(reason: Any) -> None:
    with ChatServer(lambda *_: Answer(body=completion(choice("7", finish_reason=reason), name="n" * 10_000))) as server:
        (rollout,) = asked(of(server), "sync").rollouts
    assert len(rollout.finish_reason or "") <= 200
    assert "\x1b" not in (rollout.finish_reason or "")
    assert len(rollout.response_id or "") < 250


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("given", [False, True])
def test_a_child_of_a_fork_reads_none_of_its_parents_answers(given: bool) -> None:
    def reply(body: dict[str, Any], _: int) -> Answer:
        return Answer(body=completion(choice(body["messages"][0]["content"])))

    with ChatServer(reply) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key=KEY, max_retries=0, timeout=30)
        sampler = OpenAISampler("fake", client=client) if given else of(server)
        sampler.sample(SampleRequest(({"role": "user", "content": "parent"},)))

        def child(name: str) -> int:
            if (pid := os.fork()) == 0:  # what follows is the child's
                code = 1
                try:
                    texts = [
                        sampler.sample(SampleRequest(({"role": "user", "content": f"{name} {i}"},))).rollouts[0].text
                        for i in range(20)
                    ]
                    code = int(texts != [f"{name} {i}" for i in range(20)])
                finally:
                    os._exit(code)
            return pid

        pids = [child(f"child {i}") for i in range(4)]
        assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 4
        assert sampler.sample(SampleRequest(PROMPT)).rollouts[0].text == PROMPT[0]["content"]


def test_a_client_that_was_given_is_charged_for_its_retries() -> None:
    def reply(_: dict[str, Any], i: int) -> Answer:
        return Answer(body=completion(choice("it is 7")), delay=0.6 if i < 1 else 0.0)

    with ChatServer(reply) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key=KEY, timeout=0.2, max_retries=1)
        made = asked(OpenAISampler("fake", client=client), "sync")
    assert made.usage.completion_tokens == 3 + 20


def longest_gap(work: Callable[[], Awaitable[Any]]) -> float:
    """The longest time in which the event loop did not come round while ``work`` was awaited."""
    gaps: list[float] = []

    async def beat() -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.001)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    async def watched() -> None:
        beating = asyncio.create_task(beat())
        await work()
        beating.cancel()

    asyncio.run(watched())
    return max(gaps)


def test_long_tables_do_not_hold_the_event_loop() -> None:
    words = [f"w{i} " for i in range(512)]
    others = [(f"o{k}", -9.0 - k) for k in range(19)]
    entries = [entry(word, [(word, -0.1), *others]) for word in words]
    body = json.dumps(completion(choice("".join(words), entries=entries))).encode()
    with ChatServer(lambda *_: Answer(body=body)) as server:
        sampler = of(server, max_n=1)
        request = SampleRequest(PROMPT, 3, want_logprobs=True)
        asyncio.run(sampler.asample(request))  # imports, connections

        async def sampled() -> None:
            made = await sampler.asample(request)
            assert all(x.logprobs is not None for x in made.rollouts)

        async def read() -> None:
            await asyncio.sleep(0.01)
            for _ in range(3):
                json.loads(body)
            await asyncio.sleep(0.01)

        # Reading the tables takes several times as long as decoding the bodies does. The best run is without noise.
        assert min(longest_gap(sampled) for _ in range(5)) < 1.5 * min(longest_gap(read) for _ in range(5))


@both
@pytest.mark.parametrize(
    ("usage", "read", "written"),
    [
        ({"prompt_tokens": 10**9, "completion_tokens": 4 * 10**18}, 100, 20),
        ({"prompt_tokens": -5, "completion_tokens": -1}, 100, 20),
        ({"prompt_tokens": 0, "completion_tokens": 0}, 100, 20),
        ({"prompt_tokens": "many", "completion_tokens": None}, 100, 20),
        ({"prompt_tokens": True, "completion_tokens": [3]}, 100, 20),
        (["usage"], 100, 20),
        (None, 100, 20),
        ({"completion_tokens": 131_000, "completion_tokens_details": {"reasoning_tokens": 131_000}}, 100, 20),
        ({"prompt_tokens": 7, "completion_tokens": MANY_DIGITS}, 100, 20),
    ],
    ids=lambda x: repr(x)[:60],
)
def test_what_a_server_claims_is_bounded_and_nothing_is_free(usage: Any, read: int, written: int, how: str) -> None:
    made = choice("it is 7") | {"logprobs": None}
    body = json.dumps(completion(made) | {"usage": usage}).replace(str(MANY_DIGITS), "7" * 10_000).encode()
    with ChatServer(lambda *_: Answer(body=body)) as server:
        spent = asked(of(server), how).usage
    assert 0 < spent.prompt_tokens <= read
    assert 0 < spent.completion_tokens <= written


@both
def test_a_count_that_is_too_low_for_its_text_is_not_believed(how: str) -> None:
    body = completion(choice("word " * 4_000)) | {"usage": {"prompt_tokens": 30, "completion_tokens": 1}}
    with ChatServer(lambda *_: Answer(body=body)) as server:
        result = asked(of(server), how)
    assert result.usage.completion_tokens > 4_000
    assert any("too few" in note for note in result.notes)


@pytest.mark.parametrize("reason", ["max_tokens", "MAX_TOKENS", "LENGTH"])
def test_a_cap_by_another_name_is_length_and_costs_all_of_it(reason: str) -> None:
    with ChatServer(lambda *_: Answer(body=completion(choice("", finish_reason=reason)) | {"usage": None})) as server:
        (rollout,) = asked(of(server), "sync").rollouts
    assert rollout.finish_reason == "length"


@both
def test_an_honest_bill_is_not_cut(how: str) -> None:
    picture = ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/b.png"}}]},)
    usage = {"prompt_tokens": 200_000, "completion_tokens": 900, "completion_tokens_details": {"audio_tokens": 890}}
    made = choice("it is 7") | {"logprobs": None}
    with ChatServer(lambda *_: Answer(body=completion(made) | {"usage": usage})) as server:
        sampler, request = of(server), SampleRequest(picture, max_tokens=20)
        result = sampler.sample(request) if how == "sync" else asyncio.run(sampler.asample(request))
    assert result.usage == Usage(200_000, 900, 1)


@both
def test_a_cap_that_was_used_up_for_nothing_cut_the_answer(how: str) -> None:
    made = completion(choice("", finish_reason="stop")) | {"usage": {"prompt_tokens": 7, "completion_tokens": 20}}
    with ChatServer(lambda *_: Answer(body=made)) as server:
        (rollout,) = asked(of(server), how).rollouts
    assert rollout.finish_reason == "length"


def test_parts_of_a_text_may_be_plain() -> None:
    parts = ["it is ", {"type": "text", "text": "7"}]
    with ChatServer(lambda *_: Answer(body=completion(choice("7", content=parts)))) as server:
        assert asked(of(server), "sync").rollouts[0].text == "it is 7"


@both
def test_more_choices_than_were_asked_for_cost_nothing(how: str) -> None:
    made = completion(*[choice("it is 7", entries=(), finish_reason="length")] * 3, tokens=20)
    with ChatServer(lambda *_: Answer(body=made)) as server:
        result = asked(of(server), how)
    assert (len(result.rollouts), result.usage) == (1, Usage(7, 20, 1))


@both
def test_the_second_of_two_answers_to_one_request_is_nobodys(how: str) -> None:
    """It waits on the connection, and the next request, of whomever, would take it for its own answer."""
    another = json.dumps(completion(choice("another's"), name="other")).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(another)}\r\n\r\n".encode()

    def reply(_: dict[str, Any], i: int) -> Answer:
        own = json.dumps(completion(choice(f"own {i}"), name=f"own-{i}")).encode()
        return Answer(body=own + head + another, headers={"Content-Length": str(len(own))})

    with ChatServer(reply) as server:
        sampler, request = of(server, max_retries=1), SampleRequest(PROMPT, 1, 0.6, 20)

        async def three() -> list[SampleResult]:
            return [await sampler.asample(request) for _ in range(3)]

        made = [sampler.sample(request) for _ in range(3)] if how == "sync" else asyncio.run(three())
    assert all(x.rollouts[0].text.startswith("own ") for x in made)
    assert sum(x.usage.completion_tokens >= 20 for x in made) == len(server.bodies) - 3  # what it cost is charged


@pytest.mark.parametrize(("ends", "how"), [("late", "sync"), ("late", "async"), ("cancelled", "async")])
def test_a_call_that_is_given_up_is_charged_each_try_and_makes_no_other(ends: str, how: str) -> None:
    def reply(_: dict[str, Any], i: int) -> Answer:
        return Answer(body=completion(choice("7")), delay=0.8)

    with ChatServer(reply) as server:
        store = MemoryStore()
        shared = SharedBudget(store=store, limits=(Window("global", "tokens", 10**6, per="day"),))
        recovery = Recovery(
            of(server, timeout=0.3, max_retries=9),
            ScriptedVerifier(["7"]),
            shared=shared,
            budget=RetryBudget(samples=1, seconds=1.3 if ends == "late" else None),
        )

        async def arun() -> None:
            if ends == "late":
                await recovery.arun("3 + 4?", "6")
                return
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(recovery.arun("3 + 4?", "6"), 1.3)

        if how == "sync":
            recovery.run("3 + 4?", "6")
        else:
            asyncio.run(arun())
        made = len(server.bodies)
        time.sleep(2.5)
        assert len(server.bodies) == made >= 2
    (account,) = store.accounts()
    assert account.reserved == 0
    assert account.spent >= made * recovery.max_tokens
