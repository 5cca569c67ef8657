"""The records of a decision: what was tried, what is known, and what is to be done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from rfx_agent._types import Agreement, Evidence, Operator, Spend

__all__ = ["Attempt", "Decision", "Diagnosis", "Regime", "Route"]

Route: TypeAlias = Literal["accept", "resample", "tool_verify", "steer", "escalate"]
Regime: TypeAlias = Literal["stochastic", "structural", "out_of_reach"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one round of an operator did; the rollouts that it produced name the round.

    Attributes:
        operator: what was tried.
        asked: candidate answers it was to produce.
        got: candidate answers it did produce.
        misses: tries that ended with nothing to judge and count as failures of the operator (a program that does
            not run). A model that could not be reached is no miss: it says nothing about the failure.
        tokens: what it cost.
        note: why it produced less than was asked, if it did; may quote model output, so it is untrusted.
    """

    operator: Operator
    asked: int
    got: int
    misses: int = 0
    tokens: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that a policy may know about one failure.

    Attributes:
        step_id: the step.
        evidence: what the features were computed from.
        features: trajectory features by name, or None where they are unavailable; never zero in their place.
        z: the features against the calibration, or None.
        calibration: name of the calibration used.
        routable: whether the features may route: calibrated, with enough failures behind it, and inside it.
        caveats: sentences that say why they may not, and what else was missing.
        draws: plain draws from the original prompt so far.
        passes: how many of them passed.
        agreement: how their answers are spread.
        posterior: per operator, the Beta(alpha, beta) of one more attempt passing.
        tried: per operator, rounds made so far on this failure.
        cost: per operator that this deployment can carry out, the most that one attempt may cost.
        passed: id of a rollout that passed, or None.
        blocked: sentence saying why no model can be asked any more, or "".
        blocked_by: the same for a machine (see ``Case``).
    """

    step_id: str
    evidence: Evidence
    features: Mapping[str, float] | None
    z: Mapping[str, float] | None
    calibration: str
    routable: bool
    caveats: tuple[str, ...]
    draws: int
    passes: int
    agreement: Agreement
    posterior: Mapping[str, tuple[float, float]]
    tried: Mapping[str, int]
    cost: Mapping[str, Spend]
    passed: str | None = None
    blocked: str = ""
    blocked_by: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision of a policy, as it is logged, replayed and shown.

    Attributes:
        route: the graph's next node.
        operator: what that node is to do; None for ``accept``.
        regime: what kind of failure this is held to be; None where nothing failed or nothing was measured.
        reason: short machine-readable cause ("passed", "budget:tokens", "out_of_reach", "rule:local_temp", ...).
        sentence: the same for a person.
        policy: name and version of the rule that decided.
        evidence, features, z, posterior: what it rested on (see ``Diagnosis``).
        expected: per operator considered, the expected probability that one attempt rescues.
        temperature: decode temperature for the remedy, where it is not the default.
        from_junction: whether the remedy starts at the junction instead of at the beginning.
        budget_before: what was left of each cap (None: no cap).
        budget_after: the same after the remedy was paid for; None until then.
    """

    route: Route
    operator: Operator | None
    regime: Regime | None
    reason: str
    sentence: str
    policy: str
    evidence: Evidence
    features: Mapping[str, float] | None = None
    z: Mapping[str, float] | None = None
    posterior: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    expected: Mapping[str, float] = field(default_factory=dict)
    temperature: float | None = None
    from_junction: bool = False
    budget_before: Mapping[str, float | None] = field(default_factory=dict)
    budget_after: Mapping[str, float | None] | None = None
