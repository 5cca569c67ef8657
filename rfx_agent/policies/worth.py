"""What a rescue is worth, what an attempt costs, and which attempt that makes the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rfx_agent.checks import number, share
from rfx_agent.errors import ConfigError
from rfx_agent.policies.population import REMEDIES
from rfx_agent.records import REMEDY_NAME

__all__ = ["Worth", "choose"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """What outcomes are worth and attempts cost, in one unit of the deployment's choice (cents, say).

    The defaults price a rescue at a hundred attempts and let a person break even, so that an attempt pays from an
    expected rescue of 1 % on, as in the default policy. They are a start, not a measurement.

    Attributes:
        rescue: worth of an answer that passes.
        attempt: cost of one attempt per remedy.
        otherwise: cost of one attempt of a remedy that ``attempt`` does not name.
        minute: worth of one minute of a person.
        minutes: minutes that one escalated case takes them.
        answered: share of escalated cases that they answer.
    """

    rescue: float = 100.0
    attempt: Mapping[str, float] = field(default_factory=dict)
    otherwise: float = 1.0
    minute: float = 5.0
    minutes: float = 10.0
    answered: float = 0.5

    def __post_init__(self) -> None:
        amounts = {name: getattr(self, name) for name in ("rescue", "otherwise", "minute", "minutes", "answered")}
        for name, value in (*amounts.items(), *((f"attempt[{op!r}]", c) for op, c in self.attempt.items())):
            number(f"worth: {name}", value, least=0)
        share("worth: answered", self.answered)
        if unknown := [op for op in self.attempt if not REMEDY_NAME.fullmatch(op) or op == "human"]:
            raise ConfigError(f"worth: attempt names {unknown[0]!r}; give remedies' names, such as 'retry'")
        object.__setattr__(self, "attempt", dict(self.attempt))

    def __hash__(self) -> int:
        return hash((self.rescue, self.otherwise, self.minute, self.minutes, self.answered, *self.attempt.items()))

    @property
    def escalation(self) -> float:
        """Net worth of putting a case before a person."""
        return self.answered * self.rescue - self.minutes * self.minute

    @property
    def gain(self) -> float:
        """What a rescue is worth over an escalation; where it is not positive, a person is always the better choice."""
        return self.rescue - self.escalation

    def costs(self, remedies: Sequence[str] = REMEDIES) -> npt.NDArray[np.float64]:
        """Cost of one attempt of each of ``remedies``, shape (K,)."""
        return np.array([self.attempt.get(op, self.otherwise) for op in remedies])


def choose(
    rescue: npt.NDArray[np.floating],
    worth: Worth,
    available: npt.NDArray[np.bool_],
    untested: npt.NDArray[np.bool_] | None = None,
    remedies: Sequence[str] = REMEDIES,
) -> npt.NDArray[np.intp]:
    """The remedy with the best expected rescue per cost, or -1 where none is worth its cost.

    An attempt is worth its cost when p · gain exceeds it. A failed attempt never raises a belief in this model, so
    for one failure a step of foresight is enough to stop. Over failures it is not: what was never tried would be
    given up unseen. So where nothing is worth its cost, what is ``untested`` is tried first.

    Args:
        rescue: expected rescue of one attempt, shape (n, K).
        worth: what it is worth.
        available: which remedies can be tried, shape (K,).
        untested: which remedies the outcomes so far say too little of, shape (n, K); none by default.
        remedies: the K names.

    Returns:
        Shape (n,), indices into ``remedies``; of equals the first.
    """
    costs = worth.costs(remedies)
    if worth.gain <= 0:
        return np.full(len(rescue), -1, dtype=np.intp)
    pays = available & (rescue * worth.gain >= costs)
    if untested is not None:
        pays |= ~pays.any(axis=1, keepdims=True) & available & untested
    per_cost = np.where(pays, rescue / np.maximum(costs, 1e-9), -1.0)
    best: npt.NDArray[np.intp] = per_cost.argmax(axis=1)
    best[~pays.any(axis=1)] = -1
    return best
