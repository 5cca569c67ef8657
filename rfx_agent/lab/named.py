"""The policies that a simulation knows by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rfx_agent.errors import ConfigError
from rfx_agent.evidence.routing import RoutingRule, route
from rfx_agent.lab.players import DecidingPlayer, FixedPlayer, LearnedPlayer, MappedPlayer
from rfx_agent.lab.replay import Cell, Player
from rfx_agent.policies.default import DefaultPolicy
from rfx_agent.policies.learned import LearnedPolicy
from rfx_agent.policies.worth import Worth
from rfx_agent.records import REMEDY_NAME

__all__ = ["NAMES", "ROUND", "Make", "maker", "parse", "playable", "worth"]

NAMES = ("retry", "paper_rule", "round_robin", "default", "learned")
"""The policies that always exist. ``fixed:OP+OP`` and ``learned:PRICE`` exist beside them."""

ROUND: tuple[str, ...] = ("retry", "dense_steer", "sparse_steer", "local_temp", "sparse_steer_random")
"""The round of ``round_robin``; remedies that a cell lacks are left out."""

Make: TypeAlias = Callable[[Cell, int], Player]
"""A fresh player for a cell and a number of orders."""


def worth(costs: Mapping[str, float], *, rescue: float) -> Worth:
    """A rescue against the cost of attempts; no person is asked. With a very high ``rescue`` the policy never stops."""
    return Worth(rescue=rescue, attempt=costs, minutes=0.0, answered=0.0)


def parse(name: str) -> tuple[str, tuple[str, ...]]:
    """(kind, arguments) of a policy's name."""
    kind, _, rest = name.partition(":")
    if name in NAMES:
        return name, ()
    if kind == "fixed" and rest and all(REMEDY_NAME.fullmatch(op) for op in rest.split("+")):
        return kind, tuple(rest.split("+"))
    if kind == "learned":
        try:
            price = float(rest)
        except ValueError:
            price = 0.0
        if 0 < price < math.inf:
            return kind, (rest,)
    raise ConfigError(
        f"policy {name!r} does not exist; choose among {', '.join(NAMES)}, fixed:REMEDY+REMEDY, learned:PRICE"
    )


def playable(cells: Sequence[Cell]) -> tuple[str, ...]:
    """Those of ``NAMES`` that can be played on ``cells``."""
    return tuple(name for name in NAMES if name != "paper_rule" or all(map(_can_rule, cells)))


def maker(name: str, base: LearnedPolicy, depth: int, costs: Mapping[str, float]) -> Make:
    """What makes a fresh player of the policy for a cell and a number of orders."""
    kind, arguments = parse(name)
    if kind == "learned":
        policy = base
        if arguments:
            # PRICE is that of an attempt of cost 1, in units of a rescue.
            policy = replace(base, worth=worth(costs, rescue=1 / float(arguments[0])))
        return lambda cell, size: LearnedPlayer(policy, cell.available, size, cell.remedies)
    if kind == "default":
        return lambda cell, _: DecidingPlayer(DefaultPolicy(), cell, depth, costs)
    if kind == "paper_rule":
        return lambda cell, _: MappedPlayer(_ruled(cell))
    wanted = {"retry": ("retry",), "round_robin": ROUND}.get(kind, arguments)

    def fixed(cell: Cell, _: int) -> Player:
        turns = tuple(op for op in wanted if op in cell.had)
        if not turns or (kind == "fixed" and len(turns) < len(wanted)):
            raise ConfigError(f"policy {name!r}: {cell.name} has only {', '.join(cell.had)}")
        return FixedPlayer(turns, cell.remedies)

    return fixed


def _ruled(cell: Cell) -> npt.NDArray[np.intp]:
    """The paper's rule, scored over all failures of the cell, its gate left out: the gate needs the rates."""
    chosen = route(cell.features, RoutingRule()).tolist()
    if lacking := sorted({op for op in chosen if op not in cell.had}):
        raise ConfigError(f"paper_rule: nothing was measured of {lacking[0]!r}")
    return np.array([cell.remedies.index(op) for op in chosen], dtype=np.intp)


def _can_rule(cell: Cell) -> bool:
    """Whether the paper's rule can be played: it needs its features of every failure, and all that it may choose."""
    rule = RoutingRule()
    return set(rule.operators) <= set(cell.features) and {*rule.operators.values(), rule.fallback} <= set(cell.had)
