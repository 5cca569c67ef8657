"""What one process knows of the rows that it wrote: whether they are still those that it finds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set

from rfx_agent.budgets.accounting import OPEN, AccountRow, ReservationRow

__all__ = ["Remembered"]

_MOST = 10_000  # accounts, and as many open reservations


class Remembered:
    """The accounts and the open reservations of one process, as of its last transaction with each.

    Whoever deletes rows, or makes one table anew, leaves no mark. But nobody prunes an account in which something still
    counts, and what it has granted only grows; and nobody forgets a reservation before its time is over.
    """

    def __init__(self) -> None:
        self._accounts: dict[str, tuple[int, int]] = {}  # what it had granted; the time until which something counts
        self._open: dict[str, int] = {}  # when it is due

    def clear(self) -> None:
        """Know nothing."""
        self._accounts.clear()
        self._open.clear()

    def lost(
        self,
        names: Set[str],
        accounts: Mapping[str, AccountRow],
        ids: Set[str],
        rows: Mapping[str, ReservationRow],
        now: int,
    ) -> bool:
        """Whether something of ``names`` and ``ids`` is not among what was found, and nobody may have deleted it."""
        for name in names:
            granted, counts = self._accounts.get(name, (0, 0))
            if counts > now and (name not in accounts or accounts[name].granted < granted):
                return True
        for id in ids & self._open.keys():  # noqa: A001  # the field's word
            row = rows.get(id)
            if row is None:
                if self._open[id] > now:
                    return True
            elif row.state == OPEN:
                for name, _, amount in row.claims:
                    if amount and name in names and (name not in accounts or accounts[name].reserved < amount):
                        return True
        return False

    def note(self, accounts: Collection[AccountRow], rows: Collection[ReservationRow], now: int) -> None:
        """What was written, once it is committed."""
        for x in accounts:
            self._accounts[x.name] = x.granted, x.counts_until(now)
        for row in rows:
            if row.state == OPEN:
                self._open[row.id] = row.due
            else:
                self._open.pop(row.id, None)
        for known in (self._accounts, self._open):
            while len(known) > _MOST:
                del known[next(iter(known))]
