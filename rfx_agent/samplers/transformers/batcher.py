"""Calls that come at once are decoded together: the users' side. ``worker`` is the other."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from rfx_agent.errors import SamplerError
from rfx_agent.samplers.transformers.plans import Row
from rfx_agent.samplers.transformers.worker import Batched, Call, submit

if TYPE_CHECKING:
    from rfx_agent.samplers.transformers.model import CausalModel

__all__ = ["Batched", "Batcher"]


class Batcher:
    """One user's way into the batches of a model. All users of a model share one worker thread.

    Args:
        model: the specialist.
        max_rows: most rows in a batch that holds any of this user's.
        name: for messages.

    Any number of threads and event loops may call it at once. A call that fails fails alone, and one whose caller is
    cancelled leaves the batch at the next step.
    """

    def __init__(self, model: CausalModel, *, max_rows: int, name: str) -> None:
        self._model = model
        self._max_rows = max_rows
        self._name = name
        self._lock = threading.Lock()
        self._calls: weakref.WeakSet[Call] = weakref.WeakSet()
        self._closed = False

    def run(self, rows: Sequence[Row], ancestor: CausalModel | None = None) -> Batched:
        """Decode ``rows``; blocks.

        Raises:
            SamplerError: it is closed, memory is short, or the model failed.
        """
        future = self._submit(rows, ancestor)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C: nobody waits for it any more
            raise

    async def arun(self, rows: Sequence[Row], ancestor: CausalModel | None = None) -> Batched:
        """Do what ``run`` does, without blocking the event loop."""
        return await asyncio.wrap_future(self._submit(rows, ancestor))

    def check_open(self) -> None:
        """Raise ``SamplerError`` where it is closed."""
        with self._lock:
            self._refuse_if_closed()

    def close(self) -> None:
        """Refuse new calls and end those that run with ``SamplerError``; idempotent. The model is left alone."""
        with self._lock:
            self._closed = True
            calls = list(self._calls)
        for call in calls:
            call.fail(SamplerError(f"{self._name} was closed while it decoded"))

    def _submit(self, rows: Sequence[Row], ancestor: CausalModel | None) -> Future[Batched]:
        call = Call(self._model, tuple(rows), ancestor, self._max_rows, self._name)
        with self._lock:
            self._refuse_if_closed()
            self._calls.add(call)
        submit(call)
        return call.future

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise SamplerError(f"{self._name} is closed; make a new one")
