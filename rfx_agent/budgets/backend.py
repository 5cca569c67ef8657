"""What the one writer of a process asks of a database, and how it is told what went wrong there."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rfx_agent.budgets.limits import Account, Claim
from rfx_agent.budgets.operations import Operation

__all__ = ["Backend", "Credit", "Failure", "Unknown"]


@dataclass(slots=True)
class Credit:
    """Normal traffic that was not written yet.

    Attributes:
        claim: the account, and how much.
        since: ``Backend.tick`` when the first of it was seen; all of it expires as early as that.
    """

    claim: Claim
    since: float


class Unknown(Exception):
    """Something was sent and not answered, so it may have been done or not. Never leaves a store."""


class Failure(Exception):
    """Something that was not done, or not for certain. Never leaves a store.

    Attributes:
        error: what was raised.
        again: whether the same may succeed soon.
        lost: whether the connection is gone.
        alone: whether one of the requests may be to blame, and the others would succeed without it.
        unknown: whether it may have been done after all.
    """

    def __init__(self, message: str, error: Exception, *, again: bool, lost: bool, alone: bool) -> None:
        self.error = error
        self.again = again
        self.lost = lost
        self.alone = alone
        self.unknown = False
        super().__init__(message)


class Backend(ABC):
    """A database. All but ``seen``, ``tick`` and ``failure_of`` is called from one thread at a time.

    Attributes:
        shown: where it is, without secrets.
    """

    shown: str
    _clock: Callable[[], float] | None = None

    def tick(self) -> float:
        """Seconds, to tell how old a deposit is when it is written."""
        return self._clock() if self._clock is not None else time.monotonic()

    @abstractmethod
    def run(
        self,
        operations: Sequence[Operation],
        credits: Sequence[Credit],  # noqa: A002  # the word of the ratio
        *,
        counting: bool = True,
    ) -> list[Any]:
        """Do ``operations``, and say what each answers: a ``StoreError`` where one of them alone cannot be done.

        Raises:
            Unknown: it may have been done or not.
            Exception: the driver's; nothing was done.
        """

    @abstractmethod
    def seen(self, prefix: str) -> list[Account]:
        """All accounts whose name begins with ``prefix``, as they are once every reservation has expired that is due.

        Reads only, on a connection of its own: from any thread, and where nothing was ever made.
        """

    @abstractmethod
    def prune(self, older: int, *, shrink: bool) -> tuple[int, int]:
        """See ``written.WrittenStore.prune``; ``older`` in microseconds. How many accounts and reservations went."""

    def forget(self) -> None:
        """Delete what ended long ago, where ``run`` has not done it."""
        return

    @abstractmethod
    def disconnect(self) -> None:
        """Let go of the connection; what comes next makes a new one."""

    @abstractmethod
    def failure_of(self, error: Exception) -> Failure:
        """What an error means: what to tell the user, and whether to try again."""
