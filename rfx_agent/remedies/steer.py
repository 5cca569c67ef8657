"""The paper's decodes: the step is decoded again with the logits of two models mixed."""

from __future__ import annotations

from dataclasses import dataclass, field

from rfx_agent.case import Attempt, Case
from rfx_agent.engine import costs
from rfx_agent.engine.drive import Call, Flow
from rfx_agent.engine.run import Run
from rfx_agent.ports import Remedy
from rfx_agent.records import Rollout, SampleRequest, Spend
from rfx_agent.remedies.base import Asked, candidates, seed_of

__all__ = ["Steer"]

_NOTHING = "there is nothing to steer, or nothing to steer with"
_WORDS = {
    "local_temp": "a draw at a lifted temperature",
    "sparse_steer": "steering at the junction",
    "sparse_steer_random": "steering at a random position",
    "dense_steer": "steering everywhere",
}


@dataclass(frozen=True)
class Steer(Remedy):
    """One operator of ``Recovery.steerer``, applied at the junction of a failed draw.

    Attributes:
        operator: among those that the steerer offers; also the remedy's name.
    """

    operator: str
    name: str = field(default="", init=False)
    node: str = field(default="steer", init=False)
    words: str = field(default="", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.operator)
        object.__setattr__(self, "words", _WORDS.get(self.operator, self.operator))
        if self.operator == "local_temp":  # a draw, whoever makes it
            object.__setattr__(self, "node", "resample")

    def bound(self, run: Run, case: Case) -> Spend | str:
        """The most that one steered decode costs, or why none is possible (see ``Remedy.bound``)."""
        failed = _site(case)
        if run.settings.steerer is None or failed is None:
            return _NOTHING
        return self._each(run, case, failed) + Spend(attempts=1)

    def attempt(self, run: Run, case: Case) -> Flow[Case]:
        """Steer one decode of a failed draw, and judge what comes of it (see ``Remedy.attempt``)."""
        steerer, failed = run.settings.steerer, _site(case)
        if steerer is None or failed is None:
            return case.add((), Attempt(self.name, note=_NOTHING))
        request = SampleRequest(case.step.messages, 1, run.temperature, run.settings.max_tokens, seed_of(run, case))

        def call(_: int) -> Call:
            return Call(steerer.steer, steerer.asteer, (case.step, self.operator, failed, request))

        asked = Asked(call, steerer.name, self._each(run, case, failed), blocks=False)
        return (yield from candidates(run, case, self.name, 1, asked))

    @staticmethod
    def _each(run: Run, case: Case, failed: Rollout) -> Spend:
        """Each of the two models reads the draw at most twice: once to find the junction, once up to where it is kept.
        Their tokens are priced as the sampler's."""
        read = 4 * (costs.prompt_tokens(case) + len(failed.text.encode(errors="replace")))
        calls = run.settings.steerer.max_calls if run.settings.steerer is not None else 1
        return costs.of_completion(run, read, calls=calls)


def _site(case: Case) -> Rollout | None:
    """The failed draw to steer. A candidate from outside has no table, so the junction is another draw's."""
    return min((x for x in case.draws() if not x.passed), key=lambda x: x.junction is None, default=None)
