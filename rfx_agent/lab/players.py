"""Policies as players of a replay."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from rfx_agent.budgets.step import Ledger, RetryBudget
from rfx_agent.case import Diagnosis
from rfx_agent.evidence.calibration import Calibration
from rfx_agent.evidence.posterior import update
from rfx_agent.evidence.rescue import Believed, belief_in
from rfx_agent.lab.common import FEATURES
from rfx_agent.lab.replay import Cell, Floats, Ints, Player
from rfx_agent.policies.base import Policy
from rfx_agent.policies.learned import LearnedPolicy
from rfx_agent.policies.population import REMEDIES, hypotheses, predict, weigh
from rfx_agent.policies.worth import choose
from rfx_agent.records import Agreement, Evidence, Kind, Spend

__all__ = ["DecidingPlayer", "FixedPlayer", "LearnedPlayer", "MappedPlayer"]

_BITS = 6  # of a number of failed attempts: budgets stay below 64
_DIGITS = 8  # so many of them, and a row's number in front of them, are one int64
_UNIT = 1000  # tokens that a cost of 1 stands for: a ledger counts whole ones


class FixedPlayer(Player):
    """A sequence of remedies, round and round.

    Args:
        turns: the sequence.
        remedies: the cell's.
    """

    def __init__(self, turns: tuple[str, ...], remedies: tuple[str, ...] = REMEDIES) -> None:
        self._turns = np.array([remedies.index(op) for op in turns], dtype=np.intp)

    def act(self, failures: Ints, tries: npt.NDArray[np.int64]) -> tuple[Ints, Floats]:
        """Choose the next remedy of the sequence for each failure (see ``Player.act``)."""
        return self._turns[tries.sum(axis=1) % len(self._turns)], np.full(len(failures), np.nan)


class MappedPlayer(Player):
    """One remedy per failure, for all attempts: the paper's rule."""

    def __init__(self, remedies: Ints) -> None:
        self._remedies = remedies

    def act(self, failures: Ints, tries: npt.NDArray[np.int64]) -> tuple[Ints, Floats]:
        """Choose each failure's own remedy again (see ``Player.act``)."""
        return self._remedies[failures], np.full(len(failures), np.nan)


class LearnedPlayer(Player):
    """``LearnedPolicy`` over O orders at once; each starts from the policy's belief and learns on its own.

    Args:
        policy: what is played.
        available: which of ``remedies`` can be tried, shape (K,).
        orders: how many.
        remedies: the cell's.
    """

    def __init__(
        self,
        policy: LearnedPolicy,
        available: npt.NDArray[np.bool_],
        orders: int,
        remedies: tuple[str, ...] = REMEDIES,
    ) -> None:
        self._worlds = hypotheses(policy.prior, remedies)
        self._policy, self._available, self._remedies = policy, available, remedies
        self._evidence = np.repeat(policy.evidence(remedies).astype(np.float32)[None], orders, axis=0)
        made = policy.belief.attempts()
        self._made = np.tile([float(made.get(op, 0)) for op in remedies], (orders, 1))
        self._log_prior = self._worlds.log_prior.astype(np.float32)
        self._seen = policy.belief.failures
        self._weights = self._weigh()

    def _weigh(self) -> npt.NDArray[np.float32]:
        share = np.float32(min(1.0, self._policy.memory / max(self._seen, 1.0)))
        return weigh(self._log_prior + self._evidence * share).astype(np.float32, copy=False)

    def act(self, failures: Ints, tries: npt.NDArray[np.int64]) -> tuple[Ints, Floats]:
        """Choose the next remedy for each failure, as ``Player.act`` says."""
        rescue = np.empty((len(failures), len(self._remedies)))
        for rows in _groups(_code(tries)):
            rescue[rows] = predict(self._weights[rows], self._worlds.table(tuple(tries[rows[0]].tolist())))
        untested = (self._made < self._policy.explore) & (tries == 0)
        chosen = choose(rescue, self._policy.worth, self._available, untested, self._remedies)
        return chosen, rescue[np.arange(len(chosen)), chosen]

    def learn(self, tries: npt.NDArray[np.int64], by: Ints) -> None:
        """See ``Player``."""
        k = len(self._remedies)
        for rows in _groups(_code(np.column_stack([tries, by]))):
            first = rows[0]
            self._evidence[rows] += self._worlds.log_likelihood(tuple(tries[first].tolist()), int(by[first]))
        self._made += tries
        passed = np.flatnonzero(by < k)
        self._made[passed, by[passed]] += 1
        self._seen += 1
        self._weights = self._weigh()


class DecidingPlayer(Player):
    """Any ``Policy``, asked as the graph would, once for each failure and set of failed attempts.

    The failed candidate is the one draw so far, the features are the profile's against the built-in calibration, one
    round is one attempt, and the budget caps attempts only. Every answer of a failure fails as its candidate did. What
    an attempt costs is ``costs``, else the cell's mean tokens where they are known of every remedy, else all cost the
    same. The policy does not learn.

    Args:
        policy: what is asked.
        cell: the failures.
        depth: attempts per failure, at most.
        costs: cost of one attempt per remedy, 1 for those left out; none by default.
    """

    def __init__(self, policy: Policy, cell: Cell, depth: int, costs: Mapping[str, float] | None = None) -> None:
        self._policy, self._cell, self._depth = policy, cell, depth
        self._calibration = Calibration.published()
        self._known: dict[tuple[int, tuple[int, ...]], tuple[int, float]] = {}
        self._beliefs: dict[tuple[str, Kind, bool, bool], Believed] = {}
        self._cost = {op: Spend(attempts=1, tokens=n) for op, n in _tokens(cell, costs or {}).items()}

    def act(self, failures: Ints, tries: npt.NDArray[np.int64]) -> tuple[Ints, Floats]:
        """See ``Player``."""
        chosen = np.empty(len(failures), dtype=np.intp)
        predicted = np.empty(len(failures))
        for lane, (failure, tried) in enumerate(zip(failures.tolist(), map(tuple, tries.tolist()), strict=True)):
            key = (failure, tried)
            if key not in self._known:
                self._known[key] = self._decide(failure, tried)
            chosen[lane], predicted[lane] = self._known[key]
        return chosen, predicted

    def _decide(self, failure: int, tried: tuple[int, ...]) -> tuple[int, float]:
        ledger = Ledger(RetryBudget(attempts=self._depth, samples=None, tokens=None, seconds=None, tool_seconds=None))
        decision = self._policy.decide(self.diagnosis(failure, tried), ledger.charge(Spend(attempts=sum(tried))))
        if decision.remedy is None or decision.remedy not in self._cost:
            return -1, float("nan")
        at = self._cell.remedies.index(decision.remedy)
        return at, decision.expected.get(decision.remedy, float("nan"))

    def diagnosis(self, failure: int, tried: tuple[int, ...]) -> Diagnosis:
        """What the graph would know after ``tried``, failed attempts per remedy of the cell."""
        counts = {op: n for op, n in zip(self._cell.remedies, tried, strict=True) if n}
        evidence, features = self._features(failure)
        z = self._calibration.z(features, evidence)
        against = self._calibration.caveats(features, evidence)
        routable = z is not None and not against
        kind, told = self._cell.before[failure] if self._cell.before else ("wrong", False)
        draws = 1 + counts.get("retry", 0)
        names = sorted({*(self._calibration.priors if routable else ()), *self._cost, *counts})
        beliefs = {op: self._believed(op, kind, told, routable) for op in names}
        return Diagnosis(
            step_id=str(failure),
            evidence=evidence,
            features=features,
            z=z,
            calibration=self._calibration.name,
            routable=routable,
            caveats=against,
            draws=draws,
            passes=0,
            agreement=Agreement(draws, draws, 1 / draws, 1.0),
            posterior={
                op: update(belief.beta, 0, draws if routable and op == "retry" else counts.get(op, 0))
                for op, belief in beliefs.items()
            },
            tried=counts,
            cost=self._cost,
            kinds={kind: 1 + sum(tried)},
            kind=kind,
            told=told,
            failed=counts,
            turn=sum(tried),
            nodes={op: op for op in self._cost},
            priors={op: beliefs[op].said for op in self._cost},
        )

    def _believed(self, remedy: str, kind: Kind, told: bool, routable: bool) -> Believed:
        key = (remedy, kind, told, routable)
        if key not in self._beliefs:
            self._beliefs[key] = belief_in(remedy, self._calibration, kind=kind, told=told, published=routable)
        return self._beliefs[key]

    def _features(self, failure: int) -> tuple[Evidence, dict[str, float] | None]:
        """The better kind of evidence that the cell has, and that failure's features."""
        for evidence, names in FEATURES.items():
            if set(names) <= set(self._cell.features):
                return evidence, {name: float(self._cell.features[name][failure]) for name in names}
        return "samples", None


def _tokens(cell: Cell, costs: Mapping[str, float]) -> dict[str, int]:
    """What one attempt of each remedy of the cell counts as, in a currency that all of them share."""
    if not costs and all(op in cell.tokens for op in cell.had):
        return {op: round(float(cell.tokens[op].mean())) for op in cell.had}
    return {op: round(_UNIT * costs.get(op, 1.0)) for op in cell.had}


def _code(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """One number for each row of ``numbers``, shape (n, K), each in [0, 63]: equal for equal rows alone."""
    code = np.zeros(len(numbers), dtype=np.int64)
    for start in range(0, numbers.shape[1], _DIGITS):
        part = numbers[:, start : start + _DIGITS]
        rank = np.unique(code, return_inverse=True)[1] if start else code  # small again, so that it fits in front
        code = (rank << (_BITS * _DIGITS)) + (part << (_BITS * np.arange(part.shape[1]))).sum(axis=1)
    return code


def _groups(codes: npt.NDArray[np.int64]) -> list[Ints]:
    """Row numbers of equal codes together."""
    order = codes.argsort(kind="stable")
    cuts = np.flatnonzero(np.diff(codes[order])) + 1
    return np.split(order, cuts)
