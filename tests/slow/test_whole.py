"""The whole thing on a real model: no doubles between the prompt and the outcome."""

import subprocess
import sys
from pathlib import Path

import pytest

from rfx_agent import (
    Case,
    ExactVerifier,
    LocalSampler,
    ProgramTool,
    Recovery,
    Step,
    outcome_of,
    recovery_graph,
    step_input,
)
from rfx_agent.codec import load

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model() -> LocalSampler:
    with LocalSampler() as sampler:
        yield sampler


def test_a_real_models_failures_are_rescued_by_its_own_programs(model: LocalSampler) -> None:
    recovery = Recovery(sampler=model, verifier=ExactVerifier(), tool=ProgramTool(), max_tokens=160, seed=7)
    graph = recovery_graph(recovery)
    outcomes = []
    for a, b in ((738, 962), (847, 593)):
        step = Step.of(f"What is {a} times {b}? End with one line: Answer: <number>", expected=str(a * b))
        state = graph.invoke(step_input(step))
        case = load(Case, state["recovery"])
        outcomes.append(outcome_of(state).status)
        assert case.ledger.spent.tokens == sum(x.tokens for x in case.attempts)
        assert case.diagnosis is not None
        if len(case.decisions) > 1:
            assert case.decisions[0].evidence == "one_model"
            assert case.decisions[0].features is not None
    assert "rescued" in outcomes
    assert set(outcomes) <= {"accepted", "rescued"}


def test_importing_the_package_loads_no_sdk_and_no_graph() -> None:
    code = (
        "import sys, rfx_agent; heavy = {'openai', 'langgraph', 'langchain_core', 'torch', 'xllamacpp', 'typer'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
