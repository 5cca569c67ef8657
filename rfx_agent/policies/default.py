"""The default policy: the paper's gate and rule where its features hold, and the best expected worth elsewhere.

The gate and the rule are those of arXiv 2606.05145. Turning a remedy into a route of an agent graph (a person, a
tool, a budget) is ours: a hypothesis that the policy lab measures, not the paper's claim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rfx_agent.budgets.step import Ledger
from rfx_agent.case import Decision, Diagnosis, Regime
from rfx_agent.checks import number, share, whole
from rfx_agent.evidence.posterior import mean
from rfx_agent.evidence.routing import RoutingRule, operator_of
from rfx_agent.policies.base import draft, settled
from rfx_agent.records import Spend

__all__ = ["DefaultPolicy", "in_one_currency"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultPolicy:
    """Accept what passes; else buy the remedy with the best expected worth, as long as one is worth its price.

    Where the features of two models hold inside their calibration, the paper's gate and rule choose: another draw
    where that passes with more than ``gate``, else the operator that the features ask for. To get such features it
    draws up to ``draws`` times, if another remedy is available that they could choose. Everywhere else the worth of a
    remedy is P(rescue) times ``worth`` minus its price, in draws: dollars over dollars where prices are known, else
    tokens over tokens. Where nothing is worth its price, a person is asked, or the step ends.

    Attributes:
        rule: the paper's rule, for features that may route.
        gate: a failure is stochastic when one more draw passes with more than this probability (the paper's 0.5).
        margin: how much better another remedy must be expected to do (the paper's 0.05).
        worth: what a rescue is worth, in draws. At 100, a draw is bought from an expected rescue of 1 % on.
        draws: failed draws with features that the rule wants to see, the first included (ours).
    """

    rule: RoutingRule = field(default_factory=RoutingRule)
    gate: float = 0.5
    margin: float = 0.05
    worth: float = 100.0
    draws: int = 4
    version: str = field(default="default/2", init=False)

    def __post_init__(self) -> None:
        for name in ("gate", "margin"):
            share(f"policy: {name}", getattr(self, name))
        number("policy: worth", self.worth, above=0, unit="draws,")
        whole("policy: draws", self.draws, least=0)

    def decide(self, diagnosis: Diagnosis, ledger: Ledger) -> Decision:
        """The next route (see the class)."""
        if (decision := settled(self, diagnosis, ledger)) is not None:
            return decision
        if not diagnosis.cost:
            return self._ends(diagnosis, ledger, "no_route", _nothing(diagnosis))
        options = [name for name in diagnosis.cost if not ledger.shortfall(diagnosis.cost[name])]
        if not options:
            least = min(diagnosis.cost.values(), key=lambda cost: cost.tokens)
            cap = ledger.shortfall(least)[0]
            return self._ends(diagnosis, ledger, f"budget:{cap}", f"The budget has too few {cap} left.")
        rescue = {name: mean(diagnosis.posterior[name]) for name in options}
        prices = in_one_currency(diagnosis.cost, priced=diagnosis.priced)
        worth = {name: rescue[name] * self.worth - prices[name] for name in options}
        best = max(options, key=lambda name: worth[name])
        if worth[best] < 0:
            better = [x for x in diagnosis.cost if mean(diagnosis.posterior[x]) * self.worth > prices[x]]
            if better:  # what cannot be paid for would be worth it
                cap = ledger.shortfall(diagnosis.cost[better[0]])[0]
                return self._ends(diagnosis, ledger, f"budget:{cap}", f"The budget has too few {cap} left.")
            return self._ends(
                diagnosis,
                ledger,
                "out_of_reach",
                f"{_seen(diagnosis)} The best option left, {_words(diagnosis, best)}, rescues with {rescue[best]:.1%}, "
                "which is not worth its price.",
                "out_of_reach",
            )
        # The paper's rule chooses among its own remedies. One that it does not know of is taken where it is worth more.
        ruled = [
            name for name in options if name in ("retry", "tool", self.rule.fallback, *self.rule.operators.values())
        ]
        if best in ruled and self._wants_draws(diagnosis, ruled):
            sentence = f"{_seen(diagnosis)} Another draw shows what kind of failure this is."
            return self._decision(diagnosis, ledger, "retry", "evidence:draws", None, sentence)
        if best in ruled and diagnosis.routable:
            return self._by_evidence(diagnosis, ledger, rescue, ruled)
        return self._by_worth(diagnosis, ledger, rescue, prices, worth)

    def _wants_draws(self, d: Diagnosis, ruled: list[str]) -> bool:
        """Whether more draws can change the decision: features may route, and there is something to route to.

        Draws that show nothing, such as cut ones, are not made up for: the turn bounds them.
        """
        few = max(d.draws - d.passes - d.kinds.get("cut", 0), d.turn + 1) < self.draws
        return d.measurable and few and "retry" in ruled and len(ruled) > 1

    def _by_evidence(self, d: Diagnosis, ledger: Ledger, rescue: Mapping[str, float], options: list[str]) -> Decision:
        """The paper's gate, and its rule."""
        others = [name for name in options if name != "retry"]
        other = max(others, key=lambda name: rescue[name], default=None)
        chance = rescue.get("retry", 0.0)
        structural = other is not None and chance <= self.gate and rescue[other] - chance >= self.margin
        if "retry" in options and not structural:
            against = (
                "and nothing else is left to try"
                if other is None
                else f"and {_words(d, other)} with {rescue[other]:.0%}, not enough better"
            )
            sentence = f"{_seen(d)} Another draw passes with {chance:.0%}, {against}."
            return self._decision(d, ledger, "retry", "gate:stochastic", "stochastic", sentence)
        asked = None
        if d.z is not None and all(name in d.z for name in self.rule.operators):
            asked = operator_of(d.z, self.rule)
        # The rule names one remedy for a failure. Once that was tried, the posteriors know more than the rule.
        if asked in options and asked is not None and not d.failed.get(asked):
            remedy, reason, why = asked, f"rule:{asked}", "the rule asks for it"
        elif asked is not None and asked not in options and "tool" in options and not d.failed.get("tool"):
            remedy, reason, why = "tool", f"rule:{asked}>tool", f"the rule asks for {asked}, which is unavailable"
        else:
            remedy = max(options, key=lambda name: rescue[name])
            reason, why = f"rescue:{remedy}", "the best expected rescue"
        taken = f"{_upper(_words(d, remedy))} ({rescue[remedy]:.0%}): {why}."
        sentence = f"{_seen(d)} Another draw passes with {chance:.0%}. {taken}"
        regime: Regime = "structural" if structural else "stochastic"
        # A sparse stand-in checks the step at the junction; a dense one redoes the whole solution.
        junction = reason == "rule:sparse_steer>tool"
        return self._decision(d, ledger, remedy, reason, regime, sentence, from_junction=junction)

    def _by_worth(
        self,
        d: Diagnosis,
        ledger: Ledger,
        rescue: Mapping[str, float],
        prices: Mapping[str, float],
        worth: Mapping[str, float],
    ) -> Decision:
        """The best expected worth."""
        first, *rest = sorted(worth, key=lambda name: -worth[name])
        against = f" Next best: {_words(d, rest[0])}, {rescue[rest[0]]:.0%}." if rest else ""
        price = f" at {prices[first]:.1f} times the price of a draw" if first != "retry" and "retry" in prices else ""
        prior = f" ({d.priors[first]})" if d.priors.get(first) else ""
        sentence = f"{_seen(d)} {_upper(_words(d, first))} rescues with {rescue[first]:.0%}{prior}{price}.{against}"
        regime: Regime | None = None
        if d.answered:
            better = first != "retry" and rescue[first] - rescue.get("retry", 0.0) >= self.margin
            regime = "structural" if better else "stochastic"
        return self._decision(d, ledger, first, f"worth:{first}", regime, sentence)

    def _ends(self, d: Diagnosis, ledger: Ledger, reason: str, sentence: str, regime: Regime | None = None) -> Decision:
        return self._decision(d, ledger, "human", reason, regime, sentence)

    def _decision(
        self,
        d: Diagnosis,
        ledger: Ledger,
        remedy: str,
        reason: str,
        regime: Regime | None,
        sentence: str,
        *,
        from_junction: bool = False,
    ) -> Decision:
        expected = {name: mean(beta) for name, beta in d.posterior.items()}
        more = {"regime": regime if d.answered else None, "from_junction": from_junction}
        node = "escalate" if remedy == "human" else d.nodes[remedy]
        return draft(self, d, ledger, node, remedy, reason, sentence, expected=expected, **more)


def in_one_currency(costs: Mapping[str, Spend], *, priced: bool) -> dict[str, float]:
    """What one attempt of each remedy costs at most, in draws: dollars over dollars, or tokens over tokens.

    Args:
        costs: per remedy.
        priced: whether the models have prices; one of 0 is a price too.

    Example:
        >>> in_one_currency({"retry": Spend(tokens=500), "tool": Spend(tokens=750)}, priced=False)
        {'retry': 1.0, 'tool': 1.5}
    """
    amounts = {name: cost.usd if priced else float(cost.tokens) for name, cost in costs.items()}
    unit = amounts.get("retry") or min((x for x in amounts.values() if x), default=1.0)
    return {name: amount / unit for name, amount in amounts.items()}


def _seen(d: Diagnosis) -> str:
    """How the answers so far failed."""
    kinds = ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in sorted(d.kinds.items(), key=lambda x: -x[1]))
    total = sum(d.kinds.values())
    answers = "1 answer" if total == 1 else f"{total} answers"
    return f"{answers} failed ({kinds})." if kinds else "No answer yet."


def _nothing(d: Diagnosis) -> str:
    why = "; ".join(f"{name}: {reason}" for name, reason in d.unavailable.items())
    return f"No remedy is available ({why})." if why else "No remedy is available."


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _words(d: Diagnosis, remedy: str) -> str:
    return d.words.get(remedy, remedy)
