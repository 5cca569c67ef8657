"""The HTTP client of a sampler: it follows no redirect, bounds a body in time and size, and counts what was lost."""

from __future__ import annotations

import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

from rfx_agent.samplers.openai.reply import MalformedReplyError

__all__ = ["TALLY", "Tally", "http_client"]

_MOST_BYTES = 64 * 2**20  # a table of 8 draws of 4,096 tokens with 20 alternatives has 25 MiB
_INFLATES = ("gzip", "deflate")


@dataclass(slots=True)
class Tally:
    """The tries of one request.

    Attributes:
        sent: tries whose request left.
        answered: of these, the ones that came back whole, or with a status that says that no work was done.
    """

    sent: int = 0
    answered: int = 0

    @property
    def lost(self) -> int:
        """Tries that the server may have worked on, and that brought nothing."""
        return max(0, self.sent - self.answered)


TALLY: ContextVar[Tally | None] = ContextVar("rfx_agent_tally", default=None)
"""Where the tries of the request that is under way are counted."""


def http_client(
    *,
    asynchronous: bool,
    seconds: float,
    trust_env: bool = True,
    before: Callable[[], None] | None = None,
    connected: Callable[[Any], None] | None = None,
) -> Any:
    """An HTTP client for the SDK, of its own defaults but for what this module is about.

    Args:
        asynchronous: for ``AsyncOpenAI``.
        seconds: that a body may take, once it has begun.
        trust_env: whether the environment's proxies are used.
        before: called before each try; what it raises ends the request.
        connected: told of each connection that is made, by its socket.
    """
    import openai

    def request(sent: Any) -> Callable[[str, Mapping[str, Any]], None]:
        if before is not None:
            before()
        tally = TALLY.get()

        def seen(event: str, info: Mapping[str, Any]) -> None:
            if event == "connection.connect_tcp.complete" and connected is not None:
                connected(info["return_value"].get_extra_info("socket"))
            elif event.endswith(".send_request_headers.complete") and tally is not None:
                tally.sent += 1

        sent.headers["accept-encoding"] = ", ".join(_INFLATES)
        return seen

    def response(got: Any) -> None:
        tally = TALLY.get()
        if not got.is_success:
            if tally is not None:
                tally.answered += 1
            tally = None
        inflates = (got.headers.pop("content-encoding", None) or "identity").strip().lower()
        if inflates not in (*_INFLATES, "identity"):
            raise MalformedReplyError(f"the body is compressed by {inflates[:40]!r}, which nobody asked for")
        got.stream = _bounded()(got.stream, _Bound(seconds, inflates != "identity", tally))

    def on_request(sent: Any) -> None:
        sent.extensions["trace"] = request(sent)

    async def on_request_async(sent: Any) -> None:
        seen = request(sent)

        async def on_event(event: str, info: Mapping[str, Any]) -> None:
            seen(event, info)

        sent.extensions["trace"] = on_event

    async def on_response_async(got: Any) -> None:
        response(got)

    make: Any = openai.DefaultAsyncHttpxClient if asynchronous else openai.DefaultHttpxClient
    hooks = (
        {"request": [on_request_async], "response": [on_response_async]}
        if asynchronous
        else {"request": [on_request], "response": [response]}
    )
    return make(trust_env=trust_env, follow_redirects=False, event_hooks=hooks)


class _Bound:
    """How much of a body has come, and until when more may come."""

    def __init__(self, seconds: float, inflates: bool, tally: Tally | None) -> None:
        self._until, self._seconds, self._tally = time.monotonic() + seconds, seconds, tally
        self._size = 0
        # 32: gzip or zlib, by its header.
        self._inflate = zlib.decompressobj(32 + zlib.MAX_WBITS) if inflates else None

    def take(self, chunk: bytes) -> bytes:
        """A chunk as it may be read on."""
        import httpx2

        if time.monotonic() > self._until:
            raise httpx2.ReadTimeout(f"the body took longer than {self._seconds:g} s")
        room = _MOST_BYTES - self._size
        if self._inflate is not None:
            try:
                chunk = self._inflate.decompress(chunk, room + 1)
            except zlib.error as error:
                raise MalformedReplyError(f"the body is not what it is compressed as: {error}") from error
        self._size += len(chunk)
        if self._size > _MOST_BYTES:
            raise MalformedReplyError(f"the body is larger than {_MOST_BYTES // 2**20} MiB")
        return chunk

    def end(self) -> None:
        """The body is whole."""
        if self._tally is not None:
            self._tally.answered += 1


@cache
def _bounded() -> Any:
    """The class of a bounded body; made once, and not before there is one, because it derives from the SDK's client."""
    import httpx2

    class Bounded(httpx2.SyncByteStream, httpx2.AsyncByteStream):
        def __init__(self, stream: Any, bound: _Bound) -> None:
            self._stream, self._bound = stream, bound

        def __iter__(self) -> Iterator[bytes]:
            for chunk in self._stream:
                yield self._bound.take(chunk)
            self._bound.end()

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for chunk in self._stream:
                yield self._bound.take(chunk)
            self._bound.end()

        def close(self) -> None:
            self._stream.close()

        async def aclose(self) -> None:
            await self._stream.aclose()

    return Bounded
