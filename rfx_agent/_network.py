"""Connections to a server that nobody trusts: head and body come in time, what it says beside its status is dropped.

A client's own time limit starts anew with each byte. Imported where a client is made, because it loads the HTTP client.
"""

from __future__ import annotations

import contextlib
import re
import ssl
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

import httpcore2
import httpx2

from rfx_agent._http import tls_context

__all__ = ["body_seconds", "transport"]

_STREAM = 600.0  # seconds
_ASKS_FOR_STREAM = re.compile(rb'"stream"\s*:\s*true')
_POOL: dict[str, Any] = {"max_connections": 1000, "max_keepalive_connections": 100, "keepalive_expiry": 5.0}


def transport(*, asynchronous: bool, trust_env: bool = True) -> Any:
    """A transport for ``httpx2.Client``, or for ``httpx2.AsyncClient``; None where the environment has proxies.

    The head of an answer may take as long as the client's time limit for one read, from the last byte that was sent.
    Its body may take as long again (see ``body_seconds``), also where nothing of it is data, such as what stands beside
    the size of a chunk. An answer that was there before its request was sent belongs to another request: it is refused,
    and its connection closed. The text that a server puts beside its status is dropped: clients log it.

    Args:
        asynchronous: for ``httpx2.AsyncClient``.
        trust_env: whether the environment's proxies are used; the client itself makes their transports.
    """
    if trust_env and urllib.request.getproxies():
        return None
    return _AsyncTransport(trust_env) if asynchronous else _Transport(trust_env)


class _Limit:
    """Until when a part of an answer, its head or its body, may come."""

    def __init__(self, seconds: float, part: str) -> None:
        self._seconds, self._part = seconds, part
        self._until: float | None = None

    def sent(self) -> None:
        """More of the request was sent."""
        self._until = None

    def limit(self, given: float | None) -> float:
        """Seconds that one read may take."""
        now = time.monotonic()
        self._until = now + self._seconds if self._until is None else self._until
        if now >= self._until:
            raise httpcore2.ReadTimeout(f"the answer's {self._part} took longer than {self._seconds:g} s")
        return min(self._until - now, self._seconds if given is None else given)


_LIMIT: ContextVar[_Limit | None] = ContextVar("rfx_agent_limit", default=None)


@contextlib.contextmanager
def _within(limit: _Limit | None) -> Iterator[None]:
    """What is read here comes within ``limit``."""
    token = _LIMIT.set(limit)
    try:
        yield
    finally:
        _LIMIT.reset(token)


def _limit(seconds: float | None, part: str) -> _Limit | None:
    return None if seconds is None else _Limit(seconds, part)


def body_seconds(request: Any) -> float | None:
    """How long the body of the answer to ``request`` may take: its time limit for one read, and a stream that was asked
    for 10 minutes at least, because its text is written while it comes."""
    seconds: float | None = request.extensions.get("timeout", {}).get("read")
    asked = b""
    with contextlib.suppress(httpx2.RequestNotRead):
        asked = request.content
    return max(seconds, _STREAM) if seconds is not None and _ASKS_FOR_STREAM.search(asked) else seconds


@contextlib.contextmanager
def _awaited(request: Any) -> Iterator[httpcore2.Request]:
    """``request`` as the pool takes it, its head awaited and its errors the client's."""
    url = request.url
    seconds = request.extensions.get("timeout", {}).get("read")
    with _within(_limit(seconds, "head")), _errors():
        yield httpcore2.Request(
            method=request.method,
            url=httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """The pool's errors as the client's, which have the same names."""
    try:
        yield
    except Exception as error:
        mine = next((x for base in type(error).__mro__ if (x := getattr(httpx2, base.__name__, None))), None)
        if not type(error).__module__.startswith("httpcore2") or mine is None:
            raise
        raise mine(str(error)) from error


def _answer(got: httpcore2.Response, request: Any) -> httpx2.Response:
    extensions = {**got.extensions, "reason_phrase": b""}
    body = _Body(got.stream, _limit(body_seconds(request), "body"))
    return httpx2.Response(got.status, headers=got.headers, stream=body, extensions=extensions)


_ANOTHERS = "the answer was there before the request was sent, and so it is another's"


def _was_there(got: httpcore2.Response) -> bool:
    """Whether nothing was read for ``got`` since its request was sent."""
    return not getattr(got.extensions.get("network_stream"), "was_read", True)


class _Body(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    def __init__(self, stream: Any, limit: _Limit | None) -> None:
        self._stream, self._limit = stream, limit

    def __iter__(self) -> Iterator[bytes]:
        parts = iter(self._stream)
        while True:
            with _within(self._limit), _errors():
                part = next(parts, None)
            if part is None:
                return
            yield part

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = aiter(self._stream)
        while True:
            with _within(self._limit), _errors():
                part = await anext(parts, None)
            if part is None:
                return
            yield part

    def close(self) -> None:
        self._stream.close()

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Transport(httpx2.BaseTransport):
    def __init__(self, trust_env: bool) -> None:
        context = tls_context(trust_env=trust_env)
        self._pool = httpcore2.ConnectionPool(ssl_context=context, network_backend=_Network(), **_POOL)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        with _awaited(request) as asked:
            got = self._pool.handle_request(asked)
            if _was_there(got):
                got.close()
                raise httpcore2.RemoteProtocolError(_ANOTHERS)
            return _answer(got, request)

    def close(self) -> None:
        self._pool.close()


class _AsyncTransport(httpx2.AsyncBaseTransport):
    def __init__(self, trust_env: bool) -> None:
        context = tls_context(trust_env=trust_env)
        self._pool = httpcore2.AsyncConnectionPool(ssl_context=context, network_backend=_AsyncNetwork(), **_POOL)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        with _awaited(request) as asked:
            got = await self._pool.handle_async_request(asked)
            if _was_there(got):
                await got.aclose()
                raise httpcore2.RemoteProtocolError(_ANOTHERS)
            return _answer(got, request)

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Network(httpcore2.SyncBackend):
    def connect_tcp(self, *args: Any, **options: Any) -> httpcore2.NetworkStream:
        return _Stream(super().connect_tcp(*args, **options))


class _AsyncNetwork(httpcore2.AnyIOBackend):
    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        return _AsyncStream(await super().connect_tcp(*args, **options))


class _Stream(httpcore2.NetworkStream):
    def __init__(self, inner: httpcore2.NetworkStream) -> None:
        self._inner = inner
        self.was_read = True  # since the last byte was sent

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self.was_read = True
        limit = _LIMIT.get()
        return self._inner.read(max_bytes, timeout if limit is None else limit.limit(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.was_read = False
        self._inner.write(buffer, timeout)
        if limit := _LIMIT.get():
            limit.sent()

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _AsyncStream(httpcore2.AsyncNetworkStream):
    def __init__(self, inner: httpcore2.AsyncNetworkStream) -> None:
        self._inner = inner
        self.was_read = True  # since the last byte was sent

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self.was_read = True
        limit = _LIMIT.get()
        return await self._inner.read(max_bytes, timeout if limit is None else limit.limit(timeout))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.was_read = False
        await self._inner.write(buffer, timeout)
        if limit := _LIMIT.get():
            limit.sent()

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        return _AsyncStream(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
