"""Steering by continued prefixes: the requests that go out, and a real server once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rfx_agent.errors import ConfigError, SamplerError
from rfx_agent.evidence.tables import TopLogprobs
from rfx_agent.ports import Steerer
from rfx_agent.records import Rollout, SampleRequest, SampleResult, Step, Usage
from rfx_agent.samplers.prefix import PrefixSteerer
from rfx_agent.testing import ScriptedSampler

both = pytest.mark.parametrize("how", ["sync", "async"])
STEP = Step.of("How much is 3 * 4 + 5?")
FAILED = Rollout("First 3 * 4 = 13, then 18.", junction=6, peak=14)


def scripted(*texts: str | Rollout | Exception) -> ScriptedSampler:
    return ScriptedSampler(texts, continues_prefix=True)


def steer(
    steerer: PrefixSteerer, operator: str, how: str = "sync", rollout: Rollout = FAILED, **options: Any
) -> SampleResult:
    request = SampleRequest(STEP.messages, **{"max_tokens": 50, "temperature": 0.6, "seed": 9, **options})
    if how == "sync":
        return steerer.steer(STEP, operator, rollout, request)

    async def main() -> SampleResult:
        return await steerer.asteer(STEP, operator, rollout, request)

    return asyncio.run(main())


def part(text: str, reason: str, tokens: int, prefix: str = "") -> Rollout:
    return Rollout(prefix + text, finish_reason=reason, usage=Usage(7, tokens, 1))


@both
def test_local_temp_lifts_the_first_tokens_only(how: str) -> None:
    sampler = scripted(part("3 * 4 = 12,", "length", 8, "First "), part(" then 17.", "stop", 5, "First 3 * 4 = 12,"))
    result = steer(PrefixSteerer(sampler, lifted_temperature=1.3, window_tokens=8), "local_temp", how)
    hot, rest = sampler.requests
    assert hot == SampleRequest(STEP.messages, 1, 1.3, 8, 9, "First ")
    assert rest == SampleRequest(STEP.messages, 1, 0.6, 42, 10, "First 3 * 4 = 12,")
    (rollout,) = result.rollouts
    assert rollout.text == "First 3 * 4 = 12, then 17."
    assert (rollout.remedy, rollout.temperature, rollout.finish_reason) == ("local_temp", 0.6, "stop")
    assert (rollout.start, rollout.junction, rollout.peak) == (6, 6, None)
    assert rollout.usage == result.usage == Usage(14, 13, 2)


@both
def test_draws_go_on_on_their_own_and_one_that_ended_is_whole(how: str) -> None:
    sampler = scripted(
        part("a", "length", 4, "First "), part("b", "stop", 2, "First "), part("c", "length", 4, "First "),
        part("1", "stop", 1, "First a"), part("2", "stop", 1, "First c"),
    )  # fmt: skip
    result = steer(PrefixSteerer(sampler, window_tokens=4), "local_temp", how, n=3)
    assert [rollout.text for rollout in result.rollouts] == ["First a1", "First b", "First c2"]
    assert [request.prefix for request in sampler.requests] == ["First ", "First a", "First c"]
    assert [request.seed for request in sampler.requests] == [9, 12, 14]
    assert result.usage == Usage(35, 12, 5)


def test_a_lost_draw_costs_the_others_nothing() -> None:
    heads = [part("a", "length", 4, "First "), part("c", "length", 4, "First ")]
    sampler = scripted(*heads, SamplerError("down", calls=2), part("2", "stop", 1, "First c"))
    result = steer(PrefixSteerer(sampler, window_tokens=4), "local_temp", n=2)
    assert [rollout.text for rollout in result.rollouts] == ["First c2"]
    assert result.usage == Usage(21, 9, 5)
    assert any("draw 0 was lost" in note and "down" in note for note in result.notes)
    sampler = scripted(heads[0], SamplerError("down", calls=2))
    with pytest.raises(SamplerError, match="down") as caught:
        steer(PrefixSteerer(sampler, window_tokens=4), "local_temp")
    assert (caught.value.calls, caught.value.lost) == (3, 1)  # what the first part cost was spent for nothing


def test_a_lost_part_is_charged() -> None:
    heads = [part("a", "length", 4, "First "), part("c", "length", 4, "First ")]
    sampler = scripted(*heads, SamplerError("cut", calls=2, lost=2), part("2", "stop", 1, "First c"))
    result = steer(PrefixSteerer(sampler, window_tokens=4), "local_temp", n=2)
    read, left = 14 + 4, sampler.requests[1].max_tokens
    assert result.usage == Usage(21 + 2 * read, 9 + 2 * left, 5)


def test_the_budget_of_tokens_is_of_both_parts() -> None:
    sampler = scripted(part("abc", "length", 5, "First "))
    (rollout,) = steer(PrefixSteerer(sampler, window_tokens=8), "local_temp", max_tokens=5).rollouts
    assert [request.max_tokens for request in sampler.requests] == [5]
    assert rollout.finish_reason == "length"


@both
def test_the_branch_takes_the_ancestors_token(how: str) -> None:
    ancestor = scripted(part("2", "length", 1, "First 3 * 4 = 1"))
    sampler = scripted(part(", so 17.", "stop", 6, "First 3 * 4 = 12"), part(", 17", "stop", 3, "First 3 * 4 = 12"))
    steerer = PrefixSteerer(sampler, ancestor=ancestor)
    rollout = replace(FAILED, peak=15)
    result = steer(steerer, "sparse_steer", how, rollout, n=2)
    assert ancestor.requests == [SampleRequest(STEP.messages, 1, 0.0, 1, 9, "First 3 * 4 = 1", False)]
    assert sampler.requests == [SampleRequest(STEP.messages, 2, 0.6, 49, 9, "First 3 * 4 = 12")]
    assert [x.text for x in result.rollouts] == ["First 3 * 4 = 12, so 17.", "First 3 * 4 = 12, 17"]
    for x in result.rollouts:
        assert (x.remedy, x.start, x.junction, x.peak) == ("sparse_steer", 16, 15, 15)
    assert result.usage == Usage(21, 10, 3)
    assert result.rollouts[0].usage == Usage(14, 7, 2)
    assert result.notes == ()


def test_the_branch_says_where_nothing_changes_or_all_ends() -> None:
    same = scripted(part("1", "length", 1, FAILED.text[:14]))
    result = steer(PrefixSteerer(scripted("2."), ancestor=same), "sparse_steer")
    assert "own token" in result.notes[0]
    ends = scripted(part("", "stop", 1, FAILED.text[:14]))
    sampler = scripted()
    (rollout,) = steer(PrefixSteerer(sampler, ancestor=ends), "sparse_steer").rollouts
    assert (rollout.text, rollout.finish_reason) == (FAILED.text[:14], "stop")
    assert sampler.requests == []


def test_what_a_rollout_lacks_is_said() -> None:
    steerer = PrefixSteerer(scripted("x"), ancestor=scripted("y"))
    assert isinstance(steerer, Steerer)
    assert steerer.operators == ("local_temp", "sparse_steer")
    with pytest.raises(SamplerError, match="junction is None"):
        steer(steerer, "local_temp", rollout=Rollout("text"))
    with pytest.raises(SamplerError, match="peak is None"):
        steer(steerer, "sparse_steer", rollout=Rollout("text", junction=1))
    with pytest.raises(SamplerError, match="peak is 9"):
        steer(steerer, "sparse_steer", rollout=Rollout("text", peak=9))
    alone = PrefixSteerer(scripted("x"))
    assert alone.operators == ("local_temp",)
    with pytest.raises(SamplerError, match="sparse_steer"):
        steer(alone, "sparse_steer")


def test_a_junction_at_the_start_is_no_prefix() -> None:
    sampler = scripted(part("all anew.", "stop", 3))
    (rollout,) = steer(PrefixSteerer(sampler), "local_temp", rollout=Rollout("text", junction=0)).rollouts
    assert sampler.requests[0].prefix is None
    assert (rollout.text, rollout.start) == ("all anew.", 0)


@both
def test_only_sampler_errors(how: str) -> None:
    for broken in (SamplerError("down", calls=1), ValueError("odd"), ConfigError("no prefix")):
        with pytest.raises(SamplerError):
            steer(PrefixSteerer(scripted(broken)), "local_temp", how)
    ancestor = scripted(part("2", "length", 1, FAILED.text[:14]))
    with pytest.raises(SamplerError, match="down") as caught:
        steer(PrefixSteerer(scripted(SamplerError("down", calls=1)), ancestor=ancestor), "sparse_steer", how)
    assert caught.value.calls == 2


def test_what_cannot_steer() -> None:
    with pytest.raises(ConfigError, match="continues no prefix"):
        PrefixSteerer(ScriptedSampler(["x"]))
    with pytest.raises(ConfigError, match="ancestor 'scripted' continues no prefix"):
        PrefixSteerer(scripted("x"), ancestor=ScriptedSampler(["x"]))
    with pytest.raises(ConfigError, match="sampler is 'gpt': ChatModelSampler"):
        PrefixSteerer("gpt")  # type: ignore[arg-type]
    for options in ({"lifted_temperature": 0}, {"window_tokens": 0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            PrefixSteerer(scripted("x"), **options)  # type: ignore[arg-type]
    fixed = scripted("x")
    fixed.takes_temperature = False
    with pytest.raises(ConfigError, match="temperature"):
        PrefixSteerer(fixed)


def table(taken: list[int], width: int) -> TopLogprobs:
    ids = np.array([[token, *range(100, 99 + width)] for token in taken])
    return TopLogprobs(ids, np.full(ids.shape, -2.0), np.array(taken))


def test_the_tables_of_both_parts_are_joined_where_they_fit() -> None:
    head = replace(part("ab", "length", 2, "First "), logprobs=table([1, 2], 3), tokens=("a", "b"), prompt_ids=(7, 8))
    rest = replace(part("c", "stop", 1, "First ab"), logprobs=table([3], 5), tokens=("c",), prompt_ids=(7, 8, 1, 2))
    (rollout,) = steer(PrefixSteerer(scripted(head, rest), window_tokens=2), "local_temp").rollouts
    assert rollout.logprobs is not None
    assert rollout.logprobs.taken.tolist() == [1, 2, 3]
    assert rollout.logprobs.ids[0].tolist() == [1, 100, 101, -1, -1]
    assert rollout.tokens == ("a", "b", "c")
    assert rollout.prompt_ids == (7, 8)
    other = replace(rest, prompt_ids=(7, 8, 55))
    result = steer(PrefixSteerer(scripted(head, other), window_tokens=2), "local_temp")
    assert result.rollouts[0].logprobs is None
    assert any("other tokens" in note for note in result.notes)


def test_a_real_server() -> None:
    pytest.importorskip("xllamacpp", reason="the extra 'local' is not installed")
    from rfx_agent.samplers.local import LocalSampler

    with LocalSampler("smollm2-135m", context=512, parallel=2, threads=1) as sampler:
        failed = sampler.sample(SampleRequest(STEP.messages, max_tokens=24, seed=1)).rollouts[0]
        cut = len("".join((failed.tokens or ())[:6]))
        failed = replace(failed, junction=cut, peak=cut)
        steerer = PrefixSteerer(sampler, ancestor=sampler, window_tokens=4)
        result = steer(steerer, "local_temp", rollout=failed, n=2, max_tokens=16)
        for rollout in result.rollouts:
            assert rollout.text.startswith(failed.text[:cut])
            assert len(rollout.text) > cut
            assert rollout.logprobs is None or len(rollout.logprobs) == len(rollout.tokens or ())
        assert result.usage.completion_tokens <= 32
        # With itself as ancestor and no temperature, the branch is what it would have written anyway.
        (branch,) = steer(steerer, "sparse_steer", rollout=failed, max_tokens=8, temperature=0.0).rollouts
        plain = SampleRequest(STEP.messages, max_tokens=8, temperature=0.0, prefix=failed.text[:cut])
        assert branch.text == sampler.sample(plain).rollouts[0].text
