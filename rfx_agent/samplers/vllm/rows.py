"""Reads ``prompt_logprobs`` of a scored rollout into a top-K table, and trusts none of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rfx_agent.errors import FeatureError
from rfx_agent.evidence.tables import TopLogprobs
from rfx_agent.samplers.openai.rows import read_ids
from rfx_agent.samplers.vllm.pieces import Piece

__all__ = ["by_index", "read_scores"]


def by_index(data: Any) -> dict[int, Mapping[str, Any]]:
    """The choices of a reply by the index that the server gives them; what is no choice is left out."""
    choices = data.get("choices") if isinstance(data, Mapping) else None
    found: dict[int, Mapping[str, Any]] = {}
    for at, choice in enumerate(choices if isinstance(choices, list) else ()):
        if isinstance(choice, Mapping):
            index = choice.get("index")
            found.setdefault(index if type(index) is int else at, choice)
    return found


def read_scores(choice: Mapping[str, Any] | None, piece: Piece, k: int) -> TopLogprobs:
    """The ancestor's table at the positions of ``piece.taken``, the ``k`` most probable in each row, in order.

    vLLM adds the token that is there to its row, whatever its rank; beyond ``k`` it is taken out again, for a table
    holds the most probable ones and no others.

    Raises:
        FeatureError: the rows are missing or too few, of other tokens than were sent, or break a table's contract
            (NaN, positive log-probabilities); names the rollout and the position.
    """
    rows = None if choice is None else choice.get("prompt_logprobs")
    if choice is None or not isinstance(rows, list):
        raise FeatureError("the server returned no prompt_logprobs", rollout=piece.rollout)
    sent, start = piece.ids, len(piece.context)
    echoed = read_ids(choice.get("prompt_token_ids"))
    if echoed is not None and echoed != tuple(sent):
        differ = (i for i, (a, b) in enumerate(zip(echoed, sent, strict=False)) if a != b)
        at = next(differ, min(len(echoed), len(sent)))
        raise FeatureError(
            f"the server read other tokens than were sent, from token {at} of {len(sent)} on",
            rollout=piece.rollout,
            position=max(at - start, 0),
        )
    kept = []
    for position, token in enumerate(piece.taken):
        if start + position >= len(rows) or rows[start + position] is None:
            said = f"log-probabilities stop: {len(piece.taken)} positions were asked, {position} came"
            raise FeatureError(said, rollout=piece.rollout, position=position)
        try:
            kept.append(_row(rows[start + position], token, k))
        except ValueError as error:
            raise FeatureError(str(error), rollout=piece.rollout, position=position) from error
    if len(rows) > len(sent):
        said = f"the server returned {len(rows)} rows for {len(sent)} tokens"
        raise FeatureError(said, rollout=piece.rollout, position=len(piece.taken))
    return TopLogprobs.from_rows(kept, piece.taken, rollout=piece.rollout)


def _row(row: Any, token: int, k: int) -> Sequence[tuple[int, Any]]:
    """One position's entries by rank; raises ``ValueError`` with what is wrong."""
    if not isinstance(row, Mapping) or not all(isinstance(entry, Mapping) for entry in row.values()):
        raise ValueError("a row is not an object of log-probabilities by token id")
    ranks: list[tuple[int, int, Any]] = []
    for key, entry in row.items():
        rank = entry.get("rank")
        if not (isinstance(key, str) and key.isascii() and key.isdigit()) or type(rank) is not int or rank < 1:
            raise ValueError(f"an entry is {str(key)[:20]!r} of rank {rank!r}; a token id and a rank are needed")
        ranks.append((rank, int(key), entry.get("logprob")))
    if token not in {key for _, key, _ in ranks}:
        raise ValueError(f"the row is of another token than the one sent, which was {token}")
    for rank, _, value in ranks:
        # What is left out of the row is looked at all the same: a server that answers so is not to be trusted.
        if rank > k and not (isinstance(value, int | float) and value <= 0.0):
            raise ValueError(f"a log-probability is {value!r}, which is above 0 or no number")
    best = sorted((one for one in ranks if one[0] <= k), key=lambda one: one[0])
    if len(best) < k:
        raise ValueError(f"the row has {len(best)} of the {k} alternatives asked for")
    return [(key, value) for _, key, value in best]
