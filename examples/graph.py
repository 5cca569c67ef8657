"""A graph that exists gets recovery in one line: around one of its nodes, or behind it, with a person to ask.

python examples/graph.py
"""

from collections.abc import Callable

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command
from typing_extensions import TypedDict

from rfx_agent import ExactVerifier, Recovery, RetryBudget, add_recovery, recoverable
from rfx_agent.testing import ScriptedSampler


class State(TypedDict, total=False):
    """The agent's own state; recovery asks for no key of its own."""

    question: str
    expected: str
    answer: str


def solver(*answers: str) -> Callable[[State], State]:
    """A node that stands for a call of a model: it gives one answer a run."""
    draws = iter(answers)

    def solve(state: State) -> State:
        answer = next(draws)
        print(f"  {state['question']} {answer}")
        return {"answer": answer}

    return solve


def around(recovery: Recovery, given: State) -> None:
    """One line: the node is run again until an answer is verified."""
    solve = solver("Lyon", "Nice", "Paris", "Lyon")
    solve = recoverable(solve, recovery=recovery, prompt="question", answer="answer", expected="expected")
    builder = StateGraph(State)
    builder.add_node("solve", solve)
    builder.add_edge(START, "solve")
    builder.add_edge("solve", END)
    print("around the node:", builder.compile().invoke(given)["answer"])


def behind(recovery: Recovery, given: State) -> None:
    """One call: the recovery graph behind the node. What nothing rescues goes to a person; nothing is paid twice."""
    builder = StateGraph(State)
    builder.add_node("solve", solver("Lyon"))
    builder.add_edge(START, "solve")
    builder.add_edge("solve", END)
    add_recovery(
        builder, "solve", recovery=recovery, prompt="question", answer="answer", expected="expected", interrupts=True
    )
    agent = builder.compile(checkpointer=InMemorySaver())
    thread: RunnableConfig = {"configurable": {"thread_id": "capital"}}
    asked = agent.invoke(given, thread)["__interrupt__"][0].value
    print("a person is asked:", asked["rfx"]["sentence"])
    edit = {"type": "edit", "edited_action": {"name": "accept_answer", "args": {"answer": "Paris"}}}
    print("behind the node:", agent.invoke(Command(resume={"decisions": [edit]}), thread)["answer"])


def main() -> None:
    """Both ways, on the same wrong answer. The model behind the recovery is a double, so that this runs anywhere."""
    given: State = {"question": "The capital of France?", "expected": "Paris"}
    around(Recovery(sampler=ScriptedSampler([]), verifier=ExactVerifier()), given)
    stubborn = ScriptedSampler(["Lyon", "Nice", "Lyon"])
    behind(Recovery(sampler=stubborn, verifier=ExactVerifier(), budget=RetryBudget(samples=3)), given)


if __name__ == "__main__":
    main()
