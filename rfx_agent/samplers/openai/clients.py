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
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

from pydantic_core import from_json

from rfx_agent._collector import collector_paused
from rfx_agent._forks import Lock, in_child
from rfx_agent.checks import MOST_SECONDS, number, whole
from rfx_agent.errors import ConfigError, SamplerError, is_control_flow
from rfx_agent.samplers.openai.held import Held
from rfx_agent.samplers.openai.inherited import anew
from rfx_agent.samplers.openai.provider_errors import map_error
from rfx_agent.samplers.openai.reply import MalformedReplyError
from rfx_agent.samplers.openai.secrets import in_url, of_client, purged, spellings
from rfx_agent.samplers.openai.transport import TALLY, Tally, http_client

if TYPE_CHECKING:
    import openai

__all__ = ["Ask", "Asking", "Clients", "Reply", "adrive", "drive", "model_name"]

T = TypeVar("T")
_MOST_THREADS = 16
_KEY_LENGTH = 8  # shorter ones are placeholders such as "EMPTY", which an answer may hold
_DIGITS = 400
_LARGE = 64 * 2**10  # bytes of a body that takes more than about 1 ms to read


@dataclass(frozen=True, slots=True)
class Reply:
    """A body that came back, or why none did.

    Attributes:
        data: the decoded body.
        calls: HTTP requests that it took.
        error: the failure, its provider's exception chained; or None.
        lost: of the calls, those that the server may have worked on and that brought nothing.
    """

    data: Any
    calls: int
    error: SamplerError | None = None
    lost: int = 0

    @classmethod
    def failed(
        cls, error: Exception, *, calls: int | None = None, lost: int | None = None, known: tuple[str, ...] = ()
    ) -> Self:
        """A reply that is an error; ``calls`` and ``lost`` where the error cannot tell."""
        mapped = map_error(error, known)
        if mapped is not error:
            mapped.__cause__ = error
        if calls is not None:
            mapped.calls = calls
        if lost is not None:
            mapped.lost = lost
        return cls(None, mapped.calls, mapped, mapped.lost or 0)


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
    """Do what ``drive`` does, without blocking the event loop; None for no limit."""
    got: Sequence[_Raw | Reply] | None = None
    while True:
        # Long tables take a while to read: in one thread, because several would hold the interpreter's lock in turn.
        heavy = any(isinstance(one, _Raw) and len(one.body) > _LARGE for one in got or ())
        ended, value = await asyncio.to_thread(_advanced_aside, flow, got) if heavy else _advanced(flow, got)
        if ended:
            result: T = value
            return result
        gate = contextlib.nullcontext() if most is None else asyncio.Semaphore(most)
        got = await asyncio.gather(*(_asend(ask, gate) for ask in value))


def _advanced(flow: Asking[T], got: Sequence[_Raw | Reply] | None) -> tuple[bool, Any]:
    """Whether the flow has ended, and its result or what it asks next."""
    try:
        if got is None:
            return False, next(flow)
        return False, flow.send([one.read() if isinstance(one, _Raw) else one for one in got])
    except StopIteration as stop:  # which no thread can hand over
        return True, stop.value


def _advanced_aside(flow: Asking[T], got: Sequence[_Raw | Reply] | None) -> tuple[bool, Any]:
    """The same in a thread, without the garbage collector: a table is tens of thousands of short-lived dicts."""
    with collector_paused():
        return _advanced(flow, got)


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
    TALLY.set(tally := Tally())
    try:
        return _Raw.of(ask.call(ask.clients.sync()), ask.clients, tally).read()
    except Exception as error:  # noqa: BLE001  # the ports raise SamplerError only; see _failed
        return _failed(error, ask.clients, tally)
    finally:
        TALLY.set(None)


async def _asend(ask: Ask, gate: contextlib.AbstractAsyncContextManager[Any]) -> _Raw | Reply:
    async with gate:
        TALLY.set(tally := Tally())  # each runs as a task, in a context of its own
        try:
            return _Raw.of(await ask.call(await ask.clients.of_loop()), ask.clients, tally)
        except Exception as error:  # noqa: BLE001  # the ports raise SamplerError only; see _failed
            return _failed(error, ask.clients, tally)


@dataclass(frozen=True, slots=True)
class _Raw:
    """A body that came back, not read yet."""

    body: bytes
    calls: int
    lost: int
    secrets: tuple[str, ...]

    @classmethod
    def of(cls, raw: Any, clients: Clients, tally: Tally) -> Self:
        calls = int(getattr(raw, "retries_taken", 0)) + 1
        # A client that was given counts nothing; then every retry may have been for an answer that was lost.
        lost = tally.lost if tally.tried else calls - 1
        return cls(raw.http_response.content, calls, lost, clients.secrets())

    def read(self) -> Reply:
        body = self.body
        for secret in self.secrets:  # a server may quote its key back in any field
            body = body.replace(secret.encode(), b"[key]")
        try:
            data = _decoded(body)
            if isinstance(data, dict) and "error" in data:  # whose repr is told
                data["error"] = purged(data["error"], self.secrets)
            if self.secrets and (b"\\u00" in body or b"\\/" in body):  # of which there are more than can be listed
                data = purged(data, self.secrets)
            return Reply(data, self.calls, lost=self.lost)
        except (ValueError, RecursionError) as error:
            broken = MalformedReplyError(f"the body is not JSON: {error}")
            broken.__cause__ = error
            return Reply.failed(broken, calls=self.calls, lost=self.lost + 1, known=self.secrets)


def _decoded(body: bytes) -> Any:
    try:
        return from_json(body)  # half as long as ``json``, which holds the interpreter's lock all the time
    except ValueError:
        return json.loads(body, parse_int=_whole)  # and takes more, such as half of a surrogate pair


def _whole(digits: str) -> int | float:
    """A number of a body; infinite where Python refuses to read so many digits as an int."""
    return int(digits) if len(digits) < _DIGITS else float(digits)


def _failed(error: Exception, clients: Clients, tally: Tally) -> Reply:
    if is_control_flow(error) or isinstance(error, ConfigError):
        raise error
    calls, lost = (tally.sent, tally.lost) if tally.tried else (None, None)
    return Reply.failed(error, calls=calls, lost=lost, known=clients.secrets())


class Clients:
    """The SDK's clients for one server, made when they are first needed.

    Args:
        name: of the backend, for messages.
        base_url: the server; by default ``OPENAI_BASE_URL``, else OpenAI itself.
        api_key: by default ``OPENAI_API_KEY``; a server given by URL is called with a placeholder where there is none,
            and where it is empty. ``OPENAI_ORG_ID`` and ``OPENAI_PROJECT_ID`` go out with ``OPENAI_API_KEY`` alone.
        timeout: seconds that the head of an answer may take, per attempt; a body may take as long again.
        max_retries: transport retries of the SDK.
        client: an ``openai.OpenAI`` to use instead; it is not closed here.
        async_client: an ``openai.AsyncOpenAI`` likewise.
        http: given whether the client is async, the HTTP client to make it with.

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
        http: Callable[[bool], Any] | None = None,
    ) -> None:
        own = client is None and async_client is None
        if not own and (base_url is not None or api_key is not None):
            raise ConfigError(f"{name}: base_url or api_key was given beside a client; set them on the client itself")
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            # Not the value received: what is wrong with it may be where its password stands.
            raise ConfigError(f"{name}: base_url is no http or https URL; give one such as 'http://127.0.0.1:8000/v1'")
        default = os.environ.get("OPENAI_API_KEY")
        if own and base_url is None and not (default if api_key is None else api_key):
            raise ConfigError(
                f"{name}: api_key is missing; give it, set OPENAI_API_KEY, or give the base_url of a server"
            )
        self.name = name
        self.base_url = base_url
        self._api_key = api_key
        self._timeout = number(f"{name}: timeout", timeout, above=0, most=MOST_SECONDS)
        self._max_retries = whole(f"{name}: max_retries", max_retries)
        self._http = http or (lambda asynchronous: http_client(asynchronous=asynchronous))
        self._own = own
        self._client = client
        self._async_client = async_client
        self._held = Held(name, self._made)
        self._lock = Lock()
        self._used = False
        self._inherited: tuple[Any, ...] = ()
        in_child(Clients.forked, self)

    def secrets(self) -> tuple[str, ...]:
        """The keys that its requests carry, as a server may spell them."""
        if self._own:
            keys = (self._key() or "", *in_url(self.base_url or ""))
        else:
            keys = (*of_client(self._client), *of_client(self._async_client))
        return tuple(one for key in dict.fromkeys(keys) for one in spellings(key, least=_KEY_LENGTH))

    def forked(self) -> None:
        """Know the clients that were given to the parent of this process: their connections are the parent's."""
        self._inherited = (self._client, self._async_client)

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
        if self._own:
            return self._held.sync()  # type: ignore[no-any-return]  # what _made makes
        self._held.check_open()
        if self._client is None:
            raise ConfigError(f"{self.name}: sample() needs a client; give client=openai.OpenAI(...), or use asample()")
        with self._lock:
            self._client = self._mine(self._client)
            return self._client

    async def of_loop(self) -> openai.AsyncOpenAI:
        """The async client for the running event loop. Each loop has its own: connections cannot be shared."""
        if self._async_client is None:
            return await self._held.aof_loop()  # type: ignore[no-any-return]  # what _made makes
        self._held.check_open()
        with self._lock:
            self._async_client = self._mine(self._async_client)
            return self._async_client

    def close(self) -> None:
        """Close the connections; idempotent. Those of an event loop that still runs are closed with ``aclose``."""
        self._held.close()

    async def aclose(self) -> None:
        """Do what ``close`` does, and close the connections of the running event loop."""
        await self._held.aclose()

    def _mine(self, client: Any) -> Any:
        """``client``, or where it was given to the parent of this process, one like it."""
        if client is not None and any(client is one for one in self._inherited):
            client = anew(client, name=self.name, used=self._used)
        self._used = True
        return client

    def _made(self, asynchronous: bool) -> openai.OpenAI | openai.AsyncOpenAI:
        import openai

        make: Any = openai.AsyncOpenAI if asynchronous else openai.OpenAI
        made = make(
            base_url=self.base_url,
            api_key=self._key() or "unused",
            timeout=self._timeout,
            max_retries=self._max_retries,
            http_client=self._http(asynchronous),
        )
        if self._api_key is not None or not self._key():  # they belong to the SDK's own key
            made.organization = made.project = None
        return _warm(made)  # type: ignore[no-any-return]  # either

    def _key(self) -> str | None:
        return os.environ.get("OPENAI_API_KEY") if self._api_key is None else self._api_key


def _warm(client: Any) -> Any:
    """``client``, with all that the SDK makes at its first request, behind locks that a fork does not wait for."""
    _ = client.chat.completions.with_raw_response, client.default_headers
    return client


def model_name(model: Any) -> str:
    """``model``, if it can be the name of a model on a server; else ``ConfigError``."""
    if not isinstance(model, str) or not model.strip():
        raise ConfigError(f"model is {model!r}; give the model's name on the server")
    return model
