"""Two remedies of one's own: one asks the model another question, one looks the answer up.

python examples/own_remedy.py
"""

from collections.abc import Sequence

from rfx_agent import FunctionVerifier, Recovery, Rollout, Step, Verdict
from rfx_agent.records import Message
from rfx_agent.remedies import Custom, default_remedies
from rfx_agent.testing import ScriptedSampler

GLOSSARY = {"What is the capital of Ruritania?": "Strelsau"}


class Decompose(Custom):
    """Asks for the parts of the question first. Only for answers that were wrong, not for those that were cut off."""

    name = "decompose"
    words = "asking for the parts first"

    def available(self, step: Step, failed: Sequence[Rollout]) -> str:
        return "" if failed[-1].kind == "wrong" else "the last answer was not wrong"

    def messages(self, step: Step, failed: Sequence[Rollout]) -> Sequence[Message]:
        return (*step.messages, {"role": "user", "content": "List what you need to know first. Then answer."})


class LookUp(Custom):
    """Knows some answers without a model. What it gives is judged like every other answer."""

    name = "look_up"

    def candidate(self, step: Step, failed: Sequence[Rollout]) -> str | None:
        return GLOSSARY.get(step.messages[-1]["content"])


def main() -> None:
    """Recover one step."""
    recovery = Recovery(
        ScriptedSampler([], last="Zenda"),  # a double; put any sampler here
        FunctionVerifier(lambda text: Verdict(text == "Strelsau", answer=text)),
        remedies=[*default_remedies(), Decompose(), LookUp()],
    )
    case = recovery.run("What is the capital of Ruritania?")
    for decision in case.decisions:
        print(f"{decision.route}: {decision.sentence}")
    if case.outcome is not None:
        print(f"{case.outcome.status} by {case.outcome.by}: {case.outcome.text}")


if __name__ == "__main__":
    main()
