"""A failure that nothing rescues goes to a person: the interrupt, and the same thread resumed with their answer.

python examples/person.py
"""

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from rfx_agent import FunctionVerifier, Recovery, RetryBudget, Step, outcome_of, recovery_graph, step_input
from rfx_agent.testing import ScriptedSampler


def main() -> None:
    """Escalate one step and resume it."""
    recovery = Recovery(
        sampler=ScriptedSampler(["Lyon", "Nice", "Lyon"]),  # a double: no model is needed to see the interrupt
        verifier=FunctionVerifier(lambda text: text == "Paris"),
        budget=RetryBudget(samples=3),
    )
    graph = recovery_graph(recovery, checkpointer=InMemorySaver(), interrupts=True)
    thread = {"configurable": {"thread_id": "capital"}}
    state = graph.invoke(step_input(Step.of("The capital of France?"), candidate="Lyon"), thread)
    print(state["__interrupt__"][0].value["action_requests"][0]["description"])
    edit = {"type": "edit", "edited_action": {"name": "accept_answer", "args": {"answer": "Paris"}}}
    state = graph.invoke(Command(resume={"decisions": [edit]}), thread)
    print(outcome_of(state))


if __name__ == "__main__":
    main()
