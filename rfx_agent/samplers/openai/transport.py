"""The HTTP client of a sampler: it follows no redirect, bounds a body in time and size, and counts what was lost."""

from __future__ import annotations

import contextlib
import math
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

from rfx_agent._http import tls_context
from rfx_agent.engine.drive import METER
from rfx_agent.errors import RfxError, SamplerError, may_have_worked
from rfx_agent.samplers.openai.reply import MalformedReplyError

__all__ = ["TALLY", "Tally", "Tries", "given_up", "http_client"]

_MOST_BYTES = 64 * 2**20  # a table of 8 draws of 4,096 tokens with 20 alternatives has 25 MiB
_MOST_OF_ERROR = 64 * 2**10  # the rest of what an error says is not read
_MOST_VALUES = 2**22  # in the same table are 3.3 million; as Python objects each takes 60 bytes and more
_INFLATES = ("gzip", "deflate")


@dataclass(slots=True)
class Tally:
    """The tries of one request.

    Attributes:
        call: the call of a model that they belong to; None where they are a sampler's.
        outer: the tally of a sampler that makes this call: what is counted here is counted there too.
        tried: tries; above 0 only where the client counts them.
        sent: of these, the ones whose request left.
        answered: of these, the ones that came back whole, or with a status that says that no work was done.
        whole: of these, the ones that came back whole.
        earlier: tries that were lost before the last one began. A stream that ended well is not always read to its end.
        further, afurther: called before each try after the first; what they raise keeps it from being sent.
    """

    call: object = None
    outer: Tally | None = None
    tried: int = 0
    sent: int = 0
    answered: int = 0
    whole: int = 0
    earlier: int = 0
    further: Callable[[], None] | None = None
    afurther: Callable[[], Awaitable[None]] | None = None

    @property
    def lost(self) -> int:
        """Tries that the server may have worked on, and that brought nothing."""
        return max(0, self.sent - self.answered)

    def each(self) -> Iterator[Tally]:
        """This one and the one around it."""
        yield self
        if self.outer is not None:
            yield self.outer


TALLY: ContextVar[Tally | None] = ContextVar("rfx_agent_tally", default=None)
"""Where the tries of the request that is under way are counted."""


class Tries:
    """The tries of one call of a model, told by the callbacks of its start and its end, in the context of the call.

    A generator that is left half read leaves its tally in the context, so each call has a tally of its own.

    Attributes:
        begun: whether the call has begun.
    """

    def __init__(self) -> None:
        self.begun = False
        self._tally = Tally()

    def begin(
        self,
        call: object,
        further: Callable[[], None] | None = None,
        afurther: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """The call begins. ``call`` identifies it; ``further`` and ``afurther`` are those of ``Tally``."""
        found = TALLY.get()
        if found is None or found.call != call:
            outer = found if found is None or found.call is None else found.outer
            TALLY.set(found := Tally(call=call, outer=outer))
        self.begun, self._tally = True, found
        if further is not None:
            found.further, found.afurther = further, afurther

    def end(self) -> None:
        """The call is over."""
        self._tally.further = self._tally.afurther = None
        if self.begun and TALLY.get() is self._tally:
            TALLY.set(self._tally.outer)

    @property
    def tried(self) -> int:
        """Tries so far; 0 where the client does not count them."""
        return self._tally.tried

    @property
    def lost(self) -> int:
        """Of these, the ones that the server may have worked on, and that brought nothing."""
        return self._tally.lost

    @property
    def spoiled(self) -> int:
        """Of these, the ones that the server may have worked on: what was lost where the call ended in an error."""
        return self._tally.lost + self._tally.whole

    @property
    def earlier(self) -> int:
        """Of these, the ones before the last try: what was lost where that brought the answer."""
        return self._tally.earlier


def given_up() -> SamplerError:
    """Why no further try of a call is sent that has ended for its caller."""
    return SamplerError("the call was given up, and nobody waits for an answer any more")


def http_client(
    *,
    asynchronous: bool = False,
    trust_env: bool = True,
    before: Callable[[], None] | None = None,
    connected: Callable[[Any], None] | None = None,
) -> Any:
    """An HTTP client for OpenAI's SDK, or for what is built on it, that a server cannot hold or flood.

    It follows no redirect. The head of an answer and its body may each take as long as the request's time limit, and a
    stream that was asked for 10 minutes at least. A body may have 64 MiB and 4 million values. ``ChatModelSampler``
    charges the tries that it lost. Beyond that it is as the SDK's own.

    Args:
        asynchronous: for ``AsyncOpenAI``; such a client serves one event loop.
        trust_env: whether the environment's proxies are used; through one, the time of a head is not bounded.
        before: called before each try; what it raises ends the request.
        connected: told of each connection that is made, by its socket.

    Example:
        >>> import openai
        >>> client = openai.OpenAI(api_key="...", http_client=http_client())
    """
    import openai

    from rfx_agent._network import body_seconds, transport

    def request(sent: Any) -> Callable[[str, Mapping[str, Any]], None]:
        if before is not None:
            before()
        tally, meter = TALLY.get(), METER.get()
        if meter is not None and meter.ended:
            raise given_up()
        for one in () if tally is None else tally.each():
            one.earlier = one.lost
            one.tried += 1

        def seen(event: str, info: Mapping[str, Any]) -> None:
            if event == "connection.connect_tcp.complete" and connected is not None:
                connected(info["return_value"].get_extra_info("socket"))
            elif event.endswith(".send_request_headers.complete"):
                for one in () if tally is None else tally.each():
                    one.sent += 1
                if meter is not None:
                    meter.count()

        sent.headers["accept-encoding"] = ", ".join(_INFLATES)
        # The client logs its URL: what may be a key goes beside it, as the target of the request's first line.
        sent.extensions["target"] = sent.url.raw_path
        sent.url = sent.url.copy_with(query=None, userinfo=b"")
        return seen

    def response(got: Any) -> None:
        tally = TALLY.get()
        if not got.is_success:
            if tally is not None and not may_have_worked(got.status_code):
                for one in tally.each():
                    one.answered += 1
            tally = None
        inflates = (got.headers.pop("content-encoding", None) or "identity").strip().lower()
        if inflates not in (*_INFLATES, "identity"):
            # Not by what: a server may have written a key there, in small letters or cut.
            raise MalformedReplyError(
                f"the body is compressed by other than {' or '.join(_INFLATES)}, as was asked for"
            )
        bound = _Bound(body_seconds(got.request), inflates != "identity", tally, error=not got.is_success)
        got.stream = _bounded()(got.stream, bound)

    def on_request(sent: Any) -> None:
        if (tally := _tried_before(sent)) is not None and tally.further is not None:
            with _told_at_once():
                tally.further()
        sent.extensions["trace"] = request(sent)

    async def on_request_async(sent: Any) -> None:
        if (tally := _tried_before(sent)) is not None and tally.afurther is not None:
            with _told_at_once():
                await tally.afurther()
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
    inner = transport(asynchronous=asynchronous, trust_env=trust_env)
    more = {"verify": tls_context(trust_env=trust_env)} if inner is None else {"transport": inner}
    return make(trust_env=trust_env, follow_redirects=False, event_hooks=hooks, **more)


def _tried_before(sent: Any) -> Tally | None:
    """The tally of the request that is tried again; None at a first try: LangChain may begin many calls at once."""
    tally = TALLY.get()
    first = tally is None or not tally.tried or sent.headers.get("x-stainless-retry-count") == "0"
    return None if first else tally


@contextlib.contextmanager
def _told_at_once() -> Iterator[None]:
    """What this package raises inside reaches the caller as it is: an SDK of version 3.0 tries again after all
    but its own errors, and ends in a connection error."""
    try:
        yield
    except RfxError as error:
        kind: Any = type(error)
        error.__class__ = _of_sdk(kind)
        raise


@cache
def _of_sdk(kind: Any) -> Any:
    """``kind`` as an error of the SDK's own."""
    import openai

    if issubclass(kind, openai.OpenAIError):
        return kind

    def reduced(error: Any, protocol: Any) -> Any:  # pickled as what it was: this class cannot be imported
        how, given, *rest = kind.__reduce_ex__(error, protocol)
        return how, tuple(kind if x is type(error) else x for x in given), *rest

    told = {"__module__": kind.__module__, "__doc__": kind.__doc__, "__reduce_ex__": reduced}
    return type(kind.__name__, (kind, openai.OpenAIError), told)


class _Bound:
    """How much of a body has come, and until when more may come.

    Attributes:
        full: whether no more of it is read.
    """

    def __init__(self, seconds: float | None, inflates: bool, tally: Tally | None, *, error: bool) -> None:
        self.full = False
        self._error = error
        self._seconds, self._tally = math.inf if seconds is None else seconds, tally
        self._until = time.monotonic() + self._seconds
        self._size = self._values = 0
        # 32: gzip or zlib, by its header.
        self._inflate = zlib.decompressobj(32 + zlib.MAX_WBITS) if inflates else None

    def take(self, chunk: bytes) -> bytes:
        """A chunk as it may be read on."""
        import httpx2

        if time.monotonic() > self._until:
            raise httpx2.ReadTimeout(f"the body took longer than {self._seconds:g} s")
        room = (_MOST_OF_ERROR if self._error else _MOST_BYTES) - self._size
        if self._inflate is not None:
            try:
                chunk = self._inflate.decompress(chunk, room + 1)
            except zlib.error as error:
                raise MalformedReplyError(f"the body is not what it is compressed as: {error}") from error
        self._size += len(chunk)
        if len(chunk) > room and not self._error:
            raise MalformedReplyError(f"the body is larger than {_MOST_BYTES // 2**20} MiB")
        self.full = len(chunk) > room
        self._values += chunk.count(b",")
        if self._values > _MOST_VALUES:
            raise MalformedReplyError(f"the body has more than {_MOST_VALUES:,} values")
        return chunk[:room]

    def end(self) -> None:
        """The body is whole."""
        for one in () if self._tally is None else self._tally.each():
            one.answered += 1
            one.whole += 1


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
                if self._bound.full:
                    break
            self._bound.end()

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for chunk in self._stream:
                yield self._bound.take(chunk)
                if self._bound.full:
                    break
            self._bound.end()

        def close(self) -> None:
            self._stream.close()

        async def aclose(self) -> None:
            await self._stream.aclose()

    return Bounded
