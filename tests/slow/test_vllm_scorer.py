"""The vLLM scorer and sampler on a recorded exchange with a real server, whole and with faults put into it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from servers import Answer, unused_port
from vllm_server import Replay, plan

from rfx_agent import Recovery, Rollout, SampleRequest, SampleResult, Step, Usage
from rfx_agent.errors import ConfigError, FeatureError, SamplerError, TokenizerMismatch
from rfx_agent.evidence.features import TopLogprobs, evidence_of, token_features
from rfx_agent.records import ScoreResult
from rfx_agent.samplers.vllm.scorer import VLLMScorer, VLLMTokens, vllm_sampler
from rfx_agent.testing import ScriptedSampler, ScriptedVerifier

both = pytest.mark.parametrize("how", ["sync", "async"])
PLAN = plan()
STEP = Step(tuple(PLAN["messages"]))
K = PLAN["top_k"]
START = len(PLAN["continue"]["prefix"])


@pytest.fixture
def server() -> Iterator[Replay]:
    with Replay() as running:
        yield running


@pytest.fixture
def make(server: Replay) -> Iterator[Callable[..., VLLMScorer]]:
    made: list[Any] = []

    def one(model: str = "ancestor", *, own: bool = True, **options: Any) -> VLLMScorer:
        if own:
            made.append(VLLMTokens("specialist", base_url=server.base_url))
            options.setdefault("specialist", made[-1])
        made.append(VLLMScorer(model, **({"base_url": server.base_url, "top_k": K, "max_retries": 0} | options)))
        return made[-1]

    yield one
    for thing in made:
        thing.close()


def drawn(url: str, how: str = "sync") -> list[SampleResult]:
    """The recorded draws: two from the prompt and one from a prefix."""
    requests = [SampleRequest(STEP.messages, **PLAN[name]) for name in ("draw", "continue")]

    async def main() -> list[SampleResult]:
        async with vllm_sampler("specialist", base_url=url, top_k=K) as sampler:
            return [await sampler.asample(request) for request in requests]

    if how == "async":
        return asyncio.run(main())
    with vllm_sampler("specialist", base_url=url, top_k=K) as sampler:
        return [sampler.sample(request) for request in requests]


@pytest.fixture(scope="module")
def rollouts() -> list[Rollout]:
    with Replay() as running:
        fresh, continued = drawn(running.base_url)
    return [*fresh.rollouts, replace(continued.rollouts[0], start=START)]


def ask(scorer: VLLMScorer, given: list[Rollout], how: str = "sync") -> ScoreResult:
    return scorer.score(STEP, given) if how == "sync" else asyncio.run(scorer.ascore(STEP, given))


def same(one: Any, other: Any) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("ids", "logprobs", "taken"))


def whole(result: ScoreResult) -> list[TopLogprobs]:
    assert all(isinstance(table, TopLogprobs) for table in result.tables), result.tables
    return list(result.tables)  # type: ignore[arg-type]


# --- scoring


@both
def test_tables_are_aligned_exact_and_of_the_ancestor(make: Any, server: Replay, rollouts: Any, how: str) -> None:
    result = ask(make(), rollouts, how)
    for i, (table, rollout) in enumerate(zip(whole(result), rollouts, strict=True)):
        assert table.space == "ids"
        assert table.rollout == i
        assert table.ids.shape == (len(rollout.logprobs), K)
        assert table.taken.tolist() == rollout.logprobs.taken.tolist()
        assert table.descending
        assert not table.ragged
    # By hand, from the recorded answer: row 3 of the first rollout.
    body = next(b for path, b in server.requests if path == "/v1/completions")
    assert body["prompt"] == [[*r.prompt_ids, *r.logprobs.taken.tolist()] for r in rollouts]
    assert (body["prompt_logprobs"], body["return_token_ids"]) == (K, True)
    assert evidence_of(rollouts, result.tables).evidence == "two_model"
    assert result.notes == ()
    assert server.paths() == ["/tokenize"] * 14 + ["/v1/completions"]
    read = sum(len(ids) for ids in body["prompt"])
    assert result.usage == Usage(prompt_tokens=read, completion_tokens=len(rollouts), calls=15)


def test_rows_hold_the_most_probable_and_a_taken_token_beyond_them_is_absent(make: Any, rollouts: Any) -> None:
    tables = whole(make().score(STEP, rollouts))
    outside = [
        (table.logprobs[t], table.taken[t])
        for table in tables
        for t in range(len(table))
        if table.taken[t] not in table.ids[t]
    ]
    assert outside  # the draws at temperature 1.3 have some
    # Nothing that is there is less likely than what was left out, for each row sums to less than one and is sorted.
    assert all(np.exp(row).sum() < 1 + 1e-6 for row, _ in outside)


def test_each_way_of_batching_and_every_order_gives_the_same(make: Any, server: Replay, rollouts: Any) -> None:
    together = whole(make().score(STEP, rollouts))
    alone = whole(make(batch=1).score(STEP, rollouts[::-1]))
    for one, other in zip(together, alone[::-1], strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert np.allclose(one.logprobs, other.logprobs, atol=1e-4)
    assert sum(path == "/v1/completions" for path, _ in server.requests) == 1 + len(rollouts)


def test_the_same_features_as_transformers_on_the_same_weights(make: Any, rollouts: Any) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from rfx_agent.samplers.transformers import CausalModel, TransformersScorer

    ancestors = whole(make().score(STEP, rollouts))
    served = whole(make("specialist").score(STEP, rollouts))
    inside = whole(TransformersScorer(CausalModel("smollm2-135m"), top_k=K).score(STEP, rollouts))
    for one, other, ancestor in zip(served, inside, ancestors, strict=True):
        found = [token_features(specialist, ancestor) for specialist in (one, other)]
        for field in fields(found[0]):
            gaps = np.abs(getattr(found[0], field.name) - getattr(found[1], field.name))
            if field.name == "kl":
                # Each of the specialist's tokens that the ancestor's 20 lack counts 1000 / T times its share: at
                # temperature 1.3 that is hundreds of nats, of which float32 gives no more than six digits.
                gaps /= np.maximum(found[0].kl, 1.0)
            assert gaps.max() < 1e-3, field.name
            assert np.median(gaps) < 1e-4, field.name


def test_the_table_of_the_draw_is_the_specialists_own(make: Any, rollouts: Any) -> None:
    """Decoding and reading give the same; what vLLM lists of the taken token beyond the top K is in neither."""
    for rollout, table in zip(rollouts, whole(make("specialist").score(STEP, rollouts)), strict=True):
        for t in range(len(table)):
            there = rollout.logprobs.ids[t] >= 0
            assert there.sum() >= K - 1
            lps = dict(zip(table.ids[t].tolist(), table.logprobs[t].tolist(), strict=True))
            mine = dict(zip(rollout.logprobs.ids[t][there], rollout.logprobs.logprobs[t][there], strict=True))
            assert set(mine) <= set(lps)
            assert max(abs(lps[token] - value) for token, value in mine.items()) < 1e-4


@both
def test_ids_that_are_missing_come_from_the_servers_tokenizer(
    make: Any, server: Replay, rollouts: Any, how: str
) -> None:
    direct = whole(make().score(STEP, rollouts))
    for i, rollout in enumerate(rollouts):
        result = ask(make(own=False), [replace(rollout, prompt_ids=None)], how)
        assert np.allclose(whole(result)[0].logprobs, direct[i].logprobs, atol=1e-4)
    server.requests.clear()
    result = ask(make(own=False), [replace(rollouts[2], prompt_ids=None, logprobs=None)], how)
    assert server.paths() == ["/detokenize", "/tokenize", "/tokenize", "/v1/completions"]
    assert result.usage.calls == 4
    assert whole(result)[0].taken.tolist() == rollouts[2].logprobs.taken.tolist()


@both
def test_a_text_that_does_not_survive_is_named(make: Any, server: Replay, rollouts: Any, how: str) -> None:
    def fault(path: str, body: Any, answer: Answer) -> Answer | None:
        return replace(answer, body={"prompt": "something else"}) if path == "/detokenize" else None

    server.fault = fault
    given = [replace(rollouts[0], prompt_ids=None, logprobs=None), rollouts[1]]
    bad, good = ask(make(batch=1), given, how).tables
    assert isinstance(bad, FeatureError)
    assert bad.rollout == 0
    assert "from character 0 on" in str(bad)
    assert isinstance(good, TopLogprobs)


def test_what_has_no_positions_is_nothing_and_costs_nothing(make: Any, server: Replay, rollouts: Any) -> None:
    empty = replace(rollouts[0], logprobs=TopLogprobs.from_rows([], []))
    result = make().score(STEP, [empty, Rollout("")])
    assert result.tables == (None, None)
    assert result.usage == Usage()
    assert server.requests == []


def test_tables_by_text_cannot_be_scored(make: Any, rollouts: Any) -> None:
    texts = replace(rollouts[0], logprobs=TopLogprobs.from_rows([[("a", -0.1)]], ["a"]))
    bad, good = make(batch=1).score(STEP, [texts, rollouts[1]]).tables
    assert isinstance(bad, FeatureError)
    assert "vllm_sampler" in str(bad)
    assert isinstance(good, TopLogprobs)


# --- tokenizers


@both
@pytest.mark.parametrize("served", [True, False])
def test_a_mismatch_is_refused_before_anything_is_scored(
    make: Any, server: Replay, rollouts: Any, served: bool, how: str
) -> None:
    def fault(path: str, body: Any, answer: Answer) -> Answer | None:
        if path == "/tokenize" and body["model"] == "specialist" and "1234567890" in body["prompt"]:
            answer.body["tokens"][-1] += 1
        return None

    server.fault = fault
    scorer = make() if served else make(specialist=lambda text: [1, 2, len(text)])
    with pytest.raises(TokenizerMismatch, match="1234567890" if served else "quick brown"):
        ask(scorer, rollouts, how)
    assert "/v1/completions" not in server.paths()


@both
def test_without_the_specialists_tokenizer_its_ids_must_say_its_text(
    make: Any, server: Replay, rollouts: Any, how: str
) -> None:
    assert whole(ask(make(own=False), rollouts, how))
    assert "/detokenize" in server.paths()
    server.fault = lambda path, body, answer: (
        replace(answer, body={"prompt": "words of another tokenizer"}) if path == "/detokenize" else None
    )
    server.requests.clear()
    with pytest.raises(TokenizerMismatch, match="words of another tokenizer"):
        ask(make(own=False), rollouts, how)
    assert server.paths() == ["/detokenize"]


def test_a_server_that_cannot_decode_is_used_with_a_note(make: Any, server: Replay, rollouts: Any) -> None:
    server.fault = lambda path, body, answer: Answer(404, {}) if path == "/detokenize" else None
    result = make(own=False).score(STEP, rollouts)
    assert whole(result)
    assert result.notes == ("the tokenizers were not compared: ancestor has no /detokenize",)


def test_tokenizers_are_compared_once(make: Any, server: Replay, rollouts: Any) -> None:
    scorer = make(keep=0)
    for _ in range(2):
        scorer.score(STEP, rollouts)
    assert server.paths() == ["/tokenize"] * 14 + ["/v1/completions"] * 2


def test_a_callable_may_read_special_tokens_as_text(make: Any, server: Replay, rollouts: Any) -> None:
    ids: dict[str, list[int]] = {}
    specials = [p for p in _probes() if "<|" in p]

    def encode(text: str) -> list[int]:
        return [*ids.get(text, []), *([9] if text in specials else [])]

    def fault(path: str, body: Any, answer: Answer) -> Answer | None:
        if path == "/tokenize" and "prompt" in body:
            ids[body["prompt"]] = answer.body["tokens"]
        return None

    server.fault = fault
    with pytest.raises(SamplerError, match="not recorded"):  # it asks what those ids say, which nobody recorded
        make(specialist=encode, max_retries=0).score(STEP, rollouts)
    path, body = server.requests[-1]
    assert path == "/detokenize"
    assert body["tokens"][-1] == 9


def _probes() -> tuple[str, ...]:
    from rfx_agent.samplers.vllm.tokens import PROBES

    return PROBES


# --- answers that break their contract


def _row(choice: Any, position: int) -> Any:
    """The row of the continuation's ``position`` in the second choice."""
    return choice["prompt_logprobs"][len(choice["prompt_token_ids"]) - 24 + position]


def _set(choice: Any, position: int, value: Any) -> None:
    first = next(iter(_row(choice, position).values()))
    first["logprob"] = value


def _others(choice: Any) -> None:
    choice["prompt_token_ids"][-3] += 1


def _of_another(choice: Any) -> None:
    row = _row(choice, 6)
    token = str(choice["prompt_token_ids"][-24 + 6])
    row["49000"] = row.pop(token)


@both
@pytest.mark.parametrize(
    ("spoil", "position", "says"),
    [
        (lambda c: c.update(prompt_logprobs=None), None, "no prompt_logprobs"),
        (lambda c: c["prompt_logprobs"].__delitem__(slice(-10, None)), 14, "24 positions were asked, 14 came"),
        (lambda c: c["prompt_logprobs"].__setitem__(slice(-10, None), [None] * 10), 14, "14 came"),
        (lambda c: c["prompt_logprobs"].append(_row(c, 0)), 24, "rows for"),
        (_others, 21, "other tokens than were sent"),
        (_of_another, 6, "of another token"),
        (lambda c: _set(c, 4, math.nan), 4, "NaN"),
        (lambda c: _set(c, 4, None), 4, "NaN"),
        (lambda c: _set(c, 5, "much"), 5, "much"),
        (lambda c: _set(c, 5, 0.25), 5, "above 0"),
        (lambda c: _set(c, 2, math.nan), 2, "nan"),  # of a taken token beyond the top K
        (lambda c: _set(c, 2, 0.25), 2, "0.25"),
        (lambda c: _row(c, 3).popitem(), 3, "19 of the 20"),
        (lambda c: _row(c, 3).update({"x": {"rank": 1}}), 3, "'x'"),
        (lambda c: _row(c, 3).update({"1": 7}), 3, "not an object"),
    ],
)
def test_one_bad_answer_is_named_and_the_others_are_kept(
    make: Any, server: Replay, rollouts: Any, spoil: Any, position: int | None, says: str, how: str
) -> None:
    good = whole(make().score(STEP, rollouts))

    def fault(path: str, body: Any, answer: Answer) -> Answer | None:
        if path == "/v1/completions":
            spoil(answer.body["choices"][1])
        return None

    server.fault = fault
    scorer = make()
    result = ask(scorer, rollouts, how)
    first, bad, last = result.tables
    assert isinstance(bad, FeatureError)
    assert says in str(bad)
    assert (bad.rollout, bad.position) == (1, position)
    assert same(first, good[0])
    assert same(last, good[2])
    assert result.usage.prompt_tokens > 0
    # What was bad is asked again, and nothing else.
    server.fault = None
    server.requests.clear()
    again = ask(scorer, rollouts, how)
    assert [len(body["prompt"]) for _, body in server.requests] == [1]
    assert same(again.tables[0], good[0])
    assert np.allclose(whole(again)[1].logprobs, good[1].logprobs, atol=1e-4)


@both
@pytest.mark.parametrize("body", [{"choices": "none"}, [], {"error": {"message": "odd"}}, {"choices": [7, {}, {}]}])
def test_a_body_of_another_shape_is_an_error_of_each(make: Any, server: Replay, rollouts: Any, body: Any, how: str):
    server.fault = lambda path, asked, answer: Answer(200, body) if path == "/v1/completions" else None
    result = ask(make(), rollouts, how)
    assert [error.rollout for error in result.tables if isinstance(error, FeatureError)] == [0, 1, 2]


def test_a_choice_that_is_missing_costs_the_others_nothing(make: Any, server: Replay, rollouts: Any) -> None:
    def fault(path: str, body: Any, answer: Answer) -> Answer | None:
        if path == "/v1/completions":
            answer.body["choices"] = answer.body["choices"][2:0:-1]
        return None

    server.fault = fault
    good = [1, 2]
    result = make().score(STEP, rollouts)
    assert isinstance(result.tables[0], FeatureError)
    assert [result.tables[i].taken.tolist() for i in good] == [rollouts[i].logprobs.taken.tolist() for i in good]


# --- servers that fail


@both
def test_nobody_there_is_a_transient_sampler_error(rollouts: Any, how: str) -> None:
    url = f"http://127.0.0.1:{unused_port()}/v1"
    with VLLMScorer("m", base_url=url, max_retries=0) as scorer, pytest.raises(SamplerError) as caught:
        ask(scorer, rollouts, how)
    assert caught.value.transient
    assert caught.value.calls == 0


@both
def test_an_unknown_model_is_a_sampler_error(make: Any, rollouts: Any, how: str) -> None:
    with pytest.raises(SamplerError, match="does not exist") as caught:
        ask(make("nobody", own=False), rollouts[:1], how)
    assert (caught.value.status, caught.value.transient) == (404, False)
    assert caught.value.calls == 2  # the decoding, and the scoring


@both
def test_a_part_that_fails_is_said_and_only_it_is_asked_again(
    make: Any, server: Replay, rollouts: Any, how: str
) -> None:
    ids = [*rollouts[1].prompt_ids, *rollouts[1].logprobs.taken.tolist()]
    server.fault = lambda path, body, answer: Answer(503, {}) if body.get("prompt") == [ids] else None
    scorer = make(batch=1)
    result = ask(scorer, rollouts, how)
    bad = result.tables[1]
    assert isinstance(bad, FeatureError)
    assert (bad.rollout, bad.position) == (1, None)
    assert "503" in str(bad)
    assert isinstance(bad.__cause__, SamplerError)
    assert result.usage.calls == len(server.requests)
    server.fault = None
    server.requests.clear()
    assert len(whole(ask(scorer, rollouts, how))) == 3
    assert [body["prompt"] for _, body in server.requests] == [[ids]]


@both
def test_what_a_lost_try_had_the_server_read_is_charged(make: Any, server: Replay, rollouts: Any, how: str) -> None:
    scorer, lost = make(max_retries=1), []

    def fault(path: str, body: Any, answer: Answer) -> Answer | None:
        if path == "/v1/completions" and not lost:
            lost.append(sum(map(len, body["prompt"])))
            return replace(answer, cut=10)
        return None

    server.fault = fault
    result = ask(scorer, rollouts, how)
    assert whole(result)
    assert result.usage.prompt_tokens == 2 * lost[0]
    assert result.usage.completion_tokens == 2 * len(rollouts)
    assert any("lost on its way" in note for note in result.notes)


@both
@pytest.mark.parametrize("claim", [4 * 10**18, -5, "many", None])
def test_no_more_is_charged_than_was_sent(make: Any, server: Replay, rollouts: Any, claim: Any, how: str) -> None:
    sent = []

    def fault(path: str, body: Any, answer: Answer) -> Answer | None:
        if path != "/v1/completions":
            return None
        sent.append(sum(map(len, body["prompt"])))
        usage = {"prompt_tokens": claim, "completion_tokens": claim}
        return replace(answer, body=answer.body | {"usage": usage})

    server.fault = fault
    usage = ask(make(), rollouts, how).usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (sum(sent), len(rollouts))


@both
def test_where_nobody_answers_the_rest_is_not_asked(make: Any, server: Replay, rollouts: Any, how: str) -> None:
    server.fault = lambda path, body, answer: replace(answer, cut=0) if path == "/v1/completions" else None
    with pytest.raises(SamplerError) as caught:
        ask(make(batch=1, concurrency=1), rollouts, how)
    assert caught.value.transient
    assert caught.value.lost == 1
    assert server.paths() == ["/tokenize"] * 14 + ["/v1/completions"]
    assert caught.value.calls == 15


@both
def test_what_one_wave_gave_is_kept_when_the_next_fails(make: Any, server: Replay, rollouts: Any, how: str) -> None:
    first = [*rollouts[0].prompt_ids, *rollouts[0].logprobs.taken.tolist()]
    server.fault = lambda path, body, answer: (
        replace(answer, cut=0) if path == "/v1/completions" and body["prompt"] != [first] else None
    )
    scorer = make(batch=1, concurrency=1)
    good, *bad = ask(scorer, rollouts, how).tables
    assert isinstance(good, TopLogprobs)
    assert [(type(one), one.rollout) for one in bad] == [(FeatureError, 1), (FeatureError, 2)]
    server.fault = None
    server.requests.clear()
    assert same(ask(scorer, rollouts, how).tables[0], good)
    assert server.paths() == ["/v1/completions"] * 2


@both
def test_a_rollout_that_the_server_refuses_costs_the_others_nothing(
    make: Any, server: Replay, rollouts: Any, how: str
) -> None:
    long = replace(rollouts[1], prompt_ids=(1,) * PLAN["too_long"])
    good, bad = ask(make(own=False), [rollouts[0], long], how).tables
    assert isinstance(good, TopLogprobs)
    assert isinstance(bad, FeatureError)
    assert "maximum context length" in str(bad)
    assert sum(path == "/v1/completions" for path, _ in server.requests) == 3


@both
def test_transport_retries_are_counted(make: Any, server: Replay, rollouts: Any, how: str) -> None:
    failed = []

    def fault(path: str, body: Any, answer: Answer) -> Answer | None:
        if path == "/v1/completions" and not failed:
            failed.append(path)
            return Answer(503, {}, {"retry-after-ms": "1"})
        return None

    server.fault = fault
    result = ask(make(max_retries=1), rollouts, how)
    assert whole(result)
    assert result.usage.calls == len(server.requests) == 16


def test_the_same_rollout_twice_is_scored_once(make: Any, server: Replay, rollouts: Any) -> None:
    result = make(batch=1).score(STEP, [rollouts[0], rollouts[0]])
    assert [table.rollout for table in whole(result)] == [0, 1]
    assert sum(path == "/v1/completions" for path, _ in server.requests) == 1


# --- drawing


@both
def test_draws_carry_the_ids_of_prompt_and_tokens(server: Replay, rollouts: Any, how: str) -> None:
    fresh, continued = drawn(server.base_url, how)
    assert fresh.notes == continued.notes == ()
    answers = {len(b["messages"]): b for _, b in server.requests}
    assert answers[3]["continue_final_message"] is True
    for rollout in [*fresh.rollouts, *continued.rollouts]:
        assert rollout.logprobs is not None
        assert rollout.logprobs.space == "ids"
        assert rollout.prompt_ids
        assert len(rollout.tokens or ()) == len(rollout.logprobs)
        assert "".join(rollout.tokens or ()) == rollout.text.removeprefix(PLAN["continue"]["prefix"])
    assert continued.rollouts[0].text.startswith(PLAN["continue"]["prefix"])
    assert len(continued.rollouts[0].prompt_ids or ()) == len(fresh.rollouts[0].prompt_ids or ()) + 4
    assert "\ufffd" in fresh.rollouts[1].text  # bytes of no character, which vLLM reports as tokens without text


def _entries(answer: Answer) -> Any:
    return answer.body["choices"][1]["logprobs"]["content"]


@both
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda a: _entries(a)[5].update({"token": "token_id:7"}), "position 5 has log-probabilities of token 7"),
        (lambda a: a.body["choices"][1]["token_ids"].__setitem__(5, 7), "but token 7 was generated"),
        (lambda a: _entries(a).__delitem__(slice(9, None)), "stop after position 8 of 24 tokens"),
        (lambda a: a.body["choices"][1].update(logprobs=None), "missing"),
        (lambda a: [e.update(top_logprobs=[], logprob=-9999.0) for e in _entries(a)[9:]], "at position 9"),
        (lambda a: _entries(a)[4]["top_logprobs"][1].update(logprob=math.nan), "NaN (at position 4)"),
        (lambda a: _entries(a)[4]["top_logprobs"][1].update(logprob=None), "NaN (at position 4)"),
        (lambda a: _entries(a)[4]["top_logprobs"][1].update(logprob=2.0), "(at position 4)"),
        (lambda a: _entries(a)[4].update(top_logprobs=["x"]), "unknown shape (at position 4)"),
        (lambda a: a.body["choices"][1]["token_ids"].pop(), "24 positions for 23 tokens"),
    ],
)
def test_a_bad_choice_loses_its_table_by_name_and_the_other_keeps_its(
    server: Replay, rollouts: Any, spoil: Any, says: str, how: str
) -> None:
    def fault(path: str, body: Any, answer: Answer) -> Answer | None:
        if body.get("n"):
            spoil(answer)
        return None

    server.fault = fault
    fresh, _ = drawn(server.base_url, how)
    assert [rollout.text for rollout in fresh.rollouts] == [rollout.text for rollout in rollouts[:2]]
    good, bad = (rollout.logprobs for rollout in fresh.rollouts)
    assert bad is None
    assert same(good, rollouts[0].logprobs)
    (note,) = fresh.notes
    assert note.startswith("rollout 1: ")
    assert says in note


# --- with the engine


@both
def test_evidence_degrades_explicitly_and_only_for_the_bad_one(
    make: Any, server: Replay, rollouts: Any, how: str
) -> None:
    def fault(path: str, body: Any, answer: Answer) -> Answer | None:
        if path == "/v1/completions":
            _set(answer.body["choices"][1], 2, math.nan)  # of a taken token beyond the top K
        return None

    server.fault = fault
    case = _recover(make(), rollouts, how)
    assert case.decisions[0].evidence == "two_model"
    assert [rollout.features is not None for rollout in case.rollouts[1:4]] == [True, False, True]
    assert any("rollout 1 could not be scored" in note and "position 2" in note for note in case.notes)


@both
def test_a_server_that_is_gone_degrades_to_one_model(make: Any, server: Replay, rollouts: Any, how: str) -> None:
    server.fault = lambda path, body, answer: Answer(503, {})
    case = _recover(make(), rollouts, how)
    assert case.decisions[0].evidence == "one_model"
    assert any("ancestor could not score: SamplerError" in note for note in case.notes)


def _recover(scorer: VLLMScorer, rollouts: list[Rollout], how: str) -> Any:
    # They were recorded under a cap that cut them off; what is cut off has no features of a whole answer.
    sampler = ScriptedSampler([replace(rollout, finish_reason="stop") for rollout in rollouts], last="wrong")
    recovery = Recovery(sampler=sampler, verifier=ScriptedVerifier(["42"]), scorer=scorer, extra_samples=3)
    return recovery.run(STEP, "41") if how == "sync" else asyncio.run(recovery.arun(STEP, "41"))


# --- making one


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": " "}, "model"),
        ({"base_url": "localhost"}, "base_url"),
        ({"base_url": None}, "base_url"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 101}, "top_k is 101; give a whole number of at least 1 and at most 100"),
        ({"batch": 0}, "batch"),
        ({"concurrency": True}, "concurrency"),
        ({"timeout": -1}, "timeout"),
        ({"max_retries": 1.5}, "max_retries"),
        ({"keep": -1}, "keep"),
        ({"specialist": "Qwen"}, "specialist is 'Qwen'"),
    ],
)
def test_parameters_that_cannot_work_fail_at_once(options: dict[str, Any], says: str) -> None:
    settings = {"model": "m", "base_url": "http://127.0.0.1/v1"} | options
    with pytest.raises(ConfigError, match=says):
        VLLMScorer(settings.pop("model"), **settings)


def test_keys_and_urls_are_not_shown() -> None:
    scorer = VLLMScorer("m", base_url="http://user:secret@127.0.0.1/v1", api_key="sk-secret")
    assert "secret" not in repr(scorer) + repr(scorer._scoring.server)


@both
def test_a_closed_scorer_says_so(make: Any, rollouts: Any, how: str) -> None:
    scorer = make(own=False)
    scorer.score(STEP, rollouts)
    scorer.close()
    scorer.close()
    with pytest.raises(SamplerError, match="closed"):
        scorer.score(STEP, [replace(rollouts[0], prompt_ids=None)])
