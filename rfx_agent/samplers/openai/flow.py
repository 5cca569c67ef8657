"""How a request for n draws becomes chat completions: written once, as a generator, for the sync and async sides."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rfx_agent.checks import whole
from rfx_agent.errors import SamplerError
from rfx_agent.records import Rollout, SampleRequest, SampleResult, Usage
from rfx_agent.samplers.openai.clients import Ask, Asking, Clients, Reply
from rfx_agent.samplers.openai.reply import (
    MalformedReplyError,
    UsageOf,
    completion_tokens,
    read_choices,
    to_rollout,
)
from rfx_agent.samplers.openai.secrets import redact, without_keys
from rfx_agent.samplers.refusals import REFUSALS, refused_parameter
from rfx_agent.samplers.usage import (
    LOST,
    MOST_READ,
    MOST_UNSEEN,
    believed,
    count,
    estimate_tokens,
    has_pictures,
    hidden,
    of_lost,
    too_low,
)

__all__ = ["Traits", "sample_flow"]

# What the caller goes without where the server refuses a parameter.
_EFFECTS = {
    "logprobs": "sampled without log-probabilities",
    "max_tokens": "max_tokens was sent as max_completion_tokens",
    "temperature": "drawn at the server's own temperature",
    "seed": "drawn without a seed",
}


@dataclass(slots=True)
class Traits:
    """What is known of a server; learned from its answers and kept for its sampler's life.

    Attributes:
        top_logprobs: alternatives to ask per token, or None.
        max_n: most choices to ask in one request, or None.
        usage_of: what its usage counts, or None while unknown.
        refused: parameters that it refused, with its reason.
    """

    top_logprobs: int | None
    max_n: int | None
    usage_of: UsageOf | None
    refused: dict[str, str] = field(default_factory=dict)


def sample_flow(
    request: SampleRequest, *, clients: Clients, model: str, extra_body: Mapping[str, Any], traits: Traits
) -> Asking[SampleResult]:
    """Ask for ``request.n`` draws, once more for those that did not come, and add up what it cost.

    Draws that failed with an error are not asked again: the transport has already retried what it could. A body that
    cannot be read is another matter, for the transport takes it for a success.

    Raises:
        ConfigError: ``request.n`` below 1.
        SamplerError: no draw came back; the last failure, with the calls of all.
    """
    whole(f"{clients.name}: n", request.n, least=1)
    harvest = _Harvest(request, traits, clients)
    parts, again = _split(range(request.n), traits.max_n), False
    short: list[int] = []
    while parts:
        bodies = [_body(request, part, model, extra_body, traits) for part in parts]
        replies = yield [Ask(clients, _chat(body)) for body in bodies]
        refused: list[range] = []
        for part, body, reply in zip(parts, bodies, replies, strict=True):
            harvest.count(part, reply)
            parameter = _refused(body, reply)
            if parameter is None:
                short += harvest.take(part, reply)
                continue
            # A body never carries a refused parameter again, so this ends.
            traits.refused.setdefault(parameter, str(reply.error))
            if parameter == "n":
                traits.max_n = 1
            refused.append(part)
        parts = [smaller for part in refused for smaller in _split(part, traits.max_n)]
        if not parts and not again:
            parts, short, again = [range(i, i + 1) for i in short], [], True
    return harvest.result()


def _chat(body: dict[str, Any]) -> Callable[[Any], Any]:
    return lambda client: client.chat.completions.with_raw_response.create(**body)


def _split(draws: range, most: int | None) -> list[range]:
    size = most or len(draws)
    return [draws[i : i + size] for i in range(0, len(draws), size)]


def _body(
    request: SampleRequest, draws: range, model: str, extra_body: Mapping[str, Any], traits: Traits
) -> dict[str, Any]:
    messages = [dict(message) for message in request.messages]
    if request.prefix:
        messages.append({"role": "assistant", "content": request.prefix})
    body: dict[str, Any] = {"model": model, "messages": messages}
    body["max_completion_tokens" if "max_tokens" in traits.refused else "max_tokens"] = request.max_tokens
    if "temperature" not in traits.refused:
        body["temperature"] = request.temperature
    if _asks_logprobs(request, traits) and "logprobs" not in traits.refused:
        body |= {"logprobs": True, "top_logprobs": traits.top_logprobs}
    if len(draws) > 1:
        body["n"] = len(draws)
    if request.seed is not None and "seed" not in traits.refused:
        # It moves on with the draws: requests with one seed would all return the same text.
        body["seed"] = request.seed + draws.start
    if extra_body:
        body["extra_body"] = dict(extra_body)
    return body


def _asks_logprobs(request: SampleRequest, traits: Traits) -> bool:
    return request.want_logprobs and traits.top_logprobs is not None


def _refused(body: Mapping[str, Any], reply: Reply) -> str | None:
    """The parameter of ``body`` that the server does not take, where its answer names one."""
    error = reply.error
    if error is None:
        return None
    cause = error.__cause__
    under_200 = error.status is None and isinstance(cause, MalformedReplyError)
    if error.status not in REFUSALS and not under_200:
        return None
    said = f"'{getattr(cause, 'param', '')}' {getattr(cause, 'code', '')} {cause} {error}"
    return refused_parameter(body, said, strict=under_200)


class _Harvest:
    """What has come back so far."""

    def __init__(self, request: SampleRequest, traits: Traits, clients: Clients) -> None:
        self.request = request
        self.traits = traits
        self.name = clients.name
        self.secrets = clients.secrets()
        self.asked = json.dumps(request.messages, default=str, ensure_ascii=False)
        self.calls = 0
        self.lost = 0  # draws of tries that the server may have worked on, and that brought nothing
        self.usage = Usage()
        self.rollouts: list[tuple[int, Rollout]] = []
        self.error: SamplerError | None = None
        self.notes: Counter[str] = Counter()
        self.flaws: dict[str, list[int]] = {}  # a note on a draw, and the draws that it is true of

    def count(self, draws: range, reply: Reply) -> None:
        """Count the requests that ``reply`` took; those that were lost as if they had used their whole cap."""
        self.calls += reply.calls
        self.lost += reply.lost * len(draws)
        if reply.lost:
            self.usage += of_lost(self.request, reply.lost, draws=len(draws))
            self.notes[LOST] += reply.lost

    def take(self, draws: range, reply: Reply) -> range:
        """Keep what ``reply`` holds for ``draws``; returns the draws that it is short of."""
        request, traits = self.request, self.traits
        try:
            # More than were asked for are nobody's.
            choices = [] if reply.error else read_choices(reply.data, request.prefix or "")[: max(len(draws), 1)]
        except MalformedReplyError as error:
            reply = Reply.failed(error, calls=reply.calls, known=self.secrets)
            self.count(draws, Reply(None, 0, lost=1))
        if reply.error:
            self.error = reply.error
            return draws if isinstance(reply.error.__cause__, MalformedReplyError) else range(0)
        if not choices:  # the server worked, and gave nothing of it
            self.count(draws, Reply(None, 0, lost=1))
        if len(choices) == 1 < len(draws):  # none at all says nothing of ``n``
            traits.max_n = 1
        reported = reply.data.get("usage") or {}
        claim = _claimed(reported, "prompt_tokens")
        if claim is None:
            prompt = estimate_tokens(self.asked)
            self.notes["the server reported no usage: prompt tokens are estimated from the text"] += 1
        else:
            unseen = MOST_READ if has_pictures(request.messages) else MOST_UNSEEN
            prompt = believed(claim, len(self.asked.encode(errors="replace")), unseen=unseen)
            prompt = claim if prompt == claim else estimate_tokens(self.asked)  # one that cannot be true says nothing
        cap, claim = request.max_tokens * max(len(draws), 1), _claimed(reported, "completion_tokens")
        if claim is not None:
            written = sum(c.bytes for c in choices)
            unseen = hidden(reported.get("completion_tokens_details"), cap=cap)
            claim = believed(claim, written, unseen=unseen, cap=cap)
            if too_low(claim, written // max(len(choices), 1)):  # it may be of one choice
                claim = sum(estimate_tokens(c.text + c.thought) for c in choices)
                self.notes["the server reported too few tokens for its text: they are estimated from it"] += 1
        each, total, of, note = completion_tokens(
            choices, claim, max_tokens=request.max_tokens, usage_of=traits.usage_of
        )
        traits.usage_of = traits.usage_of or of
        self.notes[note] += 1
        self.usage += Usage(prompt, total)
        for draw, choice, tokens in zip(draws, choices, each, strict=False):
            first = draw == draws.start
            rollout, note = to_rollout(
                choice,
                response_id=reply.data.get("id"),
                prefix=request.prefix or "",
                temperature=None if "temperature" in traits.refused else request.temperature,
                usage=Usage(prompt, tokens, reply.calls) if first else Usage(0, tokens),
                cap=request.max_tokens,
                want=_asks_logprobs(request, traits) and "logprobs" not in traits.refused,
            )
            self.rollouts.append((draw, without_keys(self.secrets, rollout)))
            if note:
                self.flaws.setdefault(note, []).append(draw)
        return draws[len(choices) :]

    def result(self) -> SampleResult:
        if not self.rollouts:
            error = self.error or SamplerError(f"{self.name!r} returned no choice, twice", transient=True)
            error.calls, error.lost = self.calls, -(-self.lost // self.request.n)
            raise error
        self.rollouts.sort(key=lambda drawn: drawn[0])
        usage = self.usage + Usage(calls=self.calls)
        return SampleResult(
            tuple(rollout for _, rollout in self.rollouts),
            usage,
            tuple(redact(note, self.secrets) for note in self._all_notes()),
        )

    def _all_notes(self) -> list[str]:
        notes = [
            f"{effect} ({self.traits.refused[parameter]})"
            for parameter, effect in _EFFECTS.items()
            if parameter in self.traits.refused and self._wanted(parameter)
        ]
        notes += [f"{note} (x{count})" if count > 1 else note for note, count in self.notes.items() if note]
        places = {draw: i for i, (draw, _) in enumerate(self.rollouts)}
        for note, draws in self.flaws.items():
            at = ", ".join(str(places[draw]) for draw in sorted(draws))
            notes.append(f"{'rollouts' if len(draws) > 1 else 'rollout'} {at}: {note}")
        if self.request.want_logprobs and self.traits.top_logprobs is None:
            notes.append("log-probabilities are off for this sampler: top_logprobs is None")
        lost = self.request.n - len(self.rollouts)
        if lost:
            notes.append(f"{lost} of {self.request.n} draws did not come: {self.error or 'the server returned fewer'}")
        return notes

    def _wanted(self, parameter: str) -> bool:
        if parameter == "logprobs":
            return _asks_logprobs(self.request, self.traits)
        return parameter != "seed" or self.request.seed is not None


def _claimed(usage: Any, key: str) -> int | None:
    """A count of the server's; None where it gives none, or 0, which no request costs."""
    return (count(usage.get(key)) if isinstance(usage, Mapping) else None) or None
