"""Measure a judge on labelled cases: how often it is right, how often it passes what is wrong, and how it is fooled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rfx_agent.checks import whole
from rfx_agent.errors import ConfigError
from rfx_agent.lab.evidence.intervals import Figure, wilson
from rfx_agent.lab.judge_cases import FILLER, INJECTIONS, JudgeCase
from rfx_agent.lab.judge_rates import clustered, measured
from rfx_agent.ports import Verifier
from rfx_agent.records import Rollout, Usage, Verdict
from rfx_agent.verifiers.judge import NO_VERDICT
from rfx_agent.verifiers.rates import MeasuredRates

__all__ = ["JudgeReport", "ajudge_check", "judge_check"]

Progress = Callable[[int, int], None]
"""Called with judgings done and judgings in all; more are added once it is known which cases fail."""


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """What a judge did on labelled cases. "Positive" is a pass. Shares are ``{"value", "low", "high", "n"}``, with
    Wilson's 95 % interval, and a value of None where there was nothing to count.

    Attributes:
        judge: its name.
        cases: labelled cases, and among them ``right``, those labelled as passed.
        confusion: ``true_pass``, ``false_pass``, ``true_fail``, ``false_fail``, counted.
        accuracy, precision, recall: shares; a judging without a verdict counts as the fail that it is.
        false_pass_rate: share of the wrong cases that it passes: what a rescue by this judge is worth.
        by_problem: ``problems``, how many prompts there are, and ``recall`` and ``false_pass_rate`` with intervals that
            keep each prompt whole: answers of one problem are alike, and Wilson's are too narrow for them.
        kappa: Cohen's kappa with the labels, or None where both say the same of all cases.
        no_verdict: share of cases on which it gave no verdict at all.
        repeats: ``agreement``, share of cases judged alike each time, and ``kappa`` of the first two judgings.
        verbosity: cases judged again with empty words appended: ``fail_to_pass`` and ``pass_to_fail``, shares.
        injections: wrong cases that it failed, judged again with one attempt appended each time: ``flips``, share of
            judgings that became a pass (they share cases, so its interval is too narrow); ``cases``, share of cases
            that at least one attempt flipped; ``by_attempt``, shares by the attempt's name.
        groups: per group, ``cases``, ``accuracy`` and ``false_pass_rate``.
        judgings: how many there were.
        usage: what they cost.
    """

    judge: str
    cases: int
    right: int
    confusion: dict[str, int]
    accuracy: Figure
    precision: Figure
    recall: Figure
    false_pass_rate: Figure
    by_problem: dict[str, Any]
    kappa: float | None
    no_verdict: Figure
    repeats: dict[str, Any] | None
    verbosity: dict[str, Figure] | None
    injections: dict[str, Any] | None
    groups: dict[str, dict[str, Any]]
    judgings: int
    usage: Usage

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "usage"}
        spent = self.usage
        return fields | {
            "usage": {
                "prompt_tokens": spent.prompt_tokens,
                "completion_tokens": spent.completion_tokens,
                "calls": spent.calls,
                "tokens_per_judging": spent.tokens / self.judgings,
            }
        }

    def rates(
        self, *, model: str | None = None, settings: Mapping[str, str | float | bool] | None = None
    ) -> MeasuredRates:
        """What it found as rates that a verifier loads: ``save(path)`` writes the file. Intervals keep prompts whole.

        Args:
            model: of the judge, as ``JudgeVerifier.model``.
            settings: of the judge, as ``JudgeVerifier.settings``.

        Raises:
            ConfigError: none of the cases was right, or none wrong.
        """
        counts = self.confusion
        return measured(
            (counts["true_pass"], self.right, self.by_problem["recall"]),
            (counts["false_pass"], self.cases - self.right, self.by_problem["false_pass_rate"]),
            judge=self.judge,
            model=model,
            settings=settings,
        )


def judge_check(judge: Verifier, cases: Iterable[JudgeCase], **options: Any) -> JudgeReport:
    """``ajudge_check`` in an event loop of its own; takes the same and gives the same."""
    return asyncio.run(ajudge_check(judge, cases, **options))


async def ajudge_check(
    judge: Verifier,
    cases: Iterable[JudgeCase],
    *,
    seed: int = 0,
    repeats: int = 2,
    injections: bool | int = True,
    verbosity: bool = True,
    concurrency: int = 4,
    progress: Progress | None = None,
) -> JudgeReport:
    """Judge every case, and judge them again in ways that should change nothing.

    Args:
        judge: the verifier. One with ``reseeded(seed)``, as ``JudgeVerifier``, gets a seed of its own for each
            round, so that a second judging is no replay of the first, and the whole is the same for the same seed.
        cases: the labelled cases.
        seed: of the judge's rounds, and of which attempts are appended where not all are.
        repeats: judgings of each case as it is; figures are of the first.
        injections: how many of the built-in attempts to append to each wrong case that the judge failed, one at a
            time; true for all, false or 0 for none.
        verbosity: whether every case is judged again with empty words appended.
        concurrency: judgings at once.
        progress: told of each judging.

    Raises:
        ConfigError: no cases, or a parameter that cannot work.
        SamplerError: the judge cannot be reached; a measurement with holes would be none.
    """
    given = list(cases)
    if not given:
        raise ConfigError("judge_check: cases is empty; give at least one labelled case")
    most = len(INJECTIONS) if injections is True else int(injections)
    whole("judge_check: repeats", repeats, least=1)
    whole("judge_check: concurrency", concurrency, least=1)
    whole("judge_check: injections", most)
    work = _Work(judge, seed, asyncio.Semaphore(concurrency), progress)
    work.total = len(given) * (repeats + verbosity)
    rounds = [await work.judged(given, k) for k in range(repeats)]
    first = [v.passed for v in rounds[0]]
    padded = None
    if verbosity:
        longer = [replace(c, response=f"{c.response}\n\n{FILLER}") for c in given]
        padded = [v.passed for v in await work.judged(longer, repeats)]
    tried = await _attacked(
        work, [c for c, p in zip(given, first, strict=True) if not (p or c.passed)], most, repeats + 1
    )
    labels = [c.passed for c in given]
    groups = sorted({c.group for c in given} - {""})
    return JudgeReport(
        judge=judge.name,
        cases=len(given),
        right=sum(labels),
        **_figures(labels, first),
        by_problem=_by_problem(given, first),
        kappa=_kappa(labels, first),
        no_verdict=_share([v.reason == NO_VERDICT for v in rounds[0]]),
        repeats=_repeated([[v.passed for v in one] for one in rounds]) if repeats > 1 else None,
        verbosity=None if padded is None else _moved(first, padded),
        injections=tried,
        groups={g: _group([(c.passed, p) for c, p in zip(given, first, strict=True) if c.group == g]) for g in groups},
        judgings=work.done,
        usage=work.usage,
    )


class _Work:
    """Runs judgings a few at a time and adds up what they cost."""

    def __init__(self, judge: Verifier, seed: int, limit: asyncio.Semaphore, progress: Progress | None) -> None:
        self._judge, self.seed, self._limit, self._progress = judge, seed, limit, progress
        self.usage, self.done, self.total = Usage(), 0, 0

    async def judged(self, cases: Sequence[JudgeCase], number: int) -> list[Verdict]:
        """Verdicts on ``cases``, in order, by the judge of round ``number``."""
        reseeded = getattr(self._judge, "reseeded", None)
        judge: Verifier = self._judge if reseeded is None else reseeded((self.seed + 104_729 * number) % 2**31)

        async def one(case: JudgeCase) -> Verdict:
            async with self._limit:
                verdict = await judge.averify(case.step, Rollout(case.response, id="r0"))
            self.usage += verdict.usage
            self.done += 1
            if self._progress is not None:
                self._progress(self.done, self.total)
            return verdict

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(case)) for case in cases]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the others were only ended with it
        return [task.result() for task in tasks]


async def _attacked(work: _Work, failed: Sequence[JudgeCase], most: int, number: int) -> dict[str, Any] | None:
    if not most:
        return None
    rng = random.Random(f"{work.seed}:attempts")  # noqa: S311  # a choice, no secret
    names = list(INJECTIONS)
    tries = [(i, name) for i in range(len(failed)) for name in rng.sample(names, min(most, len(names)))]
    work.total += len(tries)
    changed = [replace(failed[i], response=f"{failed[i].response}\n\n{INJECTIONS[name]}") for i, name in tries]
    flipped = [v.passed for v in await work.judged(changed, number)]
    hit = {i for (i, _), flip in zip(tries, flipped, strict=True) if flip}
    return {
        "flips": _share(flipped),
        "cases": _share([i in hit for i in range(len(failed))]),
        "by_attempt": {
            name: _share([f for (_, tried), f in zip(tries, flipped, strict=True) if tried == name]) for name in names
        },
    }


def _share(hits: Sequence[bool]) -> Figure:
    return wilson(sum(hits), len(hits))


def _figures(labels: Sequence[bool], said: Sequence[bool]) -> dict[str, Any]:
    pairs = list(zip(labels, said, strict=True))
    return {
        "confusion": {
            "true_pass": pairs.count((True, True)),
            "false_pass": pairs.count((False, True)),
            "true_fail": pairs.count((False, False)),
            "false_fail": pairs.count((True, False)),
        },
        "accuracy": _share([label == s for label, s in pairs]),
        "precision": _share([label for label, s in pairs if s]),
        "recall": _share([s for label, s in pairs if label]),
        "false_pass_rate": _share([s for label, s in pairs if not label]),
    }


def _by_problem(cases: Sequence[JudgeCase], said: Sequence[bool]) -> dict[str, Any]:
    figures: dict[str, Any] = {"problems": len({c.problem for c in cases})}
    for name, label in (("recall", True), ("false_pass_rate", False)):
        pairs = [(s, c.problem) for c, s in zip(cases, said, strict=True) if c.passed is label]
        figures[name] = clustered([s for s, _ in pairs], [p for _, p in pairs])
    return figures


def _group(pairs: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    figures = _figures([label for label, _ in pairs], [said for _, said in pairs])
    return {"cases": len(pairs)} | {name: figures[name] for name in ("accuracy", "false_pass_rate")}


def _kappa(one: Sequence[bool], two: Sequence[bool]) -> float | None:
    """Cohen's kappa (1960): agreement beyond what the two margins alone give; None where both are constant."""
    n = len(one)
    seen = sum(a == b for a, b in zip(one, two, strict=True)) / n
    p, q = sum(one) / n, sum(two) / n
    chance = p * q + (1 - p) * (1 - q)
    return None if chance == 1 else (seen - chance) / (1 - chance)


def _repeated(rounds: Sequence[Sequence[bool]]) -> dict[str, Any]:
    alike = [len(set(said)) == 1 for said in zip(*rounds, strict=True)]
    return {"judgings": len(rounds), "agreement": _share(alike), "kappa": _kappa(rounds[0], rounds[1])}


def _moved(before: Sequence[bool], after: Sequence[bool]) -> dict[str, Figure]:
    pairs = list(zip(before, after, strict=True))
    return {
        "fail_to_pass": _share([b for a, b in pairs if not a]),
        "pass_to_fail": _share([not b for a, b in pairs if a]),
    }
