"""Calls that come at once are decoded together: one worker thread per model, whose batch rows join at any step."""

# Measured against transformers 5.24's own batching, SmolLM2-135M in float32 on two CPU threads, prompts of 100 tokens,
# top 100 recorded, the same draws. CPU seconds, ours and a padded ``generate`` with a logits processor that draws: one
# row of 48 tokens 3.3 and 7.0, eight of one prompt 7.9 and 11.5, eight of eight prompts 11.6 and 11.4, eight of 8 to
# 80 tokens 12.6 and 23.5: it reads a shared prompt eight times, copies the cache at every step, and computes a row
# that has ended until the longest has. ``generate_batch`` took 14.4 for eight of one prompt, and it has one seed for
# the process, one log-probability per token, no top K and no second model.

from __future__ import annotations

import atexit
import threading
import traceback
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rfx_agent.errors import RfxError, SamplerError
from rfx_agent.samplers.transformers.plans import Decoded, Row

if TYPE_CHECKING:
    from rfx_agent.samplers.transformers.decode import Batch
    from rfx_agent.samplers.transformers.lane import Lane
    from rfx_agent.samplers.transformers.model import CausalModel
    from rfx_agent.samplers.transformers.rows import Prompts, Run

__all__ = ["Batched", "Call", "submit"]


@dataclass(frozen=True, slots=True)
class Batched:
    """What came of one call.

    Attributes:
        decoded: one per row, in their order.
        read: prompt tokens that the specialist really read.
        read_by_ancestor: those that the ancestor did.
    """

    decoded: tuple[Decoded, ...]
    read: int
    read_by_ancestor: int


@dataclass(eq=False)
class Call:
    """Rows that one caller waits for."""

    model: CausalModel
    rows: tuple[Row, ...]
    ancestor: CausalModel | None
    max_rows: int
    name: str
    future: Future[Batched] = field(default_factory=Future)
    runs: list[Run] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    prompts: Prompts | None = None
    others: Prompts | None = None
    _read: tuple[int, int] = (0, 0)
    _ending: threading.Lock = field(default_factory=threading.Lock)

    def restart(self) -> None:
        """Let all rows that are not finished wait to be admitted, each from where it is."""
        from rfx_agent.samplers.transformers.rows import Prompts, Run

        self._read = self._spent()
        if not self.runs:
            self.runs = [Run(row) for row in self.rows]
        self.waiting = [i for i, run in enumerate(self.runs) if not run.done]
        contexts = [run.context for run in self.runs]
        self.prompts, self.others = Prompts(contexts), Prompts(contexts)

    def settle(self) -> None:
        """Give the result if every row has one, or the error of a row that has one."""
        error = next((run.error for run in self.runs if run.error is not None), None)
        if error is not None:
            self.fail(SamplerError(f"{self.name}: {error}"))
        elif self.prompts is not None and all(run.done for run in self.runs):
            self._end(Batched(tuple(run.result() for run in self.runs), *self._spent()))

    def fail(self, error: BaseException) -> None:
        """Give an error, unless the call has ended."""
        self._end(error)

    def _end(self, given: Batched | BaseException) -> None:
        with self._ending:  # the worker and close() may both want to
            if self.future.done() or not self.future.set_running_or_notify_cancel():
                return
            if isinstance(given, Batched):
                self.future.set_result(given)
            else:
                self.future.set_exception(given)

    def _spent(self) -> tuple[int, int]:
        now = (0, 0) if self.prompts is None or self.others is None else (self.prompts.read, self.others.read)
        return self._read[0] + now[0], self._read[1] + now[1]


def submit(call: Call) -> None:
    """Hand ``call`` to its model's worker.

    Raises:
        SamplerError: the process is ending.
    """
    with _lock:
        worker = _workers.setdefault(call.model, _Worker())
    worker.submit(call)


class _Worker:
    """Decodes the calls of one model. Its thread lives while there is work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrived: list[Call] = []
        self._open: list[Call] = []
        self._thread: threading.Thread | None = None
        self._stopped = False

    def submit(self, call: Call) -> None:
        with self._lock:
            if self._stopped:
                raise SamplerError(f"{call.name}: the process is ending")
            self._arrived.append(call)
            if self._thread is None or not self._thread.is_alive():  # after a fork it is not
                # A daemon, for exit must not wait for a long decode; ``_stop_all`` ends it before the interpreter does.
                self._thread = threading.Thread(target=self._work, name="rfx-decode", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            thread = self._thread
        if thread is not None:
            thread.join()

    def fetch(self) -> list[Call] | None:
        """The calls that have not ended, new ones last; None where there are none and the shift is over."""
        with self._lock:
            self._open = [call for call in (*self._open, *self._arrived) if not call.future.done()]
            self._arrived = []
            if self._open and not self._stopped:
                return self._open
            self._thread, left, self._open = None, self._open, []
        for call in left:
            call.fail(SamplerError(f"{call.name}: the process is ending"))
        return None

    def _work(self) -> None:
        shift = _Shift()
        try:
            while (calls := self.fetch()) is not None:
                shift.turn(calls)
        except BaseException as error:  # noqa: BLE001  # whoever waits must hear of it
            with self._lock:
                left, self._arrived, self._open, self._thread = [*self._open, *self._arrived], [], [], None
            for call in left:
                call.fail(_told(error, call))


class _Shift:
    """One life of a worker's thread: a batch, the ancestors' lanes, and the most rows that memory allowed."""

    def __init__(self) -> None:
        self._batch: Batch | None = None
        self._ancestors: dict[CausalModel, Lane] = {}
        self._most: int | None = None

    def turn(self, calls: Sequence[Call]) -> None:
        """Take new calls into the batch, generate one token for each row, and answer the calls that are finished."""
        wanted = {id(run) for call in calls for run in call.runs}
        for run in self._batch.runs if self._batch is not None else ():
            if id(run) not in wanted:
                run.error = SamplerError("nobody waits for it any more")
        if self._admit(calls) and self._batch:
            self._step(self._batch, calls)
        for call in calls:
            call.settle()

    def _admit(self, calls: Sequence[Call]) -> bool:
        """Fill the batch with waiting rows, first come, first served; False where one failed and all begin anew."""
        for call in calls:
            try:
                batch = self._batch if call.runs and self._batch is not None else self._begin(call)
                sharing = [other.max_rows for other in calls if len(other.waiting) < len(other.runs)]
                free = min([call.max_rows, *sharing, self._most or call.max_rows]) - len(batch)
                if free <= 0:
                    break
                now, call.waiting = call.waiting[:free], call.waiting[free:]
                if now and call.prompts is not None:
                    ancestor = None if call.ancestor is None else self._lane(call.ancestor)
                    batch.admit([call.runs[i] for i in now], now, call.prompts, ancestor, call.others)
            except Exception as error:  # noqa: BLE001  # its own caller hears of it
                call.fail(_told(error, call))
                self._restart([other for other in calls if other is not call])
                return False
        return True

    def _begin(self, call: Call) -> Batch:
        from rfx_agent.samplers.transformers.decode import Batch
        from rfx_agent.samplers.transformers.lane import Lane

        if self._batch is None:
            self._batch = Batch(Lane(call.model.module, call.model.lock))
        call.restart()
        return self._batch

    def _step(self, batch: Batch, calls: Sequence[Call]) -> None:
        rows = len(batch)
        try:
            batch.step()
        except Exception as error:  # noqa: BLE001  # told to those it concerns
            # A batch does not show whose fault it is, and memory may be short: go on with half as many rows. Where
            # one row alone fails, its call does.
            inside = {id(run) for run in batch.runs}
            failed = [call for call in calls if rows == 1 and any(id(run) in inside for run in call.runs)]
            self._most = None if failed else max(1, rows // 2)
            for call in failed:
                call.fail(_told(error, call))
            traceback.clear_frames(error.__traceback__)  # they hold the batch's memory
            self._restart([call for call in calls if call not in failed])

    def _restart(self, calls: Sequence[Call]) -> None:
        self._ancestors, self._batch = {}, None
        for call in calls:
            if call.runs:
                self._begin(call)

    def _lane(self, ancestor: CausalModel) -> Lane:
        from rfx_agent.samplers.transformers.lane import Lane

        if ancestor not in self._ancestors:
            self._ancestors[ancestor] = Lane(ancestor.module, ancestor.lock)
        return self._ancestors[ancestor]


def _told(error: BaseException, call: Call) -> SamplerError:
    """The error as the port's callers hear of it."""
    if isinstance(error, SamplerError):
        return error
    text = str(error) or type(error).__name__
    if isinstance(error, RfxError):
        told = SamplerError(f"{call.name}: {text}")
    elif any(sign in text.lower() for sign in ("out of memory", "allocate memory")):
        told = SamplerError(
            f"{call.name}: memory is short for even one row of this call; ask for fewer tokens, or use a smaller "
            f"model or dtype ({text.splitlines()[0]})",
            transient=True,
        )
    else:
        told = SamplerError(f"{call.name}: the model failed: {type(error).__name__}: {text}")
    told.__cause__ = error
    return told


_workers: weakref.WeakKeyDictionary[CausalModel, _Worker] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


@atexit.register
def _stop_all() -> None:
    with _lock:
        workers = list(_workers.values())
    for worker in workers:
        worker.stop()
