"""The default policy, branch by branch, on diagnoses written by hand."""

from dataclasses import replace
from typing import Any

import pytest

from rfx_agent import ConfigError, RetryBudget
from rfx_agent.budgets.step import Ledger
from rfx_agent.case import Diagnosis
from rfx_agent.policies import DefaultPolicy, FixedPolicy
from rfx_agent.records import Agreement, Spend

ONE = Spend(attempts=1, samples=1, tokens=100)
ALL = dict.fromkeys(("retry", "local_temp", "tool", "sparse_steer", "dense_steer", "sparse_steer_random"), ONE)


def diagnosis(**changes: Any) -> Diagnosis:
    """Four draws, none passed, nothing tried, two-model features that ask for dense steering."""
    base = Diagnosis(
        step_id="s",
        evidence="two_model",
        features={"spread": 0.7, "concentration": 2.3, "logit_dispersion": -0.8},
        z={"spread": 1.1, "concentration": -0.1, "logit_dispersion": -0.1},
        calibration="published",
        routable=True,
        caveats=(),
        draws=4,
        passes=0,
        agreement=Agreement(4, 4, 0.25, 1.0),
        # Beta(0.27, 0.45) after four failures: 0.27 / 4.72 = 0.057
        posterior={op: (0.27, 4.45) if op == "retry" else (0.27, 0.45) for op in ALL} | {"tool": (1.0, 1.0)},
        tried={},
        cost=dict.fromkeys(("retry", "local_temp", "tool"), ONE),
    )
    return replace(base, **changes)


def test_a_pass_is_accepted_whatever_the_budget() -> None:
    decision = DefaultPolicy().decide(diagnosis(passed="r2"), Ledger(RetryBudget(attempts=0)))
    assert (decision.route, decision.reason) == ("accept", "passed")


def test_a_stochastic_failure_is_resampled() -> None:
    # Beta(5.27, 1.45) is 0.78: above the gate of 0.5
    posterior = dict(diagnosis().posterior) | {"retry": (5.27, 1.45)}
    decision = DefaultPolicy().decide(diagnosis(posterior=posterior), Ledger())
    assert (decision.route, decision.remedy, decision.regime) == ("resample", "retry", "stochastic")


def test_below_the_gate_nothing_that_is_better_by_the_margin_is_stochastic_too() -> None:
    # 0.45 against the tool's 0.48: under the gate, but the margin of 0.05 is not reached
    posterior = {"retry": (45.0, 55.0), "tool": (48.0, 52.0)}
    decision = DefaultPolicy().decide(diagnosis(posterior=posterior, cost={"retry": ONE, "tool": ONE}), Ledger())
    assert (decision.route, decision.regime) == ("resample", "stochastic")


@pytest.mark.parametrize(
    ("top", "steering", "route", "remedy", "reason", "from_junction"),
    [
        ("logit_dispersion", False, "resample", "local_temp", "rule:local_temp", True),
        ("spread", True, "steer", "dense_steer", "rule:dense_steer", False),
        ("spread", False, "tool_verify", "tool", "rule:dense_steer>tool", False),
        ("concentration", True, "steer", "sparse_steer", "rule:sparse_steer", False),
        ("concentration", False, "tool_verify", "tool", "rule:sparse_steer>tool", True),
        (None, False, "tool_verify", "tool", "rule:sparse_steer_random>tool", False),
    ],
)
def test_a_structural_failure_takes_the_rules_operator_or_the_tool_in_its_place(
    top: str | None, steering: bool, route: str, remedy: str, reason: str, from_junction: bool
) -> None:
    z = {name: 1.0 if name == top else -0.5 for name in ("spread", "concentration", "logit_dispersion")}
    cost = ALL if steering else diagnosis().cost
    decision = DefaultPolicy().decide(diagnosis(z=z, cost=cost), Ledger())
    assert (decision.route, decision.remedy, decision.reason) == (route, remedy, reason)
    assert (decision.regime, decision.from_junction) == ("structural", from_junction)
    assert decision.temperature == (1.0 if remedy == "local_temp" else None)


def test_features_that_may_not_route_leave_it_to_the_posteriors_and_say_so() -> None:
    decision = DefaultPolicy().decide(diagnosis(routable=False), Ledger())
    assert (decision.remedy, decision.reason) == ("tool", "rescue:tool")
    assert "may not route" in decision.sentence
    assert decision.z == diagnosis().z  # reported all the same


def test_a_round_that_was_tried_is_not_tried_again_without_end() -> None:
    tried = {"tool": 2, "local_temp": 1, "retry": 5}
    decision = DefaultPolicy().decide(diagnosis(tried=tried), Ledger())
    assert (decision.route, decision.reason) == ("escalate", "no_route")


def test_what_is_below_the_floor_is_out_of_reach() -> None:
    posterior = dict.fromkeys(("retry", "local_temp", "tool"), (0.27, 9.0))
    decision = DefaultPolicy().decide(diagnosis(posterior=posterior), Ledger())
    assert (decision.route, decision.regime, decision.reason) == ("escalate", "out_of_reach", "out_of_reach")


@pytest.mark.parametrize("cap", ["attempts", "samples", "tokens"])
def test_a_spent_budget_names_its_cap(cap: str) -> None:
    decision = DefaultPolicy().decide(diagnosis(), Ledger(RetryBudget(**{cap: 0})))
    assert (decision.route, decision.reason) == ("escalate", f"budget:{cap}")


def test_a_model_that_cannot_be_reached_goes_to_a_person() -> None:
    decision = DefaultPolicy().decide(diagnosis(blocked="connection refused"), Ledger())
    assert (decision.route, decision.reason, decision.sentence) == (
        "escalate",
        "sampler_error",
        "connection refused",
    )


def test_a_decision_is_a_full_record() -> None:
    decision = DefaultPolicy().decide(diagnosis(), Ledger())
    assert decision.policy == "default/1"
    assert decision.expected["tool"] == 0.5
    assert decision.expected["retry"] == pytest.approx(0.0572, abs=1e-4)
    assert decision.budget_before["attempts"] == 12
    assert decision.features == diagnosis().features


def test_a_fixed_policy_goes_round_its_operators_until_the_budget_ends() -> None:
    policy = FixedPolicy(("retry", "tool"))
    turns = [
        policy.decide(diagnosis(tried=tried), Ledger()).remedy
        for tried in ({}, {"retry": 1}, {"retry": 1, "tool": 1}, {"retry": 2, "tool": 1})
    ]
    assert turns == ["retry", "tool", "retry", "tool"]
    assert policy.decide(diagnosis(), Ledger(RetryBudget(samples=0))).reason == "budget:samples"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": 1.5}, "gate is 1.5"),
        ({"lifted_temperature": 0.0}, "lifted_temperature is 0.0"),
        ({"rounds": {"wish": 2}}, "unknown remedy 'wish'"),
    ],
)
def test_parameters_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DefaultPolicy(**options)
