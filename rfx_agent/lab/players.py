"""Policies as players of a replay."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rfx_agent.budgets.step import Ledger, RetryBudget
from rfx_agent.case import Diagnosis
from rfx_agent.evidence.calibration import Calibration
from rfx_agent.evidence.posterior import update
from rfx_agent.lab.replay import Cell, Floats, Ints, Player
from rfx_agent.policies.base import Policy
from rfx_agent.policies.learned import LearnedPolicy
from rfx_agent.policies.population import REMEDIES, hypotheses, predict, weigh
from rfx_agent.policies.worth import choose
from rfx_agent.records import Agreement, Spend

__all__ = ["DecidingPlayer", "FixedPlayer", "LearnedPlayer", "MappedPlayer"]

_ONE = Spend(attempts=1)
_BASE = 64 ** np.arange(len(REMEDIES), dtype=np.int64)  # a tries vector as one number; budgets stay below 64


class FixedPlayer(Player):
    """A sequence of remedies, round and round."""

    def __init__(self, remedies: tuple[str, ...]) -> None:
        self._turns = np.array([REMEDIES.index(op) for op in remedies], dtype=np.intp)

    def act(self, failures: Ints, tries: npt.NDArray[np.int64]) -> tuple[Ints, Floats]:
        """See ``Player``."""
        return self._turns[tries.sum(axis=1) % len(self._turns)], np.full(len(failures), np.nan)


class MappedPlayer(Player):
    """One remedy per failure, for all attempts: the paper's rule."""

    def __init__(self, remedies: Ints) -> None:
        self._remedies = remedies

    def act(self, failures: Ints, tries: npt.NDArray[np.int64]) -> tuple[Ints, Floats]:
        """See ``Player``."""
        return self._remedies[failures], np.full(len(failures), np.nan)


class LearnedPlayer(Player):
    """``LearnedPolicy`` over O orders at once; each starts from the policy's belief and learns on its own."""

    def __init__(self, policy: LearnedPolicy, available: npt.NDArray[np.bool_], orders: int) -> None:
        self._worlds = hypotheses(policy.prior)
        self._policy, self._available = policy, available
        self._evidence = np.repeat(policy.evidence().astype(np.float32)[None], orders, axis=0)
        made = policy.belief.attempts()
        self._made = np.tile([float(made.get(op, 0)) for op in REMEDIES], (orders, 1))
        self._log_prior = self._worlds.log_prior.astype(np.float32)
        self._seen = policy.belief.failures
        self._weights = self._weigh()

    def _weigh(self) -> npt.NDArray[np.float32]:
        share = np.float32(min(1.0, self._policy.memory / max(self._seen, 1.0)))
        return weigh(self._log_prior + self._evidence * share).astype(np.float32, copy=False)

    def act(self, failures: Ints, tries: npt.NDArray[np.int64]) -> tuple[Ints, Floats]:
        """See ``Player``."""
        rescue = np.empty((len(failures), len(REMEDIES)))
        for rows in _groups(tries @ _BASE):
            rescue[rows] = predict(self._weights[rows], self._worlds.table(tuple(tries[rows[0]].tolist())))
        untested = (self._made < self._policy.explore) & (tries == 0)
        chosen = choose(rescue, self._policy.worth, self._available, untested)
        return chosen, rescue[np.arange(len(chosen)), chosen]

    def learn(self, tries: npt.NDArray[np.int64], by: Ints) -> None:
        """See ``Player``."""
        for rows in _groups((tries @ _BASE) * (len(REMEDIES) + 1) + by):
            first = rows[0]
            self._evidence[rows] += self._worlds.log_likelihood(tuple(tries[first].tolist()), int(by[first]))
        self._made += tries
        passed = np.flatnonzero(by < len(REMEDIES))
        self._made[passed, by[passed]] += 1
        self._seen += 1
        self._weights = self._weigh()


class DecidingPlayer(Player):
    """Any ``Policy``, asked as the graph would, once for each failure and set of failed attempts.

    The failed candidate is the one draw so far, the features are the profile's against the built-in calibration, one
    round is one attempt, and the budget caps attempts only. The policy does not learn.
    """

    def __init__(self, policy: Policy, cell: Cell, depth: int) -> None:
        self._policy, self._cell, self._depth = policy, cell, depth
        self._calibration = Calibration.published()
        self._known: dict[tuple[int, tuple[int, ...]], tuple[int, float]] = {}
        self._cost: dict[str, Spend] = {op: _ONE for op, had in zip(REMEDIES, cell.available, strict=True) if had}

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
        if decision.remedy not in REMEDIES:
            return -1, float("nan")
        return REMEDIES.index(decision.remedy), decision.expected.get(decision.remedy, float("nan"))

    def diagnosis(self, failure: int, tried: tuple[int, ...]) -> Diagnosis:
        """What the graph would know after ``tried``, failed attempts per remedy."""
        counts = dict(zip(REMEDIES, tried, strict=True))
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
                op: update(self._calibration.prior(op), 0, draws if op == "retry" else counts[op]) for op in REMEDIES
            },
            tried={op: n for op, n in counts.items() if n},
            cost=self._cost,
        )


def _groups(codes: npt.NDArray[np.int64]) -> list[Ints]:
    """Row numbers of equal codes together."""
    order = codes.argsort(kind="stable")
    cuts = np.flatnonzero(np.diff(codes[order])) + 1
    return np.split(order, cuts)
