"""Reads a chat completion, as a plain dict, into rollouts and their usage.

Plain dicts, not the SDK's models: servers add fields that matter (llama.cpp's token ids), leave out others,
and a table of 8 x 500 x 20 entries is slow as objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from rfx_agent.evidence.kinds import is_cut
from rfx_agent.fence import one_line
from rfx_agent.records import Rollout, Usage
from rfx_agent.samplers.openai.rows import covered, read_ids, read_table
from rfx_agent.samplers.usage import ending, estimate_tokens

__all__ = [
    "Choice",
    "MalformedReplyError",
    "UsageOf",
    "completion_tokens",
    "read_choices",
    "to_rollout",
]

UsageOf: TypeAlias = Literal["request", "choice"]

# More text per reported token than any tokenizer gives: the count is of one choice only.
_IMPLAUSIBLE_CHARS = 9
_THOUGHTS = ("reasoning_content", "reasoning")
_MOST_NAME = 100  # characters of an id or a reason of a server's, which stand in checkpoints


class MalformedReplyError(ValueError):
    """A body that is not a chat completion, or that carries an error under a good status."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One completion as it came.

    Attributes:
        text: what the model wrote after any prefix: its content, else its refusal, else "" (a tool call,
            nothing at all).
        index: the server's index of it.
        finish_reason: the server's, ``length`` where it is another word for it, or None where it is not text.
        entries: per token ``{"token", "logprob", "top_logprobs", ...}``, or None where the server gave none.
        token_ids: ids of the tokens generated, where the server gives them (vLLM's ``return_token_ids``).
        prompt_ids: ids of the tokens read, likewise.
        thought: what the model thought, where the server shows it beside the text.
        flaw: why the entries that the server gave cannot be read, or "".
    """

    text: str
    index: int
    finish_reason: str | None
    entries: Sequence[Mapping[str, Any]] | None
    token_ids: tuple[int, ...] | None = None
    prompt_ids: tuple[int, ...] | None = None
    thought: str = ""
    flaw: str = ""

    @property
    def bytes(self) -> int:
        """The most tokens that what it shows can be: a token is at least one byte."""
        return len((self.text + self.thought).encode(errors="replace"))


def read_choices(reply: Any, prefix: str = "") -> list[Choice]:
    """The usable choices of a reply, each without the ``prefix`` that it continues.

    Raises:
        MalformedReplyError: not a chat completion. A choice that failed on its own is left out instead.
    """
    if not isinstance(reply, Mapping):
        raise MalformedReplyError(f"the body is {type(reply).__name__}, not a JSON object")
    choices = reply.get("choices")
    if reply.get("error") and not choices:
        raise MalformedReplyError(f"the server answered with an error: {reply['error']}")
    if not isinstance(choices, list):
        raise MalformedReplyError("the body has no list of choices")
    read = read_ids(reply.get("prompt_token_ids"))
    return [_read(choice, at, prefix, read) for at, choice in enumerate(choices) if not _failed(choice)]


def _failed(choice: Any) -> bool:
    return isinstance(choice, Mapping) and bool(choice.get("error") or choice.get("finish_reason") == "error")


def _read(choice: Any, at: int, prefix: str, prompt_ids: tuple[int, ...] | None) -> Choice:
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(message, Mapping):
        raise MalformedReplyError(f"choice {at} has no message")
    index = choice.get("index")
    logprobs = choice.get("logprobs")
    entries = logprobs.get("content") if isinstance(logprobs, Mapping) else logprobs
    flaw = ""
    if entries is not None and not (
        isinstance(entries, list) and all(isinstance(e, Mapping) and "token" in e for e in entries)
    ):
        entries, flaw = None, "log-probabilities are of an unknown shape"
    text, refused = _text(message.get("content")), _text(message.get("refusal"))
    text = text or refused
    # llama.cpp repeats the prefix in the content, others do not. Tokens are only of what was generated: where
    # they begin with the prefix, the model itself repeated it.
    if prefix and text.startswith(prefix) and not (entries and covered(entries).startswith(prefix)):
        text = text[len(prefix) :]
    return Choice(
        text=text,
        index=index if isinstance(index, int) else at,
        finish_reason="refusal" if refused else _reason(choice.get("finish_reason")),
        entries=entries or None,
        token_ids=read_ids(choice.get("token_ids")),
        prompt_ids=prompt_ids or None,
        thought="".join(_text(message.get(key)) for key in _THOUGHTS),
        flaw=flaw,
    )


def _reason(value: Any) -> str | None:
    """Why a choice ended; each provider's word for a cap is ``length``."""
    reason = _clipped(value)
    return "length" if is_cut(reason) else reason


def _clipped(value: Any) -> str | None:
    """A name that a server gives; None where it is not text."""
    return one_line(value, _MOST_NAME) if isinstance(value, str) else None


def _text(content: Any) -> str:
    if isinstance(content, list):  # parts, as some servers answer
        texts = (part.get("text") if isinstance(part, Mapping) else part for part in content)
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def completion_tokens(
    choices: Sequence[Choice], reported: int | None, *, max_tokens: int, usage_of: UsageOf | None
) -> tuple[list[int], int, UsageOf | None, str]:
    """What each choice cost, the sum for the request, what the server's count was of, a note on an estimate.

    Token entries are counted where the server gave them. Where it did not, a reported count may be of one
    choice only: ``usage_of`` says so if it is known; else it is inferred from completions that were cut at
    ``max_tokens`` and from the length of the text, and trusted where neither proves it wrong.
    """
    # No more than can have been written: a token is a byte at least, but for those that end a turn.
    entries = [min(len(c.entries), max(max_tokens, c.bytes)) if c.entries else 0 for c in choices]
    if all(n or not c.text for n, c in zip(entries, choices, strict=True)):
        counted, said = sum(entries), reported or 0
        if len(choices) == 1:
            entries = [max(counted, said)]
        proof: UsageOf | None = "choice" if 0 < said < counted and len(choices) > 1 else None
        return entries, max(counted, said), proof, ""
    if reported is None:
        guess = [
            max_tokens if c.finish_reason == "length" and not c.text else estimate_tokens(c.text + c.thought)
            for c in choices
        ]
        return (guess, sum(guess), None, "the server reported no usage: completion tokens are estimated from the text")
    if len(choices) == 1:
        return [reported], reported, None, ""
    if usage_of == "choice" or (usage_of is None and _is_of_one(choices, reported, max_tokens)):
        each = [max_tokens if c.finish_reason == "length" else reported for c in choices]
        note = f"the server reported the usage of one of {len(choices)} choices: completion tokens are estimated"
        return each, sum(each), "choice", note
    chars = [len(c.text) + 1 for c in choices]
    return [round(reported * n / sum(chars)) for n in chars], reported, None, ""


def _is_of_one(choices: Sequence[Choice], reported: int, max_tokens: int) -> bool:
    if reported > max_tokens:
        return False
    least = sum(max_tokens if c.finish_reason == "length" else 1 for c in choices if c.text)
    return least > reported or sum(len(c.text) for c in choices) > _IMPLAUSIBLE_CHARS * max(reported, 1)


def to_rollout(
    choice: Choice, *, response_id: Any, prefix: str, temperature: float | None, usage: Usage, cap: int, want: bool
) -> tuple[Rollout, str]:
    """Make a rollout of ``choice``.

    Returns the rollout and a note: why wanted log-probabilities cannot be used, or "".

    The table has one row per generated token, exactly as the server gave it: an end-of-turn token that it
    reports is the last row (stopping there was a decision too), and a taken token outside the top K is not
    added to its row. A continued prefix has no rows. A table that covers only part of the text, or that is of other
    tokens than the choice, is dropped.
    """
    tokens, table, note = read_table(choice.text, choice.entries, choice.token_ids) if want else (None, None, "")
    name = _clipped(response_id)
    return Rollout(
        text=prefix + choice.text,
        response_id=f"{name}:{choice.index}" if name else None,
        temperature=temperature,
        finish_reason=ending(choice.finish_reason, choice.text, usage.completion_tokens, cap),
        usage=usage,
        prompt_ids=choice.prompt_ids,
        tokens=tokens,
        logprobs=table,
    ), choice.flaw if choice.flaw and want else note
