"""What the tests of untrusted servers ask, of a sampler of any kind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rfx_agent.ports import Sampler
from rfx_agent.records import SampleRequest, SampleResult

__all__ = ["KEY", "PROMPT", "asked", "both"]

KEY = "rk-0123456789/abcdef+xyz"
PROMPT = ({"role": "user", "content": "What is 3 + 4?"},)
both = pytest.mark.parametrize("how", ["sync", "async"])


def asked(sampler: Sampler, how: str, **request: Any) -> SampleResult:
    """What ``sampler`` answers, sync or async."""
    wanted = SampleRequest(PROMPT, **({"max_tokens": 20} | request))
    return sampler.sample(wanted) if how == "sync" else asyncio.run(sampler.asample(wanted))
