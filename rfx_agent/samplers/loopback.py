"""A sampler whose requests can be broken off: for a server inside the process, which must not be stopped
under them.

llama.cpp waits for its open requests when it is stopped, and these would wait for it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

from rfx_agent.errors import SamplerError
from rfx_agent.samplers.openai.sampler import OpenAISampler
from rfx_agent.samplers.openai.transport import http_client

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

    def _http_client(self, *, asynchronous: bool) -> Any:
        # Not the environment's proxies: they would be asked for their own loopback.
        return http_client(asynchronous=asynchronous, trust_env=False, before=self._check, connected=self._connected)

    def _connected(self, made: Any) -> None:
        with self._guard:
            self._sockets = [one for one in self._sockets if one.fileno() != -1]
            self._sockets.append(made)
        self._check()

    def _check(self) -> None:
        if self._aborted:
            raise SamplerError(f"{self.name!r} was closed while it was sampled")
