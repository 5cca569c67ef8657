"""What is believed of a remedy on a failure before it was tried there: by remedy, kind of failure, feedback and task.

Two numbers describe a population of failures under one remedy: the mean m of its rescue rate, and how much the rate
differs from failure to failure. A Beta(m s, (1 - m) s) has both; a small s says that a remedy either works on a failure
or does not, so that a failed attempt lowers the belief by much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rfx_agent.evidence.calibration import Calibration
from rfx_agent.evidence.posterior import Beta
from rfx_agent.records import Kind

__all__ = ["BUILT_IN", "PSEUDO_FAILURES", "Believed", "BuiltIn", "belief_in", "context_of"]

PSEUDO_FAILURES = 8.0
"""How many failures of a deployment the built-in mean is worth, at most."""


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A built-in belief.

    Attributes:
        mean: of the rescue rate.
        strength: of its Beta on one failure.
        failures: how many failures it was measured on; 0 where it is assumed.
    """

    mean: float
    strength: float = 1.0
    failures: int = 0


# Qwen2.5-Coder-0.5B, 59 failures over 30 reasoning-gym generators, 700 tokens, three attempts each; delegate is the
# 1.5B. Cut answers: 60 of 16 generators under a cap of 128 tokens (benchmarks/extend.py). The paper's decodes: 62
# failures of docs/evidence.md, away from the pairs that the paper measured. What has no count is assumed.
BUILT_IN: Mapping[str, BuiltIn] = {
    "retry": BuiltIn(0.130, failures=59),
    "retry|cut": BuiltIn(0.017, strength=8.0, failures=60),
    "retry|malformed": BuiltIn(0.3),
    "retry|no_answer": BuiltIn(0.25),
    "extend": BuiltIn(0.15, failures=60),
    "revise|told": BuiltIn(0.4, strength=1.5),
    "revise": BuiltIn(0.034, failures=59),
    "tool": BuiltIn(0.333, failures=59),
    "delegate": BuiltIn(0.314, failures=59),
    "local_temp": BuiltIn(0.065, failures=62),
    "sparse_steer": BuiltIn(0.081, failures=62),
    "sparse_steer_random": BuiltIn(0.036, failures=62),
    "dense_steer": BuiltIn(0.129, failures=62),
}
_UNKNOWN = BuiltIn(0.25)
# What shows the model nothing of the feedback: whether there was any says nothing of it.
_UNTOLD = ("retry", "extend", "tool", "local_temp", "sparse_steer", "sparse_steer_random", "dense_steer")
_PUBLISHED = Calibration.published()


@dataclass(frozen=True, slots=True)
class Believed:
    """A prior for one remedy on one failure, where it comes from, and how many attempts of the deployment say so."""

    beta: Beta
    said: str
    attempts: float = 0.0


def context_of(remedy: str, kind: Kind | None, *, told: bool) -> str:
    """The key that outcomes are counted under: the remedy, how the answer before it had failed, and what was told.

    Example:
        >>> context_of("revise", "malformed", told=True)
        'revise|malformed|told'
    """
    shown = told and remedy not in _UNTOLD and not remedy.startswith("delegate")
    return "|".join([remedy, *([kind] if kind else []), *(["told"] if shown else [])])


def belief_in(
    remedy: str, calibration: Calibration, *, kind: Kind | None, told: bool, task: str = "", published: bool = False
) -> Believed:
    """The prior of ``remedy`` on a failure.

    Args:
        remedy: its name.
        calibration: what was measured; outcomes that it counted are pooled: kind within remedy, task within both.
        kind: how the last answer failed.
        told: whether the verifier said what is wrong with it.
        task: of the step.
        published: whether the features may route: then the calibration's own prior holds, as the paper's gate has it.
    """
    found = built_in(remedy, kind, told=told)
    mean, strength = found.mean, found.strength
    said = f"built-in prior, worth {PSEUDO_FAILURES:g} failures at most"
    mine = calibration.priors.get(remedy)
    if mine is not None and (published or mine != _PUBLISHED.priors.get(remedy)):
        strength = sum(mine)
        mean, said = mine[0] / strength, f"from calibration {calibration.name!r}"
    if published:
        return Believed((mean * strength, (1 - mean) * strength), said)
    passes, tries = _counted(calibration, remedy, kind, told=told)
    mine_too = _counted(calibration, remedy, kind, told=told, task=task) if task else (0.0, 0.0)
    if tries:
        # A prior that was fitted on the same attempts would count them twice.
        mean = found.mean if remedy in calibration.rates else mean
        said = f"from calibration {calibration.name!r}, {tries:g} attempts"
    # Kind within remedy, then task within both; a task's own attempts count once.
    for p, n in ((passes - mine_too[0], tries - mine_too[1]), mine_too):
        if n > 0:
            mean = (PSEUDO_FAILURES * mean + p) / (PSEUDO_FAILURES + n)
    return Believed((mean * strength, (1 - mean) * strength), said, tries)


def _counted(
    calibration: Calibration, remedy: str, kind: Kind | None, *, told: bool, task: str = ""
) -> tuple[float, float]:
    """(passes, attempts) under the most particular key that has any."""
    at = f"@{task}" if task else ""
    for key in dict.fromkeys((context_of(remedy, kind, told=told), context_of(remedy, None, told=told), remedy)):
        passes, tries = calibration.counts.get(f"{key}{at}", (0.0, 0.0))
        if tries:
            return passes, tries
    return 0.0, 0.0


def built_in(remedy: str, kind: Kind | None, *, told: bool) -> BuiltIn:
    """The built-in rescue rate for a remedy: for this feedback if there is one, else for this kind of failure, else for
    any; a remedy that is not in the table gets a default."""
    family = "delegate" if remedy.startswith("delegate_") else remedy
    keys = [f"{family}|told"] * told + ([f"{family}|{kind}"] if kind else []) + [family]
    return next((BUILT_IN[key] for key in keys if key in BUILT_IN), _UNKNOWN)
