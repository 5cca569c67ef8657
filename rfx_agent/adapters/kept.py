"""What this process remembers of runs. What was used longest ago is forgotten."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from rfx_agent._forks import Lock

__all__ = ["Kept"]

T = TypeVar("T")


class Kept(Generic[T]):
    """The values that were used last, by key. Safe to use from any thread.

    A key may hold the identity of an object: the object is then given as ``owner`` and kept as long as the value, so
    that no other object can have that identity.

    Args:
        most: how many values are kept.
    """

    def __init__(self, most: int = 1_024) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[Any, ...], tuple[T, object]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: tuple[Any, ...]) -> T | None:
        """The value of ``key``; None where there is none."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[0]

    def put(self, key: tuple[Any, ...], make: Callable[[], T], owner: object) -> T:
        """The value of ``key``; ``make()`` where there was none."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make(), owner
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
            return self._kept[key][0]

    def replace(self, key: tuple[Any, ...], value: T, owner: object) -> None:
        """Keep ``value`` in place of what ``key`` had."""
        with self._lock:
            self._kept.pop(key, None)
        self.put(key, lambda: value, owner)
