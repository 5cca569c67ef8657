"""What a learned policy has seen: counts of whole histories of failures. A value that merges by addition."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from rfx_agent.case import Case
from rfx_agent.checks import number, whole
from rfx_agent.checks import share as checked_share
from rfx_agent.errors import ConfigError
from rfx_agent.policies.population import ordered
from rfx_agent.records import REMEDY_NAME, Rollout

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Belief", "History", "seen_in"]

_VERSION = 1

History: TypeAlias = tuple[tuple[tuple[str, int], ...], str | None]
"""((remedy, failed attempts), ...) in the order of ``ordered``, and the remedy that then passed, or None."""


def _canonical(failed: Mapping[str, int], by: str | None) -> History:
    for remedy in (*failed, *(() if by is None else (by,))):
        if not isinstance(remedy, str) or not REMEDY_NAME.fullmatch(remedy) or remedy == "human":
            raise ConfigError(f"belief: {remedy!r} is no remedy that can be tried; give its name, such as 'retry'")
    for remedy, n in failed.items():
        whole(f"belief: failed attempts of {remedy}", n)
    return tuple((op, failed[op]) for op in ordered(failed) if failed.get(op)), by


@dataclass(frozen=True, slots=True)
class Belief:
    """Counts of histories: which attempts failed on a failure, and what passed in the end.

    The order of attempts within a history carries no information, and neither does the order of histories, so two
    workers' beliefs add up to what one worker would have learned. Raw counts, not weights: a later version of the
    policy, or another prior, reads the same belief.

    Attributes:
        histories: how often each was seen; with ``scaled`` also fractions.
    """

    histories: Mapping[History, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "histories", dict(self.histories))

    def __hash__(self) -> int:
        return hash(frozenset(self.histories.items()))

    @property
    def failures(self) -> float:
        """How many failures it rests on."""
        return sum(self.histories.values())

    def attempts(self) -> dict[str, float]:
        """Attempts per remedy that it rests on, those that passed included."""
        total: dict[str, float] = {}
        for (failed, by), n in self.histories.items():
            for remedy, count in (*failed, *(() if by is None else ((by, 1),))):
                total[remedy] = total.get(remedy, 0) + n * count
        return total

    def seen(self, failed: Mapping[str, int], by: str | None = None) -> Belief:
        """With one more failure.

        Args:
            failed: attempts per remedy that did not pass.
            by: the remedy that then passed; None where nothing did.

        Raises:
            ConfigError: a remedy that cannot be tried, a count that is none.
        """
        key = _canonical(failed, by)
        if not key[0] and by is None:
            return self  # nothing was tried, nothing was learned
        return Belief({**self.histories, key: self.histories.get(key, 0) + 1})

    def of(self, attempts: Iterable[tuple[str, bool]]) -> Belief:
        """With one more failure, from its attempts in order without the candidate; what follows a pass is not read."""
        failed: dict[str, int] = {}
        for remedy, passed in attempts:
            if remedy == "human":
                continue  # a person's answer says nothing about the remedies
            if passed:
                return self.seen(failed, remedy)
            failed[remedy] = failed.get(remedy, 0) + 1
        return self.seen(failed)

    def __add__(self, other: Belief) -> Belief:
        total = dict(self.histories)
        for key, n in other.histories.items():
            total[key] = total.get(key, 0) + n
        return Belief(total)

    def scaled(self, share: float) -> Belief:
        """With every count times ``share`` in [0, 1]: old evidence that counts for less, as after a drift."""
        checked_share("belief: share", share)
        return Belief({key: n * share for key, n in self.histories.items()})

    def to_json(self) -> str:
        """One JSON object, readable by ``from_json``; the same belief gives the same text."""
        rows = [
            {"failed": dict(failed), "by": by, "n": n}
            for (failed, by), n in sorted(self.histories.items(), key=lambda item: (item[0][0], item[0][1] or ""))
        ]
        return json.dumps({"v": _VERSION, "remedies": rows})

    @classmethod
    def from_json(cls, text: str | bytes) -> Belief:
        """Read what ``to_json`` wrote.

        Raises:
            ConfigError: text that is no belief, or of a version that this one does not read.
        """
        try:
            data = json.loads(text)
            version = data["v"]
            rows = [(row["failed"], row["by"], row["n"]) for row in data["remedies"]] if version == _VERSION else []
            total: dict[History, float] = {}
            for failed, by, n in rows:
                key = _canonical(failed, by)
                total[key] = total.get(key, 0) + number("n", n, least=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # ConfigError is a ValueError
            raise ConfigError(f"belief: not what to_json writes: {error}; start from Belief()") from error
        if version != _VERSION:
            raise ConfigError(f"belief: version {version!r}; this release reads version {_VERSION}")
        return cls(total)


def _known(case: Case, rollout: Rollout) -> bool:
    """Whether the verdict on ``rollout`` says if it was a rescue."""
    stood = case.outcome is not None and case.outcome.status in ("accepted", "rescued")
    opinion = rollout.passed and rollout.verdict is not None and rollout.verdict.weak
    return not opinion or (stood and case.outcome is not None and rollout.text == case.outcome.text)


def seen_in(case: Case) -> Belief:
    """What one finished case teaches, for ``LearnedPolicy.learn`` or ``PolicyStore.add``.

    Of an opinion's pass it teaches nothing, unless that was worth enough to stand.
    """
    attempts: list[tuple[str, bool]] = []
    seen: set[str] = set()
    by_round: dict[int, list[bool]] = {}
    for rollout in case.rollouts:
        if rollout.response_id is not None:
            if rollout.response_id in seen:
                continue
            seen.add(rollout.response_id)
        if rollout.round is not None and rollout.verdict is not None and _known(case, rollout):
            by_round.setdefault(rollout.round, []).append(rollout.passed)
    outside = any(rollout.round is None for rollout in case.rollouts)
    for place, attempt in enumerate(case.attempts):
        attempts += [(attempt.remedy, passed) for passed in by_round.get(place, [])]
        attempts += [(attempt.remedy, False)] * attempt.misses
    if not outside:
        if attempts and attempts[0][1]:
            return Belief()  # the first draw passed: no failure
        attempts = attempts[1:]
    elif any(r.round is None and r.passed for r in case.rollouts):
        return Belief()
    return Belief().of(attempts)
