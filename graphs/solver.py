"""A small agent graph: a solve step, and the recovery graph behind it as a subgraph.

The agent's own state is ``question`` and ``answer``; the other keys are the recovery graph's.
"""

from typing import Any

from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from graphs.recovery import build
from rfx_agent import Recovery, SampleRequest, Step, recovery_graph, step_input


class SolverInput(TypedDict):
    """What the agent is asked, and what the verifier compares with."""

    question: str
    reference: str


class SolverState(SolverInput):
    """The agent's state: its own keys, and those that the recovery graph owns."""

    answer: str | None
    step: dict[str, Any]
    candidate: str | None
    recovery: dict[str, Any]
    outcome: dict[str, Any]


def solver(recovery: Recovery) -> Any:
    """The agent graph around ``recovery``."""

    def solve(state: SolverState) -> dict[str, Any]:
        step = Step.of(state["question"] + "\nEnd with: Answer: <answer>", reference=state["reference"])
        drawn = recovery.sampler.sample(SampleRequest(step.messages, max_tokens=recovery.max_tokens))
        return dict(step_input(step, drawn.rollouts[0].text))

    def finish(state: SolverState) -> dict[str, Any]:
        return {"answer": state["outcome"].get("answer") or state["outcome"].get("text")}

    builder = StateGraph(SolverState, input_schema=SolverInput)
    builder.add_node("solve", solve)
    builder.add_node("recover", recovery_graph(recovery))
    builder.add_node("finish", finish)
    builder.add_edge(START, "solve")
    builder.add_edge("solve", "recover")
    builder.add_edge("recover", "finish")
    builder.add_edge("finish", END)
    return builder.compile(name="solver")


graph = solver(build())
