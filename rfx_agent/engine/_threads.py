"""A sync call with a limit: run on another thread, and left behind there when it does not end in time."""

from __future__ import annotations

import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

__all__ = ["TimedOut", "within"]

_idle: deque[_Worker]


class TimedOut(Exception):
    """A call that did not end within its limit, and was left behind. What it cost is not known."""

    def __init__(self, limit: float) -> None:
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
            job = self.jobs.get()
            job.perform()
            del job  # or the last call's arguments would live as long as the thread waits
            _idle.append(self)


_idle = deque()
if hasattr(os, "register_at_fork"):  # threads do not come along into a forked process
    os.register_at_fork(after_in_child=_idle.clear)
