"""What a learned policy has seen: counts of whole remedies. A value that merges by addition."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from rfx_agent._errors import ConfigError
from rfx_agent._types import Operator
from rfx_agent.policies._base import ROUTES

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Belief", "Remedy"]

_VERSION = 1

Remedy: TypeAlias = tuple[tuple[tuple[Operator, int], ...], Operator | None]
"""((operator, failed attempts), ...) in the order of ``ROUTES``, and the operator that then passed, or None."""


def _canonical(failed: Mapping[Operator, int], by: Operator | None) -> Remedy:
    for operator in (*failed, *(() if by is None else (by,))):
        if operator not in ROUTES:
            raise ConfigError(
                f"belief: {operator!r} is no operator that can be tried; choose among {', '.join(ROUTES)}"
            )
    for operator, n in failed.items():
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise ConfigError(f"belief: {n!r} failed attempts of {operator}; give a whole number of at least 0")
    return tuple((op, failed[op]) for op in ROUTES if failed.get(op)), by


def _amount(n: object) -> float:
    if isinstance(n, bool) or not isinstance(n, (int, float)) or not 0 <= n < math.inf:
        raise ConfigError(f"n is {n!r}; give a number of at least 0")
    return n


@dataclass(frozen=True, slots=True)
class Belief:
    """Counts of remedies: which attempts failed on a failure, and what passed in the end.

    The order of attempts within a remedy carries no information, and neither does the order of remedies, so two
    workers' beliefs add up to what one worker would have learned. Raw counts, not weights: a later version of the
    policy, or another prior, reads the same belief.

    Attributes:
        remedies: how often each was seen; with ``scaled`` also fractions.
    """

    remedies: Mapping[Remedy, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "remedies", dict(self.remedies))

    def __hash__(self) -> int:
        return hash(frozenset(self.remedies.items()))

    @property
    def failures(self) -> float:
        """How many failures it rests on."""
        return sum(self.remedies.values())

    def attempts(self) -> dict[Operator, float]:
        """Attempts per operator that it rests on, those that passed included."""
        total: dict[Operator, float] = {}
        for (failed, by), n in self.remedies.items():
            for operator, count in (*failed, *(() if by is None else ((by, 1),))):
                total[operator] = total.get(operator, 0) + n * count
        return total

    def seen(self, failed: Mapping[Operator, int], by: Operator | None = None) -> Belief:
        """With one more failure.

        Args:
            failed: attempts per operator that did not pass.
            by: the operator that then passed; None where nothing did.

        Raises:
            ConfigError: an operator that cannot be tried, a count that is none.
        """
        key = _canonical(failed, by)
        if not key[0] and by is None:
            return self  # nothing was tried, nothing was learned
        return Belief({**self.remedies, key: self.remedies.get(key, 0) + 1})

    def of(self, attempts: Iterable[tuple[Operator, bool]]) -> Belief:
        """With one more failure, from its attempts in order without the candidate; what follows a pass is not read."""
        failed: dict[Operator, int] = {}
        for operator, passed in attempts:
            if operator not in ROUTES:
                continue  # a person's answer says nothing about the operators
            if passed:
                return self.seen(failed, operator)
            failed[operator] = failed.get(operator, 0) + 1
        return self.seen(failed)

    def __add__(self, other: Belief) -> Belief:
        total = dict(self.remedies)
        for key, n in other.remedies.items():
            total[key] = total.get(key, 0) + n
        return Belief(total)

    def scaled(self, share: float) -> Belief:
        """With every count times ``share`` in [0, 1]: old evidence that counts for less, as after a drift."""
        if not 0 <= share <= 1:
            raise ConfigError(f"belief: share is {share!r}; give a number in [0, 1]")
        return Belief({key: n * share for key, n in self.remedies.items()})

    def to_json(self) -> str:
        """One JSON object, readable by ``from_json``; the same belief gives the same text."""
        rows = [
            {"failed": dict(failed), "by": by, "n": n}
            for (failed, by), n in sorted(self.remedies.items(), key=lambda item: (item[0][0], item[0][1] or ""))
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
            total: dict[Remedy, float] = {}
            for failed, by, n in rows:
                key = _canonical(failed, by)
                total[key] = total.get(key, 0) + _amount(n)
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # ConfigError is a ValueError
            raise ConfigError(f"belief: not what to_json writes: {error}; start from Belief()") from error
        if version != _VERSION:
            raise ConfigError(f"belief: version {version!r}; this release reads version {_VERSION}")
        return cls(total)
