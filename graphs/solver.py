"""A small agent graph, and the recovery graph behind its one node. Configured as ``recovery`` is."""

from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from graphs.settings import Settings, recovery_of
from rfx_agent import Recovery, SampleRequest, Step, add_recovery


class SolverInput(TypedDict):
    """What the agent is asked, and what the verifier compares with."""

    question: str
    expected: str


class SolverState(SolverInput):
    """The agent's state. ``outcome`` says how its answer came about."""

    answer: str | None
    outcome: dict[str, Any]


def step_of(state: SolverState) -> Step:
    """The question, as the model is asked it."""
    return Step.of(state["question"] + "\nEnd with: Answer: <answer>")


def request(recovery: Recovery, state: SolverState) -> SampleRequest:
    """One draw of the question, as the recovery would ask for it."""
    step = step_of(state)
    return SampleRequest(step.messages, 1, recovery.temperature, recovery.max_tokens, recovery.seed)


def solve(state: SolverState, runtime: Runtime[Settings]) -> dict[str, Any]:
    """Ask the model once."""
    recovery = recovery_of(runtime.context)
    drawn = recovery.sampler.sample(request(recovery, state))
    return {"answer": drawn.rollouts[0].text}


def finish(state: SolverState) -> dict[str, Any]:
    """The parsed answer in place of the whole text; None where nobody vouches for one."""
    outcome = state["outcome"]
    return {"answer": outcome.get("answer") or outcome.get("text")}


builder = StateGraph(SolverState, context_schema=Settings, input_schema=SolverInput)
builder.add_node("solve", solve)
builder.add_node("finish", finish)
builder.add_edge(START, "solve")
builder.add_edge("solve", "finish")
builder.add_edge("finish", END)
add_recovery(
    builder,
    "solve",
    recovery=recovery_of,
    prompt=step_of,
    answer="answer",
    expected="expected",
    outcome="outcome",
    interrupts=True,
)
graph = builder.compile(name="solver")
