"""Plain values as JSON between two processes that do not trust each other, and questions and answers made of them.

A plain value crosses by value: what comes out is a new object of a built-in or standard type, whatever the other side
is. Everything else stays where it is and crosses as a handle.
"""

from __future__ import annotations

import builtins
import collections
import datetime
import decimal
import fractions
import json
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Broken", "Codec", "Peer"]

MOST = 8 * 1024 * 1024  # bytes of one message
_DEEP = 200  # levels of a value: JSON's own readers recurse

_TYPES: dict[str, Any] = {name: value for name, value in vars(builtins).items() if isinstance(value, type)}
_NAME_OF: dict[Any, str] = {value: name for name, value in _TYPES.items()}
_TEXTUAL: dict[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "i": (int, hex, lambda text: int(text, 16)),
    "b": (bytes, bytes.hex, bytes.fromhex),
    "ba": (bytearray, bytearray.hex, bytearray.fromhex),
    "D": (decimal.Decimal, str, decimal.Decimal),
    "F": (fractions.Fraction, str, fractions.Fraction),
    "dt": (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    "da": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "ti": (datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
}
_SEQUENCES: dict[str, Any] = {"l": list, "t": tuple, "s": set, "fs": frozenset, "dq": collections.deque}
_MAPPINGS: dict[str, Any] = {
    "d": dict,
    "C": lambda pairs: collections.Counter(dict(pairs)),
    "O": collections.OrderedDict,
    "dd": lambda pairs: collections.defaultdict(None, pairs),
}
_TEXT_TAG: dict[Any, str] = {kind: tag for tag, (kind, _, _) in _TEXTUAL.items()}
_SEQUENCE_TAG: dict[Any, str] = {kind: tag for tag, kind in _SEQUENCES.items()}
_MAPPING_TAG: dict[Any, str] = {
    dict: "d",
    collections.Counter: "C",
    collections.OrderedDict: "O",
    collections.defaultdict: "dd",
}


class Broken(Exception):
    """The other side is gone, or what it said cannot be read."""


class Codec:
    """Plain values as JSON's own types, and back.

    Args:
        export: how an object that is no plain value crosses.
        adopt: what stands for an object of the other side.
    """

    def __init__(self, export: Callable[[Any], list[Any]], adopt: Callable[[list[Any]], Any]) -> None:
        self._export, self._adopt = export, adopt

    def pack(self, value: Any, depth: int = 0) -> Any:
        """``value`` as JSON's own types."""
        if depth > _DEEP:
            raise RecursionError("a value that is nested too deeply cannot cross")
        kind = type(value)
        if value is None or kind is bool or kind is str or kind is float:
            return value
        if kind is int and -(2**53) < value < 2**53:
            return value
        if kind in _TEXT_TAG:
            tag = _TEXT_TAG[kind]
            return [tag, _TEXTUAL[tag][1](value)]
        if kind in _SEQUENCE_TAG:
            return [_SEQUENCE_TAG[kind], [self.pack(x, depth + 1) for x in value]]
        if kind in _MAPPING_TAG:
            return [_MAPPING_TAG[kind], [[self.pack(k, depth + 1), self.pack(v, depth + 1)] for k, v in value.items()]]
        if kind is complex:
            return ["c", [value.real, value.imag]]
        if kind is range:
            return ["r", [value.start, value.stop, value.step]]
        if kind is slice:
            return ["sl", [self.pack(x, depth + 1) for x in (value.start, value.stop, value.step)]]
        if kind is datetime.timedelta:
            return ["td", [value.days, value.seconds, value.microseconds]]
        if value is Ellipsis:
            return ["e", None]
        if isinstance(value, type) and value in _NAME_OF:
            return ["n", _NAME_OF[value]]
        return self._export(value)

    def unpack(self, raw: Any) -> Any:
        """The value of what ``pack`` gave."""
        try:
            return self._unpack(raw)
        except Broken:
            raise
        except Exception as error:
            raise Broken(f"a value that cannot be read: {type(error).__name__}") from error

    def _unpack(self, raw: Any) -> Any:
        if not isinstance(raw, list):
            if isinstance(raw, dict):
                raise TypeError("no packed value is a mapping")
            return raw
        tag, body = raw[0], raw[1]
        if tag in _TEXTUAL:
            return _TEXTUAL[tag][2](body)
        if tag in _SEQUENCES:
            return _SEQUENCES[tag]([self._unpack(x) for x in body])
        if tag in _MAPPINGS:
            return _MAPPINGS[tag]([(self._unpack(k), self._unpack(v)) for k, v in body])
        if tag == "c":
            return complex(float(body[0]), float(body[1]))
        if tag == "r":
            return range(*[int(x) for x in body[:3]])
        if tag == "sl":
            return slice(*[self._unpack(x) for x in body[:3]])
        if tag == "td":
            return datetime.timedelta(*[int(x) for x in body[:3]])
        if tag == "e":
            return ...
        if tag == "n":
            return _TYPES[body]
        return self._adopt(raw)


class Peer(Codec):
    """One end of the line. Each side asks, and while it waits for an answer it answers what it is asked.

    Args:
        line: the socket.
        serve: answers a question, with values in and a value out.
        export: how an object that is no plain value crosses.
        adopt: what stands for an object of the other side.
        failed: the exception as what the answer carries.
    """

    def __init__(
        self,
        line: socket.socket,
        *,
        serve: Callable[..., Any],
        export: Callable[[Any], list[Any]],
        adopt: Callable[[list[Any]], Any],
        failed: Callable[[BaseException], list[Any]],
    ) -> None:
        super().__init__(export, adopt)
        self._line, self._serve, self._failed = line, serve, failed
        self._lock = threading.RLock()
        self.broken = ""

    def ask(self, *question: Any) -> Any:
        """The answer as it came: ``["value", ...]`` or ``["raised", ...]``."""
        with self._lock:
            self.send(["ask", [self.pack(x) for x in question]])
            while True:
                message = self.receive()
                if message[0] != "ask":
                    return message
                self.answer(message[1])

    def unpack(self, raw: Any) -> Any:
        """The value of what ``pack`` gave; what cannot be read is the end of the line."""
        try:
            return super().unpack(raw)
        except Broken as error:
            raise self.fail(str(error)) from error

    def answer(self, question: Any) -> None:
        """Answer one question of the other side."""
        if not isinstance(question, list):
            raise self.fail("the code's process asked what is no question")
        try:
            reply = ["value", self.pack(self._serve(*[self.unpack(x) for x in question]))]
        except Broken:
            raise
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is the answer
            reply = self._failed(error)
        self.send(reply)

    def send(self, message: list[Any]) -> None:
        """Write one message."""
        try:
            raw = json.dumps(message).encode()
            if len(raw) > MOST:
                raise ValueError(f"a value of more than {MOST} bytes cannot cross")
            self._line.sendall(struct.pack(">I", len(raw)) + raw)
        except OSError as error:
            raise self.fail("the code ended its own process") from error

    def receive(self) -> list[Any]:
        """Read one message."""
        size = struct.unpack(">I", self._read(4))[0]
        if size > MOST:
            raise self.fail("the code's process sent a message that is too long")
        try:
            message = json.loads(self._read(size))
        except (ValueError, RecursionError) as error:
            raise self.fail("the code's process sent what is no message") from error
        if not isinstance(message, list) or len(message) < 2 or message[0] not in ("ask", "value", "raised"):
            raise self.fail("the code's process sent what is no message")
        return message

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            try:
                part = self._line.recv(min(size, 1 << 20))
            except OSError as error:
                raise self.fail("the code ended its own process") from error
            if not part:
                raise self.fail("the code ended its own process")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def fail(self, why: str) -> Broken:
        """The line is of no more use: noted, and to be raised."""
        self.broken = self.broken or why
        return Broken(why)
