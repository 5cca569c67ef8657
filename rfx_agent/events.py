"""What happens inside a step, as typed events for hooks. Prompts and answers are not in them.

Every event names its step by ``step_id``, and the run of it by ``run_id``: two runs of one step share the first and
never the second, which stays the same through all nodes of a graph and over an interrupt (see ``Case.run_id``). It is
"" for what an agent's own tools do outside of any step.

What is paid for is an operation, and ``operation`` is its id: the same in all of its events, and the same again when a
run that was interrupted comes to the same place. ``attempt`` says which attempt of the case it belongs to, from 1; 0 is
a candidate that came from outside, and a verdict belongs to the attempt that it is on. One operation may take several
requests, as where the transport retries: these are ``usage.calls``, and no attempts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, TypeAlias

from rfx_agent.bill import Bill, Purpose
from rfx_agent.case import Decision, Outcome, Regime
from rfx_agent.codec import SCHEMA, plain
from rfx_agent.records import Kind, Spend, Usage

__all__ = [
    "Decided",
    "Done",
    "Escalated",
    "Event",
    "Finished",
    "Judged",
    "Purpose",
    "Reserved",
    "Sampled",
    "Scored",
    "ToolRan",
    "as_record",
]


@dataclass(frozen=True, slots=True)
class Reserved:
    """The most that an action can cost was asked of the budget, before the action.

    Attributes:
        purpose: what for.
        cost: what was asked.
        refused: caps that it would cross; then nothing was set aside and nothing is done. Where an action was not
            planned any further than that, ``operation`` is "".
    """

    step_id: str
    purpose: Purpose
    cost: Spend
    refused: tuple[str, ...] = ()
    run_id: str = field(default="", kw_only=True)
    operation: str = field(default="", kw_only=True)
    attempt: int = field(default=0, kw_only=True)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A model was asked, for a draw or for a tool's input; or a steerer, for a steered decode.

    Attributes:
        model: name of the sampler or steerer.
        error: why nothing came back, or "".
        tag: ``retry:attempt:N``, N counting the rounds from 1, as LangChain's retry tags its attempts.
    """

    step_id: str
    remedy: str
    asked: int
    got: int
    usage: Usage
    seconds: float
    tag: str
    model: str = ""
    temperature: float | None = None
    error: str = ""
    run_id: str = field(default="", kw_only=True)
    operation: str = field(default="", kw_only=True)
    attempt: int = field(default=0, kw_only=True)


@dataclass(frozen=True, slots=True)
class Judged:
    """A verifier judged a rollout of ``remedy``, "" for a candidate from outside; ``kind`` says how it failed."""

    step_id: str
    rollout_id: str
    passed: bool
    weak: bool
    seconds: float
    verifier: str = ""
    usage: Usage = Usage()
    kind: Kind | None = None
    remedy: str = ""
    run_id: str = field(default="", kw_only=True)
    operation: str = field(default="", kw_only=True)
    attempt: int = field(default=0, kw_only=True)


@dataclass(frozen=True, slots=True)
class Scored:
    """An ancestor read ``rollouts`` failed rollouts, and ``scored`` of them got a table."""

    step_id: str
    scorer: str
    rollouts: int
    scored: int
    usage: Usage
    seconds: float
    run_id: str = field(default="", kw_only=True)
    operation: str = field(default="", kw_only=True)
    attempt: int = field(default=0, kw_only=True)


@dataclass(frozen=True, slots=True)
class ToolRan:
    """A tool ran, or a look-up of a user's own remedy; ``failed`` when it gave an error instead of an answer."""

    step_id: str
    tool: str
    failed: bool
    seconds: float
    remedy: str = "tool"
    run_id: str = field(default="", kw_only=True)
    operation: str = field(default="", kw_only=True)
    attempt: int = field(default=0, kw_only=True)


@dataclass(frozen=True, slots=True)
class Decided:
    """A policy decided."""

    step_id: str
    decision: Decision
    run_id: str = field(default="", kw_only=True)


@dataclass(frozen=True, slots=True)
class Escalated:
    """A case was put before a person; ``deadline`` in Unix seconds, or None."""

    step_id: str
    deadline: float | None
    run_id: str = field(default="", kw_only=True)
    operation: str = field(default="", kw_only=True)
    attempt: int = field(default=0, kw_only=True)


@dataclass(frozen=True, slots=True)
class Finished:
    """The step ended.

    Attributes:
        outcome: how; its text and answers stay out of records.
        spent: what the step cost from its first verdict on: attempts, samples, tokens, money, seconds, calls.
        candidate: what the candidate that the step began with had used already, which no budget was asked for.
        regime: what kind of failure it was held to be last; None where nothing failed.
        task: the step's.
        bill: ``spent`` by model, remedy and purpose, what of it was wasted, and an estimate of a plain retry.
    """

    step_id: str
    outcome: Outcome
    spent: Spend = Spend()
    candidate: Usage = Usage()
    regime: Regime | None = None
    task: str = ""
    bill: Bill = Bill()
    run_id: str = field(default="", kw_only=True)


Done: TypeAlias = Sampled | Scored | ToolRan | Escalated
"""The events of an operation that is over; each verdict has one."""
Event: TypeAlias = Reserved | Sampled | Judged | Scored | ToolRan | Decided | Escalated | Finished

_UNSAID = frozenset({"text", "answer", "best"})


def as_record(event: Event) -> dict[str, Any]:
    """``event`` as plain JSON-able values: ``{"type": "rfx.sampled", "schema": 2, "step_id": ..., ...}``.

    The event's own fields are all there; of a record inside it, those that hold their default are left out. What
    stays out for good is what was said: an outcome's text and answers, and the sentence that quotes a person.
    """
    kind: Any = type(event)
    written = plain(event, mode="json")
    record: dict[str, Any] = {"type": _name(kind), "schema": SCHEMA}
    for name in _names(kind):
        record[name] = written[name] if name in written else _blank(getattr(event, name))
    if isinstance(event, Finished):
        unsaid = _UNSAID | {"sentence"} if event.outcome.by == "human" else _UNSAID
        record["outcome"] = {key: value for key, value in record["outcome"].items() if key not in unsaid}
    return record


def _blank(default: Any) -> Any:
    """A field's default: a record that holds nothing but defaults is an empty one."""
    if isinstance(default, Usage | Spend | Bill):
        return {}
    return list(default) if isinstance(default, tuple) else default


@cache
def _name(cls: type[Any]) -> str:
    return "rfx." + "".join(f"_{c.lower()}" if c.isupper() else c for c in cls.__name__).lstrip("_")


@cache
def _names(cls: type[Any]) -> tuple[str, ...]:
    return tuple(f.name for f in fields(cls))
