"""Trajectory features (arXiv 2606.05145), one failure in three numbers; proxies for one model (ours)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rfx_agent.errors import FeatureError
from rfx_agent.evidence.tokens import OneModelTokenFeatures, TokenFeatures

__all__ = [
    "ProxyFeatures",
    "RolloutFeatures",
    "TrajectoryFeatures",
    "Window",
    "proxy_features",
    "rollout_features",
    "rollout_proxies",
    "trajectory_features",
]

Window: TypeAlias = tuple[int, int]
"""Tokens ``start`` to ``stop`` (exclusive) of one rollout."""

_FLOOR = 1e-8  # of the definitions: keeps logarithms and quotients finite


@dataclass(frozen=True, slots=True)
class RolloutFeatures:
    """One rollout's share of the evidence.

    Attributes:
        spread: share of positions with J > 0, in [0, 1].
        concentration: log10 of J's peak over its mean; -8 where J is 0 everywhere.
        logit_dispersion: log10 of the mean logit variance around J's peak.
        junction: tokens around J's peak; None where J is 0 everywhere and nothing was decided anywhere.
        peak: position of J's peak (the first on a tie), or None likewise.
        positions: positions that counted, padding trimmed.
    """

    spread: float
    concentration: float
    logit_dispersion: float
    junction: Window | None
    peak: int | None
    positions: int


@dataclass(frozen=True, slots=True)
class TrajectoryFeatures:
    """One failure: the mean over its failed rollouts, or None in all three where no rollout had a position.

    Attributes:
        spread, concentration, logit_dispersion: means of ``RolloutFeatures``' fields.
        junctions: per rollout given, its junction, or None.
        rollouts: per rollout given, its own numbers; None for one without a position.
    """

    spread: float | None
    concentration: float | None
    logit_dispersion: float | None
    junctions: tuple[Window | None, ...] = ()
    rollouts: tuple[RolloutFeatures | None, ...] = ()

    @property
    def available(self) -> bool:
        """Whether there was anything to measure."""
        return self.spread is not None

    @property
    def peaks(self) -> tuple[int | None, ...]:
        """Per rollout given, the position of J's peak, or None."""
        return tuple(None if one is None else one.peak for one in self.rollouts)


@dataclass(frozen=True, slots=True)
class ProxyFeatures:
    """Stand-ins for the trajectory features where there is no ancestor: ours, not the paper's, and not on its
    scale.

    They follow the same formulas with J_proxy = max(0, surprisal - entropy) in J's place: how much more
    surprising the taken token was than the model expected to be surprised. How well they track the two-model
    features has to be measured; they need a calibration of their own. All three are None where no rollout had
    a position.

    Attributes:
        spread_proxy, concentration_proxy, logit_dispersion_proxy: means over the rollouts.
        junctions: per rollout given, the window around J_proxy's peak, or None.
        rollouts: per rollout given, its own numbers, with J_proxy for J; None for one without a position.
    """

    spread_proxy: float | None
    concentration_proxy: float | None
    logit_dispersion_proxy: float | None
    junctions: tuple[Window | None, ...] = ()
    rollouts: tuple[RolloutFeatures | None, ...] = ()

    @property
    def available(self) -> bool:
        """Whether there was anything to measure."""
        return self.spread_proxy is not None


def trajectory_features(rollouts: Iterable[TokenFeatures], *, window: int = 8) -> TrajectoryFeatures:
    """Spread, concentration and logit dispersion of one failure (arXiv 2606.05145) from its failed rollouts.

    Positions at the end whose ``kl`` is exactly 0 are padding and are trimmed; a rollout with none left is
    skipped.

    Args:
        rollouts: token features of the failed rollouts.
        window: the junction reaches this many positions to both sides of the peak.

    Raises:
        FeatureError: NaN, infinities, arrays that are not of one length, with rollout and position; a
            negative window.
    """
    _check_window(window)
    each = tuple(rollout_features(one, window=window, rollout=i) for i, one in enumerate(rollouts))
    return TrajectoryFeatures(*_means(each), junctions=_junctions(each), rollouts=each)


def rollout_features(tokens: TokenFeatures, *, window: int = 8, rollout: int | None = None) -> RolloutFeatures | None:
    """The same of one rollout; None where it has no position. ``rollout`` is its index, for error messages.

    Raises:
        FeatureError: as ``trajectory_features``.
    """
    j, v, kl = _checked(
        rollout,
        demotion_pressure=tokens.demotion_pressure,
        logit_variance=tokens.logit_variance,
        kl=tokens.kl,
    )
    moved = np.flatnonzero(kl)
    used = int(moved[-1]) + 1 if len(moved) else 0
    return _summary(j[:used], v[:used], window)


def proxy_features(rollouts: Iterable[OneModelTokenFeatures], *, window: int = 8) -> ProxyFeatures:
    """The three proxies of one failure (ours); see ``ProxyFeatures``.

    Raises:
        FeatureError: as ``trajectory_features``.
    """
    _check_window(window)
    each = tuple(rollout_proxies(one, window=window, rollout=i) for i, one in enumerate(rollouts))
    return ProxyFeatures(*_means(each), junctions=_junctions(each), rollouts=each)


def rollout_proxies(
    tokens: OneModelTokenFeatures, *, window: int = 8, rollout: int | None = None
) -> RolloutFeatures | None:
    """The proxies of one rollout (ours), with J_proxy for J; None where it has no position.

    Raises:
        FeatureError: as ``trajectory_features``.
    """
    v, entropy, surprisal = _checked(
        rollout, logit_variance=tokens.logit_variance, entropy=tokens.entropy, surprisal=tokens.surprisal
    )
    return _summary(np.maximum(surprisal - entropy, 0.0), v, window)


def _summary(j: npt.NDArray[np.float64], v: npt.NDArray[np.float64], window: int) -> RolloutFeatures | None:
    _check_window(window)
    if len(j) == 0:
        return None
    peak = int(np.argmax(j))
    start, stop = max(0, peak - window), min(len(j), peak + window + 1)
    highest = float(j[peak])
    decided = highest > 0
    return RolloutFeatures(
        spread=float(np.count_nonzero(j > 0) / len(j)),
        concentration=math.log10(max(highest / max(float(j.mean()), _FLOOR), _FLOOR)),
        logit_dispersion=math.log10(max(float(v[start:stop].mean()), _FLOOR)),
        junction=(start, stop) if decided else None,
        peak=peak if decided else None,
        positions=len(j),
    )


def _check_window(window: int) -> None:
    if window < 0:
        raise FeatureError(f"window is {window!r}; give a number of positions, 0 or more")


def _means(each: Sequence[RolloutFeatures | None]) -> tuple[float | None, float | None, float | None]:
    usable = [one for one in each if one is not None]
    if not usable:
        return None, None, None
    n = len(usable)
    return (
        math.fsum(one.spread for one in usable) / n,
        math.fsum(one.concentration for one in usable) / n,
        math.fsum(one.logit_dispersion for one in usable) / n,
    )


def _junctions(each: Sequence[RolloutFeatures | None]) -> tuple[Window | None, ...]:
    return tuple(None if one is None else one.junction for one in each)


def _checked(rollout: int | None, **arrays: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], ...]:
    # Records made by hand or read from a file have not been through token_features.
    checked: list[npt.NDArray[np.float64]] = []
    for name, given in arrays.items():
        try:
            array = np.asarray(given, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise FeatureError(f"{name}: {error}; give numbers", rollout=rollout) from error
        first = checked[0].shape if checked else array.shape
        if array.ndim != 1 or array.shape != first:
            raise FeatureError(f"{name} has shape {array.shape}; give shape (L,), the same for all", rollout=rollout)
        bad = np.flatnonzero(~np.isfinite(array))
        if len(bad):
            raise FeatureError(f"{name} is {array[bad[0]]}; give finite numbers", rollout=rollout, position=int(bad[0]))
        checked.append(array)
    return tuple(checked)
