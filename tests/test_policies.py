"""The default policy, branch by branch, on diagnoses written by hand; and the fixed one."""

from collections.abc import Sequence
from typing import Any

import diagnoses
import pytest
from diagnoses import DECODING, ONE

from rfx_agent import ConfigError, Delegate, Price, Recovery, RetryBudget, Rollout, Step, Usage
from rfx_agent.budgets.step import Ledger
from rfx_agent.case import Decision, Diagnosis
from rfx_agent.evidence import RoutingRule
from rfx_agent.policies import DefaultPolicy, FixedPolicy
from rfx_agent.policies.default import in_one_currency
from rfx_agent.ports import Scorer
from rfx_agent.records import Agreement, ScoreResult, Spend
from rfx_agent.remedies import Retry
from rfx_agent.testing import ScriptedSampler, ScriptedTool, ScriptedVerifier

ALL = dict.fromkeys((*DECODING, "tool"), ONE)
FEW = dict.fromkeys(("retry", "local_temp", "tool"), ONE)


def diagnosis(**changes: Any) -> Diagnosis:
    """Four draws, none passed, nothing tried, two-model features that ask for dense steering."""
    given: dict[str, Any] = {
        "evidence": "two_model",
        "features": {"spread": 0.7, "concentration": 2.3, "logit_dispersion": -0.8},
        "z": {"spread": 1.1, "concentration": -0.1, "logit_dispersion": -0.1},
        "routable": True,
        "draws": 4,
        "agreement": Agreement(4, 4, 0.25, 1.0),
        # Beta(0.27, 0.45) after four failures: 0.27 / 4.72 = 0.057
        "posterior": {op: (0.27, 4.45) if op == "retry" else (0.27, 0.45) for op in ALL} | {"tool": (1.0, 1.0)},
        "cost": FEW,
        "kinds": {"wrong": 4},
    }
    return diagnoses.diagnosis(**given | changes)


def plain(**changes: Any) -> Diagnosis:
    """One failed draw, without log-probabilities: the best expected worth decides. A retry rescues with 13 %."""
    given: dict[str, Any] = {
        "cost": {"retry": ONE, "tool": Spend(attempts=1, samples=1, tokens=150)},
        "posterior": {"retry": (0.13, 0.87), "tool": (0.33, 0.67)},
    }
    return diagnoses.diagnosis(**given | changes)


def decide(given: Diagnosis, ledger: Ledger | None = None, **options: Any) -> Decision:
    return DefaultPolicy(**options).decide(given, Ledger() if ledger is None else ledger)


def test_a_pass_is_accepted_whatever_the_budget() -> None:
    decision = decide(diagnosis(passed="r2"), Ledger(RetryBudget(attempts=0)))
    assert (decision.route, decision.reason) == ("accept", "passed")


# Where the features may route: the paper's gate and rule.


def test_a_stochastic_failure_is_resampled() -> None:
    # Beta(5.27, 1.45) is 0.78: above the gate of 0.5
    posterior = dict(diagnosis().posterior) | {"retry": (5.27, 1.45)}
    decision = decide(diagnosis(posterior=posterior))
    assert (decision.route, decision.remedy, decision.regime) == ("resample", "retry", "stochastic")
    assert decision.reason == "gate:stochastic"
    assert "tool with 50%, not enough better" in decision.sentence


def test_below_the_gate_nothing_that_is_better_by_the_margin_is_stochastic_too() -> None:
    # 0.45 against the tool's 0.48: under the gate, but the margin of 0.05 is not reached
    posterior = {"retry": (45.0, 55.0), "tool": (48.0, 52.0)}
    given = diagnosis(posterior=posterior, cost={"retry": ONE, "tool": ONE})
    decision = decide(given)
    assert (decision.route, decision.regime, decision.reason) == ("resample", "stochastic", "gate:stochastic")
    assert decide(given, margin=0.02).regime == "structural"
    alone = decide(diagnosis(cost={"retry": ONE}))
    assert (alone.reason, alone.regime) == ("gate:stochastic", "stochastic")
    assert "nothing else is left to try" in alone.sentence


@pytest.mark.parametrize(
    ("top", "steering", "route", "remedy", "reason", "from_junction"),
    [
        ("logit_dispersion", False, "resample", "local_temp", "rule:local_temp", False),
        ("spread", True, "steer", "dense_steer", "rule:dense_steer", False),
        ("spread", False, "tool_verify", "tool", "rule:dense_steer>tool", False),
        ("concentration", True, "steer", "sparse_steer", "rule:sparse_steer", False),
        ("concentration", False, "tool_verify", "tool", "rule:sparse_steer>tool", True),
        (None, True, "steer", "sparse_steer_random", "rule:sparse_steer_random", False),
        (None, False, "tool_verify", "tool", "rule:sparse_steer_random>tool", False),
    ],
)
def test_a_structural_failure_takes_the_rules_operator_or_the_tool_in_its_place(
    top: str | None, steering: bool, route: str, remedy: str, reason: str, from_junction: bool
) -> None:
    z = {name: 1.0 if name == top else -0.5 for name in ("spread", "concentration", "logit_dispersion")}
    decision = decide(diagnosis(z=z, cost=ALL if steering else FEW))
    assert (decision.route, decision.remedy, decision.reason) == (route, remedy, reason)
    assert (decision.regime, decision.from_junction) == ("structural", from_junction)


def test_without_the_operator_and_without_a_tool_the_best_expected_rescue_decides() -> None:
    decision = decide(diagnosis(cost={"retry": ONE, "local_temp": ONE}))
    assert (decision.remedy, decision.reason, decision.regime) == ("local_temp", "rescue:local_temp", "structural")


def test_the_rule_is_asked_once_and_then_the_best_expected_rescue_decides() -> None:
    first = decide(diagnosis(cost=ALL))
    assert first.reason == "rule:dense_steer"
    posterior = dict(diagnosis().posterior) | {"dense_steer": (0.27, 1.45)}
    second = decide(diagnosis(cost=ALL, posterior=posterior, failed={"retry": 3, "dense_steer": 1}))
    assert (second.reason, second.regime, second.from_junction) == ("rescue:tool", "structural", False)
    # The same of the tool in a missing operator's place.
    posterior = dict(diagnosis().posterior) | {"tool": (1.0, 5.0)}
    stood_in = decide(diagnosis(posterior=posterior, failed={"retry": 3, "tool": 4}))
    assert stood_in.reason == "rescue:local_temp"
    z = {"spread": -0.5, "concentration": 1.0, "logit_dispersion": -0.5}
    again = decide(diagnosis(z=z, cost={"retry": ONE, "tool": ONE}, failed={"tool": 1}))
    assert (again.reason, again.from_junction) == ("rescue:tool", False)


def test_a_rule_of_ones_own_is_asked() -> None:
    rule = RoutingRule({"spread": "delegate_large"}, fallback="tool")
    cost = {"retry": ONE, "tool": ONE, "delegate_large": ONE}
    posterior = {"retry": (0.27, 4.45), "tool": (1.0, 1.0), "delegate_large": (0.9, 1.1)}
    decision = decide(diagnosis(cost=cost, posterior=posterior), rule=rule)
    assert (decision.route, decision.remedy, decision.reason) == ("delegate", "delegate_large", "rule:delegate_large")


def test_what_the_rule_does_not_know_of_is_taken_where_it_is_worth_more() -> None:
    posterior = {"retry": (0.27, 4.45), "tool": (1.0, 1.0), "delegate_large": (6.0, 4.0)}
    given = diagnosis(cost=dict.fromkeys(posterior, ONE), posterior=posterior)
    assert (decide(given).remedy, decide(given).reason) == ("delegate_large", "worth:delegate_large")
    # At twelve draws' price the rescue of 60 % is worth less than the tool's 50 %.
    dear = diagnosis(cost={"retry": ONE, "tool": ONE, "delegate_large": Spend(tokens=1200)}, posterior=posterior)
    assert decide(dear).reason == "rule:dense_steer>tool"


# Before they may: draws that show what kind of failure it is.


def unseen(**changes: Any) -> Diagnosis:
    return plain(**{"measurable": True} | changes)


@pytest.mark.parametrize(("draws", "reason"), [(1, "evidence:draws"), (3, "evidence:draws"), (4, "worth:tool")])
def test_draws_are_bought_until_the_rule_has_seen_enough(draws: int, reason: str) -> None:
    decision = decide(unseen(draws=draws, kinds={"wrong": draws}))
    assert decision.reason == reason
    if reason == "evidence:draws":
        assert (decision.route, decision.remedy, decision.regime) == ("resample", "retry", None)
        assert decision.sentence.startswith(f"{draws} answer{'s' if draws > 1 else ''} failed ({draws} wrong).")


def test_draws_are_bought_only_where_they_can_change_the_decision() -> None:
    assert decide(unseen(measurable=False)).reason == "worth:tool"  # no features will come
    assert decide(unseen(cost={"retry": ONE}, posterior={"retry": (0.13, 0.87)})).reason == "worth:retry"
    # The rule does not know a revision, so it has nothing to route to.
    posterior = {"retry": (0.3, 0.7), "revise": (0.13, 0.87)}
    assert decide(unseen(cost=dict.fromkeys(posterior, ONE), posterior=posterior)).reason == "worth:retry"
    # A revision that is worth more than all that the rule knows of needs no evidence.
    posterior = {"retry": (0.13, 0.87), "tool": (0.33, 0.67), "revise": (0.4, 0.6)}
    assert decide(unseen(cost=dict.fromkeys(posterior, ONE), posterior=posterior)).reason == "worth:revise"
    assert decide(unseen(), draws=0).reason == "worth:tool"
    assert decide(unseen(), draws=1).reason == "worth:tool"
    # What cannot be paid for cannot be routed to, and a draw that cannot be paid for is not made.
    ledger = Ledger(RetryBudget(tokens=120))
    assert decide(unseen(), ledger).reason == "worth:retry"
    dear = {"retry": Spend(attempts=1, tokens=200), "tool": ONE, "dense_steer": ONE}
    posterior = {"retry": (0.13, 0.87), "tool": (0.33, 0.67), "dense_steer": (0.3, 0.7)}
    assert decide(unseen(cost=dear, posterior=posterior), ledger).reason == "worth:tool"


def test_a_cut_draw_is_no_draw_with_features() -> None:
    decision = decide(unseen(draws=5, kinds={"wrong": 3, "cut": 2}))
    assert decision.reason == "evidence:draws"
    assert decision.sentence.startswith("5 answers failed (3 wrong, 2 cut).")
    assert decide(unseen(draws=6, kinds={"wrong": 4, "cut": 2})).reason == "worth:tool"


class Silent(Scorer):
    """An ancestor that is never asked."""

    name = "base-1"

    def score(self, step: Step, rollouts: Sequence[Rollout]) -> ScoreResult:
        return ScoreResult(tuple(None for _ in rollouts))


CUT = [Rollout("The total", finish_reason="length", response_id=f"cut-{i}", usage=Usage(10, 64, 1)) for i in range(20)]
COPY = Rollout("41", finish_reason="stop", response_id="copy", usage=Usage(10, 1, 1))


@pytest.mark.parametrize("texts", [CUT, [COPY] * 20], ids=["cut", "copies"])
def test_draws_that_show_nothing_do_not_keep_another_remedy_from_being_tried(texts: list[Rollout]) -> None:
    sampler = ScriptedSampler(texts)
    sampler.takes_max_tokens = False  # so that there is nothing to extend
    parts: dict[str, Any] = {"scorer": Silent(), "tool": ScriptedTool({}), "max_tokens": 64}
    case = Recovery(sampler, ScriptedVerifier(["42"]), **parts).run("What is 6 times 7?")
    assert "tool" in {x.remedy for x in case.decisions}


# Everywhere else: the best expected worth.


def test_features_that_may_not_route_leave_it_to_the_expected_worth() -> None:
    decision = decide(diagnosis(routable=False))
    assert (decision.remedy, decision.reason) == ("tool", "worth:tool")
    assert decision.z == diagnosis().z  # reported all the same


@pytest.mark.parametrize(
    ("tokens", "remedy"),
    [(100, "tool"), (2_000, "tool"), (2_200, "retry"), (20_000, "retry")],  # 33 - 13 = 20 draws' worth
)
def test_the_worth_is_the_rescue_less_the_price(tokens: int, remedy: str) -> None:
    cost = {"retry": ONE, "tool": Spend(attempts=1, samples=1, tokens=tokens)}
    assert decide(plain(cost=cost)).remedy == remedy


def test_what_a_rescue_is_worth_is_the_deployments_to_say() -> None:
    cost = {"retry": ONE, "tool": Spend(tokens=2_000)}  # 20 draws for 20 points more
    assert decide(plain(cost=cost), worth=90).remedy == "retry"
    assert decide(plain(cost=cost), worth=110).remedy == "tool"
    assert decide(plain(cost=cost), worth=7).reason == "out_of_reach"  # 0.13 of it is less than a draw
    assert decide(plain(cost=cost), worth=8).reason == "worth:retry"


def test_the_sentence_names_what_failed_the_price_the_next_best_and_the_prior() -> None:
    decision = decide(plain(kinds={"wrong": 2, "no_answer": 1}))
    assert decision.sentence == (
        "3 answers failed (2 wrong, 1 no answer). Tool rescues with 33% (built-in) at 1.5 times the price of a "
        "draw. Next best: retry, 13%."
    )
    alone = plain(cost={"retry": ONE}, priors={"retry": "from calibration 'mine', 40 attempts"})
    assert decide(alone).sentence == (
        "1 answer failed (1 wrong). Retry rescues with 13% (from calibration 'mine', 40 attempts)."
    )


@pytest.mark.parametrize(
    ("posterior", "remedy", "regime"),
    [
        ({"retry": (0.3, 0.7), "tool": (0.1, 0.9)}, "retry", "stochastic"),
        ({"retry": (0.13, 0.87), "tool": (0.33, 0.67)}, "tool", "structural"),
        ({"retry": (0.30, 0.70), "tool": (0.34, 0.66)}, "tool", "stochastic"),  # better, by less than the margin
    ],
)
def test_the_regime_says_whether_another_remedy_is_better_by_the_margin(
    posterior: Any, remedy: str, regime: str
) -> None:
    decision = decide(plain(posterior=posterior))
    assert (decision.remedy, decision.reason, decision.regime) == (remedy, f"worth:{remedy}", regime)


@pytest.mark.parametrize(
    "given",
    [
        diagnosis(kinds={"cut": 4}, kind="cut"),
        diagnosis(kinds={"cut": 4}, kind="cut", posterior=dict.fromkeys(FEW, (9.0, 1.0))),
        plain(kinds={"cut": 1}, kind="cut"),
        plain(kinds={"cut": 1}, kind="cut", posterior=dict.fromkeys(("retry", "tool"), (0.001, 0.999))),
    ],
    ids=["rule", "gate", "worth", "out of reach"],
)
def test_a_failure_of_which_every_answer_was_cut_has_no_regime(given: Diagnosis) -> None:
    decision = decide(given)
    assert (decision.regime, decision.kind) == (None, "cut")
    assert decision.kinds == given.kinds


# Where it ends.


def test_what_is_not_worth_its_price_is_out_of_reach() -> None:
    decision = decide(plain(posterior=dict.fromkeys(("retry", "tool"), (0.009, 0.991))))
    assert (decision.route, decision.remedy, decision.regime) == ("escalate", "human", "out_of_reach")
    assert decision.reason == "out_of_reach"
    assert decision.sentence == (
        "1 answer failed (1 wrong). The best option left, retry, rescues with 0.9%, which is not worth its price."
    )
    assert decide(plain(posterior=dict.fromkeys(("retry", "tool"), (0.011, 0.989)))).reason == "worth:retry"
    # The paper's features do not buy what is not worth its price either.
    hopeless = diagnosis(posterior=dict.fromkeys(FEW, (0.02, 9.0)))
    assert decide(hopeless).reason == "out_of_reach"


def test_without_a_remedy_it_says_why_of_each() -> None:
    given = plain(cost={}, unavailable={"retry": "there is no model to ask", "extend": "the last answer was not cut"})
    decision = decide(given)
    assert (decision.route, decision.reason, decision.regime) == ("escalate", "no_route", None)
    assert decision.sentence == (
        "No remedy is available (retry: there is no model to ask; extend: the last answer was not cut)."
    )
    assert decide(plain(cost={})).sentence == "No remedy is available."


@pytest.mark.parametrize("cap", ["attempts", "samples", "tokens"])
def test_a_spent_budget_names_its_cap(cap: str) -> None:
    decision = decide(diagnosis(), Ledger(RetryBudget(**{cap: 0})))
    assert (decision.route, decision.reason) == ("escalate", f"budget:{cap}")
    assert decision.sentence == f"The budget has too few {cap} left."


def test_a_cap_is_named_that_the_cheapest_remedy_would_cross() -> None:
    cost = {"tool": Spend(tokens=900, tool_seconds=9.0), "retry": Spend(tokens=400)}
    decision = decide(diagnosis(cost=cost), Ledger(RetryBudget(tokens=300, tool_seconds=1.0)))
    assert decision.reason == "budget:tokens"


def test_a_model_that_cannot_be_reached_goes_to_a_person() -> None:
    decision = decide(diagnosis(blocked="connection refused", cost={}))
    assert (decision.route, decision.reason, decision.sentence) == (
        "escalate",
        "sampler_error",
        "connection refused",
    )


def test_a_decision_is_a_full_record() -> None:
    decision = decide(diagnosis(told=True))
    assert decision.policy == "default/2"
    assert decision.expected["tool"] == 0.5
    assert decision.expected["retry"] == pytest.approx(0.0572, abs=1e-4)
    assert set(decision.expected) == set(FEW)
    assert decision.budget_before["attempts"] == 12
    assert decision.features == diagnosis().features
    assert (decision.kinds, decision.kind, decision.told) == ({"wrong": 4}, "wrong", True)


def test_the_same_diagnosis_gives_the_same_decision() -> None:
    assert decide(plain()) == decide(plain())


# Prices.


def test_prices_are_in_dollars_where_all_are_known_and_else_in_tokens() -> None:
    cost = {"retry": Spend(tokens=500, usd=0.01), "tool": Spend(tokens=750, usd=0.04)}
    assert in_one_currency(cost, priced=True) == pytest.approx({"retry": 1.0, "tool": 4.0})
    assert in_one_currency(cost, priced=False) == {"retry": 1.0, "tool": 1.5}
    # Without a draw to compare with, the cheapest is the unit.
    few = {"tool": Spend(tokens=300), "revise": Spend(tokens=200)}
    assert in_one_currency(few, priced=False) == {"tool": 1.5, "revise": 1.0}
    assert in_one_currency({}, priced=False) == {}


def test_what_costs_nothing_has_a_known_price() -> None:
    cost = {
        "retry": Spend(tokens=500, usd=0.01),
        "delegate": Spend(tokens=500, usd=0.1),
        "look_up": Spend(attempts=1, tool_seconds=30.0),
    }
    assert in_one_currency(cost, priced=True) == pytest.approx({"retry": 1.0, "delegate": 10.0, "look_up": 0.0})
    free = {"retry": Spend(tokens=500), "delegate": Spend(tokens=500, usd=0.1)}
    assert in_one_currency(free, priced=True) == {"retry": 0.0, "delegate": 1.0}


@pytest.mark.parametrize(("dollars", "reason"), [(2.0, "worth:delegate"), (200.0, "worth:retry")])
def test_a_stronger_model_is_asked_where_its_own_price_is_worth_it(dollars: float, reason: str) -> None:
    large = Delegate(ScriptedSampler(["7"]), price=Price(prompt=dollars, completion=dollars))
    recovery = Recovery(
        ScriptedSampler(["7"]),
        ScriptedVerifier(["7"]),
        remedies=[Retry(), large],
        price=Price(prompt=1.0, completion=1.0),
    )
    case = recovery.run("What is 3 + 4?", "8")
    assert [x.reason for x in case.decisions] == [reason, "passed"]


# The fixed policy.


def test_a_fixed_policy_goes_round_its_remedies_until_the_budget_ends() -> None:
    policy = FixedPolicy(("retry", "tool"))
    decisions = [policy.decide(diagnosis(turn=turn), Ledger()) for turn in range(4)]
    assert [x.remedy for x in decisions] == ["retry", "tool", "retry", "tool"]
    assert [x.route for x in decisions] == ["resample", "tool_verify"] * 2
    assert [x.reason for x in decisions[:2]] == ["fixed:retry", "fixed:tool"]
    assert policy.decide(diagnosis(), Ledger(RetryBudget(samples=0))).reason == "budget:samples"
    assert policy.version == "fixed:retry+tool/1"


def test_a_fixed_policy_leaves_out_what_is_not_available() -> None:
    policy = FixedPolicy(("extend", "look_up", "retry"))
    cost = {"retry": ONE, "look_up": ONE}
    turns = [policy.decide(plain(cost=cost, turn=turn), Ledger()) for turn in range(3)]
    assert [x.remedy for x in turns] == ["look_up", "retry", "look_up"]
    assert [x.route for x in turns] == ["look_up", "resample", "look_up"]
    assert FixedPolicy(("extend",)).decide(plain(), Ledger()).reason == "no_route"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DefaultPolicy(gate=1.5), "gate is 1.5"),
        (lambda: DefaultPolicy(margin=-0.1), "margin is -0.1"),
        (lambda: DefaultPolicy(worth=0), "worth is 0"),
        (lambda: DefaultPolicy(worth=float("nan")), "worth is nan"),
        (lambda: DefaultPolicy(draws=-1), "draws is -1"),
        (lambda: DefaultPolicy(draws=2.5), "draws is 2.5"),  # type: ignore[arg-type]
        (lambda: FixedPolicy(()), r"remedies is \(\)"),
        (lambda: FixedPolicy("retry"), "remedies is 'retry'"),  # type: ignore[arg-type]
        (lambda: FixedPolicy(("Retry",)), "names"),
    ],
)
def test_parameters_that_cannot_work_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
