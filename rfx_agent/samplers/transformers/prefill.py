"""A model's top-K log-probabilities over texts that it did not write: batched prefill within bounded memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any, TypeAlias

import numpy as np

from rfx_agent.checks import whole
from rfx_agent.errors import ConfigError, FeatureError
from rfx_agent.evidence.tables import TopLogprobs
from rfx_agent.samplers.transformers.libs import library
from rfx_agent.samplers.transformers.model import CausalModel

__all__ = ["Scored", "prefill"]

Scored: TypeAlias = tuple[Sequence[int], Sequence[int]]
"""Token ids that are read only, and those whose positions are scored."""

_LOGITS = 1 << 25  # most logits at a time: 128 MiB in float32
_plain: weakref.WeakSet[Any] = weakref.WeakSet()  # modules whose output layer was checked


def prefill(
    model: CausalModel,
    sequences: Sequence[Scored],
    *,
    k: int = 100,
    token_budget: int = 4096,
    names: Sequence[int] | None = None,
) -> tuple[list[TopLogprobs | FeatureError], int]:
    """Log-probabilities at T = 1 of the ``k`` most probable tokens at each position of the continuations.

    Row t is the distribution that predicts ``continuation[t]`` from everything before it. Sequences are computed in
    batches, padded on the right, where causal attention never sees the padding: what is computed beside a sequence
    changes it by rounding only. What all contexts of a batch begin with is computed once.

    Args:
        sequences: (context ids, continuation ids); a continuation needs a context.
        k: entries per row, at least 1; at most the vocabulary's size are returned.
        token_budget: a batch has at most this many tokens, padding included. A sequence that is longer goes alone,
            in pieces of that length.
        names: the sequences' indices for error messages, where they are a part of the rollouts.

    Returns:
        One table per sequence, of shape (len(continuation), k), most probable first, or a ``FeatureError`` in the
        place of one that the model cannot read; and how many tokens the model read, padding left out.

    Raises:
        ConfigError: ``k`` or ``token_budget`` below 1; a model whose logits are not its output layer's.
    """
    whole(f"{model.name}: k", k, least=1)
    whole(f"{model.name}: token_budget", token_budget, least=1)
    names = range(len(sequences)) if names is None else names
    out = [_without_computing(model, name, *sequence) for name, sequence in zip(names, sequences, strict=True)]
    # Like contexts beside each other share their computation; within one, like lengths share their padding.
    todo = [i for i, known in enumerate(out) if known is None]
    todo.sort(key=lambda i: (tuple(sequences[i][0]), len(sequences[i][1])))
    read = 0
    torch = library("torch")
    with model.lock, torch.inference_mode():
        if todo:
            _check_head(model, torch)
        for batch in _batches([(i, len(sequences[i][0]) + len(sequences[i][1])) for i in todo], token_budget):
            tables, tokens = _batch(model, [sequences[i] for i in batch], k, token_budget)
            read += tokens
            for i, (ids, logprobs) in zip(batch, tables, strict=True):
                try:
                    out[i] = TopLogprobs(ids, logprobs, np.asarray(sequences[i][1], dtype=np.int64), rollout=names[i])
                except FeatureError as error:  # weights that overflow in half precision give NaN
                    out[i] = error
    return [table for table in out if table is not None], read


def _without_computing(
    model: CausalModel, i: int, context: Sequence[int], continuation: Sequence[int]
) -> TopLogprobs | FeatureError | None:
    if not len(continuation):
        return TopLogprobs.from_rows([], [], rollout=i)
    if not len(context):
        return FeatureError(f"{model.name}: nothing comes before the first token; give its prompt", rollout=i)
    for what, ids in (("prompt", context), ("rollout", continuation)):
        odd = next((t for t, token in enumerate(ids) if not 0 <= token < model.vocabulary), None)
        if odd is not None:
            return FeatureError(
                f"{model.name}: token id {ids[odd]} of the {what} is outside its vocabulary of {model.vocabulary}",
                rollout=i,
                position=odd if what == "rollout" else None,
            )
    length = len(context) + len(continuation)
    if length > model.context:
        return FeatureError(
            f"{model.name}: {length} tokens are more than the {model.context} that the model can read",
            rollout=i,
            position=max(model.context - len(context), 0),
        )
    return None


def _batches(lengths: Sequence[tuple[int, int]], budget: int) -> Iterator[list[int]]:
    batch: list[int] = []
    longest = 0
    for i, length in lengths:
        if batch and (len(batch) + 1) * max(longest, length) > budget:
            yield batch
            batch, longest = [], 0
        batch.append(i)
        longest = max(longest, length)
    if batch:
        yield batch


def _batch(model: CausalModel, sequences: Sequence[Scored], k: int, budget: int) -> tuple[list[tuple[Any, Any]], int]:
    """(ids, log-probabilities) per sequence, and the number of tokens read."""
    torch = library("torch")
    rows = [[*context, *continuation[:-1]] for context, continuation in sequences]
    # A context's last token is computed with its continuation: its output is the first row.
    shared = _shared([context[:-1] for context, _ in sequences]) if len(rows) > 1 else 0
    cache: Any = None
    if shared:
        first = torch.tensor([rows[0][:shared]], device=model.device)
        for _, _, kept in _forward(model, first, None, budget, keep=True):
            cache = kept
        cache.batch_repeat_interleave(len(rows))
    padded = torch.zeros((len(rows), max(map(len, rows)) - shared), dtype=torch.long)
    for r, row in enumerate(rows):
        padded[r, : len(row) - shared] = torch.tensor(row[shared:])
    parts: list[list[tuple[Any, Any]]] = [[] for _ in rows]
    for start, hidden, _ in _forward(model, padded.to(model.device), cache, max(budget // len(rows), 1)):
        for r, (context, _) in enumerate(sequences):
            begin = max(len(context) - 1 - shared - start, 0)
            end = min(len(rows[r]) - shared - start, hidden.shape[1])
            if begin < end:
                parts[r].append(_rows(model, hidden[r, begin:end], k))
    tables = [(np.concatenate([i for i, _ in part]), np.concatenate([v for _, v in part])) for part in parts]
    return tables, shared + sum(len(row) - shared for row in rows)


def _forward(
    model: CausalModel, ids: Any, cache: Any, width: int, *, keep: bool = False
) -> Iterator[tuple[int, Any, Any]]:
    """(first column, hidden states, cache) of each piece of at most ``width`` columns."""
    # No mask: in a causal model what is padded on the right changes nothing before it.
    keep = keep or cache is not None or ids.shape[1] > width
    for start in range(0, ids.shape[1], width):
        piece = ids[:, start : start + width]
        out = model.module.base_model(input_ids=piece, past_key_values=cache, use_cache=keep)
        cache = out.past_key_values if keep else None
        yield start, out.last_hidden_state, cache


def _check_head(model: CausalModel, torch: Any) -> None:
    """Some architectures scale or cap their logits after the output layer; silence would give wrong tables."""
    if model.module in _plain:
        return
    ids = torch.tensor([[0, 1]], device=model.device)
    whole = model.module(input_ids=ids, use_cache=False).logits
    ours = model.module.get_output_embeddings()(model.module.base_model(input_ids=ids, use_cache=False)[0])
    if whole.shape != ours.shape or not torch.allclose(whole, ours, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise ConfigError(
            f"{model.name}: its logits are not those of its output layer (scaled or capped), which scoring in the "
            "process does not support; score it through a server"
        )
    _plain.add(model.module)


def _rows(model: CausalModel, hidden: Any, k: int) -> tuple[Any, Any]:
    """The top of the softmax over the vocabulary, a bounded number of positions at a time."""
    torch = library("torch")
    head = model.module.get_output_embeddings()
    step = max(_LOGITS // model.vocabulary, 1)
    ids, values = [], []
    for start in range(0, len(hidden), step):
        logits = head(hidden[start : start + step]).float()
        top = torch.topk(logits, min(k, model.vocabulary), dim=-1)
        ids.append(top.indices.cpu().numpy())
        values.append((top.values - torch.logsumexp(logits, dim=-1, keepdim=True)).double().cpu().numpy())
    return np.concatenate(ids), np.concatenate(values)


def _shared(contexts: Sequence[Sequence[int]]) -> int:
    """How many tokens all of them begin with."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*contexts, strict=False)))
