"""Another draw from the original prompt: as it was, or at a lifted temperature from the junction."""

from __future__ import annotations

from dataclasses import dataclass, field

from rfx_agent.case import Attempt, Case
from rfx_agent.checks import number
from rfx_agent.engine import costs
from rfx_agent.engine.drive import Flow
from rfx_agent.engine.run import Run
from rfx_agent.ports import Remedy
from rfx_agent.records import SampleRequest, Spend
from rfx_agent.remedies.base import NO_MODEL, asking, before_junction, candidates, seed_of

__all__ = ["LocalTemp", "Retry", "draw"]


@dataclass(frozen=True)
class Retry(Remedy):
    """Ask the model again with the original prompt. One attempt makes ``Recovery.concurrency`` draws at once.

    Example:
        >>> Retry().node
        'resample'
    """

    name: str = field(default="retry", init=False)
    node: str = field(default="resample", init=False)
    words: str = field(default="another draw", init=False)

    def bound(self, run: Run, case: Case) -> Spend | str:
        """See ``Remedy``."""
        return NO_MODEL if run.sampler is None else costs.of_draw(run, case) + Spend(attempts=1)

    def attempt(self, run: Run, case: Case) -> Flow[Case]:
        """See ``Remedy``."""
        return (yield from draw(run, case, self.name, run.settings.concurrency))


@dataclass(frozen=True)
class LocalTemp(Remedy):
    """The paper's local temperature, on a server that continues a prefix: a draw from the junction of a failed one.

    Attributes:
        temperature: decode temperature.
    """

    temperature: float = 1.0
    name: str = field(default="local_temp", init=False)
    node: str = field(default="resample", init=False)
    words: str = field(default="a draw at a lifted temperature", init=False)

    def __post_init__(self) -> None:
        number("LocalTemp: temperature", self.temperature, above=0)

    def bound(self, run: Run, case: Case) -> Spend | str:
        """See ``Remedy``."""
        if run.sampler is None:
            return NO_MODEL
        if not (run.sampler.continues_prefix and run.sampler.takes_temperature):
            return f"{run.sampler.name} continues no prefix"
        if not (prefix := before_junction(case)):
            return "no junction is known"
        return costs.of_draw(run, case, prefix) + Spend(attempts=1)

    def attempt(self, run: Run, case: Case) -> Flow[Case]:
        """See ``Remedy``."""
        if isinstance(why := self.bound(run, case), str):
            return case.add((), Attempt(self.name, note=why))
        wanted = run.settings.concurrency
        return (yield from draw(run, case, self.name, wanted, self.temperature, before_junction(case)))


def draw(
    run: Run,
    case: Case,
    remedy: str,
    wanted: int,
    temperature: float | None = None,
    prefix: str = "",
    *,
    cap: int | None = None,
    normal: bool = False,
    blocks: bool = True,
) -> Flow[Case]:
    """Up to ``wanted`` draws from the original prompt.

    Args:
        run, case: the deployment and the failure.
        remedy: whose draws they are.
        wanted: how many at once.
        temperature: of the decode; by default the run's.
        prefix: the assistant's text to continue.
        cap: most tokens of a draw; by default ``Recovery.max_tokens``.
        normal: whether this is the step's first draw.
        blocks: whether nothing can be asked any more where this fails.
    """
    if run.sampler is None:
        return case.add((), Attempt(remedy, wanted, note=NO_MODEL))
    heat = run.temperature if temperature is None else temperature
    most = run.settings.max_tokens if cap is None else cap
    request = SampleRequest(case.step.messages, 1, heat, most, seed_of(run, case), prefix or None)
    asked = asking(run.sampler, request, costs.of_draw(run, case, prefix, cap=cap), normal=normal, blocks=blocks)
    return (yield from candidates(run, case, remedy, wanted, asked))
