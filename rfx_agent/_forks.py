"""What a forked child must not take over from its parent: locks that a thread held, connections, helper processes."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

__all__ = ["Lock", "in_child", "own_environment"]

_CLEAN = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "SYSTEMROOT", "TMPDIR", "MONTY_BIN")


def own_environment() -> dict[str, str]:
    """The environment of a helper process: what a program needs to start, and none of this process's keys."""
    return {name: os.environ[name] for name in _CLEAN if name in os.environ}


def in_child(renew: Callable[[Any], None], owner: Any) -> None:
    """Call ``renew(owner)`` in every forked child, as long as ``owner`` lives."""
    _owners.setdefault(renew, _Living()).add(owner)


class Lock:
    """A lock that a fork waits for, so that a child finds whole what it guards, and that is free in the child.

    For what is held for a moment: a fork waits 5 seconds for all of them, and then the child has one that is free
    although a thread was at work.

    Args:
        make: ``threading.Lock`` or ``threading.RLock``.
    """

    def __init__(self, make: Callable[[], Any] = threading.Lock) -> None:
        self._make, self._lock = make, make()
        _locks.add(self)

    def acquire(self, timeout: float = -1) -> bool:
        """Whether it was free within ``timeout`` seconds; by default it is waited for as long as it takes."""
        return bool(self._lock.acquire(timeout=min(timeout, threading.TIMEOUT_MAX)))

    def release(self) -> None:
        """Let others have it."""
        self._lock.release()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def renew(self) -> None:
        """In a forked child: whoever held it is not there."""
        self._lock = self._make()


class _Living:
    """Objects as long as they live. Unlike a ``WeakSet``, it may be read while other threads add to it."""

    def __init__(self) -> None:
        self._found: dict[int, weakref.ref[Any]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Any]:
        return (one for found in list(self._found.values()) if (one := found()) is not None)

    def add(self, one: Any) -> None:
        key = id(one)
        self._found[key] = weakref.ref(one, lambda _: self._found.pop(key, None))


class _Forking(threading.local):
    """The locks that a thread took before it forks."""

    def __init__(self) -> None:
        self.held: list[Lock] = []


_PATIENCE = 5.0
_locks = _Living()
_owners: dict[Callable[[Any], None], _Living] = {}
_forking = _Forking()


def _before() -> None:
    ends = time.monotonic() + _PATIENCE
    _forking.held = [x for x in _locks if x.acquire(timeout=max(0.0, ends - time.monotonic()))]


def _in_parent() -> None:
    while _forking.held:
        _forking.held.pop().release()


def _in_child() -> None:
    _forking.held = []
    for lock in _locks:
        lock.renew()
    for renew, owners in list(_owners.items()):
        for owner in owners:
            renew(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
