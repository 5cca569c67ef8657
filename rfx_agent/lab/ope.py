"""Off-policy estimates: what a policy would have rescued, from the log of another one.

The log holds only what the logging policy tried, so every estimate rests on overlap: each thing that the evaluated
policy would do must have been done in the log, often enough, on failures like these. Where it was not, there is no
estimate, and the error says which attempt lacks support.

- ``remedy_rates`` (direct, per remedy): passes over tries of a remedy as the n-th attempt. It compares
  remedies only where the logging policy chose them independently of the failure; the first attempts of a policy that
  does not look at features are that.
- ``sequence_value`` (inverse propensity, stepwise): the rescue of a fixed sequence of remedies within its length.
  The propensity of a remedy, given what failed before, is its share among the logged attempts from that state; it
  is estimated, not known, and the sequence's chance is the product over its steps of passes over tries among the
  logged failures that followed it so far. With propensities estimated as shares, weighting each logged attempt by
  one over its propensity is the same number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rfx_agent.checks import whole
from rfx_agent.errors import ConfigError, RfxError
from rfx_agent.lab.logs import LogRow

__all__ = ["Estimate", "SupportError", "remedy_rates", "sequence_value"]


class SupportError(RfxError, ValueError):
    """The log does not support the estimate.

    Attributes:
        step: index of the first attempt that lacks support.
        tries: how often the log made it.
        needed: how often it must have been made.
    """

    def __init__(self, message: str, *, step: int, tries: int, needed: int) -> None:
        self.step, self.tries, self.needed = step, tries, needed
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Estimate:
    """One off-policy estimate.

    Attributes:
        method: its name.
        value: estimated probability of rescue.
        low, high: 95 % percentile interval, resampling failures.
        support: per attempt, how often the log made it there.
        propensity: per attempt, the share of logged failures in that state on which it was made.
    """

    method: str
    value: float
    low: float
    high: float
    support: tuple[int, ...]
    propensity: tuple[float, ...]


def remedy_rates(rows: Sequence[LogRow], *, position: int = 1, min_tries: int = 20) -> dict[str, Estimate]:
    """Rescue of each remedy as the attempt at ``position`` (1 is the first after the candidate).

    Remedies tried there fewer than ``min_tries`` times are left out: their absence is the answer.

    Raises:
        SupportError: no remedy was tried there often enough.
        ConfigError: a position or a threshold below 1.
    """
    whole("position", position, least=1)
    whole("min_tries", min_tries, least=1)
    there = [row.attempts[position] for row in rows if row.failed and len(row.attempts) > position]
    out: dict[str, Estimate] = {}
    for remedy in dict.fromkeys(name for name, _ in there):
        passed = np.array([p for name, p in there if name == remedy], dtype=float)
        if len(passed) < min_tries:
            continue
        rng = np.random.default_rng(0)
        means = rng.binomial(len(passed), passed.mean(), size=1000) / len(passed)
        low, high = np.percentile(means, [2.5, 97.5])
        share = len(passed) / len(there)
        out[remedy] = Estimate(
            "direct, per remedy", float(passed.mean()), float(low), float(high), (len(passed),), (share,)
        )
    if not out:
        raise SupportError(
            f"attempt {position}: no remedy was tried {min_tries} times there ({len(there)} attempts in all); "
            "log more, or lower min_tries",
            step=position - 1,
            tries=len(there),
            needed=min_tries,
        )
    return out


def sequence_value(
    rows: Sequence[LogRow],
    remedies: Sequence[str],
    *,
    min_tries: int = 20,
    min_propensity: float = 0.01,
    seed: int = 0,
) -> Estimate:
    """Rescue within ``len(remedies)`` attempts of a fixed sequence, had it been played on the logged failures.

    It holds where the logging policy's choice, given the remedies that failed before, did not depend on anything
    else that tells hard failures from easy ones; a policy that routes by features breaks that, and then failures
    should be split by what it routed on.

    Args:
        rows: the log; candidates that passed are left out.
        remedies: the sequence.
        min_tries: how often the log must have made each attempt of it, in its place.
        min_propensity: smallest share of logged failures in that state on which it must have been made.
        seed: of the interval.

    Raises:
        SupportError: an attempt of the sequence that the log made too seldom; names it.
        ConfigError: an empty sequence, thresholds that cannot work.
    """
    whole("min_tries", min_tries, least=1)
    if not remedies:
        raise ConfigError("remedies is empty; give the sequence to be valued")
    if not 0 < min_propensity <= 1:
        raise ConfigError(f"min_propensity is {min_propensity!r}; give a share above 0")
    paths = [row.attempts[1:] for row in rows if row.failed]
    # made[i, s]: failure i followed the sequence up to step s and made that attempt too; won: and it passed.
    made = np.zeros((len(paths), len(remedies)), bool)
    won, reached = made.copy(), made.copy()
    for i, path in enumerate(paths):
        for s, wanted in enumerate(remedies):
            reached[i, s] = True  # a remedy that ended here counts as one that was not offered this attempt
            if len(path) <= s or path[s][0] != wanted:
                break
            made[i, s], won[i, s] = True, path[s][1]
            if path[s][1]:
                break
    support, came = made.sum(axis=0), reached.sum(axis=0)
    propensity = support / np.maximum(came, 1)
    for s, wanted in enumerate(remedies):
        if support[s] < min_tries or propensity[s] < min_propensity:
            before = " after " + ", ".join(remedies[:s]) if s else ""
            raise SupportError(
                f"attempt {s + 1}, {wanted}{before}: the log made it {support[s]} times of {came[s]}; "
                f"it takes {min_tries} tries and a share of {min_propensity:g}. "
                "Shorten the sequence, or let the acting policy explore",
                step=s,
                tries=int(support[s]),
                needed=min_tries,
            )
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(paths), np.full(len(paths), 1 / len(paths)), size=1000)
    draws = 1 - np.prod(1 - (counts @ won) / np.maximum(counts @ made, 1), axis=1)
    value = 1 - float(np.prod(1 - won.sum(axis=0) / support))
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(
        "inverse propensity, stepwise",
        value,
        float(low),
        float(high),
        tuple(int(n) for n in support),
        tuple(float(p) for p in propensity),
    )
