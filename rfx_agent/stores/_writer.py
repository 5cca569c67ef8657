"""The one writer of a process: whatever waits goes into one transaction.

So a reservation is exact, and no row is a bottleneck: the more callers wait, the more of them share a commit. There
is no delay to gather requests; those that come while a transaction runs are in the next one. Leasing blocks of a
budget to each process would save transactions too, but strands what a process has leased and does not use.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeAlias

from rfx_agent._errors import StoreError
from rfx_agent.limits import Claim, Hold
from rfx_agent.stores._database import Credit, Database
from rfx_agent.stores._failures import Failure, failure_of
from rfx_agent.stores._gate import Taken
from rfx_agent.stores._links import Unknown
from rfx_agent.stores._operations import Operation, Release, Reserve

__all__ = ["Writer"]

_BATCH = 256  # requests in one transaction
_LINGER = 0.5  # seconds that deposits wait for a reservation to be written with
_RECONNECTS = 4  # tries while the database cannot be reached
_ORPHANS = 10_000  # reservations that nobody waits for any more, remembered to be released

_Asked: TypeAlias = tuple[Operation, Future[Any]]


class Writer:
    """A queue, and who empties it: a sync caller that finds nobody at it, else a thread that is started when needed.

    Args:
        database: used by one of them at a time.
        timeout: seconds that a transaction is tried for while others hold the locks.
    """

    def __init__(self, database: Database, *, timeout: float) -> None:
        self._database = database
        self._timeout = timeout
        self._queue: deque[_Asked] = deque()
        self._credits: dict[tuple[str, int], Credit] = {}
        self._since = 0.0  # when the first of the deposits came
        self._orphans: deque[Hold] = deque(maxlen=_ORPHANS)
        self._ready = threading.Condition()
        self._turn = threading.Lock()  # whoever has it empties the queue
        self._thread: threading.Thread | None = None
        self._closed = False
        self._failing = False  # whether the last transaction failed
        self._doubtful = False  # whether a transaction was interrupted that may have been committed

    def ask(self, operation: Operation) -> Any:
        """Do ``operation``; blocks.

        Raises:
            StoreError: why it could not be done.
        """
        future = self._put(operation)
        try:
            # Two changes of thread are spared when nobody else is at it. Who comes too late to be in the batch of
            # the one who is, is left to the thread: that one looks after it has given up its turn.
            if self._turn.acquire(blocking=False):
                try:
                    self._serve_some(patient=False)
                finally:
                    self._turn.release()
                    self._look()
            return future.result(self.longest)
        except StoreError:
            raise
        except TimeoutError:
            self.abandon(operation, future)
            raise self.late() from None
        except BaseException:  # interrupted while waiting
            self.abandon(operation, future)
            raise

    @property
    def longest(self) -> float:
        """Seconds after which a caller waits no longer, whatever it is that the writer waits for."""
        return self._timeout * 2 + 3

    def late(self) -> StoreError:
        """What a caller is told who waits no longer."""
        place = self._database.place.shown
        return StoreError(
            f"{place}: no answer within {self.longest:g} s; look for a process that stopped in the middle"
        )

    def submit(self, operation: Operation) -> Future[Any]:
        """Ask for ``operation``; its future gives the answer, or raises ``StoreError``."""
        future = self._put(operation)
        self._look()
        return future

    def deposit(self, claims: Sequence[Claim]) -> None:
        """Gather normal traffic: it is written with the next request, or by itself soon."""
        now = self._database.tick()
        with self._ready:
            self._check()
            if not self._credits:
                self._since = time.monotonic()
                self._wake()
            for claim in claims:
                self._gather(Credit(claim, now))

    def abandon(self, operation: Operation, future: Future[Any]) -> None:
        """The caller went away: a reservation that it is granted after all is given back."""
        if future.cancel() or not isinstance(operation, Reserve):
            return

        def give_back(done: Future[Any]) -> None:
            if done.exception() is None and isinstance(done.result(), Hold):
                self._orphans.append(done.result())
                self._look()

        future.add_done_callback(give_back)

    def close(self, wait: float) -> None:
        """Write what waits and let go of the connection; gives up after ``wait`` seconds. Idempotent."""
        with self._ready:
            self._closed = True
            thread = self._thread
            self._ready.notify()
        if thread is threading.current_thread():
            return
        if thread is not None:
            thread.join(wait)
        elif self._turn.acquire(timeout=wait):
            try:
                while self._waiting() or self._credits:
                    self._serve_some()
                self._database.disconnect()
            finally:
                self._turn.release()

    def inherited(self) -> None:
        """In a forked child: let go of what can be, without touching the parent's connection."""
        self._database.inherited()

    def _gather(self, credit: Credit) -> None:
        key = (credit.claim.account, int(credit.since / _LINGER))
        if (before := self._credits.get(key)) is not None:
            amount = before.claim.amount + credit.claim.amount
            credit = Credit(replace(credit.claim, amount=amount), min(before.since, credit.since))
        self._credits[key] = credit

    def _put(self, operation: Operation) -> Future[Any]:
        future: Future[Any] = Future()
        with self._ready:
            self._check()
            self._queue.append((operation, future))
        return future

    def _check(self) -> None:
        if self._closed:
            raise StoreError(f"{self._database.place.shown}: this store is closed; make another")

    def _look(self) -> None:
        """Leave to the thread what nobody is at."""
        with self._ready:
            if self._waiting():
                self._wake()

    def _waiting(self) -> bool:
        """Whether there is something to do. What nobody waits for is left to the next request after a failure."""
        return bool(self._queue or (self._orphans and not self._failing))

    def _wake(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._work, name="rfx-store", daemon=True)
            self._thread.start()
        self._ready.notify()

    def _work(self) -> None:
        while True:
            with self._ready:
                while not (self._waiting() or self._closed):
                    left = self._since + _LINGER - time.monotonic() if self._credits else None
                    if left is not None and left <= 0:
                        break
                    self._ready.wait(left)
                done = self._closed and not (self._waiting() or self._credits)
            with self._turn:
                if done:
                    self._database.disconnect()
                    return
                try:
                    self._serve_some()
                except BaseException as error:  # noqa: BLE001  # nobody must wait for a thread that is not there
                    self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        """Tell everybody who waits of an error that nobody has thought of."""
        with self._ready:
            asked = [future for _, future in self._queue]
            self._queue.clear()
        for future in asked:
            if future.running() or future.set_running_or_notify_cancel():
                told = StoreError(f"{self._database.place.shown}: {type(error).__name__} while writing")
                told.__cause__ = error
                future.set_exception(told)

    def _serve_some(self, *, patient: bool = True) -> None:
        """Serve one batch; the caller has the turn. Who is not ``patient`` leaves it where it would have to wait."""
        batch: list[_Asked] = []
        credits: list[Credit] = []  # noqa: A001  # the word of the ratio
        try:
            self._take(batch, credits)
            if batch or credits:
                self._serve(batch, credits, patient=patient)
        except Taken:
            with self._ready:
                self._queue.extendleft(reversed(batch))
                for credit in credits:
                    self._gather(credit)
        except BaseException:
            # Interrupted, as by Ctrl-C, maybe in mid-transaction: others wait for it too, so it is done again.
            self._database.disconnect()
            with self._ready:
                self._queue.extendleft(reversed([x for x in batch if not x[1].done()]))
                self._doubtful = True
            raise

    def _take(self, batch: list[_Asked], credits: list[Credit]) -> None:  # noqa: A002  # as above
        with self._ready:
            while self._orphans and len(batch) < _BATCH:
                batch.append((Release(self._orphans.popleft()), Future()))
            while self._queue and len(batch) < _BATCH:
                operation, future = self._queue.popleft()
                if future.running() or future.set_running_or_notify_cancel():
                    batch.append((operation, future))
            credits.extend(self._credits.values())
            self._credits = {}

    def _serve(self, batch: list[_Asked], credits: list[Credit], *, patient: bool = True) -> None:  # noqa: A002
        try:
            answers = self._try([operation for operation, _ in batch], credits, patient=patient)
        except Failure as failure:
            if failure.alone and len(batch) > 1:  # it may be about one of them: the others shall not suffer for it
                for one in batch:
                    self._serve([one], [])
                return
            self._failing = True
            self._fail(batch, failure)
            return
        self._failing = False
        for (_, future), answer in zip(batch, answers, strict=True):
            future.set_result(answer)
        try:
            self._database.forget()
        except Exception:  # noqa: BLE001  # nobody waits for it; it is tried again
            self._database.disconnect()

    def _try(self, operations: list[Operation], credits: list[Credit], *, patient: bool) -> list[Any]:  # noqa: A002
        """The answers; again and again while that is of use and does no harm.

        Raises:
            Failure: why there are none.
        """
        ends, tries, unknown = time.monotonic() + self._timeout, 0, self._doubtful
        self._doubtful = False
        while True:
            try:
                # What may have been committed is found by its tokens and states. Deposits and counts are not.
                given = [] if unknown else credits
                return self._database.run(operations, given, counting=not unknown, patient=patient)
            except Taken:
                self._doubtful = unknown
                raise
            except Exception as error:  # noqa: BLE001  # every one becomes an answer
                failure = failure_of(error, self._database.place)
            unknown = unknown or isinstance(failure.error, Unknown)
            failure.unknown = unknown
            tries += 1
            if failure.lost or not failure.again:
                self._database.disconnect()
            if not failure.again or time.monotonic() >= ends or (failure.lost and tries >= _RECONNECTS):
                raise failure
            time.sleep(min(0.002 * 2**tries, 0.1) if not failure.lost else 0.05 * 3**tries)

    def _fail(self, batch: list[_Asked], failure: Failure) -> None:
        for operation, future in batch:
            if isinstance(operation, Release) or (isinstance(operation, Reserve) and failure.unknown):
                # It may stand in the tables with nobody to settle it; it is known by its token.
                self._orphans.append(_hold_of(operation))
            error = StoreError(str(failure))
            error.__cause__ = failure.__cause__
            future.set_exception(error)


def _hold_of(operation: Release | Reserve) -> Hold:
    return operation.hold if isinstance(operation, Release) else Hold(operation.id, operation.token, operation.claims)
