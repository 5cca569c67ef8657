"""What a population of failures may look like, and what outcomes say about it: the kernel of the learned policy.

Ours. A failure has a difficulty x, and each remedy k a rescue rate on it:

    x ~ N(0, 1),    r_k | x ~ Beta(κ_k m_k(x), κ_k (1 − m_k(x))),    m_k(x) = 1 / (1 + exp(−(μ + a_k + τ x)))

The common part makes every failed attempt lower the belief in all remedies; the part of its own (small κ_k) makes it
lower the belief in the remedy that was tried by more. So variety pays until the outcomes say otherwise.
(μ, τ, a, κ) of a deployment are unknown. H hypotheses are drawn from a prior once, and what happened weighs them.

A failure ends at its first success, so all that is known of a failure under way is how often each remedy has failed
on it: ``tries``. The probability of that, and of a success right after it, is a sum over a grid of x; no sampling.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rfx_agent.checks import number, whole

__all__ = [
    "REMEDIES",
    "Hypotheses",
    "PopulationPrior",
    "RemedyPrior",
    "Tries",
    "hypotheses",
    "ordered",
    "predict",
    "weigh",
]

Floats: TypeAlias = npt.NDArray[np.float64]
Tries: TypeAlias = tuple[int, ...]
"""Failed attempts per remedy on one failure, in the order of the hypotheses' remedies."""

REMEDIES: tuple[str, ...] = ("retry", "local_temp", "tool", "sparse_steer", "sparse_steer_random", "dense_steer")
"""The remedies that the prior was chosen on. Any other has the prior of one that nothing is known of."""

_DEEPEST = 24  # failed attempts of one remedy that are told apart; more say nothing new
_KEPT = 2048  # tables kept, about 14 KiB each with 256 hypotheses
_GRID = 15
_IN_THREAD = 200_000  # multiplications below which OpenBLAS starts no threads


@dataclass(frozen=True, slots=True)
class RemedyPrior:
    """What is believed of one remedy before anything was tried in a deployment.

    Attributes:
        offset: mean of a_k, in logits against the average remedy.
        offset_sd: its standard deviation over deployments.
        strength: median of κ_k: how closely the remedy follows the common difficulty; small is on its own.
        strength_sd: standard deviation of log κ_k.
    """

    offset: float = 0.0
    offset_sd: float = 0.1
    strength: float = 5.0
    strength_sd: float = 0.5


# Nothing is published of the tool: nearly anything is possible, and nearly on its own.
_ANYTHING = RemedyPrior(0.0, 1.5, 1.0, 0.7)


def ordered(remedies: Iterable[str]) -> tuple[str, ...]:
    """``remedies`` and those of ``REMEDIES``, which come first; the same for every order in which they are given."""
    return (*REMEDIES, *sorted(set(remedies) - set(REMEDIES)))


def _remedies() -> Mapping[str, RemedyPrior]:
    alike = RemedyPrior()
    return {
        **dict.fromkeys(REMEDIES, alike),
        "dense_steer": RemedyPrior(0.0, 0.45, 0.9, 0.7),
        "tool": _ANYTHING,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class PopulationPrior:
    """The prior over deployments. Its defaults were chosen by leaving one published cell out (docs/policies.md).

    Attributes:
        centre, centre_sd: mean and standard deviation of μ, in logits.
        spread, spread_sd: median of τ and standard deviation of log τ.
        remedies: per remedy, its prior; nearly anything is possible of one that is not named.
        size: number of hypotheses H. A quarter of them are wild: their offsets spread by at least ``wild_sd``.
        wild_sd: standard deviation of a_k among the wild.
        wild_odds: log-weight of a wild hypothesis against another. Low, so that they cost nothing where remedies are
            as alike as the published ones, and there, so that outcomes can say that they are not.
        seed: of the draw; the same prior gives the same hypotheses everywhere.
    """

    centre: float = -0.5
    centre_sd: float = 1.6
    spread: float = 2.4
    spread_sd: float = 0.2
    remedies: Mapping[str, RemedyPrior] = field(default_factory=_remedies)
    size: int = 512
    wild_sd: float = 1.5
    wild_odds: float = -5.0
    seed: int = 0

    def __post_init__(self) -> None:
        whole("prior: size", self.size, least=1)
        for name, least in (("centre_sd", 0.0), ("spread", 1e-9), ("spread_sd", 0.0), ("wild_sd", 0.0)):
            number(f"prior: {name}", getattr(self, name), least=least)
        object.__setattr__(self, "remedies", dict(self.remedies))

    def __hash__(self) -> int:
        return hash(
            (
                self.centre,
                self.spread,
                self.size,
                self.wild_sd,
                self.wild_odds,
                self.seed,
                tuple(self.remedies.items()),
            )
        )


class Hypotheses:
    """H drawn populations, with the tables that decisions read. Immutable but for its cache; use ``hypotheses``."""

    def __init__(self, prior: PopulationPrior, remedies: tuple[str, ...] = REMEDIES) -> None:
        self.remedies = remedies
        z = _normals(prior.seed, 0, (prior.size, 2))
        centre = prior.centre + prior.centre_sd * z[:, 0]
        spread = prior.spread * np.exp(prior.spread_sd * z[:, 1])
        x, weight = np.polynomial.hermite_e.hermegauss(_GRID)
        self.size = prior.size
        self._weight: Floats = weight / weight.sum()
        wild = np.arange(prior.size) < prior.size // 4
        self.log_prior: Floats = np.where(wild, prior.wild_odds, 0.0)
        logits = centre[:, None] + spread[:, None] * x
        alpha, kappa = [], []
        for name in remedies:
            own = prior.remedies.get(name, _ANYTHING)
            # A stream for each remedy: adding one leaves the others' draws as they are.
            stream = 1 + REMEDIES.index(name) if name in REMEDIES else 1000 + zlib.crc32(name.encode())
            u = _normals(prior.seed, stream, (prior.size, 2))
            sd = np.where(wild, max(own.offset_sd, prior.wild_sd), own.offset_sd)
            m = 1 / (1 + np.exp(-(logits + (own.offset + sd * u[:, 0])[:, None])))
            strength = own.strength * np.exp(own.strength_sd * u[:, 1:])
            alpha.append(strength * m)
            kappa.append(strength)
        self._alpha, self._kappa = alpha, kappa
        self._tables: OrderedDict[Tries, npt.NDArray[np.float32]] = OrderedDict()

    def difficulty(self, tries: Tries) -> Floats:
        """P(x, all of ``tries`` failed) per hypothesis and grid point of x, shape (H, 15)."""
        p = np.repeat(self._weight[None, :], self.size, axis=0)
        for alpha, kappa, n in zip(self._alpha, self._kappa, tries, strict=True):
            for i in range(min(n, _DEEPEST)):
                p *= (kappa - alpha + i) / (kappa + i)
        return p

    def table(self, tries: Tries) -> npt.NDArray[np.float32]:
        """Joint probabilities under each hypothesis, shape (H, K + 1).

        Column k < K: all of ``tries`` failed and one more attempt of remedy k passes. Column K: all failed.
        """
        if (found := self._tables.get(tries)) is not None:
            return found
        p = self.difficulty(tries)
        columns = [
            (p * (alpha / (kappa + min(n, _DEEPEST)))).sum(axis=1)
            for alpha, kappa, n in zip(self._alpha, self._kappa, tries, strict=True)
        ]
        table = np.stack([*columns, p.sum(axis=1)], axis=1).astype(np.float32)
        table.flags.writeable = False
        self._tables[tries] = table
        if len(self._tables) > _KEPT:  # two threads may race here; both then hold a table that is right
            self._tables.popitem(last=False)
        return table

    def log_likelihood(self, tries: Tries, by: int) -> npt.NDArray[np.float32]:
        """Log-probability of a failure's whole history under each hypothesis, shape (H,).

        Args:
            tries: the failed attempts.
            by: index of the remedy that then passed, or K when none did.
        """
        column: npt.NDArray[np.float32] = np.log(np.maximum(self.table(tries)[:, by], np.float32(1e-30)))
        return column


@lru_cache(maxsize=32)
def hypotheses(prior: PopulationPrior, remedies: tuple[str, ...] = REMEDIES) -> Hypotheses:
    """The hypotheses of ``prior`` for ``remedies`` (see ``ordered``), drawn once per process."""
    return Hypotheses(prior, remedies)


def predict(weights: npt.NDArray[np.floating], table: npt.NDArray[np.float32]) -> npt.NDArray[np.floating]:
    """Probability that one more attempt of each remedy passes, given what failed so far.

    Args:
        weights: weights of the hypotheses before this failure, shape (n, H); they need not sum to 1.
        table: of ``Hypotheses.table``; it carries what this failure's own attempts say of the hypotheses.

    Returns:
        Shape (n, K), each in [0, 1].
    """
    # In pieces that BLAS does in the calling thread: its own threads cost more than they bring here.
    piece = max(1, _IN_THREAD // table.size)
    joint = np.concatenate([weights[i : i + piece] @ table for i in range(0, len(weights), piece)])
    share: npt.NDArray[np.floating] = joint[:, :-1] / np.maximum(joint[:, -1:], 1e-30)
    within: npt.NDArray[np.floating] = np.clip(share, 0.0, 1.0)
    return within


def weigh(evidence: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Weights that sum to 1 from log-likelihoods, along the last axis."""
    w: npt.NDArray[np.floating] = np.exp(evidence - evidence.max(axis=-1, keepdims=True))
    w /= w.sum(axis=-1, keepdims=True)
    return w


def _normals(seed: int, stream: int, shape: tuple[int, int]) -> Floats:
    """Standard normal draws whose columns have mean 0 and variance 1 exactly, so that no remedy starts ahead."""
    z = np.random.default_rng([seed, stream]).standard_normal(shape)
    z -= z.mean(axis=0)
    if shape[0] > 1:
        z /= np.sqrt((z**2).mean(axis=0))
    return z
