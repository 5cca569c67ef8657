"""The garbage collector stands still while much is read.

Tens of thousands of short-lived objects would have it go through the whole process, which holds the interpreter's lock,
and so every event loop, for 100 ms and more.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field

from rfx_agent._forks import Lock, in_child

__all__ = ["collector_paused"]


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Pauses the collector until the last that is inside has left; one that is off already stays so."""
    with _PAUSES.lock:
        _PAUSES.open += 1
        if _PAUSES.open == 1 and gc.isenabled():
            gc.disable()
            _PAUSES.ours = True
    try:
        yield
    finally:
        with _PAUSES.lock:
            _PAUSES.open -= 1
            if not _PAUSES.open:
                _PAUSES.end()


@dataclass(slots=True, weakref_slot=True, eq=False)
class _Pauses:
    """How many threads are inside now, and whether it was us who switched the collector off."""

    lock: Lock = field(default_factory=Lock)
    open: int = 0
    ours: bool = False

    def forked(self) -> None:
        """In a forked child: the threads that are inside are the parent's."""
        self.open = 0
        self.end()

    def end(self) -> None:
        if self.ours:
            self.ours = False
            gc.enable()


_PAUSES = _Pauses()
in_child(_Pauses.forked, _PAUSES)
