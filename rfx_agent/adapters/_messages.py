"""LangChain messages as rollouts, answers as objects, and the context that a further attempt runs in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context
from typing import Any

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.messages import AIMessage
from langchain_core.runnables.config import ensure_config, patch_config, set_config_context
from pydantic import BaseModel, TypeAdapter

from rfx_agent._errors import RfxError
from rfx_agent._types import Rollout, Usage
from rfx_agent.features import TopLogprobs

__all__ = ["attempt_context", "restored", "rollout_of"]

_NOSTREAM = "nostream"  # LangGraph's tag for model calls that stream_mode "messages" leaves out


def rollout_of(
    message: AIMessage, temperature: float | None = None, response_id: str | None = None, *, name: str = ""
) -> Rollout:
    """What a chat model answered, as a rollout: the tokens it reports, and its top-K table where it gives one.

    ``response_id`` is the message's own by default, ``name`` the rollout's id, which the engine gives otherwise.
    """
    used: Mapping[str, Any] = message.usage_metadata or {}
    usage = Usage(used.get("input_tokens", 0), used.get("output_tokens", 0), 1)
    told = message.response_metadata
    table = tokens = None
    content = (told.get("logprobs") or {}).get("content") or []
    if content:
        tokens = tuple(str(entry["token"]) for entry in content)
        rows = [[(x["token"], x["logprob"]) for x in entry.get("top_logprobs") or []] for entry in content]
        try:
            table = TopLogprobs.from_rows(rows, tokens)
        except RfxError:
            table = None  # a table that breaks its contract is no evidence; the rollout stays
    return Rollout(
        text=str(message.text),
        id=name,
        response_id=response_id or message.id,
        temperature=temperature,
        finish_reason=told.get("finish_reason"),
        usage=usage,
        tokens=tokens,
        logprobs=table,
    )


def restored(text: str, *, like: Any = None, schema: Any = None) -> Any:
    """The object that ``text`` is the JSON of: of ``like``'s class, else one that ``schema`` accepts.

    Args:
        text: JSON.
        like: an object of the wanted class, or None where there is none yet.
        schema: a pydantic model, dataclass, TypedDict or union of them, or a JSON schema, which is not enforced.

    Raises:
        ValueError: text that is no such object.
    """
    # A plain dict says nothing of its keys, so the schema is the better guide there.
    wanted = type(like) if isinstance(like, BaseModel) or hasattr(like, "__dataclass_fields__") else schema
    if wanted is None or isinstance(wanted, dict):
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError(f"it is a JSON {type(value).__name__}; an object is wanted")
        return value
    return TypeAdapter(wanted).validate_json(text)


@contextmanager
def attempt_context(*tags: str, stream: bool = False) -> Iterator[Context]:
    """A context in which every model call carries ``tags`` and, by default, streams no tokens to the user."""
    added = [*tags, *([] if stream else [_NOSTREAM])]
    config = ensure_config()
    callbacks = config.get("callbacks")
    if isinstance(callbacks, BaseCallbackManager):  # its tags are inherited even where a call brings its own config
        callbacks = callbacks.copy()
        callbacks.add_tags(added, inherit=True)
        config = patch_config(config, callbacks=callbacks)
    else:
        config["tags"] = [*(config.get("tags") or []), *added]
    with set_config_context(config) as context:
        yield context
