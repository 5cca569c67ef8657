"""Failing steps with scripted parts, one for each branch of the graph, shared by the tests of every way in."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rfx_agent import Recovery, RetryBudget, Step
from rfx_agent.errors import SamplerError
from rfx_agent.testing import ScriptedSampler, ScriptedTool, ScriptedVerifier

STEP = Step.of("What is 6 times 7?", id="six-by-seven")


@dataclass(frozen=True)
class Scenario:
    """What the scripted parts do, and how the step must end."""

    texts: list[Any]
    status: str
    routes: list[str]
    reason: str
    candidate: str | None = "41"
    tool: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def recovery(self, **more: Any) -> Recovery:
        tool = None if self.tool is None else ScriptedTool(self.tool)
        parts: dict[str, Any] = {
            "sampler": ScriptedSampler(self.texts),
            "verifier": ScriptedVerifier(["42"]),
            "tool": tool,
            "seed": 3,
            "max_tokens": 64,
        }
        return Recovery(**(parts | self.options | more))


SCENARIOS: dict[str, Scenario] = {
    "accept": Scenario([], "accepted", ["accept"], "passed", candidate="42"),
    "accept-own-draw": Scenario(["42"], "accepted", ["accept"], "passed", candidate=None),
    "extra-sample": Scenario(["40", "42", "43"], "rescued", ["accept"], "passed"),
    "tool": Scenario(["40", "43", "44", "6*7"], "rescued", ["tool_verify", "accept"], "passed", tool={"6*7": 42}),
    "tool-repaired": Scenario(
        ["40", "43", "44", "6x7", "6*7"], "rescued", ["tool_verify", "accept"], "passed", tool={"6*7": 42}
    ),
    "resample": Scenario(["40", "43", "44", "1", "2", "42", "3"], "rescued", ["resample", "accept"], "passed"),
    "budget": Scenario(
        ["40", "43", "44"],
        "unresolved",
        ["escalate"],
        "budget:samples",
        options={"budget": RetryBudget(samples=3)},
    ),
    "no-budget-at-all": Scenario(
        [], "unresolved", ["escalate"], "budget:attempts", options={"budget": RetryBudget(attempts=0)}
    ),
    "out-of-reach": Scenario(
        [str(i) for i in range(50, 61)],
        "unresolved",
        ["resample", "resample", "escalate"],
        "out_of_reach",
    ),
    "model-down": Scenario(
        ["40", "43", "44", SamplerError("connection refused", transient=True, calls=3)],
        "unresolved",
        ["tool_verify", "escalate"],
        "sampler_error",
        tool={},
    ),
}

EVERY = sorted(SCENARIOS)
Way = Callable[[Recovery, Step, str | None], Any]
