"""LangChain's models over OpenAI's SDK, on this package's own connections where nobody has configured theirs.

LangChain's connections follow a redirect to any host, read a body of any size for any time, and tell nobody which tries
were lost. A model whose connections somebody has configured keeps them.
"""

from __future__ import annotations

import sys
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable

from rfx_agent.samplers.openai.held import Held
from rfx_agent.samplers.openai.transport import http_client

__all__ = ["connected"]

_CONNECTIONS = Held(
    "the connections of LangChain's models", lambda asynchronous: http_client(asynchronous=asynchronous)
)
_CHOSEN = ("http_client", "http_async_client", "http_socket_options", "openai_proxy")


def connected(model: Runnable[Any, Any], *, asynchronous: bool) -> Runnable[Any, Any]:
    """``model`` on connections of this package: a copy, or itself where it is of another kind or has its own."""
    sdk = sys.modules.get("openai")  # which whatever has its clients has loaded
    if sdk is None or not isinstance(model, BaseChatModel):
        return model
    if not {*_CHOSEN} <= {*type(model).model_fields} or any(getattr(model, name) is not None for name in _CHOSEN):
        return model
    side, kind = ("async_client", sdk.AsyncOpenAI) if asynchronous else ("client", sdk.OpenAI)
    root = getattr(model, f"root_{side}", None)
    # A client that somebody has put in its place, or around it, is theirs.
    if not isinstance(root, kind) or type(getattr(model, side)) is not type(root.chat.completions):
        return model
    if "create" in vars(getattr(model, side)):
        return model
    # LangChain has no time limit of its own; this is the SDK's.
    timeout = sdk.DEFAULT_TIMEOUT if root.timeout is None else root.timeout
    own = _CONNECTIONS.of_loop() if asynchronous else _CONNECTIONS.sync()
    if root._client is own:
        return model
    # Not kept: whoever keeps it keeps the sockets of an event loop that is over, and what the root was told since.
    made = root.with_options(http_client=own, timeout=timeout)
    copied = model.model_copy(update={f"root_{side}": made, side: made.chat.completions})
    object.__setattr__(copied, "__pydantic_private__", model.__pydantic_private__)  # what a subclass counts in itself
    return copied
