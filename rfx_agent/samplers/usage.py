"""Tokens of a model call: what nobody counted is estimated, and a claim is believed as far as it can be true."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rfx_agent.records import SampleRequest, Usage
from rfx_agent.spend import text_tokens

__all__ = [
    "LOST",
    "MOST_READ",
    "MOST_UNSEEN",
    "believed",
    "count",
    "ending",
    "estimate_tokens",
    "has_pictures",
    "hidden",
    "of_lost",
    "too_low",
]

LOST = "an answer was lost on its way: it is charged as if it had used its whole cap"
"""A note on a try that a provider may have worked on and that brought nothing."""

MOST_UNSEEN = 131_072
"""Most tokens of one call that nothing shows: hidden thinking, a tool that the provider runs, a picture."""


MOST_READ = 2**21
"""Most tokens of one prompt: no model reads more."""

_THOUGHT = ("reasoning", "reasoning_tokens")
_NO_TEXT = ("audio", "image", "file", "audio_tokens", "image_tokens", "file_tokens")
_MOST_BYTES = 64  # of text in one token, on average: beyond, a count is too low to be true


def has_pictures(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a prompt has parts that are no text, which have counts of their own."""
    parts = (part for m in messages if isinstance(content := m.get("content"), list) for part in content)
    return any(not (isinstance(part, Mapping) and part.get("type") == "text") for part in parts)


def hidden(details: object, *, cap: int | None = None) -> int:
    """Tokens that a provider says it wrote and does not show, as far as that is plausible.

    Args:
        details: what it says of them by kind, such as ``{"reasoning_tokens": 890}``.
        cap: most tokens that were asked for, where that is known. Each provider counts what a model thinks under it, so
            that only audio, pictures and files come on top.
    """
    if not isinstance(details, Mapping):
        return 0
    told = sum(count(details.get(name)) or 0 for name in (_NO_TEXT if cap is not None else (*_THOUGHT, *_NO_TEXT)))
    return told if told <= MOST_UNSEEN else 0


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of a text that no server has counted. The estimate is too high rather than too low.

    Example:
        >>> estimate_tokens("six times seven")
        5
    """
    return text_tokens(len(text.encode(errors="replace")))


def of_lost(request: SampleRequest, tries: int, *, draws: int = 1) -> Usage:
    """What is charged for ``tries`` of ``request`` that the server may have worked on and that brought nothing: its
    prompt, estimated, and the whole cap of each of its ``draws``.

    Example:
        >>> of_lost(SampleRequest(({"role": "user", "content": "3 + 4?"},), max_tokens=64), 2)
        Usage(prompt_tokens=26, completion_tokens=128, calls=0)
    """
    prompt = estimate_tokens(json.dumps(request.messages, default=str, ensure_ascii=False) + (request.prefix or ""))
    return Usage(prompt * tries, request.max_tokens * draws * tries)


def count(value: object) -> int | None:
    """Read a token count as a provider reports it; None if it is not one.

    Example:
        >>> count(12), count("12"), count(12.0), count(-1), count(True), count(float("nan")), count([12])
        (12, 12, 12, None, None, None, None)
    """
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if math.isfinite(value) and value >= 0 else None


def believed(claim: int, seen: int, *, unseen: int = 0, cap: int | None = None, least: int = 0) -> int:
    """``claim`` tokens as far as they can be true.

    Args:
        claim: what a provider says.
        seen: the most that what can be seen may be, a token being at least one byte.
        unseen: tokens besides it that are plausible.
        cap: most tokens that were asked for, where that is known.
        least: what can be seen is estimated at.

    Returns:
        ``claim``, or where it cannot be true what can be seen, but no more than ``cap``.

    Example:
        >>> believed(300, 900), believed(2_000, 900, unseen=4_000), believed(10**18, 900, cap=512)
        (300, 2000, 512)
    """
    if claim <= max(cap or 0, seen) + unseen:
        return claim
    return seen if cap is None else max(cap, least)


def too_low(claim: int, text: int) -> bool:
    """Whether ``claim`` tokens cannot have made a text of ``text`` bytes.

    Example:
        >>> too_low(1, 20_000), too_low(5_000, 20_000)
        (True, False)
    """
    return claim * _MOST_BYTES < text


def ending(reason: str | None, text: str, tokens: int, cap: int | None) -> str | None:
    """Why a model stopped: what its provider says, but for one that used up its cap and has said nothing.

    Example:
        >>> ending("stop", "", 512, 512), ending("stop", "It is 42", 512, 512)
        ('length', 'stop')
    """
    used_up = cap is not None and tokens >= cap and not text.strip()
    return "length" if used_up and reason in (None, "stop") else reason
