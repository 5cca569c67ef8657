"""Runs a program that a model wrote under a full CPython, in a sandbox of the operating system: bubblewrap.

Each run is a process of its own in new namespaces: no network, no home, no process but itself, no file but Python's
own and a small private ``/tmp``, no right that could be had back, an environment of three settings. What limits it is
the kernel; what it writes is read as data.
"""

from __future__ import annotations

import asyncio
import builtins
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from rfx_agent._closing import Closing
from rfx_agent.checks import MOST_SECONDS, number, whole
from rfx_agent.errors import ConfigError, ToolError
from rfx_agent.records import ToolResult
from rfx_agent.tools.launch import START, Ended, Launched, Stopped, probed
from rfx_agent.tools.sandbox import MODULES, Printed, choose
from rfx_agent.tools.trial import Trial, TrialResult

__all__ = ["OSSandbox"]

T = TypeVar("T")

_SOURCE = 256 * 1024  # characters of source
_LATE = "TimeoutError: the program ran past its time limit; use a faster method"
_STOPPED = "MemoryError: the program was stopped because it went past the sandbox's limits"


class OSSandbox(Closing):
    """A CPython with its standard library in bubblewrap, one process a run.

    Whether it works here is found out when it is made: a tiny program is run, and what it can reach is looked at.

    Args:
        seconds: time that one program may take, of the clock and of the processor.
        memory: bytes of address space for one program, Python's own 15 MB among them.
        output: characters kept of what a program prints, and the most that an answer may have. A program that prints
            sixteen times as much, and at least a megabyte, is stopped.
        disk: bytes that a program may write to its own ``/tmp``, which is gone afterwards.
        workers: most runs at a time; others wait. By default the number of processors.
        packages: folders whose modules a program may import, such as a ``site-packages``; they are readable in whole.

    Raises:
        ConfigError: a parameter that cannot work, or a sandbox that does not work here: what is missing, and how to
            install it.

    Example:
        >>> OSSandbox().run("import statistics\\nstatistics.median([3, 1, 2])").answer  # doctest: +SKIP
        '2'
    """

    name = "bubblewrap"
    what = "CPython in bubblewrap"

    def __init__(
        self,
        *,
        seconds: float = 5.0,
        memory: int = 256 * 1024 * 1024,
        output: int = 64 * 1024,
        disk: int = 16 * 1024 * 1024,
        workers: int | None = None,
        packages: tuple[str, ...] = (),
    ) -> None:
        self.seconds = number("OSSandbox: seconds", seconds, above=0, most=MOST_SECONDS)
        self.memory = whole("OSSandbox: memory", memory, least=64 * 1024 * 1024)
        self.output = whole("OSSandbox: output", output, least=1)
        self.disk = whole("OSSandbox: disk", disk, least=4096)
        self.workers = os.cpu_count() or 1 if workers is None else whole("OSSandbox: workers", workers, least=1)
        self.packages = tuple(os.fspath(x) for x in packages)
        if missing := [x for x in self.packages if not os.path.isdir(x)]:  # noqa: PTH112  # as given
            raise ConfigError(f"OSSandbox: packages names {missing[0]!r}; give folders that exist")
        self._room = threading.BoundedSemaphore(self.workers)
        self._threads: ThreadPoolExecutor | None = None
        self._owner = 0
        probed(self.packages)

    @property
    def hard_seconds(self) -> float:
        """Seconds after which a run has been stopped, its start included."""
        return self.seconds + START

    def run(self, code: str, *, answer_name: str = "answer") -> ToolResult:
        """Run ``code`` and return its answer: the variable ``answer_name``, else the value of its last
        expression, else its last printed line. A program that fails is a result with ``error``.

        Raises:
            ToolError: the sandbox itself could not be started.
        """
        return self._run(threading.Event(), code, answer_name)

    async def arun(self, code: str, *, answer_name: str = "answer") -> ToolResult:
        """Do what ``run`` does, without blocking the event loop. A run whose task is cancelled is killed with all that
        it started."""
        return await self._apart(self._run, code, answer_name)

    def test(self, code: str, trial: Trial) -> TrialResult:
        """Hold ``code`` against tests, which run in a second sandbox and reach it by values alone.

        Raises:
            ToolError: the sandbox itself could not be started.
        """
        return self._test(threading.Event(), code, trial)

    async def atest(self, code: str, trial: Trial) -> TrialResult:
        """Do what ``test`` does, without blocking the event loop; cancelled as ``arun``."""
        return await self._apart(self._test, code, trial)

    def close(self) -> None:
        """Let go of the threads of async runs; a later one starts new ones."""
        if self._threads is not None and self._owner == os.getpid():
            self._threads.shutdown(wait=False)
        self._threads = None

    def __repr__(self) -> str:
        return (
            f"OSSandbox(seconds={self.seconds}, memory={self.memory}, output={self.output}, disk={self.disk}, "
            f"workers={self.workers}, packages={self.packages!r})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        names = ("seconds", "memory", "output", "disk", "workers", "packages")
        return partial(OSSandbox, **{name: getattr(self, name) for name in names}), ()

    def _launched(self, cancelled: threading.Event) -> Launched:
        while not self._room.acquire(timeout=0.05):
            if cancelled.is_set():
                raise Stopped
        return Launched(cancelled, self._room, self.packages)

    async def _apart(self, run: Callable[..., T], *given: Any) -> T:
        """``run`` in a thread of its own pool, so that what waits for a place holds up nobody else's threads. When the
        task is cancelled, the run is stopped, and has ended."""
        cancelled = threading.Event()
        if self._threads is None or self._owner != os.getpid():  # a forked child has no threads
            self._threads, self._owner = ThreadPoolExecutor(self.workers, "rfx-sandbox"), os.getpid()
        future = self._threads.submit(run, cancelled, *given)
        work = asyncio.wrap_future(future)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            cancelled.set()
            if not future.cancel():
                work.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody else looks
                await asyncio.wait([work])
            raise

    def _limits(self) -> dict[str, Any]:
        return {"memory": self.memory, "disk": self.disk, "cpu": int(self.seconds) + 1}

    def _run(self, cancelled: threading.Event, code: str, name: str) -> ToolResult:
        if not name.isidentifier():
            raise ConfigError(f"OSSandbox.run: answer_name is {name!r}; give a Python identifier")
        if unfit := _unfit(code):
            return ToolResult(None, error=unfit)
        printed, record = Printed(self.output), bytearray()
        began = time.perf_counter()
        with self._launched(cancelled) as box:
            settings = {"code": code, "name": name, "output": self.output, "modules": MODULES, **self._limits()}
            ended = box.program(settings, printed, record, seconds=self.seconds)
        seconds = time.perf_counter() - began
        reply = _reply(record)
        error = None if reply is None else reply.get("error")
        if reply is None:
            if not record:
                raise ToolError(_unstarted(ended))
            error = _LATE if ended.late else f"the program ended itself{_code(ended.code)} before its end"
            if ended.flooded:
                error = f"OSError: the program printed more than {printed.most} characters"
            elif not ended.late and ended.code in (137, 139, 134):
                error = _STOPPED
            elif ended.code == 128 + 24:
                error = _LATE
            return ToolResult(None, printed.text(), error, seconds)
        if error is not None:
            line = reply.get("line")
            place = f" (line {line})" if isinstance(line, int) else ""
            return ToolResult(None, printed.text(), f"{str(error)[:500]}{place}", seconds)
        value = f"{bool(reply.get('unset')):d}{bool(reply.get('function')):d}{reply.get('text')}"
        answer, error = choose(value, printed, name, self.output)
        return ToolResult(answer, printed.text(), error, seconds)

    def _test(self, cancelled: threading.Event, code: str, trial: Trial) -> TrialResult:
        if unfit := _unfit(code):
            return TrialResult(0, trial.count, error=unfit, loaded=False, unreadable=True)
        began = time.perf_counter()
        with self._launched(cancelled) as box:
            ours = {"sources": [trial.before, code], **self._limits()}
            shadows = [name for name in trial.free if hasattr(builtins, name) and name not in trial.names]
            theirs = {
                "tests": trial.tests,
                "names": trial.names,
                "builtins": shadows,
                "operators": trial.operators,
                **self._limits(),
            }
            records, ended = box.trial(ours, theirs, seconds=self.seconds)
        return _result(records, ended, trial, time.perf_counter() - began, self.seconds)


def _reply(record: bytearray) -> dict[str, Any] | None:
    """What the program's process said last, or None where it said nothing that can be read."""
    lines = bytes(record).split(b"\n")
    if len(lines) < 2 or lines[0] != b"ready":
        return None
    try:
        reply = json.loads(lines[1])
    except (ValueError, RecursionError):
        return None
    if not (isinstance(reply, dict) and isinstance(reply.get("error", reply.get("text")), str)):
        return None
    # Half a character in a text would break whatever encodes it later.
    return {key: x.encode(errors="replace").decode() if isinstance(x, str) else x for key, x in reply.items()}


def _result(records: list[Any], ended: Ended, trial: Trial, took: float, limit: float) -> TrialResult:
    if not records or "ready" not in records[0]:  # nothing of the code has run
        raise ToolError(_unstarted(ended))
    passed, ran, failed, at, over = 0, 0, None, "", False
    for record in records[1:]:
        if "broke" in record:
            raise ToolError(f"the tests could not be run: {record['broke']}")
        if "load" in record:
            return TrialResult(
                0,
                trial.count,
                error=record["error"],
                line=record["line"],
                unreadable=record["load"] == "unreadable",
                loaded=False,
                seconds=took,
            )
        if "start" in record:
            at = record["start"]
        elif "passed" in record:
            at = ""
            ran += record["counts"]
            passed += record["counts"] and record["passed"]
            failed = record if failed is None and not record["passed"] else failed
        over = over or "end" in record
    total = max(trial.count, ran)
    if failed is not None:
        return TrialResult(passed, total, failed["test"], failed["got"], failed["error"], failed["line"], seconds=took)
    if over:
        return TrialResult(passed, total, error="" if passed == total else "not every test ran", seconds=took)
    late = ended.late or ended.code == 128 + 24
    error = f"TimeoutError: it did not end within {limit:g} s" if late else "the sandbox stopped it at its limits"
    return TrialResult(passed, total, at, error=error, loaded=bool(at), seconds=took)


def _unstarted(ended: Ended) -> str:
    late = f"it did not start within {START:g} s" if ended.late else "its process ended at once"
    return f"the sandbox could not be started: {ended.said or late}"


def _unfit(code: str) -> str:
    if len(code) > _SOURCE:
        return f"ValueError: the program is longer than {_SOURCE} characters"
    return "ValueError: the program holds half a character (a lone surrogate)" if not _encodes(code) else ""


def _encodes(code: str) -> bool:
    try:
        code.encode()
    except UnicodeEncodeError:
        return False
    return True


def _code(code: int | None) -> str:
    return "" if not code else f" (exit code {code})"
