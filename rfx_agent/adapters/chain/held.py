"""What streaming handlers see of an attempt is held until the attempt is accepted.

``astream_events``, ``astream_log`` and LangGraph's ``messages`` mode watch through callback handlers. An attempt that
ran with them as they are would show its tokens before anybody judged them. It runs with a ``Held`` in the place of each
one instead: told everything at once, it passes it on in the same order when the attempt is accepted, and forgets it
otherwise. Tracers and other handlers are left alone: they see every attempt as it happens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.callbacks.manager import ahandle_event, handle_event
from langchain_core.tracers._streaming import _StreamingCallbackHandler, _V2StreamingCallbackHandler

__all__ = ["Held", "hold", "streaming_handler"]

_TAP = "tap"


def streaming_handler(handlers: list[BaseCallbackHandler]) -> _StreamingCallbackHandler[Any] | None:
    """The handler that wants a run's chunks, if there is one."""
    return next((h for h in handlers if isinstance(h, _StreamingCallbackHandler)), None)


def hold(manager: BaseCallbackManager) -> list[Held]:
    """Put a ``Held`` in the place of each streaming handler of ``manager``; those that were put there."""
    if not manager.handlers or streaming_handler(manager.handlers) is None:
        return []
    put: dict[int, Held] = {}
    for handler in manager.handlers:
        if isinstance(handler, _StreamingCallbackHandler):
            kind = _HeldV2 if isinstance(handler, _V2StreamingCallbackHandler) else Held
            put[id(handler)] = kind(handler)
    inheritable = {id(h) for h in manager.inheritable_handlers}
    handlers, manager.handlers, manager.inheritable_handlers = manager.handlers, [], []
    for handler in handlers:
        manager.add_handler(put.get(id(handler), handler), inherit=id(handler) in inheritable)
    return list(put.values())


class Held(BaseCallbackHandler, _StreamingCallbackHandler[Any]):
    """Stands in for a streaming handler and remembers what it was told."""

    run_inline = True  # the order is the whole point

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._told: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.raise_error = inner.raise_error

    def tap_output_iter(self, run_id: UUID, output: Iterator[Any]) -> Iterator[Any]:
        """The chunks of a run, each remembered."""
        for chunk in output:
            self._told.append((_TAP, (run_id, chunk), {}))
            yield chunk

    async def tap_output_aiter(self, run_id: UUID, output: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The same for a run on the event loop."""
        async for chunk in output:
            self._told.append((_TAP, (run_id, chunk), {}))
            yield chunk

    def release(self) -> None:
        """Tell the handler everything, in the order it happened."""
        taps = _Taps(self._inner)
        for name, args, kwargs in self._told:
            if name == _TAP:
                taps.give(*args)
            else:
                handle_event([self._inner], name, None, *args, **kwargs)
        self._told.clear()

    async def arelease(self) -> None:
        """Do what ``release`` does, without blocking the event loop."""
        taps = _Taps(self._inner)
        for name, args, kwargs in self._told:
            if name == _TAP:
                taps.give(*args)
            else:
                await ahandle_event([self._inner], name, None, *args, **kwargs)
        self._told.clear()


class _HeldV2(Held, _V2StreamingCallbackHandler):
    """For handlers that ask chat models for content-block events."""


class _Taps:
    """Gives chunks to a handler's taps: one open iterator a run, fed a chunk at a time."""

    def __init__(self, handler: _StreamingCallbackHandler[Any]) -> None:
        self._handler = handler
        self._open: dict[UUID, tuple[deque[Any], Iterator[Any]]] = {}

    def give(self, run_id: UUID, chunk: Any) -> None:
        if run_id not in self._open:
            feed: deque[Any] = deque()
            # Never asked for more than was put in, so its end is never reached.
            self._open[run_id] = feed, self._handler.tap_output_iter(run_id, iter(feed.popleft, _Taps))
        feed, tap = self._open[run_id]
        feed.append(chunk)
        next(tap)


def _recorder(name: str) -> Callable[..., None]:
    def record(self: Held, *args: Any, **kwargs: Any) -> None:
        self._told.append((name, args, kwargs))

    return record


def _flag(name: str) -> property:
    return property(lambda self: getattr(self._inner, name))


for _name in dir(BaseCallbackHandler):  # the list of callbacks is LangChain's and grows
    if _name.startswith("on_"):
        setattr(Held, _name, _recorder(_name))
    elif _name.startswith("ignore_"):
        setattr(Held, _name, _flag(_name))
