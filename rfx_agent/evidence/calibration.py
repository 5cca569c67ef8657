"""What features and rescue rates look like over a population, and what one failure may conclude from that."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from rfx_agent.errors import CalibrationError, ConfigError, FeatureError
from rfx_agent.evidence import posterior
from rfx_agent.evidence.posterior import Beta
from rfx_agent.evidence.zscore import Moments, against, merge, moments_of
from rfx_agent.records import REMEDY_NAME, Evidence

__all__ = ["Calibration", "FeatureStats"]

FeatureStats = Moments
"""Count, mean and population standard deviation of one feature over failures."""

Stats: TypeAlias = Mapping[Evidence, Mapping[str, Moments]]

Counts: TypeAlias = Mapping[str, tuple[float, float]]

_UNKNOWN: Beta = (1.0, 1.0)  # an operator nobody has measured
_DECODING: tuple[str, ...] = (
    "retry",
    "local_temp",
    "sparse_steer",
    "sparse_steer_random",
    "dense_steer",
)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Statistics of one population of failures: one pair of models on one task.

    Attributes:
        name: what decisions cite.
        pair: specialist and ancestor (or the one model) that it holds for.
        task: kind of steps that it holds for.
        stats: per evidence kind and feature, its statistics.
        priors: per operator, Beta(alpha, beta) of one attempt rescuing one failure.
        rates: per operator, statistics of the measured rescue rates that its prior stands on; an operator
            without is assumed, not measured.
        counts: (passes, attempts) by ``evidence.rescue.context_of``, and by that and ``@task``.

    Raises:
        CalibrationError: statistics that cannot be: unknown kinds or operators, negative counts or
            deviations, values that are not finite, priors that are not positive.
    """

    name: str
    pair: str
    task: str
    stats: Stats = field(default_factory=dict)
    priors: Mapping[str, Beta] = field(default_factory=dict)
    rates: Mapping[str, Moments] = field(default_factory=dict)
    counts: Counts = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind, features in self.stats.items():
            if kind not in get_args(Evidence):
                raise CalibrationError(f"stats: {kind!r} is no kind of evidence; choose among {get_args(Evidence)}")
            for name, stats in features.items():
                _check_stats(f"stats.{kind}.{name}", stats)
        for operator in (*self.priors, *self.rates):
            if not REMEDY_NAME.fullmatch(operator):
                raise CalibrationError(f"calibration: prior of {operator!r}; give a remedy's name of [a-z0-9_]")
        for operator, prior in self.priors.items():
            try:
                posterior.mean(prior)
            except (ConfigError, TypeError, ValueError) as error:
                raise CalibrationError(f"priors.{operator}: {error}") from error
        for operator, stats in self.rates.items():
            _check_stats(f"rates.{operator}", stats)
        frozen: Stats = {kind: dict(features) for kind, features in self.stats.items()}
        object.__setattr__(self, "stats", frozen)
        object.__setattr__(self, "priors", {op: (float(a), float(b)) for op, (a, b) in self.priors.items()})
        object.__setattr__(self, "rates", dict(self.rates))
        for key, (passes, tries) in self.counts.items():
            if not 0 <= passes <= tries < math.inf:
                raise CalibrationError(f"counts.{key}: {passes} of {tries}; give (passes, attempts)")
        object.__setattr__(self, "counts", {key: (float(p), float(n)) for key, (p, n) in self.counts.items()})

    @classmethod
    def published(cls) -> Calibration:
        """The figures of arXiv 2606.05145: fine-tunes against their own base, 1,423 failures.

        They do not hold for other pairs: between mere siblings every feature moves by several deviations.

        Beta(0.27, 0.45) is the figure given for ``retry`` over all of them (by moments, the 744 whose profiles
        are public have Beta(0.25, 0.31)). The other decoding operators are given the same, and ``tool``, which
        the paper does not have, Beta(1, 1).
        """
        n = 1423
        a, b = prior = (0.27, 0.45)
        return cls(
            name="published",
            pair="fine-tune / its own base",
            task="reasoning benchmarks (arXiv 2606.05145)",
            stats={
                "two_model": {
                    "spread": Moments(n, 0.4682, 0.2143),
                    "concentration": Moments(n, 2.3291, 0.2989),
                    "logit_dispersion": Moments(n, -0.7729, 0.2443),
                }
            },
            priors={**dict.fromkeys(_DECODING, prior), "tool": _UNKNOWN},
            rates={"retry": Moments(n, a / (a + b), math.sqrt(a * b / (a + b + 1)) / (a + b))},
        )

    @classmethod
    def from_failures(
        cls,
        features: Mapping[str, npt.ArrayLike],
        *,
        name: str,
        pair: str,
        task: str,
        evidence: Evidence = "two_model",
        rates: Mapping[str, npt.ArrayLike] | None = None,
        priors: Mapping[str, Beta] | None = None,
    ) -> Calibration:
        """A calibration from failures of one's own.

        Args:
            features: columns of shape (n,), one value per failure.
            name: what decisions will cite.
            pair: specialist and ancestor.
            task: kind of steps.
            evidence: what the features were computed from.
            rates: per operator, measured rescue rates in [0, 1], one per failure; they become priors by
                moments.
            priors: for operators whose rates are missing or fit no Beta; the built-in ones by default.

        Raises:
            FeatureError: columns that are empty, not finite or of different lengths.
            CalibrationError: rates outside [0, 1].
        """
        columns = {}
        for feature, column in features.items():
            try:
                columns[feature] = moments_of(column)
            except FeatureError as error:
                raise FeatureError(f"column {feature!r}: {error}") from error
        if len({stats.count for stats in columns.values()}) > 1:
            counts = {feature: stats.count for feature, stats in columns.items()}
            raise FeatureError(f"columns differ in length: {counts}; give one value per failure in each")
        measured = {}
        for operator, column in (rates or {}).items():
            try:
                measured[operator] = moments_of(column)
            except FeatureError as error:
                raise CalibrationError(f"rates of {operator!r}: {error}") from error
            if np.min(column) < 0 or np.max(column) > 1:
                raise CalibrationError(f"rates of {operator!r} leave [0, 1]; give shares of attempts that passed")
        assumed = cls.published().priors if priors is None else priors
        return cls(name, pair, task, {evidence: columns}, _with_measured(assumed, measured), measured)

    def prior(self, operator: str) -> Beta:
        """Beta prior of one attempt of ``operator`` passing; Beta(1, 1) where nothing is known."""
        return self.priors.get(operator, _UNKNOWN)

    def z(self, features: Mapping[str, float] | None, evidence: Evidence) -> dict[str, float] | None:
        """Scores of the features that have statistics; None where none has."""
        stats = self.stats.get(evidence, {})
        scores = {name: against(x, stats[name]) for name, x in (features or {}).items() if name in stats}
        return scores or None

    def caveats(
        self,
        features: Mapping[str, float] | None,
        evidence: Evidence,
        *,
        min_failures: int = 30,
        max_z: float = 3.0,
    ) -> tuple[str, ...]:
        """Why these features may not route; empty where they may.

        Args:
            features: one failure's features by name.
            evidence: what they were computed from.
            min_failures: fewest failures that statistics must rest on.
            max_z: how many standard deviations from the mean still count as inside.
        """
        if not features:
            return ("trajectory features are unavailable",)
        stats = self.stats.get(evidence)
        if not stats:
            return (f"calibration {self.name!r} has no statistics for {evidence} evidence",)
        found = []
        for name, value in features.items():
            if name not in stats:
                found.append(f"calibration {self.name!r} has no statistics for {name}")
                continue
            count, mean, std = stats[name].count, stats[name].mean, stats[name].std
            low, high = mean - max_z * std, mean + max_z * std
            if count < min_failures:
                found.append(f"{name}: calibration {self.name!r} rests on {count} failures, fewer than {min_failures}")
            elif not low <= value <= high:
                found.append(
                    f"{name} {value:.4g} lies outside calibration {self.name!r} "
                    f"({low:.4g} to {high:.4g}: {max_z:g} standard deviations)"
                )
        return tuple(found)

    def merge(
        self, other: Calibration, *, name: str | None = None, pair: str | None = None, task: str | None = None
    ) -> Calibration:
        """Both populations as one; they must not share failures.

        Statistics merge exactly. A prior is taken anew by moments from the merged rates where either side
        measured that operator; where neither did, this side's assumption stands, and the other's where this
        has none.

        Args:
            other: the other population.
            name: of the result; both names by default.
            pair: names the mixture where the pairs differ.
            task: names the mixture where the tasks differ.

        Raises:
            CalibrationError: different pairs or tasks without a name for the mixture.
        """
        for what, mine, theirs, given in (
            ("pair", self.pair, other.pair, pair),
            ("task", self.task, other.task, task),
        ):
            if mine != theirs and given is None:
                raise CalibrationError(
                    f"{what}s differ: {mine!r} and {theirs!r}; features move a lot between them. "
                    f"To mix them all the same, name the mixture with {what}=..."
                )
        stats: dict[Evidence, Mapping[str, Moments]] = {}
        for kind in (*self.stats, *(k for k in other.stats if k not in self.stats)):
            stats[kind] = _merge_all(self.stats.get(kind, {}), other.stats.get(kind, {}))
        rates = _merge_all(self.rates, other.rates)
        both = self.name if self.name == other.name else f"{self.name}+{other.name}"
        return Calibration(
            name=both if name is None else name,
            pair=self.pair if pair is None else pair,
            task=self.task if task is None else task,
            stats=stats,
            priors=_with_measured({**other.priors, **self.priors}, rates),
            rates=rates,
            counts=_added(self.counts, other.counts),
        )

    def to_json(self) -> str:
        """The calibration as JSON text, readable by ``from_json``."""
        file = _File(
            schema_version=1,
            name=self.name,
            pair=self.pair,
            task=self.task,
            stats={k: {n: _Stats.of(s) for n, s in fs.items()} for k, fs in self.stats.items()},
            priors=dict(self.priors),
            rates={op: _Stats.of(s) for op, s in self.rates.items()},
            counts=dict(self.counts),
        )
        return file.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str = "calibration") -> Calibration:
        """Read what ``to_json`` wrote; ``source`` names it in errors.

        Raises:
            CalibrationError: text that is not such a calibration; names the source and the field.
        """
        try:
            file = _File.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "the whole text"
            raise CalibrationError(f"{source}: {place}: {first['msg']}") from error
        try:
            return cls(
                file.name,
                file.pair,
                file.task,
                {k: {n: s.moments for n, s in fs.items()} for k, fs in file.stats.items()},
                file.priors,
                {op: s.moments for op, s in file.rates.items()},
                file.counts,
            )
        except CalibrationError as error:
            raise CalibrationError(f"{source}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to ``path``; a reader sees the old file or the new one, never half of either."""
        target = Path(path)
        handle, partial = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self.to_json())
                file.flush()
                os.fsync(file.fileno())
            Path(partial).replace(target)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read what ``save`` wrote.

        Raises:
            CalibrationError: a file that cannot be read or is no calibration; names the file and the field.
        """
        try:
            text = Path(path).read_bytes()
        except OSError as error:
            raise CalibrationError(f"{os.fspath(path)}: {error.strerror or error}") from error
        return cls.from_json(text, source=os.fspath(path))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Stats(_Strict):
    count: Annotated[int, Field(ge=0)]
    mean: FiniteFloat
    std: Annotated[FiniteFloat, Field(ge=0)]

    @classmethod
    def of(cls, stats: Moments) -> _Stats:
        return cls(count=stats.count, mean=stats.mean, std=stats.std)

    @property
    def moments(self) -> Moments:
        return Moments(self.count, self.mean, self.std)


class _File(_Strict):
    schema_version: Literal[1]
    name: str
    pair: str
    task: str
    stats: dict[Evidence, dict[str, _Stats]]
    priors: dict[str, tuple[Annotated[FiniteFloat, Field(gt=0)], Annotated[FiniteFloat, Field(gt=0)]]]
    rates: dict[str, _Stats]
    counts: dict[str, tuple[FiniteFloat, FiniteFloat]] = {}  # pydantic copies it


def _check_stats(field_name: str, stats: Any) -> None:
    try:
        _Stats.of(stats)
    except (AttributeError, ValidationError) as error:
        raise CalibrationError(
            f"{field_name} is {stats!r}; give FeatureStats with count and std not negative, all finite"
        ) from error


def _added(mine: Counts, theirs: Counts) -> dict[str, tuple[float, float]]:
    total = dict(mine)
    for key, (passes, tries) in theirs.items():
        before = total.get(key, (0.0, 0.0))
        total[key] = (before[0] + passes, before[1] + tries)
    return total


def _merge_all(mine: Mapping[str, Moments], theirs: Mapping[str, Moments]) -> dict[str, Moments]:
    nothing = Moments(0, 0.0, 0.0)
    names = (*mine, *(name for name in theirs if name not in mine))
    return {name: merge(mine.get(name, nothing), theirs.get(name, nothing)) for name in names}


def _with_measured(assumed: Mapping[str, Beta], rates: Mapping[str, Moments]) -> dict[str, Beta]:
    priors = dict(assumed)
    for operator, stats in rates.items():
        try:
            priors[operator] = posterior.from_mean_variance(stats.mean, stats.std**2)
        except ConfigError:
            # All rates equal, or all 0 and 1: the moments say nothing about the width. The assumption stands.
            continue
    return priors
