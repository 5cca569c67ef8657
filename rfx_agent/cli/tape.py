"""A collected dataset as tapes: per problem, everything that was recorded of it, in order."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from rfx_agent.errors import ConfigError
from rfx_agent.evidence.calibration import Calibration
from rfx_agent.evidence.features import ONE_MODEL, TWO_MODEL
from rfx_agent.lab.calibrate import calibrate
from rfx_agent.lab.dataset import Dataset, read_dataset
from rfx_agent.lab.evidence.outcomes import read_outcomes
from rfx_agent.records import Rollout, Step, Usage

__all__ = ["DATASET", "Replay", "Row", "Tape", "load_replay", "nothing", "rollout_of"]

DATASET = Path(__file__).parent.parent / "data" / "evidence"
"""The dataset that comes with the package."""

Row: TypeAlias = Mapping[str, Any]
"""One recorded attempt, by the dataset's column names."""

_COLUMNS = ("problem_id", "remedy", "attempt", "text", "answer", "passed", "score", "finish_reason", "temperature")
_PLACES = ("prompt_tokens", "completion_tokens", "start", "junction", "peak", "error")


@dataclass(frozen=True, slots=True)
class Tape:
    """Everything that was recorded of one problem.

    Attributes:
        step: the problem, under its recorded id; without its right answer, since verdicts are recorded too.
        family: its generator.
        attempts: per remedy, its recorded rows in order; of ``retry`` the first is the draw that failed.
    """

    step: Step
    family: str
    attempts: Mapping[str, tuple[Row, ...]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Replay:
    """A dataset to be replayed.

    Attributes:
        model: whose rollouts they are.
        tapes: its problems, in the dataset's order.
        calibration: population statistics and priors of the same dataset, the replayed failures included.
        settings: with which it was collected: ``temperature``, ``lifted_temperature``, ``max_tokens``, ...
        screened: per generator, ``problems`` tried and first draws that ``failed``.
    """

    model: str
    tapes: tuple[Tape, ...]
    calibration: Calibration
    settings: Mapping[str, Any]
    screened: Mapping[str, Mapping[str, int]]

    def choose(self, count: int, seed: int) -> tuple[Tape, ...]:
        """``count`` problems or all there are, the generators in turn; the same for the same seed."""
        left: dict[str, list[Tape]] = {}
        for tape in self.tapes:
            left.setdefault(tape.family, []).append(tape)
        for family, tapes in left.items():
            random.Random(f"{seed}:{family}").shuffle(tapes)  # noqa: S311  # a choice, not a secret
        chosen: list[Tape] = []
        while len(chosen) < count and any(left.values()):
            chosen += [tapes.pop() for tapes in left.values() if tapes][: count - len(chosen)]
        return tuple(chosen)


def load_replay(folder: str | os.PathLike[str] = DATASET) -> Replay:
    """The dataset in ``folder``, ready to be replayed.

    Raises:
        DatasetError: no such dataset.
        ConfigError: pyarrow is not installed; a dataset without failures.
    """
    data = read_dataset(folder)
    settings = data.provenance.get("settings", {})
    if missing := [name for name in ("temperature", "max_tokens") if name not in settings]:
        raise ConfigError(f"replay: the provenance of {os.fspath(folder)} lacks {missing}; collect it again")
    outcomes = read_outcomes(data)
    return Replay(
        str(data.provenance.get("specialist", {}).get("name", outcomes.model)),
        _tapes(data),
        calibrate(outcomes.population(), name="the replayed dataset itself"),
        settings,
        data.provenance.get("screened", {}),
    )


def _tapes(data: Dataset) -> tuple[Tape, ...]:
    rows: dict[str, dict[str, list[Row]]] = {}
    table = data.rollouts.select([*_COLUMNS, *_PLACES, *TWO_MODEL, *ONE_MODEL])
    for row in table.sort_by(
        [("problem_id", "ascending"), ("remedy", "ascending"), ("attempt", "ascending")]
    ).to_pylist():
        rows.setdefault(row["problem_id"], {}).setdefault(row["remedy"], []).append(row)
    return tuple(
        Tape(
            Step(tuple(json.loads(failure["prompt"])), id=failure["problem_id"]),
            failure["task"],
            {remedy: tuple(found) for remedy, found in rows.get(failure["problem_id"], {}).items()},
        )
        for failure in data.failures.select(["problem_id", "task", "prompt"]).to_pylist()
    )


def rollout_of(row: Row) -> Rollout:
    """The rollout of a recorded attempt, with the features that were computed when it was collected."""
    kinds = ({name: row[name] for name in names} for names in (TWO_MODEL, ONE_MODEL))
    return Rollout(
        row["text"],
        response_id=f"{row['remedy']}:{row['attempt']}",
        remedy=row["remedy"],
        temperature=row["temperature"],
        finish_reason=row["finish_reason"],
        usage=Usage(row["prompt_tokens"], row["completion_tokens"], 1),
        features=next((found for found in kinds if None not in found.values()), None),
        junction=row["junction"],
        peak=row["peak"],
        start=row["start"],
    )


def nothing(row: Row) -> bool:
    """Whether the model gave nothing at all; an ``error`` beside a text is of its features."""
    return row["error"] is not None and not row["text"]
