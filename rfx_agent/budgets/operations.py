"""What can be asked of a store, as values.

Each can be done twice without harm. A reservation is known by its token, a settlement and a release by the state of
the reservation, a record by being there. Only a deposit would count twice: what may have been done is tried again
without its deposits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rfx_agent.budgets.accounting import Book
from rfx_agent.budgets.limits import Claim, Reservation

__all__ = ["Expire", "Keep", "Operation", "Release", "Reserve", "Settle"]


class Operation(ABC):
    """One request.

    Attributes:
        id: of the reservation that it reads or changes.
    """

    __slots__ = ()

    id: str

    @abstractmethod
    def on(self, book: Book, now: int) -> Any:
        """Do it on ``book`` at ``now``, in microseconds, and answer."""

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Of the accounts that it opens where there are none yet."""
        return ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the other accounts that it changes, as far as it knows."""
        return ()

    @property
    def grants(self) -> Reservation | None:
        """What is reserved if it is granted; None for other operations."""
        return None

    @property
    def frees(self) -> Reservation | None:
        """What it releases; None for other operations."""
        return None


@dataclass(frozen=True, slots=True)
class Reserve(Operation):
    """See ``ports.BudgetStore.reserve``.

    Attributes:
        wanted: what is reserved if it is granted.
        time: how long it is open, in microseconds.
    """

    wanted: Reservation
    time: int

    @property
    def id(self) -> str:  # type: ignore[override]  # never set
        """Of the reservation."""
        return self.wanted.id

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What is asked for."""
        return self.wanted.claims

    @property
    def grants(self) -> Reservation:
        """The same as ``wanted``."""
        return self.wanted

    def on(self, book: Book, now: int) -> Any:
        """Reserve."""
        return book.reserve(self.id, self.wanted.token, self.claims, self.time, now)


@dataclass(frozen=True, slots=True)
class Settle(Operation):
    """See ``ports.BudgetStore.settle``.

    Attributes:
        reservation: what is settled.
        actual: by unit.
        record: what is recorded; None for nothing.
    """

    reservation: Reservation
    actual: Mapping[str, int]
    record: str | None

    @property
    def id(self) -> str:  # type: ignore[override]  # never set
        """Of the reservation."""
        return self.reservation.id

    @property
    def names(self) -> tuple[str, ...]:
        """Its accounts."""
        return tuple(x.account for x in self.reservation.claims)

    def on(self, book: Book, now: int) -> None:
        """Settle."""
        book.settle(self.reservation, self.actual, self.record, now)


@dataclass(frozen=True, slots=True)
class Release(Operation):
    """See ``ports.BudgetStore.release``.

    Attributes:
        reservation: what is released.
    """

    reservation: Reservation

    @property
    def id(self) -> str:  # type: ignore[override]  # never set
        """Of the reservation."""
        return self.reservation.id

    @property
    def names(self) -> tuple[str, ...]:
        """Its accounts."""
        return tuple(x.account for x in self.reservation.claims)

    @property
    def frees(self) -> Reservation:
        """The same as ``reservation``."""
        return self.reservation

    def on(self, book: Book, now: int) -> None:
        """Release."""
        book.release(self.reservation, now)


@dataclass(frozen=True, slots=True)
class Keep(Operation):
    """See ``ports.BudgetStore.keep``.

    Attributes:
        id, record: what is recorded under which name.
    """

    id: str
    record: str

    def on(self, book: Book, now: int) -> str:
        """Record."""
        return book.keep(self.id, self.record, now)


@dataclass(frozen=True, slots=True)
class Expire(Operation):
    """End a reservation if its time is over.

    Attributes:
        id: of the reservation.
        accounts: names of those that it is on.
    """

    id: str
    accounts: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The same as ``accounts``."""
        return self.accounts

    def on(self, book: Book, now: int) -> None:
        """Expire."""
        book.expire(self.id, now)
