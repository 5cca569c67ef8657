"""What the chunks of a stream add up to."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from itertools import chain
from typing import Any

from langchain_core.messages import AIMessageChunk
from langchain_core.runnables.utils import AddableDict

__all__ = ["total"]


def total(chunks: Sequence[Any]) -> Any:
    """What ``chunks`` add up to, as LangChain adds them; where they do not add, the last one stands for all.

    Messages are added at once: each addition parses the arguments of their tool calls anew.
    """
    if not chunks:
        return None
    try:
        return _sum(chunks)
    except TypeError:
        return chunks[-1]


def _sum(chunks: Sequence[Any]) -> Any:
    first, *rest = chunks
    if not rest:
        return first
    if _all(str, chunks):
        return "".join(chunks)
    if _all(list, chunks):
        return list(chain.from_iterable(chunks))
    if _all(AddableDict, chunks):
        keys = dict.fromkeys(key for chunk in chunks for key in chunk)
        return AddableDict({key: _sum(_given(chunk.get(key) for chunk in chunks)) for key in keys})
    if all(isinstance(x, AIMessageChunk) and type(x).__add__ is AIMessageChunk.__add__ for x in chunks):
        try:
            return first + rest
        except TypeError:  # as LangChain: they may add one at a time
            pass
    return functools.reduce(operator.add, chunks)


def _all(kind: type[Any], chunks: Sequence[Any]) -> bool:
    return all(type(x) is kind for x in chunks)


def _given(values: Any) -> list[Any]:
    return [x for x in values if x is not None] or [None]
