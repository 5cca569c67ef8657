"""The default policy: the paper's gate, the paper's rule where its features hold, and posteriors elsewhere.

The gate and the rule are those of arXiv 2606.05145. Turning a remedy into a route of an agent graph (a person, a
tool, a budget) is ours: a hypothesis that the policy lab measures, not the paper's claim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rfx_agent.budgets.step import Ledger
from rfx_agent.case import Decision, Diagnosis, Regime
from rfx_agent.checks import number, share
from rfx_agent.errors import ConfigError
from rfx_agent.evidence.posterior import mean
from rfx_agent.evidence.routing import RoutingRule, operator_of
from rfx_agent.policies.base import ROUTES, draft, settled

__all__ = ["DefaultPolicy"]

_WORDS: Mapping[str, str] = {
    "retry": "another draw",
    "local_temp": "a draw at a lifted temperature",
    "tool": "a check with the tool",
    "sparse_steer": "steering at the junction",
    "sparse_steer_random": "steering at a random position",
    "dense_steer": "steering everywhere",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultPolicy:
    """Accept, escalate, resample, or the remedy that the evidence names, in that order.

    Attributes:
        rule: the paper's rule, for features that may route.
        gate: a failure is stochastic when one more draw passes with more than this probability (the paper's 0.5).
        margin: how much better another remedy must be expected to do (the paper's 0.05).
        floor: below this expected rescue an option is not worth its cost (ours).
        rounds: most rounds per remedy on one failure (ours); those not named have one. A further round must
            differ from the last: plain draws have new seeds, a program is written anew.
        lifted_temperature: decode temperature of ``local_temp``.
    """

    rule: RoutingRule = field(default_factory=RoutingRule)
    gate: float = 0.5
    margin: float = 0.05
    floor: float = 0.05
    rounds: Mapping[str, int] = field(default_factory=lambda: {"retry": 4, "tool": 2})
    lifted_temperature: float = 1.0
    version: str = field(default="default/1", init=False)

    def __post_init__(self) -> None:
        for name in ("gate", "margin", "floor"):
            share(f"policy: {name}", getattr(self, name))
        number("policy: lifted_temperature", self.lifted_temperature, above=0)
        if unknown := sorted(set(self.rounds) - set(ROUTES)):
            raise ConfigError(
                f"policy: rounds names an unknown remedy {unknown[0]!r}; give some of {', '.join(ROUTES)}"
            )

    def decide(self, diagnosis: Diagnosis, ledger: Ledger) -> Decision:
        """The next route (see the class)."""
        if (decision := settled(self, diagnosis, ledger)) is not None:
            return decision
        rescue = {op: mean(prior) for op, prior in diagnosis.posterior.items()}
        untried = [op for op in ROUTES if op in diagnosis.cost and self._left(diagnosis, op)]
        if not untried:
            return self._escalate(diagnosis, ledger, rescue, "no_route", "Everything that could help was tried.")
        options = [op for op in untried if not ledger.shortfall(diagnosis.cost[op])]
        if not options:
            caps = ledger.shortfall(diagnosis.cost[min(untried, key=lambda op: diagnosis.cost[op].tokens)])
            return self._escalate(
                diagnosis, ledger, rescue, f"budget:{caps[0]}", f"The budget has too few {caps[0]} left."
            )
        best = max(options, key=lambda op: rescue[op])
        if rescue[best] < self.floor:
            return self._escalate(
                diagnosis,
                ledger,
                rescue,
                "out_of_reach",
                f"The best option left, {_WORDS[best]}, rescues with {rescue[best]:.0%}, "
                f"below the floor of {self.floor:.0%}.",
                regime="out_of_reach",
            )
        others: list[str] = [op for op in options if op != "retry"]
        other = max(others, key=lambda op: rescue[op], default=None)
        structural = (
            other is not None and rescue["retry"] <= self.gate and rescue[other] - rescue["retry"] >= self.margin
        )
        if not structural and "retry" in options:
            return self._resample(diagnosis, ledger, rescue, other)
        return self._structural(diagnosis, ledger, rescue, others or options, structural=structural)

    def _left(self, diagnosis: Diagnosis, remedy: str) -> bool:
        return diagnosis.tried.get(remedy, 0) < self.rounds.get(remedy, 1)

    def _resample(self, d: Diagnosis, ledger: Ledger, rescue: Mapping[str, float], other: str | None) -> Decision:
        against = (
            "and nothing else is left to try"
            if other is None
            else f"and {_WORDS[other]} with {rescue[other]:.0%}, not enough better"
        )
        sentence = f"{d.passes} of {d.draws} draws passed: another draw passes with {rescue['retry']:.0%}, {against}."
        return self._decision(d, ledger, rescue, "resample", "retry", "stochastic", "gate:stochastic", sentence)

    def _structural(
        self,
        d: Diagnosis,
        ledger: Ledger,
        rescue: Mapping[str, float],
        options: list[str],
        *,
        structural: bool,
    ) -> Decision:
        chance = f"{d.passes} of {d.draws} draws passed, another passes with {rescue['retry']:.0%}"
        asked, why = None, "the features may not route here, so the best expected rescue decides"
        if d.routable and d.z is not None and all(name in d.z for name in self.rule.operators):
            asked = operator_of(d.z, self.rule)
            why = f"the rule asks for {_WORDS[asked]}"
        remedy, reason = self._operator(asked, rescue, options)
        if asked is not None and remedy != asked:
            why += f", which is unavailable, so {_WORDS[remedy]} takes its place"
        sentence = f"{chance}: {why}: {_WORDS[remedy]} ({rescue[remedy]:.0%})."
        return self._decision(
            d,
            ledger,
            rescue,
            ROUTES[remedy],
            remedy,
            "structural" if structural else "stochastic",
            reason,
            sentence,
            # A sparse stand-in checks the step at the junction; a dense one redoes the whole solution.
            from_junction=remedy == "local_temp" or (remedy == "tool" and asked == "sparse_steer"),
        )

    @staticmethod
    def _operator(asked: str | None, rescue: Mapping[str, float], options: list[str]) -> tuple[str, str]:
        if asked in options and asked is not None:
            return asked, f"rule:{asked}"
        if asked is not None and "tool" in options:
            return "tool", f"rule:{asked}>tool"
        best = max(options, key=lambda op: rescue[op])
        return best, f"rescue:{best}"

    def _escalate(
        self,
        d: Diagnosis,
        ledger: Ledger,
        rescue: Mapping[str, float],
        reason: str,
        sentence: str,
        regime: Regime | None = None,
    ) -> Decision:
        return self._decision(d, ledger, rescue, "escalate", "human", regime, reason, sentence)

    def _decision(
        self,
        d: Diagnosis,
        ledger: Ledger,
        rescue: Mapping[str, float],
        route: str,
        remedy: str | None,
        regime: Regime | None,
        reason: str,
        sentence: str,
        *,
        from_junction: bool = False,
    ) -> Decision:
        return draft(
            self,
            d,
            ledger,
            route,
            remedy,
            reason,
            sentence,
            expected=rescue,
            regime=regime,
            temperature=self.lifted_temperature if remedy == "local_temp" else None,
            from_junction=from_junction,
        )
