"""Looks for a pattern in a long text, a window at a time.

One call of ``re`` holds the interpreter's lock until it ends, and with it every event loop of the process, also where
it is made on another thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["backward", "forward"]

_WINDOW = 8192  # characters; some tens of nanoseconds each


def forward(pattern: re.Pattern[str], text: str, *, reach: int, begin: int = 0) -> Iterator[re.Match[str]]:
    """What ``pattern.finditer(text, begin)`` gives, in order.

    Args:
        pattern: matches no empty text.
        text: where to look.
        reach: the most characters that one match takes, with what stands behind it and is looked at.
        begin: offset to begin at.

    Example:
        >>> [m.start() for m in forward(re.compile("[0-9]"), "a1b2", reach=1)]
        [1, 3]
    """
    while begin < len(text):
        stop = begin + _WINDOW
        found = pattern.search(text, begin, stop + reach)
        if found is None or found.start() >= stop:
            begin = stop
        else:
            yield found
            begin = found.end()


def backward(pattern: re.Pattern[str], text: str, *, reach: int) -> Iterator[re.Match[str]]:
    """The same from the end of ``text``, last first. No match of ``pattern`` may begin within another.

    Example:
        >>> [m.start() for m in backward(re.compile("[0-9]"), "a1b2", reach=1)]
        [3, 1]
    """
    stop = len(text)
    while stop > 0:
        begin = max(0, stop - _WINDOW)
        yield from [m for m in pattern.finditer(text, begin, stop + reach) if m.start() < stop][::-1]
        stop = begin
