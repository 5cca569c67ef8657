"""Untrusted text as it may stand in a prompt: cut, cleaned, and between lines that its author cannot write."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["clean", "fence", "one_line", "visible"]

# Where a chat token begins, by the shapes that model families give theirs. Each is matched at its first character,
# which a space is put behind. ``<`` and ``[`` in full width count too: some tokenizers make plain ones of them.
_WORDS = (  # in angle brackets, with or without a slash
    r"s|bos|eos|pad|unk|mask|sep|cls|eot|eom|eod|eop|sop|eoa|eoh|soh|boa|boh|eoc|bom|pre|suf|mid|sys|inst|end|turn|role"
    r"|human|user|assistant|system|model|bot|developer|observation|instruction"
    r"|think(?:ing)?|thoughts?|reason(?:ing)?|reflection|scratchpad"
    r"|tools?|toolcall|functions?|escape|reponame|filename|filepath|img|image|audio|video"
    r"|(?:unused|dummy|reserved|special|control|mask|madeupword)[-:]?\d{0,5}|fim-\w{1,10}|0x[0-9a-f]{2}"
)
_JOINED = (  # in angle brackets; other names with an underscore are XML's or a language's, as <first_name>
    r"[A-Z]+(?:_[A-Z0-9]+)+"
    r"|(?i:(?:start|end|begin|beginning|stop)_of_\w+|\w+_(?:start|end|begin|sep|pad|tokens?|turn|calls?|prefix|suffix)"
    r"|(?:start|end)_(?:header_id|function\w*|text|turn|role|thought|think\w*|response|image|message|action)"
    r"|(?:im|fim|tool|function|jupyter|arg|gh|pr)_\w+|\w+_tools?|\w*(?:think|thought|reason)\w*_\w+|\w+_think"
    r"|\w*(?:extra_id|reserved|special|unused|control|dummy|token)\w*_\d+|cot_\w+|think_\w+|osagent_mode"
    r"|(?:repo|file)_(?:name|struct|content|sep)|(?:add|delete|rename|edit|source|empty_source)_files?"
    r"|commit_(?:before|after|msg|message)|(?:issue|review)_comment|issue_closed"
    r"|empty_output|code_(?:interpreter|context))"
)
_NAMED = (  # in square brackets, as they are written
    r"INST|SYS|PREFIX|SUFFIX|MIDDLE|IMG|AUDIO|VIDEO|TRANSCRIBE|ARGS|THINK|BOS|EOS|EOT|EOD|PAD|UNK|CLS|SEP|MASK"
    r"|[gs]MASK|TOOL_\w{1,20}|AVAILABLE_TOOLS|SYSTEM_PROMPT|MODEL_SETTINGS|CALL_ID|IMG_\w{1,10}|BEGIN_AUDIO"
    r"|UNUSED_TOKEN_\d{1,5}|start_header_id|end_header_id|multimodal|(?:unused|control)_?\d{1,5}|@\w{1,10}@"
)
_CHAT = re.compile(
    r"[<\uff1c](?=[|\uff5c]"  # <|im_start|>, <|channel>, the full-width bars of DeepSeek
    r"|[\w\u2581\-.\"'/\uff0f][\w\u2581\-.\"'/ ]{0,60}[|\uff5c][>\uff1e]"  # <turn|>, <tool_call|>
    rf"|[/\uff0f]?(?=[\w:\-]{{1,80}}[>\uff1e])(?:{_JOINED}|(?i:{_WORDS}))[>\uff1e]"  # <start_of_turn>, <sop>
    r"|[<\uff1c][/\uff0f]?(?i:SYS)[>\uff1e]"  # <<SYS>>
    r"|[/\uff0f]?(?i:minimax|seed|dsml|antml|longcat|kimi|hy):)"  # a family's own name space
    rf"|[\[\uff3b](?=[/\uff0f]?(?:{_NAMED})[\]\uff3d]"
    r"|[|\uff5c][/\uff0f]?[A-Za-z_ ]{1,30}[|\uff5c][\]\uff3d]"  # [|assistant|]
    r"|[a-z]~\[|>\[)"  # [e~[
    r"|(?<!\w)[\[\uff3b](?=[/\uff0f]?[A-Z]{2,20}(?:_[A-Z0-9]{1,20}){1,4}[\]\uff3d])"  # [NEW_TOKEN], but not x[MAX_SIZE]
    r"|\](?=~!?[a-z][\[\]]|![a-z]~\[|<\])"  # ]~b], ]~!b[, ]<]image[>[
    r"|\u25c1(?=/?\w{1,30}\u25b7)"  # the triangles of Kimi
    r"|\uff5c(?=\w)"
    r"|\|(?=\|\|[A-Z_]{1,30}\|\|\||(?:ENDOFTEXT|SPEAKER|NEWLINE)\|)"
    r"|>(?=>(?:TITLE|ABSTRACT|INTRODUCTION|SUMMARY|COMMENT|ANSWER|QUESTION|DOMAIN|PREFIX|SUFFIX|MIDDLE)<<)"
    r"|(?<![\w./])/(?=(?:no_?)?think(?![\w/.\-]))"  # a switch in plain text
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
    kept = visible(lines)
    kept = _CHAT.sub(lambda m: f"{m[0]} ", kept)
    kept = re.sub(re.escape(nonce), "[removed]", kept, flags=re.IGNORECASE)
    return "\n".join(f"{mark}{line}" for line in kept.split("\n"))


def visible(text: str, *, keep: str = "\n\t") -> str:
    """``text`` without control, format, private and unassigned characters, except those in ``keep``.

    Example:
        >>> visible("a\\u200bb\\x1bc")
        'abc'
    """
    return "".join(c for c in text if c in keep or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn"))


def one_line(text: str, limit: int) -> str:
    """``text`` on one line, cut to ``limit`` characters, without what ``visible`` takes out.

    Example:
        >>> one_line("no\\n  such\\u2028model", 7)
        'no such'
    """
    return " ".join(visible(text[: 4 * limit]).split())[:limit]


def fence(label: str, text: str, nonce: str, limit: int, *, mark: str = "| ") -> str:
    """``text`` between two lines that carry ``nonce``, which its author cannot know.

    Example:
        >>> print(fence("ANSWER", "7", "af03", 100))
        [BEGIN ANSWER af03]
        | 7
        [END ANSWER af03]
    """
    return f"[BEGIN {label} {nonce}]\n{clean(text, nonce, limit, mark=mark)}\n[END {label} {nonce}]"
