"""A sampler over any server that speaks OpenAI's chat completions, through OpenAI's own SDK."""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rfx_agent._errors import ConfigError, SamplerError, is_control_flow
from rfx_agent._types import SampleRequest, SampleResult
from rfx_agent.backends._chat import MalformedReplyError, UsageOf
from rfx_agent.backends._chat_flow import Flow, Reply, Traits, sample_flow

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
_MOST_THREADS = 16


class OpenAISampler:
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
        max_retries: transport retries of the SDK after a transient failure; each counts in ``Usage.calls``.
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
        own = client is None and async_client is None
        if not own and (base_url is not None or api_key is not None):
            raise ConfigError("base_url or api_key was given beside a client; set them on the client itself")
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"base_url is {base_url!r}; give a URL such as 'http://127.0.0.1:8000/v1'")
        if own and base_url is None and not (api_key or os.environ.get("OPENAI_API_KEY")):
            raise ConfigError("api_key is missing; give it, set OPENAI_API_KEY, or give the base_url of a server")
        if top_logprobs is not None and not _is_int(top_logprobs, 0, 100):
            raise ConfigError(f"top_logprobs is {top_logprobs!r}; give 0 to 100, or None to ask for none")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
            raise ConfigError(f"timeout is {timeout!r}; give a positive number of seconds")
        if not _is_int(max_retries, 0, 1000):
            raise ConfigError(f"max_retries is {max_retries!r}; give 0 or more")
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
        self._base_url = base_url
        self._api_key = api_key
        self._timeout = timeout
        self._max_retries = max_retries
        self._extra_body = dict(extra_body or {})
        self._prefix_body = dict(prefix_body or {})
        self._traits = Traits(top_logprobs=top_logprobs, max_n=max_n, usage_of=usage_of)
        self._own = own
        self._client = client
        self._async_client = async_client
        self._loops: dict[asyncio.AbstractEventLoop, openai.AsyncOpenAI] = {}
        self._lock = threading.Lock()
        self._closed = False

    def __repr__(self) -> str:
        return f"OpenAISampler({self.model!r}, name={self.name!r})"  # never the key, nor a URL that may hold one

    def sample(self, request: SampleRequest) -> SampleResult:
        """Draw ``request.n`` completions; blocks.

        Raises:
            SamplerError: nothing came back. Where a part did, that is returned with a note.
            ConfigError: ``request.prefix`` for a server that continues none.
        """
        flow = self._flow(request)
        bodies = next(flow)
        try:
            while True:
                bodies = flow.send(self._send_all(bodies))
        except StopIteration as stop:
            result: SampleResult = stop.value
            return result

    async def asample(self, request: SampleRequest) -> SampleResult:
        """The same, without blocking the event loop."""
        if not self._own and self._async_client is None:
            return await asyncio.to_thread(self.sample, request)
        flow = self._flow(request)
        bodies = next(flow)
        try:
            while True:
                bodies = flow.send(await self._asend_all(bodies))
        except StopIteration as stop:
            result: SampleResult = stop.value
            return result

    def close(self) -> None:
        """Close the connections; idempotent. Those of an event loop that still runs are closed with
        ``aclose``."""
        with self._lock:
            self._closed = True
            client, self._client = self._client, None if self._own else self._client
            self._loops.clear()
        if self._own and client is not None:
            client.close()

    async def aclose(self) -> None:
        """The same, with the connections of the running event loop."""
        with self._lock:
            mine = self._loops.pop(asyncio.get_running_loop(), None)
        self.close()
        if mine is not None:
            await mine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _flow(self, request: SampleRequest) -> Flow:
        if request.prefix and not self.continues_prefix:
            raise ConfigError(
                f"prefix was given to {self.name!r}, which continues none; leave it out, or set "
                "continues_prefix=True where the server continues a trailing assistant message"
            )
        extra = {**self._extra_body, **(self._prefix_body if request.prefix else {})}
        return sample_flow(request, model=self.model, extra_body=extra, traits=self._traits, name=self.name)

    # The two halves below differ by await only.

    def _send_all(self, bodies: Sequence[dict[str, Any]]) -> list[Reply]:
        if len(bodies) == 1:
            return [self._send(bodies[0])]
        pool = ThreadPoolExecutor(min(len(bodies), _MOST_THREADS), thread_name_prefix="rfx-sample")
        try:
            jobs = [pool.submit(contextvars.copy_context().run, self._send, body) for body in bodies]
            return [job.result() for job in jobs]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    async def _asend_all(self, bodies: Sequence[dict[str, Any]]) -> list[Reply]:
        return list(await asyncio.gather(*(self._asend(body) for body in bodies)))

    def _send(self, body: dict[str, Any]) -> Reply:
        try:
            raw = self._sync_client().chat.completions.with_raw_response.create(**body)
            return _read(raw)
        except Exception as error:  # noqa: BLE001  # the port raises SamplerError only; see _failed
            return _failed(error)

    async def _asend(self, body: dict[str, Any]) -> Reply:
        try:
            raw = await self._loop_client().chat.completions.with_raw_response.create(**body)
            return _read(raw)
        except Exception as error:  # noqa: BLE001  # the port raises SamplerError only; see _failed
            return _failed(error)

    def _sync_client(self) -> openai.OpenAI:
        with self._lock:
            self._check_open()
            if self._client is None:
                if not self._own:
                    raise ConfigError("sample() needs a client; give client=openai.OpenAI(...), or use asample()")
                import openai

                self._client = openai.OpenAI(**self._settings(asynchronous=False))
            return self._client

    def _loop_client(self) -> openai.AsyncOpenAI:
        """A client of the running loop: its connections cannot be used from another."""
        with self._lock:
            self._check_open()
            if self._async_client is not None:
                return self._async_client
            for loop in [loop for loop in self._loops if loop.is_closed()]:
                del self._loops[loop]
            loop = asyncio.get_running_loop()
            if loop not in self._loops:
                import openai

                self._loops[loop] = openai.AsyncOpenAI(**self._settings(asynchronous=True))
            return self._loops[loop]

    def _check_open(self) -> None:
        if self._closed:
            raise SamplerError(f"{self.name!r} is closed; make a new sampler")

    def _settings(self, *, asynchronous: bool) -> dict[str, Any]:
        key = self._api_key or os.environ.get("OPENAI_API_KEY") or "unused"
        return {
            "base_url": self._base_url,
            "api_key": key,
            "timeout": self._timeout,
            "max_retries": self._max_retries,
        }


def _is_int(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _read(raw: Any) -> Reply:
    calls = int(getattr(raw, "retries_taken", 0)) + 1
    try:
        return Reply(json.loads(raw.http_response.content), calls)
    except ValueError as error:
        broken = MalformedReplyError(f"the body is not JSON: {error}")
        broken.__cause__ = error
        return Reply.failed(broken, calls=calls)


def _failed(error: Exception) -> Reply:
    if is_control_flow(error) or isinstance(error, ConfigError):
        raise error
    return Reply.failed(error)
