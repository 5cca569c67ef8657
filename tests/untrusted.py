"""What the tests of untrusted servers ask, of a sampler of any kind."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest
from servers import Answer, ChatServer, choice, completion

from rfx_agent.errors import SamplerError
from rfx_agent.ports import Sampler
from rfx_agent.records import SampleRequest, SampleResult

__all__ = ["KEY", "PROMPT", "asked", "both", "refuses_too_large_a_body", "refuses_too_many_values"]

KEY = "rk-0123456789/abcdef+xyz"
PROMPT = ({"role": "user", "content": "What is 3 + 4?"},)
both = pytest.mark.parametrize("how", ["sync", "async"])


def asked(sampler: Sampler, how: str, **request: Any) -> SampleResult:
    """What ``sampler`` answers, sync or async."""
    wanted = SampleRequest(PROMPT, **({"max_tokens": 20} | request))
    return sampler.sample(wanted) if how == "sync" else asyncio.run(sampler.asample(wanted))


def refuses_too_many_values(of: Callable[[ChatServer], Sampler], how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body with more values than are allowed is an error."""
    monkeypatch.setattr("rfx_agent.samplers.openai.transport._MOST_VALUES", 1_000)
    many = completion(choice("7")) | {"more": [[]] * 2_000}
    with (
        ChatServer(lambda *_: Answer(body=many)) as server,
        pytest.raises(SamplerError, match="more than 1,000 values"),
    ):
        asked(of(server), how)


def refuses_too_large_a_body(of: Callable[[ChatServer], Sampler], how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body with more bytes than are allowed is an error, plain and packed."""
    monkeypatch.setattr("rfx_agent.samplers.openai.transport._MOST_BYTES", 2**20)
    large = json.dumps(completion(choice("x" * 2**21))).encode()
    packed = {"Content-Encoding": "gzip"}
    for answer in (Answer(body=large), Answer(body=gzip.compress(large), headers=packed)):
        with ChatServer(lambda *_, answer=answer: answer) as server, pytest.raises(SamplerError, match="larger than"):
            asked(of(server), how)
