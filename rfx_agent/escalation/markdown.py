"""Untrusted text in Markdown: it is shown, and it never becomes structure, a link, an image or HTML.

Inboxes render descriptions with GitHub's tables and bare links, some with raw HTML or mathematics too. Only code is
safe from all of these, so text that is not ours stands in code.
"""

from __future__ import annotations

import re

from rfx_agent.fence import visible

__all__ = ["block", "cut", "middle", "seen", "span", "words"]

# A word that no Markdown dialect reads as anything but a word. "_", "*", "$", "@", "&", brackets and backslashes are
# left out; "//", "www." and a dot before a letter make a link of what is around them.
_PLAIN = re.compile(
    r"""(?!(?i:www)\.)(?!.*//)(?!.*\.[^\W\d_])[("']?[^\W_](?:[^\W_]|[-–'’.,:;%/+=])*[)"'.,:;?!…]*|[-–+=]?\d[\d.,]*%?|[-–]"""
)

_SEQUENCE = re.compile(r"(?:\x1b\[|\x9b)[0-?]{0,30}[ -/]{0,5}[@-~]")  # colours and the like, as a terminal is told them


def cut(text: str, limit: int) -> str:
    """``text``, at most ``limit`` characters of it, and how much was left out."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit:,} more characters)"


def middle(text: str, limit: int) -> str:
    """``text``, at most ``limit`` characters of its beginning and its end: an answer is often stated last."""
    if len(text) <= limit:
        return text
    head, left = limit // 2, len(text) - limit
    return f"{text[:head]}\n… ({left:,} characters left out) …\n{text[head + left :]}"


def seen(text: str) -> str:
    """``text`` as a person sees it: without controls, which a terminal obeys, and marks that turn or hide a part."""
    return visible(_SEQUENCE.sub("", text), keep="\n\t\u200c\u200d")  # joiners are part of words and emoji


def span(text: str, limit: int = 200) -> str:
    """``text`` on one line as inline code, for a sentence or a table's cell."""
    clean = "".join(c if c.isprintable() else " " for c in _SEQUENCE.sub("", text)).replace("`", "'").replace("|", "¦")
    return f"`{cut(' '.join(clean.split()), limit) or '(blank)'}`"


def block(text: str, limit: int) -> str:
    """``text`` as a fenced block of its own; the fence is longer than any run of backticks in it."""
    lines = re.sub(r"\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", "\n", _SEQUENCE.sub("", text))
    shown = cut("".join(c if c.isprintable() or c in "\n\t" else " " for c in lines), limit)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence}text\n{shown}\n{fence}"


def words(text: str, limit: int = 500) -> str:
    """A sentence of ours that may quote what is not: words that could be Markdown stand in code."""
    return " ".join(w if _PLAIN.fullmatch(w) else span(w) for w in cut(text, limit).split())
