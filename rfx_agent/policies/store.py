"""Where workers share what they have learned."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from rfx_agent._forks import Lock
from rfx_agent.policies.belief import Belief

__all__ = ["MemoryPolicyStore", "PolicyStore"]


@runtime_checkable
class PolicyStore(Protocol):
    """Shares one belief between workers. Both are atomic: a worker sends only what it has seen since it last sent."""

    def load(self) -> Belief:
        """Everything that was added so far."""
        ...

    def add(self, seen: Belief) -> Belief:
        """Add ``seen`` and return the sum."""
        ...


class MemoryPolicyStore:
    """A store for the threads of one process."""

    def __init__(self, belief: Belief | None = None) -> None:
        self._belief = belief or Belief()
        self._lock = Lock()

    def load(self) -> Belief:
        """Everything that was added so far."""
        return self._belief

    def add(self, seen: Belief) -> Belief:
        """Add ``seen`` and return the sum."""
        with self._lock:
            self._belief = self._belief + seen
            return self._belief
