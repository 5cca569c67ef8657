"""Telling somebody that a case waits for a person."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

__all__ = ["Notifier", "Notify", "notifier_of"]


@runtime_checkable
class Notifier(Protocol):
    """Tells somebody that a case was opened; what it raises becomes a note of the case, which waits all the same.

    A process that dies at the wrong moment tells again: ``key`` is the same then, so that a receiver can tell.
    """

    def notify(self, payload: Mapping[str, Any], *, key: str) -> None:
        """Tell of ``payload``, what the person will be shown."""
        ...

    async def anotify(self, payload: Mapping[str, Any], *, key: str) -> None:
        """Do what ``notify`` does, without blocking the event loop."""
        ...


Notify: TypeAlias = Notifier | Callable[[Mapping[str, Any]], Awaitable[None] | None]
"""A ``Notifier``, or a function of the payload, sync or async."""


def notifier_of(notify: Notify) -> Notifier:
    """``notify`` as a ``Notifier``."""
    return notify if isinstance(notify, Notifier) else _Function(notify)


class _Function:
    def __init__(self, function: Callable[[Mapping[str, Any]], Any]) -> None:
        self._function = function

    def notify(self, payload: Mapping[str, Any], *, key: str) -> None:
        told = self._function(payload)
        if inspect.isawaitable(told):
            asyncio.run(_awaited(told))

    async def anotify(self, payload: Mapping[str, Any], *, key: str) -> None:
        if inspect.iscoroutinefunction(self._function):
            await self._function(payload)
        else:
            await asyncio.to_thread(self.notify, payload, key=key)


async def _awaited(told: Awaitable[None]) -> None:
    await told
