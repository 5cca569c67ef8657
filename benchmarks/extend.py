"""What going on from a cut answer rescues, beside a retry at the same cap and at twice the cap: one JSON object.

Problems of reasoning-gym, asked for step-by-step work, answered by the embedded model under a cap that cuts many of its
answers. Each answer that was cut off and failed gets one attempt of each arm, through the engine:

- ``extend``: goes on from the cut text (a continued prefix), with as many tokens again;
- ``extend_no_prefix``: the same remedy on a server that continues no prefix: drawn again under twice the cap;
- ``retry``: a new draw under the same cap;
- ``retry_twice``: a new draw under twice the cap.

With ``--journal FILE`` each problem is written down when it is done, and a run that starts again goes on from there.

    python benchmarks/extend.py [--failures 60] [--cap 128] [--journal extend.jsonl]
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rfx_agent import LocalSampler, Recovery, RetryBudget, Rollout, SampleRequest, Step
from rfx_agent.lab.problems.gym import from_gym
from rfx_agent.lab.problems.problem import Problem
from rfx_agent.policies import FixedPolicy
from rfx_agent.ports import Sampler
from rfx_agent.records import SampleResult

ASK = " Work it out step by step, explain each step, then put your final answer within \\boxed{}."
ARMS = ("extend", "extend_no_prefix", "retry", "retry_twice")


class NoPrefix(Sampler):
    """The same model on a server that continues no prefix."""

    def __init__(self, sampler: Sampler) -> None:
        self.name, self.max_calls, self._sampler = sampler.name, sampler.max_calls, sampler

    def sample(self, request: SampleRequest) -> SampleResult:
        return self._sampler.sample(request)


def asked(problem: Problem) -> Step:
    """The problem with our own words behind its question."""
    question = str(problem.messages[-1]["content"]).partition(" Show the key calculation")[0]
    return Step.of(question + ASK, expected=problem.expected, id=problem.id, task=problem.generator)


def attempt(arm: str, sampler: Sampler, problem: Problem, step: Step, cut: Rollout, cap: int, seed: int) -> Any:
    """One attempt of ``arm`` on the cut answer."""
    extends = arm.startswith("extend")
    recovery = Recovery(
        NoPrefix(sampler) if arm == "extend_no_prefix" else sampler,
        problem.verifier,
        policy=FixedPolicy(("extend",) if extends else ("retry",)),
        budget=RetryBudget(attempts=1, seconds=None),
        max_tokens=2 * cap if arm == "retry_twice" else cap,
        seed=seed,
    )
    case = recovery.run(step, cut)
    made = case.rollouts[1:]
    return {
        "passed": bool(made) and made[0].passed,
        "kind": made[0].kind if made else "none",
        "tokens": case.ledger.spent.tokens,
        "written": sum(x.usage.completion_tokens for x in made),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--failures", type=int, default=60)
    parser.add_argument("--cap", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--journal", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if options.journal is not None and options.journal.exists():
        rows = [json.loads(line) for line in options.journal.read_text().splitlines()]
    done = {row["problem"] for row in rows}
    with LocalSampler(options.model, top_logprobs=None, parallel=1) as sampler:
        for i, problem in enumerate(from_gym(per_generator=40, seed=options.seed)):
            if sum(row["cut"] for row in rows) >= options.failures:
                break
            if problem.id in done:
                continue
            step, seed = asked(problem), options.seed + 31 * i
            request = SampleRequest(step.messages, 1, 0.6, options.cap, seed, want_logprobs=False)
            first = sampler.sample(request).rollouts[0]
            row = {"problem": problem.id, "generator": problem.generator, "cut": False, "arms": {}}
            judge = problem.verifier
            if judge is not None and first.finish_reason == "length" and not judge.verify(step, first).passed:
                cut = replace(first, verdict=None)
                arms = {arm: attempt(arm, sampler, problem, step, cut, options.cap, seed + 7) for arm in ARMS}
                row |= {"cut": True, "arms": arms}
            rows.append(row)
            if options.journal is not None:
                with options.journal.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print(json.dumps(figures([row for row in rows if row["cut"]], len(rows), options), indent=2))


def figures(cut: list[dict[str, Any]], asked_: int, options: argparse.Namespace) -> dict[str, Any]:
    """Shares rescued, with 95 % bootstrap intervals over failures; differences to ``retry`` are paired."""
    rng = np.random.default_rng(options.seed)
    pick = rng.integers(0, len(cut), (2000, len(cut)))
    passed = {arm: np.array([row["arms"][arm]["passed"] for row in cut], dtype=float) for arm in ARMS}

    def interval(column: Any) -> list[float]:
        return [round(float(x), 3) for x in np.quantile(column[pick].mean(axis=1), (0.025, 0.975))]

    return {
        "model": options.model,
        "cap": options.cap,
        "problems": asked_,
        "cut_failures": len(cut),
        "arms": {
            arm: {
                "rescued": round(float(passed[arm].mean()), 3),
                "interval": interval(passed[arm]),
                "over_retry": round(float((passed[arm] - passed["retry"]).mean()), 3),
                "over_retry_interval": interval(passed[arm] - passed["retry"]),
                "tokens": round(float(np.mean([row["arms"][arm]["tokens"] for row in cut])), 1),
                "written": round(float(np.mean([row["arms"][arm]["written"] for row in cut])), 1),
                "cut_again": round(float(np.mean([row["arms"][arm]["kind"] == "cut" for row in cut])), 3),
            }
            for arm in ARMS
        },
    }


if __name__ == "__main__":
    main()
