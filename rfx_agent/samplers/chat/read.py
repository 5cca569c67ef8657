"""What a message of a chat model says: its text, how it ended, its tokens, its log-probabilities. All untrusted."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import LLMResult
from pydantic import BaseModel

from rfx_agent.evidence.kinds import is_cut
from rfx_agent.evidence.tables import TopLogprobs
from rfx_agent.fence import one_line
from rfx_agent.records import Message, Rollout, Usage
from rfx_agent.samplers.openai.rows import read_table
from rfx_agent.samplers.usage import MOST_READ, MOST_UNSEEN, believed, count, ending, estimate_tokens, hidden, too_low

__all__ = [
    "PICTURE",
    "Prompt",
    "cached",
    "ended",
    "lost_usage",
    "parts_of",
    "rollout_of",
    "text_in",
    "text_of",
    "usage_of",
    "usage_of_result",
]

Prompt: TypeAlias = Sequence[BaseMessage | Message] | str
"""What a model was asked: messages of LangChain's or in OpenAI's format, or a text."""

_REASONS = ("finish_reason", "stop_reason", "stopReason", "done_reason")  # OpenAI, Anthropic, Bedrock, Ollama
_LONGEST_REASON = 64  # characters
_LONGEST_ID = 200

_TEXTS = ("text", "output_text", "input_text")
_THOUGHTS = ("thinking", "reasoning", "redacted_thinking", "reasoning_content")
_CALLS = ("tool_use", "tool_call", "function_call", "tool_call_chunk", "invalid_tool_call", "input_json_delta")

# Where a provider's count stands where LangChain did not put it into ``usage_metadata``.
_COUNTED = ("token_usage", "usage", "usage_metadata")
_READ = ("input_tokens", "prompt_tokens", "inputTokens", "prompt_token_count", "promptTokenCount", "prompt_eval_count")
_WRITTEN = ("output_tokens", "completion_tokens", "outputTokens", "candidates_token_count", "eval_count")
_TOTAL = ("total_tokens", "totalTokens", "total_token_count")

_TEMPLATE = 64  # tokens that a chat template may add to each message
_TURN, _REPLY = 5, 3  # those that it does add: around a message, and before the answer
PICTURE = 1_000  # tokens of a picture, a sound or a file that nobody counted


def text_in(block: Any) -> str | None:
    """The text of a content block; None where it is none."""
    if isinstance(block, str):
        return block
    if not isinstance(block, Mapping):
        return None
    text, kind = block.get("text"), block.get("type")
    # Bedrock's blocks have no type, and one key.
    return text if isinstance(text, str) and (kind in _TEXTS or (kind is None and len(block) == 1)) else None


def text_of(message: BaseMessage) -> str:
    """What a message says: the text of its blocks, without what the model thought.

    Blocks stand on lines of their own, except where they are parts of one text: pieces of a stream (one ``index``, or
    chunks without any), the parts of a sentence whose sources Anthropic cites, and what comes after a space.

    Example:
        >>> text_of(AIMessage([{"type": "text", "text": "I checked that."}, {"type": "text", "text": "Answer: 4"}]))
        'I checked that.\\nAnswer: 4'
    """
    if isinstance(message.content, str):
        return message.content
    said, before = "", None
    for block in message.content:
        text = text_in(block)
        if not text:
            before = block if text is None else before
            continue
        if said and not said[-1].isspace() and not _same_text(before, block, isinstance(message, AIMessageChunk)):
            said += "\n"
        said += text
        before = block
    return said


def _same_text(one: Any, two: Any, streamed: bool) -> bool:
    """Whether ``two`` goes on with the text of ``one``, the block before it."""
    if isinstance(one, str) and not isinstance(two, str):
        return streamed or "extras" in two  # Gemini: the signature of the text that was streamed before it
    if isinstance(one, str) or isinstance(two, str):
        return streamed
    if text_in(one) is None:
        return False
    if one.get("index") is not None or two.get("index") is not None:
        return bool(one.get("index") == two.get("index"))
    return streamed or bool(one.get("citations") or two.get("citations"))


def ended(message: BaseMessage) -> str | None:
    """Why the model stopped, as its provider says it; ``refusal`` where it refused, None where nobody says."""
    told = message.response_metadata
    if _refusal(message) is not None:
        return "refusal"
    if told.get("status") == "incomplete":  # OpenAI's Responses API
        details = told.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, Mapping) else None
        return one_line(reason, _LONGEST_REASON) if isinstance(reason, str) and reason else "incomplete"
    blocked = told.get("prompt_feedback")
    if isinstance(blocked, Mapping) and blocked.get("block_reason") and not message.content:  # Gemini's
        return "prohibited_content"
    reason = next((told[key] for key in _REASONS if isinstance(told.get(key), str)), None)
    return None if reason is None else one_line(reason, _LONGEST_REASON)


def _refusal(message: BaseMessage) -> str | None:
    """What a model said in the place of an answer; None where it did not refuse."""
    refusal = message.additional_kwargs.get("refusal")
    if refusal:
        return refusal if isinstance(refusal, str) else ""
    for block in message.content if isinstance(message.content, list) else ():
        if isinstance(block, Mapping) and block.get("type") == "refusal":
            return str(block.get("refusal") or "")
    return None


def rollout_of(
    message: BaseMessage,
    temperature: float | None = None,
    response_id: str | None = None,
    *,
    name: str = "",
    prompt: Prompt | None = None,
    cap: int | None = None,
) -> Rollout:
    """What a chat model answered, as a rollout: its tokens, and its top-K table where it gives a usable one.

    Args:
        message: the answer.
        temperature: it was drawn with, where that is known.
        response_id: by default the message's own.
        name: the rollout's id, which the engine gives otherwise.
        prompt: what was asked. Where it is None, prompt tokens that nobody counted are 0.
        cap: most tokens that were asked for, where that is known.
    """
    text = text_of(message) or _refusal(message) or ""
    tokens, table = _table(text, message.response_metadata.get("logprobs"))
    usage = usage_of(message, prompt=prompt, cap=cap)
    return Rollout(
        text=text,
        id=name,
        response_id=response_id or one_line(message.id or "", _LONGEST_ID) or None,
        temperature=temperature,
        finish_reason=ending(ended(message), text, usage.completion_tokens, cap),
        usage=usage,
        tokens=tokens,
        logprobs=table,
    )


def _table(text: str, told: Any) -> tuple[tuple[str, ...] | None, TopLogprobs | None]:
    """The tokens and the table of ``logprobs``: OpenAI's, whose entries stand under ``content``, or Ollama's list."""
    entries = told.get("content") if isinstance(told, Mapping) else told
    if not isinstance(entries, list) or not entries:
        return None, None
    entries = [e.model_dump() if isinstance(e, BaseModel) else e for e in entries]  # Ollama's are objects
    if not all(isinstance(e, Mapping) and isinstance(e.get("token"), str) for e in entries):
        return None, None
    tokens, table, _ = read_table(text, entries, None)
    return tokens, table


def usage_of(message: BaseMessage, *, prompt: Prompt | None = None, cap: int | None = None, besides: str = "") -> Usage:
    """Tokens of one model call. What nobody counted is estimated from the text; what cannot be true is not believed.

    A model writes at most ``cap`` tokens, or a token per byte where that is more. Pictures, audio and files come
    on top, and where no cap is known what it thought unseen. A token for more than 64 bytes of text is too few. A
    model reads at most a token per byte, besides pictures and files. ``besides`` is what was sent and is in no
    message, such as the schemas of tools.

    Example:
        >>> usage_of(AIMessage("It is 42"), prompt="What is 6 times 7?")
        Usage(prompt_tokens=14, completion_tokens=3, calls=1)
    """
    sources = [*_sources(message)]
    read, written, total = (_first(sources, names) for names in (_READ, _WRITTEN, _TOTAL))
    asked = _asked(read, prompt, besides)
    if not written and total is not None and total > asked:
        written = total - asked
    text, unseen = _all_text(message)
    estimate = max(estimate_tokens(text), 1)
    if not written:
        # A text that was cut at its cap has it all, also where the model only thought.
        cut = cap is not None and is_cut(ended(message))
        return Usage(asked, max(estimate, cap or 0) if cut else estimate, 1)
    if cap is None or unseen:
        more = MOST_UNSEEN
    else:
        details = sources[0].get("output_token_details") or sources[0].get("completion_tokens_details")
        more = hidden(details, cap=cap)
    seen = len(text.encode(errors="replace"))
    if too_low(written, seen):
        return Usage(asked, estimate, 1)
    return Usage(asked, believed(written, seen, unseen=more, cap=cap, least=estimate), 1)


def lost_usage(prompt: Prompt, cap: int, tries: int) -> Usage:
    """What is charged for ``tries`` of a call that brought nothing, and that a provider may have worked on.

    Each is charged its prompt, which is estimated, and ``cap`` completion tokens.
    """
    return Usage(_estimate(*parts_of(prompt)) * tries, cap * tries) if tries else Usage()


def cached(response: LLMResult) -> bool:
    """Whether an answer is out of LangChain's cache: it puts a cost of 0 beside the count of the call that was kept."""
    told = [getattr(getattr(x, "message", None), "usage_metadata", None) for xs in response.generations for x in xs]
    return bool(told) and all(isinstance(x, Mapping) and x.get("total_cost") == 0 for x in told)


def usage_of_result(
    response: LLMResult, prompts: Sequence[Prompt], *, cap: int | None = None, besides: str = ""
) -> Usage:
    """Tokens of one call that LangChain tells its callbacks about, over all of its choices.

    An answer out of LangChain's cache has none.

    Args:
        response: what ``on_llm_end`` is given.
        prompts: what was asked, for tokens that nobody counted.
        cap: most tokens of a choice, where that is known.
        besides: what was sent besides each prompt, such as the schemas of tools.
    """
    used = Usage()
    if cached(response):
        return used
    for at, choices in enumerate(response.generations):
        prompt = prompts[at] if at < len(prompts) else None
        messages = [_message(generation, response) for generation in choices]
        if len(messages) > 1 and _told_alike(messages):
            del messages[1:]  # each tells what all of them used
        for message in messages:
            most = None if cap is None else cap * len(choices)
            used += usage_of(message, prompt=prompt, cap=most, besides=besides)
            prompt = None  # it is read once for all choices
    return Usage(used.prompt_tokens, used.completion_tokens, 1)


def _message(generation: Any, response: LLMResult) -> BaseMessage:
    message = getattr(generation, "message", None)
    if isinstance(message, BaseMessage):
        return message
    return AIMessage(generation.text, response_metadata=response.llm_output or {})


def _told_alike(messages: Sequence[BaseMessage]) -> bool:
    """Whether all say that they used the same, as the choices of one response do."""
    told = [getattr(message, "usage_metadata", None) for message in messages]
    return told[0] is not None and all(x == told[0] for x in told)


def _sources(message: BaseMessage) -> Iterator[Mapping[str, Any]]:
    """Where counts may stand, the most trusted first."""
    told = message.response_metadata
    for place in (getattr(message, "usage_metadata", None), *map(told.get, _COUNTED), told):
        if isinstance(place, Mapping):
            yield place


def _first(sources: Sequence[Mapping[str, Any]], names: Sequence[str]) -> int | None:
    """The first number of tokens above 0 under one of ``names``; None where nobody counted."""
    found = (count(place.get(name)) for place in sources for name in names)
    return next((number for number in found if number), None)


def _asked(claim: int | None, prompt: Prompt | None, besides: str) -> int:
    """Tokens read: ``claim`` as far as it can be true, or what ``prompt`` is estimated at."""
    if claim is not None and claim <= MOST_UNSEEN:
        return claim  # chat templates, tools and what they find are read too, and are in no message
    if prompt is None:
        return 0 if claim is None else min(claim, MOST_UNSEEN)
    text, pictures, messages = parts_of(prompt)
    if claim is not None:
        seen = len(text.encode(errors="replace")) + len(besides.encode(errors="replace")) + _TEMPLATE * messages
        if believed(claim, seen, unseen=MOST_READ if pictures else MOST_UNSEEN) == claim:
            return claim  # one that cannot be true says nothing
    return _estimate(text, pictures, messages) + estimate_tokens(besides)


def _estimate(text: str, pictures: int, messages: int) -> int:
    """Tokens of a prompt that no server counted, by its parts (see ``parts_of``)."""
    return estimate_tokens(text) + PICTURE * pictures + _TURN * messages + _REPLY


def parts_of(prompt: Prompt) -> tuple[str, int, int]:
    """The text of a prompt, how many blocks of it are none, and how many messages it has."""
    if isinstance(prompt, str):
        return prompt, 0, 1
    parts: list[str] = []
    pictures = 0
    for message in prompt:
        if isinstance(message, BaseMessage):
            content: Any = message.content
            calls: Any = [*message.tool_calls, *message.invalid_tool_calls] if isinstance(message, AIMessage) else None
        else:
            content, calls = message.get("content"), message.get("tool_calls")
        known = {x.get("id") for x in calls or () if isinstance(x, Mapping)}
        texts = [_text_sent(block, known) for block in ([content] if isinstance(content, str) else content or ())]
        parts += [text for text in texts if text is not None]
        parts += [_json(calls)] if calls else []
        pictures += sum(text is None for text in texts)
    return "\n".join(parts), pictures, len(prompt)


def _text_sent(block: Any, known: Collection[Any]) -> str | None:
    """A block of a prompt as text; None where it is none. A tool call that the message says besides is said once."""
    kind = block.get("type") if isinstance(block, Mapping) else None
    if kind in _CALLS:
        return "" if block.get("id") in known else _json(block)
    return _json(block) if kind in _THOUGHTS or kind == "refusal" else text_in(block)


def _all_text(message: BaseMessage) -> tuple[str, bool]:
    """All that a model wrote and shows: text, thoughts, tool calls; whether there is more that is no text."""
    parts = [text_of(message), _refusal(message) or ""]
    unseen = bool(message.additional_kwargs.get("audio"))
    for block in message.content if isinstance(message.content, list) else ():
        kind = block.get("type") if isinstance(block, Mapping) else None
        if text_in(block) is not None or kind in _CALLS or kind == "refusal":
            continue
        unseen = unseen or kind not in _THOUGHTS
        if isinstance(block, Mapping) and kind in _THOUGHTS:
            parts += [x for key in ("thinking", "reasoning") if isinstance(x := block.get(key), str)]
    thought = message.additional_kwargs.get("reasoning_content")
    parts.append(thought if isinstance(thought, str) else "")
    if isinstance(message, AIMessage) and (calls := [*message.tool_calls, *message.invalid_tool_calls]):
        parts.append(_json([(call.get("name"), call.get("args")) for call in calls]))
    return "".join(parts), unseen


def _json(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)
