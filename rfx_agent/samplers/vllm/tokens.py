"""A vLLM server's tokenizer over HTTP, and whether two tokenizers give the same ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from rfx_agent._closing import Closing
from rfx_agent.errors import ConfigError, SamplerError, TokenizerMismatch
from rfx_agent.samplers.openai.clients import Ask, Asking, Clients, Reply, model_name
from rfx_agent.samplers.openai.rows import read_ids

__all__ = ["NO_SUCH_ROUTE", "PROBES", "Encode", "VLLMTokens", "compare", "post", "read_text", "read_token_ids"]

Encode: TypeAlias = Callable[[str], Sequence[int]]

NO_SUCH_ROUTE = frozenset({404, 405, 501})
"""Statuses of a server that has no such endpoint."""

_PLAIN = (
    "The quick brown fox jumps over the lazy dog.",
    "0 1 12 123 1234567890 3.14159 1e-9 ١٢٣",
    " \t\n\n  two  spaces\r\n\ttab    four",
    "naïve café Straße Ελλάδα Привет 你好 नमस्ते 🎉👩\u200d👩\u200d👧 e\u0301",
    "def f(x: int) -> str:\n    return {'a': [x ** 2]}  # !=<>\n",
)
_SPECIAL = (
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<|endoftext|>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|><|eot_id|><s>[INST] a [/INST]</s><bos><eos>",
)
PROBES = (*_PLAIN, *_SPECIAL)
"""Texts on which tokenizers differ: words, digits, whitespace, scripts, code, and the special tokens of chats."""


class VLLMTokens(Closing):
    """The tokenizer of a model that a vLLM server (or one with its ``/tokenize``) serves.

    Args:
        model: the model's name on the server.
        base_url: the server, ``/v1`` included.
        api_key: by default ``OPENAI_API_KEY``, else a placeholder.
        timeout: seconds that the head of an answer may take, per attempt; a body may take as long again, and 64 MiB.
        max_retries: transport retries after a transient failure.

    Raises:
        ConfigError: a parameter that cannot work.
    """

    def __init__(
        self, model: str, *, base_url: str, api_key: str | None = None, timeout: float = 60.0, max_retries: int = 2
    ) -> None:
        if not isinstance(base_url, str):
            raise ConfigError(f"base_url is {base_url!r}; give a URL such as 'http://127.0.0.1:8000/v1'")
        self.model = model_name(model)
        self.clients = Clients(model, base_url=base_url, api_key=api_key, timeout=timeout, max_retries=max_retries)
        # vLLM has these beside /v1, not in it.
        self._root = base_url.rstrip("/").removesuffix("/v1")

    def __repr__(self) -> str:
        return f"VLLMTokens({self.model!r})"  # never the key, nor a URL that may hold one

    def encode(self, text: str) -> Ask:
        """Ask for the ids of ``text``, special tokens in it read as such and none added."""
        return self._post("tokenize", {"prompt": text, "add_special_tokens": False})

    def prompt(self, messages: Sequence[Mapping[str, Any]], prefix: str) -> Ask:
        """Ask for the ids that the model reads before it answers ``messages``, from ``prefix`` on where it has one."""
        chat = [dict(message) for message in messages]
        if prefix:
            chat.append({"role": "assistant", "content": prefix})
        body = {"messages": chat, "add_generation_prompt": not prefix, "continue_final_message": bool(prefix)}
        return self._post("tokenize", body)

    def decode(self, ids: Sequence[int]) -> Ask:
        """Ask for the text of ``ids``, special tokens included."""
        return self._post("detokenize", {"tokens": list(ids)})

    def _post(self, route: str, body: Mapping[str, Any]) -> Ask:
        return Ask(self.clients, post(f"{self._root}/{route}", {"model": self.model, **body}))

    def close(self) -> None:
        """Close the connections; idempotent. Those of an event loop that still runs are closed with ``aclose``."""
        self.clients.close()

    async def aclose(self) -> None:
        """Do what ``close`` does, and close the connections of the running event loop."""
        await self.clients.aclose()


def post(path: str, body: Mapping[str, Any]) -> Callable[[Any], Any]:
    """A request to a path under the client's URL, or to a whole URL; its raw response tells the transport's retries."""
    # What the SDK's own ``with_raw_response`` sends; it has none for paths that it does not know.
    options = {"headers": {"X-Stainless-Raw-Response": "true"}}
    return lambda client: client.post(path, cast_to=object, body=dict(body), options=options)


def read_token_ids(reply: Reply) -> tuple[int, ...]:
    """The ids in a reply of ``/tokenize``.

    Raises:
        SamplerError: the reply's own, or one for a body of another shape.
    """
    found = read_ids(reply.data.get("tokens")) if isinstance(reply.data, Mapping) else None
    if reply.error or found is None:
        raise reply.error or SamplerError("/tokenize answered without a list of token ids", calls=reply.calls)
    return found


def read_text(reply: Reply) -> str:
    """The text in a reply of ``/detokenize``; raises as ``read_token_ids``."""
    found = reply.data.get("prompt") if isinstance(reply.data, Mapping) else None
    if reply.error or not isinstance(found, str):
        raise reply.error or SamplerError("/detokenize answered without a text", calls=reply.calls)
    return found


def compare(ancestor: VLLMTokens, specialist: VLLMTokens | Encode, name: str) -> Asking[None]:
    """Hold the two tokenizers against each other on ``PROBES``; ``name`` is the ancestor's, for messages.

    Raises:
        TokenizerMismatch: they give different ids; names the first text on which they do.
        SamplerError: a server could not tell.
        ConfigError: a callable that fails, or gives no integers.
    """
    asks = [ancestor.encode(probe) for probe in PROBES]
    if isinstance(specialist, VLLMTokens):
        asks += [specialist.encode(probe) for probe in PROBES]
    replies = yield asks
    for at, probe in enumerate(PROBES):
        ours = read_token_ids(replies[at])
        if isinstance(specialist, VLLMTokens):
            theirs = read_token_ids(replies[len(PROBES) + at])
        else:
            theirs = _encoded(specialist, probe)
        if ours == theirs:
            continue
        if probe in _SPECIAL and not isinstance(specialist, VLLMTokens):
            (back,) = yield [ancestor.decode(theirs)]
            if read_text(back) == probe:
                continue  # a callable may read special tokens as plain text; its ids still mean the same
        first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
        where = f"{len(ours)} and {len(theirs)} of them" if first is None else f"from token {first} on"
        raise TokenizerMismatch(
            f"{name!r} and its specialist give different ids for {probe!r} ({where}): their probabilities cannot be "
            "compared; give an ancestor with the specialist's tokenizer"
        )


def _encoded(encode: Encode, probe: str) -> tuple[int, ...]:
    try:
        return tuple(int(token) for token in encode(probe))
    except Exception as error:
        raise ConfigError(
            f"specialist failed on {probe!r} ({error}); give a callable from text to token ids"
        ) from error
