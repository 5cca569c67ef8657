"""What units of a collection's work share: their results, their seeds, and how a port is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, overload

from rfx_agent.errors import RfxError, SamplerError
from rfx_agent.lab.collect.journal import Key, Unit
from rfx_agent.lab.collect.tables import unpack
from rfx_agent.records import Rollout

if TYPE_CHECKING:
    from rfx_agent.lab.collect.plan import Plan
    from rfx_agent.lab.problems.problem import Problem

__all__ = ["Done", "Failed", "as_text", "asked", "seed_of"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Done:
    """Finished units, and the error that a model answered with although it was asked twice."""

    units: tuple[Unit, ...]
    failure: SamplerError | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """A failed draw: its place among the problem's draws, its record, and its packed tables."""

    attempt: int
    record: Mapping[str, Any]
    raw: bytes | None
    junction: int | None = None
    peak: int | None = None

    def rollout(self) -> Rollout:
        """The draw itself."""
        return unpack(self.record, self.raw, junction=self.junction, peak=self.peak)


def seed_of(plan: Plan, key: Key) -> int:
    """The seed of a unit, 31 bits of a digest: the same in every run, and another for every unit."""
    text = "\0".join(map(str, (plan.seed, *key)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


async def asked(problem: Problem, name: str, call: Callable[[], Awaitable[T]]) -> T:
    """What ``call`` gives. Ports raise typed errors. Anything else is a bug in one and ends the collection."""
    try:
        return await call()
    except RfxError:
        raise
    except Exception as error:
        raise RfxError(f"problem {problem.id!r}: {name} broke: {type(error).__name__}: {error}") from error


@overload
def as_text(text: str) -> str: ...
@overload
def as_text(text: None) -> None: ...
def as_text(text: str | None) -> str | None:
    """Valid Unicode: a model may write half a surrogate pair, and a file cannot hold it."""
    return None if text is None else text.encode("utf-8", "replace").decode()
