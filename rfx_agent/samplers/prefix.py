"""Decoding operators through servers that can continue a prefix, without their logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from rfx_agent.accepted import sampler_of
from rfx_agent.checks import number, whole
from rfx_agent.engine.drive import Call, Flow, Reply, drive, drive_async
from rfx_agent.errors import ConfigError, SamplerError
from rfx_agent.evidence.tables import TopLogprobs
from rfx_agent.ports import Sampler, Steerer
from rfx_agent.records import Rollout, SampleRequest, SampleResult, Step, Usage

__all__ = ["PrefixSteerer"]


class PrefixSteerer(Steerer):
    """Steers with nothing but continued prefixes, at the junction that the rollout's evidence found.

    - ``local_temp`` keeps the text up to the junction, draws ``window_tokens`` tokens at the lifted temperature, and
      goes on at the request's.
    - ``sparse_steer``, offered where there is an ancestor, is the junction's branch: it keeps the text up to the peak,
      appends the token that the ancestor finds most probable there, and lets the specialist go on. No mixture is drawn
      from, so it stands for ``sparse_steer`` with alpha 0 and a greedy choice at the peak.

    Args:
        sampler: the specialist; it must continue prefixes.
        ancestor: the reference, which must too.
        lifted_temperature: of ``local_temp``.
        window_tokens: tokens that are drawn at it; the junction of the features is 17 tokens wide.
        name: for records and messages; by default the sampler's.

    Raises:
        ConfigError: a parameter that cannot work; a sampler that continues no prefix or takes no temperature.

    Example:
        >>> from rfx_agent.testing import ScriptedSampler
        >>> PrefixSteerer(ScriptedSampler([], continues_prefix=True)).operators
        ('local_temp',)
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        ancestor: Sampler | None = None,
        lifted_temperature: float = 1.0,
        window_tokens: int = 16,
        name: str | None = None,
    ) -> None:
        self._sampler = _continuing("sampler", sampler)
        self._ancestor = None if ancestor is None else _continuing("ancestor", ancestor)
        self._lifted = number("PrefixSteerer: lifted_temperature", lifted_temperature, above=0)
        self._window = whole("PrefixSteerer: window_tokens", window_tokens, least=1)
        self.name = name or f"{self._sampler.name} steered by prefix"
        self.operators: tuple[str, ...] = ("local_temp",) if ancestor is None else ("local_temp", "sparse_steer")
        # One decode asks at most twice: for the token at the junction, and for the rest.
        self.max_calls = 2 * max(x.max_calls for x in (self._sampler, self._ancestor) if x is not None)

    def __repr__(self) -> str:
        return f"PrefixSteerer({self.name!r}, operators={self.operators})"

    def steer(self, step: Step, operator: str, rollout: Rollout, request: SampleRequest) -> SampleResult:
        """Decode ``step`` again from ``rollout``'s junction or peak, ``request.n`` times; blocks.

        ``request.max_tokens`` bounds what is generated behind the text that is kept.

        Raises:
            SamplerError: the rollout has no junction or peak, the operator is not offered, or nothing came back.
        """
        return drive(self._flow(step, operator, rollout, request))

    async def asteer(self, step: Step, operator: str, rollout: Rollout, request: SampleRequest) -> SampleResult:
        """Do what ``steer`` does, without blocking the event loop."""
        return await drive_async(self._flow(step, operator, rollout, request))

    def _flow(self, step: Step, operator: str, rollout: Rollout, request: SampleRequest) -> Flow[SampleResult]:
        if operator not in self.operators:
            raise SamplerError(f"{self.name}: operator is {operator!r}; give one of {', '.join(self.operators)}")
        if request.n < 1 or request.max_tokens < 1:
            raise SamplerError(
                f"{self.name}: n is {request.n} and max_tokens {request.max_tokens}; give 1 or more each"
            )
        at = rollout.junction if operator == "local_temp" else rollout.peak
        what = "junction" if operator == "local_temp" else "peak"
        if at is None or not 0 <= at <= len(rollout.text):
            raise SamplerError(
                f"{self.name}: the rollout's {what} is {at!r}, and {operator} begins there; steer a rollout whose "
                "log-probabilities were measured"
            )
        ask = replace(request, messages=step.messages, prefix=rollout.text[:at] or None)
        flow = self._local_temp(ask) if operator == "local_temp" else self._branch(ask, rollout)
        return (yield from flow)

    def _local_temp(self, ask: SampleRequest) -> Flow[SampleResult]:
        kept = len(ask.prefix or "")
        hot = replace(ask, temperature=self._lifted, max_tokens=min(self._window, ask.max_tokens))
        (reply,) = yield (_call(self._sampler, hot),)
        first = self._got(reply, 0)
        heads = first.rollouts[: ask.n]
        # By the index of the draw, what is still to be drawn for it.
        open_: dict[int, SampleRequest] = {}
        for i, head in enumerate(heads):
            left = ask.max_tokens - _length(head, hot.max_tokens)
            if left > 0 and not _ended(head, hot.max_tokens):
                seed = None if ask.seed is None else ask.seed + ask.n + i
                # A character that the limit cut in half is no text to continue.
                prefix = head.text.rstrip("\ufffd")
                open_[i] = replace(ask, n=1, max_tokens=left, seed=seed, prefix=prefix)
        replies = yield tuple(_call(self._sampler, more) for more in open_.values())
        made, usage, notes = dict(enumerate(heads)), first.usage, list(first.notes)
        errors: list[SamplerError] = []
        for i, one in zip(open_, replies, strict=True):
            try:
                rest = self._got(one, 0)
            except SamplerError as error:
                errors.append(error)
                tries, read = error.lost or 0, first.usage.prompt_tokens + _length(heads[i], hot.max_tokens)
                usage += Usage(read * tries, open_[i].max_tokens * tries, error.calls)
                notes.append(f"draw {i} was lost after {self._window} tokens: {error}")
                del made[i]
                continue
            usage += rest.usage
            made[i], lost = _joined(heads[i], rest.rollouts[0])
            notes += [*rest.notes, *lost]
        if not made:
            tries = max(1, *[error.lost or 0 for error in errors])
            raise SamplerError(
                f"{self.name}: nothing was drawn to its end: {errors[0]}", calls=usage.calls, lost=tries
            ) from errors[0]
        rollouts = tuple(self._attributed(x, "local_temp", ask, kept, kept, None) for x in made.values())
        return SampleResult(rollouts, usage, tuple(dict.fromkeys(notes)))

    def _branch(self, ask: SampleRequest, rollout: Rollout) -> Flow[SampleResult]:
        assert self._ancestor is not None  # noqa: S101  # the operator would not be offered
        kept = len(ask.prefix or "")
        one = replace(ask, n=1, temperature=0.0, max_tokens=1, want_logprobs=False)
        (reply,) = yield (_call(self._ancestor, one),)
        first = self._got(reply, 0)
        token = first.rollouts[0]
        branch, notes = token.text, list(first.notes)
        if branch == rollout.text[:kept] or ask.max_tokens == 1:
            notes.append(f"{self._ancestor.name} ends the text at the peak" if branch == rollout.text[:kept] else "")
            reason = "stop" if branch == rollout.text[:kept] else "length"
            made = [replace(token, finish_reason=reason, usage=first.usage, tokens=None, logprobs=None)]
            usage, start = first.usage, len(branch)
        else:
            if rollout.text.startswith(branch):
                notes.append(f"{self._ancestor.name} takes the rollout's own token at the peak: {branch[kept:]!r}")
            (reply,) = yield (_call(self._sampler, replace(ask, prefix=branch, max_tokens=ask.max_tokens - 1)),)
            rest = self._got(reply, first.usage.calls)
            usage, start = first.usage + rest.usage, len(branch)
            notes += rest.notes
            made = list(rest.rollouts[: ask.n])
            made[0] = replace(made[0], usage=first.usage + made[0].usage)
        rollouts = tuple(self._attributed(x, "sparse_steer", ask, start, kept, kept) for x in made)
        return SampleResult(rollouts, usage, tuple(note for note in dict.fromkeys(notes) if note))

    def _got(self, reply: Reply, calls: int) -> SampleResult:
        """What came back, at least one rollout; ``calls`` were made before, and their tokens are spent."""
        error = reply.error
        if isinstance(error, SamplerError):
            if calls:
                error.calls, error.lost = error.calls + calls, (error.lost or 0) + 1
            raise error
        if error is not None:
            raise SamplerError(f"{self.name}: {type(error).__name__}: {error}", calls=calls) from error
        result: SampleResult = reply.value
        if not result.rollouts:
            raise SamplerError(f"{self.name}: no completion came back", calls=calls + result.usage.calls)
        return result

    def _attributed(
        self, x: Rollout, operator: str, ask: SampleRequest, start: int, junction: int, peak: int | None
    ) -> Rollout:
        return replace(x, remedy=operator, temperature=ask.temperature, start=start, junction=junction, peak=peak)


def _continuing(label: str, sampler: Sampler) -> Sampler:
    who = f"PrefixSteerer: {label}"
    given = sampler_of(sampler, where=who)
    if not given.continues_prefix:
        raise ConfigError(f"{who} {given.name!r} continues no prefix; give one whose continues_prefix is true")
    if not given.takes_temperature:
        raise ConfigError(f"{who} {given.name!r} takes no temperature; give a sampler that does")
    return given


def _call(sampler: Sampler, request: SampleRequest) -> Call:
    return Call(sampler.sample, sampler.asample, (request,))


def _length(head: Rollout, most: int) -> int:
    """Tokens of the first part, as far as the server says; where it does not, it used all that it was given."""
    return min(most, head.usage.completion_tokens or (len(head.tokens) if head.tokens else most))


def _ended(head: Rollout, most: int) -> bool:
    """Whether the model ended its turn within the first part."""
    if head.finish_reason is not None:
        return head.finish_reason != "length"
    return _length(head, most) < most


def _joined(head: Rollout, rest: Rollout) -> tuple[Rollout, tuple[str, ...]]:
    """One rollout of two parts, with its table where the parts' fit together."""
    both = replace(rest, usage=head.usage + rest.usage, prompt_ids=head.prompt_ids, tokens=None, logprobs=None)
    one, two = head.logprobs, rest.logprobs
    if one is None or two is None or head.tokens is None or rest.tokens is None:
        return both, ()
    whole = (*(head.prompt_ids or ()), *one.taken.tolist())
    moved = head.prompt_ids is not None and rest.prompt_ids is not None and rest.prompt_ids != whole
    tokens = (*head.tokens, *rest.tokens)
    if moved or one.space != two.space or not rest.text.endswith("".join(tokens)):
        return both, ("the table of the two parts was dropped: the server reads the first part as other tokens",)
    width = max(one.ids.shape[1], two.ids.shape[1])
    parts = [(_wide(t.ids, width, -1), _wide(t.logprobs, width, -np.inf)) for t in (one, two)]
    ids, lps = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    table = TopLogprobs(ids, lps, np.concatenate([one.taken, two.taken]), space=one.space)
    return replace(both, tokens=tokens, logprobs=table), ()


def _wide(rows: Any, width: int, fill: float) -> Any:
    return np.pad(rows, ((0, 0), (0, width - rows.shape[1])), constant_values=fill)
