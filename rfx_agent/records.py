"""The records that travel between the parts: frozen, slotted, made of plain values.

Units: tokens are counts, seconds are wall-clock seconds, probabilities are in [0, 1], log-probabilities are natural
and at temperature 1.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic import ConfigDict, InstanceOf

from rfx_agent.checks import instance, shown
from rfx_agent.errors import ConfigError, FeatureError
from rfx_agent.evidence.opinions import Opinion, Rates
from rfx_agent.evidence.tables import TopLogprobs
from rfx_agent.spend import Spend, Usage
from rfx_agent.thinking import after_thinking

__all__ = [
    "ANSWER_KEPT",
    "FEEDBACK_KEPT",
    "REMEDY_NAME",
    "Agreement",
    "Evidence",
    "Kind",
    "Message",
    "Prompt",
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

Evidence: TypeAlias = Literal["two_model", "one_model", "samples"]
Kind: TypeAlias = Literal["cut", "refused", "no_answer", "malformed", "wrong", "unchecked"]
"""How one rollout failed. It is read off how the rollout ended, never off its reasoning."""
Message: TypeAlias = Mapping[str, Any]
"""One chat message in OpenAI's format: ``{"role": ..., "content": ...}``."""
Prompt: TypeAlias = str | Sequence[Message | Any]
"""What a step can be made of: a text, or chat messages in OpenAI's format or LangChain's."""

_LENIENT = ConfigDict(coerce_numbers_to_str=True)  # of what ports give: a server's id may be a number
REMEDY_NAME = re.compile(r"[a-z0-9_]+")
"""What a remedy may be called: ``REMEDY_NAME.fullmatch(name)``."""
ANSWER_KEPT = 200
"""Characters kept of a failed rollout's parsed answer."""
FEEDBACK_KEPT = 4_000
"""Characters kept of a verdict's feedback."""


@dataclass(frozen=True, slots=True)
class Step:
    """One unit of work: what is asked, and what a verifier may compare the answer with.

    Attributes:
        messages: the original prompt, in OpenAI's chat format. Every new sample starts from it, so that the
            cost of an attempt does not grow with the number of failures.
        expected: what the verifier compares with; never shown to a model or a person, never logged.
        id: stable name of the step; by default a digest of the prompt.
        task: what kind of work this is, such as the name of a node; outcomes are pooled by it. "" for none.
    """

    messages: tuple[Message, ...]
    expected: Any = field(default=None, repr=False)
    id: str = ""
    task: str = ""

    def __post_init__(self) -> None:
        messages: Any = self.messages
        if not isinstance(messages, (list, tuple)):
            give = "Step.of(text)" if isinstance(messages, str) else "a tuple of chat messages, or Step.of(prompt)"
            raise ConfigError(f"step: messages is {shown(messages)}; give {give}")
        if not self.messages:
            raise ConfigError("step: messages is empty; give at least one message to sample from")
        for i, message in enumerate(self.messages):
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise ConfigError(f"step: messages[{i}] is {shown(message)}; give a mapping with 'role' and 'content'")
        for name in ("id", "task"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"step: {name} is {shown(getattr(self, name))}; give a text")
        object.__setattr__(self, "messages", tuple(messages))
        if not self.id:
            raw = json.dumps(self.messages, sort_keys=True, default=str).encode()
            object.__setattr__(self, "id", hashlib.sha256(raw).hexdigest()[:12])

    @classmethod
    def of(
        cls,
        prompt: Prompt,
        *,
        system: str | None = None,
        expected: Any = None,
        id: str = "",  # noqa: A002  # the field is called id
        task: str = "",
    ) -> Step:
        """A step from a text or a list of chat messages, OpenAI's or LangChain's; ``system`` is put before them.

        Raises:
            ConfigError: ``prompt`` is neither.

        Example:
            >>> Step.of("3 + 4?", system="Be brief.").messages[0]
            {'role': 'system', 'content': 'Be brief.'}
        """
        messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _openai(prompt)
        if system is not None:
            if not isinstance(system, str):
                raise ConfigError(f"step: system is {shown(system)}; give a text")
            messages.insert(0, {"role": "system", "content": system})
        return cls(tuple(messages), expected=expected, id=id, task=task)

    def check_sendable(self) -> None:
        """Raise ``ConfigError`` for a prompt that no request to a model can hold: with a lone surrogate, or a message
        whose content is neither text nor blocks.

        It is not asked when a step is made: a user's own chain or node may well run on such a text, and pass.
        """
        for i, message in enumerate(self.messages):
            content = message.get("content")
            if content is not None and not isinstance(content, (str, list, tuple)):
                raise ConfigError(
                    f"step: messages[{i}]['content'] is {shown(content)}; give a text or a list of content blocks"
                )
        todo: list[tuple[tuple[Any, ...], Any]] = [((), self.messages)]  # no recursion: it may be nested at any depth
        while todo:
            place, item = todo.pop()
            if isinstance(item, Mapping):
                todo += [((*place, key), inner) for key, inner in item.items()]
            elif isinstance(item, (list, tuple)):
                todo += [((*place, i), inner) for i, inner in enumerate(item)]
            elif isinstance(item, str) and not item.isascii():
                try:
                    item.encode()
                except UnicodeEncodeError as error:
                    where = "".join(f"[{part!r}]" for part in place)
                    raise ConfigError(
                        f"step: messages{where} has a lone surrogate, {item[error.start]!r}, at character "
                        f"{error.start}, which cannot be encoded and so reaches no model; replace it, as in "
                        "text.encode(errors='replace').decode()"
                    ) from None


def _openai(prompt: Any) -> list[Message]:
    """Chat messages in OpenAI's format; those of LangChain, which is loaded where there are any, turned into it."""
    if not isinstance(prompt, Iterable) or isinstance(prompt, (bytes, bytearray, Mapping)):
        give = "a text, or a list of chat messages such as [{'role': 'user', 'content': ...}]"
        raise ConfigError(f"step: the prompt is {shown(prompt)}; give {give}")
    langchain: Any = sys.modules.get("langchain_core.messages")
    if langchain is None:
        return [*prompt]
    return [
        dict(langchain.convert_to_openai_messages([x])[0]) if isinstance(x, langchain.BaseMessage) else x
        for x in prompt
    ]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of one rollout.

    Attributes:
        passed: whether the answer is accepted.
        answer: the answer as the verifier parsed it, in a canonical form where it has one; None if it found none.
        score: the verifier's own score, or None.
        reason: one sentence for a person; may quote model output, so it is untrusted.
        feedback: what a model may be told of the failure; None where there is nothing to tell. Never quotes what the
            answer is compared with.
        weak: true where a pass is no proof (agreement among samples, a judge).
        usage: what the verifier itself spent on models.
        rates: of a weak verdict, how often such a verifier passes right and wrong answers, where that was measured.
        opinions: of a weak verdict that several verifiers gave, each one's; by default the one that it is.
        kind: how the answer failed, where the verifier knows: ``no_answer``, ``malformed``, or ``unchecked`` where it
            came to no verdict. By default a text that was turned down is ``wrong``, and a blank one ``no_answer``.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _LENIENT

    passed: bool
    answer: str | None = None
    score: float | None = None
    reason: str = ""
    feedback: str | None = None
    weak: bool = False
    usage: Usage = Usage()
    kind: Kind | None = None
    rates: Rates | None = None
    opinions: tuple[Opinion, ...] = ()


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled attempt at a step.

    Attributes:
        text: the whole completion, a continued prefix included; untrusted.
        id: name within the failure ("r0", "r1", ...); given by the engine.
        round: index of the attempt that produced it, or None for a candidate that came from outside.
        response_id: the server's id of the response with the choice's index; equal ids are one draw, however
            often a cache repeats it. None where the backend gives none: then each rollout is a draw.
        remedy: name of the remedy that produced it; "retry" for a plain draw.
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
        kind: how it failed; None while it is not known, and of a rollout that passed.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _LENIENT

    text: str
    id: str = ""
    round: int | None = None
    response_id: str | None = None
    remedy: str = "retry"
    temperature: float | None = None
    finish_reason: str | None = None
    usage: Usage = Usage()
    prompt_ids: tuple[int, ...] | None = field(default=None, repr=False, compare=False)
    tokens: tuple[str, ...] | None = field(default=None, repr=False, compare=False)
    logprobs: InstanceOf[TopLogprobs] | None = field(default=None, repr=False, compare=False)
    verdict: Verdict | None = None
    features: Mapping[str, float] | None = None
    junction: int | None = None
    peak: int | None = None
    start: int = 0
    kind: Kind | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ConfigError(f'rollout: text is {shown(self.text)}; give a text, "" where the model said nothing')

    @property
    def said(self) -> str:
        """What follows the thinking in ``text``: what is judged and shown. "" where thinking was never closed."""
        return after_thinking(self.text).text

    @property
    def attempt(self) -> int:
        """Number of the attempt that produced it, from 1; 0 for a candidate that came from outside."""
        return 0 if self.round is None else self.round + 1

    @property
    def passed(self) -> bool:
        """Whether it was judged and accepted."""
        return self.verdict is not None and self.verdict.passed

    @property
    def told(self) -> bool:
        """Whether the verifier said what is wrong with it, in words that a model may read."""
        return self.verdict is not None and bool(str(self.verdict.feedback or "").strip())

    @property
    def answer(self) -> str | None:
        """The answer as the verifier parsed it."""
        return None if self.verdict is None else self.verdict.answer

    @property
    def abridged(self) -> bool:
        """Whether ``compact`` has put a digest in the place of a long answer's end."""
        answer = self.answer or ""
        return len(answer) == ANSWER_KEPT + 13 and answer[ANSWER_KEPT] == "…"

    def compact(self) -> Rollout:
        """What a checkpoint keeps: no top-K table, no tokens, and of a long failed answer enough to compare.

        A parsed answer may be as long as the text it was parsed from; a digest keeps equal ones equal.
        """
        verdict = self.verdict
        if verdict is not None and not verdict.passed and len(verdict.answer or "") > ANSWER_KEPT + 13:
            answer = verdict.answer or ""
            digest = hashlib.sha256(answer.encode(errors="replace")).hexdigest()[:12]
            verdict = replace(verdict, answer=f"{answer[:ANSWER_KEPT]}…{digest}")
        if verdict is not None and len(str(verdict.feedback or "")) > FEEDBACK_KEPT:
            verdict = replace(verdict, feedback=str(verdict.feedback)[:FEEDBACK_KEPT])
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
        purpose: what the completion is for: an answer to the step, or the input of the tool that answers it. A sampler
            that runs the user's own chain, node or agent again sends "tool_input" to the model that drives the tool.
        revision: what ``messages`` say besides the step's own prompt, or None. A sampler that runs the user's own
            chain, node or agent again adds it to that one's input.
    """

    messages: tuple[Message, ...]
    n: int = 1
    temperature: float = 0.6
    max_tokens: int = 512
    seed: int | None = None
    prefix: str | None = None
    want_logprobs: bool = True
    purpose: Literal["answer", "tool_input"] = "answer"
    revision: str | None = None


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

    def __post_init__(self) -> None:
        instance("sample result: usage", self.usage, Usage, "a Usage of the tokens that were used")


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

    tables: tuple[InstanceOf[TopLogprobs] | InstanceOf[FeatureError] | None, ...]
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

    draws: int = 0
    distinct: int = 0
    modal_share: float = 0.0
    entropy: float = 0.0
    modal: str | None = None
