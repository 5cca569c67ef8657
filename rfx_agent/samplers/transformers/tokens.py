"""Text and token ids of one tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["pieces", "stop_ids_of"]

# Tokens that end a turn in the templates of the families in use; a model's own list often has the first only.
_ENDS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
    "</s>",
)


def stop_ids_of(tokenizer: Any, *configured: Any) -> frozenset[int]:
    """Token ids that end a turn: those named in the model's files, and well-known ones among its special tokens."""
    found: set[int] = set()
    for ids in (tokenizer.eos_token_id, *configured):
        found.update([] if ids is None else [ids] if isinstance(ids, int) else ids)
    special = {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    found.update(special[end] for end in _ENDS if end in special)
    return frozenset(found)


def pieces(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> tuple[str, ...]:
    """One text per token, whose concatenation is ``decode(ids)``.

    A character that several tokens spell belongs to the last of them.
    """
    whole = decode(ids)
    # A piece is what a token adds to those before it, from the last place where the text was complete: some
    # tokenizers treat the first token of a text otherwise, so one complete token stays in front.
    out: list[str] = []
    front = ready = 0
    for end in range(1, len(ids) + 1):
        before = decode(ids[front:ready])
        text = decode(ids[front:end])
        if not text.endswith("\ufffd") or end == len(ids):
            out.append(text[len(before) :])
            front, ready = ready, end
        else:
            out.append("")
    if "".join(out) == whole:
        return tuple(out)
    # Slow and always right: what is settled of each longer prefix.
    out, done = [], ""
    for end in range(1, len(ids) + 1):
        text = decode(ids[:end])
        settled = text.rstrip("\ufffd")
        if end == len(ids) or not settled.startswith(done) or not whole.startswith(settled):
            settled = whole if end == len(ids) else done
        out.append(settled[len(done) :])
        done = settled
    return tuple(out)
