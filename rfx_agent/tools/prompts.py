"""Pieces of tool prompts: untrusted text between marks that it cannot close, and code blocks out of a reply."""

from __future__ import annotations

import re
from typing import Any

from rfx_agent.fence import clean
from rfx_agent.records import Step

__all__ = ["begun", "clip", "fenced_blocks", "problem_text", "quoted", "shown"]

_BEGUN = 8_000  # characters of begun work that are shown


def clip(text: str, limit: int) -> str:
    """``text``, cut to ``limit`` characters with a mark that says how many are missing."""
    return text if len(text) <= limit else f"{text[:limit]}… [{len(text) - limit} more characters]"


def quoted(tag: str, text: str) -> str:
    """``text`` between ``<tag>`` and ``</tag>``; the marks inside it are defused."""
    safe = re.sub(rf"<(/?)\s{{0,9}}({re.escape(tag)})\s{{0,9}}>", r"(\1\2)", text, flags=re.IGNORECASE)
    return f"<{tag}>\n{safe}\n</{tag}>"


def shown(text: str, limit: int) -> str:
    """A text that a model wrote, made safe to show in another prompt.

    It is cut to ``limit`` characters. Control characters go, and chat tokens and thinking marks are broken by a space.
    """
    return clean(text, "\0", limit, mark="")


def begun(prefix: str | None) -> str:
    """What is added to a prompt to show work of unknown worth; nothing when there is none."""
    if prefix is None or not prefix.strip():
        return ""
    work = quoted("work", shown(prefix.strip(), _BEGUN))
    return f"\n\nSomeone began to solve it like this. It may be wrong; check it:\n{work}"


def problem_text(step: Step) -> str:
    """The text of the step's original messages; with their roles where there are several."""
    parts = [(str(m.get("role", "")), _content(m.get("content"))) for m in step.messages]
    parts = [(role, text) for role, text in parts if text]
    if len(parts) == 1:
        return parts[0][1]
    return "\n\n".join(f"[{role}]\n{text}" for role, text in parts)


def _content(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content.strip()
    if isinstance(content, list | tuple):
        texts = (
            part if isinstance(part, str) else str(part.get("text", "")) if isinstance(part, dict) else ""
            for part in content
        )
        return "\n".join(text for text in texts if text).strip()
    return str(content).strip()


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """The fenced code blocks of ``text`` as (lower-case tag, body), in order; the last may be unclosed."""
    blocks: list[tuple[str, str]] = []
    fence, tag = "", ""
    body: list[str] = []
    for line in text.split("\n"):
        mark = line.strip()
        if not fence:
            if mark.startswith(("```", "~~~")):
                fence = mark[:3]
                words = mark.lstrip(fence[0]).split(maxsplit=1)
                tag, body = (words[0].strip("{}.").lower() if words else ""), []
        elif mark.startswith(fence):
            blocks.append((tag, "\n".join(body)))
            fence = ""
        else:
            body.append(line)
    if fence:
        blocks.append((tag, "\n".join(body)))
    return blocks
