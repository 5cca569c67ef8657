"""The accounting of shared budgets: what every store does to the accounts and reservations it has loaded. It is written
once, and once more for a Redis in ``redis/book.lua``, which a test holds to this file.

Integers only: amounts in whole units (billionths for money), times in microseconds. A window is kept in ``BUCKETS``
buckets. What was spent in the bucket that the window begins in counts in full, and credit in it does not count. So an
account refuses up to one bucket longer than it must, and never grants what it should not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rfx_agent.budgets.limits import Account, Claim, Grant, Kind, Refused, Replayed, Reservation
from rfx_agent.errors import StoreError

__all__ = [
    "BUCKETS",
    "EXPIRED",
    "OPEN",
    "RELEASED",
    "SETTLED",
    "AccountRow",
    "Book",
    "NotLoaded",
    "ReservationRow",
    "distinct",
    "micros",
    "seconds_of",
    "writable",
]

BUCKETS = 60
OPEN, SETTLED, RELEASED, EXPIRED = range(4)
_MOST = 2**62  # of one amount: totals are kept in 64 bits


class NotLoaded(Exception):
    """An account is needed that the transaction has not loaded: load it too and begin again. Never leaves a store."""


@dataclass(slots=True)
class AccountRow:
    """One account as it is stored; see ``limits.Account``.

    Attributes:
        span: length of the window in microseconds; 0 for ``in_flight``.
        buckets: what was spent in each bucket of the window, by the bucket's number since the epoch.
        credits: what was deposited in each bucket.
    """

    name: str
    kind: Kind
    unit: str
    most: int
    span: int
    granted: int = 0
    spent: int = 0
    reserved: int = 0
    lost: int = 0
    refused: int = 0
    peak: int = 0
    buckets: dict[int, int] = field(default_factory=dict)
    credits: dict[int, int] = field(default_factory=dict)
    # The first bucket that counts, as of the last look, and the sum of those that count.
    _oldest: int | None = field(default=None, init=False)
    _sum: int = field(default=0, init=False)

    @classmethod
    def of(cls, claim: Claim) -> AccountRow:
        """A new account. It keeps the window of its first claim, as its name says."""
        return cls(claim.account, claim.kind, claim.unit, claim.most, micros(claim.seconds))

    @property
    def width(self) -> int:
        """Microseconds in a bucket."""
        return max(1, -(-self.span // BUCKETS))

    def in_window(self, now: int) -> int:
        """Spent within the window that ends ``now``."""
        if not self.span:
            return 0
        oldest = self._begin(now)
        if oldest != self._oldest:
            self.buckets = {bucket: amount for bucket, amount in self.buckets.items() if bucket >= oldest}
            self.credits = {bucket: amount for bucket, amount in self.credits.items() if bucket > oldest}
            self._oldest, self._sum = oldest, sum(self.buckets.values())
        return self._sum

    def room(self, claim: Claim, now: int) -> int:
        """How much could be reserved; below 0 where too much was spent already."""
        credit = self._credit(claim, self._begin(now), now)
        return claim.most + credit - self.reserved - self.in_window(now)

    def after(self, claim: Claim, now: int) -> float | None:
        """Seconds until ``claim`` fits if only time passes; None where that is not enough."""
        used = self.in_window(now)
        for bucket in sorted(self.buckets):
            used -= self.buckets[bucket]
            credit = self._credit(claim, bucket + 1, now)  # when a bucket has slid out, the next is the oldest
            if self.reserved + used + claim.amount <= claim.most + credit:
                return max(0, (bucket + 1) * self.width + self.span - now) / 1e6
        return None  # somebody has to give back first, or more credit has to come, or it never fits

    def reserve(self, amount: int, now: int) -> None:
        """Set aside."""
        self.granted += amount
        self.reserved += amount
        self.mark(now)

    def charge(self, amount: int, at: int) -> None:
        """Spend."""
        self.spent += amount
        if self.span and amount:
            bucket = at // self.width
            self.buckets[bucket] = self.buckets.get(bucket, 0) + amount
            if self._oldest is not None and bucket >= self._oldest:
                self._sum += amount

    def correct(self, amount: int, charge: int, at: int, now: int) -> None:
        """Replace what expired ``at`` by what it cost after all; what it cost more is spent now."""
        self.lost -= amount
        if charge >= amount:
            self.charge(charge - amount, now)
            return
        self.spent -= amount - charge
        bucket = at // self.width
        if self.span and bucket in self.buckets:  # it has not slid out yet
            self.buckets[bucket] -= amount - charge
            self._oldest = None

    def mark(self, now: int) -> None:
        """Remember the most that was ever reserved and spent."""
        self.peak = max(self.peak, self.reserved + self.in_window(now))

    def credit(self, amount: int, at: int) -> None:
        """Deposit."""
        bucket = at // self.width
        self.credits[bucket] = self.credits.get(bucket, 0) + amount
        if len(self.credits) > BUCKETS + 1:  # an account of hours without a failure
            oldest = self._begin(at)
            self.credits = {bucket: amount for bucket, amount in self.credits.items() if bucket > oldest}

    def idle(self, now: int) -> bool:
        """Whether nothing is set aside, and nothing counts that was spent or deposited."""
        oldest = self._begin(now) if self.span else 0
        counts = any(bucket > oldest for bucket in self.credits) or bool(self.in_window(now))
        return not self.reserved and not counts

    def counts_until(self, now: int) -> int:
        """The time until which something counts that was spent by now; ``now`` where nothing does."""
        if not self.span or not self.in_window(now):
            return now
        return (max(bucket for bucket, amount in self.buckets.items() if amount) + 1) * self.width + self.span

    def _begin(self, now: int) -> int:
        """The bucket that the window begins in."""
        return (now - self.span) // self.width

    def _credit(self, claim: Claim, oldest: int, now: int) -> int:
        """Whole units that the deposits after the bucket ``oldest`` are worth, none from beyond ``now``."""
        if claim.kind != "ratio":
            return 0
        newest = now // self.width
        return math.floor(claim.share * sum(n for bucket, n in self.credits.items() if oldest < bucket <= newest))

    def seen(self, now: int) -> Account:
        """As the port shows it."""
        return Account(
            name=self.name,
            kind=self.kind,
            unit=self.unit,
            most=self.most,
            granted=self.granted,
            spent=self.spent,
            reserved=self.reserved,
            in_window=self.in_window(now),
            lost=self.lost,
            refused=self.refused,
            peak=self.peak,
        )


@dataclass(slots=True)
class ReservationRow:
    """One reservation, or record, as it is stored.

    Attributes:
        state: ``OPEN``, ``SETTLED``, ``RELEASED`` or ``EXPIRED``.
        claims: (account, unit, amount) of each claim.
        due: when something is to be done about it: an open one expires, any other is forgotten.
        ended: when it expired.
        record: what was recorded; None for nothing.
    """

    id: str
    token: str
    state: int
    claims: tuple[tuple[str, str, int], ...]
    due: int
    ended: int = 0
    record: str | None = None


class Book:
    """Accounts and reservations, all of them or those that a transaction has loaded, and what is done to them.

    Attributes:
        accounts, reservations: by name and by id.
        complete: whether what is not here does not exist. Otherwise a missing account raises ``NotLoaded``, unless
            it is in ``absent``; reservations must all have been loaded.
        touched, written: names of accounts and ids of reservations that were changed.
        keep_for: microseconds that an ended reservation or a record is remembered.
        counting: whether refusals are counted. Not when a transaction is tried again that may have been committed.
    """

    def __init__(self, *, keep_for: int, complete: bool = True, counting: bool = True) -> None:
        self.accounts: dict[str, AccountRow] = {}
        self.reservations: dict[str, ReservationRow] = {}
        self.absent: set[str] = set()
        self.touched: set[str] = set()
        self.written: set[str] = set()
        self.keep_for = keep_for
        self.complete = complete
        self.counting = counting

    def reserve(self, id: str, token: str, claims: Sequence[Claim], time: int, now: int) -> Grant:  # noqa: A002
        """See ``ports.BudgetStore.reserve``. ``token`` is new, or that of this very reservation tried again."""
        row = self.reservations.get(id)
        if row is not None and row.record is not None:
            return Replayed(row.record)
        asked = [(self._opened(claim), claim) for claim in distinct(claims)]
        if row is not None and row.state == OPEN:
            if row.token == token:
                return Reservation(id, token, tuple(claims))
            self._expire(row, now)  # whether or not there is room: its owner is dead
        short = []
        for account, claim in asked:
            if account.most != claim.most:
                account.most = claim.most
                self.touched.add(account.name)
            if claim.amount > account.room(claim, now):
                short.append((account, claim))
        if short:
            for account, _ in short:
                account.refused += self.counting
                self.touched.add(account.name)
            waits = [account.after(claim, now) for account, claim in short]
            known = [x for x in waits if x is not None]
            return Refused(tuple(x.name for x, _ in short), max(known) if len(known) == len(waits) else None)
        for account, claim in asked:
            account.reserve(claim.amount, now)
            self.touched.add(account.name)
        stored = tuple((claim.account, claim.unit, claim.amount) for _, claim in asked)
        self._put(ReservationRow(id, token, OPEN, stored, now + time))
        return Reservation(id, token, tuple(claims))

    def settle(self, reservation: Reservation, actual: Mapping[str, int], record: str | None, now: int) -> None:
        """See ``ports.BudgetStore.settle``. One that was released is charged: it was dispatched after all."""
        self.expire(reservation.id, now)  # late is late, whether or not anybody has noticed before
        row = self.reservations.get(reservation.id)
        if row is None or row.token != reservation.token or row.state == SETTLED:
            return
        for account, unit, amount in self._rows(row):
            charge = actual.get(unit, 0)
            if row.state == EXPIRED:
                account.correct(amount, charge, row.ended, now)
            else:
                account.reserved -= amount if row.state == OPEN else 0
                account.charge(charge, now)
            account.mark(now)
        row.record = record if row.record is None else row.record
        row.claims = ()  # nothing can happen to them any more
        self._end(row, SETTLED, now)

    def release(self, reservation: Reservation, now: int) -> None:
        """See ``ports.BudgetStore.release``."""
        self.expire(reservation.id, now)
        row = self.reservations.get(reservation.id)
        if row is None or row.token != reservation.token or row.state != OPEN:
            return
        for account, _, amount in self._rows(row):
            account.reserved -= amount
        self._end(row, RELEASED, now)

    def keep(self, id: str, record: str, now: int) -> str:  # noqa: A002  # the port's word
        """See ``ports.BudgetStore.keep``."""
        row = self.reservations.get(id)
        if row is None:
            row = ReservationRow(id, "", SETTLED, (), now + self.keep_for)
        if row.record is None:
            row.record = record
            self._put(row)
        return row.record

    def deposit(self, claim: Claim, at: int) -> None:
        """Credit one ratio account with what was seen ``at`` some time."""
        self._opened(claim).credit(claim.amount, at)
        self.touched.add(claim.account)

    def expire(self, id: str, now: int) -> None:  # noqa: A002  # as above
        """End a reservation whose time is over."""
        row = self.reservations.get(id)
        if row is not None and row.state == OPEN and row.due <= now:
            self._expire(row, now)

    def _expire(self, row: ReservationRow, now: int) -> None:
        """As of the end of its time, whenever that is noticed: the same in every store, however often it looks."""
        at = min(row.due, now)
        for account, _, amount in self._rows(row):
            account.reserved -= amount
            account.lost += amount
            account.charge(amount, at)
        self._end(row, EXPIRED, now)
        row.ended = at

    def _rows(self, row: ReservationRow) -> list[tuple[AccountRow, str, int]]:
        """The accounts of a reservation, all of them looked up before any is changed."""
        found = [(self._account(name), unit, amount) for name, unit, amount in row.claims]
        there = [(account, unit, amount) for account, unit, amount in found if account is not None]
        self.touched.update(account.name for account, _, _ in there)
        return there

    def _account(self, name: str) -> AccountRow | None:
        account = self.accounts.get(name)
        if account is None and not self.complete and name not in self.absent:
            raise NotLoaded(name)
        return account

    def _opened(self, claim: Claim) -> AccountRow:
        account = self._account(claim.account)
        if account is None:
            account = self.accounts[claim.account] = AccountRow.of(claim)
            self.touched.add(account.name)
        return account

    def _put(self, row: ReservationRow) -> None:
        self.reservations[row.id] = row
        self.written.add(row.id)

    def _end(self, row: ReservationRow, state: int, now: int) -> None:
        row.state = state
        row.due = now + self.keep_for
        self._put(row)


def micros(seconds: float) -> int:
    """Whole microseconds, at least 1 unless there are none at all."""
    return max(1, round(seconds * 1e6)) if seconds else 0


def seconds_of(seconds: float) -> int:
    """The length of a reservation in microseconds.

    Raises:
        StoreError: ``seconds`` is no such length.
    """
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds) or not 0 < seconds < 1e10:
        raise StoreError(f"reserve: seconds is {seconds!r}; give a number of seconds above 0, such as 600")
    return micros(seconds)


def writable(id: str, claims: tuple[Claim, ...] = (), actual: Mapping[str, int] | None = None) -> None:  # noqa: A002
    """Refuse what no store can keep, before it is part of a transaction with other callers' requests.

    Raises:
        StoreError: a name with a NUL or half a character in it; an amount that is no integer of 63 bits.
    """
    for what, text in (("id", id), *(("account", x.account) for x in claims)):
        if "\0" in text or not _encodable(text):
            raise StoreError(f"{what} is {text!r}; give one without NUL characters and lone surrogates")
    for what, amount in (*((x.account, x.amount) for x in claims), *(actual or {}).items()):
        if not isinstance(amount, int) or not 0 <= amount < _MOST:
            raise StoreError(f"amount of {what} is {amount!r}; give an integer of at least 0 and below 2**62")


def distinct(claims: Iterable[Claim]) -> list[Claim]:
    """One claim for each account: where two limits share one, the stricter holds, and nothing is set aside twice."""
    found: dict[str, Claim] = {}
    for x in claims:
        y = found.get(x.account)
        if y is not None:
            amount, most, share = max(x.amount, y.amount), min(x.most, y.most), min(x.share, y.share)
            x = Claim(x.account, x.kind, x.unit, amount, most, x.seconds, share)
        found[x.account] = x
    return list(found.values())


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
