"""Whether two models mean the same by a token id."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rfx_agent.errors import TokenizerMismatch
from rfx_agent.samplers.transformers.model import CausalModel

__all__ = ["check_tokenizers"]

_PROBES = (
    "The quick brown fox, it's 3.14159 or 1,234,567 (about 50%)!",
    "  leading and   inner spaces\t\ttabs\r\n\n\ntrailing  ",
    "def f(x: int) -> str:\n    return f'{x ** 2:>10}' if x != 0 else \"<none>\"  # ok\n",
    "Straße, naïve, Ελληνικά, Русский, العربية, हिन्दी, 中文字符, 日本語, 한국어, e\u0301",
    "\\frac{1}{2} ≠ √2 ∑ → ∞ 🙂👩‍🔬 \u200b\u00a0",
    "0123456789 007 1e-9 0xFF 12:34:56",
    "<|im_start|>user\n<|im_end|><|endoftext|></s><s>[INST]<tool_call>",
)


def check_tokenizers(specialist: CausalModel, ancestor: CausalModel) -> None:
    """Refuse two models whose token ids do not mean the same.

    Every id of the specialist must be the same token for the ancestor, and text must be encoded the same. Embeddings
    may be padded to different sizes, for an id without a token cannot occur; and the ancestor may have special tokens
    of its own, for the specialist never wrote one.

    Raises:
        TokenizerMismatch: says which token, id or text differs.
    """
    where = f"{specialist.name!r} and {ancestor.name!r}"
    remedy = "give an ancestor with the specialist's tokenizer"
    first, second = (
        {i: text for text, i in tokenizer.get_vocab().items()}
        for tokenizer in (specialist.tokenizer, ancestor.tokenizer)
    )
    for i in sorted(first.keys() & second.keys()):
        if first[i] != second[i]:
            raise TokenizerMismatch(f"{where}: token {i} is {first[i]!r} in one, {second[i]!r} in the other; {remedy}")
    special = {i for i, token in ancestor.tokenizer.added_tokens_decoder.items() if token.special}
    for mine, lone, name in (
        (first, first.keys() - second.keys(), specialist.name),
        (second, second.keys() - first.keys() - special, ancestor.name),
    ):
        if lone:
            i = min(lone)
            raise TokenizerMismatch(
                f"{where}: their vocabularies have {len(first)} and {len(second)} tokens, and only {name!r} has "
                f"token {i}, {mine[i]!r}; {remedy}"
            )
    endings = [model.tokenizer.added_tokens_decoder for model in (specialist, ancestor)]
    for i in sorted(first.keys() & second.keys()):
        kinds = [None if i not in added else added[i].special for added in endings]
        if kinds[0] != kinds[1]:
            raise TokenizerMismatch(f"{where}: token {i}, {first[i]!r}, is special in one of them only; {remedy}")
    for probe in _probes(specialist.tokenizer, sorted(first)):
        a, b = specialist.encode(probe), ancestor.encode(probe)
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            text = specialist.decode(a[max(at - 2, 0) : at + 4])
            raise TokenizerMismatch(
                f"{where} encode text differently, such as {text!r}: {a[at : at + 4]} and {b[at : at + 4]}; {remedy}"
            )


def _probes(tokenizer: Any, ids: list[int]) -> Iterator[str]:
    """Texts that tell tokenizers apart: hard ones, then the spelling of every token, so that each merge counts."""
    yield from _PROBES
    for start in range(0, len(ids), 2000):
        yield "\n".join(tokenizer.batch_decode([[i] for i in ids[start : start + 2000]]))
