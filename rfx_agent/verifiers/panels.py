"""Several verifiers as one: all of them, any of them, or one after the other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from rfx_agent.accepted import VerifierLike, verifier_of
from rfx_agent.checks import share
from rfx_agent.engine.costs import lost_tries, reported
from rfx_agent.engine.drive import Call, Flow, drive, drive_async
from rfx_agent.errors import ConfigError
from rfx_agent.evidence.opinions import CORRELATION, Opinion
from rfx_agent.evidence.verdicts import joined, owned
from rfx_agent.ports import Verifier
from rfx_agent.records import Rollout, Step, Usage, Verdict
from rfx_agent.verifiers.base import NamedVerifier
from rfx_agent.verifiers.rates import RatesLike, loaded_rates

__all__ = ["AllOf", "AnyOf", "Cascade"]


class _Panel(NamedVerifier):
    """Verifiers whose verdicts make one.

    Args:
        verifiers: at least two, each with a name of its own; a function is one that proves.
        correlation: of their opinions: 0 if they are formed alone, 1 if they agree as often as their rates allow. Two
            judges that read the same text make some of the same mistakes; 0.5 is assumed where nobody measured it.
        rates: of the panel, where it was measured as one, or the file that has them: that needs no assumption. None
            leaves it to the members' own.
        name: what the panel is called in records; by default its members' names.

    Raises:
        ConfigError: fewer than two, or two of one name: two opinions of one judge are one opinion.
    """

    _JOIN = "+"

    def __init__(
        self,
        *verifiers: VerifierLike,
        correlation: float = CORRELATION,
        rates: RatesLike | None = None,
        name: str = "",
    ) -> None:
        who = type(self).__name__
        if len(verifiers) == 1 and isinstance(verifiers[0], (list, tuple)):
            raise ConfigError(f"{who}: one list of verifiers; give them one by one, as in {who}(*verifiers)")
        if len(verifiers) < 2:
            raise ConfigError(f"{who}: {len(verifiers)} verifiers; give at least two, as in {who}(cheap, thorough)")
        members = [verifier_of(x, where=f"{who}: a verifier") for x in verifiers]
        names = [x.name for x in members]
        if twice := next((x for x in names if names.count(x) > 1), None):
            raise ConfigError(
                f"{who}: two verifiers are called {twice!r}; two opinions of one are one opinion, so give each a name="
            )
        super().__init__(name or self._JOIN.join(names))
        self.verifiers = tuple(members)
        self.correlation = share(f"{who}: correlation", correlation)
        self.rates = loaded_rates(who, rates)
        self.needs_peers = any(x.needs_peers for x in members)
        self.instant = all(x.instant for x in members)
        self.blind = all(x.blind for x in members)
        self.partial = all(x.partial for x in members)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.verifiers))})"

    def bound(self, step: Step, rollout: Rollout) -> Usage | None:
        """The most that the verdict can cost: every member asked."""
        bounds = [x for x in (v.bound(step, rollout) for v in self.verifiers) if x is not None]
        return sum(bounds, Usage()) if bounds else None

    def check_step(self, step: Step) -> None:
        """As each of the members."""
        for verifier in self.verifiers:
            verifier.check_step(step)

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Judge ``rollout``; blocks."""
        return drive(self._flow(step, rollout, peers))

    async def averify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Do what ``verify`` does, without blocking the event loop."""
        return await drive_async(self._flow(step, rollout, peers))

    @abstractmethod
    def _flow(self, step: Step, rollout: Rollout, peers: Sequence[Rollout]) -> Flow[Verdict]:
        """The verdict, from the members'."""

    def _asked(
        self, members: Sequence[Verifier], step: Step, rollout: Rollout, peers: Sequence[Rollout]
    ) -> Flow[list[Verdict]]:
        """The verdicts of ``members``, asked at once, each with the opinion that it is."""
        replies = yield tuple([Call(x.verify, x.averify, (step, rollout), {"peers": peers}) for x in members])
        errors = [x.error for x in replies if x.error is not None]
        if errors:
            _cost_too(errors[0], errors[1:], [x.value.usage for x in replies if x.error is None])
            raise errors[0]
        given = zip(members, replies, strict=True)
        return [owned(x.value, v.name, v.rates, correlation=self.correlation) for v, x in given]

    def _together(self, given: Sequence[Verdict], *, passed: bool) -> Verdict:
        """One verdict of the members'."""
        verdict = joined(given, passed=passed, partial=[x.partial for x in self.verifiers[: len(given)]])
        if not verdict.weak or self.rates is None:
            return verdict
        return replace(verdict, opinions=(Opinion(self.name, passed, self.rates),))


class AllOf(_Panel):
    """Passes where all of them pass; all are asked at once.

    One proof among them makes the pass a proof, unless it is ``partial``: a schema beside a judge says nothing of what
    the judge is asked. What fails it is told: the feedback of each that failed.

    Example:
        >>> from rfx_agent.testing import ScriptedVerifier
        >>> from rfx_agent.verifiers import RegexVerifier
        >>> AllOf(ScriptedVerifier(["7"]), RegexVerifier(r"\\d")).verify(Step.of("3 + 4?"), Rollout("7")).passed
        True
    """

    def _flow(self, step: Step, rollout: Rollout, peers: Sequence[Rollout]) -> Flow[Verdict]:
        given = yield from self._asked(self.verifiers, step, rollout, peers)
        return self._together(given, passed=all(x.passed for x in given))


class AnyOf(_Panel):
    """Passes where one of them passes; all are asked at once. The opinions of all count in what a pass is worth, and a
    proof's "no" does not: another way to be right was asked for.

    Example:
        >>> from rfx_agent.testing import ScriptedVerifier
        >>> from rfx_agent.verifiers import ExactVerifier
        >>> panel = AnyOf(ScriptedVerifier(["seven"]), ExactVerifier(7))
        >>> panel.verify(Step.of("3 + 4?"), Rollout("Answer: 7")).passed
        True
    """

    _JOIN = "|"

    def _flow(self, step: Step, rollout: Rollout, peers: Sequence[Rollout]) -> Flow[Verdict]:
        given = yield from self._asked(self.verifiers, step, rollout, peers)
        return self._together(given, passed=any(x.passed for x in given))


class Cascade(_Panel):
    """Asks one after the other, the cheap ones first, and ends at the first that fails the answer or proves it.

    A pass that is an opinion, or that proves a part only (``partial``, as a schema's), is followed by the next one.

    Example:
        >>> from rfx_agent.testing import ScriptedVerifier
        >>> from rfx_agent.verifiers import ExactVerifier
        >>> cheap = ScriptedVerifier(["7"], weak=True)
        >>> Cascade(cheap, ExactVerifier(7)).verify(Step.of("3 + 4?"), Rollout("7")).weak
        False
    """

    _JOIN = ">"

    def _flow(self, step: Step, rollout: Rollout, peers: Sequence[Rollout]) -> Flow[Verdict]:
        given: list[Verdict] = []
        for verifier in self.verifiers:
            try:
                given += yield from self._asked((verifier,), step, rollout, peers)
            except Exception as error:
                _cost_too(error, (), [x.usage for x in given])
                raise
            if not given[-1].passed or not (given[-1].weak or verifier.partial):
                break
        return self._together(given, passed=given[-1].passed)


def _cost_too(error: Exception, others: Sequence[Exception], used: Sequence[Usage]) -> None:
    """Let ``error`` of one member say what the others cost: the verdicts that are lost with it were paid for."""
    told: Any = error
    lost = sum(lost_tries(x) for x in (error, *others))
    usage = sum([*map(reported, others), *used], reported(error))
    with suppress(AttributeError):  # a foreign exception may take no attributes
        told.calls = usage.calls
        # What was reserved is for all members: once more covers what is known to be spent.
        told.usage, told.lost = (None, lost + (usage.tokens > 0)) if lost else (usage, 0)
