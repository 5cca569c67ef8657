"""One failing step and everything that happened to it: attempts, diagnosis, decisions, outcome.

A ``Case`` is a value that nodes pass on and a checkpoint keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from rfx_agent.bill import Bill, Operation, PlainRetry, bill_of
from rfx_agent.budgets.step import Ledger
from rfx_agent.errors import ConfigError
from rfx_agent.evidence.kinds import kind_of
from rfx_agent.fence import one_line
from rfx_agent.records import Agreement, Evidence, Kind, Rollout, Spend, Step

__all__ = ["Ask", "Attempt", "Case", "Decision", "Diagnosis", "FinishedCase", "Outcome", "Regime", "Status"]

_NOTE = 1_000  # characters of a note, which a server may have a part in

Regime: TypeAlias = Literal["stochastic", "structural", "out_of_reach"]
"""What kind of failure one is: an unlucky draw, one that resists more draws, one that nothing is expected to rescue."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one round of a remedy did; the rollouts that it produced name the round.

    Attributes:
        remedy: what was tried.
        asked: candidate answers it was to produce.
        got: candidate answers it did produce.
        misses: tries that ended with nothing to judge and count as failures of the remedy (a program that does
            not run). A model that could not be reached is no miss: it says nothing about the failure.
        tokens: what it cost.
        note: why it produced less than was asked, or what ran it; may quote model output, so it is untrusted.
        kind: how the last answer before it had failed; None where there was none.
        told: whether the verifier had said what is wrong with that answer.
    """

    remedy: str
    asked: int = 1
    got: int = 0
    misses: int = 0
    tokens: int = 0
    note: str = ""
    kind: Kind | None = None
    told: bool = False


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
        posterior: per remedy, the Beta(alpha, beta) of one more attempt passing.
        tried: per remedy, rounds made so far on this failure.
        cost: per remedy that is available for this failure, the most that one attempt may cost.
        passed: id of a rollout that passed, or None.
        blocked: sentence saying why no model can be asked any more, or "".
        blocked_by: the same for a machine (see ``Case``).
        task: the step's.
        kinds: how often failed rollouts were of each kind.
        kind: how the last rollout failed, or None.
        told: whether the verifier said what is wrong with it, and not only that it is wrong.
        failed: per remedy, attempts that failed, without the one that opened the case.
        turn: decisions made on this failure before.
        nodes: per available remedy, the node of the graph that carries it out.
        words: per available remedy, what a sentence calls it.
        unavailable: per remedy of the deployment that is not available for this failure, why.
        measurable: whether further draws can give features that may route.
        priors: per available remedy, where the belief in it comes from, for the decision's sentence.
        priced: whether the models have prices, so that remedies are compared in dollars; else in tokens.
    """

    step_id: str
    evidence: Evidence = "samples"
    features: Mapping[str, float] | None = None
    z: Mapping[str, float] | None = None
    calibration: str = ""
    routable: bool = False
    caveats: tuple[str, ...] = ()
    draws: int = 0
    passes: int = 0
    agreement: Agreement = Agreement()
    posterior: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    tried: Mapping[str, int] = field(default_factory=dict)
    cost: Mapping[str, Spend] = field(default_factory=dict)
    passed: str | None = None
    blocked: str = ""
    blocked_by: str = ""
    task: str = ""
    kinds: Mapping[str, int] = field(default_factory=dict)
    kind: Kind | None = None
    told: bool = False
    failed: Mapping[str, int] = field(default_factory=dict)
    turn: int = 0
    nodes: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)
    measurable: bool = False
    priors: Mapping[str, str] = field(default_factory=dict)
    priced: bool = False

    @property
    def answered(self) -> bool:
        """Whether an answer was seen. Rollouts that were all cut off say nothing about the reasoning."""
        return any(n for kind, n in self.kinds.items() if kind != "cut") or not self.kinds


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision of a policy, as it is logged, replayed and shown.

    Attributes:
        route: "accept", "escalate", or the node of the remedy: "resample", "extend", "revise", "tool_verify",
            "delegate", "steer" or a user's own.
        remedy: what that node is to do; None for ``accept``.
        regime: what kind of failure this is held to be; None where nothing failed, or no answer was seen yet.
        reason: short machine-readable cause ("passed", "budget:tokens", "out_of_reach", "rule:local_temp", ...).
        sentence: the same for a person.
        policy: name and version of the rule that decided.
        evidence, features, z, posterior, kinds, kind, told: what it rested on (see ``Diagnosis``).
        expected: per remedy considered, the expected probability that one attempt rescues.
        from_junction: whether the tool's program starts at the junction instead of at the beginning.
        budget_before: what was left of each cap (None: no cap).
        budget_after: the same after the remedy was paid for; None until then.
    """

    route: str
    remedy: str | None = None
    regime: Regime | None = None
    reason: str = ""
    sentence: str = ""
    policy: str = ""
    evidence: Evidence = "samples"
    features: Mapping[str, float] | None = None
    z: Mapping[str, float] | None = None
    posterior: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    kinds: Mapping[str, int] = field(default_factory=dict)
    kind: Kind | None = None
    told: bool = False
    expected: Mapping[str, float] = field(default_factory=dict)
    from_junction: bool = False
    budget_before: Mapping[str, int | float | None] = field(default_factory=dict)
    budget_after: Mapping[str, int | float | None] | None = None


Status: TypeAlias = Literal["accepted", "rescued", "unconfirmed", "human", "rejected", "unresolved", "unasked"]
"""How a step can end; see ``Outcome``."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended. Always typed: an error's text is never an answer.

    Attributes:
        status: ``accepted``, the candidate passed as it was; ``rescued``, a remedy produced a verified success;
            ``unconfirmed``, only an opinion passed the answer, after a failure or under ``hold_first``, and with too
            little confidence;
            ``human``, a person gave or approved the answer; ``rejected``, a person turned it down;
            ``unresolved``, there is no answer that anybody vouches for; ``unasked``, the same, and a person should
            have been asked: the cap on escalations was spent.
        text: the text that stands, or None.
        answer: its parsed answer, where there is one.
        by: the remedy that produced it, or None.
        confidence: probability that the answer is right: 1 where it was proved, what opinions on it are worth where
            their rates were measured, None where they were not.
        best: the best candidate where no answer stands, or None; nobody vouches for it.
        weak: true where what accepted it is no proof (agreement among samples, a judge).
        reason: machine-readable cause, as in ``Decision.reason``.
        sentence: the same for a person.
        confirmed_by: ids of rollouts, by another remedy, that arrived at the same answer.
    """

    status: Status
    text: str | None = None
    answer: str | None = None
    by: str | None = None
    confidence: float | None = None
    best: str | None = None
    weak: bool = False
    reason: str = ""
    sentence: str = ""
    confirmed_by: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is an answer to go on with."""
        return self.status in ("accepted", "rescued", "unconfirmed", "human")


@dataclass(frozen=True, slots=True)
class Ask:
    """A case that was put before a person.

    Attributes:
        opened: Unix time in seconds.
        deadline: Unix time after which the default applies, or None to wait for ever.
        default: what applies then: ``approve`` or ``reject``.
    """

    opened: float
    deadline: float | None = None
    default: Literal["approve", "reject"] = "reject"


@dataclass(frozen=True, slots=True)
class Case:
    """One step on its way through the graph.

    Attributes:
        step: what was asked.
        ledger: what was spent, under which budget.
        rollouts: every candidate answer so far, compact, in order of arrival.
        attempts: the rounds that produced them.
        diagnosis: the latest.
        decisions: all of them, oldest first.
        ask: the question to a person, once there is one.
        outcome: how it ended, once it did.
        blocked: why no model can be asked any more, or "".
        blocked_by: the same for a machine: ``sampler_error``, ``circuit_open``, ``budget:`` and what has no room.
        holds: paid calls so far; with ``run_id`` they name each one in a shared budget's store.
        notes: what samplers and scorers had to say, in order and without repeats.
        run_id: of this run of the step, for those who are told its events and for a shared budget; "" where there
            is neither.
        before: what the ledger had spent when the step began: an agent's steps share one.
        operations: everything that was paid for, or refused, in order; ``bill`` is made of them.
        plain_retry: what an estimate of a plain retry rests on; None where nothing failed or none could be made.
    """

    step: Step
    ledger: Ledger = field(default_factory=Ledger)
    rollouts: tuple[Rollout, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    diagnosis: Diagnosis | None = None
    decisions: tuple[Decision, ...] = ()
    ask: Ask | None = None
    outcome: Outcome | None = None
    blocked: str = ""
    blocked_by: str = ""
    holds: int = 0
    notes: tuple[str, ...] = ()
    run_id: str = field(default="", compare=False)
    before: Spend = Spend()
    operations: tuple[Operation, ...] = ()
    plain_retry: PlainRetry | None = None

    @property
    def bill(self) -> Bill:
        """What the case came to: by model, by remedy, what was wasted, and what a plain retry is estimated at."""
        went_on, spent = self._went_on(), self.ledger.spent - self.before
        return bill_of(self.operations, went_on.__contains__, spent=spent, retry=self.plain_retry)

    @property
    def next_operation(self) -> str:
        """Id of the operation that is paid for next: the same whenever the same run comes to the same place."""
        return f"{self.run_id or self.step.id}/{len(self.operations)}"

    @property
    def decision(self) -> Decision:
        """The latest decision; a case has none before it was diagnosed."""
        if not self.decisions:
            raise ConfigError(f"step {self.step.id} has no decision yet; run diagnose on it first")
        return self.decisions[-1]

    @property
    def amplification(self) -> float | None:
        """Requests that reached a server for each that the engine asked for; None before it asked for any.

        Above 1 where the transport retried, or where a server that ignores ``n`` was asked once for each draw.
        """
        spent = self.ledger.spent
        return spent.calls / spent.asked if spent.asked else None

    @property
    def revisable(self) -> Rollout | None:
        """The failed answer that a model could be shown: the last one that the verifier said something of, else the
        last one that it turned down as an answer. One that was cut off or refused needs something else."""
        shown = [x for x in self.failed if x.kind in ("wrong", "malformed", "no_answer")]
        told = next((x for x in reversed(shown) if x.told), None)
        return told or next((x for x in reversed(shown) if x.said.strip()), None)

    @property
    def failed(self) -> tuple[Rollout, ...]:
        """The rollouts that were judged and turned down, in order of arrival, each with its kind."""
        failed = (x for x in self.rollouts if x.verdict is not None and not x.passed)
        return tuple(x if x.kind is not None else replace(x, kind=kind_of(x)) for x in failed)

    def draws(self, remedy: str = "retry") -> tuple[Rollout, ...]:
        """Distinct rollouts of ``remedy``: those that repeat a response id are one draw."""
        seen: set[str] = set()
        kept = []
        for rollout in self.rollouts:
            if rollout.remedy != remedy:
                continue
            if rollout.response_id is not None:
                if rollout.response_id in seen:
                    continue
                seen.add(rollout.response_id)
            kept.append(rollout)
        return tuple(kept)

    def tally(self, remedy: str) -> tuple[int, int]:
        """(tries, passes) of ``remedy``; tries that produced nothing to judge included."""
        drawn = self.draws(remedy)
        misses = sum(a.misses for a in self.attempts if a.remedy == remedy)
        return len(drawn) + misses, sum(r.passed for r in drawn)

    def source(self, rollout: Rollout) -> str:
        """The remedy that produced ``rollout``; "" for the first answer, wherever it came from."""
        first = self.rollouts[0]
        return "" if first.round in (None, 0) and rollout.attempt == first.attempt else rollout.remedy

    def paid(self, operation: Operation) -> Case:
        """With ``operation`` appended."""
        return replace(self, operations=(*self.operations, operation))

    def _went_on(self) -> set[int]:
        """Numbers of the attempts that ended in the answer that went on; a person is the one behind all others."""
        outcome = self.outcome
        if outcome is None or not outcome.ok:
            return set()
        if outcome.by != "human":
            made = (x for x in self.rollouts if x.passed and x.remedy == outcome.by and x.text == outcome.text)
            return {x.attempt for x in made}
        approved = next((x.attempt for x in self.rollouts if x.text == outcome.text), None)
        return {len(self.attempts) + 1} | ({approved} if approved is not None else set())

    def add(self, rollouts: tuple[Rollout, ...], attempt: Attempt) -> Case:
        """With the products of one round appended, named and numbered."""
        base, number = len(self.rollouts), len(self.attempts)
        if last := next(reversed(self.failed), None):
            attempt = replace(attempt, kind=last.kind, told=last.told)
        named = tuple(replace(r, id=f"r{base + i}", round=number) for i, r in enumerate(rollouts))
        return replace(self, rollouts=self.rollouts + named, attempts=(*self.attempts, attempt))

    def note(self, *notes: str) -> Case:
        """With ``notes`` appended, each on one line and cut, those already there left out."""
        new = dict.fromkeys(n for note in notes if (n := one_line(note, _NOTE)) not in self.notes)
        return replace(self, notes=(*self.notes, *new)) if new else self


class FinishedCase(Case):
    """A ``Case`` that has its outcome, for type checkers: what ``Recovery.run`` returns."""

    __slots__ = ()
    if TYPE_CHECKING:
        outcome: Outcome  # never None
