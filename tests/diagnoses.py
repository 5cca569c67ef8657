"""A diagnosis of a first failed draw without log-probabilities, for tests of policies; a test changes what it needs."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from rfx_agent.case import Diagnosis
from rfx_agent.records import Agreement, Spend

ONE = Spend(attempts=1, samples=1, tokens=100)
DECODING = ("retry", "local_temp", "sparse_steer", "sparse_steer_random", "dense_steer")
NODES = {
    "retry": "resample",
    "local_temp": "resample",
    "tool": "tool_verify",
    "delegate_large": "delegate",
    **dict.fromkeys(DECODING[2:], "steer"),
}
"""The node of each remedy that does not have its own name for one."""


def nodes(remedies: Iterable[str]) -> dict[str, str]:
    """Per remedy, the node that carries it out."""
    return {name: NODES.get(name, name) for name in remedies}


def diagnosis(**changes: Any) -> Diagnosis:
    """What ``changes`` say, and what follows from it: each remedy that has a cost has its node and its words."""
    cost = changes.get("cost", dict.fromkeys(DECODING, ONE))
    base = Diagnosis(
        step_id="s",
        calibration="published",
        draws=1,
        agreement=Agreement(1, 1, 1.0, 0.0),
        posterior=dict.fromkeys(cost, (0.27, 0.45)),
        cost=cost,
        kinds={"wrong": 1},
        kind="wrong",
        nodes=nodes(cost),
        words={name: name.replace("_", " ") for name in cost},
        priors=dict.fromkeys(cost, "built-in"),
    )
    return replace(base, **changes)
