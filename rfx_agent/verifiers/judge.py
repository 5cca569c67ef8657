"""Verifier by a model that judges: for steps that nothing else can check, as cheaply fooled as any reader."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from rfx_agent.accepted import SamplerLike, sampler_of
from rfx_agent.checks import flags, number, share, shown, whole
from rfx_agent.engine.drive import Call, Flow, drive, drive_async
from rfx_agent.errors import ConfigError, SamplerError
from rfx_agent.records import Message, Rollout, SampleRequest, SampleResult, Step, Usage, Verdict
from rfx_agent.verifiers.answers import canonical, stated_answer
from rfx_agent.verifiers.base import NamedVerifier, aside, clip, shorten
from rfx_agent.verifiers.judge_prompt import Judgement, nonce_of, prompt, read, repair
from rfx_agent.verifiers.rates import RatesLike, loaded_rates

__all__ = ["NO_VERDICT", "JudgeVerifier"]

NO_VERDICT = "the judge gave no verdict"
"""Reason of a verdict where no judging gave one."""

_TEMPLATE = 64  # tokens that a chat template may add to each message's own text
_BLANK = "\0" * 16  # a nonce to measure prompts with: as long as each, and in no cleaned text


class JudgeVerifier(NamedVerifier):
    """Asks a model for a verdict under a rubric. Weak evidence, and its verdicts say so: measure a judge on labelled
    cases (``rfx judge-check``) before anything rests on it.

    The judged text is data to the judge: it stands in a fence with a nonce that its author cannot know, each line
    marked, without control characters and chat tokens, cut to ``max_chars``. A verdict is one JSON object that
    carries the nonce back. A completion that holds none is asked for once more; then that judging is none, which
    never counts as a pass. That makes attacks harder, not impossible.

    A draw passes when the judge's own verdict is a pass and its score reaches ``threshold``; with several draws more
    than half of them must. The score is the mean over the draws with a verdict, in [0, 1].

    Args:
        sampler: the judge; a LangChain chat model or its name will do. Another model than the one that is judged, if
            there is one: a model likes its own work.
        rubric: one text, judged from 0 to 10; or a list of criteria, each judged true or false.
        threshold: least share of the score or of the criteria for a pass, in (0, 1]; by default 0.7 of the score, or
            all of the criteria.
        draws: judgings of each rollout, an odd number. More than one need a ``temperature`` above 0, because copies
            of one judging are one opinion; copies by response id count once.
        temperature: of the judge.
        max_tokens: most tokens of one verdict.
        max_chars: most characters shown of the question, the expected answer and the rollout, each. Together with the
            rubric they must fit the judge's context: a judge that refuses the request cannot be reached.
        seed: of the judge's draws and of the nonces, for replay; None draws both fresh.
        show_expected: whether the judge is shown ``step.expected`` as text; otherwise no model sees it. A judge
            that knows it may repeat it, so its reasoning is then left out of the verdict's reason.
        rates: the shares of right and of wrong answers that it passes, or the path of the file that
            ``rfx judge-check --rates`` wrote for this model, rubric, threshold, ``draws`` and ``show_expected``; None
            where nobody measured them. Then what it passes after a failure is ``unconfirmed``.
        name: what the verifier is called in records.

    Raises:
        ConfigError: a parameter that cannot work.

    Example:
        >>> from rfx_agent.records import Rollout, Step
        >>> from rfx_agent.testing import ScriptedSampler
        >>> judge = JudgeVerifier(ScriptedSampler([], last="fine"), rubric="The answer is polite.")
        >>> judge.verify(Step.of("Say hello."), Rollout("Hello!")).reason
        'the judge gave no verdict'
    """

    def __init__(
        self,
        sampler: SamplerLike,
        *,
        rubric: str | Sequence[str],
        threshold: float | None = None,
        draws: int = 1,
        temperature: float = 0.0,
        max_tokens: int = 256,
        max_chars: int = 8_000,
        seed: int | None = None,
        show_expected: bool = False,
        rates: RatesLike | None = None,
        name: str = "judge",
    ) -> None:
        super().__init__(name)
        texts: list[Any] = list(rubric) if isinstance(rubric, (list, tuple)) else [rubric]
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ConfigError(
                f"JudgeVerifier: rubric is {shown(rubric)}; give a text, or a list of criteria, none blank"
            )
        if threshold is None:
            threshold = 0.7 if isinstance(rubric, str) else 1.0
        if share("JudgeVerifier: threshold", threshold) == 0:
            raise ConfigError(f"JudgeVerifier: threshold is {threshold!r}; give a number above 0, at most 1")
        if not whole("JudgeVerifier: draws", draws, least=1) % 2:
            raise ConfigError(f"JudgeVerifier: draws is {draws}; give an odd number, so that there is a majority")
        if number("JudgeVerifier: temperature", temperature, least=0) == 0 and draws > 1:
            raise ConfigError(
                f"JudgeVerifier: draws is {draws} at temperature 0, all copies; give a temperature above 0"
            )
        self.sampler = sampler_of(sampler, where="JudgeVerifier: sampler")
        self.rubric: str | tuple[str, ...] = rubric if isinstance(rubric, str) else tuple(texts)
        self.threshold = threshold
        self.draws = draws
        self.temperature = temperature
        self.max_tokens = whole("JudgeVerifier: max_tokens", max_tokens, least=16)
        self.max_chars = whole("JudgeVerifier: max_chars", max_chars, least=100)
        self.seed = None if seed is None else whole("JudgeVerifier: seed", seed)
        flags("JudgeVerifier", show_expected=show_expected)
        self.show_expected = show_expected
        model = getattr(self.sampler, "model", None)  # a wrapper has only the name of what it wraps
        self.model = model if isinstance(model, str) else self.sampler.name.removeprefix("local:")
        self.rates = loaded_rates("JudgeVerifier", rates, settings=self.settings, model=self.model)

    def __repr__(self) -> str:
        return f"JudgeVerifier({self.sampler!r}, rubric={clip(str(self.rubric), 60)!r}, name={self.name!r})"

    @property
    def settings(self) -> dict[str, str | float | bool]:
        """What its rates depend on, beside its model: a digest of the rubric, and three parameters."""
        raw = json.dumps(self.rubric).encode()  # a list of one criterion is judged otherwise than a text
        return {
            "rubric": hashlib.sha256(raw).hexdigest()[:16],
            "threshold": float(self.threshold),
            "draws": self.draws,
            "show_expected": self.show_expected,
        }

    def reseeded(self, seed: int | None) -> JudgeVerifier:
        """The same judge with other draws and nonces."""
        judge = copy.copy(self)
        judge.seed = seed
        return judge

    def bound(self, step: Step, rollout: Rollout) -> Usage:
        """The most that one verdict can cost: every draw asked twice, a token at least one byte of the prompt."""
        longest = repair(self._prompt(step, rollout, _BLANK), "x" * 80)
        read_once = sum(_TEMPLATE + len(str(m["content"]).encode(errors="replace")) for m in longest)
        asked = 2 * self.draws
        return Usage(asked * read_once, asked * self.max_tokens, asked)

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Judge ``rollout``; blocks.

        Raises:
            SamplerError: the judge cannot be reached. The engine makes a ``VerifierError`` of it, with the rollout.
        """
        return drive(self._flow(step, rollout))

    async def averify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Do what ``verify`` does, without blocking the event loop."""
        return await drive_async(self._flow(step, rollout))

    def _flow(self, step: Step, rollout: Rollout) -> Flow[Verdict]:
        nonce = nonce_of(step, rollout, self.seed)
        messages = self._prompt(step, rollout, nonce)
        first = yield from self._ask(messages, self.draws, self.seed)
        given, problems = self._read(first, nonce, self.draws)
        (stated,) = yield (Call(self._answer, self._aanswer, (rollout.said,)),)
        answer: str | None = stated.value
        if not problems:
            return self._verdict(answer, given, first.usage)
        later = None if self.seed is None else (self.seed + 7919) % 2**31
        try:
            second = yield from self._ask(repair(messages, problems[0]), len(problems), later)
        except SamplerError as error:  # what the first cost was spent for nothing too
            error.calls, error.lost = error.calls + first.usage.calls, (error.lost or 0) + 1
            raise
        repaired, _ = self._read(second, nonce, len(problems))
        return self._verdict(answer, given + repaired, first.usage + second.usage)

    def _ask(self, messages: tuple[Message, ...], n: int, seed: int | None) -> Flow[SampleResult]:
        request = SampleRequest(messages, n, self.temperature, self.max_tokens, seed, want_logprobs=False)
        (reply,) = yield (Call(self.sampler.sample, self.sampler.asample, (request,)),)
        if reply.error is not None:
            raise reply.error
        result: SampleResult = reply.value
        return result

    def _prompt(self, step: Step, rollout: Rollout, nonce: str) -> tuple[Message, ...]:
        shown = self.show_expected and step.expected is not None
        expected = str(step.expected) if shown else None
        return prompt(step, rollout.said, rubric=self.rubric, expected=expected, nonce=nonce, limit=self.max_chars)

    def _read(self, result: SampleResult, nonce: str, asked: int) -> tuple[list[Judgement], list[str]]:
        """Judgements, and a problem for each of ``asked`` that gave none; copies of one response are one judging."""
        criteria = None if isinstance(self.rubric, str) else len(self.rubric)
        seen: set[str] = set()
        given: list[Judgement] = []
        problems: list[str] = []
        for rollout in result.rollouts[:asked]:
            if rollout.response_id is not None and rollout.response_id in seen:
                problems.append("it was a copy of another one")
                continue
            if rollout.response_id is not None:
                seen.add(rollout.response_id)
            # What begins as a verdict is none that a judge only thought of.
            text = rollout.text if rollout.text.lstrip().startswith(("{", "`")) else rollout.said
            found = read(text, nonce, criteria, cut=rollout.finish_reason == "length")
            if isinstance(found, Judgement):
                given.append(found)
            else:
                problems.append(found)
        problems += ["it was empty"] * (asked - len(given) - len(problems))
        return given, problems

    @staticmethod
    def _answer(said: str) -> str | None:
        stated = stated_answer(said)
        return None if stated is None else canonical(stated)

    async def _aanswer(self, said: str) -> str | None:
        return await aside(len(said), self._answer, said)

    def _verdict(self, answer: str | None, given: list[Judgement], usage: Usage) -> Verdict:
        kept = shorten(answer)
        if not given:
            return Verdict(False, answer=kept, reason=NO_VERDICT, weak=True, usage=usage, kind="unchecked")
        passes = [j.verdict == "pass" and j.share >= self.threshold - 1e-9 for j in given]
        passed = 2 * sum(passes) > self.draws  # of all that were asked for: a judging without a verdict is no pass
        voice = next((j for j, p in zip(given, passes, strict=True) if p is passed), given[0])
        # A judge that knows the expected answer may quote it, and a reason is logged and shown.
        quoted = "" if self.show_expected else "".join(c if c.isprintable() else " " for c in voice.reasoning)
        reason = f"the judge says {voice.verdict}, {voice.share:.2f}" + (f": {clip(quoted, 300)}" if quoted else "")
        if self.draws > 1:
            agreed = "" if sum(passes) in (0, self.draws) else "; the judge disagrees with itself"
            reason = f"{sum(passes)} of {self.draws} judgings passed{agreed}; {reason}"
        score = sum(j.share for j in given) / len(given)
        told = None if passed or not quoted.strip() else clip(quoted, 300)
        return Verdict(passed, answer if passed else kept, score, reason, told, weak=True, usage=usage)
