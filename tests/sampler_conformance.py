"""What every sampler must do, sync and async alike.

Subclass ``SamplerConformance`` in a test file (its name starting with ``Test``), and give it the fixtures
``sampler`` and, where a dead backend can be made, ``dead_sampler``.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rfx_agent.errors import ConfigError, SamplerError
from rfx_agent.ports import Sampler
from rfx_agent.records import Rollout, SampleRequest, SampleResult, Usage

__all__ = ["SamplerConformance", "ask"]

PROMPT = ({"role": "user", "content": "Name three colours, then say why you like one of them."},)


def ask(sampler: Any, request: SampleRequest, how: str) -> SampleResult:
    """Sample on the side that ``how`` names; each async call has an event loop of its own."""
    result = sampler.sample(request) if how == "sync" else asyncio.run(_awaited(sampler, request))
    assert isinstance(result, SampleResult)
    return result


async def _awaited(sampler: Any, request: SampleRequest) -> SampleResult:
    result: SampleResult = await sampler.asample(request)
    return result


@pytest.mark.parametrize("how", ["sync", "async"])
class SamplerConformance:
    @pytest.fixture
    def sampler(self) -> Any:
        raise NotImplementedError

    @pytest.fixture
    def dead_sampler(self) -> Any:
        pytest.skip("no dead backend for this sampler")

    def test_has_the_port(self, sampler: Any, how: str) -> None:
        assert isinstance(sampler, Sampler)
        assert sampler.name
        assert isinstance(sampler.continues_prefix, bool)

    @pytest.mark.parametrize("n", [1, 3])
    def test_draws_are_counted_and_told_apart(self, sampler: Any, how: str, n: int) -> None:
        result = ask(sampler, SampleRequest(PROMPT, n=n, max_tokens=12, temperature=0.9), how)
        assert len(result.rollouts) == n or any("did not come" in note for note in result.notes)
        assert 1 <= len(result.rollouts) <= n
        ids = [rollout.response_id for rollout in result.rollouts if rollout.response_id is not None]
        assert len(set(ids)) == len(ids)
        for rollout in result.rollouts:
            assert isinstance(rollout, Rollout)
            assert isinstance(rollout.text, str)
            assert rollout.temperature in (0.9, None)
            assert rollout.remedy == "retry"
            assert rollout.verdict is None

    @pytest.mark.parametrize("n", [1, 3])
    def test_usage_adds_up(self, sampler: Any, how: str, n: int) -> None:
        result = ask(sampler, SampleRequest(PROMPT, n=n, max_tokens=12), how)
        assert result.usage.calls >= 1
        assert result.usage.prompt_tokens > 0
        shares = Usage()
        for rollout in result.rollouts:
            shares += rollout.usage
            if rollout.text:
                assert rollout.usage.completion_tokens > 0
        # What was discarded or not attributable is in the total only.
        assert shares.prompt_tokens <= result.usage.prompt_tokens
        assert shares.completion_tokens <= result.usage.completion_tokens
        assert shares.calls <= result.usage.calls
        assert result.rollouts[0].usage.prompt_tokens > 0

    def test_log_probabilities_come_or_their_absence_is_noted(self, sampler: Any, how: str) -> None:
        result = ask(sampler, SampleRequest(PROMPT, n=2, max_tokens=12), how)
        for rollout in result.rollouts:
            if rollout.logprobs is None:
                assert not rollout.text or any("log-prob" in note for note in result.notes)
            else:
                assert rollout.tokens is not None
                assert len(rollout.tokens) == len(rollout.logprobs.taken)

    def test_unwanted_log_probabilities_leave_no_note(self, sampler: Any, how: str) -> None:
        result = ask(sampler, SampleRequest(PROMPT, max_tokens=12, want_logprobs=False), how)
        assert all(rollout.logprobs is None for rollout in result.rollouts)
        assert not any("log-prob" in note for note in result.notes)

    def test_prefix_is_continued_or_refused(self, sampler: Any, how: str) -> None:
        request = SampleRequest(PROMPT, n=2, max_tokens=6, prefix="Red, green and")
        if not sampler.continues_prefix:
            with pytest.raises(ConfigError, match="prefix"):
                ask(sampler, request, how)
            return
        for rollout in ask(sampler, request, how).rollouts:
            assert rollout.text.startswith("Red, green and")
            assert rollout.text.count("Red, green and") == 1
            assert len(rollout.text) > len("Red, green and")

    def test_the_prompt_is_left_alone(self, sampler: Any, how: str) -> None:
        messages = tuple(dict(message) for message in PROMPT)
        ask(sampler, SampleRequest(messages, max_tokens=4), how)
        assert messages == PROMPT

    def test_only_sampler_errors(self, dead_sampler: Any, how: str) -> None:
        with pytest.raises(SamplerError):
            ask(dead_sampler, SampleRequest(PROMPT, n=2, max_tokens=4), how)

    def test_serves_several_at_once(self, sampler: Any, how: str) -> None:
        request = SampleRequest(PROMPT, max_tokens=4)

        async def together() -> list[SampleResult]:
            if how == "sync":
                return await asyncio.gather(*(asyncio.to_thread(sampler.sample, request) for _ in range(3)))
            return await asyncio.gather(*(sampler.asample(request) for _ in range(3)))

        results = asyncio.run(together())
        ids = {rollout.response_id for result in results for rollout in result.rollouts}
        assert len(ids) == 3 or ids == {None}
