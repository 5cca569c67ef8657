"""Policies as players of a replay."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rfx_agent._records import Diagnosis
from rfx_agent._types import Agreement, Operator, Spend
from rfx_agent.budgets import Ledger, RetryBudget
from rfx_agent.calibration import Calibration
from rfx_agent.lab._replay import Cell, Floats, Ints
from rfx_agent.numerics.posterior import update
from rfx_agent.policies import Policy
from rfx_agent.policies._population import OPERATORS, hypotheses, predict, weigh
from rfx_agent.policies._worth import choose
from rfx_agent.policies.learned import LearnedPolicy

__all__ = ["DecidingPlayer", "FixedPlayer", "LearnedPlayer", "MappedPlayer"]

_ONE = Spend(attempts=1)
_BASE = 64 ** np.arange(len(OPERATORS), dtype=np.int64)  # a tries vector as one number; budgets stay below 64


class FixedPlayer:
    """A sequence of operators, round and round."""

    def __init__(self, operators: tuple[Operator, ...]) -> None:
        self._turns = np.array([OPERATORS.index(op) for op in operators], dtype=np.intp)

    def act(self, failures: Ints, tries: npt.NDArray[np.int64]) -> tuple[Ints, Floats]:
        """See ``Player``."""
        return self._turns[tries.sum(axis=1) % len(self._turns)], np.full(len(failures), np.nan)

    def learn(self, tries: npt.NDArray[np.int64], by: Ints) -> None:
        """Nothing to learn."""


class MappedPlayer:
    """One operator per failure, for all attempts: the paper's rule."""

    def __init__(self, operators: Ints) -> None:
        self._operators = operators

    def act(self, failures: Ints, tries: npt.NDArray[np.int64]) -> tuple[Ints, Floats]:
        """See ``Player``."""
        return self._operators[failures], np.full(len(failures), np.nan)

    def learn(self, tries: npt.NDArray[np.int64], by: Ints) -> None:
        """Nothing to learn."""


class LearnedPlayer:
    """``LearnedPolicy`` over O orders at once; each starts from the policy's belief and learns on its own."""

    def __init__(self, policy: LearnedPolicy, available: npt.NDArray[np.bool_], orders: int) -> None:
        self._worlds = hypotheses(policy.prior)
        self._policy, self._available = policy, available
        self._evidence = np.repeat(policy.evidence().astype(np.float32)[None], orders, axis=0)
        made = policy.belief.attempts()
        self._made = np.tile([float(made.get(op, 0)) for op in OPERATORS], (orders, 1))
        self._log_prior = self._worlds.log_prior.astype(np.float32)
        self._seen = policy.belief.failures
        self._weights = self._weigh()

    def _weigh(self) -> npt.NDArray[np.float32]:
        share = np.float32(min(1.0, self._policy.memory / max(self._seen, 1.0)))
        return weigh(self._log_prior + self._evidence * share).astype(np.float32, copy=False)

    def act(self, failures: Ints, tries: npt.NDArray[np.int64]) -> tuple[Ints, Floats]:
        """See ``Player``."""
        rescue = np.empty((len(failures), len(OPERATORS)))
        for rows in _groups(tries @ _BASE):
            rescue[rows] = predict(self._weights[rows], self._worlds.table(tuple(tries[rows[0]].tolist())))
        untested = (self._made < self._policy.explore) & (tries == 0)
        chosen = choose(rescue, self._policy.worth, self._available, untested)
        return chosen, rescue[np.arange(len(chosen)), chosen]

    def learn(self, tries: npt.NDArray[np.int64], by: Ints) -> None:
        """See ``Player``."""
        for rows in _groups((tries @ _BASE) * (len(OPERATORS) + 1) + by):
            first = rows[0]
            self._evidence[rows] += self._worlds.log_likelihood(tuple(tries[first].tolist()), int(by[first]))
        self._made += tries
        passed = np.flatnonzero(by < len(OPERATORS))
        self._made[passed, by[passed]] += 1
        self._seen += 1
        self._weights = self._weigh()


class DecidingPlayer:
    """Any ``Policy``, asked as the graph would, once for each failure and set of failed attempts.

    The failed candidate is the one draw so far, the features are the profile's against the built-in calibration, one
    round is one attempt, and the budget caps attempts only. The policy does not learn.
    """

    def __init__(self, policy: Policy, cell: Cell, depth: int) -> None:
        self._policy, self._cell, self._depth = policy, cell, depth
        self._calibration = Calibration.published()
        self._known: dict[tuple[int, tuple[int, ...]], tuple[int, float]] = {}
        self._cost: dict[str, Spend] = {op: _ONE for op, had in zip(OPERATORS, cell.available, strict=True) if had}

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

    def learn(self, tries: npt.NDArray[np.int64], by: Ints) -> None:
        """Nothing is learned."""

    def _decide(self, failure: int, tried: tuple[int, ...]) -> tuple[int, float]:
        ledger = Ledger(RetryBudget(attempts=self._depth, samples=None, tokens=None, seconds=None, tool_seconds=None))
        decision = self._policy.decide(self.diagnosis(failure, tried), ledger.charge(Spend(attempts=sum(tried))))
        if decision.operator not in OPERATORS:
            return -1, float("nan")
        return OPERATORS.index(decision.operator), decision.expected.get(decision.operator, float("nan"))

    def diagnosis(self, failure: int, tried: tuple[int, ...]) -> Diagnosis:
        """What the graph would know after ``tried``, failed attempts per operator."""
        counts = dict(zip(OPERATORS, tried, strict=True))
        features = {name: float(column[failure]) for name, column in self._cell.features.items()}
        z = self._calibration.z(features, "two_model")
        against = self._calibration.caveats(features, "two_model")
        draws = 1 + counts["retry"]
        return Diagnosis(
            step_id=str(failure),
            evidence="two_model",
            features=features or None,
            z=z,
            calibration=self._calibration.name,
            routable=z is not None and not against,
            caveats=against,
            draws=draws,
            passes=0,
            agreement=Agreement(draws, draws, 1 / draws, 1.0),
            posterior={
                op: update(self._calibration.prior(op), 0, draws if op == "retry" else counts[op]) for op in OPERATORS
            },
            tried={op: n for op, n in counts.items() if n},
            cost=self._cost,
        )


def _groups(codes: npt.NDArray[np.int64]) -> list[Ints]:
    """Row numbers of equal codes together."""
    order = codes.argsort(kind="stable")
    cuts = np.flatnonzero(np.diff(codes[order])) + 1
    return np.split(order, cuts)
