"""A policy that learns which attempts pay on this deployment's failures, and when to stop.

Ours; what was tried and what it reaches is in docs/policies.md. The model is in ``population``: a posterior over
what kind of failure this is, under hypotheses on the population that the outcomes so far have weighed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from rfx_agent.budgets.step import Ledger
from rfx_agent.case import Case, Decision, Diagnosis, Regime
from rfx_agent.checks import number, whole
from rfx_agent.policies.base import draft, settled
from rfx_agent.policies.belief import Belief, seen_in
from rfx_agent.policies.population import PopulationPrior, Tries, hypotheses, ordered, predict, weigh
from rfx_agent.policies.store import PolicyStore
from rfx_agent.policies.worth import Worth, choose

__all__ = ["LearnedPolicy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedPolicy:
    """Takes the remedy with the best expected rescue per cost, and escalates when none is worth its cost.

    Pure given its belief. Learning returns a new policy; workers share a belief through a ``PolicyStore``, because
    beliefs add up. Trajectory features do not choose remedies here: on the published failures they did not pay.

    Attributes:
        belief: the outcomes that it has learned from.
        worth: of rescues, attempts and a person's minutes.
        prior: what is believed before any outcome.
        memory: failures that the belief may count as, at most: the hypotheses are a sketch of the truth, and
            without a bound one of them would be taken for certain.
        explore: attempts of a remedy, over all failures, below which it is not given up as not worth its cost; on
            one failure it is then tried once.

    Raises:
        ConfigError: parameters that cannot work.
    """

    belief: Belief = field(default_factory=Belief)
    worth: Worth = field(default_factory=Worth)
    prior: PopulationPrior = field(default_factory=PopulationPrior)
    memory: float = 1000.0
    explore: int = 10
    version: str = field(default="learned/2", init=False)

    def __post_init__(self) -> None:
        number("policy: memory", self.memory, above=0, finite=False)
        whole("policy: explore", self.explore)
        hypotheses(self.prior, ordered(()))  # drawn here and not at the first decision, on an event loop

    def learn(self, case: Case) -> LearnedPolicy:
        """Return a policy that also knows one finished case.

        The candidate is not counted: the case exists only because it failed.
        """
        return replace(self, belief=self.belief + seen_in(case))

    def refreshed(self, store: PolicyStore) -> LearnedPolicy:
        """With the belief that all workers of ``store`` share."""
        return replace(self, belief=store.load())

    def expected(self, tries: Mapping[str, int]) -> dict[str, float]:
        """Per remedy, the probability that one more attempt rescues a failure on which ``tries`` failed."""
        names = ordered((*self.belief.attempts(), *tries))
        counts = tuple(tries.get(op, 0) for op in names)
        worlds = hypotheses(self.prior, names)
        rescue = predict(self._weights(names), worlds.table(counts))[0]
        return {op: float(p) for op, p in zip(names, rescue, strict=True)}

    def decide(self, diagnosis: Diagnosis, ledger: Ledger) -> Decision:
        """The next route (see the class)."""
        if (decision := settled(self, diagnosis, ledger)) is not None:
            return decision
        tries = dict.fromkeys(diagnosis.cost, 0) | dict(diagnosis.failed)
        rescue = self.expected(tries)
        names = tuple(rescue)
        had = [op for op in names if op in diagnosis.cost]
        if not had:
            sentence = "No remedy is available."
            return draft(self, diagnosis, ledger, "escalate", "human", "no_route", sentence, expected=rescue)
        options = [op for op in had if not ledger.shortfall(diagnosis.cost[op])]
        if not options:
            cap = ledger.shortfall(diagnosis.cost[had[0]])[0]
            sentence = f"The budget has too few {cap} left."
            return draft(self, diagnosis, ledger, "escalate", "human", f"budget:{cap}", sentence, expected=rescue)
        available = np.array([op in options for op in names])
        made = self.belief.attempts()
        untested = np.array([[made.get(op, 0) < self.explore and not tries.get(op, 0) for op in names]])
        chosen = int(choose(np.array([list(rescue.values())]), self.worth, available, untested, names)[0])
        failed = sum(tries.values())
        so_far = f"{failed} attempts failed" if failed != 1 else "1 attempt failed"
        if chosen < 0:
            best = max(options, key=lambda op: rescue[op])
            sentence = f"{so_far}: the best option left, {best}, rescues with {rescue[best]:.0%}: not worth its cost."
            return draft(
                self,
                diagnosis,
                ledger,
                "escalate",
                "human",
                "not_worth",
                sentence,
                expected=rescue,
                regime="out_of_reach" if diagnosis.answered else None,
            )
        remedy = names[chosen]
        sentence = (
            f"{so_far}: {remedy} rescues with {rescue[remedy]:.0%}, the best for its cost, "
            f"going by {self.belief.failures:g} failures before."
        )
        # As the default policy says it: another draw suffices, or something else is needed.
        regime: Regime = "stochastic" if remedy == "retry" else "structural"
        return draft(
            self,
            diagnosis,
            ledger,
            diagnosis.nodes[remedy],
            remedy,
            f"learned:{remedy}",
            sentence,
            expected=rescue,
            regime=regime if diagnosis.answered else None,
        )

    def evidence(self, remedies: Iterable[str] = ()) -> npt.NDArray[np.float64]:
        """Log-likelihood of everything in the belief under each hypothesis of the prior, shape (H,).

        Args:
            remedies: names that the hypotheses know besides those of the belief.
        """
        return _evidence(self.belief, self.prior, ordered((*self.belief.attempts(), *remedies)))

    def _weights(self, remedies: tuple[str, ...]) -> npt.NDArray[np.floating]:
        share = min(1.0, self.memory / max(self.belief.failures, 1.0))
        return weigh(hypotheses(self.prior, remedies).log_prior + self.evidence(remedies) * share)[None]


@lru_cache(maxsize=32)
def _evidence(belief: Belief, prior: PopulationPrior, remedies: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """Log-likelihood of everything in ``belief`` under each hypothesis, shape (H,)."""
    worlds = hypotheses(prior, remedies)
    total = np.zeros(worlds.size)
    for (failed, by), n in belief.histories.items():
        counts: dict[str, int] = dict(failed)
        tries: Tries = tuple(counts.get(op, 0) for op in remedies)
        total += n * worlds.log_likelihood(tries, len(remedies) if by is None else remedies.index(by))
    return total
