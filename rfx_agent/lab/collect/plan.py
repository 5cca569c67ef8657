"""What a collection is to collect, and with what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rfx_agent.checks import number, whole
from rfx_agent.errors import ConfigError
from rfx_agent.lab.collect.journal import Fingerprint
from rfx_agent.lab.problems.problem import Problem
from rfx_agent.ports import Sampler, Scorer, Steerer, Tool, Verifier
from rfx_agent.records import REMEDY_NAME

__all__ = ["Plan"]

_TAKEN = ("retry", "tool", "score", "human")  # units of other work, and a person


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to collect, and with what.

    Attributes:
        problems: in the order in which they are screened; ids are unique.
        sampler: the specialist.
        verifier: judges the rollouts of problems that bring no verifier of their own.
        tool: what the tool route runs, or None.
        tool_sampler: writes the tool's programs; the specialist by default.
        steerer: carries out the decoding operators, or None.
        operators: decoding operators to try; all of the steerer's by default.
        scorers: (specialist's, ancestor's). Without the first the rollouts' own tables are used; without the second
            there are proxies only.
        draws: retries of a failing problem beyond the screening draw, at least 1.
        attempts: of the tool and of each decoding operator, at least 1.
        scored: failed draws of a problem that are measured, at least 1.
        failures: screening stops when so many failing problems are found; None screens all.
        temperature: decode temperature, above 0; also of the features.
        tool_temperature: decode temperature of programs.
        max_tokens: most tokens per completion.
        seed: of everything; a unit's own seed is a digest of it and of the unit's name.
        concurrency: units in flight at once.
        specialist, ancestor: who the models are (name, sha256, dtype), for the provenance; another model is another
            plan.
        settings: further settings that make the plan what it is (alpha, lifted_temperature, top_k).
        extras: further provenance, never compared.
    """

    problems: tuple[Problem, ...]
    sampler: Sampler
    verifier: Verifier | None = None
    tool: Tool | None = None
    tool_sampler: Sampler | None = None
    steerer: Steerer | None = None
    operators: tuple[str, ...] | None = None
    scorers: tuple[Scorer | None, Scorer | None] = (None, None)
    draws: int = 8
    attempts: int = 4
    scored: int = 4
    failures: int | None = None
    temperature: float = 0.6
    tool_temperature: float = 0.6
    max_tokens: int = 512
    seed: int = 0
    concurrency: int = 16
    specialist: Mapping[str, Any] = field(default_factory=dict)
    ancestor: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("draws", "attempts", "scored", "max_tokens", "concurrency"):
            whole(f"plan: {name}", getattr(self, name), least=1)
        if self.failures is not None:
            whole("plan: failures", self.failures, least=1)
        number("plan: temperature", self.temperature, above=0)  # at 0 all draws are one
        number("plan: tool_temperature", self.tool_temperature, least=0)
        if not self.problems:
            raise ConfigError("plan: problems is empty; give at least one")
        seen: set[str] = set()
        for problem in self.problems:
            if problem.id in seen:
                raise ConfigError(f"plan: two problems have the id {problem.id!r}; give each its own")
            seen.add(problem.id)
            if problem.verifier is None and self.verifier is None:
                raise ConfigError(f"plan: problem {problem.id!r} has no verifier; give it or the plan one")
        offered = () if self.steerer is None else self.steerer.operators
        if unknown := [name for name in self.steered if name not in offered]:
            raise ConfigError(f"plan: operators has {unknown}; the steerer offers {list(offered)}")
        if unnamed := [name for name in self.steered if name in _TAKEN or not REMEDY_NAME.fullmatch(name)]:
            raise ConfigError(f"plan: operators has {unnamed}; give names of [a-z0-9_] other than {', '.join(_TAKEN)}")

    @property
    def steered(self) -> tuple[str, ...]:
        """The decoding operators that are tried."""
        if self.operators is not None:
            return self.operators
        return () if self.steerer is None else tuple(self.steerer.operators)

    def fingerprint(self) -> Fingerprint:
        """What makes this plan the one that a journal was begun under."""

        def name(port: Any) -> str | None:
            return None if port is None else str(port.name)

        fixed = {
            "sampler": self.sampler.name,
            "specialist": dict(self.specialist),
            "ancestor": None if self.ancestor is None else dict(self.ancestor),
            "tool": name(self.tool),
            "tool_sampler": name(self.tool_sampler),
            "steerer": name(self.steerer),
            "scorers": {"specialist": name(self.scorers[0]), "ancestor": name(self.scorers[1])},
            "temperature": self.temperature,
            "tool_temperature": self.tool_temperature,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "settings": dict(self.settings),
        }
        growing: dict[str, Any] = {name: getattr(self, name) for name in ("draws", "attempts", "scored", "failures")}
        growing["operators"] = list(self.steered)
        problems = [problem.body(self.verifier) for problem in self.problems]
        return Fingerprint(fixed, growing, problems, dict(self.extras))
