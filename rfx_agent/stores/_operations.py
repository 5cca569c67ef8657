"""What can be asked of a store, as values: each names the accounts and holds that it needs, and does its work on them.

All of them can be done again. A reservation is known by its token, a settlement and a release by the state of the
hold, a record by being there. Only a deposit would count twice; who tries a transaction again that may have been
committed leaves the deposits out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rfx_agent._errors import StoreError
from rfx_agent.limits import Claim, Grant, Hold
from rfx_agent.stores._book import Book, micros

__all__ = ["Expire", "Keep", "Operation", "Release", "Reserve", "Settle", "seconds_of", "writable"]

_MOST = 2**62  # of one amount: totals are kept in 64 bits


class Operation(Protocol):
    """One request.

    Attributes:
        ids: of the holds that it reads or changes.
        claims: of the accounts that it opens where there are none yet.
        names: of the other accounts that it changes, as far as it knows.
    """

    @property
    def ids(self) -> tuple[str, ...]: ...
    @property
    def claims(self) -> tuple[Claim, ...]: ...
    @property
    def names(self) -> tuple[str, ...]: ...

    def on(self, book: Book, now: int) -> Any:
        """Do it; what it answers."""
        ...


@dataclass(frozen=True, slots=True)
class Reserve:
    """See ``ports.BudgetStore.reserve``; ``time`` in microseconds."""

    id: str
    token: str
    claims: tuple[Claim, ...]
    time: int

    @property
    def ids(self) -> tuple[str, ...]:
        return (self.id,)

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    def on(self, book: Book, now: int) -> Grant:
        return book.reserve(self.id, self.token, self.claims, self.time, now)


@dataclass(frozen=True, slots=True)
class _Ended:
    """What ends a hold: it needs that hold, and the accounts of its claims."""

    hold: Hold

    @property
    def ids(self) -> tuple[str, ...]:
        return (self.hold.id,)

    @property
    def claims(self) -> tuple[Claim, ...]:
        return ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(x.account for x in self.hold.claims)


@dataclass(frozen=True, slots=True)
class Settle(_Ended):
    """See ``ports.BudgetStore.settle``."""

    actual: Mapping[str, int]
    record: str | None

    def on(self, book: Book, now: int) -> None:
        book.settle(self.hold, self.actual, self.record, now)


@dataclass(frozen=True, slots=True)
class Release(_Ended):
    """See ``ports.BudgetStore.release``."""

    def on(self, book: Book, now: int) -> None:
        book.release(self.hold, now)


@dataclass(frozen=True, slots=True)
class Keep:
    """See ``ports.BudgetStore.keep``."""

    id: str
    record: str
    claims: tuple[Claim, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        return (self.id,)

    def on(self, book: Book, now: int) -> str:
        return book.keep(self.id, self.record, now)


@dataclass(frozen=True, slots=True)
class Expire:
    """Write a hold off if its time is up."""

    id: str
    names: tuple[str, ...]
    claims: tuple[Claim, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        return (self.id,)

    def on(self, book: Book, now: int) -> None:
        book.expire(self.id, now)


def seconds_of(seconds: float) -> int:
    """The length of a reservation in microseconds.

    Raises:
        StoreError: none that there can be.
    """
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds) or not 0 < seconds < 1e10:
        raise StoreError(f"reserve: seconds is {seconds!r}; give a number of seconds above 0, such as 600")
    return micros(seconds)


def writable(id: str, claims: tuple[Claim, ...] = (), actual: Mapping[str, int] | None = None) -> None:  # noqa: A002
    """Refuse alone what a database would refuse together with everybody else's requests in its transaction.

    Raises:
        StoreError: a name with a NUL or half a character in it; an amount that is no integer of 63 bits.
    """
    for what, text in (("id", id), *(("account", x.account) for x in claims)):
        if "\0" in text or not _encodable(text):
            raise StoreError(f"{what} is {text!r}; give one without NUL characters and lone surrogates")
    for what, amount in (*((x.account, x.amount) for x in claims), *(actual or {}).items()):
        if not isinstance(amount, int) or not 0 <= amount < _MOST:
            raise StoreError(f"amount of {what} is {amount!r}; give an integer of at least 0 and below 2**62")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
