"""LangChain's messages as a step's record keeps them: in OpenAI's format, whatever their blocks are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage, convert_to_openai_messages

from rfx_agent.records import Message
from rfx_agent.samplers.chat.read import text_in, text_of

__all__ = ["messages_of"]

# What OpenAI's format has, and so what a model can be asked with.
_KNOWN = ("text", "image_url", "input_audio", "file", "refusal")
# What no model is asked with again: thoughts, marks of a cache, and tool calls, which stand beside the content.
_SILENT = frozenset(
    {
        *("thinking", "redacted_thinking", "reasoning", "reasoning_content", "reasoningContent", "thought"),
        *("cachePoint", "cache_point", "tool_use", "tool_call", "tool_call_chunk", "function_call", "toolUse"),
    }
)
_NAME = re.compile(r"[A-Za-z][\w-]{0,31}")
_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "function"}


def messages_of(messages: Sequence[BaseMessage]) -> list[Message]:
    """``messages`` in OpenAI's format. Never fails, for any block of any provider.

    Text stays text, and pictures, sounds and files that OpenAI's format knows stay what they are, because a tool's
    prompt or a judge may be asked with them. Of any other block its kind is kept, such as ``[video]``, and none of what
    is in it. Thoughts are left out. A step is recorded so; the user's own runs see the messages as they are.

    Example:
        >>> from langchain_core.messages import HumanMessage
        >>> messages_of([HumanMessage([{"type": "video", "url": "https://example.org/v"}, "What is said?"])])
        [{'role': 'user', 'content': '[video]\\nWhat is said?'}]
    """
    if all(isinstance(message.content, str) for message in messages) and (made := _converted(messages)) is not None:
        return [*made]  # all at once, because a step that passes waits for it
    return [made for message in messages for made in _of(message)]


def _of(message: BaseMessage) -> list[Message]:
    made = _converted([message])
    if made is None and isinstance(message.content, list):
        content = [part for block in message.content for part in _convertible(message, block)]
        made = _converted([message.model_copy(update={"content": content})])
    return [_recorded(one) for one in (made or [_bare(message)])]


def _converted(messages: Sequence[BaseMessage]) -> list[dict[str, Any]] | None:
    """What LangChain makes of ``messages``; None where it makes nothing."""
    try:
        return convert_to_openai_messages(messages)
    except Exception:  # noqa: BLE001  # whatever a block has in it: it is only for the record
        return None


def _convertible(message: BaseMessage, block: Any) -> Iterator[Any]:
    """``block`` where LangChain converts it, else what stands for it."""
    if isinstance(block, str) or _converted([message.model_copy(update={"content": [block]})]) is not None:
        yield block
    else:
        yield from _standing_for(block)


def _standing_for(block: Any) -> Iterator[dict[str, Any]]:
    """What stands in OpenAI's format for a block that it does not have, or that LangChain does not convert.

    Its picture or its text, else its kind in brackets; nothing for a silent one.
    """
    fields = block if isinstance(block, Mapping) else {}
    kind = fields.get("type") or next(iter(fields), None)
    kind = kind if isinstance(kind, str) else "block"
    if kind in _SILENT:
        return
    if (picture := _picture_at(kind, fields)) is not None:
        yield {"type": "image_url", "image_url": {"url": picture}}
        return
    text = text_in(block)
    if text is None and kind in ("text", "text-plain", "file"):
        text = fields["text"] if isinstance(fields.get("text"), str) else None
    if text is None:
        text = "" if kind == "text" else f"[{_name(kind, fields)}]"
    yield {"type": "text", "text": text}


def _picture_at(kind: str, block: Mapping[str, Any]) -> str | None:
    """The address of a picture in Anthropic's format or in that of OpenAI's Responses API."""
    source = block.get("source")
    if kind == "input_image":
        url = block.get("image_url")
    else:
        url = source.get("url") if kind == "image" and isinstance(source, Mapping) else None
    return url if isinstance(url, str) else None


def _name(kind: str, block: Mapping[str, Any]) -> str:
    mime = block.get("mime_type")
    if kind == "media" and isinstance(mime, str):  # Gemini's, of anything
        kind = mime.partition("/")[0]
    return kind if _NAME.fullmatch(kind) else "block"


def _recorded(made: dict[str, Any]) -> Message:
    """A converted message without the blocks that LangChain passes on because it does not know them."""
    content = made.get("content")
    if not isinstance(content, list):
        return made
    parts = [
        part
        for block in content
        for part in ([block] if isinstance(block, dict) and block.get("type") in _KNOWN else _standing_for(block))
    ]
    if all(part["type"] == "text" for part in parts):
        return {**made, "content": "\n".join(part["text"] for part in parts)}
    return {**made, "content": parts}


def _bare(message: BaseMessage) -> dict[str, Any]:
    """What is left of a message that LangChain does not convert: of a class of somebody's own, or with odd calls."""
    role = _ROLES.get(message.type) or getattr(message, "role", None)
    bare: dict[str, Any] = {"role": role if isinstance(role, str) else "user", "content": text_of(message)}
    calls = getattr(message, "tool_calls", None)
    if isinstance(calls, list) and calls:
        bare["tool_calls"] = [
            {
                "type": "function",
                "id": str(call.get("id") or ""),
                "function": {
                    "name": str(call.get("name") or ""),
                    "arguments": json.dumps(call.get("args"), default=str),
                },
            }
            for call in calls
        ]
    if role == "tool":
        bare["tool_call_id"] = str(getattr(message, "tool_call_id", ""))
    return bare
