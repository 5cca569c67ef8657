"""What an assistant configures of the served graphs, as the form that Studio shows, and the deployment made of it.

What only the deployment's operator decides comes from the environment:

    RFX_BASE_URL, RFX_MODEL   the OpenAI-compatible server and model of assistants that name none; without them, the
                              embedded model
    RFX_API_KEY               the key of that server, and of no other
    RFX_BASE_URL_<NAME>       a further server that assistants may name, and RFX_API_KEY_<NAME> its key
    RFX_BASE_URLS             further servers that ask for no key, with commas between; one that is the only server is
                              sent RFX_API_KEY
    RFX_STORE                 URL of a shared budget's store: runs that are killed pay for nothing twice
    RFX_TOKENS_PER_HOUR       with it, tokens that recovery may spend per hour, all assistants together
    RFX_SANDBOX               where programs run that a model writes: monty (the default), a subset of Python, or
                              bubblewrap, a CPython; one for all assistants
    RFX_SEED, RFX_MAX_TOKENS  defaults of the settings of that name
    RFX_MOST_<SETTING>        the most that an assistant may set: of MAX_TOKENS, ATTEMPTS, SAMPLES, TOKENS, SECONDS,
                              TOOL_SECONDS, ESCALATIONS, DEADLINE, EXTRA_SAMPLES, CONCURRENCY

A server that is not listed is refused, and a key is sent to its own server alone: what an assistant configures, any of
its users may have written.
"""

from __future__ import annotations

import os
import re
import threading
from functools import cache, lru_cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rfx_agent import (
    ConfigError,
    Escalation,
    ExactVerifier,
    LocalSampler,
    MathVerifier,
    OpenAISampler,
    ProgramTool,
    Recovery,
    RegexVerifier,
    RetryBudget,
    SharedBudget,
    Window,
)
from rfx_agent.budgets import store_at
from rfx_agent.checks import shown
from rfx_agent.policies import DefaultPolicy, FixedPolicy, LearnedPolicy, Policy
from rfx_agent.ports import Sampler, Verifier
from rfx_agent.verifiers import AgreementVerifier

__all__ = ["Settings", "recovery_of"]


def _integer(name: str, default: Any) -> Any:
    value = os.environ.get(name)
    if value is None:
        return default
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"environment: {name} is {value!r}; give an integer") from None


def _most(setting: str, default: int) -> int:
    most: int = _integer(f"RFX_MOST_{setting}", default)
    return most


class Settings(BaseModel):
    """One assistant's settings. Anything that cannot work is a ``ConfigError``, when it is made or when it is used."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, title="Recovery")

    model: str = Field(
        "", title="Model", description="Name of the model at the server; empty for the deployment's own."
    )
    base_url: str = Field(
        "",
        title="Server",
        description="URL of an OpenAI-compatible server that the deployment allows; empty for its own.",
    )
    api_key_env: str = Field(
        "",
        title="API key variable",
        description="Environment variable of the deployment that holds the server's key, where the server has several; "
        "empty for the first. Never the key itself.",
        pattern=r"^(RFX_API_KEY(_[A-Z0-9_]+)?)?$",
    )
    temperature: float = Field(0.6, title="Temperature", description="Decode temperature of draws.", ge=0, le=2)
    max_tokens: int = Field(
        _integer("RFX_MAX_TOKENS", 512),
        title="Longest completion",
        description="Most tokens of one completion.",
        ge=1,
        le=_most("MAX_TOKENS", 16_384),
    )
    seed: int | None = Field(
        _integer("RFX_SEED", None), title="Seed", description="Seed of the draws; empty leaves it to the server."
    )
    verifier: Literal["exact", "math", "regex", "agreement"] = Field(
        "exact",
        title="Verifier",
        description=(
            "exact: what is expected, in a canonical form. math: equal to it as mathematics. regex: the "
            "pattern is found. agreement: most samples agree, which proves nothing."
        ),
    )
    pattern: str = Field("", title="Pattern", description="Regular expression of the verifier regex.", max_length=1000)
    policy: Literal["default", "fixed", "learned"] = Field(
        "default",
        title="Policy",
        description=(
            "default: by the evidence of the failure. fixed: the remedies below in turn. learned: by the expected "
            "rescue per cost, from the published failures."
        ),
    )
    remedies: tuple[Literal["retry", "extend", "revise", "local_temp", "tool"], ...] = Field(
        ("retry",), title="Remedies", description="Sequence of the policy fixed.", min_length=1, max_length=64
    )
    extra_samples: int | None = Field(
        None,
        title="Extra samples",
        description="Draws asked for at once when a candidate failed; empty leaves it to the policy.",
        ge=0,
        le=_most("EXTRA_SAMPLES", 64),
    )
    concurrency: int = Field(
        1, title="Draws at once", description="Draws of one round.", ge=1, le=_most("CONCURRENCY", 64)
    )
    tool: bool = Field(
        True,
        title="Program tool",
        description="Whether the model may write a program and have it run, in Monty or in what RFX_SANDBOX names.",
    )
    attempts: int = Field(
        12, title="Budget: attempts", description="Most candidate answers per step.", ge=0, le=_most("ATTEMPTS", 256)
    )
    samples: int = Field(
        16, title="Budget: samples", description="Most completions per step.", ge=0, le=_most("SAMPLES", 256)
    )
    tokens: int = Field(
        32_000,
        title="Budget: tokens",
        description="Most tokens read and written per step.",
        ge=0,
        le=_most("TOKENS", 1_000_000),
    )
    seconds: float = Field(
        300.0, title="Budget: seconds", description="Most seconds of work per step.", ge=0, le=_most("SECONDS", 3_600)
    )
    tool_seconds: float = Field(
        30.0, title="Budget: tool seconds", description="Most seconds in tools.", ge=0, le=_most("TOOL_SECONDS", 600)
    )
    escalations: int = Field(
        1, title="Budget: questions to a person", description="0 asks nobody.", ge=0, le=_most("ESCALATIONS", 16)
    )
    deadline: float | None = Field(
        86_400.0,
        title="Deadline",
        description="Seconds that a person has; empty waits for ever.",
        gt=0,
        le=_most("DEADLINE", 31_536_000),
    )
    default_decision: Literal["reject", "approve"] = Field(
        "reject", title="Default decision", description="What applies when nobody answered in time."
    )

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(str(part) for part in first["loc"]) or "together"
            got = "" if name == "together" else f" is {shown(first['input'])}"
            raise ConfigError(f"settings: {name}{got}: {first['msg'].removeprefix('Value error, ')}") from error

    @model_validator(mode="after")
    def _together(self) -> Settings:
        if self.base_url and not self.model:
            raise ValueError("base_url is set and model is empty; name the server's model")
        if self.verifier == "regex" and not self.pattern:
            raise ValueError("verifier is 'regex' and pattern is empty; give the pattern")
        return self


_LOCK = threading.Lock()


def recovery_of(settings: Settings | None) -> Recovery:
    """The deployment of an assistant: one object per settings, one sampler per model, however many runs there are.

    Raises:
        ConfigError: settings that this deployment does not allow or cannot carry out.
    """
    with _LOCK:  # two first runs at once must not start two models
        return _built(settings or Settings())


@lru_cache(maxsize=128)
def _built(settings: Settings) -> Recovery:
    caps = ("attempts", "samples", "tokens", "seconds", "tool_seconds", "escalations")
    return Recovery(
        sampler=_sampler(*_server(settings)),
        verifier=_verifier(settings),
        tool=_tool() if settings.tool else None,
        policy=_policy(settings),
        budget=RetryBudget.of({cap: getattr(settings, cap) for cap in caps}),
        shared=_shared(),
        extra_samples=settings.extra_samples,
        concurrency=settings.concurrency,
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        seed=settings.seed,
        escalation=Escalation(deadline=settings.deadline, default=settings.default_decision),
    )


def _server(settings: Settings) -> tuple[str | None, str | None, str]:
    """(URL, model, variable of the key) that the settings come to in this environment; no URL: the embedded model."""
    own, model = os.environ.get("RFX_BASE_URL"), os.environ.get("RFX_MODEL")
    if (own is None) != (model is None):
        raise ConfigError("environment: RFX_BASE_URL and RFX_MODEL go together; set both or neither")
    url = settings.base_url or own
    if url is None:
        if settings.model:
            raise ConfigError(
                f"settings: model is {settings.model!r}, but the deployment has no server (RFX_BASE_URL); give "
                "base_url too, or leave both empty for the embedded model"
            )
        return None, model, ""
    url = url.strip()
    keys = _keys(url)
    if not keys:
        raise ConfigError(
            f"settings: base_url is {url!r}, which this deployment does not allow; name one that it does, or have its "
            "operator add it to RFX_BASE_URLS, or as RFX_BASE_URL_<NAME>"
        )
    if settings.api_key_env and settings.api_key_env not in keys:
        raise ConfigError(
            f"settings: api_key_env is {settings.api_key_env!r}, and {url!r} has no key of that name; leave it empty, "
            f"or have the operator set RFX_BASE_URL{settings.api_key_env.removeprefix('RFX_API_KEY')} to that server"
        )
    return url, settings.model or model, settings.api_key_env or keys[0]


def _keys(url: str) -> list[str]:
    """The variables of the keys that belong to the server at ``url``; "" where it needs none; none is listed: []."""
    named = [name for name in sorted(os.environ) if re.fullmatch(r"RFX_BASE_URL(_[A-Z0-9_]+)?", name)]
    keys = [f"RFX_API_KEY{n.removeprefix('RFX_BASE_URL')}" for n in named if _same(os.environ[n]) == _same(url)]
    listed = [one for one in os.environ.get("RFX_BASE_URLS", "").split(",") if one.strip()]
    if not keys and any(_same(one) == _same(url) for one in listed):
        # Where there is one server alone, the key can be of no other.
        keys = ["RFX_API_KEY"] if len(listed) == 1 and not named else [""]
    return keys


@cache
def _shared() -> SharedBudget | None:
    url, most = os.environ.get("RFX_STORE"), _integer("RFX_TOKENS_PER_HOUR", None)
    if url is None and most is not None:
        raise ConfigError("environment: RFX_TOKENS_PER_HOUR is set and RFX_STORE is not; give the store's URL too")
    limits = () if most is None else (Window("global", "tokens", most, "hour"),)
    return None if url is None else SharedBudget(store=store_at(url), limits=limits)


@cache
def _tool() -> ProgramTool:
    sandbox: Any = os.environ.get("RFX_SANDBOX", "monty")
    if sandbox not in ("monty", "bubblewrap"):
        raise ConfigError(f"environment: RFX_SANDBOX is {sandbox!r}; give monty or bubblewrap")
    return ProgramTool(sandbox=sandbox)


def _same(url: str) -> str:
    return url.strip().rstrip("/")


@lru_cache(maxsize=32)
def _sampler(url: str | None, model: str | None, key: str) -> Sampler:
    if url is None or model is None:
        return LocalSampler()
    # A server that asks for no key is not told one; the client insists on some text.
    return OpenAISampler(model, base_url=url, api_key=os.environ.get(key) or "none")


def _verifier(settings: Settings) -> Verifier:
    match settings.verifier:
        case "exact":
            return ExactVerifier()
        case "math":
            return MathVerifier()
        case "regex":
            return RegexVerifier(settings.pattern)
        case "agreement":
            return AgreementVerifier()


def _policy(settings: Settings) -> Policy:
    match settings.policy:
        case "default":
            return DefaultPolicy()
        case "fixed":
            return FixedPolicy(settings.remedies)
        case "learned":
            return LearnedPolicy()
