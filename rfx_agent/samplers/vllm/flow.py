"""How a call of the scorer becomes requests: written once, as a generator, for the sync and async sides."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from rfx_agent._forks import Lock
from rfx_agent.errors import FeatureError, RfxError, SamplerError
from rfx_agent.evidence.tables import TopLogprobs
from rfx_agent.records import Rollout, ScoreResult, Step, Usage
from rfx_agent.samplers.openai.clients import Ask, Asking
from rfx_agent.samplers.usage import LOST
from rfx_agent.samplers.vllm.pieces import Piece, find_pieces, said, verify
from rfx_agent.samplers.vllm.rows import by_index, read_scores
from rfx_agent.samplers.vllm.tokens import Encode, VLLMTokens, compare, post

__all__ = ["Kept", "Scoring", "score_flow"]

Part: TypeAlias = Sequence[tuple[bytes, list[Piece]]]  # by digest, the rollouts that are the same tokens

# The server was there and would not have these tokens: too many of them, or none of its own.
_REFUSED = frozenset({400, 413, 422})


class Kept:
    """The last tables of a scorer, by digest of what was scored: what was paid for once is not asked again."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._tables: OrderedDict[bytes, TopLogprobs] = OrderedDict()
        self._lock = Lock()

    def get(self, digest: bytes) -> TopLogprobs | None:
        with self._lock:
            if digest in self._tables:
                self._tables.move_to_end(digest)
            return self._tables.get(digest)

    def put(self, digest: bytes, table: TopLogprobs) -> None:
        with self._lock:
            self._tables[digest] = table
            while len(self._tables) > self._most:
                self._tables.popitem(last=False)


@dataclass(slots=True)
class Scoring:
    """What a scorer was made with, and what it has learned.

    Attributes:
        server: the ancestor's.
        specialist: the specialist's tokenizer, or None.
        name: the scorer's.
        k: entries per row.
        batch: most rollouts in a request.
        concurrency: most requests at once.
        kept: tables that it has already.
        agreed: whether the two tokenizers were compared and are the same.
    """

    server: VLLMTokens
    specialist: VLLMTokens | Encode | None
    name: str
    k: int
    batch: int
    concurrency: int
    kept: Kept
    agreed: bool = False

    def request(self, pieces: Sequence[Piece]) -> Ask:
        """Score ``pieces``. One token each is generated, because none cannot be asked for, and thrown away."""
        body = {
            "model": self.server.model,
            "prompt": [piece.ids for piece in pieces],
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": self.k,
            "return_token_ids": True,
        }
        return Ask(self.server.clients, post("/completions", body))

    def digest(self, piece: Piece) -> bytes:
        """The same for the same tokens, split at the same place."""
        raw = np.array([self.k, len(piece.context), *piece.ids], dtype=np.int64).tobytes()
        return hashlib.sha256(raw).digest()


def score_flow(scoring: Scoring, step: Step, rollouts: Sequence[Rollout]) -> Asking[ScoreResult]:
    """Compare the tokenizers, find the rollouts' tokens, score those that are not known, put the tables together.

    Raises:
        TokenizerMismatch: before anything is scored.
        SamplerError: not one rollout could be scored, and it was the server's fault.
    """
    run = _Run(scoring, rollouts)
    try:
        yield from run.counted(run.steps(step))
    except SamplerError as error:
        error.calls, error.lost = run.usage.calls, run.tries
        raise
    return ScoreResult(tuple(map(run.tables.get, range(len(rollouts)))), run.usage, tuple(run.notes))


@dataclass(slots=True)
class _Run:
    """One call of the scorer."""

    scoring: Scoring
    rollouts: Sequence[Rollout]
    tables: dict[int, TopLogprobs | FeatureError] = field(default_factory=dict)
    lost: dict[int, SamplerError] = field(default_factory=dict)
    usage: Usage = Usage()
    notes: list[str] = field(default_factory=list)
    tries: int = 0  # that were lost, of the request that lost most

    def counted(self, flow: Asking[None]) -> Asking[None]:
        """``flow``, with its requests counted and none sent where it asks for none."""
        try:
            asks = next(flow)
            while True:
                replies = (yield asks) if asks else ()
                self.usage += Usage(calls=sum(reply.calls for reply in replies))
                asks = flow.send(replies)
        except StopIteration:
            return

    def steps(self, step: Step) -> Asking[None]:
        scoring = self.scoring
        wanted = [i for i, r in enumerate(self.rollouts) if (said(r) if r.logprobs is None else len(r.logprobs))]
        if not wanted:
            return
        if scoring.specialist is not None and not scoring.agreed:
            yield from compare(scoring.server, scoring.specialist, scoring.name)
            scoring.agreed = True
        pieces, broken = yield from find_pieces(scoring.server, step, self.rollouts, wanted)
        for i, why in broken.items():
            self._lose(i, why)
        fresh: dict[bytes, list[Piece]] = {}
        for piece in pieces:
            digest = scoring.digest(piece)
            table = scoring.kept.get(digest)
            if table is None:
                fresh.setdefault(digest, []).append(piece)
            else:
                self.tables[piece.rollout] = _of(table, piece)
        if scoring.specialist is None:
            note = yield from verify(
                scoring.server, [group[0] for group in fresh.values()], self.rollouts, scoring.name
            )
            self.notes += [note] if note else []
        yield from self._score(list(fresh.items()))
        if len(self.lost) == len(wanted):
            raise self.lost[wanted[-1]]

    def _score(self, groups: Part) -> Asking[None]:
        """Score what is not known yet, in waves: what one wave gave is kept whatever becomes of the next."""
        scoring = self.scoring
        queue = deque(groups[i : i + scoring.batch] for i in range(0, len(groups), scoring.batch))
        while queue:
            wave = [queue.popleft() for _ in range(min(scoring.concurrency, len(queue)))]
            replies = yield [scoring.request([group[0] for _, group in part]) for part in wave]
            for part, reply in zip(wave, replies, strict=True):
                if reply.lost:
                    read, written = _sent(part)
                    self.usage += Usage(read * reply.lost, written * reply.lost)
                    self.tries = max(self.tries, reply.lost)
                    self.notes += [LOST] if LOST not in self.notes else []
                if reply.error is None:
                    self._take(part, reply.data)
                elif reply.error.status in _REFUSED and len(part) > 1:
                    queue.extend([one] for one in part)  # one that is refused costs the others nothing
                else:
                    self._lose_all(part, reply.error)
            if replies[-1].error is not None and not any(r.error is None or r.error.status for r in replies):
                for part in queue:  # nobody is there
                    self._lose_all(part, replies[-1].error)
                return

    def _take(self, part: Part, data: Any) -> None:
        choices = by_index(data)
        for at, (digest, group) in enumerate(part):
            for piece in group:
                try:
                    table = read_scores(choices.get(at), piece, self.scoring.k)
                except FeatureError as error:
                    self.tables[piece.rollout] = error
                else:
                    self.tables[piece.rollout] = table
                    self.scoring.kept.put(digest, table)
        counts = data.get("usage") if isinstance(data, Mapping) else None
        read, written = _sent(part)
        self.usage += Usage(_count(counts, "prompt_tokens", read), _count(counts, "completion_tokens", written))

    def _lose_all(self, part: Part, error: SamplerError) -> None:
        for _, group in part:
            for piece in group:
                self._lose(piece.rollout, error)

    def _lose(self, i: int, why: RfxError) -> None:
        if isinstance(why, FeatureError):
            self.tables[i] = why
            return
        refused = isinstance(why, SamplerError) and why.status in _REFUSED
        if isinstance(why, SamplerError) and not refused:
            self.lost[i] = why
        value = FeatureError(f"{'the server refused it' if refused else 'it was not scored'}: {why}", rollout=i)
        value.__cause__ = why
        self.tables[i] = value


def _of(table: TopLogprobs, piece: Piece) -> TopLogprobs:
    """The table, under the index that the rollout has in this call."""
    return TopLogprobs(table.ids, table.logprobs, table.taken, rollout=piece.rollout)


def _sent(part: Part) -> tuple[int, int]:
    """Tokens that a request has the server read and write: they are known, because ids were sent."""
    return sum(len(group[0].ids) for _, group in part), len(part)


def _count(counts: Any, key: str, sent: int) -> int:
    """What the server counted, as far as it can be true."""
    value = counts.get(key) if isinstance(counts, Mapping) else None
    return value if type(value) is int and 0 <= value <= sent else sent
