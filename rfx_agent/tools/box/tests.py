"""Runs tests against code that lives in another process, in a sandbox of its own, behind file descriptor 3.

The code's side may say anything. What a test compares is a value of a built-in type, made here of what came over the
line, so an object that claims to equal everything is no way through; neither are this process's names, its frames or
the channel of the verdict, of which the other one has none.
"""

from __future__ import annotations

import asyncio
import builtins
import inspect
import json
import os
import socket
import sys
import traceback
import types
import unittest
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from rfx_agent.tools.box.asserts import FILE, Seen, prepared, statement_at
from rfx_agent.tools.box.limits import described, settle
from rfx_agent.tools.box.remote import Far, Remotes
from rfx_agent.tools.box.wire import Broken

__all__: list[str] = []


class _Names(dict[str, Any]):
    """The tests' names; one that neither they nor Python define is the code's."""

    def __init__(self, far: Remotes, claimed: list[str]) -> None:
        super().__init__(__name__="__tests__")
        self._far, self._claimed = far, claimed

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name) and name not in self._claimed:
            raise KeyError(name)
        try:
            value = self._far.get(name)
        except KeyError:
            if name in self._claimed:  # Python's own would be tested instead
                raise NameError(f"name {name!r} is not defined") from None
            raise
        # Kept, but for plain values, which the code may change.
        if isinstance(value, (Far, type)):
            self[name] = value
        return value


def _report(channel: int, **record: Any) -> None:
    told = json.dumps(record, ensure_ascii=False).encode(errors="replace") + b"\n"
    while told:
        told = told[os.write(channel, told) :]


def _run(settings: dict[str, Any], line: socket.socket, channel: int) -> None:
    far = Remotes(line, operators=settings["operators"])
    far.peer.receive()  # its process has started, and nothing of the code has run
    _report(channel, ready=True)
    status, body = far.peer.receive()[:2]
    if status != "value":
        kind, error, at = (*body, None, None, None)[:3] if isinstance(body, list) else ("failed", str(body), None)
        _report(channel, load=str(kind), error=str(error)[:500], line=at if isinstance(at, int) else None)
        return
    made = far.peer.unpack(["l", body]) if isinstance(body, list) else []
    shadowed = sorted({str(name) for name in made} & set(settings["builtins"]))
    if shadowed:
        _report(channel, load="failed", error=f"the code redefines {', '.join(shadowed)}, which Python has", line=None)
        return
    seen = Seen(far)
    names = _Names(far, settings["names"])
    sys.modules["__tests__"] = types.ModuleType("__tests__")  # where a class of theirs says that it comes from
    names[Seen.NAME] = seen.call
    for test, counts, run in _tests(settings["tests"], names):
        _report(channel, start=test)
        passed, record = _one(run, test, seen, far)
        _report(channel, passed=passed, counts=counts, **record)
        if far.peer.broken:
            return
    _report(channel, end=True)


def _tests(sources: list[Any], names: dict[str, Any]) -> Iterator[tuple[str, bool, Callable[[], Any]]]:
    """Each test, whether it counts, and what runs it: the statements in turn, then the functions and classes that
    hold tests."""
    for source, counts in sources:
        yield source, counts, partial(exec, prepared(source), names)
    for name, value in list(names.items()):
        ours = isinstance(value, type) and value.__module__ == "__tests__"
        if isinstance(value, types.FunctionType) and name.startswith("test_") and not _needs(value):
            yield name, True, partial(_ended, value)
        elif ours and issubclass(value, unittest.TestCase):
            for method in unittest.defaultTestLoader.getTestCaseNames(value):
                yield f"{name}.{method}", True, unittest.TestSuite([value(method)]).debug  # with its class's fixtures
        elif ours and name.startswith("Test"):
            for method in [x for x in dir(value) if x.startswith("test") and callable(getattr(value, x))]:
                yield f"{name}.{method}", True, partial(_method, value, method)


def _needs(function: types.FunctionType) -> bool:
    return any(
        x.default is x.empty and x.kind not in (x.VAR_POSITIONAL, x.VAR_KEYWORD)
        for x in inspect.signature(function).parameters.values()
    )


def _ended(function: Callable[[], Any]) -> None:
    """Run it to its end: what an async function gives has tested nothing yet."""
    if inspect.iscoroutine(given := function()):
        asyncio.run(given)


def _method(kind: type, method: str) -> None:
    """One test of a plain class, between what pytest calls around it."""
    one = kind()
    for name in ("setup_method", method, "teardown_method"):
        if hasattr(one, name):
            _ended(getattr(one, name))


def _one(run: Callable[[], Any], test: str, seen: Seen, far: Remotes) -> tuple[bool, dict[str, Any]]:
    seen.clear()
    try:
        run()
    except BaseException as error:  # noqa: BLE001  # whatever a test raises is its failure
        place = [x for x in traceback.extract_tb(error.__traceback__) if x.filename.startswith(FILE)]
        record: dict[str, Any] = {"test": test, "got": seen.told(), "error": "", "line": None}
        if len(place) > 1 or "\n" in test or "(" not in test:
            record["test"] = statement_at(place[-1]) or test if place else test
        if isinstance(error, Broken) or far.peer.broken:
            record["error"] = far.peer.broken or str(error)
        elif not isinstance(error, AssertionError) or far.place(error) is not None:
            record["error"] = described(error)
            record["line"] = far.place(error)
        elif str(error):
            record["error"] = str(error)[:300]
        if far.refused:
            record["error"] = f"{record['error']} ({far.refused})".strip()
        return False, record
    if far.peer.broken:  # and the test did not mind
        return False, {"test": test, "got": seen.told(), "error": far.peer.broken, "line": None}
    return True, {}


def _main() -> None:
    settings = settle()
    channel = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    sys.setrecursionlimit(2000)
    try:
        with socket.socket(fileno=3) as line:
            _run(settings, line, channel)
    except Broken as error:
        _report(channel, load="failed", error=str(error), line=None)
    except BaseException as error:  # noqa: BLE001  # said to the parent, for whom it is no verdict
        _report(channel, broke=described(error))
    os._exit(0)


if __name__ == "__main__":
    _main()
