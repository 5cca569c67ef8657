"""A collected dataset as arrays over its failures: what every attempt gave, and what was known before."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rfx_agent.errors import ConfigError
from rfx_agent.evidence.agreement import agreement
from rfx_agent.evidence.features import ONE_MODEL, TWO_MODEL
from rfx_agent.lab.calibrate import Population
from rfx_agent.lab.common import FEATURES, in_columns
from rfx_agent.lab.dataset import Dataset, read_dataset
from rfx_agent.lab.evidence.intervals import Floats
from rfx_agent.lab.profiles import Profile
from rfx_agent.records import Evidence

__all__ = ["DIAGNOSED", "STEERING", "Outcomes", "mean_rows", "read_outcomes"]

STEERING = ("local_temp", "sparse_steer", "sparse_steer_random", "dense_steer")
"""The decoding operators that the paper's rule chooses among."""

DIAGNOSED = 4
"""Draws that a failure is diagnosed on: the failed candidate and three more."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """Columns over P failures.

    Attributes:
        problems, generators: identifiers, shape (P,).
        passed: per remedy, 1 or 0 per attempt and NaN where there was none, shape (P, A). The first draw of
            ``retry`` failed by selection and is not in it.
        features: per trajectory feature and proxy, the mean over the scored failed draws, shape (P,); NaN where none.
        samples: evidence of the first ``DIAGNOSED`` draws alone, shape (P,) each: ``distinct`` answers,
            ``modal_share``, ``passes``, mean ``length`` in tokens.
        later: per failure, share of the draws after those that passed, shape (P,); NaN where there was none.
        model: of which model they are failures.
        about: provenance, as the collection wrote it.
    """

    problems: npt.NDArray[np.str_]
    generators: npt.NDArray[np.str_]
    passed: Mapping[str, Floats]
    features: Mapping[str, Floats]
    samples: Mapping[str, Floats]
    later: Floats
    model: str
    about: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.problems)

    def rates(self) -> dict[str, Floats]:
        """Per remedy, the share of its attempts that passed, shape (P,); NaN where there was none."""
        return {remedy: mean_rows(table) for remedy, table in self.passed.items()}

    def having(self, names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which failures have all of these features, shape (P,)."""
        there = np.ones(len(self), dtype=bool)
        for name in names:
            there &= np.isfinite(self.features[name])
        return there

    def population(self) -> Population:
        """The same as ``lab.calibrate`` takes it: without the failures that lack a value, kind by kind."""
        features: dict[Evidence, dict[str, Floats]] = {}
        for kind, names in FEATURES.items():
            there = self.having(names)
            features[kind] = {n: self.features[n][there] for n in names}
        rates = {op: rate[np.isfinite(rate)] for op, rate in self.rates().items()}
        return Population(self.model, " + ".join(dict.fromkeys(self.generators.tolist())), features, rates)

    def profile(self, rates: Mapping[str, Floats]) -> Profile:
        """A profile of these failures with other rates, for what ``lab.topography`` asks of one."""
        ids, none = self.problems.tolist(), [""] * len(self)
        return Profile(none, none, none, ids, np.ones(len(self), dtype=np.int64), {}, rates)


def mean_rows(table: Floats) -> Floats:
    """Mean over the columns that are not NaN, shape (P,); NaN for a row without any."""
    there = np.isfinite(table)
    count = there.sum(axis=1)
    total = np.where(there, table, 0.0).sum(axis=1)
    means: Floats = np.divide(total, count, out=np.full(len(table), np.nan), where=count > 0)
    return means


def read_outcomes(source: str | os.PathLike[str] | Dataset) -> Outcomes:
    """The failures of a dataset that ``rfx collect`` wrote, from its folder or as it was read.

    Raises:
        DatasetError: files that are missing or are no such dataset.
        ConfigError: pyarrow is not installed; a dataset without failures, or without draws after the failed ones.
    """
    data = source if isinstance(source, Dataset) else read_dataset(source)
    keys = ("problem_id", "remedy", "attempt", "answer", "passed", "completion_tokens")
    rollouts, failures = data.rollouts.select(keys).to_pydict(), data.failures.to_pydict()
    problems = failures["problem_id"]
    row = {name: i for i, name in enumerate(problems)}
    drawn: list[list[tuple[str | None, bool, float]]] = [[] for _ in problems]
    remedies = in_columns(["retry", *rollouts["remedy"]])
    found: dict[str, list[list[float]]] = {op: [[] for _ in problems] for op in remedies}
    for problem, remedy, attempt, answer, passed, tokens in zip(*(rollouts[k] for k in keys), strict=True):
        if (at := row.get(problem)) is None:
            continue
        if remedy == "retry":
            drawn[at].append((answer, passed, float(tokens)))
        if remedy != "retry" or attempt > 0:
            found[remedy][at].append(float(passed))
    if not any(found["retry"]):
        raise ConfigError(f"{data.folder} has no failures with draws after the failed ones; there is nothing to learn")
    nothing = [None] * len(problems)
    features = {n: np.array(failures.get(n, nothing), dtype=np.float64) for n in (*TWO_MODEL, *ONE_MODEL)}
    return Outcomes(
        np.array(problems),
        np.array(failures["task"]),
        {op: _ragged(lists) for op, lists in found.items() if any(lists)},
        features,
        _samples(drawn),
        mean_rows(_ragged([[float(p) for _, p, _ in draws[DIAGNOSED:]] for draws in drawn])),
        failures["model"][0],
        data.provenance,
    )


def _samples(drawn: Sequence[Sequence[tuple[str | None, bool, float]]]) -> dict[str, Floats]:
    first = [draws[:DIAGNOSED] for draws in drawn]
    agreed = [agreement([answer for answer, _, _ in draws]) for draws in first]
    return {
        "distinct": np.array([float(a.distinct) for a in agreed]),
        "modal_share": np.array([a.modal_share for a in agreed]),
        "passes": np.array([float(sum(p for _, p, _ in draws)) for draws in first]),
        "length": np.array([float(np.mean([n for _, _, n in draws])) if draws else np.nan for draws in first]),
    }


def _ragged(lists: Sequence[Sequence[float]]) -> Floats:
    table = np.full((len(lists), max(map(len, lists), default=0)), np.nan)
    for i, values in enumerate(lists):
        table[i, : len(values)] = values
    return table
