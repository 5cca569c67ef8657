"""The recovery graph on its own, configured by the environment; the embedded model by default.

    RFX_BASE_URL, RFX_MODEL   an OpenAI-compatible server in place of the embedded model
    RFX_API_KEY               its key (a server that asks for none needs none)
    RFX_SEED                  seed of the draws
    RFX_MAX_TOKENS            most tokens per completion

Input: ``{"step": {"messages": [...], "reference": "42"}}``, optionally with ``candidate``, the text that failed.
"""

from __future__ import annotations

import os

from rfx_agent import (
    ConfigError,
    ExactVerifier,
    LocalSampler,
    OpenAISampler,
    ProgramTool,
    Recovery,
    recovery_graph,
)


def _integer(name: str, default: int | None) -> int | None:
    value = os.environ.get(name)
    if value is None:
        return default
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"environment: {name} is {value!r}; give an integer") from None


def build() -> Recovery:
    """The deployment that the environment describes. No model is started before the first step fails."""
    base_url, model = os.environ.get("RFX_BASE_URL"), os.environ.get("RFX_MODEL")
    if (base_url is None) != (model is None):
        raise ConfigError("environment: RFX_BASE_URL and RFX_MODEL go together; set both or neither")
    key = os.environ.get("RFX_API_KEY", "none")
    sampler = OpenAISampler(model, base_url=base_url, api_key=key) if model else LocalSampler()
    return Recovery(
        sampler=sampler,
        verifier=ExactVerifier(),
        tool=ProgramTool(),
        seed=_integer("RFX_SEED", None),
        max_tokens=_integer("RFX_MAX_TOKENS", 512) or 512,
    )


graph = recovery_graph(build())
