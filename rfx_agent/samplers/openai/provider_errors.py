"""The one place where a provider's exceptions become ours.

The table is by class name, so that nothing of a provider is imported here. A class that is not in it (a new
SDK) is mapped by its nearest listed base, and a test fails until it is listed.
"""

from __future__ import annotations

import re
from typing import Any, Literal, TypeAlias

from rfx_agent.errors import SamplerError, SamplerTimeout

__all__ = ["map_error", "redact"]

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


def map_error(error: BaseException) -> SamplerError:
    """``error`` as a ``SamplerError``, to be raised ``from`` it.

    The message carries the provider's own, shortened and without keys; a key that the provider echoed is also
    taken out of ``error``, which a traceback would print. ``calls`` counts requests with their transport
    retries. The last is left out where it could not connect; of those before it nobody can tell, and they count.
    """
    if isinstance(error, SamplerError):
        return error
    secrets = _secrets(error)
    _scrub(error, secrets)
    status = getattr(error, "status_code", None)
    status = status if isinstance(status, int) else None
    kind = _kind(error)
    transient = kind in ("timeout", "transient")
    if kind == "status":
        code = getattr(error, "code", None)
        transient = (status is None or status in _TRANSIENT_STATUS or status >= 500) and code not in _PERMANENT_CODES
    said = redact(str(error) or "no message", secrets)
    cause = f": {type(error.__cause__).__name__}" if error.__cause__ is not None else ""
    message = f"{type(error).__name__}: {said[:_LIMIT]}{cause}"
    make = SamplerTimeout if kind == "timeout" else SamplerError
    return make(message, status=status, transient=transient, calls=_calls(error))


def redact(text: str, secrets: tuple[str, ...] = ()) -> str:
    """``text`` without ``secrets`` and without what looks like an API key or a bearer token."""
    for secret in secrets:
        text = text.replace(secret, "[key]")
    return _KEY.sub("[key]", text)


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
    return tuple(key for key in keys if len(key) >= 4)


def _scrub(error: BaseException, secrets: tuple[str, ...]) -> None:
    if not any(secret in str(error) or secret in repr(error) for secret in secrets):
        return
    error.args = tuple(redact(arg, secrets) if isinstance(arg, str) else arg for arg in error.args)
    for name in ("message", "body"):
        if hasattr(error, name):
            setattr(error, name, redact(str(getattr(error, name)), secrets))


def _calls(error: BaseException) -> int:
    """Requests that left: the SDK writes the number of the attempt into each request's headers."""
    request = _request(error)
    if request is None:
        return 0
    count = (getattr(request, "headers", None) or {}).get("x-stainless-retry-count", "0")
    before = int(count) if str(count).isdigit() else 0
    unsent = type(error.__cause__).__name__ in _UNSENT or type(error).__name__ in _UNSENT
    return before if unsent else before + 1
