"""One failing step and everything that happened to it: a value that nodes pass on and a checkpoint keeps."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from rfx_agent._errors import ConfigError
from rfx_agent._records import Attempt, Decision, Diagnosis
from rfx_agent._types import Operator, Rollout, Step
from rfx_agent.budgets import Ledger

__all__ = ["Ask", "Case", "Outcome", "Status", "decode", "encode"]

Status = Literal["accepted", "rescued", "human", "rejected", "unresolved", "unasked"]
T = TypeVar("T")
_PLAIN = frozenset({str, int, float, bool, type(None)})


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended. Always typed: an error's text is never an answer.

    Attributes:
        status: ``accepted``, the candidate passed as it was; ``rescued``, a remedy produced a verified success;
            ``human``, a person gave or approved the answer; ``rejected``, a person turned it down;
            ``unresolved``, there is no answer that anybody vouches for; ``unasked``, the same, and a person should
            have been asked: the cap on escalations was spent.
        text: the text that stands, or None.
        answer: its parsed answer, where there is one.
        by: the operator that produced it, or None.
        weak: true where what accepted it is no proof (agreement among samples, a judge).
        reason: machine-readable cause, as in ``Decision.reason``.
        sentence: the same for a person.
        confirmed_by: ids of rollouts, by another operator, that arrived at the same answer.
    """

    status: Status
    text: str | None = None
    answer: str | None = None
    by: Operator | None = None
    weak: bool = False
    reason: str = ""
    sentence: str = ""
    confirmed_by: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is an answer to go on with."""
        return self.status in ("accepted", "rescued", "human")


@dataclass(frozen=True, slots=True)
class Ask:
    """A case that was put before a person.

    Attributes:
        opened: Unix time in seconds.
        deadline: Unix time after which the default applies, or None to wait for ever.
        default: what applies then: ``approve`` or ``reject``.
    """

    opened: float
    deadline: float | None
    default: Literal["approve", "reject"]


@dataclass(frozen=True, slots=True)
class Case:
    """One step on its way through the graph.

    Attributes:
        step: what was asked.
        ledger: what was spent, under which budget.
        rollouts: every candidate answer so far, compact, in order of arrival.
        attempts: the rounds that produced them.
        diagnosis: the latest.
        decisions: all of them, oldest first.
        ask: the question to a person, once there is one.
        outcome: how it ended, once it did.
        blocked: why no model can be asked any more, or "".
        blocked_by: the same for a machine: ``sampler_error``, ``circuit_open``, ``budget:`` and what has no room.
        holds: paid calls so far; with ``run_id`` they name each one in a shared budget's store.
        notes: what samplers and scorers had to say, in order and without repeats.
        run_id: of this run of the step, for those who are told its events and for a shared budget; "" where there
            is neither.
    """

    step: Step
    ledger: Ledger = field(default_factory=Ledger)
    rollouts: tuple[Rollout, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    diagnosis: Diagnosis | None = None
    decisions: tuple[Decision, ...] = ()
    ask: Ask | None = None
    outcome: Outcome | None = None
    blocked: str = ""
    blocked_by: str = ""
    holds: int = 0
    notes: tuple[str, ...] = ()
    run_id: str = field(default="", compare=False)

    @property
    def decision(self) -> Decision:
        """The latest decision; a case has none before it was diagnosed."""
        if not self.decisions:
            raise ConfigError(f"step {self.step.id} has no decision yet; run diagnose on it first")
        return self.decisions[-1]

    @property
    def amplification(self) -> float | None:
        """Requests that reached a server for each that the engine asked for; None before it asked for any.

        Above 1 where the transport retried, or where a server that ignores ``n`` was asked once for each draw.
        """
        spent = self.ledger.spent
        return spent.calls / spent.asked if spent.asked else None

    def draws(self, operator: str = "retry") -> tuple[Rollout, ...]:
        """Distinct rollouts of ``operator``: those that repeat a response id are one draw."""
        seen: set[str] = set()
        kept = []
        for rollout in self.rollouts:
            if rollout.operator != operator:
                continue
            if rollout.response_id is not None:
                if rollout.response_id in seen:
                    continue
                seen.add(rollout.response_id)
            kept.append(rollout)
        return tuple(kept)

    def tally(self, operator: str) -> tuple[int, int]:
        """(tries, passes) of ``operator``; tries that produced nothing to judge included."""
        drawn = self.draws(operator)
        misses = sum(a.misses for a in self.attempts if a.operator == operator)
        return len(drawn) + misses, sum(r.passed for r in drawn)

    def add(self, rollouts: tuple[Rollout, ...], attempt: Attempt) -> Case:
        """With the products of one round appended, named and numbered."""
        base, number = len(self.rollouts), len(self.attempts)
        named = tuple(replace(r, id=f"r{base + i}", round=number) for i, r in enumerate(rollouts))
        return replace(self, rollouts=self.rollouts + named, attempts=(*self.attempts, attempt))

    def note(self, *notes: str) -> Case:
        """With ``notes`` appended, those already there left out."""
        new = dict.fromkeys(n for n in notes if n not in self.notes)
        return replace(self, notes=(*self.notes, *new)) if new else self


def encode(value: Any) -> Any:
    """A record as plain JSON-able values; fields that hold their default are left out."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is tuple or kind is list:
        return [encode(item) for item in value]
    if (known := _fields(kind)) is not None:  # type: ignore[arg-type]  # classes are hashable
        return {
            name: encode(item)
            for name, default in known
            if (item := getattr(value, name)) is not default and (default is MISSING or item != default)
        }
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    return value


@cache
def _fields(kind: type[Any]) -> tuple[tuple[str, Any], ...] | None:
    """Names and defaults of a record's fields; None for what is no record. Looked up once a class: graphs encode a
    whole case at every node."""
    return tuple((f.name, f.default) for f in fields(kind)) if is_dataclass(kind) else None


def decode(cls: type[T], data: Any) -> T:
    """The record that ``encode`` wrote.

    Raises:
        ConfigError: when ``data`` is not such a record, naming the class.
    """
    try:
        return _decode(cls, data)  # type: ignore[no-any-return]  # _decode follows annotations at run time
    except (TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"state: not a {cls.__name__} as this version writes it: {error}; start the step again"
        ) from error


def _decode(annotation: Any, data: Any) -> Any:
    origin = get_origin(annotation)
    if data is None or annotation in (Any, object) or origin is Literal:
        return data
    if origin in (Union, types.UnionType):
        return _decode(next(a for a in get_args(annotation) if a is not type(None)), data)
    if isinstance(annotation, type) and is_dataclass(annotation):
        hints = _hints(annotation)
        return annotation(**{name: _decode(hints[name], item) for name, item in data.items()})
    if origin is tuple:
        inner = get_args(annotation)
        if inner[-1] is Ellipsis:
            return tuple(_decode(inner[0], item) for item in data)
        return tuple(_decode(a, item) for a, item in zip(inner, data, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: _decode(get_args(annotation)[1], item) for key, item in data.items()}
    return data


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    # Top-K tables are never kept in state, so their class is not needed to read one back.
    return get_type_hints(cls, localns={"TopLogprobs": object, "FeatureError": object})
