"""Checks of parameters, in one form of message: who, what was received, what to do.

Each returns the value it was given. ``who`` names the object and the parameter: ``"recovery: max_tokens"``.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, TypeVar

from rfx_agent.errors import ConfigError

__all__ = ["among", "number", "share", "whole"]

T = TypeVar("T")


def whole(
    who: str, value: Any, *, least: int = 0, most: int | None = None, error: type[Exception] = ConfigError
) -> int:
    """A whole number of at least ``least``; True and False are refused.

    Example:
        >>> whole("policy: rounds", 3, least=1)
        3
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        upto = "" if most is None else f" and at most {most}"
        raise error(f"{who} is {value!r}; give a whole number of at least {least}{upto}")
    return value


def number(
    who: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    finite: bool = True,
    unit: str = "a number",
    error: type[Exception] = ConfigError,
) -> float:
    """A number of at least ``least``, or above ``above``; NaN, True and False are refused.

    Example:
        >>> number("recovery: temperature", 0.6, least=0)
        0.6
    """
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    good = good and (math.isfinite(value) or not finite)
    if not good or (least is not None and value < least) or (above is not None and value <= above):
        bound = f" of at least {least:g}" if least is not None else f" above {above:g}" if above is not None else ""
        raise error(f"{who} is {value!r}; give {'a finite number' if finite and unit == 'a number' else unit}{bound}")
    return value  # type: ignore[no-any-return]  # it is a number


def share(who: str, value: Any, *, error: type[Exception] = ConfigError) -> float:
    """A probability or a share, in [0, 1].

    Example:
        >>> share("policy: floor", 0.05)
        0.05
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise error(f"{who} is {value!r}; give a number in [0, 1]")
    return value


def among(who: str, value: T, choices: Collection[Any], *, error: type[Exception] = ConfigError) -> T:
    """One of ``choices``.

    Example:
        >>> among("escalation: default", "reject", ("approve", "reject"))
        'reject'
    """
    if value not in choices:
        raise error(f"{who} is {value!r}; give one of {', '.join(map(repr, choices))}")
    return value
