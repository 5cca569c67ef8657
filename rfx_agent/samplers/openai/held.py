"""Connections that are made when they are first needed: one client for all threads, one for each event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from rfx_agent._forks import Lock, in_child
from rfx_agent._http import prepare
from rfx_agent.errors import SamplerError

__all__ = ["Held"]


class Held:
    """The clients that ``make`` makes, given whether one is to be async.

    A child of a fork makes its own. The others are not closed there, because they are its parent's.

    Args:
        name: of what they belong to, for messages.
        make: gives one client.
    """

    def __init__(self, name: str, make: Callable[[bool], Any]) -> None:
        self._name = name
        self._make = make
        self._sync: Any = None
        self._loops: dict[asyncio.AbstractEventLoop, Any] = {}
        self._lock = Lock()
        self._closed = False
        in_child(Held.forked, self)

    def sync(self) -> Any:
        """The client of the sync side, for any number of threads."""
        with self._lock:
            self.check_open()
            if self._sync is None:
                self._sync = self._make(False)
            return self._sync

    def of_loop(self) -> Any:
        """The async client for the running event loop. Each loop has its own: connections cannot be shared."""
        with self._lock:
            self.check_open()
            loop = asyncio.get_running_loop()
            found = self._loops.get(loop)
            return self._keep(loop, self._make(True)) if found is None else found

    async def aof_loop(self) -> Any:
        """Do what ``of_loop`` does. A client that has to be made is made in a thread: that imports and reads files."""
        loop = asyncio.get_running_loop()
        with self._lock:
            self.check_open()
            found = self._loops.get(loop)
        if found is not None:
            return found
        made = await asyncio.to_thread(self._prepared)
        with self._lock:
            self.check_open()
            return self._keep(loop, made)

    def _keep(self, loop: asyncio.AbstractEventLoop, made: Any) -> Any:
        """Keep ``made`` for ``loop`` where it has no client yet, and drop those of loops that are closed."""
        self._loops = {x: client for x, client in self._loops.items() if not x.is_closed()}
        return self._loops.setdefault(loop, made)

    def _prepared(self) -> Any:
        prepare()
        return self._make(True)

    def check_open(self) -> None:
        """Raise ``SamplerError`` after ``close``."""
        if self._closed:
            raise SamplerError(f"{self._name!r} is closed; make a new one")

    def close(self) -> None:
        """Close the connections; idempotent. Those of an event loop that still runs are closed with ``aclose``."""
        with self._lock:
            self._closed = True
            client, self._sync = self._sync, None
            self._loops.clear()
        if client is not None:
            client.close()

    async def aclose(self) -> None:
        """Do what ``close`` does, and close the connections of the running event loop."""
        with self._lock:
            mine = self._loops.pop(asyncio.get_running_loop(), None)
        self.close()
        if mine is not None:
            await (mine.aclose if hasattr(mine, "aclose") else mine.close)()

    def forked(self) -> None:
        """Forget what the parent of this process uses."""
        self._sync, self._loops = None, {}
