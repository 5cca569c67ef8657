"""A complete log of what processes asked of a shared budget's store, and the invariant read from it afterwards.

Each process appends to a file of its own; a line is in the kernel's hands before the call goes on, so a SIGKILL
loses none. Times are Unix seconds around the call: what really happened lies in between.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rfx_agent.budgets.limits import Account, Claim, Grant, Refused, Replayed, Reservation
from rfx_agent.ports import BudgetStore

__all__ = ["Journal", "Logged", "read"]


class Journal:
    """Lines of JSON in one file of a process.

    Args:
        folder: where.
        dies: the entry after which the process kills itself with SIGKILL, as ``op:n`` for the n-th of that kind from
            1, for tests of one point; "" for never.
    """

    def __init__(self, folder: str, *, dies: str = "") -> None:
        self._file = os.open(Path(folder) / f"{os.getpid()}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._op, _, count = dies.partition(":")
        self._left = int(count or 1)

    def write(self, **entry: Any) -> None:
        """Append ``entry``; from any thread."""
        os.write(self._file, json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        if entry["op"] == self._op:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)


def read(folder: str) -> Iterator[dict[str, Any]]:
    """Every entry of every process that wrote into ``folder``, in the order of each process."""
    for path in sorted(Path(folder).glob("*.jsonl")):
        with path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    yield json.loads(line) | {"pid": path.stem}


class Logged(BudgetStore):
    """A store that writes down what is asked of the one it stands for, and what that said."""

    def __init__(self, store: BudgetStore, journal: Journal) -> None:
        self.store = store
        self.journal = journal

    def reserve(self, id: str, claims: Sequence[Claim], *, seconds: float) -> Grant:  # noqa: A002  # the port's word
        began = time.time()
        with self._asked(began, id):
            grant = self.store.reserve(id, claims, seconds=seconds)
        self._reserved(began, id, claims, seconds, grant)
        return grant

    async def areserve(self, id: str, claims: Sequence[Claim], *, seconds: float) -> Grant:  # noqa: A002  # as above
        began = time.time()
        with self._asked(began, id):
            grant = await self.store.areserve(id, claims, seconds=seconds)
        self._reserved(began, id, claims, seconds, grant)
        return grant

    def settle(self, reservation: Reservation, actual: Mapping[str, int], record: str | None = None) -> None:
        with self._settled(reservation, actual, record):
            self.store.settle(reservation, actual, record)

    async def asettle(self, reservation: Reservation, actual: Mapping[str, int], record: str | None = None) -> None:
        with self._settled(reservation, actual, record):
            await self.store.asettle(reservation, actual, record)

    def release(self, reservation: Reservation) -> None:
        with self._settled(reservation, {}, None):
            self.store.release(reservation)

    async def arelease(self, reservation: Reservation) -> None:
        with self._settled(reservation, {}, None):
            await self.store.arelease(reservation)

    def keep(self, id: str, record: str) -> str:  # noqa: A002  # as above
        kept = self.store.keep(id, record)
        self.journal.write(op="keep", id=id, record=record, kept=kept)
        return kept

    async def akeep(self, id: str, record: str) -> str:  # noqa: A002  # as above
        kept = await self.store.akeep(id, record)
        self.journal.write(op="keep", id=id, record=record, kept=kept)
        return kept

    def deposit(self, claims: Sequence[Claim]) -> None:
        self.journal.write(op="deposit", t=time.time(), claims={x.account: x.amount for x in claims})
        self.store.deposit(claims)

    def accounts(self, prefix: str = "") -> list[Account]:
        return self.store.accounts(prefix)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)  # close and the like

    @contextmanager
    def _asked(self, began: float, name: str) -> Iterator[None]:
        """Where no answer came, an earlier reservation may have been taken over all the same."""
        try:
            yield
        except BaseException:
            self.journal.write(op="asked", t=began, id=name)
            raise

    def _reserved(self, began: float, name: str, claims: Sequence[Claim], seconds: float, grant: Grant) -> None:
        asked = [(x.account, x.kind, x.unit, x.amount, x.most, x.seconds, x.share) for x in claims]
        said: dict[str, Any] = {"op": "reserve", "t": (began, time.time()), "id": name, "claims": asked, "for": seconds}
        match grant:
            case Reservation():
                said["token"] = grant.token
            case Refused():
                said["refused"] = grant.accounts
            case Replayed():
                said["replayed"] = True
        self.journal.write(**said)

    @contextmanager
    def _settled(self, reservation: Reservation, actual: Mapping[str, int], record: str | None) -> Iterator[None]:
        about = {"id": reservation.id, "token": reservation.token}
        self.journal.write(op="settling", t=time.time(), actual=dict(actual), record=record, **about)
        yield
        self.journal.write(op="settled", t=time.time(), **about)
