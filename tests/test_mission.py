"""The default graph: the evidence of a failure, and not a forced policy, leads into each of its nodes."""

from collections.abc import Callable
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from test_evidence_paths import Ancestor, Steering, calibrated, failing

from rfx_agent import (
    FunctionVerifier,
    Recovery,
    RetryBudget,
    Rollout,
    Step,
    Verdict,
    recovery_graph,
    step_input,
)
from rfx_agent.case import Case
from rfx_agent.codec import load
from rfx_agent.evidence.calibration import Calibration
from rfx_agent.records import Usage
from rfx_agent.remedies import Delegate, default_remedies
from rfx_agent.testing import ScriptedSampler, ScriptedTool

STEP = Step.of("What is 6 times 7?")


def says(feedback: str | None = None) -> FunctionVerifier:
    return FunctionVerifier(lambda x: Verdict(x == "42", answer=x, feedback=None if x == "42" else feedback))


def unlucky() -> dict[str, Any]:
    """Nothing but draws can be bought, and the third one passes."""
    return {"sampler": ScriptedSampler(["41", "40", "42"]), "verifier": says()}


def cut() -> dict[str, Any]:
    first = Rollout("4", finish_reason="length", usage=Usage(5, 8, 1))
    return {"sampler": ScriptedSampler([first, "2"], continues_prefix=True), "verifier": says(), "max_tokens": 8}


def told() -> dict[str, Any]:
    sampler = ScriptedSampler(["41", "42"])
    return {"sampler": sampler, "verifier": says("it must be even"), "tool": ScriptedTool({})}


def programmable() -> dict[str, Any]:
    return {"sampler": ScriptedSampler(["41", "6 * 7"]), "verifier": says(), "tool": ScriptedTool({"6 * 7": 42})}


def beyond_the_model() -> dict[str, Any]:
    remedies = [*default_remedies(), Delegate(ScriptedSampler(["42"]))]
    return {"sampler": ScriptedSampler([], last="41"), "verifier": says(), "remedies": remedies}


def structural() -> dict[str, Any]:
    """Two-model evidence within its calibration, whose spread stands out."""
    return {
        "sampler": ScriptedSampler([failing(i) for i in range(4)]),
        "verifier": says(),
        "scorer": Ancestor(),
        "steerer": Steering(),
        "calibration": calibrated(),
    }


def stochastic() -> dict[str, Any]:
    """The same evidence in a population of unlucky draws: the gate holds."""
    lucky = Calibration("lucky", "a/b", "t", calibrated().stats, {"retry": (30.0, 2.0), "dense_steer": (1.0, 1.0)})
    return structural() | {"sampler": ScriptedSampler([*(failing(i) for i in range(4)), "42"]), "calibration": lucky}


def hopeless() -> dict[str, Any]:
    return {"sampler": ScriptedSampler([], last="41"), "verifier": says(), "budget": RetryBudget(attempts=None)}


@pytest.mark.parametrize(
    ("failure", "nodes", "reason", "regime", "drawn"),
    [
        (unlucky, ["resample", "resample"], "worth:retry", "stochastic", 3),
        (cut, ["extend"], "worth:extend", None, 2),
        (told, ["revise"], "worth:revise", "structural", 2),
        (programmable, ["tool_verify"], "worth:tool", "structural", 2),
        (beyond_the_model, ["delegate"], "worth:delegate", "structural", 1),
        (structural, ["resample", "resample", "resample", "steer"], "rule:dense_steer", "structural", 4),
        (stochastic, ["resample"] * 4, "gate:stochastic", "stochastic", 5),
    ],
)
def test_the_evidence_leads_into_each_node(
    failure: Callable[[], dict[str, Any]], nodes: list[str], reason: str, regime: str | None, drawn: int
) -> None:
    parts = failure()
    graph = recovery_graph(Recovery(**parts), checkpointer=InMemorySaver(), interrupts=True)
    assert set(nodes) <= set(graph.nodes)
    config: Any = {"configurable": {"thread_id": "1"}}
    seen = [node for update in graph.stream(step_input(STEP), config, stream_mode="updates") for node in update]
    case = load(Case, graph.get_state(config).values["recovery"])
    assert case.outcome is not None
    assert case.outcome.status == "rescued"
    assert [node for node in seen if node != "diagnose"] == nodes
    last = case.decisions[-2]
    assert (last.reason, last.regime) == (reason, regime)
    assert last.sentence.startswith(f"{sum(last.kinds.values())} answer")
    assert len(parts["sampler"].requests) == drawn


def test_evidence_is_computed_before_the_rule_chooses() -> None:
    case = Recovery(**structural()).run(STEP)
    draws, rule = case.decisions[:3], case.decisions[3]
    assert [d.reason for d in draws] == ["evidence:draws"] * 3
    assert rule.evidence == "two_model"
    assert rule.z is not None
    assert max(rule.z, key=lambda name: rule.z[name] if rule.z else 0) == "spread"


def test_a_failure_that_nothing_is_worth_trying_on_reaches_a_person() -> None:
    graph = recovery_graph(Recovery(**hopeless()), checkpointer=InMemorySaver(), interrupts=True)
    config: Any = {"configurable": {"thread_id": "1"}}
    state = graph.invoke(step_input(STEP), config)
    (interrupt,) = state["__interrupt__"]
    assert interrupt.value["rfx"]["reason"] == "out_of_reach"
    assert interrupt.value["rfx"]["kinds"] == {"wrong": len(load(Case, state["recovery"]).rollouts)}
    assert graph.get_state(config).next == ("escalate",)
    assert "failed answers: " in interrupt.value["action_requests"][0]["description"]
