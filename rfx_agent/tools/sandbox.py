"""Runs a program that a model wrote, where it can do no harm: Pydantic's Monty in a subprocess, under limits.

Monty is an interpreter of its own for a subset of Python, without files, network, environment or processes. Each run
is a fresh session; a worker that crashes is replaced, and the parent only ever sees plain values.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from rfx_agent._closing import Closing
from rfx_agent._forks import Lock, in_child
from rfx_agent.checks import MOST_SECONDS, number, whole
from rfx_agent.errors import ConfigError, ToolError
from rfx_agent.records import ToolResult
from rfx_agent.tools.aside import Aside
from rfx_agent.tools.monty_trial import monty_trial
from rfx_agent.tools.prompts import clip
from rfx_agent.tools.trial import Trial, TrialResult

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic_monty import Monty, MontyError, MontySession, OSPolicy, ResourceLimits

__all__ = ["MODULES", "Printed", "Sandbox", "choose"]

_GRACE = 0.5  # seconds after which the parent kills a worker that did not stop by itself
_SOURCE = 64 * 1024  # characters of source; a program longer than this was not written by a model that was well
_MESSAGE = 500  # characters of an error message: it goes back into a prompt
_GUESSES = 3  # places tried for the beginning of the last expression
_STATEMENT = re.compile(r"^[^\s#)\]}]", re.MULTILINE)
_SUSPENSIONS = 100  # look-ups of undefined names, each of which is a round trip to the parent


class Sandbox(Closing):
    """A pool of sandbox workers, started on first use and shared by all threads and event loops.

    Safe across ``fork``. A child whose parent had used a sandbox has its own in another interpreter; see ``aside``.

    Args:
        seconds: time that one program may compute. ``time.sleep`` returns at once and buys no more.
        memory: bytes of heap for one program; the parent is not affected by it.
        output: characters kept of what a program prints, and the most that an answer may have.
        recursion: depth of calls.
        workers: most programs at a time; by default 4 or the number of processors, whichever is less.

    The modules collections, datetime, decimal, functools, itertools, json, math, random and re are imported already.
    ``random`` starts from a fixed seed, so that a program gives the same answer again. The clock is real, in UTC.
    A worker that meets its memory limit says so in one line on stderr; that is Monty's doing.

    Raises:
        ConfigError: a parameter that cannot work.

    Example:
        >>> with Sandbox() as sandbox:
        ...     sandbox.run("answer = 4721 * 389").answer
        '1836469'
    """

    name = "monty"
    what = "Monty, a subset of Python"

    def __init__(
        self,
        *,
        seconds: float = 5.0,
        memory: int = 64 * 1024 * 1024,
        output: int = 64 * 1024,
        recursion: int = 1000,
        workers: int | None = None,
    ) -> None:
        self.seconds = number("Sandbox: seconds", seconds, above=0, most=MOST_SECONDS)
        self.memory = whole("Sandbox: memory", memory, least=1024 * 1024)
        self.output = whole("Sandbox: output", output, least=1)
        self.recursion = whole("Sandbox: recursion", recursion, least=1, most=1000)
        self.workers = min(4, os.cpu_count() or 1) if workers is None else whole("Sandbox: workers", workers, least=1)
        self._lock = Lock()
        self._trials = threading.BoundedSemaphore(self.workers)
        self._pool: Monty | None = None
        self._aside: Aside | None = None
        self._finalizer: Any = None
        in_child(Sandbox._forked, self)

    @property
    def hard_seconds(self) -> float:
        """Seconds after which the parent kills the worker of a program that ignored its limit."""
        return self.seconds + _GRACE

    def run(self, code: str, *, answer_name: str = "answer") -> ToolResult:
        """Run ``code`` and return its answer: the variable ``answer_name``, else the value of its last
        expression, else its last printed line. A program that fails is a result with ``error``.

        Raises:
            ToolError: the sandbox itself could not be started.
        """
        if not answer_name.isidentifier():
            raise ConfigError(f"Sandbox.run: answer_name is {answer_name!r}; give a Python identifier")
        if len(code) > _SOURCE:
            return ToolResult(None, error=f"ValueError: the program is longer than {_SOURCE} characters")
        if (aside := self._elsewhere()) is not None:
            return aside.run(code, answer_name)
        session = self._open()
        began = time.perf_counter()
        printed = Printed(self.output)
        try:
            answer, error = _execute(session, code, answer_name, printed, self.output)
        finally:
            session.__exit__(None, None, None)
        return ToolResult(answer, printed.text(), error, time.perf_counter() - began)

    async def arun(self, code: str, *, answer_name: str = "answer") -> ToolResult:
        """Do what ``run`` does, without blocking the event loop. A run whose task is cancelled ends by its own time
        limit and gives its worker back."""
        return await asyncio.to_thread(self.run, code, answer_name=answer_name)

    def test(self, code: str, trial: Trial) -> TrialResult:
        """Hold ``code`` against tests, which run in a session of their own and reach it by plain values alone.

        Raises:
            ToolError: the sandbox itself could not be started.
        """
        if len(code) > _SOURCE:
            why = f"ValueError: the program is longer than {_SOURCE} characters"
            return TrialResult(0, trial.count, error=why, loaded=False, unreadable=True)
        with self._trials:
            if (aside := self._elsewhere()) is not None:
                return aside.test(code, trial)
            opened = partial(self._open, suspensions=100_000)
            return monty_trial(opened, code, trial, seconds=self.seconds)

    async def atest(self, code: str, trial: Trial) -> TrialResult:
        """Do what ``test`` does, without blocking the event loop; cancelled as ``arun``."""
        return await asyncio.to_thread(self.test, code, trial)

    def close(self) -> None:
        """Stop the workers; a later run starts new ones. Not needed at exit."""
        with self._lock:
            finalizer, self._pool, self._aside, self._finalizer = self._finalizer, None, None, None
        if finalizer is not None:
            finalizer()

    def __repr__(self) -> str:
        return (
            f"Sandbox(seconds={self.seconds}, memory={self.memory}, output={self.output}, "
            f"recursion={self.recursion}, workers={self.workers})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Copied and pickled as its settings: workers belong to one process.
        return partial(Sandbox, **self._settings()), ()

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("seconds", "memory", "output", "recursion", "workers")}

    def _forked(self) -> None:
        """In a forked child: all workers are its parent's."""
        self._trials = threading.BoundedSemaphore(self.workers)
        if self._finalizer is not None:
            self._finalizer.detach()
        if self._pool is not None:
            _inherited.append(self._pool)
        self._pool = self._aside = self._finalizer = None

    def _elsewhere(self) -> Aside | None:
        """What runs the programs, where the library cannot run in this process."""
        if _used_by in (0, os.getpid()):
            return None
        with self._lock:
            if self._aside is None:
                self._aside = Aside(self._settings() | {"workers": 1}, workers=self.workers, seconds=self.hard_seconds)
                self._finalizer = weakref.finalize(self, self._aside.close)
            return self._aside

    def _open(self, suspensions: int = _SUSPENSIONS) -> MontySession:
        limits: ResourceLimits = {
            "max_feed_duration_secs": self.seconds,
            "max_memory": self.memory,
            "max_recursion_depth": self.recursion,
            "max_suspensions": suspensions,
        }
        policy: OSPolicy = {"sleep": "zero", "random_start": {"seed": 0}}
        try:
            return self._started().checkout(limits=limits, os_policy=policy).__enter__()
        except Exception as error:
            raise ToolError(
                f"the sandbox could not be started: {type(error).__name__}: {error}; "
                "check that pydantic-monty and its binary are installed (pip install pydantic-monty)"
            ) from error

    def _started(self) -> Monty:
        global _used_by  # a property of the library, which has threads of its own
        with self._lock:
            if self._pool is None:
                from pydantic_monty import Monty

                pool = Monty(
                    min_processes=0,
                    max_processes=2 * self.workers,  # tests and code are a session each
                    request_timeout=self.hard_seconds,
                    max_checkouts_per_worker=1000,
                    feed_duration_limit_grace=_GRACE,
                )
                pool.__enter__()
                _used_by = os.getpid()
                self._pool = pool
                self._finalizer = weakref.finalize(self, pool.__exit__, None, None, None)
            return self._pool


_used_by = 0  # id of the process that started a pool
_inherited: list[Monty] = []  # never let go of: to stop a pool takes threads that a forked child does not have


# One line, which is taken off the line numbers again. Small models forget their imports.
MODULES = ("collections", "datetime", "decimal", "functools", "itertools", "json", "math", "random", "re")
_PROLOGUE = f"import {', '.join(MODULES)}; __rfx_last = None"

# The program's value never crosses as an object: a set that holds a tuple of itself twice, forty levels deep, is a
# few kilobytes there and 2**40 hashes here, with the parent's interpreter locked. An f-string is text whatever the
# program has done to ``str``. It is part of the same feed, so that one time limit covers it all. Functions are no
# answers: small models like to write ``def answer()``.
_EPILOGUE = """
try:
    __rfx_set = {name}
except NameError:
    __rfx_set = None
__rfx_call = f"{{__rfx_set!s}}"[:10] == "<function "
if __rfx_set is None or __rfx_call:
    __rfx_set = __rfx_last
f"{{__rfx_set is None:d}}{{__rfx_call:d}}{{__rfx_set!s}}"[:{size}]
"""
_FUNCTION = re.compile(r"<function .{1,200} at 0x[0-9a-f]{1,16}>")
_OBJECT = re.compile(r"<.{1,200} object at 0x[0-9a-f]{1,16}>")


def _execute(
    session: MontySession, code: str, name: str, printed: Printed, limit: int
) -> tuple[str | None, str | None]:
    """Answer and error of ``code``."""
    from pydantic_monty import MontyError, MontySyntaxError

    epilogue = _EPILOGUE.format(name=name, size=limit + 3)
    error: MontyError | None = None
    for body in _bodies(code):
        try:
            value = session.feed_run(body + epilogue, print_callback=printed)
        except MontySyntaxError as syntax:
            error = syntax
            if _has_run(session):
                break
        except MontyError as failure:
            return None, _describe(failure, code)
        else:
            return choose(str(value), printed, name, limit)
    return None, None if error is None else _describe(error, code)


def _has_run(session: MontySession) -> bool:
    """Whether a syntax error came out of the running program (``exec("(")``): it must not run a second time, or it
    would have its time limit several times over. Otherwise only the guess was wrong: see ``_bodies``."""
    from pydantic_monty import MontyError

    try:
        session.feed_run("__rfx_last\nNone")
    except MontyError:
        return False
    return True


def _bodies(code: str) -> Iterator[str]:
    """``code`` with its last expression assigned to a name, as far as it has one; at last without.

    Where the last statement begins is guessed from the lines that start in the first column, and Monty's parser says
    whether the guess was right. Python's own can be crashed by deep nesting, and it would be the parent's.
    ``pass;`` keeps the assignment from being read as a keyword argument of a call left open.
    """
    starts = [m.start() for m in _STATEMENT.finditer(code)]
    for start in starts[: -1 - _GUESSES : -1]:
        yield f"{_PROLOGUE}\n{code[:start]}pass; __rfx_last = ({code[start:]}\n)"
    yield f"{_PROLOGUE}\n{code}"


def choose(value: str, printed: Printed, name: str, limit: int) -> tuple[str | None, str | None]:
    """Answer and error: ``value`` is whether it is unset, whether ``name`` is a function, and the value as text."""
    unset, function, text = value[:1] == "1", value[1:2] == "1", value[2:]
    if unset or _FUNCTION.fullmatch(text):
        line = printed.last_line()
        if line is None and (function or not unset):
            return None, f"TypeError: {name} is a function; call it and assign what it returns to {name}"
        if line is None:
            return None, f"ValueError: the program set no variable {name}, ended in no expression and printed nothing"
        text = line
    if len(text) > limit:
        return None, f"ValueError: the answer is longer than {limit} characters"
    if _OBJECT.fullmatch(text):
        return None, f"TypeError: the answer is an object ({clip(text, 100)}); make it a number, a string or a list"
    return text, None


def _describe(error: MontyError, code: str) -> str:
    from pydantic_monty import MontyCrashedError, MontyRuntimeError, MontySyntaxError

    if isinstance(error, MontyCrashedError):
        kind = "TimeoutError" if error.timed_out else "MemoryError"
        return f"{kind}: the program was stopped because it went past the sandbox's limits"
    if not isinstance(error, MontyRuntimeError | MontySyntaxError):
        return clip(str(error), _MESSAGE)
    text = clip(error.display("type-msg"), _MESSAGE)
    if text.startswith("TimeoutError: feed time limit"):
        return "TimeoutError: the program ran past its time limit; use a faster method"  # no clock in a prompt
    frames = error.traceback()
    if not frames:
        return text
    # Minus the line put before the program; what comes after it is not the model's business.
    return f"{text} (line {min(max(frames[-1].line - 1, 1), code.count(chr(10)) + 1)})"


class Printed:
    """Keeps the beginning of what a program prints, and its end for the last line; drops the middle."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.most = max(16 * limit, 1024 * 1024)
        self.size = 0
        self.head = ""
        self.tail = ""
        self.cut = False

    def __call__(self, stream: str, text: str) -> None:
        self.head += text[: max(0, self.limit - len(self.head))]
        self.size += len(text)
        if stream == "stdout":
            tail = self.tail + text
            self.tail = tail[-self.limit - 1 :]
            self.cut = self.cut or len(tail) > len(self.tail)

    def text(self) -> str:
        missing = self.size - len(self.head)
        return f"{self.head}… [{missing} more characters]" if missing else self.head

    def last_line(self) -> str | None:
        """The last line that is not blank, or None; longer than the limit where its beginning is gone."""
        lines = self.tail.split("\n")
        for i in range(len(lines) - 1, -1, -1):
            if lines[i].strip():
                return "…" * (self.limit + 1) if self.cut and i == 0 else lines[i].strip()
        return None
