"""The one place where a provider's exceptions become ours.

The table is by class name, so that nothing of a provider is imported here. A class that is not in it (a new
SDK) is mapped by its nearest listed base, and a test fails until it is listed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

from rfx_agent.errors import SamplerError, SamplerTimeout
from rfx_agent.fence import visible

__all__ = ["causes", "map_error", "redact", "spellings", "words_of"]

_Kind: TypeAlias = Literal["timeout", "transient", "permanent", "status"]

# "status": it depends on the HTTP status and the provider's code.
_KINDS: dict[str, _Kind] = {
    "OpenAIError": "permanent",
    "APIError": "status",
    "APIStatusError": "status",
    "APIResponseValidationError": "permanent",
    "APIConnectionError": "transient",
    "APITimeoutError": "timeout",
    "BadRequestError": "status",
    "AuthenticationError": "status",
    "OAuthError": "status",
    "PermissionDeniedError": "status",
    "NotFoundError": "status",
    "ConflictError": "status",
    "UnprocessableEntityError": "status",
    "RateLimitError": "status",
    "InternalServerError": "status",
    "LengthFinishReasonError": "permanent",
    "ContentFilterFinishReasonError": "permanent",
    "InvalidWebhookSignatureError": "permanent",
    "SubjectTokenProviderError": "permanent",
    "WebSocketConnectionClosedError": "transient",
    "WebSocketQueueFullError": "transient",
    "StreamAlreadyConsumed": "permanent",
    "MissingDependencyError": "permanent",
    "MutuallyExclusiveAuthError": "permanent",
    "APIRemovedInV1": "permanent",
    "AgentOutputParseError": "permanent",
    "AgentTurnResultError": "permanent",
    "AgentFilePreparationError": "permanent",
    "AgentFileStagingError": "permanent",
    "_AmbiguousModuleClientUsageError": "permanent",
    # The transport's own, should the SDK let one through while it reads a body.
    "TimeoutException": "timeout",
    "RequestError": "transient",
    # Ours, for a body that is not a chat completion.
    "MalformedReplyError": "transient",
    # The standard library's.
    "TimeoutError": "timeout",
    "ConnectionError": "transient",
}
_TRANSIENT_STATUS = frozenset({408, 409, 425, 429})
# A quota that is used up is a 429 that no waiting mends.
_PERMANENT_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
# No connection was made: this request did not reach the server.
_UNSENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "InvalidURL"})
_KEY_HEADERS = ("authorization", "api-key", "x-api-key")
_KEY = re.compile(r"(?i)\b(bearer\s+)[^\s\"',;]{4,}|\bsk-[\w-]{8,}")
_LIMIT = 300
_DEPTH = 5  # of an error's envelope
_SAYS = (
    "message",
    "msg",
    "error",
    "detail",
    "details",
    "errors",
    "error_message",
    "error_msg",
    "error_description",
    "issues",
    "raw",
    "reason",
    "title",
)
_TAG = re.compile(r"<[^<>]*>")


def map_error(error: BaseException, known: tuple[str, ...] = ()) -> SamplerError:
    """``error`` as a ``SamplerError``, to be raised ``from`` it. ``known`` are keys that the client holds.

    The message carries the provider's own, shortened and without keys; a key that the provider echoed is also
    taken out of ``error``, which a traceback would print. ``calls`` counts requests with their transport
    retries. The last is left out where it could not connect; of those before it nobody can tell, and they count.
    """
    if isinstance(error, SamplerError):
        return error
    secrets = (*_secrets(error), *known)
    words = redact(words_of(getattr(error, "body", None)), secrets)
    for one in causes(error):
        _scrub(one, secrets)
    status = getattr(error, "status_code", None)
    status = status if isinstance(status, int) else None
    kind = _kind(error)
    transient = kind in ("timeout", "transient")
    if kind == "status":
        code = getattr(error, "code", None)
        transient = (status is None or status in _TRANSIENT_STATUS or status >= 500) and code not in _PERMANENT_CODES
    said = redact(str(error) or "no message", secrets)
    if words and words not in said:
        said = f"{said}: {words}"
    cause = f": {type(error.__cause__).__name__}" if error.__cause__ is not None else ""
    message = f"{type(error).__name__}: {visible(said[: 2 * _LIMIT])[:_LIMIT]}{cause}"
    make = SamplerTimeout if kind == "timeout" else SamplerError
    calls = _calls(error)
    return make(message, status=status, transient=transient, calls=calls, lost=calls if status is None else 0)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and what it came from, which a traceback prints too."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def redact(text: str, secrets: tuple[str, ...] = ()) -> str:
    """``text`` without ``secrets`` and without what looks like an API key or a bearer token."""
    for secret in secrets:
        text = text.replace(secret, "[key]")
    return _KEY.sub("[key]", text)


def words_of(body: Any, depth: int = 0) -> str:
    """What a server says in an error's body, in whichever envelope, shortened.

    Example:
        >>> words_of({"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]})
        "Extra inputs are not permitted ('seed')"
    """
    if isinstance(body, str) and body[:1] in ("{", "[") and depth < _DEPTH:
        with contextlib.suppress(ValueError, RecursionError):  # one error quotes another
            return words_of(json.loads(body[:64_000]), depth + 1)
    if isinstance(body, str):
        text = _TAG.sub(" ", body[:4_000]) if body.lstrip().startswith("<") else body[:4_000]
        return " ".join(text.split())[:_LIMIT]
    if depth > _DEPTH:
        return ""
    if isinstance(body, (list, tuple)):
        return "; ".join(said for one in body[:3] if (said := words_of(one, depth + 1)))[:_LIMIT]
    if not isinstance(body, Mapping):
        return ""
    said = next((said for key in _SAYS if (said := words_of(body.get(key), depth + 1))), "")
    where = body.get("param", body.get("loc"))
    place = where[-1] if isinstance(where, (list, tuple)) and where else where
    if said and isinstance(place, str) and place and not re.search(rf"\b{re.escape(place)}\b", said):
        said = f"{said} ({place[:80]!r})"
    quoted = words_of(body.get("metadata"), depth + 1)
    return f"{said}: {quoted}"[:_LIMIT] if quoted and quoted not in said else said


def spellings(key: str, *, least: int) -> tuple[str, ...]:
    """``key`` as it may stand in a text: as it is, in JSON, in a URL, in base64. None of a key below ``least``."""
    if len(key) < least:
        return ()
    coded = base64.b64encode(key.encode(errors="replace")).decode().rstrip("=")
    in_json = json.dumps(key)[1:-1]
    points = "".join(f"\\u{ord(c):04x}" for c in key)
    urls = (quote(key, safe=""), quote(quote(key, safe=""), safe=""))
    return tuple(dict.fromkeys((key, in_json, in_json.replace("/", "\\/"), points, *urls, coded)))


def _kind(error: BaseException) -> _Kind:
    for base in type(error).__mro__:
        kind = _KINDS.get(base.__name__)
        if kind is not None:
            return kind
    return "permanent"


def _request(error: BaseException) -> Any:
    response = getattr(error, "response", None)
    # ``request`` is a property that raises on a transport error without one.
    try:
        return getattr(error, "request", None) or getattr(response, "request", None)
    except RuntimeError:
        return None


def _secrets(error: BaseException) -> tuple[str, ...]:
    """Keys that were sent with the failed request: the provider may quote them back."""
    headers = getattr(_request(error), "headers", None) or {}
    values = (headers.get(name) for name in _KEY_HEADERS)
    keys = (value.split(" ")[-1] for value in values if value)
    return tuple(one for key in keys for one in spellings(key, least=4))


def _scrub(error: BaseException, secrets: tuple[str, ...]) -> None:
    if not any(secret in f"{error} {error!r} {vars(error)}" for secret in secrets):
        return
    error.args = tuple(redact(str(arg), secrets) if _holds(arg, secrets) else arg for arg in error.args)
    for name, value in vars(error).items():
        if _holds(value, secrets):
            with contextlib.suppress(AttributeError, TypeError):
                setattr(error, name, redact(str(value), secrets))


def _holds(value: object, secrets: tuple[str, ...]) -> bool:
    plain = isinstance(value, (str, bytes, dict, list, tuple))
    return plain and any(secret in str(value) for secret in secrets)


def _calls(error: BaseException) -> int:
    """Requests that left: the SDK writes the number of the attempt into each request's headers."""
    request = _request(error)
    if request is None:
        return 0
    count = (getattr(request, "headers", None) or {}).get("x-stainless-retry-count", "0")
    before = int(count) if str(count).isdigit() else 0
    unsent = any(type(x).__name__ in _UNSENT for x in causes(error))  # LangChain puts errors of its own around
    return before if unsent else before + 1
