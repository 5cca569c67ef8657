"""Verifier by a model that judges: for steps that nothing else can check, as cheaply fooled as any reader."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from rfx_agent._errors import ConfigError
from rfx_agent._types import Message, Rollout, SampleRequest, SampleResult, Step, Usage, Verdict
from rfx_agent.ports import Sampler
from rfx_agent.verifiers._answers import bare_answer, canonical, extract_answer
from rfx_agent.verifiers._base import clip, shorten
from rfx_agent.verifiers._judge_prompt import Judgement, nonce_of, prompt, read, repair

__all__ = ["NO_VERDICT", "JudgeVerifier"]

NO_VERDICT = "the judge gave no verdict"
"""Reason of a verdict where no judging gave one."""

_TEMPLATE = 64  # tokens that a chat template may add to each message's own text
_BLANK = "\0" * 16  # a nonce to measure prompts with: as long as each, and in no cleaned text


class JudgeVerifier:
    """Asks a model for a verdict under a rubric. Weak evidence, and its verdicts say so: measure a judge on labelled
    cases (``rfx judge-check``) before anything rests on it.

    The judged text is data to the judge: it stands in a fence with a nonce that its author cannot know, each line
    marked, without control characters and chat tokens, cut to ``max_chars``. A verdict is one JSON object that
    carries the nonce back. A completion that holds none is asked for once more; then that judging is none, which
    never counts as a pass. That makes attacks harder, not impossible.

    A draw passes when the judge's own verdict is a pass and its score reaches ``threshold``; with several draws more
    than half of them must. The score is the mean over the draws with a verdict, in [0, 1].

    Args:
        sampler: the judge. Another model than the one that is judged, if there is one: a model likes its own work.
        rubric: one text, judged from 0 to 10; or a list of criteria, each judged true or false.
        threshold: least share of the score or of the criteria for a pass, in (0, 1]; by default 0.7 of the score, or
            all of the criteria.
        draws: judgings of each rollout, an odd number. More than one need a ``temperature`` above 0, because copies
            of one judging are one opinion; copies by response id count once.
        temperature: of the judge.
        max_tokens: most tokens of one verdict.
        max_chars: most characters shown of the question, the reference and the rollout, each. Together with the
            rubric they must fit the judge's context: a judge that refuses the request cannot be reached.
        seed: of the judge's draws and of the nonces, for replay; None draws both fresh.
        show_reference: whether the judge is shown ``step.reference`` as text; otherwise no model sees it. A judge
            that knows it may repeat it, so its reasoning is then left out of the verdict's reason.
        name: what the verifier is called in records.

    Raises:
        ConfigError: a parameter that cannot work.
    """

    needs_peers = False

    def __init__(
        self,
        sampler: Sampler,
        *,
        rubric: str | Sequence[str],
        threshold: float | None = None,
        draws: int = 1,
        temperature: float = 0.0,
        max_tokens: int = 256,
        max_chars: int = 8_000,
        seed: int | None = None,
        show_reference: bool = False,
        name: str = "judge",
    ) -> None:
        if isinstance(sampler, type) or not isinstance(sampler, Sampler):
            raise ConfigError(f"JudgeVerifier: sampler is {sampler!r}; give an instance with the members of Sampler")
        texts = [rubric] if isinstance(rubric, str) else list(rubric)
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ConfigError(f"JudgeVerifier: rubric is {rubric!r}; give a text, or a list of criteria, none blank")
        if threshold is None:
            threshold = 0.7 if isinstance(rubric, str) else 1.0
        if not 0 < threshold <= 1:
            raise ConfigError(f"JudgeVerifier: threshold is {threshold!r}; give a number above 0, at most 1")
        for label, value, least in (("draws", draws, 1), ("max_tokens", max_tokens, 16), ("max_chars", max_chars, 100)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"JudgeVerifier: {label} is {value!r}; give a whole number of {least} or more")
        if not draws % 2:
            raise ConfigError(f"JudgeVerifier: draws is {draws}; give an odd number, so that there is a majority")
        if not 0 <= temperature < float("inf"):
            raise ConfigError(f"JudgeVerifier: temperature is {temperature!r}; give a number of at least 0")
        if draws > 1 and temperature == 0:
            raise ConfigError(
                f"JudgeVerifier: draws is {draws} at temperature 0, all copies; give a temperature above 0"
            )
        if not name:
            raise ConfigError("JudgeVerifier: name is ''; give a name for records and messages")
        self.sampler = sampler
        self.rubric: str | tuple[str, ...] = rubric if isinstance(rubric, str) else tuple(texts)
        self.threshold = threshold
        self.draws = draws
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.max_chars = max_chars
        self.seed = seed
        self.show_reference = show_reference
        self.name = name

    def reseeded(self, seed: int | None) -> JudgeVerifier:
        """The same judge with other draws and nonces."""
        return JudgeVerifier(
            self.sampler,
            rubric=self.rubric,
            threshold=self.threshold,
            draws=self.draws,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            max_chars=self.max_chars,
            seed=seed,
            show_reference=self.show_reference,
            name=self.name,
        )

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
        flow = self._flow(step, rollout)
        request = next(flow)
        try:
            while True:
                request = flow.send(self.sampler.sample(request))
        except StopIteration as stop:
            verdict: Verdict = stop.value
            return verdict

    async def averify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """The same, without blocking the event loop."""
        flow = self._flow(step, rollout)
        request = next(flow)
        try:
            while True:
                request = flow.send(await self.sampler.asample(request))
        except StopIteration as stop:
            verdict: Verdict = stop.value
            return verdict

    def _flow(self, step: Step, rollout: Rollout) -> Generator[SampleRequest, SampleResult, Verdict]:
        nonce = nonce_of(step, rollout, self.seed)
        messages = self._prompt(step, rollout, nonce)
        first = yield self._request(messages, self.draws, self.seed)
        usage = first.usage
        given, problems = self._read(first, nonce, self.draws)
        if problems:
            again = self._request(repair(messages, problems[0]), len(problems), self._later)
            second = yield again
            usage += second.usage
            repaired, _ = self._read(second, nonce, len(problems))
            given += repaired
        return self._verdict(rollout, given, usage)

    @property
    def _later(self) -> int | None:
        return None if self.seed is None else (self.seed + 7919) % 2**31

    def _request(self, messages: tuple[Message, ...], n: int, seed: int | None) -> SampleRequest:
        return SampleRequest(messages, n, self.temperature, self.max_tokens, seed, want_logprobs=False)

    def _prompt(self, step: Step, rollout: Rollout, nonce: str) -> tuple[Message, ...]:
        shown = self.show_reference and step.reference is not None
        reference = str(step.reference) if shown else None
        text = rollout.text
        return prompt(step, text, rubric=self.rubric, reference=reference, nonce=nonce, limit=self.max_chars)

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
            found = read(rollout.text, nonce, criteria)
            if isinstance(found, Judgement):
                given.append(found)
            else:
                problems.append(found)
        problems += ["it was empty"] * (asked - len(given) - len(problems))
        return given, problems

    def _verdict(self, rollout: Rollout, given: list[Judgement], usage: Usage) -> Verdict:
        stated = extract_answer(rollout.text) or bare_answer(rollout.text)
        answer = None if stated is None else canonical(stated)
        kept = None if answer is None else shorten(answer)
        if not given:
            return Verdict(False, answer=kept, reason=NO_VERDICT, weak=True, usage=usage)
        passes = [j.verdict == "pass" and j.share >= self.threshold - 1e-9 for j in given]
        passed = 2 * sum(passes) > self.draws  # of all that were asked for: a judging without a verdict is no pass
        voice = next((j for j, p in zip(given, passes, strict=True) if p is passed), given[0])
        # A judge that knows the reference may quote it, and a reason is logged and shown.
        quoted = "" if self.show_reference else "".join(c if c.isprintable() else " " for c in voice.reasoning)
        reason = f"the judge says {voice.verdict}, {voice.share:.2f}" + (f": {clip(quoted, 300)}" if quoted else "")
        if self.draws > 1:
            agreed = "" if sum(passes) in (0, self.draws) else "; the judge disagrees with itself"
            reason = f"{sum(passes)} of {self.draws} judgings passed{agreed}; {reason}"
        score = sum(j.share for j in given) / len(given)
        return Verdict(passed, answer if passed else kept, score, reason, weak=True, usage=usage)
