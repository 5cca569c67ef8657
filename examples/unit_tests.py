"""A function that a model wrote, held against unit tests in a sandbox: what fails is revised with the failed test.

python examples/unit_tests.py
"""

from rfx_agent import Recovery, TestsVerifier
from rfx_agent.testing import ScriptedSampler

TASK = "Write a Python function `median(numbers)` that returns the median of a non-empty list. Answer with code only."
TESTS = [
    "median([7]) == 7",
    "median([3, 1, 2]) == 2",
    "median([4, 1, 3, 2]) == 2.5",
    "(lambda given: (median(given), given)[1])([2, 1]) == [2, 1]",  # the argument is left as it was
]

FORGETS_TO_SORT = "def median(numbers):\n    return numbers[len(numbers) // 2]"
FORGETS_EVEN = "def median(numbers):\n    return sorted(numbers)[len(numbers) // 2]"
SORTS_IN_PLACE = """def median(numbers):
    numbers.sort()
    half = len(numbers) // 2
    return numbers[half] if len(numbers) % 2 else (numbers[half - 1] + numbers[half]) / 2"""
RIGHT = SORTS_IN_PLACE.replace("numbers.sort()", "numbers = sorted(numbers)")


def main() -> None:
    """Have one function written."""
    drafts = [FORGETS_EVEN, SORTS_IN_PLACE, RIGHT]  # a double's; put any sampler here
    recovery = Recovery(
        sampler=ScriptedSampler([f"```python\n{draft}\n```" for draft in drafts]),
        verifier=TestsVerifier(TESTS),  # a CPython in bubblewrap where that works, else Monty; the reasons say which
    )
    case = recovery.run(TASK, candidate=FORGETS_TO_SORT)
    for rollout in case.rollouts:
        by = rollout.remedy if rollout.round is not None else "given"
        print(f"{by}: {'passed' if rollout.passed else 'failed'}: {rollout.verdict and rollout.verdict.reason}")
    print(f"{case.outcome and case.outcome.status}:\n{case.outcome and case.outcome.answer}")


if __name__ == "__main__":
    main()
