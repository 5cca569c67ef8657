"""Small made-up datasets in the format of ``rfx collect``, with rates that the tests know."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from rfx_agent.lab.dataset import TOKEN_FEATURES, write_dataset

REMEDIES = ("retry", "local_temp", "sparse_steer", "sparse_steer_random", "dense_steer", "tool")
STEERING = REMEDIES[1:5]
FEATURES = ("spread", "concentration", "logit_dispersion")
PROXIES = tuple(f"{name}_proxy" for name in FEATURES)
SETTINGS = {"temperature": 0.6, "lifted_temperature": 1.0, "alpha": 0.7, "max_tokens": 200, "draws": 8, "attempts": 4}


def rows(
    rates: dict[str, dict[str, float]], *, problems: int = 6, draws: int = 8, attempts: int = 4, seed: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rollouts and failures: per generator and remedy the chance of a pass; a remedy left out never passes."""
    rng = random.Random(seed)  # noqa: S311  # made-up outcomes, not secrets
    rollouts: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    for g, (generator, chance) in enumerate(rates.items()):
        for p in range(problems):
            a, b = rng.randint(11, 99), rng.randint(11, 99)
            pid = f"{generator}-{p}"
            mine = [
                _rollout(rng, pid, generator, op, i, a, b, passed=i > 0 and rng.random() < chance.get("retry", 0.0))
                if op == "retry"
                else _rollout(rng, pid, generator, op, i, a, b, passed=rng.random() < chance.get(op, 0.0))
                for op in REMEDIES
                for i in range(draws + 1 if op == "retry" else attempts)
            ]
            centre = {name: 0.9 + 0.05 * g + rng.gauss(0, 0.1) for name in FEATURES}
            failed = [x for x in mine if x["remedy"] == "retry" and not x["passed"]][:4]
            for x in failed:
                for name in FEATURES:
                    x[name] = centre[name] + rng.gauss(0, 0.02)
                    x[f"{name}_proxy"] = x[name] + rng.gauss(0, 0.1)
                x["junction"], x["peak"] = 4, 6
                for name in TOKEN_FEATURES:
                    x[name] = [round(rng.random(), 3) for _ in range(x["completion_tokens"])]
            means = {name: sum(x[name] for x in failed) / len(failed) for name in (*FEATURES, *PROXIES)}
            tried = {op: [x["passed"] for x in mine if x["remedy"] == op][op == "retry" :] for op in REMEDIES}
            failures.append(
                {
                    "cell": f"small|{generator}",
                    "model": "small",
                    "task": generator,
                    "problem_id": pid,
                    "n_failed_rollouts": len(failed),
                    **means,
                    **{op: sum(got) / len(got) for op, got in tried.items()},
                    **{f"{op}_attempts": len(got) for op, got in tried.items()},
                    "prompt": json.dumps([{"role": "user", "content": f"{generator} {p}: what is {a} times {b}?"}]),
                    "expected": str(a * b),
                }
            )
            rollouts += mine
    order = {op: i for i, op in enumerate(sorted(REMEDIES))}
    rollouts.sort(key=lambda x: (x["problem_id"], order[x["remedy"]], x["attempt"]))
    return rollouts, failures


def _rollout(
    rng: random.Random, pid: str, generator: str, remedy: str, attempt: int, a: int, b: int, *, passed: bool
) -> dict[str, Any]:
    answer = a * b if passed else a * b + rng.randint(1, 999)
    tool = remedy == "tool"
    start = 4 if remedy in STEERING else 0
    text = f"answer = {a} * {b} + {answer - a * b}" if tool else f"It is {answer}, {remedy} {attempt}."
    return {
        "problem_id": pid,
        "generator": generator,
        "remedy": remedy,
        "attempt": attempt,
        "source": attempt % 4 if remedy in STEERING else None,
        "seed": rng.randint(0, 2**31),
        "temperature": 1.0 if remedy == "local_temp" else 0.6,
        "text": text,
        "answer": str(answer),
        "passed": passed,
        "score": float(passed),
        "finish_reason": "stop",
        "prompt_tokens": 20,
        "completion_tokens": 10 + rng.randint(0, 5),
        "seconds": 0.5,
        "start": start,
    }


def write(folder: Path, rollouts: list[dict[str, Any]], failures: list[dict[str, Any]]) -> Path:
    """The two files, with provenance."""
    folder.mkdir(parents=True, exist_ok=True)
    screened: dict[str, dict[str, int]] = {}
    for failure in failures:
        held = screened.setdefault(failure["task"], {"problems": 0, "failed": 0})
        held["problems"] += 2
        held["failed"] += 1
    about = {
        "format": 1,
        "created": "2026-01-01T00:00:00+00:00",
        "versions": {"rfx-agent": "0.1.0"},
        "specialist": {"name": "small", "sha256": "0" * 64, "dtype": "float32"},
        "ancestor": {"name": "large", "sha256": "1" * 64, "dtype": "float32"},
        "settings": SETTINGS,
        "screened": screened,
        "problems": {},
    }
    write_dataset(folder, rollouts, failures, about)
    return folder


MIXED = {
    "product": {"tool": 1.0, "retry": 0.05, "dense_steer": 0.4},
    "sum": {"tool": 1.0, "retry": 0.1, "sparse_steer": 0.3},
    "words": {"retry": 0.4, "local_temp": 0.2, "sparse_steer_random": 0.2},
    "days": {"retry": 0.0},
}
"""Two generators that the tool solves, one that draws solve now and then, one that nothing does."""
