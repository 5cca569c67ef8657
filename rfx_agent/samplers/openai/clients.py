"""Connections to a server that speaks OpenAI's protocol: one client for all threads, one for each event loop.

What is sent goes out as an ``Ask`` and comes back as a ``Reply``, errors included, so that a flow written once as a
generator serves the sync and the async side.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import os
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

from rfx_agent.checks import number, whole
from rfx_agent.errors import ConfigError, SamplerError, is_control_flow
from rfx_agent.samplers.openai.provider_errors import map_error
from rfx_agent.samplers.openai.reply import MalformedReplyError

if TYPE_CHECKING:
    import openai

__all__ = ["Ask", "Asking", "Clients", "Reply", "adrive", "drive", "model_name"]

T = TypeVar("T")
_MOST_THREADS = 16


@dataclass(frozen=True, slots=True)
class Reply:
    """A body that came back, or why none did.

    Attributes:
        data: the decoded body.
        calls: HTTP requests that it took.
        error: the failure, its provider's exception chained; or None.
    """

    data: Any
    calls: int
    error: SamplerError | None = None

    @classmethod
    def failed(cls, error: Exception, *, calls: int | None = None) -> Self:
        """A reply that is an error; ``calls`` where the error cannot tell."""
        mapped = map_error(error)
        if mapped is not error:
            mapped.__cause__ = error
        if calls is not None:
            mapped.calls = calls
        return cls(None, mapped.calls, mapped)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: ``call`` makes it with a client of either side and returns the SDK's raw response."""

    clients: Clients
    call: Callable[[Any], Any]


Asking: TypeAlias = Generator[Sequence[Ask], Sequence[Reply], T]
"""A flow that yields the requests to make at once, is sent their replies in the same order, and returns a ``T``."""


def drive(flow: Asking[T], *, most: int = _MOST_THREADS) -> T:
    """Run a flow to its end; blocks. At most ``most`` requests are under way at once."""
    try:
        asks = next(flow)
        while True:
            asks = flow.send(_send_all(asks, most))
    except StopIteration as stop:
        result: T = stop.value
        return result


async def adrive(flow: Asking[T], *, most: int | None = None) -> T:
    """The same, without blocking the event loop; None for no limit."""
    try:
        asks = next(flow)
        while True:
            gate = contextlib.nullcontext() if most is None else asyncio.Semaphore(most)
            asks = flow.send(await asyncio.gather(*(_asend(ask, gate) for ask in asks)))
    except StopIteration as stop:
        result: T = stop.value
        return result


def _send_all(asks: Sequence[Ask], most: int) -> list[Reply]:
    if len(asks) <= 1:
        return [_send(ask) for ask in asks]
    pool = ThreadPoolExecutor(min(len(asks), most), thread_name_prefix="rfx-ask")
    try:
        jobs = [pool.submit(contextvars.copy_context().run, _send, ask) for ask in asks]
        return [job.result() for job in jobs]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _send(ask: Ask) -> Reply:
    try:
        return _read(ask.call(ask.clients.sync()))
    except Exception as error:  # noqa: BLE001  # the ports raise SamplerError only; see _failed
        return _failed(error)


async def _asend(ask: Ask, gate: contextlib.AbstractAsyncContextManager[Any]) -> Reply:
    async with gate:
        try:
            return _read(await ask.call(ask.clients.of_loop()))
        except Exception as error:  # noqa: BLE001  # the ports raise SamplerError only; see _failed
            return _failed(error)


def _read(raw: Any) -> Reply:
    calls = int(getattr(raw, "retries_taken", 0)) + 1
    try:
        return Reply(json.loads(raw.http_response.content), calls)
    except (ValueError, RecursionError) as error:
        broken = MalformedReplyError(f"the body is not JSON: {error}")
        broken.__cause__ = error
        return Reply.failed(broken, calls=calls)


def _failed(error: Exception) -> Reply:
    if is_control_flow(error) or isinstance(error, ConfigError):
        raise error
    return Reply.failed(error)


class Clients:
    """The SDK's clients for one server, made when they are first needed.

    Args:
        name: of the backend, for messages.
        base_url: the server; by default ``OPENAI_BASE_URL``, else OpenAI itself.
        api_key: by default ``OPENAI_API_KEY``; a server given by URL is called with a placeholder without either.
        timeout: seconds of silence, per attempt.
        max_retries: transport retries of the SDK.
        client: an ``openai.OpenAI`` to use instead; it is not closed here.
        async_client: an ``openai.AsyncOpenAI`` likewise.
        more: given whether the client is async, further arguments to make it with.

    Raises:
        ConfigError: a parameter that cannot work.
    """

    def __init__(
        self,
        name: str,
        *,
        base_url: str | None,
        api_key: str | None,
        timeout: float,
        max_retries: int,
        client: openai.OpenAI | None = None,
        async_client: openai.AsyncOpenAI | None = None,
        more: Callable[[bool], dict[str, Any]] | None = None,
    ) -> None:
        own = client is None and async_client is None
        if not own and (base_url is not None or api_key is not None):
            raise ConfigError(f"{name}: base_url or api_key was given beside a client; set them on the client itself")
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"{name}: base_url is {base_url!r}; give a URL such as 'http://127.0.0.1:8000/v1'")
        if own and base_url is None and not (api_key or os.environ.get("OPENAI_API_KEY")):
            raise ConfigError(
                f"{name}: api_key is missing; give it, set OPENAI_API_KEY, or give the base_url of a server"
            )
        self.name = name
        self.base_url = base_url
        self._api_key = api_key
        self._timeout = number(f"{name}: timeout", timeout, above=0)
        self._max_retries = whole(f"{name}: max_retries", max_retries)
        self._more = more
        self._own = own
        self._client = client
        self._async_client = async_client
        self._loops: dict[asyncio.AbstractEventLoop, openai.AsyncOpenAI] = {}
        self._lock = threading.Lock()
        self._closed = False

    @property
    def sync_only(self) -> bool:
        """Whether only a sync client was given, so that the async side needs a thread."""
        return not self._own and self._async_client is None

    @property
    def max_retries(self) -> int:
        """Transport retries of one request: of clients given, those that they have now."""
        given = [] if self._own else [one for one in (self._client, self._async_client) if one is not None]
        return max((int(getattr(one, "max_retries", self._max_retries)) for one in given), default=self._max_retries)

    def sync(self) -> openai.OpenAI:
        """The client of the sync side, for any number of threads."""
        with self._lock:
            self._check_open()
            if self._client is None:
                if not self._own:
                    raise ConfigError(
                        f"{self.name}: sample() needs a client; give client=openai.OpenAI(...), or use asample()"
                    )
                import openai

                self._client = openai.OpenAI(**self._settings(asynchronous=False))
            return self._client

    def of_loop(self) -> openai.AsyncOpenAI:
        """The async client for the running event loop. Each loop has its own: connections cannot be shared."""
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

    def close(self) -> None:
        """Close the connections; idempotent. Those of an event loop that still runs are closed with ``aclose``."""
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

    def _check_open(self) -> None:
        if self._closed:
            raise SamplerError(f"{self.name!r} is closed; make a new one")

    def _settings(self, *, asynchronous: bool) -> dict[str, Any]:
        settings = {
            "base_url": self.base_url,
            "api_key": self._api_key or os.environ.get("OPENAI_API_KEY") or "unused",
            "timeout": self._timeout,
            "max_retries": self._max_retries,
        }
        return settings | (self._more(asynchronous) if self._more else {})


def model_name(model: Any) -> str:
    """``model``, if it can be the name of a model on a server; else ``ConfigError``."""
    if not isinstance(model, str) or not model.strip():
        raise ConfigError(f"model is {model!r}; give the model's name on the server")
    return model
