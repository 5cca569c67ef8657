"""The OpenAI sampler against loopback servers that misbehave in the ways that real ones do."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import json
import random
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Any

import openai
import pytest
from sampler_conformance import PROMPT, SamplerConformance, ask
from servers import Answer, ChatServer, choice, completion, entry, unused_port

from rfx_agent.errors import ConfigError, SamplerError, SamplerTimeout
from rfx_agent.records import SampleRequest, Usage
from rfx_agent.samplers.openai import provider_errors as _provider_errors
from rfx_agent.samplers.openai.sampler import OpenAISampler
from rfx_agent.samplers.vllm.scorer import vllm_sampler

KEY = "sk-test-0123456789abcdef"
both = pytest.mark.parametrize("how", ["sync", "async"])


def honest(body: dict[str, Any], i: int) -> Answer:
    texts = [f"red green {j}" for j in range(body.get("n", 1))]
    return Answer(body=completion(*[_as_asked(text, body) for text in texts], name=f"c{i}"))


def _as_asked(text: str, body: dict[str, Any]) -> dict[str, Any]:
    made = choice(text)
    return made if body.get("logprobs") else made | {"logprobs": None}


def singles(body: dict[str, Any], i: int) -> Answer:
    """A server that ignores ``n``."""
    return Answer(body=completion(_as_asked("only one", body), name=f"c{i}"))


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[ChatServer, OpenAISampler]]]:
    open_: list[Any] = []

    def make(reply: Callable[[dict[str, Any], int], Answer], **options: Any) -> tuple[ChatServer, OpenAISampler]:
        server = ChatServer(reply).__enter__()
        settings = {"base_url": server.base_url, "api_key": KEY, "max_retries": 0} | options
        sampler = OpenAISampler("fake", **settings)
        open_.extend([server, sampler])
        return server, sampler

    yield make
    for one in reversed(open_):
        one.__exit__(None, None, None)


class TestConformance(SamplerConformance):
    @pytest.fixture(params=["honest", "ignores n", "no logprobs", "continues"])
    def sampler(self, request: Any, serve: Any) -> Any:
        def silent(body: dict[str, Any], i: int) -> Answer:
            return honest(body | {"logprobs": False}, i)

        def continues(body: dict[str, Any], i: int) -> Answer:
            return honest(body, i)

        reply = {"honest": honest, "ignores n": singles, "no logprobs": silent, "continues": continues}
        return serve(reply[request.param], continues_prefix=request.param == "continues")[1]

    @pytest.fixture
    def dead_sampler(self) -> Any:
        return OpenAISampler("m", base_url=f"http://127.0.0.1:{unused_port()}/v1", max_retries=0)


# --- what is sent


def test_sync_and_async_send_the_same_bodies(serve: Any) -> None:
    server, sampler = serve(
        honest, continues_prefix=True, prefix_body={"continue_final_message": True}, extra_body={"top_k": 0}
    )
    requests = [
        SampleRequest(PROMPT, n=3, temperature=0.7, max_tokens=99, seed=11),
        SampleRequest(PROMPT, want_logprobs=False),
        SampleRequest(PROMPT, prefix="Well,", seed=0),
    ]
    for request in requests:
        ask(sampler, request, "sync")
    sync, server.bodies[:] = list(server.bodies), []
    for request in requests:
        ask(sampler, request, "async")
    assert server.bodies == sync
    assert sync[0] == {
        "model": "fake",
        "messages": [dict(PROMPT[0])],
        "max_tokens": 99,
        "temperature": 0.7,
        "n": 3,
        "seed": 11,
        "logprobs": True,
        "top_logprobs": 20,
        "top_k": 0,
    }
    assert "logprobs" not in sync[1]
    assert "seed" not in sync[1]
    assert sync[2]["messages"][-1] == {"role": "assistant", "content": "Well,"}
    assert sync[2]["continue_final_message"] is True


@both
def test_a_server_that_ignores_n_is_asked_again_and_remembered(serve: Any, how: str) -> None:
    server, sampler = serve(singles)
    result = ask(sampler, SampleRequest(PROMPT, n=3, seed=5), how)
    assert len(result.rollouts) == 3
    assert result.usage == Usage(prompt_tokens=21, completion_tokens=6, calls=3)
    assert [body.get("n", 1) for body in server.bodies] == [3, 1, 1]
    assert sorted(body["seed"] for body in server.bodies) == [5, 6, 7]
    server.bodies.clear()
    ask(sampler, SampleRequest(PROMPT, n=3, seed=5), how)
    assert [body.get("n", 1) for body in server.bodies] == [1, 1, 1]
    assert sorted(body["seed"] for body in server.bodies) == [5, 6, 7]


@both
def test_a_server_that_refuses_n_is_asked_one_by_one(serve: Any, how: str) -> None:
    def reply(body: dict[str, Any], i: int) -> Answer:
        if "n" in body:
            return Answer(400, {"error": {"message": "Field 'n': Value must be between 1 and 1", "code": 400}})
        return honest(body, i)

    server, sampler = serve(reply)
    result = ask(sampler, SampleRequest(PROMPT, n=2), how)
    assert len(result.rollouts) == 2
    assert result.usage.calls == len(server.bodies) == 3


@both
def test_most_choices_per_request(serve: Any, how: str) -> None:
    server, sampler = serve(honest, max_n=2)
    result = ask(sampler, SampleRequest(PROMPT, n=5, seed=0), how)
    assert len(result.rollouts) == 5
    assert sorted((body["seed"], body.get("n", 1)) for body in server.bodies) == [(0, 2), (2, 2), (4, 1)]


@both
def test_choices_beyond_those_asked_are_dropped_and_paid_for(serve: Any, how: str) -> None:
    _, sampler = serve(lambda body, i: Answer(body=completion(choice("a b"), choice("c d"), choice("e f"))))
    result = ask(sampler, SampleRequest(PROMPT, n=2), how)
    assert [rollout.text for rollout in result.rollouts] == ["a b", "c d"]
    assert result.usage == Usage(7, 6, 1)


@both
def test_a_short_answer_is_asked_for_once_more_only(serve: Any, how: str) -> None:
    server, sampler = serve(lambda body, i: Answer(body=completion(*[choice("x")] * (2 if i == 0 else 0))))
    result = ask(sampler, SampleRequest(PROMPT, n=4), how)
    assert len(result.rollouts) == 2
    assert len(server.bodies) == 3
    assert any("2 of 4 draws did not come" in note for note in result.notes)


@both
def test_a_part_that_fails_does_not_lose_the_rest(serve: Any, how: str) -> None:
    _, sampler = serve(
        lambda body, i: honest(body, i) if i == 0 else Answer(500, {"error": {"message": "no"}}), max_n=1
    )
    result = ask(sampler, SampleRequest(PROMPT, n=3), how)
    assert len(result.rollouts) == 1
    assert result.usage.calls == 3
    assert any("2 of 3 draws did not come: InternalServerError" in note for note in result.notes)


# --- what the server refuses


@both
@pytest.mark.parametrize(
    ("parameter", "message", "note"),
    [
        ("logprobs", "logprobs is not supported by this model", "without log-probabilities"),
        ("top_logprobs", "top_logprobs must be at most 5", "without log-probabilities"),
        ("temperature", "Unsupported value: 'temperature' does not support 0.6", "own temperature"),
        ("seed", "Unknown parameter: 'seed'", "without a seed"),
        ("max_tokens", "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'", "max_completion_tokens"),
    ],
)
def test_a_refused_parameter_is_left_out_remembered_and_noted(
    serve: Any, how: str, parameter: str, message: str, note: str
) -> None:
    def reply(body: dict[str, Any], i: int) -> Answer:
        if parameter in body:
            return Answer(400, {"error": {"message": message, "param": parameter, "code": "unsupported"}})
        return honest(body, i)

    server, sampler = serve(reply)
    request = SampleRequest(PROMPT, n=2, seed=3)
    first = ask(sampler, request, how)
    assert len(first.rollouts) == 2
    assert first.usage.calls == len(server.bodies) == 2
    second = ask(sampler, request, how)
    assert len(server.bodies) == 3
    for result in (first, second):
        assert any(note in said for said in result.notes), result.notes
        assert (result.rollouts[0].temperature is None) == (parameter == "temperature")
        assert (result.rollouts[0].logprobs is None) == ("logprobs" in parameter)


def test_singles_refused_at_once_are_all_asked_again(serve: Any) -> None:
    def reply(body: dict[str, Any], i: int) -> Answer:
        return Answer(400, {"error": {"message": "no logprobs"}}) if "logprobs" in body else honest(body, i)

    server, sampler = serve(reply, max_n=1)
    result = sampler.sample(SampleRequest(PROMPT, n=3))
    assert len(result.rollouts) == 3
    assert result.usage.calls == len(server.bodies) == 6


def test_a_temperature_out_of_range_is_the_callers_error(serve: Any) -> None:
    server, sampler = serve(lambda body, i: Answer(400, {"error": {"message": "temperature: must be at most 1"}}))
    with pytest.raises(SamplerError, match="temperature") as caught:
        sampler.sample(SampleRequest(PROMPT, temperature=1.5))
    assert caught.value.status == 400
    assert not caught.value.transient
    assert len(server.bodies) == 1


# --- log-probabilities


def _one(serve: Any, made: dict[str, Any], **request: Any) -> Any:
    _, sampler = serve(lambda body, i: Answer(body=completion(made)), continues_prefix="prefix" in request)
    return sampler.sample(SampleRequest(PROMPT, **request))


def test_rows_are_as_the_server_gave_them(serve: Any) -> None:
    ids = {"8": 23, "7": 22, "": 151645, ".": 13}
    entries = [
        entry("8", [("7", -0.4), ("8", -1.2)], ids=ids),  # the taken token is not the likeliest
        entry("7", [("8", -0.1), (".", -3.0)], ids=ids),  # the taken token is not in the row: it is not added
        entry("", [("", -0.05), (".", -4.0)], ids=ids),  # end of turn: a position like any other
    ]
    result = _one(serve, choice("87", entries=entries))
    rollout = result.rollouts[0]
    assert result.notes == ()
    assert rollout.tokens == ("8", "7", "")
    assert rollout.logprobs.ids.tolist() == [[22, 23], [23, 13], [151645, 13]]
    assert rollout.logprobs.logprobs.tolist() == [[-0.4, -1.2], [-0.1, -3.0], [-0.05, -4.0]]
    assert rollout.logprobs.taken.tolist() == [23, 22, 151645]


def test_strings_are_used_where_there_are_no_ids(serve: Any) -> None:
    entries = [entry("a", [("a", -0.1), ("b", -2.0)]), entry("b", [("b", -0.1), ("a", -2.0)])]
    table = _one(serve, choice("ab", entries=entries)).rollouts[0].logprobs
    assert table.space == "tokens"
    assert table.ids[0].tolist() == table.ids[1].tolist()[::-1]
    assert table.taken.tolist() == table.ids[:, 0].tolist()


def test_tokens_that_share_a_text_keep_their_mass(serve: Any) -> None:
    same = entry("a", [("a", -0.7), ("", -1.5), ("", -2.5)])
    table = _one(serve, choice("a", entries=[same])).rollouts[0].logprobs
    assert len(set(table.ids[0].tolist())) == 3


def test_parts_of_a_character_are_told_apart_by_their_bytes(serve: Any) -> None:
    def part(raw: int, *others: int) -> dict[str, Any]:
        top = [{"token": "\ufffd", "bytes": [r], "logprob": -0.5 - r / 256} for r in (raw, *others)]
        return top[0] | {"top_logprobs": top}

    rollout = _one(serve, choice("é", entries=[part(0xC3, 0xC2), part(0xA9, 0xA8)])).rollouts[0]
    assert rollout.logprobs is not None
    assert len(set(rollout.logprobs.ids.ravel().tolist())) == 4


@pytest.mark.parametrize(
    ("made", "note"),
    [
        (choice("red green") | {"logprobs": None}, "missing"),
        (choice("red green", entries=[entry("red", [("red", -0.1)])]), "cover only 3 of 9 characters"),
        (choice("red", entries=[entry("red", [])]), "without alternatives"),
        (choice("red", entries=[entry("red", [("red", 0.5)])]), "break their contract"),
        (choice("red", entries=[entry("red", [("red", float("nan"))])]), "break their contract"),
        (
            choice("red", entries=[entry("red", [("red", -1.0), ("red", -2.0)], ids={"red": 4})]),
            "break their contract",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_noted_and_the_rollout_kept(serve: Any, made: Any, note: str) -> None:
    result = _one(serve, made)
    assert result.rollouts[0].text == made["message"]["content"]
    assert result.rollouts[0].logprobs is None
    assert any(note in said for said in result.notes), result.notes
    assert [said.partition(":")[0] for said in result.notes] == ["rollout 0"]


@pytest.mark.parametrize("broken", [float("nan"), None, 0.5, "much"])
def test_a_note_names_the_rollout_and_the_position(serve: Any, broken: Any) -> None:
    entries = [entry("a", [("a", -0.1), ("b", -2.0)]), entry("b", [("b", -0.1), ("a", -2.0)])]
    entries[1]["top_logprobs"][1]["logprob"] = broken
    made = [choice("ab"), choice("ab", entries=entries), choice("ab")]
    _, sampler = serve(lambda *_: Answer(body=completion(*made)))
    result = sampler.sample(SampleRequest(PROMPT, n=3))
    assert [rollout.logprobs is None for rollout in result.rollouts] == [False, True, False]
    (note,) = result.notes
    assert note.startswith("rollout 1: ")
    assert note.endswith("(at position 1)")


def test_a_note_on_several_rollouts_is_said_once(serve: Any) -> None:
    silent = choice("red") | {"logprobs": None}
    _, sampler = serve(lambda *_: Answer(body=completion(silent, choice("red"), silent)))
    assert sampler.sample(SampleRequest(PROMPT, n=3)).notes == ("rollouts 0, 2: log-probabilities are missing",)


def _by_id(taken: int, *row: tuple[int, float], text: str = "a") -> dict[str, Any]:
    """An entry as vLLM gives it with ``return_tokens_as_token_ids``."""
    top = [{"token": f"token_id:{one}", "bytes": list(f"token_id:{one}".encode()), "logprob": lp} for one, lp in row]
    return {"token": f"token_id:{taken}", "bytes": list(text.encode()), "logprob": -1.0, "top_logprobs": top}


def test_a_taken_token_that_took_the_place_of_a_likelier_one_is_left_out(serve: Any) -> None:
    entries = [
        _by_id(5, (5, -9.0), (6, -0.1), (7, -3.0)),  # beyond the likeliest: vLLM lists it first and cuts the row
        _by_id(7, (7, -3.0), (6, -0.1), (5, -9.0)),  # among them
        _by_id(6, (6, -0.1), (7, -3.0), (5, -9.0)),
    ]
    rollout = _one(serve, choice("aaa", entries=entries) | {"token_ids": [5, 7, 6]}).rollouts[0]
    assert rollout.tokens == ("a", "a", "a")
    assert rollout.logprobs.ids.tolist() == [[6, 7, -1], [7, 6, 5], [6, 7, 5]]
    assert rollout.logprobs.taken.tolist() == [5, 7, 6]


# --- texts


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (choice(None), ""),
        (choice(""), ""),
        (choice(None, tool_calls=[{"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]), ""),
        (choice(None, refusal="I cannot."), "I cannot."),
        (choice(None) | {"message": {"content": [{"type": "text", "text": "in "}, {"text": "parts"}]}}, "in parts"),
    ],
)
def test_texts_that_are_legitimate(serve: Any, made: Any, text: str) -> None:
    result = _one(serve, made, want_logprobs=False)
    assert [rollout.text for rollout in result.rollouts] == [text]


def test_an_empty_completion_has_nothing_missing(serve: Any) -> None:
    assert _one(serve, choice("")).notes == ()


@pytest.mark.parametrize("content", [" 4", "2 + 2 = 4"])
def test_a_prefix_is_kept_once_whether_or_not_the_server_repeats_it(serve: Any, content: str) -> None:
    made = choice(content, entries=[entry(" 4", [(" 4", -0.1)])])
    result = _one(serve, made, prefix="2 + 2 =")
    assert result.rollouts[0].text == "2 + 2 = 4"
    assert result.rollouts[0].tokens == (" 4",)
    assert result.notes == ()


def test_a_model_that_repeats_the_prefix_itself_is_quoted(serve: Any) -> None:
    made = choice("so so", entries=[entry("so", [("so", -0.1)]), entry(" so", [(" so", -0.1)])])
    assert _one(serve, made, prefix="so").rollouts[0].text == "soso so"


# --- usage


def _usage(serve: Any, *choices: dict[str, Any], reported: int | None, **options: Any) -> Any:
    prompt = None if reported is None else 7
    body = completion(*choices, tokens=reported, prompt=prompt)
    _, sampler = serve(lambda *_: Answer(body=body), **options)
    return sampler.sample(SampleRequest(PROMPT, n=len(choices), max_tokens=50, want_logprobs="usage_of" not in options))


def test_token_entries_beat_a_count_of_one_choice(serve: Any) -> None:
    result = _usage(serve, choice("a b c"), choice("d e"), choice("f"), reported=3)  # as llama.cpp reports
    assert result.usage == Usage(7, 6, 1)
    assert [rollout.usage for rollout in result.rollouts] == [Usage(7, 3, 1), Usage(0, 2), Usage(0, 1)]


def test_hidden_tokens_are_counted_up_to_the_cap(serve: Any) -> None:
    body = completion(choice("a b"), tokens=400)
    body["usage"]["completion_tokens_details"] = {"reasoning_tokens": 398}
    _, sampler = serve(lambda *_: Answer(body=body))
    result = sampler.sample(SampleRequest(PROMPT, max_tokens=450, want_logprobs=True))
    assert result.usage == Usage(7, 400, 1) == result.rollouts[0].usage
    assert _usage(serve, choice("a b"), reported=400).usage == Usage(7, 50, 1)  # more than the cap lets it write


def _mute(text: str, **more: Any) -> dict[str, Any]:
    return choice(text, **more) | {"logprobs": None}


def test_a_count_of_one_choice_is_recognised_without_entries(serve: Any) -> None:
    # Two completions cut at 50 tokens cannot cost 50 together.
    result = _usage(serve, *[_mute("x" * 90, finish_reason="length")] * 2, reported=50)
    assert result.usage.completion_tokens == 100
    assert any("estimated" in note for note in result.notes)
    # 400 characters are not 20 tokens.
    assert _usage(serve, *[_mute("x" * 100)] * 4, reported=20).usage.completion_tokens == 80


def test_a_plausible_count_is_trusted_and_shared_out(serve: Any) -> None:
    result = _usage(serve, _mute("x" * 39), _mute("x" * 119), reported=40)
    assert result.usage.completion_tokens == 40
    assert [rollout.usage.completion_tokens for rollout in result.rollouts] == [10, 30]
    assert not any("estimated" in note for note in result.notes)


def test_what_a_server_counts_can_be_told(serve: Any) -> None:
    result = _usage(serve, _mute("ab cd"), _mute("ef"), reported=2, usage_of="choice")
    assert result.usage.completion_tokens == 4


def test_no_usage_is_estimated_and_noted(serve: Any) -> None:
    result = _usage(serve, _mute("x" * 30), reported=None)
    assert result.usage.completion_tokens == 10
    assert result.usage.prompt_tokens > 10
    assert sum("estimated" in note for note in result.notes) == 2


@both
def test_transport_retries_are_calls(serve: Any, how: str) -> None:
    def reply(body: dict[str, Any], i: int) -> Answer:
        if i < 2:
            return Answer(503, {"error": {"message": "busy"}}, {"retry-after-ms": "1"})
        return honest(body, i)

    server, sampler = serve(reply, max_retries=2)
    assert ask(sampler, SampleRequest(PROMPT), how).usage.calls == len(server.bodies) == 3


# --- transport retries


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the SDK means to wait before each retry; it does not."""
    from openai._base_client import BaseClient

    seconds: list[float] = []
    meant = BaseClient._calculate_retry_timeout

    def told(self: Any, *args: Any, **kwargs: Any) -> float:
        seconds.append(meant(self, *args, **kwargs))
        return 0.0

    monkeypatch.setattr(BaseClient, "_calculate_retry_timeout", told)
    return seconds


def _dated(value: str) -> str:
    """``"in 90"`` as the date in so many seconds from now; tests may run long after they were collected."""
    return formatdate(time.time() + float(value[3:]), usegmt=True) if value.startswith("in ") else value


@both
@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"retry-after-ms": "250"}, 0.25, 0.25),
        ({"retry-after": "3"}, 3, 3),
        ({"retry-after": "1.5"}, 1.5, 1.5),
        ({"retry-after": "7", "retry-after-ms": "20"}, 0.02, 0.02),
        ({"retry-after": "120"}, 120, 120),
        ({"retry-after": "in 90"}, 30, 90),
        # What is no time to come is as if it were not there: 0.5 s, less up to a quarter.
        ({"retry-after": "0"}, 0.375, 0.5),
        ({"retry-after": "-5"}, 0.375, 0.5),
        ({"retry-after-ms": "-5"}, 0.375, 0.5),
        ({"retry-after": "soon"}, 0.375, 0.5),
        ({"retry-after": "nan"}, 0.375, 0.5),
        ({"retry-after": "in -90"}, 0.375, 0.5),
        ({}, 0.375, 0.5),
    ],
)
def test_retry_after_is_waited_for_and_each_try_is_a_call(
    serve: Any, waits: list[float], how: str, headers: dict[str, str], least: float, most: float
) -> None:
    sent = {name: _dated(value) for name, value in headers.items()}
    slow = Answer(429, {"error": {"message": "slow down"}}, sent)
    server, sampler = serve(lambda body, i: honest(body, i) if i else slow, max_retries=2)
    result = ask(sampler, SampleRequest(PROMPT), how)
    assert result.usage.calls == len(server.bodies) == 2
    assert len(waits) == 1
    assert least <= waits[0] <= most


@both
@pytest.mark.parametrize("value", ["121", "3600", "1e999", "in 600"])
def test_a_server_that_wants_too_long_a_wait_is_not_asked_again(
    serve: Any, waits: list[float], how: str, value: str
) -> None:
    slow = Answer(429, {"error": {"message": "slow down"}}, {"retry-after": _dated(value)})
    server, sampler = serve(lambda *_: slow, max_retries=2)
    with pytest.raises(SamplerError, match="RateLimitError") as caught:
        ask(sampler, SampleRequest(PROMPT), how)
    assert (caught.value.calls, len(server.bodies), waits) == (1, 1, [])
    assert (caught.value.status, caught.value.transient) == (429, True)


def _lost(body: dict[str, Any], i: int) -> Answer:
    raise ConnectionAbortedError  # the server closes the connection without a word


def _fault(status: int) -> Callable[[dict[str, Any], int], Answer]:
    return lambda body, i: Answer(status, {"error": {"message": "no"}})


_FAULTS = {
    "lost": _lost,
    "cut": lambda body, i: Answer(body=completion(choice("red")), cut=40),
    "silent": lambda body, i: Answer(body=completion(choice("late")), delay=0.6),
    **{str(status): _fault(status) for status in (408, 409, 429, 500, 502, 503, 504, 529)},
}


@both
@pytest.mark.parametrize("fault", _FAULTS)
def test_a_fault_that_passes_is_retried_and_counted(serve: Any, waits: list[float], how: str, fault: str) -> None:
    faults, patience = (1, 0.3) if fault == "silent" else (2, 30)
    server, sampler = serve(
        lambda body, i: honest(body, i) if i >= faults else _FAULTS[fault](body, i), max_retries=2, timeout=patience
    )
    result = ask(sampler, SampleRequest(PROMPT), how)
    assert result.rollouts[0].text == "red green 0"
    assert result.usage.calls == len(server.bodies) > faults


@both
@pytest.mark.parametrize("fault", _FAULTS)
def test_a_fault_that_stays_is_a_transient_error(serve: Any, waits: list[float], how: str, fault: str) -> None:
    patience = 0.3 if fault == "silent" else 30
    server, sampler = serve(lambda body, i: _FAULTS[fault](body, i), max_retries=1, timeout=patience)
    with pytest.raises(SamplerError) as caught:
        ask(sampler, SampleRequest(PROMPT), how)
    assert isinstance(caught.value, SamplerTimeout) == (fault == "silent")
    assert caught.value.transient
    assert caught.value.status == (int(fault) if fault.isdigit() else None)
    assert caught.value.calls == len(server.bodies) == 2
    assert isinstance(caught.value.__cause__, openai.APIError)


@both
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("retries", [0, 2])
def test_tries_that_met_nobody_are_not_counted(waits: list[float], how: str, retries: int, given: bool) -> None:
    """Of a client that was given, only the last is known; those before it may have met a server that died since."""
    options: dict[str, Any] = {"base_url": f"http://127.0.0.1:{unused_port()}/v1", "max_retries": retries}
    if given:
        options |= {"api_key": "unused"}
        clients = {"client": openai.OpenAI(**options), "async_client": openai.AsyncOpenAI(**options)}
    sampler = OpenAISampler("m", **clients) if given else OpenAISampler("m", **options)
    with pytest.raises(SamplerError, match="ConnectError") as caught:
        ask(sampler, SampleRequest(PROMPT), how)
    assert caught.value.calls == (retries if given else 0)
    assert caught.value.lost == (retries if given else 0)
    assert caught.value.transient


def test_the_most_calls_of_a_draw_are_its_retries_twice(serve: Any) -> None:
    server, sampler = serve(honest)
    assert sampler.max_calls == 2
    assert OpenAISampler("m", base_url=server.base_url).max_calls == 6
    assert vllm_sampler("m", base_url=server.base_url, max_retries=4).max_calls == 10
    client = openai.OpenAI(base_url=server.base_url, api_key=KEY, max_retries=3)
    other = openai.AsyncOpenAI(base_url=server.base_url, api_key=KEY, max_retries=1)
    assert OpenAISampler("m", client=client, max_retries=0).max_calls == 8
    assert OpenAISampler("m", client=client, async_client=other).max_calls == 8
    assert OpenAISampler("m", async_client=other).max_calls == 4
    client.max_retries = 0
    assert OpenAISampler("m", client=client).max_calls == 2
    client.close()


@pytest.mark.parametrize("seed", range(12))
def test_no_draws_take_more_calls_than_that(serve: Any, waits: list[float], seed: int) -> None:
    """Whatever mix of faults, shortfalls and ``n`` ignored: the bound holds, and ``calls`` is what the server saw."""
    for n, max_n, how in itertools.product([1, 3], [None, 1, 2], ["sync", "async"]):
        rng = random.Random(f"{seed} {n} {max_n}")  # noqa: S311  # a test's dice
        lock = threading.Lock()

        def reply(body: dict[str, Any], i: int, rng: Any = rng, lock: Any = lock) -> Answer:
            with lock:
                what = rng.choice(["honest", "single", "none", "lost", "cut", "503", "503", "429"])
            made = {"honest": honest, "single": singles, "none": lambda *_: Answer(body=completion())} | _FAULTS
            return made[what](body, i)

        server, sampler = serve(reply, max_retries=1, max_n=max_n)
        try:
            calls = ask(sampler, SampleRequest(PROMPT, n=n), how).usage.calls
        except SamplerError as error:
            calls = error.calls
        assert calls == len(server.bodies) <= n * sampler.max_calls == 4 * n


@pytest.mark.parametrize("n", [1, 3])
def test_refused_parameters_come_on_top_once(serve: Any, n: int) -> None:
    """The worst server: it refuses every parameter in its turn, and gives nothing when it is asked right."""
    messages = {
        "n": "'n' must be 1",
        "logprobs": "no logprobs",
        "seed": "unknown parameter: seed",
        "temperature": "unsupported: temperature",
        "max_tokens": "unsupported: max_tokens",
    }

    def reply(body: dict[str, Any], i: int) -> Answer:
        for name, message in messages.items():
            if name in body:
                return Answer(400, {"error": {"message": message}})
        return Answer(body=completion())

    server, sampler = serve(reply)
    for refusals in (1 + 4 * n if n > 1 else 4, 0):
        server.bodies.clear()
        with pytest.raises(SamplerError, match="no choice, twice") as caught:
            sampler.sample(SampleRequest(PROMPT, n=n, seed=1))
        assert caught.value.calls == len(server.bodies) == n * sampler.max_calls + refusals


# --- errors


@both
def test_an_error_counts_its_calls(serve: Any, how: str) -> None:
    busy = Answer(429, {"error": {"message": "slow down"}}, {"retry-after-ms": "1"})
    server, sampler = serve(lambda *_: busy, max_retries=1)
    with pytest.raises(SamplerError) as caught:
        ask(sampler, SampleRequest(PROMPT, n=3), how)
    assert caught.value.calls == len(server.bodies) == 2
    assert caught.value.status == 429
    assert caught.value.transient
    assert isinstance(caught.value.__cause__, openai.RateLimitError)


@both
def test_a_used_up_quota_is_not_transient(serve: Any, how: str) -> None:
    _, sampler = serve(lambda *_: Answer(429, {"error": {"message": "no more", "code": "insufficient_quota"}}))
    with pytest.raises(SamplerError) as caught:
        ask(sampler, SampleRequest(PROMPT), how)
    assert not caught.value.transient


@both
@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Answer(body=b'{"id": "x", "choices": [{"ind'), "not JSON"),
        (Answer(body=b"<html>busy</html>"), "not JSON"),
        (Answer(body=["no"]), "not a JSON object"),
        (Answer(body={"id": "x"}), "no list of choices"),
        (Answer(body={"error": {"message": "upstream died", "code": 502}}), "upstream died"),
        (Answer(body={"choices": [{"index": 0}]}), "no message"),
        (Answer(body={"choices": [{"message": {"content": "Error!"}, "finish_reason": "error"}]}), "no choice"),
        (Answer(body=completion(choice("red")), cut=40), "Error"),
    ],
)
def test_a_body_that_is_no_completion_is_an_error(serve: Any, how: str, answer: Answer, says: str) -> None:
    _, sampler = serve(lambda *_: answer)
    with pytest.raises(SamplerError, match=says) as caught:
        ask(sampler, SampleRequest(PROMPT), how)
    assert caught.value.calls >= 1


@both
def test_a_silent_server_is_a_timeout(serve: Any, how: str) -> None:
    _, sampler = serve(lambda *_: Answer(body=completion(choice("late")), delay=0.6), timeout=0.1)
    with pytest.raises(SamplerTimeout) as caught:
        ask(sampler, SampleRequest(PROMPT), how)
    assert caught.value.transient
    assert caught.value.calls == 1


@both
def test_a_refused_connection_made_no_call(how: str) -> None:
    sampler = OpenAISampler("m", base_url=f"http://127.0.0.1:{unused_port()}/v1", max_retries=0)
    with pytest.raises(SamplerError) as caught:
        ask(sampler, SampleRequest(PROMPT), how)
    assert caught.value.calls == 0
    assert caught.value.transient


@both
def test_keys_are_nowhere(serve: Any, how: str) -> None:
    echo = Answer(401, {"error": {"message": f"Incorrect API key provided: {KEY}", "code": "invalid_api_key"}})
    server, sampler = serve(lambda *_: echo)
    with pytest.raises(SamplerError, match="AuthenticationError") as caught:
        ask(sampler, SampleRequest(PROMPT), how)
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    shown = "".join(traceback.format_exception(caught.value))
    assert KEY not in shown + repr(caught.value) + repr(caught.value.__cause__) + repr(sampler)
    assert "[key]" in str(caught.value)


def _all_openai_exceptions() -> set[type[BaseException]]:
    for module in ("openai.lib.azure", "openai._response", "openai._extras._common", "openai.lib._old_api"):
        importlib.import_module(module)
    named = {thing for thing in list(vars(openai._exceptions).values()) if isinstance(thing, type)}
    found = {thing for thing in named if issubclass(thing, BaseException)}
    found |= {
        thing for thing in list(vars(openai).values()) if isinstance(thing, type) and issubclass(thing, Exception)
    }
    queue = [openai.OpenAIError]
    for base in queue:
        queue += base.__subclasses__()
    # Other packages derive from these.
    return {error for error in found | set(queue) if error.__module__.partition(".")[0] == "openai"}


def test_every_exception_of_the_sdk_is_mapped() -> None:
    unmapped = {error.__name__ for error in _all_openai_exceptions()} - set(_provider_errors._KINDS)
    assert not unmapped, f"list these in _provider_errors._KINDS: {sorted(unmapped)}"


def test_an_unknown_exception_is_mapped_by_its_base() -> None:
    class Newer(openai.APIConnectionError):
        def __init__(self) -> None:
            Exception.__init__(self, "gone")

    mapped = _provider_errors.map_error(Newer())
    assert mapped.transient
    assert "Newer: gone" in str(mapped)
    assert not _provider_errors.map_error(RuntimeError("odd")).transient


# --- clients, loops, closing


def test_a_given_client_is_used_and_left_open(serve: Any) -> None:
    server, _ = serve(honest)
    client = openai.OpenAI(base_url=server.base_url, api_key=KEY)
    with OpenAISampler("m", client=client) as sampler:
        assert sampler.sample(SampleRequest(PROMPT)).rollouts
        assert asyncio.run(sampler.asample(SampleRequest(PROMPT, seed=3))).rollouts
    assert server.bodies[1]["seed"] == 3
    assert not client.is_closed()
    client.close()


def test_an_async_client_alone_serves_the_async_side(serve: Any) -> None:
    server, _ = serve(honest)

    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key=KEY) as client:
            sampler = OpenAISampler("m", async_client=client)
            assert (await sampler.asample(SampleRequest(PROMPT))).rollouts
            with pytest.raises(ConfigError, match="client"):
                sampler.sample(SampleRequest(PROMPT))

    asyncio.run(main())


def test_the_sides_do_not_stand_in_for_each_other(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, sampler = serve(honest)
    sampler.sample(SampleRequest(PROMPT))
    monkeypatch.setattr(sampler, "sample", None)
    assert asyncio.run(sampler.asample(SampleRequest(PROMPT))).rollouts


def test_event_loops_do_not_share_connections(serve: Any) -> None:
    _, sampler = serve(honest)
    for _ in range(3):
        assert asyncio.run(sampler.asample(SampleRequest(PROMPT, n=2))).rollouts
    assert len(sampler._clients._held._loops) == 1  # those of closed loops are dropped
    threads = [threading.Thread(target=lambda: asyncio.run(sampler.asample(SampleRequest(PROMPT)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@both
def test_a_closed_sampler_says_so(serve: Any, how: str) -> None:
    _, sampler = serve(honest)
    ask(sampler, SampleRequest(PROMPT), how)
    sampler.close()
    sampler.close()
    asyncio.run(sampler.aclose())
    with pytest.raises(SamplerError, match="closed"):
        ask(sampler, SampleRequest(PROMPT), how)


def test_cancelling_stops_the_requests(serve: Any) -> None:
    _, sampler = serve(lambda body, i: Answer(body=completion(choice("late")), delay=0.5))

    async def main() -> None:
        task = asyncio.create_task(sampler.asample(SampleRequest(PROMPT, n=2)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await sampler.aclose()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": ""}, "model"),
        ({"base_url": "localhost:80"}, "base_url"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"top_logprobs": True}, "top_logprobs"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"max_retries": -1}, "max_retries"),
        ({"max_n": 0}, "max_n"),
        ({"usage_of": "all"}, "usage_of"),
        ({"prefix_body": {"a": 1}}, "continues_prefix"),
        ({"extra_body": {"n": 3}}, "extra_body sets n"),
        ({"client": object()}, "base_url"),
    ],
)
def test_parameters_that_cannot_work_fail_at_once(options: dict[str, Any], says: str) -> None:
    settings = {"model": "m", "base_url": "http://127.0.0.1/v1"} | options
    with pytest.raises(ConfigError, match=says):
        OpenAISampler(settings.pop("model"), **settings)


def test_no_key_for_openai_itself_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        OpenAISampler("gpt")


def test_fewer_than_one_draw_is_refused(serve: Any) -> None:
    _, sampler = serve(honest)
    with pytest.raises(ConfigError, match="n is 0"):
        sampler.sample(SampleRequest(PROMPT, n=0))


def test_making_a_sampler_loads_no_sdk() -> None:
    code = (
        "import sys; from rfx_agent.samplers.openai.sampler import OpenAISampler; "
        "OpenAISampler('m', base_url='http://127.0.0.1/v1'); print('openai' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False", done.stderr


def test_responses_of_one_id_are_told_apart_by_choice_only(serve: Any) -> None:
    """A cache that repeats a response repeats its id: that is left visible."""
    _, sampler = serve(lambda *_: Answer(body=completion(choice("same"), name="cached")), max_n=1)
    result = sampler.sample(SampleRequest(PROMPT, n=2))
    assert [rollout.response_id for rollout in result.rollouts] == ["cached:0", "cached:0"]
    unnamed = json.loads(json.dumps(completion(choice("x")))) | {"id": None}
    _, sampler = serve(lambda *_: Answer(body=unnamed))
    assert sampler.sample(SampleRequest(PROMPT)).rollouts[0].response_id is None


def test_counts_cover_every_request(serve: Any) -> None:
    """Whatever mix of refusals and shortfalls, ``calls`` is what the server saw."""
    for refuses_logprobs, ignores_n in itertools.product([True, False], repeat=2):

        def reply(body: dict[str, Any], i: int, r: bool = refuses_logprobs, g: bool = ignores_n) -> Answer:
            if r and "logprobs" in body:
                return Answer(400, {"error": {"message": "logprobs unsupported"}})
            return (singles if g else honest)(body, i)

        server, sampler = serve(reply)
        result = sampler.sample(SampleRequest(PROMPT, n=3))
        assert result.usage.calls == len(server.bodies)
        assert len(result.rollouts) == 3
