"""How a rollout failed, read off how it ended and never off its reasoning."""

from __future__ import annotations

from rfx_agent.records import Kind, Rollout
from rfx_agent.thinking import after_thinking

__all__ = ["REFUSAL", "is_cut", "kind_of", "was_cut", "was_refused"]

REFUSAL = "refusal"
"""The finish reason of a rollout whose text is what the model said in the place of an answer."""

# Finish reasons of OpenAI, Anthropic, Gemini, Cohere, Mistral, Bedrock and Ollama, in lower case.
_CUT = frozenset(
    {
        *("length", "max_tokens", "max_output_tokens", "max_length", "model_length", "incomplete", "token_limit"),
        "model_context_window_exceeded",
    }
)
_REFUSED = frozenset(
    {
        *("content_filter", "content_filtered", REFUSAL, "safety", "recitation", "blocklist", "prohibited_content"),
        *("spii", "image_safety", "guardrail_intervened", "error_toxic"),
    }
)


def is_cut(reason: str | None) -> bool:
    """Whether a finish reason, in the words of any provider, says that the model stopped at a cap.

    Example:
        >>> is_cut("MAX_TOKENS"), is_cut("stop"), is_cut(None)
        (True, False, False)
    """
    return (reason or "").lower() in _CUT


def was_cut(rollout: Rollout) -> bool:
    """Whether the model stopped at a cap and not at the end of its answer, or never closed its thinking."""
    return is_cut(rollout.finish_reason) or after_thinking(rollout.text).open


def was_refused(rollout: Rollout) -> bool:
    """Whether the model or its provider refused to answer."""
    return (rollout.finish_reason or "").lower() in _REFUSED


def kind_of(rollout: Rollout) -> Kind | None:
    """How ``rollout`` failed; None where it passed or was not judged.

    Where no verdict came, nothing else is known. A rollout that was cut off or refused is of that kind whatever its
    verifier says of it. Else the verifier's own word counts (``Verdict.kind``); else a text is wrong, and a blank one
    is no answer.

    Example:
        >>> from rfx_agent.records import Verdict
        >>> kind_of(Rollout("The total is", finish_reason="length", verdict=Verdict(False)))
        'cut'
    """
    verdict = rollout.verdict
    if verdict is None or verdict.passed:
        return None
    if verdict.kind == "unchecked":
        return "unchecked"
    if was_cut(rollout):
        return "cut"
    if was_refused(rollout):
        return "refused"
    if verdict.kind is not None:
        return verdict.kind
    return "wrong" if rollout.said.strip() else "no_answer"
