"""What can be asked of a store, as values.

Each can be done twice without harm. A reservation is known by its token, a settlement and a release by the state of
the reservation, a record by being there. Only a deposit would count twice: a transaction that may have been committed
is tried again without its deposits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rfx_agent.budgets.accounting import Book
from rfx_agent.budgets.limits import Claim, Reservation

__all__ = ["Operation", "expire", "keep", "release", "reserve", "settle"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One request.

    Attributes:
        on: does it on a book, at a time in microseconds, and answers.
        id: of the reservation that it reads or changes.
        claims: of the accounts that it opens where there are none yet.
        names: of the other accounts that it changes, as far as it knows.
        grants: what is reserved if it is granted; None where this is no reservation.
        frees: what it releases; None where this is no release.
    """

    on: Callable[[Book, int], Any]
    id: str
    claims: tuple[Claim, ...] = ()
    names: tuple[str, ...] = ()
    grants: Reservation | None = None
    frees: Reservation | None = None


def reserve(id: str, token: str, claims: tuple[Claim, ...], time: int) -> Operation:  # noqa: A002  # the port's word
    """See ``ports.BudgetStore.reserve``; ``time`` in microseconds."""
    granted = Reservation(id, token, claims)
    return Operation(lambda book, now: book.reserve(id, token, claims, time, now), id, claims, grants=granted)


def settle(reservation: Reservation, actual: Mapping[str, int], record: str | None) -> Operation:
    """See ``ports.BudgetStore.settle``."""
    names = tuple(x.account for x in reservation.claims)
    return Operation(lambda book, now: book.settle(reservation, actual, record, now), reservation.id, names=names)


def release(reservation: Reservation) -> Operation:
    """See ``ports.BudgetStore.release``."""
    names = tuple(x.account for x in reservation.claims)
    return Operation(lambda book, now: book.release(reservation, now), reservation.id, names=names, frees=reservation)


def keep(id: str, record: str) -> Operation:  # noqa: A002  # as above
    """See ``ports.BudgetStore.keep``."""
    return Operation(lambda book, now: book.keep(id, record, now), id)


def expire(id: str, names: tuple[str, ...]) -> Operation:  # noqa: A002  # as above
    """End a reservation on the accounts ``names`` if its time is over."""
    return Operation(lambda book, now: book.expire(id, now), id, names=names)
