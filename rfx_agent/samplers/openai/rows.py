"""Reads the token entries of one choice into a top-K table, or says at which position they break.

Servers name tokens in three ways: by text and bytes (OpenAI), by an ``id`` beside them (llama.cpp), and, where they
are asked to, by texts such as ``"token_id:42"`` (vLLM). With ids the table is in the tokenizer's ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from rfx_agent.errors import FeatureError
from rfx_agent.evidence.tables import TopLogprobs

__all__ = ["covered", "read_ids", "read_table"]

T = TypeVar("T")
_SPLIT = re.compile("[\ufffd]|[^\x00-\x7f]")
_ENDING = 64  # characters of an end-of-turn token
_SURE = 200  # characters at the beginning that are compared
_PLACEHOLDER = re.compile(r"token_id:(\d{1,15})\Z")


def read_ids(value: Any) -> tuple[int, ...] | None:
    """A list of token ids as a server gives it, or None where it is none."""
    if isinstance(value, list) and all(type(one) is int and one >= 0 for one in value):
        return tuple(value)
    return None


def read_table(
    text: str, entries: Sequence[Mapping[str, Any]] | None, known: Sequence[int] | None
) -> tuple[tuple[str, ...] | None, TopLogprobs | None, str]:
    """The texts of a choice's tokens, its table, and a note where either cannot be used.

    ``text`` is what the choice says, ``entries`` what the server gives per token, ``known`` the tokens' ids where it
    gives them beside it.

    Rows are as the server gave them, with one exception: vLLM puts the taken token first and cuts the row at K after
    it. Where it is less likely than everything behind it, it is not among the likeliest, and is left out.
    """
    if entries is None:
        # Nothing written, nothing missing: an empty completion has no position to report.
        return None, None, "log-probabilities are missing" if text or known else ""
    size = len(text.encode(errors="replace"))
    if known is None and len(entries) > size + _ENDING:  # a token is a byte at least
        return None, None, f"log-probabilities have {len(entries)} positions for a text of {size} bytes"
    tokens = _all([_text(entry) for entry in entries])
    if known is not None and (note := _disagreement(entries, known)):
        return tokens, None, note
    told = covered(entries)
    if known is None and _more(told, text):
        part = f"{len(told)} characters, of which {len(text)} are the text"
        return None, None, f"log-probabilities cover {part}: they begin before it"
    if len(told.strip()) < len(text.strip()):
        if known is None:
            part = f"{len(told)} of {len(text)} characters"
            return tokens, None, f"log-probabilities cover only {part}: they stop after position {len(entries) - 1}"
        tokens = _joined(tokens or (), text)  # ids tell that no token is missing: only texts are
    try:
        table = _table(entries)
    except FeatureError as error:
        return tokens, None, f"log-probabilities break their contract: {error}"
    return tokens, table, "" if tokens else "the tokens' texts do not join to the text: junctions have no offset in it"


def _more(told: str, text: str) -> bool:
    """Whether ``told`` is not of ``text``: it has something before it, such as what the model thought, or too much
    behind it.
    """
    if not text.strip() or len(told.strip()) > len(text.strip()) + _ENDING:
        return bool(told.strip())
    # Parts of a character show as U+FFFD, in either.
    begins, whole = (_SPLIT.split(x.strip(), maxsplit=1)[0][:_SURE] for x in (told, text))
    return not begins.startswith(whole[: len(begins)])


def _joined(tokens: Sequence[str], text: str) -> tuple[str, ...] | None:
    """``tokens`` with what ``text`` has for those that vLLM gives no text: parts of no character, shown as U+FFFD.

    None where the tokens do not join to the text with these either.
    """
    joined: list[str] = []
    at = 0
    for token in (*tokens, ""):
        here = len(text) if len(joined) == len(tokens) else at
        while not (text.startswith(token, here) and (here == at or text[here - 1] == "\ufffd")) and here < len(text):
            here += 1
        if here > at:
            if not joined or joined[-1] or text[here - 1] != "\ufffd":
                return None
            joined[-1] = text[at:here]
        joined.append(token)
        at = here + len(token)
    return tuple(joined[:-1])


def covered(entries: Sequence[Mapping[str, Any]]) -> str:
    """The text whose log-probabilities ``entries`` hold. An entry that names no token adds nothing."""
    # A character split over tokens shows as a replacement in each; their bytes join to the real one.
    parts = _all([_bytes(entry) for entry in entries])
    if parts is not None:
        return b"".join(parts).decode("utf-8", "replace")
    return "".join(_text(entry) or "" for entry in entries)


def _disagreement(entries: Sequence[Mapping[str, Any]], known: Sequence[int]) -> str:
    """Where the entries are not of the tokens that the choice consists of."""
    for position, (entry, token) in enumerate(zip(entries, known, strict=False)):
        named = _id(entry)
        if named is not None and named != token:
            return f"position {position} has log-probabilities of token {named}, but token {token} was generated"
    if len(entries) < len(known):
        return f"log-probabilities stop after position {len(entries) - 1} of {len(known)} tokens"
    if len(entries) > len(known):
        return f"log-probabilities have {len(entries)} positions for {len(known)} tokens, from position {len(known)}"
    return ""


def _table(entries: Sequence[Mapping[str, Any]]) -> TopLogprobs:
    for position, entry in enumerate(entries):
        top = entry.get("top_logprobs")
        if not top:
            raise FeatureError("log-probabilities came without alternatives", position=position)
        if not isinstance(top, list) or not all(isinstance(o, Mapping) and o.get("token") is not None for o in top):
            raise FeatureError("alternatives are of an unknown shape", position=position)
    ids = all(_id(entry) is not None and all(_id(o) is not None for o in entry["top_logprobs"]) for entry in entries)
    taken: list[Any] = [_id(entry) if ids else _name(entry) for entry in entries]
    return TopLogprobs.from_rows([_row(entry, ids) for entry in entries], taken)


def _row(entry: Mapping[str, Any], ids: bool) -> list[tuple[Any, Any]]:
    top = entry["top_logprobs"]
    first = str(top[0]["token"])
    if len(top) > 1 and first == entry["token"] and _PLACEHOLDER.match(first) and _lowest_first(top):
        top = top[1:]
    if ids:
        return [(_id(other), other.get("logprob")) for other in top]
    # Different tokens may share one text (special tokens are often ""). They keep their mass under names of
    # their own, in the order given.
    row: list[tuple[Any, Any]] = []
    seen: dict[str | bytes, int] = {}
    for other in top:
        name = _name(other)
        seen[name] = count = seen.get(name, 0) + 1
        row.append((name if count == 1 else f"{name!r}#{count}", other.get("logprob")))
    return row


def _lowest_first(top: Sequence[Mapping[str, Any]]) -> bool:
    values = _all([_number(other.get("logprob")) for other in top])
    # What is no number stays in the row, whose check says so.
    return values is not None and all(values[0] < value for value in values[1:])


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _id(entry: Mapping[str, Any]) -> int | None:
    if type(entry.get("id")) is int:
        return int(entry["id"])
    match = _PLACEHOLDER.match(str(entry["token"]))
    return int(match[1]) if match else None


def _text(entry: Mapping[str, Any]) -> str | None:
    """A token's text; None where only its id was given."""
    token = str(entry["token"])
    if not _PLACEHOLDER.match(token):
        return token
    raw = _bytes(entry)
    return None if raw is None or raw == token.encode() else raw.decode("utf-8", "replace")


def _name(entry: Mapping[str, Any]) -> str | bytes:
    """A token's name where there are no ids: its bytes, for parts of a character all show as one text."""
    token = str(entry["token"])
    return token if _PLACEHOLDER.match(token) else _bytes(entry) or token


def _all(values: Sequence[T | None]) -> tuple[T, ...] | None:
    """The values, or None if any is missing."""
    found = tuple(value for value in values if value is not None)
    return found if len(found) == len(values) else None


def _bytes(entry: Mapping[str, Any]) -> bytes | None:
    raw = entry.get("bytes")
    if isinstance(raw, list) and all(type(one) is int and 0 <= one < 256 for one in raw):
        return bytes(raw)
    return None
