"""A sampler whose requests can be broken off: for a server inside the process, which must not be stopped
under them.

llama.cpp waits for its open requests when it is stopped, and these would wait for it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping
from typing import Any

from rfx_agent.errors import SamplerError
from rfx_agent.samplers.openai.sampler import OpenAISampler

__all__ = ["LoopbackSampler"]


class LoopbackSampler(OpenAISampler):
    """An ``OpenAISampler`` of a server on this machine: it uses no proxy, and ``abort`` ends what it has
    open."""

    _sockets: list[Any]
    _aborted: bool = False

    def __init__(self, model: str, **options: Any) -> None:
        super().__init__(model, **options)
        self._sockets = []
        self._guard = threading.Lock()

    def abort(self) -> None:
        """Shut down every connection, in whichever thread or loop it is, and refuse new ones."""
        with self._guard:
            self._aborted = True
            open_, self._sockets = self._sockets, []
        for one in open_:
            with contextlib.suppress(OSError):  # closed by the server or the client already
                one.shutdown(socket.SHUT_RDWR)

    def _settings(self, *, asynchronous: bool) -> dict[str, Any]:
        import openai

        make: Any = openai.DefaultAsyncHttpxClient if asynchronous else openai.DefaultHttpxClient
        hook = self._on_request_async if asynchronous else self._on_request
        # Not the environment's proxies: they would be asked for their own loopback.
        http_client = make(trust_env=False, event_hooks={"request": [hook]})
        return super()._settings(asynchronous=asynchronous) | {"http_client": http_client}

    # The client's hooks: its trace of a request tells when a connection was made.

    def _on_request(self, request: Any) -> None:
        self._check()
        request.extensions["trace"] = self._on_event

    async def _on_request_async(self, request: Any) -> None:
        self._check()
        request.extensions["trace"] = self._on_event_async

    def _on_event(self, event: str, info: Mapping[str, Any]) -> None:
        if event != "connection.connect_tcp.complete":
            return
        made = info["return_value"].get_extra_info("socket")
        with self._guard:
            self._sockets = [one for one in self._sockets if one.fileno() != -1]
            self._sockets.append(made)
        self._check()

    async def _on_event_async(self, event: str, info: Mapping[str, Any]) -> None:
        self._on_event(event, info)

    def _check(self) -> None:
        if self._aborted:
            raise SamplerError(f"{self.name!r} was closed while it was sampled")
