"""A sync call with a limit: run on another thread, and left behind there when it does not end in time."""

from __future__ import annotations

import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeAlias

__all__ = ["TimedOut", "within"]

_Job: TypeAlias = tuple[Future[Any], Callable[[], Any]]
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
    future: Future[Any] = Future()
    context = contextvars.copy_context()
    try:
        worker = _idle.pop()
    except IndexError:
        worker = _Worker()
        worker.start()
    worker.jobs.put((future, lambda: context.run(run, *args, **kwargs)))
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    if not done.wait(limit):
        raise TimedOut(limit)
    return future.result()


class _Worker(threading.Thread):
    """Takes one job after the other; a job that hangs takes its thread out of use, and no other job with it."""

    def __init__(self) -> None:
        super().__init__(name="rfx-call", daemon=True)
        self.jobs: SimpleQueue[_Job] = SimpleQueue()

    def run(self) -> None:
        while True:
            future, job = self.jobs.get()
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001  # raised again where the caller waits
                future.set_exception(error)
            del future, job  # or the last job's arguments would live as long as the thread waits
            _idle.append(self)


_idle = deque()
if hasattr(os, "register_at_fork"):  # threads do not come along into a forked process
    os.register_at_fork(after_in_child=_idle.clear)
