"""Untrusted text as it may stand in a prompt: cut, cleaned, and between lines that its author cannot write."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["clean", "fence"]

_CHAT = re.compile(
    r"\[(?=/?(?:INST|SYS|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|PREFIX|SUFFIX|MIDDLE|IMG)\])"
    r"|<(?=</?SYS>>|/?s>|(?:start|end)_of_turn>|(?:start|end)_of_image>|(?:bos|eos|pad|unk|mask|sep|cls)>"
    r"|/?think>|/?tool_(?:call|response)>)"
    r"|<(?=[|｜])",
    re.IGNORECASE,
)


def clean(text: str, nonce: str, limit: int, *, mark: str = "| ") -> str:
    """``text`` as it may stand in a fence: cut, without controls, chat tokens and the nonce, each line marked.

    Cut is the middle: an answer's end is where it is stated. Format characters (bidirectional marks, zero widths,
    tags) go, because they hide text from a person who reads the prompt. Chat tokens are broken by a space, not
    removed: what is left and right of a removed one could make another.
    """
    if len(text) > limit:
        head, left = limit // 2, len(text) - limit
        text = f"{text[:head]}\n[{left} characters cut]\n{text[left + head :]}"
    lines = re.sub(r"\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", "\n", text)
    kept = "".join(c for c in lines if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn"))
    kept = _CHAT.sub(lambda m: f"{m[0]} ", kept)
    kept = re.sub(re.escape(nonce), "[removed]", kept, flags=re.IGNORECASE)
    return "\n".join(f"{mark}{line}" for line in kept.split("\n"))


def fence(label: str, text: str, nonce: str, limit: int, *, mark: str = "| ") -> str:
    """``text`` between two lines that carry ``nonce``, which its author cannot know.

    Example:
        >>> print(fence("ANSWER", "7", "af03", 100))
        [BEGIN ANSWER af03]
        | 7
        [END ANSWER af03]
    """
    return f"[BEGIN {label} {nonce}]\n{clean(text, nonce, limit, mark=mark)}\n[END {label} {nonce}]"
