"""Flows, and the two drivers that run them: sync, and async.

They differ only by ``await``, and by how calls that may run at once are run. A sync call with a limit runs on another
thread. Where it does not end in time, it is left behind there.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias, TypeVar

from rfx_agent.errors import is_control_flow

__all__ = ["METER", "Call", "Flow", "Meter", "Reply", "TimedOut", "drive", "drive_async", "within"]

T = TypeVar("T")


@dataclass(slots=True)
class Meter:
    """The tries of one call, as far as its connections count them: of a call that was given up nothing else is known.

    Attributes:
        sent: tries whose request has left.
        over: whether the call was given up, so that no further try may leave.
        outer: of the call in which this one is made, as a judge's are in that for its verdict.
    """

    sent: int = 0
    over: bool = False
    outer: Meter | None = None

    def count(self) -> None:
        """One more request has left."""
        self.sent += 1
        if self.outer is not None:
            self.outer.count()

    @property
    def ended(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.over or (self.outer is not None and self.outer.ended)

    @property
    def lost(self) -> int:
        """Tries that a server may have worked on, where the call was given up."""
        return max(1, self.sent)


METER: ContextVar[Meter | None] = ContextVar("rfx_agent_meter", default=None)
"""Where the tries of the call that is under way are counted."""


@dataclass(frozen=True, slots=True)
class Call:
    """One thing to be done outside: the same function, sync and async, with its arguments.

    Attributes:
        limit: seconds after which it is cancelled, or None. A sync call with a limit runs on a thread of its own,
            with the caller's context; one that hangs keeps that thread.
        meter: counts its tries.
    """

    run: Callable[..., Any]
    arun: Callable[..., Awaitable[Any]]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    limit: float | None = None
    meter: Meter = field(default_factory=Meter, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a call: a value or an error, and the wall-clock seconds it took."""

    value: Any
    error: Exception | None
    seconds: float


Flow: TypeAlias = Generator[tuple[Call, ...], tuple[Reply, ...], T]
"""A flow yields calls that may run at once, and is sent their replies in the same order.

An exception that steers LangGraph or cancels the task is thrown into the flow at its yield. The flow may answer with
more calls, to give back a reservation; they are made before the exception goes on.
"""


def drive(flow: Flow[T]) -> T:
    """Run ``flow``, blocking; the calls of one yield run one after the other."""
    try:
        calls = next(flow)
        while True:
            try:
                replies = tuple([_perform(call) for call in calls])
            except BaseException as error:  # noqa: BLE001  # the flow raises it again
                calls = flow.throw(error)
            else:
                calls = flow.send(replies)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # a Flow[T] returns T


async def drive_async(flow: Flow[T]) -> T:
    """Run ``flow`` on the running event loop, and return what it returns.

    The flow yields calls and is sent their replies. Calls that it yields together run concurrently.
    """
    try:
        calls = next(flow)
        while True:
            try:
                replies = await _gather(calls)
            except BaseException as error:  # noqa: BLE001  # the flow raises it again
                calls = flow.throw(error)
            else:
                calls = flow.send(replies)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # a Flow[T] returns T


async def _gather(calls: tuple[Call, ...]) -> tuple[Reply, ...]:
    if len(calls) == 1:  # the usual case needs no task
        return (await _aperform(calls[0]),)
    tasks = [asyncio.ensure_future(_aperform(call)) for call in calls]
    try:
        return tuple(await asyncio.gather(*tasks))
    finally:
        for task in tasks:  # one was cancelled or steers the graph: cancel the others
            task.cancel()


def _perform(call: Call) -> Reply:
    started, call.meter.outer = time.perf_counter(), METER.get()
    token = METER.set(call.meter)
    try:
        if call.limit is None:
            value, failed = call.run(*call.args, **call.kwargs), None
        else:
            value, failed = within(call.limit, call.run, *call.args, **call.kwargs), None
    except Exception as error:  # handed to the flow, which knows what it means
        if is_control_flow(error):
            raise
        value, failed = None, error
        if isinstance(error, TimedOut):
            call.meter.over, error.lost = True, call.meter.lost
    finally:
        METER.reset(token)
    return Reply(value, failed, time.perf_counter() - started)


async def _aperform(call: Call) -> Reply:
    started = time.perf_counter()
    scope = asyncio.timeout(call.limit)
    failed: Exception | None = None
    call.meter.outer = METER.get()
    token = METER.set(call.meter)
    try:
        async with scope:
            value = await call.arun(*call.args, **call.kwargs)
    except Exception as error:  # handed to the flow, which knows what it means
        if is_control_flow(error):
            raise
        late = call.limit is not None and scope.expired() and isinstance(error, TimeoutError)
        value, failed = None, TimedOut(call.limit or 0, lost=call.meter.lost) if late else error
    finally:
        METER.reset(token)
    return Reply(value, failed, time.perf_counter() - started)


class TimedOut(Exception):
    """A call that did not end within its limit, and was left behind. What it cost is not known.

    Attributes:
        lost: its tries so far; at least one.
    """

    def __init__(self, limit: float, *, lost: int = 1) -> None:
        self.lost = lost
        super().__init__(f"it did not end within {limit:.3g} s")


def within(limit: float, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``run(...)`` on another thread with this one's context variables.

    Raises:
        TimedOut: it did not end within ``limit`` seconds. It goes on where it is; what it gives is dropped.
    """
    job = _Job(contextvars.copy_context(), run, args, kwargs)
    try:
        worker = _idle.pop()
    except IndexError:
        worker = _Worker()
        worker.start()
    worker.jobs.put(job)
    if not job.done.acquire(timeout=limit):
        raise TimedOut(limit)
    if job.error is not None:
        raise job.error
    return job.value


class _Job:
    """One call, and what came of it. A bare lock tells when: every step that passes waits for one of these."""

    def __init__(
        self, context: contextvars.Context, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._call = context, run, args, kwargs
        self.value: Any = None
        self.error: BaseException | None = None
        self.done = threading.Lock()
        self.done.acquire()

    def perform(self) -> None:
        context, run, args, kwargs = self._call
        try:
            self.value = context.run(run, *args, **kwargs)
        except BaseException as error:  # noqa: BLE001  # raised again where the caller waits
            self.error = error
        self.done.release()


class _Worker(threading.Thread):
    """Takes one job after the other; a job that hangs takes its thread out of use, and no other job with it."""

    def __init__(self) -> None:
        super().__init__(name="rfx-call", daemon=True)
        self.jobs: SimpleQueue[_Job] = SimpleQueue()

    def run(self) -> None:
        while True:
            try:
                job = self.jobs.get(timeout=_IDLE)
            except Empty:
                try:
                    _idle.remove(self)
                except ValueError:  # somebody has just chosen it, and gives it a job
                    continue
                return
            job.perform()
            del job  # or the last call's arguments would live as long as the thread waits
            if len(_idle) >= _SPARE:  # after many that hung at once
                return
            _idle.append(self)


_IDLE = 30.0  # seconds that a thread waits for a job
_SPARE = 8  # threads that wait
_idle: deque[_Worker] = deque()
if hasattr(os, "register_at_fork"):  # threads do not come along into a forked process
    os.register_at_fork(after_in_child=_idle.clear)
