"""Failing steps with scripted parts, one for each branch of the graph, shared by the tests of every way in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rfx_agent import Recovery, RetryBudget, Rollout, Step, Usage, Verdict
from rfx_agent.errors import SamplerError
from rfx_agent.evidence.features import TopLogprobs
from rfx_agent.policies import DefaultPolicy
from rfx_agent.remedies import Delegate, Remedy, Retry
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
    remedies: Callable[[], list[Remedy]] | None = None
    continues_prefix: bool = False
    fixed_cap: list[str] | None = None
    """The routes where the cap on a draw's tokens cannot be raised; None where they are the same."""

    def sampler(self) -> ScriptedSampler:
        return ScriptedSampler(self.texts, continues_prefix=self.continues_prefix)

    def recovery(self, **more: Any) -> Recovery:
        tool = None if self.tool is None else ScriptedTool(self.tool)
        parts: dict[str, Any] = {
            "sampler": self.sampler(),
            "verifier": ScriptedVerifier(["42"]),
            "remedies": None if self.remedies is None else self.remedies(),
            "tool": tool,
            "seed": 3,
            "max_tokens": 64,
        }
        return Recovery(**(parts | self.options | more))


class Telling(ScriptedVerifier):
    """Passes "42", and says what is wrong with anything else."""

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        verdict = super().verify(step, rollout, peers=peers)
        return verdict if verdict.passed else replace(verdict, feedback="it is not what 6 times 7 comes to")


def measured() -> Rollout:
    """A failed draw of 20 tokens of two characters, the sixteenth of them unlikely: its junction begins at the 8th."""
    rows = [[(2 * i, -0.1), (2 * i + 1, -2.4)] for i in range(20)]
    table = TopLogprobs.from_rows(rows, [2 * i + (i == 15) for i in range(20)])
    return Rollout("a " * 20, response_id="m:0", usage=Usage(10, 20, 1), tokens=("a ",) * 20, logprobs=table)


# As the paper has it: so many draws at once before the first decision.
EXTRA: dict[str, Any] = {"extra_samples": 3}

SCENARIOS: dict[str, Scenario] = {
    "accept": Scenario([], "accepted", ["accept"], "passed", candidate="42"),
    "accept-own-draw": Scenario(["42"], "accepted", ["accept"], "passed", candidate=None),
    "extra-sample": Scenario(["40", "42", "43"], "rescued", ["accept"], "passed", options=EXTRA),
    "draw-by-draw": Scenario(["40", "43", "42"], "rescued", ["resample"] * 3 + ["accept"], "passed"),
    "tool-at-once": Scenario(["6*7"], "rescued", ["tool_verify", "accept"], "passed", tool={"6*7": 42}),
    "tool": Scenario(
        ["40", "43", "44", "6*7"], "rescued", ["tool_verify", "accept"], "passed", tool={"6*7": 42}, options=EXTRA
    ),
    "tool-repaired": Scenario(
        ["40", "43", "44", "6x7", "6*7"],
        "rescued",
        ["tool_verify", "accept"],
        "passed",
        tool={"6*7": 42},
        options=EXTRA,
    ),
    "resample": Scenario(
        ["40", "43", "44", "1", "2", "42", "3"],
        "rescued",
        ["resample", "accept"],
        "passed",
        options=EXTRA | {"concurrency": 4},
    ),
    "local-temp": Scenario(
        [measured(), "40", "44", "42"],
        "rescued",
        ["resample", "accept"],
        "passed",
        options=EXTRA | {"verifier": ScriptedVerifier(lambda text: text.endswith("42"))},
        continues_prefix=True,
    ),
    "extend": Scenario(
        [Rollout("4", finish_reason="length", response_id="c:0", usage=Usage(10, 64, 1)), "42"],
        "rescued",
        ["extend", "accept"],
        "passed",
        options={"extra_samples": 1},
        fixed_cap=["resample", "accept"],
    ),
    "revise": Scenario(
        ["40", "42"], "rescued", ["revise", "revise", "accept"], "passed", options={"verifier": Telling(["42"])}
    ),
    "delegate": Scenario(
        [],
        "rescued",
        ["delegate", "accept"],
        "passed",
        remedies=lambda: [Retry(), Delegate(ScriptedSampler(["42"]))],
    ),
    "budget": Scenario(
        ["40", "43", "44"],
        "unresolved",
        ["escalate"],
        "budget:samples",
        options=EXTRA | {"budget": RetryBudget(samples=3)},
    ),
    "no-budget-at-all": Scenario(
        [], "unresolved", ["escalate"], "budget:attempts", options={"budget": RetryBudget(attempts=0)}
    ),
    "no-budget-for-draws": Scenario(
        [], "unresolved", ["escalate"], "budget:attempts", options=EXTRA | {"budget": RetryBudget(attempts=0)}
    ),
    # A draw passes with .13 / (1 + n) after n failed ones. At a worth of 60 draws that pays until seven have failed.
    "out-of-reach": Scenario(
        [str(i) for i in range(50, 57)],
        "unresolved",
        ["resample", "resample", "escalate"],
        "out_of_reach",
        options=EXTRA | {"concurrency": 2, "policy": DefaultPolicy(worth=60)},
    ),
    "model-down": Scenario(
        ["40", "43", "44", SamplerError("connection refused", transient=True, calls=3)],
        "unresolved",
        ["tool_verify", "escalate"],
        "sampler_error",
        tool={},
        options=EXTRA,
    ),
}

EVERY = sorted(SCENARIOS)
Way = Callable[[Recovery, Step, str | None], Any]
