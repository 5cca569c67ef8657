"""Objects of the code as the tests have them: each use is a question to the code's process.

An object is never asked whether it equals, is more than, holds or can be reckoned with a plain value: that would hand
it what the test expects, and believe it. ``operators=True`` allows it, for tests of a class with operators of its own.
"""

from __future__ import annotations

import builtins
import socket
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from rfx_agent.tools.box.limits import described
from rfx_agent.tools.box.wire import Broken, Peer

__all__ = ["Far", "Remotes"]

_ORDERS = ("lt", "le", "gt", "ge")
_SUMS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "matmul", "and_", "or_", "xor", "lshift", "rshift")
_CALLED = (
    *("neg", "pos", "invert", "abs", "bool", "len", "next", "str", "repr", "float", "int", "complex"),
    *("bytes", "reversed", "round", "dir", "format"),
)
_EXACT: dict[str, type] = {
    "bool": bool,
    "len": int,
    "int": int,
    "float": float,
    "str": str,
    "repr": str,
    "format": str,
    "bytes": bytes,
}
_CALLABLE = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, type)
_LOOPS = (StopIteration, StopAsyncIteration, GeneratorExit, KeyboardInterrupt)
_DATA = (int, float, str, bytes, tuple, frozenset)
# What plain values have: an object that is asked for one of these where its class is none of the tests' pretends to
# be a plain value.
_PLAIN_METHODS = {
    name for kind in (str, bytes, list, dict, set, int, float) for name in dir(kind) if not name.startswith("_")
}


class Far:
    """An object that lives in the code's process."""

    def __init__(self, remotes: Remotes, index: int, kind: str, name: str) -> None:
        vars(self).update(_rfx=remotes, _rfx_index=index, _rfx_kind=kind, _rfx_name=name)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._rfx.call(self, args, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_rfx"):
            raise AttributeError(name)
        self._rfx.pretends(self, name)
        return self._rfx.use("attr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._rfx.use("set", self, name, value)

    def __eq__(self, other: object) -> Any:
        if self is other:
            return True
        if self._rfx.may_meet(self, other):
            return self._rfx.use("eq", self, other) is True
        mine = self._rfx.use("data", self)
        if mine is None:
            self._rfx.refuse(self, "==")
        return mine is not None and mine == other

    def __hash__(self) -> int:
        return int(self._rfx.use("hash", self))

    def __contains__(self, value: object) -> bool:
        if self._rfx.operators or self._rfx.tested(self):
            return self._rfx.use("contains", self, value) is True
        return any(value is x or value == x for x in self)

    def __iter__(self) -> Any:
        return self._rfx.use("iter", self)

    def __getitem__(self, key: Any) -> Any:
        return self._rfx.use("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._rfx.use("setitem", self, key, value)

    def __delitem__(self, key: Any) -> None:
        self._rfx.use("delitem", self, key)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Far) and self._rfx.use("isinstance", value, self) is True

    def __subclasscheck__(self, kind: Any) -> bool:
        return isinstance(kind, Far) and self._rfx.use("issubclass", kind, self) is True

    def __enter__(self) -> Any:
        return self._rfx.use("enter", self)

    def __exit__(self, *_: object) -> None:
        self._rfx.use("exit", self)


def _binary(name: str, *, turned: bool) -> Callable[[Any, Any], Any]:
    def method(self: Far, other: Any) -> Any:
        if not self._rfx.may_meet(self, other):
            self._rfx.refuse(self, name)
            raise TypeError(f"{self._rfx_name} is an object of the code's and {other!r:.80} is a plain value")
        value = self._rfx.use(name, *((other, self) if turned else (self, other)))
        if name in _ORDERS and not isinstance(value, bool):
            raise TypeError(f"{name} gave no bool")
        return value

    return method


def _called(name: str) -> Callable[..., Any]:
    def method(self: Far, *more: Any) -> Any:
        value = self._rfx.use(name, self, *more)
        kind = _EXACT.get(name)
        if kind is not None and type(value) is not kind:
            raise TypeError(f"{name}() gave {type(value).__name__}")
        return value

    return method


for _name in (*_ORDERS, *_SUMS, "pow", "divmod"):
    _bare = _name.rstrip("_")
    setattr(Far, f"__{_bare}__", _binary(_name, turned=False))
    if _name not in _ORDERS:
        setattr(Far, f"__r{_bare}__", _binary(_name, turned=True))
for _name in _CALLED:
    setattr(Far, f"__{_name}__", _called(_name))


class Remotes:
    """What came from the code's process, and what of the tests it was given."""

    def __init__(self, line: socket.socket, *, operators: bool) -> None:
        self.operators = operators
        self._classes: set[str] = set()  # of the code's, as the tests name them
        self.refused = ""
        self._objects: dict[int, Any] = {}
        self._given: list[Any] = []
        self.peer = Peer(line, serve=self._serve, export=self._export, adopt=self._adopt, failed=self._failed)

    def get(self, name: str) -> Any:
        """The code's ``name``; ``KeyError`` where it has none."""
        if name.startswith("__"):
            raise KeyError(name)
        try:
            value = self.use("get", name)
        except NameError:
            raise KeyError(name) from None
        if isinstance(value, Far) and value._rfx_kind == "class" and name[:1].isupper():
            self._classes.add(name)
        return value

    def use(self, *question: Any) -> Any:
        """Ask, and have what was given, or what was raised."""
        status, body = self.peer.ask(*question)[:2]
        if status == "raised":
            error = self._raised(body)
            if isinstance(error, _LOOPS) and question[0] != "next":  # it would end a loop of the test
                raise RuntimeError(f"the code raised {type(error).__name__}") from error
            raise error
        return self.peer.unpack(body)

    def call(self, function: Far, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call; what the code did to its arguments is done to the tests' own, and what it printed is printed."""
        reply = self.use("call", function, list(args), named)
        if not (isinstance(reply, tuple) and len(reply) == 3):
            raise self.peer.fail("the code's process gave what is no result")
        value, changed, printed = reply
        for where, new in changed:
            _follow(args[where] if isinstance(where, int) else named[where], new)
        if printed:
            sys.stdout.write(str(printed))
        return value

    def may_meet(self, one: Far, other: Any) -> bool:
        """Whether the code may be asked what ``one`` and ``other`` make."""
        return self.operators or (isinstance(other, Far) and self.tested(one))

    def tested(self, one: Far) -> bool:
        """Whether the tests name its class: then it is the class that they test."""
        return one._rfx_name in self._classes

    def refuse(self, one: Far, what: str) -> None:
        """Note why a comparison was not left to the code."""
        self.refused = f"{what}: the code gave an object of its class {one._rfx_name[:60]}, where a value is compared"

    def pretends(self, one: Far, name: str) -> None:
        """Refuse a plain value's method of an object that the tests know nothing of."""
        if one._rfx_kind == "object" and name in _PLAIN_METHODS and not (self.operators or self.tested(one)):
            self.refuse(one, name)
            raise AttributeError(f"{one._rfx_name} is an object of the code's, and no plain value")

    def place(self, error: BaseException) -> int | None:
        """The line of the code in which ``error`` was raised, or None where it is the tests' own; 0 for no line."""
        return getattr(error, "_rfx_line", None)

    def _raised(self, body: Any) -> BaseException:
        try:
            chain, args, text, line, index = body
            kind = self._exception(chain)
            try:
                error: BaseException = kind(*args)
            except Exception:  # noqa: BLE001  # a built-in with a signature of its own
                error = RuntimeError(str(text)[:500])
            error._rfx_line = line if isinstance(line, int) else 0  # type: ignore[attr-defined]
            error._rfx_far = Far(self, int(index), "value", kind.__name__)  # type: ignore[attr-defined]
        except (TypeError, ValueError, KeyError, AttributeError):
            return self.peer.fail("the code's process sent an exception that cannot be read")
        return error

    def _exception(self, chain: list[Any]) -> type[BaseException]:
        if isinstance(chain[0], str):
            kind = getattr(builtins, chain[0], None)
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise TypeError(chain[0])
            return kind
        index, name = chain[0]
        if index not in self._objects:
            body = {"_rfx_index": index, "__getattr__": _of_error}
            made = type(str(name), (self._exception(chain[1:]),), body)
            self._objects[index] = made
        kind = self._objects[index]
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise TypeError(name)
        return kind

    def _adopt(self, raw: list[Any]) -> Any:
        tag, body = raw[0], raw[1]
        if tag == "y":
            return self._given[body[0]]
        if tag != "o":
            raise TypeError(tag)
        index, kind, name, data, chain = body
        index, name = int(index), str(name)
        if chain is not None:
            return self._exception(chain)
        if kind == "coroutine":
            return self._waited(Far(self, index, kind, name))
        if index not in self._objects:
            if data is None:
                self._objects[index] = type(name[:60], (Far,), {})(self, index, str(kind), name)
            else:
                self._objects[index] = self._valued(self.peer.unpack(data), index, name)
        return self._objects[index]

    def _valued(self, data: Any, index: int, name: str) -> Any:
        """A value of a subclass of a built-in type: the value, with the attributes that the code gives it."""
        base = type(data)
        if base not in _DATA:
            raise TypeError(name)
        far = Far(self, index, "value", name)
        return type(name[:60], (base,), {"_rfx_index": index, "__getattr__": lambda _, n: getattr(far, n)})(data)

    async def _waited(self, coroutine: Far) -> Any:
        return self.use("await", coroutine)

    def _export(self, value: Any) -> list[Any]:
        index = getattr(value, "_rfx_index", None)
        if isinstance(value, (Far, type, *_DATA)) and isinstance(index, int):
            return ["y", [index]]
        self._given.append(value)
        return ["o", [len(self._given) - 1]]

    def _serve(self, what: str, value: Any, *more: Any) -> Any:
        """What the code may do with an object of the tests: call it, go through it, and what is public of an instance
        of a class of theirs."""
        called = isinstance(value, (*_CALLABLE, mock.NonCallableMock))
        if what == "call" and called:
            return value(*more[0], **more[1])
        if what == "next" and isinstance(value, Iterator):
            return next(value)
        name = more[0] if more and isinstance(more[0], str) else "_"
        known = getattr(type(value), name, None)
        if what in ("attr", "set") and type(value).__module__ == "__tests__" and not name.startswith("_"):
            if what == "attr":
                return getattr(value, name)
            if not callable(known):  # a method of theirs may be what tests
                return setattr(value, name, more[1])
        # Of a mock what the code makes up or the tests have set, and not what says how it was called.
        mocked = isinstance(value, mock.NonCallableMock) and name not in ("method_calls", *dir(type(value)))
        if what == "attr" and mocked and not name.startswith(("_", "assert")):
            return getattr(value, name)
        raise TypeError(f"a {type(value).__name__} of the tests cannot be used like this")

    def _failed(self, error: BaseException) -> list[Any]:
        if isinstance(error, Broken):
            raise error
        return ["raised", [type(error).__name__, described(error)]]


def _of_error(error: BaseException, name: str) -> Any:
    """What the code's exception has under ``name``."""
    if name.startswith("_"):
        raise AttributeError(name)
    return getattr(vars(error)["_rfx_far"], name)


def _follow(mine: Any, new: Any) -> None:
    """Make ``mine`` what ``new`` is, in place, and what it holds too where it still holds it."""
    if isinstance(mine, tuple) and isinstance(new, tuple):
        for one, other in zip(mine, new, strict=False):
            _follow(one, other)
    elif type(mine) is not type(new):
        return
    elif isinstance(mine, list):
        mine[:] = [_kept(mine[i], x) if i < len(mine) else x for i, x in enumerate(new)]
    elif isinstance(mine, dict):
        merged = {key: _kept(mine[key], x) if key in mine else x for key, x in new.items()}
        mine.clear()
        mine.update(merged)
    elif isinstance(mine, set):
        mine.clear()
        mine.update(new)
    elif isinstance(mine, bytearray):
        mine[:] = new


def _kept(mine: Any, new: Any) -> Any:
    if type(mine) is type(new) and isinstance(mine, (list, dict, set, bytearray)):
        _follow(mine, new)
        return mine
    return new
