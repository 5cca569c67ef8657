"""The one place where a provider's exceptions become ours.

The table is by class name, so that nothing of a provider is imported here. A class that is not in it (a new
SDK) is mapped by its nearest listed base, and a test fails until it is listed.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

from rfx_agent.errors import SamplerError, SamplerTimeout, may_have_worked
from rfx_agent.samplers.openai.secrets import in_headers, in_url, plain_line, purged, redact, spellings, taken_out
from rfx_agent.samplers.refusals import MOST_SAID

__all__ = ["causes", "map_error", "status_of", "tries", "words_of"]

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
    # Of Amazon's, aiohttp's and Google's, which carry no request.
    "ConnectionClosedError": "transient",
    "ServerDisconnectedError": "transient",
    "ClientPayloadError": "transient",
    "ClientOSError": "transient",
    "DeadlineExceeded": "timeout",
}
_TRANSIENT_STATUS = frozenset({408, 409, 425, 429})
# A quota that is used up is a 429 that no waiting mends.
_PERMANENT_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
# No connection was made: this request did not reach the server.
_UNSENT = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "InvalidURL", "gaierror"}
    | {"ConnectTimeoutError", "EndpointConnectionError", "ConnectionRefusedError", "ClientConnectorError"}
)
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
    ``lost`` is None where a connection broke and the error does not say whether a request had left.
    """
    if isinstance(error, SamplerError):
        return error
    secrets = (*_secrets(error), *known)
    words = redact(words_of(getattr(error, "body", None)), secrets)
    for one in causes(error):
        _scrub(one, secrets)
    status = status_of(error)
    kind = _kind(error)
    transient = kind in ("timeout", "transient")
    if kind == "status":
        code = getattr(error, "code", None)
        transient = (status is None or status in _TRANSIENT_STATUS or status >= 500) and code not in _PERMANENT_CODES
    said = redact(str(error)[:MOST_SAID] or "no message", secrets)
    if words and words not in said:
        said = f"{said}: {words}"
    cause = f": {type(error.__cause__).__name__}" if error.__cause__ is not None else ""
    message = f"{type(error).__name__}: {plain_line(said, _LIMIT, secrets)}{cause}"
    make = SamplerTimeout if kind == "timeout" else SamplerError
    calls, lost = tries(error)
    return make(message, status=status, transient=transient, calls=calls, lost=lost)


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an SDK's error, or what it came from, carries; None where there was none.

    Known are OpenAI's, Anthropic's, Ollama's, Google's and Amazon's.
    """
    one: BaseException | None = error
    for _ in range(_DEPTH):
        if one is None:
            return None
        response = getattr(one, "response", None)
        told = response.get("ResponseMetadata") if isinstance(response, Mapping) else None
        found = (
            getattr(one, "status_code", None),
            getattr(response, "status_code", None),
            told.get("HTTPStatusCode") if isinstance(told, Mapping) else None,
            getattr(one, "status", None),
            getattr(one, "code", None),
        )
        status = next((x for x in found if type(x) is int and 100 <= x < 600), None)
        if status is not None:
            return status
        one = one.__cause__
    return None


def tries(error: BaseException) -> tuple[int, int | None]:
    """Requests of a call that failed, and how many of them may have been worked on; None where nothing tells."""
    if isinstance(error, SamplerError):
        return error.calls, error.lost
    calls = _calls(error)
    if not may_have_worked(status_of(error)):
        return calls, 0
    return calls, calls if calls or _unsent(error) else None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and what it came from, which a traceback prints too."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def words_of(body: Any, depth: int = 0) -> str:
    """What a server says in an error's body, in whichever envelope, shortened.

    Example:
        >>> words_of({"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]})
        "Extra inputs are not permitted ('seed')"
    """
    if isinstance(body, str) and body[:1] in ("{", "[") and depth < _DEPTH:
        with contextlib.suppress(ValueError, RecursionError):  # one error quotes another
            return words_of(json.loads(body[:MOST_SAID]), depth + 1)
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
    request = _request(error)
    keys = (*in_headers(getattr(request, "headers", None)), *in_url(str(getattr(request, "url", ""))))
    return tuple(one for key in keys for one in spellings(key, least=4))


def _scrub(error: BaseException, secrets: tuple[str, ...]) -> None:
    args = tuple(_scrubbed(arg, secrets) for arg in error.args)
    if args != error.args:
        error.args = args
    for name, value in [*vars(error).items()]:
        kept = _scrubbed(value, secrets)
        if kept is not value and kept != value:
            with contextlib.suppress(AttributeError, TypeError):
                setattr(error, name, kept)


def _scrubbed(value: Any, secrets: tuple[str, ...]) -> Any:
    if not isinstance(value, (str, bytes, dict, list, tuple)):
        return value
    with contextlib.suppress(RecursionError):
        value = purged(value, secrets)
    # Values that are not JSON, such as bytes, may hold a key too.
    return redact(str(value), secrets) if taken_out(str(value), secrets) != str(value) else value


def _calls(error: BaseException) -> int:
    """Requests that left: the SDK writes the number of the attempt into each request's headers."""
    request = _request(error)
    if request is None:
        return 0
    count = (getattr(request, "headers", None) or {}).get("x-stainless-retry-count", "0")
    before = int(count) if str(count).isdigit() else 0
    return before if _unsent(error) else before + 1


def _unsent(error: BaseException) -> bool:
    return any(type(x).__name__ in _UNSENT for x in causes(error))  # LangChain puts errors of its own around
