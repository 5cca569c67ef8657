"""The paper's rule (arXiv 2606.05145): the feature that stands out most picks the operator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import numpy.typing as npt

from rfx_agent.errors import ConfigError, FeatureError
from rfx_agent.evidence.zscore import zscore
from rfx_agent.records import REMEDY_NAME

__all__ = ["RoutingRule", "operator_of", "route"]


def _published() -> Mapping[str, str]:
    return {"spread": "dense_steer", "concentration": "sparse_steer", "logit_dispersion": "local_temp"}


@dataclass(frozen=True, slots=True)
class RoutingRule:
    """Which feature asks for which operator; the defaults are the paper's.

    Attributes:
        operators: operator by feature name; on a tie of z the first in the mapping wins.
        fallback: operator where no z exceeds 0.
        version: name of the rule, for records.

    Raises:
        ConfigError: no feature, or an operator with a name that no remedy can have.
    """

    operators: Mapping[str, str] = field(default_factory=_published)
    fallback: str = "sparse_steer_random"
    version: str = "arxiv-2606.05145/1"

    def __post_init__(self) -> None:
        if not self.operators:
            raise ConfigError("operators is empty; name an operator for at least one feature")
        for operator in (*self.operators.values(), self.fallback):
            if not REMEDY_NAME.fullmatch(operator):
                raise ConfigError(f"routing rule: operator is {operator!r}; give a name of [a-z0-9_]")
        object.__setattr__(self, "operators", dict(self.operators))

    def __hash__(self) -> int:
        return hash((*self.operators.items(), self.fallback, self.version))


def route(features: Mapping[str, npt.ArrayLike], rule: RoutingRule | None = None) -> npt.NDArray[np.str_]:
    """Operators for a population of failures, each feature z-scored over that population.

    The paper's gate comes first: its population is the steerable failures only, those where a retry passes
    with probability at most 0.5 and the best other operator beats it by at least 0.05.

    Args:
        features: columns of shape (n,), at least those that the rule names.
        rule: the paper's by default.

    Returns:
        One operator per failure, shape (n,).

    Raises:
        FeatureError: missing columns, columns of unequal lengths, NaN or infinite values.
    """
    rule = rule or RoutingRule()
    columns = []
    for name in _named(features, rule):
        try:
            columns.append(zscore(features[name]))
        except FeatureError as error:
            raise FeatureError(f"column {name!r}: {error}") from error
    lengths = {name: len(column) for name, column in zip(rule.operators, columns, strict=True)}
    if len(set(lengths.values())) > 1:
        raise FeatureError(f"columns differ in length: {lengths}; give one value per failure in each")
    return _choose(np.stack(columns, axis=1), rule)


def operator_of(z: Mapping[str, float], rule: RoutingRule | None = None) -> str:
    """Operator for one failure whose features were scored against a calibration.

    Args:
        z: scores by feature name, at least those that the rule names.
        rule: the paper's by default.

    Raises:
        FeatureError: missing scores, NaN or infinite ones.
    """
    rule = rule or RoutingRule()
    names = _named(z, rule)
    for name in names:
        if not math.isfinite(z[name]):
            raise FeatureError(f"z of {name!r} is {z[name]!r}; give finite scores")
    chosen: str = _choose(np.array([[z[name] for name in names]], dtype=np.float64), rule)[0].item()
    return chosen


def _choose(z: npt.NDArray[np.float64], rule: RoutingRule) -> npt.NDArray[np.str_]:
    """The rule itself: z of shape (n, features), in the rule's order."""
    options = np.array([*rule.operators.values(), rule.fallback], dtype=np.str_)
    best = z.argmax(axis=1)  # the first of equals
    best[z.max(axis=1) <= 0] = len(options) - 1
    return cast("npt.NDArray[np.str_]", options[best])


def _named(given: Mapping[str, object], rule: RoutingRule) -> list[str]:
    missing = [name for name in rule.operators if name not in given]
    if missing:
        raise FeatureError(f"features {missing} are missing; the rule needs {list(rule.operators)}")
    return list(rule.operators)
