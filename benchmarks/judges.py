"""How well the embedded models judge: 240 labelled answers of small models, half of them wrong: one JSON object.

The answers stand in ``data/judge_cases.jsonl``, the format that ``rfx judge-check`` reads: real answers of
qwen2.5-coder 0.5B and 1.5B to reasoning-gym's problems, labelled by the generators' own scorers, none of them cut off.
Each judge judges every case once, and each wrong case that it failed once more with one attempt to fool it appended.
Beside it stand a judge that passes everything, one that passes nothing, and the simplest real one: the same model
answers the problem three times, and what equals the majority of its answers passes (``--own``).

With ``--journal FILE`` each verdict is written down when it is given, and a run that starts again goes on from there.
The cases are shuffled, right and wrong in turn, so a run that was stopped is a sample of the whole: ``--figures`` shows
what the journal has.

    python benchmarks/judges.py --model qwen2.5-coder-1.5b --journal judges.jsonl [--own] [--rates FILE]
    python benchmarks/judges.py --collect draws.jsonl --model qwen2.5-coder-0.5b    # new answers
    python benchmarks/judges.py --build draws.jsonl                                 # the data file, from those and ours
"""

import argparse
import asyncio
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import rfx_agent
from rfx_agent import (
    ExactVerifier,
    FunctionVerifier,
    JudgeVerifier,
    LocalSampler,
    MathVerifier,
    Rollout,
    SampleRequest,
    Step,
    Verdict,
)
from rfx_agent.lab.evidence.intervals import wilson
from rfx_agent.lab.judge_cases import INJECTIONS, JudgeCase, read_cases
from rfx_agent.lab.judge_check import JudgeReport, judge_check
from rfx_agent.lab.problems import from_gym
from rfx_agent.ports import Sampler, Verifier
from rfx_agent.records import SampleResult, Usage
from rfx_agent.testing import ScriptedSampler
from rfx_agent.verifiers.answers import canonical, extract_answer

CASES = Path(__file__).parent / "data" / "judge_cases.jsonl"
RUBRIC = "The final answer of the ANSWER is correct, and it answers what the TASK asks."  # as rfx judge-check has it
GENERATORS = ("chain_sum", "letter_counting", "products", "decimal_chain_sum", "lcm")
MOST = 12  # answers of one problem and one label


# --- the cases


def collect(path: Path, model: str, problems: int, cap: int) -> None:
    """Draw an answer to each of new problems and write it down with its label."""
    done = {row["problem"] for row in lines(path)}
    with LocalSampler(model, top_logprobs=None, parallel=1, threads=1, context=1024) as sampler:
        for i, problem in enumerate(from_gym(GENERATORS, per_generator=problems, seed=5)):
            if problem.id in done or problem.verifier is None:
                continue
            request = SampleRequest(problem.messages, 1, 0.6, cap, 1000 + i, want_logprobs=False)
            made = sampler.sample(request).rollouts[0]
            row = {"problem": problem.id, "group": problem.generator, "prompt": problem.messages[0]["content"]}
            row |= {"expected": str(problem.expected), "response": made.text, "cut": made.finish_reason == "length"}
            row["passed"] = problem.verifier.verify(problem.step, made).passed
            write(path, row)


def build(draws: Sequence[Path], each: int, seed: int) -> None:
    """``each`` right answers and as many wrong ones: those of our evidence and of ``draws``, wrong ones of the problems
    of the right ones first, so that neither a problem nor a generator gives a label away. A label that is doubtful is
    left out."""
    rows = [row for path in draws for row in lines(path) if not row["cut"]]
    evidence = Path(rfx_agent.__file__).parent / "data" / "evidence"
    problems = {row["problem_id"]: row for row in pq.read_table(evidence / "failures.parquet").to_pylist()}
    for row in pq.read_table(evidence / "rollouts.parquet").to_pylist():
        if row["finish_reason"] == "stop" and row["operator"] != "tool":  # a tool's text is a program
            problem = problems[row["problem_id"]]
            prompt = json.loads(problem["prompt"])[0]["content"] if problem["prompt"][:1] == "[" else problem["prompt"]
            found = {"group": row["generator"], "prompt": prompt, "expected": problem["reference"]}
            rows.append(found | {"response": row["text"], "passed": row["passed"]})
    draw = random.Random(seed)  # noqa: S311  # a choice, no secret
    draw.shuffle(rows)
    kept: dict[bool, dict[str, list[dict[str, Any]]]] = {True: defaultdict(list), False: defaultdict(list)}
    seen = set()
    for row in rows:
        mine = kept[row["passed"]][row["prompt"]]
        if row["response"].strip() and (row["prompt"], row["response"]) not in seen and len(mine) < MOST:
            seen.add((row["prompt"], row["response"]))
            mine.append(row)
    chosen = draw.sample([row for mine in kept[True].values() for row in mine], each)
    for row in list(chosen):
        left = kept[False]
        same = left[row["prompt"]] or [x for mine in left.values() for x in mine if x["group"] == row["group"]]
        other = draw.choice(same or [x for mine in left.values() for x in mine])
        left[other["prompt"]].remove(other)
        chosen.append(other)
    for i, row in enumerate(chosen):
        while doubtful(chosen[i]):
            others = [x for mine in kept[False].values() for x in mine]
            chosen[i] = draw.choice([x for x in others if x["group"] == row["group"]] or others)
            kept[False][chosen[i]["prompt"]].remove(chosen[i])
    draw.shuffle(chosen)
    right, wrong = ([row for row in chosen if row["passed"] is label] for label in (True, False))
    CASES.unlink(missing_ok=True)
    for row in (row for pair in zip(right, wrong, strict=True) for row in pair):
        write(CASES, {key: row[key] for key in ("prompt", "response", "passed", "group", "expected")})


def doubtful(row: dict[str, Any]) -> bool:
    """Whether an answer that the scorer calls wrong may be right, and is only not written as it was asked to be."""
    if row["passed"]:
        return False
    step, made = Step.of(row["prompt"], expected=row["expected"]), Rollout(row["response"])
    if MathVerifier().verify(step, made).passed or ExactVerifier().verify(step, made).passed:
        return True
    own = rf"(?<![\w.\-]){re.escape(str(row['expected']))}(?!\w)"
    return extract_answer(row["response"]) is None and re.search(own, row["response"][-60:]) is not None


# --- the judges


class Heard(Sampler):
    """A sampler that keeps what it said last."""

    def __init__(self, sampler: LocalSampler) -> None:
        self.sampler, self.name, self.model, self.texts = sampler, sampler.name, sampler.model, list[str]()

    def sample(self, request: SampleRequest) -> SampleResult:
        return asyncio.run(self.asample(request))

    async def asample(self, request: SampleRequest) -> SampleResult:
        result = await self.sampler.asample(request)
        self.texts += [made.text for made in result.rollouts]
        return result


class Journalled(Verifier):
    """A judge whose verdicts are written down, and not asked for again."""

    def __init__(self, judge: JudgeVerifier, path: Path | None) -> None:
        self.judge, self.path, self.name = judge, path, judge.name
        self.had: dict[str, dict[str, Any]] = {row["key"]: row for row in lines(path) if row["kind"] == "verdict"}

    def reseeded(self, seed: int) -> "Journalled":
        other = Journalled.__new__(Journalled)
        other.__dict__ |= self.__dict__ | {"judge": self.judge.reseeded(seed)}
        return other

    def key(self, step: Step, rollout: Rollout) -> str:
        return json.dumps([self.judge.seed, step.messages, rollout.text], default=str)

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        return asyncio.run(self.averify(step, rollout))

    async def averify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        key = self.key(step, rollout)
        if key not in self.had:
            heard = self.judge.sampler.texts = []  # type: ignore[attr-defined]  # one judging at a time
            made = await self.judge.averify(step, rollout)
            usage = [made.usage.prompt_tokens, made.usage.completion_tokens, made.usage.calls]
            told = {"passed": made.passed, "reason": made.reason, "usage": usage, "texts": heard}
            self.had[key] = {"kind": "verdict", "key": key} | told
            write(self.path, self.had[key])
        row = self.had[key]
        return Verdict(row["passed"], reason=row["reason"], weak=True, usage=Usage(*row["usage"]))


def judge_of(sampler: Any, options: argparse.Namespace) -> JudgeVerifier:
    return JudgeVerifier(sampler, rubric=RUBRIC, max_tokens=options.max_tokens, seed=options.seed, name=options.model)


def run(options: argparse.Namespace, cases: list[JudgeCase]) -> None:
    """Judge what is not in the journal yet, then let the same model answer the problems itself."""
    with LocalSampler(options.model, top_logprobs=None, parallel=1, threads=options.threads, context=4096) as sampler:
        judge = Journalled(judge_of(Heard(sampler), options), options.journal)
        judge_check(judge, cases, repeats=1, verbosity=False, injections=options.injections, concurrency=1)
        if not options.own:
            return
        done = {row["prompt"] for row in lines(options.journal) if row["kind"] == "own"}
        for case in cases:
            if case.prompt in done:
                continue
            done.add(case.prompt)
            request = SampleRequest(case.step.messages, 3, 0.6, 320, options.seed, want_logprobs=False)
            texts = [made.text for made in sampler.sample(request).rollouts]
            write(options.journal, {"kind": "own", "prompt": case.prompt, "texts": texts})


# --- the figures


def figures(options: argparse.Namespace, cases: list[JudgeCase]) -> dict[str, Any]:
    """What the journal has, beside three baselines."""
    rows = lines(options.journal)
    judge = Journalled(judge_of(Nobody(), options), options.journal)
    first = judge.reseeded(0)  # as judge_check's first round is
    judged = [case for case in cases if first.key(case.step, Rollout(case.response, id="r0")) in judge.had]
    report = judge_check(judge, judged, repeats=1, verbosity=False, injections=False, concurrency=1)
    own = {row["prompt"]: majority(row["texts"]) for row in rows if row["kind"] == "own"}
    mine = [case for case in judged if case.prompt in own]
    found: dict[str, Any] = {"model": options.model, "of": len(cases), "problems": len({c.prompt for c in judged})}
    found |= {"judge": shown(report), "injections": injected(rows)}
    found["always pass"] = shown(baseline(judged, lambda _: True))
    found["always fail"] = shown(baseline(judged, lambda _: False))
    if mine:
        found["equals the majority of the model's own answers"] = shown(
            baseline(mine, lambda case: own[case.prompt] is not None and stated(case.response) == own[case.prompt])
        )
    if options.rates is not None:
        report.rates(model=options.model, settings=judge.judge.settings).save(options.rates)
    return found


def shown(report: JudgeReport) -> dict[str, Any]:
    """The figures that are compared; shares with Wilson's interval, and with one that keeps each problem whole."""
    few = report.as_dict()
    keep = ("cases", "right", "confusion", "recall", "false_pass_rate", "by_problem", "precision", "accuracy", "kappa")
    return {key: rounded(few[key]) for key in (*keep, "no_verdict", "usage")}


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def injected(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Wrong answers that it had failed, with an attempt appended: how many became a pass."""
    tried: dict[str, list[bool]] = {}
    for row in rows:
        text = json.loads(row["key"])[2] if row["kind"] == "verdict" else ""
        for name, attempt in INJECTIONS.items():
            if text.endswith(f"\n\n{attempt}"):
                tried.setdefault(name, []).append(row["passed"])
    flips = [flip for each in tried.values() for flip in each]
    each = {name: rounded(wilson(sum(x), len(x))) for name, x in tried.items()}
    return {"flips": rounded(wilson(sum(flips), len(flips))), "by_attempt": each}


class Nobody(ScriptedSampler):
    """A judge that is not asked."""

    def __init__(self) -> None:
        super().__init__([])


def baseline(cases: Sequence[JudgeCase], passes: Any) -> JudgeReport:
    """A rule in a judge's place."""
    by_text = {(case.problem, case.response): passes(case) for case in cases}
    rule = FunctionVerifier(lambda step, rollout: by_text[step.messages[-1]["content"], rollout.text], weak=True)
    return judge_check(rule, cases, repeats=1, verbosity=False, injections=False)


def stated(text: str) -> str | None:
    found = extract_answer(text)
    return None if found is None else canonical(found)


def majority(texts: Sequence[str]) -> str | None:
    """What two of three texts, or more than half of those with an answer, give for an answer."""
    answers = [x for x in map(stated, texts) if x is not None]
    most = Counter(answers).most_common(1)
    return most[0][0] if most and 2 * most[0][1] > len(answers) else None


def lines(path: Path | None) -> list[dict[str, Any]]:
    return [json.loads(x) for x in path.read_text().splitlines()] if path is not None and path.exists() else []


def write(path: Path | None, row: dict[str, Any]) -> None:
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--injections", type=int, default=1, help="attempts per wrong case that it failed")
    parser.add_argument("--own", action="store_true", help="let the model answer the problems, for the baseline")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of the model; one is faster than two on a busy machine")
    parser.add_argument("--figures", action="store_true")
    parser.add_argument("--rates", type=Path, help="write a file of the rates there")
    parser.add_argument("--collect", type=Path)
    parser.add_argument("--build", type=Path, nargs="+")
    parser.add_argument("--problems", type=int, default=16, help="per generator, for --collect")
    options = parser.parse_args()
    if options.collect is not None:
        return collect(options.collect, options.model, options.problems, cap=320)
    if options.build is not None:
        return build(options.build, each=120, seed=options.seed)
    cases, _ = read_cases(CASES)
    if not options.figures:
        run(options, cases)
    print(json.dumps(figures(options, cases), indent=1))
    return None


if __name__ == "__main__":
    main()
