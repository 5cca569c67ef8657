"""The top-K table: what a backend returned at each position of one rollout, checked once, then immutable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from rfx_agent.errors import FeatureError

__all__ = ["ABSENT", "Row", "Token", "TopLogprobs"]

ABSENT = -1000.0
"""Log-probability of a token that a row lacks; an entry at or below it (-inf, -9999) counts as lacking."""

Token: TypeAlias = int | str | bytes
Row: TypeAlias = Mapping[Any, float] | Sequence[tuple[Any, float]] | None

_SLACK = 1e-3  # rounding in servers puts log-probabilities a little above 0
_LARGEST_ID = 2**53  # leaves room for the column index when ids are packed into sort keys


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TopLogprobs:
    """Top-K log-probabilities at the L positions of one rollout, at T = 1, with the tokens that were taken.

    The arrays given are copied; those kept are read-only and canonical: an absent entry (padding, -inf, a
    provider sentinel at or below -1000) has id -1 and log-probability -inf. The order inside a row is kept. A
    row may be empty; ``token_features`` says what that means.

    Args:
        ids: token ids, integers of shape (L, K), non-negative wherever the entry is present.
        logprobs: natural log-probabilities, shape (L, K).
        taken: ids of the tokens the rollout consists of, shape (L,).
        rollout: index of the rollout in its batch, for error messages.
        space: what the ids mean: ``"ids"`` of the tokenizer, or ``"tokens"`` for ids derived from token texts
            by ``from_rows``. Tables of different spaces cannot be compared.

    Attributes:
        ragged: whether any entry is absent.
        descending: whether every row is sorted, most probable first.

    Raises:
        FeatureError: NaN, +inf, a log-probability above 1e-3, ids that are not integers, negative or too
            large, an id twice in a row, or shapes that do not fit. Names the rollout, where known, and the
            position.
    """

    ids: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float64]
    taken: npt.NDArray[np.int64]
    rollout: int | None = None
    space: Literal["ids", "tokens"] = "ids"
    ragged: bool = field(init=False)
    descending: bool = field(init=False)

    def __post_init__(self) -> None:
        ids, taken = self._integers(self.ids, "ids"), self._integers(self.taken, "taken")
        try:
            lps = np.array(self.logprobs, dtype=np.float64, order="C")
        except (TypeError, ValueError, OverflowError) as error:
            raise self._error(f"logprobs: {error}; give numbers of shape (L, K)") from error
        if taken.ndim != 1:
            raise self._error(f"taken has shape {taken.shape}; give one token id per position, shape (L,)")
        # Without positions a list cannot show its second axis.
        if len(taken) == 0 and ids.size == lps.size == 0:
            ids, lps = ids.reshape(0, 1), lps.reshape(0, 1)
        if ids.ndim != 2 or ids.shape != lps.shape or len(ids) != len(taken):
            raise self._error(f"ids {ids.shape}, logprobs {lps.shape}, taken {taken.shape}: give (L, K), (L, K), (L,)")
        if ids.shape[1] == 0:
            ids, lps = np.full((len(taken), 1), -1), np.full((len(taken), 1), -np.inf)

        self._refuse(np.isnan(lps), "a log-probability is NaN")
        self._refuse(lps > _SLACK, "a log-probability is above 0; give natural logarithms of probabilities")
        absent = lps <= ABSENT
        ids[absent], lps[absent] = -1, -np.inf
        self._refuse((ids < 0) & ~absent, "a token id is negative")
        self._refuse(ids > _LARGEST_ID, f"a token id is above {_LARGEST_ID}")
        self._refuse(taken[:, None] < 0, "the taken token's id is negative")
        ordered = np.sort(ids, axis=1)
        self._refuse((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0), "a token id is there twice")
        object.__setattr__(self, "ragged", bool(absent.any()))
        object.__setattr__(self, "descending", bool((lps[:, 1:] <= lps[:, :-1]).all()))
        for name, array in (("ids", ids), ("logprobs", lps), ("taken", taken)):
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[Row],
        taken: Iterable[Token],
        *,
        vocabulary: Mapping[Any, int] | None = None,
        rollout: int | None = None,
    ) -> TopLogprobs:
        """A table from ragged rows, as servers give them.

        Token texts become ids in one of two ways, and both give equal ids to equal texts in every table, so
        that a specialist's and its ancestor's can always be compared. With a ``vocabulary`` (the tokenizer's,
        text to id) they are looked up, and the table can also be compared with one made of ids. Without, the
        id is 53 bits of a digest of the text, and the table's ``space`` is ``"tokens"``: comparing it with a
        table of ids is an error. Where a server gives bytes beside the text, give those: several tokens may
        show as the same text "\\ufffd".

        Args:
            rows: per position, pairs (token, log-probability) or a mapping from token to log-probability;
                None for an empty row. Tokens are all ids or all texts (str or bytes).
            taken: the token taken at each position, of the same kind.
            vocabulary: text to id; read only.
            rollout: index of the rollout in its batch, for error messages.

        Raises:
            FeatureError: as the constructor; also for tokens of mixed kinds and texts that the vocabulary
                lacks.
        """
        keys: list[Any] = []
        values: list[Any] = []
        ends: list[int] = []
        for position, row in enumerate(rows):
            try:
                if isinstance(row, Mapping):
                    keys.extend(row.keys())
                    values.extend(row.values())
                elif row is not None and len(row):
                    names, numbers = zip(*row, strict=True)
                    keys.extend(names)
                    values.extend(numbers)
            except (TypeError, ValueError, OverflowError) as error:
                raise FeatureError(
                    f"a row is {type(row).__name__}; give pairs (token, log-probability) or a mapping",
                    rollout=rollout,
                    position=position,
                ) from error
            ends.append(len(keys))

        def where(index: int) -> int:
            return int(np.searchsorted(ends, index, side="right"))

        chosen: list[Any] = list(taken)
        kinds = {type(key) for key in keys} | {type(token) for token in chosen}
        is_text = bool(kinds) and kinds <= {str, bytes}
        if is_text:
            known = _interned({*keys, *chosen}, vocabulary)
            places: tuple[tuple[list[Any], Callable[[int], int]], ...] = ((keys, where), (chosen, int))
            for tokens, place in places:
                lost = next((i for i, token in enumerate(tokens) if token not in known), None)
                if lost is not None:
                    raise FeatureError(
                        f"token {tokens[lost]!r} is not in the vocabulary", rollout=rollout, position=place(lost)
                    )
            keys, chosen = [known[key] for key in keys], [known[token] for token in chosen]
        else:
            _refuse_odd(keys, where, rollout)
            _refuse_odd(chosen, int, rollout)
        try:
            flat = np.array(values, dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            bad = next(i for i, value in enumerate(values) if not _is_number(value))
            raise FeatureError(
                f"a log-probability is {values[bad]!r}; give a number", rollout=rollout, position=where(bad)
            ) from error

        counts = np.diff(np.array(ends, dtype=np.int64), prepend=0)
        width = max(int(counts.max(initial=0)), 1)
        there = np.arange(width) < counts[:, None]
        ids = np.full(there.shape, -1, dtype=np.int64)
        lps = np.full(there.shape, -np.inf)
        ids[there], lps[there] = keys, flat
        space: Literal["ids", "tokens"] = "tokens" if is_text and vocabulary is None else "ids"
        return cls(ids, lps, np.array(chosen, dtype=np.int64), rollout=rollout, space=space)

    def __len__(self) -> int:
        return len(self.taken)

    def __repr__(self) -> str:
        length, width = self.ids.shape
        return f"TopLogprobs(positions={length}, k={width}, space={self.space!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Through the constructor: NumPy's own pickling would give writeable arrays back.
        return TopLogprobs, (self.ids, self.logprobs, self.taken, self.rollout, self.space)

    def _integers(self, given: object, name: str) -> npt.NDArray[np.int64]:
        try:
            array = np.asarray(given)
        except ValueError as error:
            raise self._error(f"{name}: rows of different lengths; use TopLogprobs.from_rows") from error
        if array.dtype.kind not in "iu" and array.size:
            raise self._error(f"{name} has dtype {array.dtype}; give integers")
        if array.dtype == np.uint64 and array.size and array.max() > np.uint64(_LARGEST_ID):
            raise self._error(f"{name}: an id is above {_LARGEST_ID}")
        return np.array(array, dtype=np.int64, order="C")

    def _refuse(self, bad: npt.NDArray[np.bool_], what: str) -> None:
        if bad.any():
            raise self._error(what, position=int(np.flatnonzero(bad.any(axis=1))[0]))

    def _error(self, message: str, position: int | None = None) -> FeatureError:
        return FeatureError(message, rollout=self.rollout, position=position)


def _interned(texts: set[str | bytes], vocabulary: Mapping[Any, int] | None) -> dict[str | bytes, int]:
    if vocabulary is not None:
        return {text: int(vocabulary[text]) for text in texts if text in vocabulary}
    raw = {text: text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass") for text in texts}
    return {text: int.from_bytes(blake2b(data, digest_size=8).digest(), "big") >> 11 for text, data in raw.items()}


def _refuse_odd(tokens: Sequence[Any], where: Callable[[int], int], rollout: int | None) -> None:
    if {type(token) for token in tokens} <= {int} and max(map(abs, tokens), default=0) <= _LARGEST_ID:
        return
    for i, token in enumerate(tokens):
        if isinstance(token, bool) or not isinstance(token, (int, np.integer)):
            raise FeatureError(
                f"a token is {token!r}; give integers, or texts for the rows and the taken tokens alike",
                rollout=rollout,
                position=where(i),
            )
        if not -_LARGEST_ID <= token <= _LARGEST_ID:
            raise FeatureError(f"token id {token} is too large", rollout=rollout, position=where(i))


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False
    return True
