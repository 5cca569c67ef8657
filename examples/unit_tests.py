"""A function that a model wrote, held against unit tests in the sandbox: what fails is revised with the failed test.

python examples/unit_tests.py
"""

import re

from rfx_agent import FunctionVerifier, Recovery, Rollout, Step, Verdict
from rfx_agent.testing import ScriptedSampler
from rfx_agent.tools import Sandbox

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

sandbox = Sandbox(seconds=2.0)


def passes_the_tests(step: Step, rollout: Rollout) -> Verdict:
    """Run the code in the rollout, and each test after it; the program is a stranger's, so it runs in the sandbox."""
    fenced = re.findall(r"```(?:python)?\n(.*?)```", rollout.text, re.DOTALL)
    code = fenced[-1] if fenced else rollout.text
    for test in step.expected:
        result = sandbox.run(f"{code}\n\nanswer = {test}")
        if result.answer != "True":
            failed = f"{test}: {result.error or result.answer}"
            return Verdict(False, answer=code, reason=failed, feedback=f"This test fails: {failed}")
    return Verdict(True, answer=code, reason=f"all {len(step.expected)} tests pass")


def main() -> None:
    """Have one function written."""
    drafts = [FORGETS_EVEN, SORTS_IN_PLACE, RIGHT]  # a double's; put any sampler here
    recovery = Recovery(
        sampler=ScriptedSampler([f"```python\n{draft}\n```" for draft in drafts]),
        verifier=FunctionVerifier(passes_the_tests),
    )
    with sandbox:
        case = recovery.run(Step.of(TASK, expected=TESTS), candidate=FORGETS_TO_SORT)
    for rollout in case.rollouts:
        print(f"{rollout.id} {'passed' if rollout.passed else 'failed'}: {rollout.verdict and rollout.verdict.reason}")
    print(f"{case.outcome and case.outcome.status}:\n{case.outcome and case.outcome.answer}")


if __name__ == "__main__":
    main()
