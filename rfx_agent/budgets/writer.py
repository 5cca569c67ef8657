"""The one writer of a process: whatever waits goes into one transaction, or to Redis into one round trip.

So a reservation is exact, and no row is a bottleneck: the more callers wait, the more of them share a commit. There
is no delay to gather requests; those that come while a transaction runs are in the next one. Leasing blocks of a
budget to each process would save transactions too, but strands what a process has leased and does not use.

What was tried, in reservations a second of 50 concurrent async callers (``benchmarks/budget.py``; two cores, a local
disk, PostgreSQL on a socket; the ways took turns; ranges over three or four runs, on a machine with other work):

    one transaction per call, on threads: SQLite with one connection, PostgreSQL with ten:  900-1,400 and 390-540
    this writer, one SQLAlchemy transaction for all that waits:                         8,000-10,100 and 2,300-6,800
    a writer on the drivers themselves, its statements pipelined (version 0.1):         7,500-13,000 and 3,400-8,100

All three were exact in ``benchmarks.chaos budgets``. The first costs a factor of 6 to 10, and no driver helps: one bare
UPDATE per call reaches 3,700 and 1,000. The last is at most half as fast again, and twice as fast for one caller alone,
who waits 0.7 ms here; it took 300 more lines of code.

A reservation takes less than three times as long as a bare transaction, with three exceptions: one caller alone on
SQLite (3.1 to 3.6 where a commit takes 0.2 ms), and one caller alone (4.4 to 5.8) and 8 processes (3.3 to 3.4) on a
Redis that waits for no disk. There the work counts and not the commit: 0.2 ms for four statements of SQLAlchemy, 0.1 ms
for a script that reads, checks and writes three accounts, and 0.06 ms to this thread and back. A caller who did his own
work while nobody else waits would save the last, and would wait without bound for a server that hangs.

Processes that share an SQLite file look every 0.2 to 2 ms whether it is free (see ``engine``). Of 16 processes that
reserve and settle without a pause, one pair in a hundred took longer than 0.19 s. It was 0.94 s with SQLite's own
waiting, and 0.06 s where they stood in line at a second file, which was locked around every transaction (version 0.1).
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeAlias

from rfx_agent.budgets.backend import Backend, Credit, Failure, Unknown
from rfx_agent.budgets.limits import Claim, Reservation
from rfx_agent.budgets.operations import Operation, Release
from rfx_agent.errors import StoreError

__all__ = ["Writer"]

_BATCH = 256  # requests in one transaction
_LINGER = 0.5  # seconds that deposits wait for a reservation to be written with
_RECONNECTS = 4  # tries while the database cannot be reached
_ORPHANS = 10_000  # reservations that nobody waits for any more, remembered to be released
_FORK = 1.0  # seconds that a fork waits for the end of a transaction

_GRACE = 1.0  # seconds after the timeout, for the answer that says what was waited for

_Asked: TypeAlias = tuple[Operation, Future[Any]]


class Writer:
    """A queue, and the thread that empties it, started when it is needed.

    Args:
        database: only the thread uses it.
        timeout: seconds that a transaction is tried for while others hold the locks.
    """

    def __init__(self, database: Backend, *, timeout: float) -> None:
        self._database = database
        self._timeout = timeout
        self._lock = threading.Lock()  # for the next four
        self._queue: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()  # None: look whether there is more to do
        self._credits: dict[tuple[str, int], Credit] = {}
        self._thread: threading.Thread | None = None
        self._closed = False
        self._orphans: deque[Reservation] = deque(maxlen=_ORPHANS)
        self._busy = threading.Lock()  # while the database is used

    def ask(self, operation: Operation) -> Any:
        """Do ``operation``; blocks.

        Raises:
            StoreError: why it could not be done.
        """
        future = self.submit(operation)
        try:
            return future.result(self.longest)
        except StoreError:
            raise
        except TimeoutError:
            self.abandon(operation, future)
            raise self.late() from None
        except BaseException:  # interrupted while waiting
            self.abandon(operation, future)
            raise

    def submit(self, operation: Operation) -> Future[Any]:
        """Ask for ``operation``; its future gives the answer, or raises ``StoreError``."""
        future: Future[Any] = Future()
        with self._lock:
            self._put((operation, future))
        return future

    @property
    def longest(self) -> float:
        """Seconds after which a caller waits no longer, whatever it is that the writer waits for."""
        return self._timeout + _GRACE

    def late(self) -> StoreError:
        """The error of a caller who waits no longer."""
        place = self._database.shown
        return StoreError(
            f"{place}: no answer within {self.longest:g} s; look for a process that stopped in the middle"
        )

    def deposit(self, claims: Sequence[Claim]) -> None:
        """Gather normal traffic: it is written with the next request, or by itself soon."""
        now = self._database.tick()
        with self._lock:
            if not self._credits or self._closed:
                self._put(None)
            for claim in claims:
                key = (claim.account, int(now / _LINGER))
                if (before := self._credits.get(key)) is not None:
                    before.claim = replace(claim, amount=before.claim.amount + claim.amount)
                else:
                    self._credits[key] = Credit(claim, now)

    def abandon(self, operation: Operation, future: Future[Any]) -> None:
        """The caller went away: a reservation that it is granted after all is given back."""
        if future.cancel() or operation.grants is None:
            return

        def give_back(done: Future[Any]) -> None:
            if done.exception() is None and isinstance(done.result(), Reservation):
                self._orphans.append(done.result())
                with self._lock, contextlib.suppress(StoreError):
                    self._put(None)

        future.add_done_callback(give_back)

    def close(self, wait: float) -> None:
        """Write what waits and let go of the connection; gives up after ``wait`` seconds. Idempotent."""
        with self._lock:
            thread, closed, self._closed = self._thread, self._closed, True
            if not closed:
                self._queue.put(None)
        if thread is None:
            self._database.disconnect()
        elif thread is not threading.current_thread():
            thread.join(wait)

    def pause(self) -> bool:
        """Before a fork: let go of the connection, and use none until ``resume``. False: it was busy for too long.

        Of a connection that is open the child would inherit SQLite's notes of the locks that the parent has.
        """
        paused = self._busy.acquire(timeout=_FORK)
        if paused:
            self._database.disconnect()
        return paused

    def resume(self) -> None:
        """After the fork, in the parent, where ``pause`` was True."""
        self._busy.release()

    def _put(self, asked: _Asked | None) -> None:
        if self._closed:
            raise StoreError(f"{self._database.shown}: this store is closed; make another")
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="rfx-store", daemon=True)
            self._thread.start()
        self._queue.put(asked)

    def _work(self) -> None:
        closing = False
        while not closing:
            found = self._waiting()
            closing = self._closed and self._queue.empty()
            batch = [x for x in found if x is not None and x[1].set_running_or_notify_cancel()]
            if batch or self._orphans or closing or not found:
                try:
                    with self._busy:
                        self._serve(batch)
                except BaseException as error:  # noqa: BLE001  # nobody must wait for a thread that is not there
                    self._tell(batch, f"{self._database.shown}: {type(error).__name__} while writing", error)
        self._database.disconnect()

    def _waiting(self) -> list[_Asked | None]:
        """What waits; blocks until something does, or until deposits have waited long enough."""
        found: list[_Asked | None] = []
        with contextlib.suppress(queue.Empty):
            found.append(self._queue.get(timeout=_LINGER if self._credits else None))
            while len(found) < _BATCH:
                found.append(self._queue.get_nowait())
        return found

    def _serve(self, batch: list[_Asked]) -> None:
        """Do all of it, what nobody waits for and what was deposited included."""
        with self._lock:
            credits, self._credits = list(self._credits.values()), {}  # noqa: A001  # the word of the ratio
        orphans = [self._orphans.popleft() for _ in range(min(len(self._orphans), _BATCH))]
        batch = [*((Release(x), Future()) for x in orphans), *batch]
        if not batch and not credits:
            return
        self._answer(batch, credits)
        try:
            self._database.forget()
        except Exception:  # noqa: BLE001  # nobody waits for it; it is tried again
            self._database.disconnect()

    def _answer(self, batch: list[_Asked], credits: list[Credit]) -> None:  # noqa: A002  # as above
        try:
            answers = self._try([operation for operation, _ in batch], credits)
        except Failure as failure:
            if failure.alone and len(batch) > 1:  # it may be about one of them: the others shall not suffer for it
                for one in batch:
                    self._answer([one], [])
                return
            for operation, _ in batch:
                left = operation.frees or (operation.grants if failure.unknown else None)
                if left is not None:  # it may stand in the tables with nobody to settle it: the next request frees it
                    self._orphans.append(left)
            self._tell(batch, str(failure), failure.__cause__)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if isinstance(answer, StoreError):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _try(self, operations: list[Operation], credits: list[Credit]) -> list[Any]:  # noqa: A002  # as above
        """The answers; again and again while that is of use and does no harm.

        Raises:
            Failure: why there are none.
        """
        ends, tries, unknown = time.monotonic() + self._timeout, 0, False
        while True:
            try:
                # What may have been committed is found by its tokens and states. Deposits and counts are not.
                return self._database.run(operations, [] if unknown else credits, counting=not unknown)
            except Exception as error:  # noqa: BLE001  # every one becomes an answer
                failure = self._database.failure_of(error)
            unknown = unknown or isinstance(failure.error, Unknown)
            failure.unknown = unknown
            tries += 1
            if failure.lost or not failure.again:
                self._database.disconnect()
            if not failure.again or time.monotonic() >= ends or (failure.lost and tries >= _RECONNECTS):
                raise failure
            time.sleep(min(0.002 * 2**tries, 0.1) if not failure.lost else 0.05 * 3**tries)

    @staticmethod
    def _tell(batch: list[_Asked], why: str, cause: BaseException | None) -> None:
        for _, future in batch:
            if not future.done():
                error = StoreError(why)
                error.__cause__ = cause
                future.set_exception(error)
