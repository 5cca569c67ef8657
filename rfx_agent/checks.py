"""Checks of parameters, in one form of message: who, what was received, what to do.

Each returns the value it was given. ``who`` names the object and the parameter: ``"recovery: max_tokens"``.
``spelled`` says the same of a class's own parameters.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from rfx_agent.errors import ConfigError

__all__ = ["MOST_SECONDS", "among", "flags", "instance", "number", "share", "shown", "spelled", "whole"]

T = TypeVar("T")
_LARGEST = 2**63  # no amount, size or seed is larger, and floats and 64 bits hold it
MOST_SECONDS = 1e9
"""The longest time that can be asked for, 31 years: clocks and locks overflow not far beyond it."""
C = TypeVar("C", bound=type)

_SHOWN = 120


def shown(value: object) -> str:
    """``value`` for a message: its repr on one line, cut at 120 characters; its class where it has none.

    Example:
        >>> shown({"samples": 6})
        "{'samples': 6}"
    """
    try:
        text = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001  # a foreign object; the message is about it, and must come
        return f"an object of {type(value).__qualname__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def whole(
    who: str, value: Any, *, least: int = 0, most: int | None = None, error: type[Exception] = ConfigError
) -> int:
    """A whole number of at least ``least``; True and False are refused.

    Example:
        >>> whole("policy: rounds", 3, least=1)
        3
    """
    good = (
        isinstance(value, int)
        and not isinstance(value, bool)
        and least <= value <= (_LARGEST if most is None else most)
    )
    if not good:
        upto = "" if most is None else f" and at most {most}"
        raise error(f"{who} is {shown(value)}; give a whole number of at least {least}{upto}")
    return value  # type: ignore[no-any-return]  # it is a whole number


def number(
    who: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float = _LARGEST,
    finite: bool = True,
    unit: str = "a number",
    error: type[Exception] = ConfigError,
) -> float:
    """A number of at least ``least``, or above ``above``, and at most ``most``; NaN, True and False are refused.

    ``most`` holds for finite numbers: with ``finite=False`` infinity is taken.

    Example:
        >>> number("recovery: temperature", 0.6, least=0)
        0.6
    """
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    good = good and (-_LARGEST <= value <= most or (not finite and abs(value) == math.inf))  # NaN is in no order
    if not good or (least is not None and value < least) or (above is not None and value <= above):
        bound = f" of at least {least:g}" if least is not None else f" above {above:g}" if above is not None else ""
        upto = "" if most == _LARGEST else f" and at most {most:g}"
        raise error(
            f"{who} is {shown(value)}; give {'a finite number' if finite and unit == 'a number' else unit}{bound}{upto}"
        )
    return value  # type: ignore[no-any-return]  # it is a number


def share(who: str, value: Any, *, error: type[Exception] = ConfigError) -> float:
    """A probability or a share, in [0, 1].

    Example:
        >>> share("policy: floor", 0.05)
        0.05
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise error(f"{who} is {shown(value)}; give a number in [0, 1]")
    return value


def among(who: str, value: T, choices: Collection[Any], *, error: type[Exception] = ConfigError) -> T:
    """Check that ``value`` is one of ``choices``, and return it.

    Example:
        >>> among("escalation: default", "reject", ("approve", "reject"))
        'reject'
    """
    if value not in choices:
        raise error(f"{who} is {shown(value)}; give one of {', '.join(map(repr, choices))}")
    return value


def flags(who: str, **values: Any) -> None:
    """Each of ``values`` is True or False: a text such as "False" would count as true.

    Example:
        >>> flags("regex", full=True)
    """
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{who}: {name} is {shown(value)}; give True or False")


def instance(who: str, value: T, kind: type | tuple[type, ...], give: str) -> T:
    """An object of ``kind``, and not the class itself; ``give`` says what to give in its place.

    Example:
        >>> instance("x: cause", ValueError("no"), ValueError, "a ValueError")
        ValueError('no')
    """
    if isinstance(value, type) or not isinstance(value, kind):
        raise ConfigError(f"{who} is {shown(value)}; give {give}")
    return value


def spelled(who: str, meant: Mapping[str, str] | None = None) -> Callable[[C], C]:
    """A class decorator: arguments that the class does not take are a ``ConfigError`` that names those it takes.

    The signature stays as it is, for ``inspect.signature``, ``help`` and type checkers.

    Args:
        who: whose parameters they are, for the message.
        meant: what to write in place of a name that the class never had, such as ``{"retries": "samples="}``.

    Example:
        >>> @spelled("point")
        ... class Point:
        ...     def __init__(self, *, across=0): ...
        >>> Point(acros=1)
        Traceback (most recent call last):
        rfx_agent.errors.ConfigError: point: there is no parameter 'acros'; did you mean across=? It takes across
    """

    def decorated(cls: C) -> C:
        inner: Any = vars(cls)["__init__"]
        signature = inspect.signature(inner)

        @functools.wraps(inner)
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            try:
                inner(self, *args, **kwargs)
            except TypeError as error:
                try:
                    signature.bind(self, *args, **kwargs)
                except TypeError:
                    why = _misspelled(signature, args, kwargs, meant or {}) or f"{error}; see help({cls.__name__})"
                    raise ConfigError(f"{who}: {why}") from None
                raise

        cls.__init__ = init  # type: ignore[misc]  # the same signature
        return cls

    return decorated


def _misspelled(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any], meant: Mapping[str, str]
) -> str:
    """What is wrong with arguments that do not fit ``signature``; "" where it is something else."""
    takes = list(signature.parameters.values())[1:]
    names = [x.name for x in takes]
    for name in kwargs:
        if name in names:
            continue
        close = difflib.get_close_matches(name, names, 1)
        hint = meant.get(name) or (f"{close[0]}=" if close else "")
        return f"there is no parameter {name!r};{f' did you mean {hint}?' if hint else ''} It takes {', '.join(names)}"
    places = [x.name for x in takes if x.kind is not x.KEYWORD_ONLY]
    if len(args) > len(places):
        first = shown(args[len(places)])
        free = [x for x in names if x not in places and x not in kwargs]
        return f"{first} has no name; write {free[0] if free else 'name'}={first}. It takes {', '.join(names)}"
    return ""
