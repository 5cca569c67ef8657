"""Goes on from an answer that was cut off at the cap on its tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from rfx_agent.case import Attempt, Case
from rfx_agent.checks import number, whole
from rfx_agent.engine import costs
from rfx_agent.engine.drive import Flow
from rfx_agent.engine.run import Run
from rfx_agent.ports import Remedy
from rfx_agent.records import Rollout, Spend
from rfx_agent.remedies.base import NO_MODEL
from rfx_agent.remedies.retry import draw

__all__ = ["Extend"]


@dataclass(frozen=True)
class Extend(Remedy):
    """The rest of an answer that was cut off; where the model cannot go on from a prefix, a draw under a larger cap.

    The budget is the ceiling: a cap that its tokens cannot pay for is lowered to what they can.

    Attributes:
        factor: how many times the cap that cut the answer the next one is, where it is drawn again.
        most: most tokens of one completion; None leaves it to the budget.

    Raises:
        ConfigError: a parameter that cannot work.

    Example:
        >>> Extend(factor=4).node
        'extend'
    """

    factor: float = 2.0
    most: int | None = None
    name: str = field(default="extend", init=False)
    node: str = field(default="extend", init=False)
    words: str = field(default="going on from the cut answer", init=False)

    def __post_init__(self) -> None:
        number("Extend: factor", self.factor, above=1)
        if self.most is not None:
            whole("Extend: most", self.most, least=1)

    def bound(self, run: Run, case: Case) -> Spend | str:
        """See ``Remedy``."""
        plan = self._plan(run, case)
        if isinstance(plan, str):
            return plan
        prefix, cap = plan
        return costs.of_draw(run, case, prefix, cap=cap) + Spend(attempts=1)

    def attempt(self, run: Run, case: Case) -> Flow[Case]:
        """See ``Remedy``."""
        plan = self._plan(run, case)
        if isinstance(plan, str):
            return case.add((), Attempt(self.name, note=plan))
        prefix, cap = plan
        # A server may refuse what is too long for it, and still take a plain draw.
        return (yield from draw(run, case, self.name, 1, prefix=prefix, cap=cap, blocks=False))

    def _plan(self, run: Run, case: Case) -> tuple[str, int] | str:
        """(the text to go on from, the cap on the tokens), or why that cannot be done."""
        if run.sampler is None:
            return NO_MODEL
        last = next(reversed(case.failed), None)
        if last is None or last.kind != "cut":
            return "the last answer was not cut off"
        capped = self._cap_of(last, run, case)
        if run.sampler.continues_prefix and last.text:
            least, prefix, cap = 1, last.text, run.settings.max_tokens
        elif not run.sampler.takes_max_tokens:
            return f"{run.sampler.name} sets its own cap on tokens"
        else:
            least, prefix, cap = capped + 1, "", int(capped * self.factor)
        if self.most is not None:
            cap = min(cap, self.most)
        room = case.ledger.remaining()["tokens"]
        if room is not None:
            cap = min(cap, int(room) - costs.of_draw(run, case, prefix, cap=0).tokens)
        if cap < least:
            return f"no cap above the {capped} tokens that cut it off is within the budget and most={self.most}"
        return prefix, cap

    def _cap_of(self, cut: Rollout, run: Run, case: Case) -> int:
        """The cap that cut the answer off: what it wrote is the best that is known of it."""
        if cut.usage.completion_tokens > 1:
            return cut.usage.completion_tokens
        # Nobody counted: each attempt so far has raised the cap.
        raised = sum(x.remedy == self.name for x in case.attempts)
        return int(run.settings.max_tokens * self.factor ** min(raised, 8))
