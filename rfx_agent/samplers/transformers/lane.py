"""One model's share of a decoding batch: its rows, left-padded to one length, and their KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

__all__ = ["Lane", "Prefix"]

_SPARE = 128  # positions that a cache grows by


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a model remembers of a context: keys and values per layer, each of shape (1, heads, L, d)."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers is typed in parts
    """A ``DynamicLayer`` that writes into spare room; the original copies all of itself at every step."""

    held: tuple[torch.Tensor, torch.Tensor]
    room: tuple[torch.Tensor, torch.Tensor] | None = None

    def load(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.room = None
        self._hold(keys, values)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        used = self.held[0].shape[-2]
        end = used + key_states.shape[-2]
        if self.room is None or end > self.room[0].shape[-2]:
            self.room = (pad(self.held[0], (0, 0, 0, _SPARE)), pad(self.held[1], (0, 0, 0, _SPARE)))
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[..., used:end, :] = states
        self._hold(self.room[0][..., :end, :], self.room[1][..., :end, :])
        return self.held

    def _hold(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = self.held = keys, values


class Lane:
    """The rows that one model decodes together.

    Rows are added with their contexts already read, so that what a row begins with does not depend on the batch.
    Shorter rows are padded with zeros on the left, which the attention mask hides.

    Args:
        module: a causal language model of ``transformers`` whose layers all attend to the whole context.
        lock: held while the module runs.
    """

    def __init__(self, module: Any, lock: AbstractContextManager[Any] | None = None) -> None:
        self.module = module
        self.device = next(module.parameters()).device
        self._lock = lock if lock is not None else nullcontext()
        self._layers: list[_Layer] = []
        self._pads: list[int] = []
        self._length = 0

    def __len__(self) -> int:
        return len(self._pads)

    @torch.inference_mode()
    def read(self, ids: Sequence[int], ends: Sequence[int]) -> tuple[Prefix, torch.Tensor]:
        """Read ``ids`` once.

        Args:
            ids: token ids.
            ends: lengths of the contexts that begin ``ids``, each from 1 to ``len(ids)``.

        Returns:
            What is remembered of the whole, and the logits that follow each context, shape (len(ends), V).
        """
        cache = DynamicCache()
        last = torch.tensor([end - 1 for end in ends], device=self.device)
        with self._lock:
            out = self.module(
                input_ids=torch.tensor([list(ids)], device=self.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=last,
            )
        layers: list[Any] = cache.layers
        return Prefix(tuple((layer.keys, layer.values) for layer in layers)), out.logits[0]

    @torch.inference_mode()
    def add(self, contexts: Sequence[tuple[Prefix, int]]) -> None:
        """Append rows, each remembering the first ``end`` tokens of a prefix."""
        length = max(self._length, *(end for _, end in contexts))
        grow = length - self._length
        if not self._layers:
            self._layers = [_Layer() for _ in contexts[0][0].layers]  # type: ignore[no-untyped-call]
        for i, layer in enumerate(self._layers):
            both: list[torch.Tensor] = []
            for j in (0, 1):
                old = [] if not self._pads else [pad(layer.held[j], (0, 0, grow, 0))]
                new = [pad(prefix.layers[i][j][..., :end, :], (0, 0, length - end, 0)) for prefix, end in contexts]
                both.append(torch.cat(old + new))
            layer.load(*both)
        self._pads = [grow + n for n in self._pads] + [length - end for _, end in contexts]
        self._length = length

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Drop every row whose index is not in ``rows``, and the padding that only they needed."""
        if len(rows) == len(self._pads):
            return
        if not rows:
            self._layers, self._pads, self._length = [], [], 0
            return
        pads = [self._pads[row] for row in rows]
        spare = min(pads)
        for layer in self._layers:
            keys, values = layer.held
            layer.load(keys[list(rows), :, spare:], values[list(rows), :, spare:])
        self._pads = [n - spare for n in pads]
        self._length -= spare

    @torch.inference_mode()
    def forward(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to each row; the logits that follow, shape (rows, V)."""
        pads = torch.tensor(self._pads, device=self.device)
        mask = None
        if any(self._pads):
            mask = (torch.arange(self._length + 1, device=self.device) >= pads[:, None]).long()
        with self._lock:
            out = self.module(
                input_ids=torch.tensor(tokens, device=self.device)[:, None],
                attention_mask=mask,
                position_ids=(self._length - pads)[:, None],
                past_key_values=Cache(layers=list(self._layers)),
                use_cache=True,
                logits_to_keep=1,
            )
        self._length += 1
        logits: torch.Tensor = out.logits[:, -1]
        return logits
