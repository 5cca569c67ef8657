"""Finds the token ids of rollouts: their own, or those that the server gives their messages and texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rfx_agent.errors import FeatureError, RfxError, SamplerError, TokenizerMismatch
from rfx_agent.records import Rollout, Step
from rfx_agent.samplers.openai.clients import Ask, Asking
from rfx_agent.samplers.vllm.tokens import NO_SUCH_ROUTE, VLLMTokens, read_text, read_token_ids

__all__ = ["Found", "Piece", "find_pieces", "said", "verify"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A rollout as token ids.

    Attributes:
        rollout: its index in the call.
        context: what the model read before its first row, at least one token.
        taken: the tokens to score, at least one.
    """

    rollout: int
    context: tuple[int, ...]
    taken: tuple[int, ...]

    @property
    def ids(self) -> list[int]:
        """All of it, as it is sent."""
        return [*self.context, *self.taken]


Found: TypeAlias = tuple[list[Piece], dict[int, RfxError]]


def said(rollout: Rollout) -> str:
    """What the model itself wrote."""
    return rollout.text[rollout.start :]


def find_pieces(server: VLLMTokens, step: Step, rollouts: Sequence[Rollout], wanted: Sequence[int]) -> Asking[Found]:
    """The tokens of the ``wanted`` rollouts, and for those that have none to be had the reason.

    A text is encoded only if decoding gives it back; its way of being cut into tokens need not be the model's own.
    """
    broken: dict[int, RfxError] = {}
    prompts: dict[str, Ask] = {}
    texts: dict[int, str] = {}
    for i in wanted:
        rollout = rollouts[i]
        if rollout.logprobs is not None and rollout.logprobs.space != "ids":
            why = "its table names tokens by their texts; draw it with token ids, as vllm_sampler does"
            broken[i] = FeatureError(why, rollout=i)
            continue
        if rollout.logprobs is None:
            texts[i] = said(rollout)
        if rollout.prompt_ids is None:
            prefix = rollout.text[: rollout.start]
            prompts[prefix] = server.prompt(step.messages, prefix)
    contexts = dict(zip(prompts, (yield list(prompts.values())), strict=True))
    encoded = yield from _encode(server, texts, broken)
    pieces = []
    for i in wanted:
        if i in broken:
            continue
        rollout = rollouts[i]
        try:
            context = rollout.prompt_ids
            if context is None:
                context = read_token_ids(contexts[rollout.text[: rollout.start]])
        except SamplerError as error:
            broken[i] = error
            continue
        taken = encoded[i] if rollout.logprobs is None else tuple(rollout.logprobs.taken.tolist())
        if context and taken:
            pieces.append(Piece(i, tuple(context), taken))
        else:
            why = "the model read nothing before its first token, which so has no log-probabilities"
            broken[i] = FeatureError(why, rollout=i, position=0)
    return pieces, broken


def _encode(
    server: VLLMTokens, texts: Mapping[int, str], broken: dict[int, RfxError]
) -> Asking[dict[int, tuple[int, ...]]]:
    ids: dict[int, tuple[int, ...]] = {}
    for i, reply in zip(texts, (yield [server.encode(text) for text in texts.values()]), strict=True):
        try:
            ids[i] = read_token_ids(reply)
        except SamplerError as error:
            broken[i] = error
    for i, reply in zip(tuple(ids), (yield [server.decode(one) for one in ids.values()]), strict=True):
        try:
            back = read_text(reply)
        except SamplerError as error:
            broken[i] = error
            continue
        if back != texts[i]:
            at = next((n for n, (a, b) in enumerate(zip(back, texts[i], strict=False)) if a != b), "its end")
            why = f"its text changes when it is encoded and decoded, from character {at} on; draw it with token ids"
            broken[i] = FeatureError(why, rollout=i)
    return ids


def verify(server: VLLMTokens, pieces: Sequence[Piece], rollouts: Sequence[Rollout], name: str) -> Asking[str]:
    """Without the specialist's tokenizer: whether its ids say to this server what a rollout says; returns a note.

    Raises:
        TokenizerMismatch: they say something else.
        SamplerError: the server could not tell.
    """
    own = [piece for piece in pieces if rollouts[piece.rollout].logprobs is not None]
    if not own:
        return ""
    # The longest text is the least likely to come out right by chance.
    piece = max(own, key=lambda one: len(said(rollouts[one.rollout])))
    (reply,) = yield [server.decode(piece.taken)]
    if reply.error is not None and reply.error.status in NO_SUCH_ROUTE:
        return f"the tokenizers were not compared: {name} has no /detokenize"
    text, rollout = read_text(reply), rollouts[piece.rollout]
    # What was decoded may hold more than the text: the token that ended it, reasoning that the server cut off.
    if said(rollout).strip() in text or "".join(rollout.tokens or ()) == text:
        return ""
    raise TokenizerMismatch(
        f"the ids of rollout {piece.rollout} read {text[:60]!r} to {name!r}, not {said(rollout)[:60]!r}: their "
        "probabilities cannot be compared; give an ancestor with the specialist's tokenizer"
    )
