"""Whether "rescued" is earned where judges are wrong: simulated draws and judges of known rates: one JSON object.

A cell is a rate at which draws are right, a rate at which a judge passes wrong answers (it passes right ones with
``--true-pass``), and a panel: one judge; two that are wrong independently of each other, and are declared so
(``AllOf(..., correlation=0)``); two of which the second repeats the first with probability 0.5 (``AllOf``'s default).
In each cell and seed one ``Recovery`` takes ``--cases`` cases. ``cold``: with its built-in priors, so that it has to
learn how often a draw is right; ``measured``: with a calibration of as many cases of another seed, made of their log as
``rfx calibrate`` makes it. Baselines on the same draws and verdicts:

- ``any_pass``: the first pass ends the case as rescued, as in a loop around a judge;
- ``oracle``: knows all rates and the correlation, and calls a pass rescued from P(right) >= 0.9 on.

``unknown`` repeats the cells with one judge whose rates nobody measured.

    python benchmarks/opinions.py [--cases 500] [--seeds 3]
"""

import argparse
import json
import math
import random
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from rfx_agent import FunctionVerifier, Recovery, RetryBudget, Rollout, SampleRequest, Step
from rfx_agent.evidence.calibration import Calibration
from rfx_agent.evidence.opinions import Opinion, probability_right
from rfx_agent.lab.calibrate import calibrate, read_any
from rfx_agent.lab.logs import log_line
from rfx_agent.ports import Sampler, Verifier
from rfx_agent.records import SampleResult, Usage
from rfx_agent.verifiers import AllOf

RATES, FALSE, PANELS = (0.095, 0.42), (0.02, 0.1, 0.2), ("one", "independent", "correlated")
ACCEPT, ATTEMPTS, CORRELATED = 0.9, 6, 0.5


def chance(*key: object) -> float:
    """A number in [0, 1) that depends on ``key`` alone, so that all players see one stream."""
    return random.Random(zlib.crc32(repr(key).encode())).random()  # noqa: S311  # a simulation


class Draws(Sampler):
    """Draw k of the case at hand, right with a given rate."""

    name = "draws"

    def __init__(self, world: "World") -> None:
        self.world = world

    def sample(self, request: SampleRequest) -> SampleResult:
        usage = Usage(60, 40, 1)
        texts = [self.world.draw() for _ in range(request.n)]
        return SampleResult(tuple(Rollout(text, usage=Usage(0, 40)) for text in texts), usage)


class World:
    """The draws and the opinions of one cell and seed."""

    def __init__(self, rate: float, true: float, false: float, panel: str, seed: int) -> None:
        self.rate, self.true, self.false, self.panel, self.seed = rate, true, false, panel, seed
        self.case, self.drawn = 0, 0

    def begin(self, case: int) -> None:
        self.case, self.drawn = case, 0

    def draw(self) -> str:
        self.drawn += 1
        return self.text(self.case, self.drawn - 1)

    def text(self, case: int, k: int) -> str:
        right = chance("draw", self.rate, self.seed, case, k) < self.rate
        return f"{'right' if right else 'wrong'} {case}/{k}"

    def says(self, judge: int, text: str) -> bool:
        """The opinion of a judge on a text."""
        key = (self.rate, self.false, self.panel, self.seed, text)
        if judge and self.panel == "correlated" and chance("copies", *key) < CORRELATED:
            judge = 0
        return chance("judge", judge, *key) < (self.true if text.startswith("right") else self.false)

    @property
    def judges(self) -> int:
        return 1 if self.panel == "one" else 2

    def verifier(self, *, measured: bool = True) -> Verifier:
        rates = (self.true, self.false) if measured else None

        def judge(i: int) -> Callable[[str], bool]:
            return lambda text: self.says(i, text)

        members = [FunctionVerifier(judge(i), weak=True, rates=rates, name=f"judge-{i}") for i in range(self.judges)]
        if self.panel == "one":
            return members[0]
        return AllOf(*members, **({"correlation": 0.0} if self.panel == "independent" else {}))

    def passed(self, text: str) -> bool:
        return all(self.says(i, text) for i in range(self.judges))

    @property
    def worth(self) -> float:
        """P(right | all judges pass), by who knows everything."""
        correlation = CORRELATED if self.panel == "correlated" else 0.0
        given = [Opinion(str(i), True, (self.true, self.false), correlation) for i in range(self.judges)]
        return probability_right(self.rate, given) or 0.0


def play(
    world: World, cases: int, *, rates: bool = True, calibration: Calibration | None = None, log: Path | None = None
) -> list[dict[str, Any]]:
    """One row per case, with what each player called the answer."""
    budget = RetryBudget(attempts=ATTEMPTS, tokens=None, samples=None, seconds=None)
    known = {} if calibration is None else {"calibration": calibration}
    recovery = Recovery(Draws(world), world.verifier(measured=rates), budget=budget, accept=ACCEPT, **known)
    rows, lines = [], []
    for case in range(cases):
        world.begin(case)
        made = recovery.run("?")
        outcome = made.outcome
        first = next((k for k in range(ATTEMPTS) if world.passed(world.text(case, k))), None)
        row: dict[str, Any] = {"first": first == 0, "status": outcome.status, "confidence": outcome.confidence}
        row |= {"right": (outcome.text or "").startswith("right"), "calls": made.ledger.spent.calls}
        row["pass_right"] = first is not None and world.text(case, first).startswith("right")
        row["pass"] = first is not None and first > 0
        row["oracle"] = row["pass"] and world.worth >= ACCEPT
        rows.append(row)
        lines.append(log_line(replace(made, step=Step.of("?", id=str(case))), model="simulated", task="simulated"))
    if log is not None:
        log.write_text("\n".join(lines))
    return rows


def calibrated(world: World, cases: int) -> Calibration:
    """What a log of other cases of this cell says."""
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        play(world, cases, log=log)
        (population,), _ = read_any(log)
        return calibrate(population)


def lower(wrong: int, n: int) -> float:
    """Lower end of Wilson's 95 % interval."""
    if not n:
        return 0.0
    z, p = 1.96, wrong / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n))


def error(said: Any, right: Any, rng: np.random.Generator) -> dict[str, float]:
    """Calibration error in five bins of equal mass with the upper 95 % bound of a bootstrap; Brier scores."""

    def of(pick: Any) -> float:
        order = pick[np.argsort(said[pick], kind="stable")]
        bins = np.array_split(order, 5)
        return float(sum(len(b) * abs(said[b].mean() - right[b].mean()) for b in bins if len(b)) / len(pick))

    n = len(said)
    bounds = [of(rng.integers(0, n, n)) for _ in range(400)]
    base = right.mean()
    return {
        "answers": n,
        "error": round(of(np.arange(n)), 4),
        "error_upper": round(float(np.quantile(bounds, 0.975)), 4),
        "brier": round(float(((said - right) ** 2).mean()), 4),
        "brier_base_rate": round(float(((base - right) ** 2).mean()), 4),
    }


def cell(rows: list[dict[str, Any]], world: World, rng: np.random.Generator) -> dict[str, Any]:
    rescued = [r for r in rows if r["status"] == "rescued"]
    oracle = [r for r in rows if r["oracle"]]
    wrong = sum(not r["right"] for r in rescued)
    any_pass = [r for r in rows if r["pass"]]
    any_wrong = sum(not r["pass_right"] for r in any_pass)
    said = [r for r in rows if r["confidence"] is not None]
    found: dict[str, Any] = {
        "cell": {"right": world.rate, "false_pass": world.false, "panel": world.panel},
        "worth_of_a_pass": round(world.worth, 3),
        "failures": sum(not r["first"] for r in rows),
        "rescued": len(rescued),
        "wrong_among_rescued": round(wrong / len(rescued), 3) if rescued else None,
        "wrong_lower": round(lower(wrong, len(rescued)), 3),
        "unconfirmed": sum(r["status"] == "unconfirmed" for r in rows),
        "oracle": len(oracle),
        "called": sum(r["status"] == "rescued" for r in oracle),
        "called_of_oracle": round(sum(r["status"] == "rescued" for r in oracle) / len(oracle), 3) if oracle else None,
        "any_pass": len(any_pass),
        "any_pass_wrong": round(any_wrong / len(any_pass), 3) if any_pass else None,
        "calls": round(float(np.mean([r["calls"] for r in rows])), 2),
    }
    if said:
        column = (np.array([r["confidence"] for r in said]), np.array([float(r["right"]) for r in said]))
        found["confidence"] = error(*column, rng)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--true-pass", type=float, default=0.9)
    options = parser.parse_args()
    result: dict[str, Any] = {"cases": options.cases, "seeds": options.seeds, "true_pass": options.true_pass}
    unknown = []
    for rate in RATES:
        for false in FALSE:
            for seed in range(options.seeds):
                world = World(rate, options.true_pass, false, "one", seed)
                unknown += play(world, options.cases, rates=False)
    result["unknown"] = {s: sum(r["status"] == s for r in unknown) for s in sorted({r["status"] for r in unknown})}
    for arm in ("cold", "measured"):
        result[arm] = figures(options, measured=arm == "measured")
    print(json.dumps(result, indent=2))


def figures(options: argparse.Namespace, *, measured: bool) -> dict[str, Any]:
    """All cells, and the worst of each figure over them."""
    rng = np.random.default_rng(0)
    cells, everything = [], []
    for rate in RATES:
        for false in FALSE:
            for panel in PANELS:
                rows: list[dict[str, Any]] = []
                for seed in range(options.seeds):
                    world = World(rate, options.true_pass, false, panel, seed)
                    other = World(rate, options.true_pass, false, panel, 1000 + seed)
                    rows += play(
                        world, options.cases, calibration=calibrated(other, options.cases) if measured else None
                    )
                cells.append(cell(rows, world, rng))
                everything += [r for r in rows if r["confidence"] is not None]
    said = np.array([r["confidence"] for r in everything])
    right = np.array([float(r["right"]) for r in everything])
    return {
        "worst_wrong_lower": max(c["wrong_lower"] for c in cells),
        "least_called_of_oracle": min(c["called_of_oracle"] for c in cells if c["called_of_oracle"] is not None),
        "called_of_oracle": round(sum(c["called"] for c in cells) / sum(c["oracle"] for c in cells), 3),
        "worst_error_upper": max(c["confidence"]["error_upper"] for c in cells if "confidence" in c),
        "confidence": error(said, right, rng),
        "cells": cells,
    }


if __name__ == "__main__":
    main()
