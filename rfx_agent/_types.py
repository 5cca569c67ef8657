"""The records that travel between the parts: frozen, slotted, made of plain values.

Units: tokens are counts, seconds are wall-clock seconds, probabilities are in [0, 1], log-probabilities are natural
and at temperature 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rfx_agent._errors import ConfigError

if TYPE_CHECKING:
    from rfx_agent._errors import FeatureError
    from rfx_agent.numerics.toplogprobs import TopLogprobs

__all__ = [
    "ANSWER_KEPT",
    "Agreement",
    "Evidence",
    "Message",
    "Operator",
    "Rollout",
    "SampleRequest",
    "SampleResult",
    "ScoreResult",
    "Spend",
    "Step",
    "ToolResult",
    "Usage",
    "Verdict",
]

Operator: TypeAlias = Literal[
    "retry", "local_temp", "sparse_steer", "sparse_steer_random", "dense_steer", "tool", "human"
]
Evidence: TypeAlias = Literal["two_model", "one_model", "samples"]
Message: TypeAlias = Mapping[str, Any]
"""One chat message in OpenAI's format: ``{"role": ..., "content": ...}``."""


ANSWER_KEPT = 200
"""Characters kept of a failed rollout's parsed answer."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a model call really cost, as counted from what came back.

    Attributes:
        prompt_tokens: tokens read.
        completion_tokens: tokens written, over all choices.
        calls: requests that reached the server, transport retries included.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    calls: int = 0

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.calls + other.calls,
        )


@dataclass(frozen=True, slots=True)
class Spend:
    """An amount of everything that a budget caps; also the price of one action.

    Attributes:
        attempts: candidate answers produced to be judged (rollouts, tool results, steered decodes).
        samples: completions asked of a model, programs for the tool included.
        tokens: tokens read and written.
        usd: money, in US dollars.
        seconds: wall-clock seconds of work; a human's waiting time is not work.
        tool_seconds: seconds inside tools.
        escalations: cases put before a person.
        calls: requests that reached a server, transport retries included.
        asked: requests that the engine asked for; with ``calls`` the amplification. Reported, never capped.
    """

    attempts: int = 0
    samples: int = 0
    tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0
    tool_seconds: float = 0.0
    escalations: int = 0
    calls: int = 0
    asked: int = 0

    def __add__(self, other: Spend) -> Spend:
        return Spend(
            self.attempts + other.attempts,
            self.samples + other.samples,
            self.tokens + other.tokens,
            self.usd + other.usd,
            self.seconds + other.seconds,
            self.tool_seconds + other.tool_seconds,
            self.escalations + other.escalations,
            self.calls + other.calls,
            self.asked + other.asked,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One unit of work: what is asked, and what a verifier may compare the answer with.

    Attributes:
        messages: the original prompt, in OpenAI's chat format. Every new sample starts from it, so that the
            cost of an attempt does not grow with the number of failures.
        reference: for the verifier only; never shown to a model or a person, never logged.
        id: stable name of the step; by default a digest of the prompt.
    """

    messages: tuple[Message, ...]
    reference: Any = field(default=None, repr=False)
    id: str = ""

    def __post_init__(self) -> None:
        if not self.messages:
            raise ConfigError("step: messages is empty; give at least one message to sample from")
        for i, message in enumerate(self.messages):
            if not isinstance(message, Mapping) or "role" not in message:
                raise ConfigError(f"step: messages[{i}] is {message!r}; give a mapping with 'role' and 'content'")
        if not self.id:
            raw = json.dumps(self.messages, sort_keys=True, default=str).encode()
            object.__setattr__(self, "id", hashlib.sha256(raw).hexdigest()[:12])

    @classmethod
    def of(
        cls,
        prompt: str | Sequence[Message],
        *,
        system: str | None = None,
        reference: Any = None,
        id: str = "",  # noqa: A002  # the field is called id
    ) -> Step:
        """A step from a prompt string or a list of chat messages, with an optional system message first."""
        messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        return cls(tuple(messages), reference=reference, id=id)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of one rollout.

    Attributes:
        passed: whether the answer is accepted.
        answer: the answer as the verifier parsed it, in a canonical form where it has one; None if it found none.
        score: the verifier's own score, or None.
        reason: one sentence; may quote model output, so it is untrusted.
        weak: true where a pass is no proof (agreement among samples, a judge).
        usage: what the verifier itself spent on models.
    """

    passed: bool
    answer: str | None = None
    score: float | None = None
    reason: str = ""
    weak: bool = False
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled attempt at a step.

    Attributes:
        text: the whole completion, a continued prefix included; untrusted.
        id: name within the failure ("r0", "r1", ...); given by the engine.
        round: index of the attempt that produced it, or None for a candidate that came from outside.
        response_id: the server's id of the response with the choice's index; equal ids are one draw, however
            often a cache repeats it. None where the backend gives none: then each rollout is a draw.
        operator: what produced it.
        temperature: decode temperature.
        finish_reason: the server's ("stop", "length", ...), or None.
        usage: this rollout's share of the call. The prompt of a call with several choices is counted once, on
            the first of them.
        prompt_ids: token ids of everything that the model read before the first row of ``logprobs``, a continued
            prefix included, where the backend gives them; not kept in checkpoints.
        tokens: text of each token, where the backend gives it; not kept in checkpoints.
        logprobs: top-K table, where the backend gives it; not kept in checkpoints.
        verdict: what the verifier said, once it was asked.
        features: this rollout's trajectory features by name, once they were computed.
        junction: offset in characters of ``text`` where the junction's window begins, where it is known.
        peak: offset likewise of the token at which the demotion pressure peaks.
        start: characters at the beginning of ``text`` that were given to the model to continue.
    """

    text: str
    id: str = ""
    round: int | None = None
    response_id: str | None = None
    operator: Operator = "retry"
    temperature: float | None = None
    finish_reason: str | None = None
    usage: Usage = Usage()
    prompt_ids: tuple[int, ...] | None = field(default=None, repr=False, compare=False)
    tokens: tuple[str, ...] | None = field(default=None, repr=False, compare=False)
    logprobs: TopLogprobs | None = field(default=None, repr=False, compare=False)
    verdict: Verdict | None = None
    features: Mapping[str, float] | None = None
    junction: int | None = None
    peak: int | None = None
    start: int = 0

    @property
    def passed(self) -> bool:
        """Whether it was judged and accepted."""
        return self.verdict is not None and self.verdict.passed

    @property
    def answer(self) -> str | None:
        """The answer as the verifier parsed it."""
        return None if self.verdict is None else self.verdict.answer

    def compact(self) -> Rollout:
        """What a checkpoint keeps: no top-K table, no tokens, and of a long failed answer enough to compare.

        A parsed answer may be as long as the text it was parsed from; a digest keeps equal ones equal.
        """
        verdict = self.verdict
        if verdict is not None and not verdict.passed and len(verdict.answer or "") > ANSWER_KEPT + 13:
            answer = verdict.answer or ""
            digest = hashlib.sha256(answer.encode(errors="replace")).hexdigest()[:12]
            verdict = replace(verdict, answer=f"{answer[:ANSWER_KEPT]}…{digest}")
        return replace(self, prompt_ids=None, tokens=None, logprobs=None, verdict=verdict)


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """What to ask a model for.

    Attributes:
        messages: the prompt.
        n: completions wanted, at least 1.
        temperature: decode temperature.
        max_tokens: most tokens per completion.
        seed: for backends that take one; draws of one request differ all the same.
        prefix: the assistant's text to continue, for samplers whose ``continues_prefix`` is true.
        want_logprobs: whether top-K log-probabilities are of use to the caller.
    """

    messages: tuple[Message, ...]
    n: int = 1
    temperature: float = 0.6
    max_tokens: int = 512
    seed: int | None = None
    prefix: str | None = None
    want_logprobs: bool = True


@dataclass(frozen=True, slots=True)
class SampleResult:
    """What came back: never more rollouts than asked for, sometimes fewer.

    Attributes:
        rollouts: the completions.
        usage: everything that was spent, discarded or short responses included.
        notes: what the caller should know, such as log-probabilities that were asked for and did not come.
    """

    rollouts: tuple[Rollout, ...]
    usage: Usage
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """What another model says of rollouts that it did not write.

    Attributes:
        tables: one per rollout given: its top-K log-probabilities at the rollout's positions; a ``FeatureError``
            that names the rollout and the position where what came back breaks its contract; None where that
            rollout has no positions to score. A rollout that cannot be scored costs the others nothing.
        usage: everything that was spent.
        notes: what the caller should know.
    """

    tables: tuple[TopLogprobs | FeatureError | None, ...]
    usage: Usage = Usage()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What one run of a tool gave.

    Attributes:
        answer: its answer as text, or None if it failed or gave none.
        output: what it printed, cut at the tool's limit; untrusted.
        error: kind and message of the failure, or None. A failing program is data, not an exception.
        seconds: time inside the tool.
    """

    answer: str | None
    output: str = ""
    error: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the parsed answers of a set of draws are spread.

    Attributes:
        draws: distinct draws (copies of one response counted once).
        distinct: different answers among them.
        modal_share: share of the most frequent answer, in [0, 1].
        entropy: Shannon entropy of the answers over ``log(draws)``, in [0, 1]; 0 for fewer than two draws.
        modal: the most frequent answer (the first seen on a tie), or None when no draw had an answer.
    """

    draws: int
    distinct: int
    modal_share: float
    entropy: float
    modal: str | None = None
