"""Loads code and serves it over file descriptor 3 to the process that tests it.

The code shares this interpreter and may say over the line whatever it likes. So nothing here is a verdict: what the
other side reads are values, and it compares them itself.
"""

from __future__ import annotations

import asyncio
import builtins
import io
import operator
import os
import random
import socket
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from rfx_agent.tools.box.limits import described, settle, source_line
from rfx_agent.tools.box.wire import Broken, Peer

__all__: list[str] = []

_FILE = "<code>"
_PRINTED = 64 * 1024  # characters kept of what one call prints
_MUTABLE = (list, dict, set, bytearray, tuple)
_DATA = (int, float, str, bytes, tuple, frozenset)
_CONTAINERS = (list, dict, set)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)
_BY_NAME: dict[str, Callable[..., Any]] = {
    **{name: getattr(builtins, name) for name in ("abs", "bool", "bytes", "complex", "dir", "divmod", "float")},
    **{name: getattr(builtins, name) for name in ("format", "hash", "int", "isinstance", "issubclass", "iter", "len")},
    **{name: getattr(builtins, name) for name in ("next", "pow", "repr", "reversed", "round", "str")},
    "enter": lambda x: type(x).__enter__(x),
    "exit": lambda x: type(x).__exit__(x, None, None, None),
}


class _Printed(io.TextIOBase):
    """Standard output: kept, up to a limit, until it is asked for."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text[: max(0, _PRINTED - len(self.text))]
        return len(text)

    def take(self) -> str:
        text, self.text = self.text, ""
        return text


class _Server:
    def __init__(self, line: socket.socket) -> None:
        self.names: dict[str, Any] = {}
        self._held: list[Any] = []
        self._index: dict[int, int] = {}
        self.printed = _Printed()
        self.peer = Peer(line, serve=self._serve, export=self._export, adopt=self._adopt, failed=self._failed)

    def load(self, sources: list[str]) -> None:
        """Load the code and tell how that went."""
        module = types.ModuleType("solution")
        sys.modules["solution"] = module
        self.names = vars(module)
        sys.stdout = sys.stderr = self.printed
        random.seed(0)
        self.peer.send(["value", "started"])
        try:
            compiled = [compile(source, _FILE if i else "<before>", "exec") for i, source in enumerate(sources)]
        except BaseException as error:  # noqa: BLE001  # what a source provokes is the answer
            self.peer.send(["raised", ["unreadable", described(error), source_line(error, _FILE)]])
            return
        try:
            for one in compiled:
                exec(one, self.names)  # noqa: S102  # what this process is for
        except BaseException as error:  # noqa: BLE001  # as above
            self.peer.send(["raised", ["failed", described(error), source_line(error, _FILE)]])
            return
        made = [name for name, x in self.names.items() if isinstance(x, (type, types.FunctionType))]
        self.peer.send(["value", made])
        while True:
            message = self.peer.receive()
            if message[0] == "ask":
                self.peer.answer(message[1])

    def _serve(self, what: str, *given: Any) -> Any:
        if what == "get":
            if given[0] not in self.names:
                raise NameError(f"name {given[0]!r} is not defined")
            return self.names[given[0]]
        if what == "call":
            return self._call(*given)
        if what == "attr":
            return getattr(given[0], given[1])
        if what == "set":
            return setattr(given[0], given[1], given[2])
        if what == "data":
            return next((kind(given[0]) for kind in _CONTAINERS if isinstance(given[0], kind)), None)
        if what == "await":
            return asyncio.run(given[0])
        function = _BY_NAME.get(what) or getattr(operator, what)
        return function(*given)

    def _call(self, function: Any, args: list[Any], named: dict[str, Any]) -> Any:
        """What it gave, the arguments that it changed, and what it printed."""
        places = [*enumerate(args), *named.items()]
        before = {where: self.peer.pack(x) for where, x in places if isinstance(x, _MUTABLE)}
        value = function(*args, **named)
        changed = [(where, x) for where, x in places if where in before and self.peer.pack(x) != before[where]]
        return value, changed, self.printed.take()

    def _export(self, value: Any) -> list[Any]:
        if isinstance(value, _Far):
            return ["y", [value._rfx_index]]
        if id(value) not in self._index:
            self._index[id(value)] = len(self._held)
            self._held.append(value)  # kept, so that its id stays its own
        kind, data, chain = "object", None, None
        if isinstance(value, type):
            kind, chain = "class", self._chain(value) if issubclass(value, BaseException) else None
        elif isinstance(value, _FUNCTIONS):
            kind = "function"
        elif isinstance(value, types.CoroutineType):
            kind = "coroutine"
        elif isinstance(value, Iterator):
            kind = "iterator"
        elif (base := next((k for k in _DATA if isinstance(value, k)), None)) is not None:
            data = self.peer.pack(base(value))
        name = value.__name__ if kind in ("class", "function") else type(value).__name__
        return ["o", [self._index[id(value)], kind, str(name), data, chain]]

    def _chain(self, kind: type) -> list[Any]:
        """The exception class with its bases, up to the first that is built in."""
        found: list[Any] = []
        for base in kind.__mro__:
            if getattr(builtins, base.__name__, None) is base:
                return [*found, base.__name__]
            self._index.setdefault(id(base), len(self._held))
            self._held.append(base)
            found.append([self._index[id(base)], base.__name__])
        return [*found, "Exception"]

    def _adopt(self, raw: list[Any]) -> Any:
        if raw[0] == "y":
            return self._held[raw[1][0]]
        return _Far(self, raw[1][0])

    def _failed(self, error: BaseException) -> list[Any]:
        try:
            args = [x if isinstance(x, (str, int, float, bool, type(None))) else str(x) for x in error.args]
        except BaseException:  # noqa: BLE001  # the code's own __str__
            args = []
        chain, at = self._chain(type(error)), len(self._held)
        self._held.append(error)
        return ["raised", [chain, args, described(error), source_line(error, _FILE), at]]

    def far(self, *question: Any) -> Any:
        """Ask the tests' process, for an object of theirs."""
        status, body = self.peer.ask(*question)[:2]
        if status == "raised":
            kind = getattr(builtins, str(body[0]), RuntimeError)
            raise kind(body[1])
        return self.peer.unpack(body)


class _Far:
    """An object of the tests: a function, an iterator, or an instance of a class of theirs."""

    def __init__(self, server: _Server, index: int) -> None:
        vars(self).update(_rfx_server=server, _rfx_index=index)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._rfx_server.far("call", self, list(args), named)

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return self._rfx_server.far("next", self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._rfx_server.far("attr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._rfx_server.far("set", self, name, value)


def _main() -> None:
    settings = settle()
    with socket.socket(fileno=3) as line:
        try:
            _Server(line).load(settings["sources"])
        except Broken:
            pass  # the tests are over
        finally:
            os._exit(0)


if __name__ == "__main__":
    _main()
