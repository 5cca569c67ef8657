"""What must not be repeated: the keys that a client sends, in each spelling in which a server may quote them."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from rfx_agent.fence import one_line, visible
from rfx_agent.records import Rollout

__all__ = [
    "in_headers",
    "in_url",
    "of_client",
    "plain_line",
    "purged",
    "redact",
    "spellings",
    "taken_out",
    "without_keys",
]

# Of headers and of a query's parameters.
_NAMES = re.compile(r"(?i)key|token|auth|secret|cookie|passw|credential|sig(nature)?$")
_KEY = re.compile(r"(?i)\b(bearer\s+)[^\s\"',;]{4,}|\bsk-[\w-]{8,}")
_LONGEST = 2**16  # characters of what becomes one line
_ESCAPE = re.compile(r"\\u00([0-9a-fA-F]{2})")
_PERCENT = re.compile("%[0-9A-F]{2}")


def taken_out(text: str, secrets: Iterable[str]) -> str:
    """``text`` without ``secrets``, also where characters that nobody sees or escapes of JSON stand in them.

    Where it hides one, it loses its other invisible characters and escapes too.
    """
    secrets = tuple(secrets)
    text = _replaced(text, secrets)
    hides = "\\u00" in text or "\\/" in text
    if not secrets or (not hides and text.replace("\n", "").replace("\t", "").isprintable()):
        return text
    shown = visible(_ESCAPE.sub(lambda found: chr(int(found[1], 16)), text).replace("\\/", "/"))
    return _replaced(shown, secrets) if any(secret in shown for secret in secrets) else text


def _replaced(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "[key]")
    return text


def purged(data: Any, secrets: tuple[str, ...]) -> Any:
    """``data``, as JSON decodes to, without ``secrets`` in any of its texts."""
    if isinstance(data, str):
        return taken_out(data, secrets)
    if isinstance(data, dict):
        return {purged(name, secrets): purged(value, secrets) for name, value in data.items()}
    return type(data)([purged(one, secrets) for one in data]) if type(data) in (list, tuple) else data


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """``text`` without ``secrets`` and without what looks like an API key or a bearer token."""
    return _KEY.sub("[key]", taken_out(text, secrets))


def plain_line(text: str, limit: int, secrets: Iterable[str] = ()) -> str:
    """``text`` redacted, on one line and cut to ``limit`` characters.

    It is cleaned before it is redacted: what is taken out may part a key. It is cut last: half a key is not found.
    """
    return one_line(redact(visible(text[:_LONGEST]), secrets), limit)


def without_keys(secrets: tuple[str, ...], made: Rollout) -> Rollout:
    """``made`` without keys that the server may quote back; its tokens and its table go where its text holds one."""
    shown = (made.text, made.finish_reason or "", made.response_id or "", "".join(made.tokens or ()))
    text, reason, name, tokens = (taken_out(text, secrets) for text in shown)
    same = text == made.text and tokens == shown[3]
    if same and (reason, name) == shown[1:3]:
        return made
    return replace(
        made,
        text=text,
        finish_reason=reason or None,
        response_id=name or None,
        tokens=made.tokens if same else None,
        logprobs=made.logprobs if same else None,
    )


def of_client(client: Any) -> tuple[str, ...]:
    """The secrets that a client of OpenAI's SDK sends: its key, those in its headers, its query and its URL."""
    found: list[Any] = [getattr(client, "api_key", None)]
    for name in ("default_headers", "default_query"):
        with contextlib.suppress(Exception):  # properties that may ask for a key that is a function
            found += in_headers(getattr(client, name, None))
    found += in_url(str(getattr(client, "base_url", None) or ""))
    return tuple(dict.fromkeys(x for x in found if isinstance(x, str) and x))


def in_headers(headers: object) -> tuple[str, ...]:
    """The values of headers, or of a query's parameters, whose names say that they are secret."""
    if not isinstance(headers, Mapping):
        return ()
    # "Bearer ..." and "Basic ...": what stands behind the kind.
    told = (value for name, value in headers.items() if isinstance(value, str) and _NAMES.search(str(name)))
    return tuple(last for value in told if (last := value.split(" ")[-1]))


def in_url(url: str) -> tuple[str, ...]:
    """The password of a URL, and the parameters of its query whose names say that they are secret."""
    try:
        parts = urlsplit(url)
        password = parts.password
    except ValueError:
        return ()
    query = [(name, value) for name, value in parse_qsl(parts.query) if _NAMES.search(name)]
    return tuple(x for x in (unquote(password or ""), *(value for _, value in query)) if x)


def spellings(key: str, *, least: int) -> tuple[str, ...]:
    """``key`` as it may stand in a text: as it is, in JSON, in a URL, in base64 also within more, in hex.

    None of a key below ``least`` characters: such are placeholders, which an answer may hold.
    """
    if len(key) < least:
        return ()
    in_json = json.dumps(key)[1:-1]
    points = "".join(f"\\u{ord(c):04x}" for c in key)
    once = quote(key, safe="")
    lower = _PERCENT.sub(lambda found: found[0].lower(), once)
    all_ = (key, in_json, in_json.replace("/", "\\/"), points, once, lower, quote(once, safe=""))
    return tuple(dict.fromkeys((*all_, *_coded(key.encode(errors="replace")))))


def _coded(raw: bytes) -> Iterator[str]:
    """``raw`` in hex and in base64, there from each place at which it may begin."""
    yield raw.hex()
    for before in range(3):
        coded = base64.b64encode(bytes(before) + raw).decode()
        # Without the characters that depend on what stands beside it.
        inner = coded[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]
        if len(inner) >= len(raw):
            yield inner
            yield inner.translate({ord("+"): "-", ord("/"): "_"})
