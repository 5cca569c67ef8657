"""The shadow decides and nobody acts on it."""

from __future__ import annotations

import json
import logging
from typing import Any

import diagnoses
import pytest
from langgraph.errors import GraphInterrupt

from rfx_agent import Recovery, Step
from rfx_agent.budgets.step import Ledger
from rfx_agent.case import Decision, Diagnosis
from rfx_agent.policies import DefaultPolicy, Difference, FixedPolicy, LearnedPolicy, Policy, ShadowPolicy
from rfx_agent.testing import ScriptedSampler, ScriptedVerifier


def diagnosis(passed: str | None = None) -> Diagnosis:
    return diagnoses.diagnosis(
        step_id="s7",
        posterior={"retry": (0.27, 1.45), "tool": (1.0, 1.0)},
        tried={"tool": 1},
        cost=dict.fromkeys(("retry", "tool"), diagnoses.ONE),
        passed=passed,
    )


class Broken:
    version = "broken/1"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def decide(self, diagnosis: Diagnosis, ledger: Ledger) -> Decision:
        raise self.error


def test_the_acting_decision_stands_and_differences_are_told() -> None:
    told: list[Difference] = []
    acting, shadow = FixedPolicy(("retry",)), FixedPolicy(("tool",))
    policy = ShadowPolicy(acting=acting, shadow=shadow, on_difference=told.append)
    assert isinstance(policy, Policy)
    assert policy.decide(diagnosis(), Ledger()) == acting.decide(diagnosis(), Ledger())
    (difference,) = told
    assert difference.shadow == shadow.decide(diagnosis(), Ledger())
    line = json.loads(json.dumps(difference.as_dict()))
    assert (line["step"], line["attempts"]) == ("s7", 1)
    assert (line["acting"]["remedy"], line["shadow"]["remedy"]) == ("retry", "tool")
    assert policy.version == "fixed:retry/1|shadow:fixed:tool/1"


def test_agreement_is_silent() -> None:
    told: list[Difference] = []
    policy = ShadowPolicy(acting=DefaultPolicy(), shadow=DefaultPolicy(worth=90), on_difference=told.append)
    policy.decide(diagnosis(), Ledger())
    policy.decide(diagnosis(passed="r1"), Ledger())
    assert told == []


def test_a_broken_shadow_is_a_difference_and_nothing_more() -> None:
    told: list[Difference] = []
    policy = ShadowPolicy(acting=FixedPolicy(), shadow=Broken(ZeroDivisionError("x")), on_difference=told.append)
    assert policy.decide(diagnosis(), Ledger()).remedy == "retry"
    assert (told[0].shadow, told[0].error) == (None, "ZeroDivisionError: x")
    assert told[0].as_dict()["shadow"] is None


def test_a_broken_hook_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def hook(difference: Difference) -> None:
        raise RuntimeError("full disk")

    policy = ShadowPolicy(acting=FixedPolicy(), shadow=FixedPolicy(("tool",)), on_difference=hook)
    assert policy.decide(diagnosis(), Ledger()).remedy == "retry"
    assert "on_difference failed on step s7" in caplog.text


def test_the_acting_policys_own_error_is_not_hidden() -> None:
    policy = ShadowPolicy(acting=Broken(ZeroDivisionError("x")), shadow=FixedPolicy())
    with pytest.raises(ZeroDivisionError):
        policy.decide(diagnosis(), Ledger())


def test_control_flow_passes_through() -> None:
    policy = ShadowPolicy(acting=FixedPolicy(), shadow=Broken(GraphInterrupt()))
    with pytest.raises(GraphInterrupt):
        policy.decide(diagnosis(), Ledger())


def test_by_default_differences_are_logged_as_json(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rfx_agent.shadow")
    ShadowPolicy(acting=FixedPolicy(), shadow=FixedPolicy(("tool",))).decide(diagnosis(), Ledger())
    (record,) = caplog.records
    line: dict[str, Any] = json.loads(record.getMessage())
    assert line["shadow"]["remedy"] == "tool"


def test_in_a_recovery_only_the_acting_policy_spends() -> None:
    told: list[Difference] = []

    def run(policy: Policy) -> Any:
        recovery = Recovery(ScriptedSampler(["1", "2", "42"]), ScriptedVerifier(["42"]), policy=policy)
        return recovery.run(Step.of("What is 6 times 7?"), "0")

    alone = run(FixedPolicy())
    watched = run(ShadowPolicy(acting=FixedPolicy(), shadow=LearnedPolicy(), on_difference=told.append))
    assert watched.attempts == alone.attempts
    assert watched.ledger.spent.tokens == alone.ledger.spent.tokens
    assert all(d.acting.policy == "fixed:retry/1" for d in told)
