"""Whether a text that a model is to be told holds what the step's answer is compared with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import BaseModel

from rfx_agent.fence import clean

__all__ = ["holds"]

_DEEPEST, _MOST = 8, 1_000  # levels of an object, and values in it, that are looked at
_PART = 30  # characters of a long reference that count as a quotation of it
_NUMBER = re.compile(r"[-+]?(?:\d[\d,_]*\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?")


def holds(text: str, expected: Any) -> bool:
    """Whether ``expected``, or a value within it, stands in ``text``.

    Example:
        >>> holds("1,234.0 was expected", {"total": 1234})
        True
    """
    if expected is None:
        return False
    shown = clean(text, "\0", 10**6, mark="")  # as the model would see it: without what hides a part of it
    words, numbers = _plain(shown), _numbers(shown)
    # Of too much to look for, rather nothing is told.
    return any(i >= _MOST or _stands(leaf, words, numbers) for i, leaf in enumerate(_leaves(expected, _DEEPEST)))


def _stands(leaf: str, words: str, numbers: set[float]) -> bool:
    plain = _plain(clean(leaf, "\0", 10**6, mark=""))  # chat tokens are broken there as in the text
    if not plain:
        return False
    if (own := _numbers(leaf)) and _NUMBER.fullmatch(leaf.strip().strip("$€£% ")):
        return bool(own & numbers)
    if len(plain) > _PART:
        return any(plain[i : i + _PART] in words for i in range(len(plain) - _PART + 1))
    return re.search(rf"(?<![^\W_]){re.escape(plain)}(?![^\W_])", words) is not None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _numbers(text: str) -> set[float]:
    found = set()
    for match in _NUMBER.findall(text):
        try:
            found.add(float(match.replace(",", "").replace("_", "")))
        except (ValueError, OverflowError):
            continue
    return found


def _leaves(value: Any, depth: int) -> Iterator[str]:
    """The values within ``value`` as texts; of what nests deeper, its own text."""
    parts: list[Any] | None = None
    if depth > 0 and not isinstance(value, (str, bytes)):
        if isinstance(value, BaseModel):
            parts = [getattr(value, name) for name in type(value).model_fields]
        elif is_dataclass(value) and not isinstance(value, type):
            parts = [getattr(value, f.name) for f in fields(value)]
        elif isinstance(value, Mapping):
            parts = list(value.values())
        elif isinstance(value, (list, tuple, set, frozenset)):
            parts = list(value)
    if parts is None:
        try:
            yield str(value)
        except Exception:  # noqa: BLE001  # foreign code; what has no text cannot be quoted
            return
        return
    for part in parts:
        if isinstance(part, (bool, type(None))):
            continue  # a word that any feedback may have
        yield from _leaves(part, depth - 1)
