"""The user's verifier, kept away from what needs no verifier: a run that gave no answer, a text that cannot stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rfx_agent.adapters.attempts import Attempts
from rfx_agent.ports import Verifier
from rfx_agent.records import Rollout, Step, Usage, Verdict

__all__ = ["Shield"]


class Shield(Verifier):
    """The verifier, except that a flawed run is no answer, whatever its text; nor is it a peer of answers.

    Args:
        verifier: the user's.
        attempts: the runs, with their flaws.
        fits: the verdict on a text that no run gave (a tool's, a person's) and that cannot stand, or None; by default
            any text can.
    """

    def __init__(
        self, verifier: Verifier, attempts: Attempts, fits: Callable[[str], Verdict | None] | None = None
    ) -> None:
        self.name, self.needs_peers = verifier.name, verifier.needs_peers
        self.instant, self.blind, self.rates = verifier.instant, verifier.blind, verifier.rates
        self._verifier, self._attempts, self._fits = verifier, attempts, fits

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """The verdict."""
        if flaw := self._flaw(rollout):
            return flaw
        return self._verifier.verify(step, rollout, peers=self._answers(peers))

    async def averify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Do what ``verify`` does, without blocking the event loop."""
        if flaw := self._flaw(rollout):
            return flaw
        return await self._verifier.averify(step, rollout, peers=self._answers(peers))

    def bound(self, step: Step, rollout: Rollout) -> Usage | None:
        """The verifier's own; a flawed run is judged for nothing."""
        return None if self._flaw(rollout) else self._verifier.bound(step, rollout)

    def _answers(self, peers: Sequence[Rollout]) -> tuple[Rollout, ...]:
        return tuple(x for x in peers if not self._flaw(x))

    def _flaw(self, rollout: Rollout) -> Verdict | None:
        key = rollout.response_id or ""
        if key in self._attempts.flaws:
            return self._attempts.flaws[key]
        if key in self._attempts.outputs or self._fits is None:
            return None
        return self._fits(rollout.said)
