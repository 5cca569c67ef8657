"""The first runs of several calls as one batch of the chain's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.runnables import RunnableConfig, patch_config

from rfx_agent.adapters.attempts import Again, Made
from rfx_agent.adapters.chain.plan import Plan
from rfx_agent.adapters.chain.thing import Chain

__all__ = ["Call", "arun_first", "run_first"]


@dataclass(slots=True)
class Call:
    """One call of a batch.

    Attributes:
        config: of what runs inside it.
        run: its own run.
        thing: the chain on its input; None where that could not be made.
        made: what its first run gave.
        ended: whether its own run has ended.
    """

    config: RunnableConfig
    run: Any
    thing: Chain[Any, Any] | None
    made: Made
    ended: bool = False

    @classmethod
    def of(cls, plan: Plan, value: Any, config: RunnableConfig, run: Any, kwargs: Mapping[str, Any]) -> Call:
        """A call that has begun. An input that cannot be read is its own error, not the batch's."""
        inner = patch_config(config, callbacks=run.get_child())
        try:
            return cls(inner, run, plan.thing(value, inner, run, kwargs, streaming=False), Made())
        except Exception as error:  # noqa: BLE001  # the user's reading of it; raised where the call is finished
            return cls(inner, run, None, Made(error=error))

    def ends(self) -> bool:
        """Its run ends now; False where it had ended before."""
        first, self.ended = not self.ended, True
        return first

    def ready(self) -> Chain[Any, Any]:
        """The chain on its input, or what was wrong with that."""
        if self.thing is None:
            assert self.made.error is not None  # noqa: S101  # of ``of``
            raise self.made.error
        return self.thing


def run_first(calls: Sequence[Call], *, whole: bool) -> None:
    """Make the first runs. With ``whole``, the first exception of one's own is raised, before anything is recovered."""
    if runs := _runs(calls):
        _take(calls, Chain.batch(runs), whole=whole)


async def arun_first(calls: Sequence[Call], *, whole: bool) -> None:
    """Do what ``run_first`` does, without blocking the event loop."""
    if runs := _runs(calls):
        _take(calls, await Chain.abatch(runs), whole=whole)


def _runs(calls: Sequence[Call]) -> list[tuple[Chain[Any, Any], Again]]:
    return [(call.thing, Again(1)) for call in calls if call.thing is not None]


def _take(calls: Sequence[Call], runs: Sequence[Made], *, whole: bool) -> None:
    for call, made in zip([x for x in calls if x.thing is not None], runs, strict=True):
        call.made = made
    for call in calls:
        if whole and call.made.rollout is None and call.made.error is not None:
            raise call.made.error
