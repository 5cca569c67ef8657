"""A client of the SDK that a forked child has from its parent, which reads from the same connections."""

from __future__ import annotations

from typing import Any

from rfx_agent.errors import SamplerError

__all__ = ["anew"]

_THEIRS = {"SyncHttpxClientWrapper": "DefaultHttpxClient", "AsyncHttpxClientWrapper": "DefaultAsyncHttpxClient"}
_kept: list[Any] = []  # never let go of: it would be closed, and its lock may be held by a thread of the parent


def anew(client: Any, *, name: str, used: bool) -> Any:
    """``client`` with connections of its own.

    Args:
        client: as the user gave it.
        name: of the backend, for messages.
        used: whether the parent asked anything with it.

    Raises:
        SamplerError: it was used before the fork, and its HTTP client is the user's own, which cannot be made anew.
    """
    made = _THEIRS.get(type(getattr(client, "_client", None)).__name__)
    if made is not None:
        import openai

        _kept.append(client)
        return client.copy(http_client=getattr(openai, made)())
    if used and hasattr(client, "_client"):
        raise SamplerError(
            f"{name!r} was used before this process was forked, by an HTTP client of yours whose connections are the "
            "parent's; make client= in the child, or leave http_client out"
        )
    return client
