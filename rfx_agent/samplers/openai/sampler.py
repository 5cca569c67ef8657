"""A sampler over any server that speaks OpenAI's chat completions, through OpenAI's own SDK."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rfx_agent._closing import AsyncClosing
from rfx_agent.checks import among, whole
from rfx_agent.errors import ConfigError
from rfx_agent.ports import Sampler
from rfx_agent.records import SampleRequest, SampleResult
from rfx_agent.samplers.openai.clients import Asking, Clients, adrive, drive, model_name
from rfx_agent.samplers.openai.flow import Traits, sample_flow
from rfx_agent.samplers.openai.reply import UsageOf
from rfx_agent.samplers.openai.transport import http_client

if TYPE_CHECKING:
    import openai

__all__ = ["OpenAISampler"]

# What this class sets itself; in ``extra_body`` they would silently win over the request.
_RESERVED = frozenset(
    {"logprobs", "max_completion_tokens", "max_tokens", "messages", "model", "n", "seed", "stream", "temperature"}
    | {"top_logprobs"}
)


class OpenAISampler(AsyncClosing, Sampler):
    """Samples chat completions from OpenAI or any server that speaks its protocol.

    Several draws go out as one request with ``n``. A server that honours ``n`` only in part is asked for the
    rest with concurrent single requests, and one that ignores or refuses it is asked that way from then on.
    Parameters that the server refuses (log-probabilities, ``temperature``, ``seed``, ``max_tokens`` under
    that name) are left out or renamed from then on, and every result says so in its notes. Nothing goes
    missing without a note.

    Args:
        model: the model's name on the server.
        base_url: the server, ``/v1`` included; by default ``OPENAI_BASE_URL``, else OpenAI itself.
        api_key: by default ``OPENAI_API_KEY``, which ``OPENAI_ORG_ID`` and ``OPENAI_PROJECT_ID`` go out with. Without
            either, or where it is empty, a server given by URL is called with a placeholder.
        client: an ``openai.OpenAI`` to use instead; it keeps its own URL, key, timeout and retries, and is
            not closed here. Without ``async_client``, ``asample`` then runs it in a thread. Made with
            ``http_client=rfx_agent.samplers.http_client()``, it follows no redirect and is bounded as here.
        async_client: an ``openai.AsyncOpenAI`` likewise, for ``asample``; it must be used from one event loop
            only.
        top_logprobs: alternatives asked per token, 0 to 100 (OpenAI's limit is 20), or None to ask for none.
        timeout: seconds that the head of an answer may take, per attempt; a body may take as long again, and 64 MiB.
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

    Example:
        >>> OpenAISampler("qwen3-8b", base_url="http://127.0.0.1:8000/v1").max_calls
        6
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
        self.model = model_name(model)
        self.name = name = name or model
        self._clients = Clients(
            name,
            base_url=base_url,
            api_key=api_key,
            timeout=timeout,
            max_retries=max_retries,
            client=client,
            async_client=async_client,
            http=lambda asynchronous: self._http_client(asynchronous=asynchronous),
        )
        if top_logprobs is not None:
            whole(f"{name}: top_logprobs", top_logprobs, most=100)
        if max_n is not None:
            whole(f"{name}: max_n", max_n, least=1)
        among(f"{name}: usage_of", usage_of, (None, "request", "choice"))
        if prefix_body and not continues_prefix:
            raise ConfigError(f"{name}: prefix_body was given without continues_prefix; set continues_prefix=True")
        for label, body in (("extra_body", extra_body), ("prefix_body", prefix_body)):
            taken = sorted(_RESERVED & set(body or ()))
            if taken:
                raise ConfigError(
                    f"{name}: {label} sets {', '.join(taken)}; these come from the request and the constructor"
                )
        self.continues_prefix = continues_prefix
        self._extra_body = dict(extra_body or {})
        self._prefix_body = dict(prefix_body or {})
        self._traits = Traits(top_logprobs=top_logprobs, max_n=max_n, usage_of=usage_of)

    def __repr__(self) -> str:
        return f"OpenAISampler({self.model!r}, name={self.name!r})"  # never the key, nor a URL that may hold one

    @property
    def max_calls(self) -> int:  # type: ignore[override]  # read-only here
        """The most HTTP requests that one draw can cause: it is asked for, and where the server returned fewer
        choices once more, each time with every transport retry. ``n`` draws cause at most ``n`` times as many.

        Not in it, and counted in ``Usage.calls`` all the same: requests that the server refuses for one of the five
        parameters that are then left out, of which each request under way meets each at most once in the sampler's
        life (a refusal with a status from 500 on is retried first). Redirects are not followed.
        """
        return 2 * (1 + self._clients.max_retries)

    def sample(self, request: SampleRequest) -> SampleResult:
        """Draw ``request.n`` completions; blocks.

        Raises:
            SamplerError: nothing came back. Where a part did, that is returned with a note.
            ConfigError: ``request.prefix`` for a server that continues none.
        """
        return drive(self._flow(request))

    async def asample(self, request: SampleRequest) -> SampleResult:
        """Do what ``sample`` does, without blocking the event loop."""
        if self._clients.sync_only:
            return await asyncio.to_thread(self.sample, request)
        return await adrive(self._flow(request))

    def close(self) -> None:
        """Close the connections; idempotent. Those of an event loop that still runs are closed with
        ``aclose``."""
        self._clients.close()

    async def aclose(self) -> None:
        """Do what ``close`` does, and close the connections of the running event loop."""
        await self._clients.aclose()

    def _flow(self, request: SampleRequest) -> Asking[SampleResult]:
        if request.prefix and not self.continues_prefix:
            raise ConfigError(
                f"prefix was given to {self.name!r}, which continues none; leave it out, or set "
                "continues_prefix=True where the server continues a trailing assistant message"
            )
        extra = {**self._extra_body, **(self._prefix_body if request.prefix else {})}
        return sample_flow(request, clients=self._clients, model=self.model, extra_body=extra, traits=self._traits)

    def _http_client(self, *, asynchronous: bool) -> Any:
        """The SDK's HTTP client, for a subclass to change."""
        return http_client(asynchronous=asynchronous)
