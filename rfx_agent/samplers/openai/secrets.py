"""What must not be repeated: the keys that a client sends, in each spelling in which a server may quote them."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

__all__ = ["in_headers", "in_url", "of_client", "redact", "spellings"]

# Of headers and of a query's parameters.
_NAMES = re.compile(r"(?i)key|token|auth|secret|cookie|passw|credential|sig(nature)?$")
_KEY = re.compile(r"(?i)\b(bearer\s+)[^\s\"',;]{4,}|\bsk-[\w-]{8,}")
_PERCENT = re.compile("%[0-9A-F]{2}")


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """``text`` without ``secrets`` and without what looks like an API key or a bearer token."""
    for secret in secrets:
        text = text.replace(secret, "[key]")
    return _KEY.sub("[key]", text)


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
