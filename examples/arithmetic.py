"""A real model fails at multiplication, and the recovery graph rescues it: the decision records, one by one.

python examples/arithmetic.py
"""

from rfx_agent import (
    ExactVerifier,
    LocalSampler,
    ProgramTool,
    Recovery,
    RetryBudget,
    Step,
    outcome_of,
    recovery_graph,
    step_input,
)
from rfx_agent.adapters.graph.recovery_graph import case_of


def main() -> None:
    """Recover one failed product and print why each route was taken."""
    recovery = Recovery(
        sampler=LocalSampler(),
        verifier=ExactVerifier(),
        tool=ProgramTool(sandbox="monty"),  # or "bubblewrap", a whole CPython, where that is installed
        budget=RetryBudget(samples=10, tokens=8_000),
        max_tokens=200,
        seed=7,
    )
    graph = recovery_graph(recovery)
    step = Step.of("What is 738 times 962? End with one line: Answer: <number>", expected="709956")
    state = graph.invoke(step_input(step, candidate="738 * 962 = 709,856. Answer: 709856"))
    case = case_of(state)
    for decision in case.decisions:
        print(f"{decision.route:12} {decision.sentence}")
    for attempt in case.attempts:
        if attempt.note:
            print(f"{attempt.remedy}: {attempt.note}")  # of a program, where it ran
    outcome = outcome_of(state)
    print(f"{outcome.status}: {outcome.answer}, for {case.ledger.spent.tokens} tokens")


if __name__ == "__main__":
    main()
