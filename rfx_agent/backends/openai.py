"""A sampler over any server that speaks OpenAI's chat completions, through OpenAI's own SDK."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rfx_agent._closing import AsyncClosing
from rfx_agent._errors import ConfigError
from rfx_agent._types import SampleRequest, SampleResult
from rfx_agent.backends._chat.flow import Flow, Traits, sample_flow
from rfx_agent.backends._chat.reply import UsageOf
from rfx_agent.backends._clients import Ask, Clients, Reply, adrive, drive

if TYPE_CHECKING:
    import openai

__all__ = ["OpenAISampler"]

# What this class sets itself; in ``extra_body`` they would silently win over the request.
_RESERVED = frozenset(
    {
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "model",
        "n",
        "seed",
        "stream",
        "temperature",
    }
    | {"top_logprobs"}
)


class OpenAISampler(AsyncClosing):
    """Samples chat completions from OpenAI or any server that speaks its protocol.

    Several draws go out as one request with ``n``. A server that honours ``n`` only in part is asked for the
    rest with concurrent single requests, and one that ignores or refuses it is asked that way from then on.
    Parameters that the server refuses (log-probabilities, ``temperature``, ``seed``, ``max_tokens`` under
    that name) are left out or renamed from then on, and every result says so in its notes. Nothing goes
    missing without a note.

    Args:
        model: the model's name on the server.
        base_url: the server, ``/v1`` included; by default ``OPENAI_BASE_URL``, else OpenAI itself.
        api_key: by default ``OPENAI_API_KEY``. Without either, a server given by URL is called with a
            placeholder.
        client: an ``openai.OpenAI`` to use instead; it keeps its own URL, key, timeout and retries, and is
            not closed here. Without ``async_client``, ``asample`` then runs it in a thread.
        async_client: an ``openai.AsyncOpenAI`` likewise, for ``asample``; it must be used from one event loop
            only.
        top_logprobs: alternatives asked per token, 0 to 100 (OpenAI's limit is 20), or None to ask for none.
        timeout: seconds that the server may stay silent, per attempt.
        max_retries: transport retries of the SDK after a transient failure; each counts in ``Usage.calls``. The SDK
            waits before each as the server's ``Retry-After`` says, up to 120 s, and else 0.5 to 8 s; where the
            server wants more than 120 s it does not retry.
        max_n: most choices asked in one request, or None for no limit; more go out as concurrent requests.
        continues_prefix: whether the server continues a trailing assistant message.
        prefix_body: extra fields of the body when it is asked to; vLLM needs
            ``{"continue_final_message": True, "add_generation_prompt": False}``.
        extra_body: extra fields of every body, such as a server's own sampling parameters.
        usage_of: what ``usage`` counts when ``n > 1``: the whole ``"request"``, or one ``"choice"`` as
            llama.cpp does. None infers it where token entries or text lengths prove it, and trusts the server
            elsewhere.
        name: for records and messages; by default the model's.

    Raises:
        ConfigError: a parameter that cannot work.

    One instance serves any number of threads and event loops at once.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        client: openai.OpenAI | None = None,
        async_client: openai.AsyncOpenAI | None = None,
        top_logprobs: int | None = 20,
        timeout: float = 60.0,
        max_retries: int = 2,
        max_n: int | None = None,
        continues_prefix: bool = False,
        prefix_body: Mapping[str, Any] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        usage_of: UsageOf | None = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(model, str) or not model.strip():
            raise ConfigError(f"model is {model!r}; give the model's name on the server")
        clients = Clients(
            name or model,
            base_url=base_url,
            api_key=api_key,
            timeout=timeout,
            max_retries=max_retries,
            client=client,
            async_client=async_client,
            more=lambda asynchronous: self._settings(asynchronous=asynchronous),
        )
        if top_logprobs is not None and not _is_int(top_logprobs, 0, 100):
            raise ConfigError(f"top_logprobs is {top_logprobs!r}; give 0 to 100, or None to ask for none")
        if max_n is not None and not _is_int(max_n, 1, 1 << 30):
            raise ConfigError(f"max_n is {max_n!r}; give 1 or more, or None for no limit")
        if usage_of not in (None, "request", "choice"):
            raise ConfigError(f"usage_of is {usage_of!r}; give 'request', 'choice', or None to infer it")
        if prefix_body and not continues_prefix:
            raise ConfigError("prefix_body was given without continues_prefix; set continues_prefix=True")
        for label, body in (("extra_body", extra_body), ("prefix_body", prefix_body)):
            taken = sorted(_RESERVED & set(body or ()))
            if taken:
                raise ConfigError(f"{label} sets {', '.join(taken)}; these come from the request and the constructor")
        self.model = model
        self.name = name or model
        self.continues_prefix = continues_prefix
        self._clients = clients
        self._extra_body = dict(extra_body or {})
        self._prefix_body = dict(prefix_body or {})
        self._traits = Traits(top_logprobs=top_logprobs, max_n=max_n, usage_of=usage_of)

    def __repr__(self) -> str:
        return f"OpenAISampler({self.model!r}, name={self.name!r})"  # never the key, nor a URL that may hold one

    @property
    def max_calls(self) -> int:
        """The most HTTP requests that one draw can cause: it is asked for, and where the server returned fewer
        choices once more, each time with every transport retry. ``n`` draws cause at most ``n`` times as many.

        Not in it, and counted in ``Usage.calls`` all the same: requests that the server refuses for one of the five
        parameters that are then left out, of which each request under way meets each at most once in the sampler's
        life (a refusal with a status from 500 on is retried first); and redirects, which no one counts.
        """
        return 2 * (1 + self._clients.max_retries)

    def sample(self, request: SampleRequest) -> SampleResult:
        """Draw ``request.n`` completions; blocks.

        Raises:
            SamplerError: nothing came back. Where a part did, that is returned with a note.
            ConfigError: ``request.prefix`` for a server that continues none.
        """
        return drive(self._asks(request))

    async def asample(self, request: SampleRequest) -> SampleResult:
        """The same, without blocking the event loop."""
        if self._clients.sync_only:
            return await asyncio.to_thread(self.sample, request)
        return await adrive(self._asks(request))

    def close(self) -> None:
        """Close the connections; idempotent. Those of an event loop that still runs are closed with
        ``aclose``."""
        self._clients.close()

    async def aclose(self) -> None:
        """The same, with the connections of the running event loop."""
        await self._clients.aclose()

    def _flow(self, request: SampleRequest) -> Flow:
        if request.prefix and not self.continues_prefix:
            raise ConfigError(
                f"prefix was given to {self.name!r}, which continues none; leave it out, or set "
                "continues_prefix=True where the server continues a trailing assistant message"
            )
        extra = {**self._extra_body, **(self._prefix_body if request.prefix else {})}
        return sample_flow(request, model=self.model, extra_body=extra, traits=self._traits, name=self.name)

    def _settings(self, *, asynchronous: bool) -> dict[str, Any]:
        """Further arguments of the SDK's clients, for a subclass to give."""
        return {}

    def _asks(self, request: SampleRequest) -> Generator[Sequence[Ask], Sequence[Reply], SampleResult]:
        """The flow, with its bodies as requests that either side can make."""
        flow = self._flow(request)
        bodies = next(flow)
        try:
            while True:
                bodies = flow.send((yield [Ask(self._clients, _chat(body)) for body in bodies]))
        except StopIteration as stop:
            result: SampleResult = stop.value
            return result


def _chat(body: dict[str, Any]) -> Callable[[Any], Any]:
    return lambda client: client.chat.completions.with_raw_response.create(**body)


def _is_int(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
