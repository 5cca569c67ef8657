"""The event log of production runs: one JSON object a line and step, without prompts, answers or any model output.

::

    {"schema": 2, "step": "ab12", "model": "qwen", "task": "sums", "evidence": "two_model",
     "features": {"spread": 0.4, "concentration": 2.1, "logit_dispersion": -0.8},
     "attempts": [["retry", false], ["revise", false], ["tool", true]],
     "contexts": [{}, {"kind": "malformed", "told": true, "tokens": 410}, {"kind": "wrong", "tokens": 530}],
     "kinds": {"malformed": 1, "wrong": 1}}

``attempts`` is in order; its first entry is the candidate whose failure opened the case. ``contexts`` has one entry for
each: how the answer before it had failed, whether the verifier had said what is wrong with that, and what the attempt
cost. Where the verdict was an opinion of measured rates, ``"opinion": [0.9, 0.1]`` says how probable it was on a right
and on a wrong answer. ``kinds`` counts the failed answers. A log without these two reads as well. Keys that are not
named here are left alone, so that a log may carry more. Version 0.1 wrote ``"v": 1`` for the schema.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, ValidationError

from rfx_agent.case import Case
from rfx_agent.errors import ConfigError
from rfx_agent.evidence.opinions import Likelihoods
from rfx_agent.evidence.verdicts import likelihoods_of
from rfx_agent.lab.common import FEATURES, BadRow, OnBad, read_lines
from rfx_agent.records import REMEDY_NAME, Evidence, Kind

__all__ = ["Context", "Log", "LogRow", "log_line", "read_log"]

_SCHEMA = 2


@dataclass(frozen=True, slots=True)
class Context:
    """What is known of one attempt besides how it ended.

    Attributes:
        kind: how the last answer before it had failed; None where that is not known.
        told: whether the verifier had said what is wrong with that answer.
        tokens: what the attempt cost; None where that is not known.
        opinion: how probable the verdict on it was on a right and on a wrong answer; None where it was a proof, or an
            opinion whose rates nobody measured.
    """

    kind: Kind | None = None
    told: bool = False
    tokens: int | None = None
    opinion: Likelihoods | None = None


@dataclass(frozen=True, slots=True)
class LogRow:
    """One finished step.

    Attributes:
        step: its id.
        model: the specialist, with its ancestor where there is one.
        task: kind of steps.
        evidence: what the features were computed from.
        features: by name, or None where there were none.
        attempts: (remedy, passed) in order, the candidate first; repeats of one draw are left out.
        contexts: of each attempt; empty where nothing of the kind was logged.
        kinds: how many failed answers were of each kind.
    """

    step: str
    model: str
    task: str
    evidence: Evidence
    features: Mapping[str, float] | None
    attempts: tuple[tuple[str, bool], ...]
    contexts: tuple[Context, ...] = ()
    kinds: Mapping[Kind, int] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether the candidate failed, so that this is a failure at all."""
        return bool(self.attempts) and not self.attempts[0][1]

    def tally(self, remedy: str) -> tuple[int, int]:
        """(attempts, passes) of ``remedy``, the candidate left out: it failed by selection, not by chance."""
        after = [passed for name, passed, _ in self.after() if name == remedy]
        return len(after), sum(after)

    def after(self) -> Iterator[tuple[str, bool, Context]]:
        """(remedy, passed, context) of each attempt that followed the candidate."""
        known = self.contexts or (Context(),) * len(self.attempts)
        for (remedy, passed), context in zip(self.attempts[1:], known[1:], strict=True):
            yield remedy, passed, context


@dataclass(frozen=True, slots=True)
class Log:
    """A whole log: its rows in order, and (line number, reason) of every line that was skipped."""

    rows: tuple[LogRow, ...]
    bad_rows: tuple[BadRow, ...] = ()


def log_line(case: Case, *, model: str, task: str) -> str:
    """One line, without its newline, for a finished case.

    Args:
        case: a case with an outcome.
        model: the name that calibrations go by (the pair, where there is an ancestor).
        task: kind of steps.

    Raises:
        ConfigError: a case without an outcome, an empty name.
    """
    if case.outcome is None:
        raise ConfigError(f"step {case.step.id} has no outcome yet; log a case once it is finished")
    if not model.strip() or not task.strip():
        raise ConfigError(f"model is {model!r}, task is {task!r}; name both, calibrations go by them")
    attempts, kinds = _attempts(case)
    if case.outcome.by == "human" and case.outcome.status in ("human", "rejected"):
        last = next(reversed(case.failed), None)
        context = Context() if last is None else Context(last.kind, last.told)
        attempts.append(("human", case.outcome.status == "human", context))
    diagnosis = case.diagnosis
    evidence: Evidence = "samples" if diagnosis is None else diagnosis.evidence
    features = None if diagnosis is None or diagnosis.features is None else dict(diagnosis.features)
    line = {"schema": _SCHEMA, "step": case.step.id, "model": model, "task": task, "evidence": evidence}
    line |= {"features": features, "attempts": [(remedy, passed) for remedy, passed, _ in attempts]}
    if kinds:  # of a case that an older version began, nothing of the kind is known
        line |= {"contexts": [_said(context) for _, _, context in attempts], "kinds": kinds}
    return json.dumps(line, allow_nan=False)


def read_log(path: str | os.PathLike[str], *, on_bad: OnBad = "raise") -> Log:
    """Read what ``log_line`` wrote, one line a step. A step that comes twice for one model and task is malformed.

    Args:
        path: JSON lines; blank lines are left out.
        on_bad: ``raise`` at the first malformed line, or ``skip`` them and name each in ``Log.bad_rows``.

    Raises:
        ProfileError: a file that cannot be read, no usable line, or a malformed one; names its number and field.
        ConfigError: another ``on_bad``.
    """
    seen: set[tuple[str, str, str]] = set()

    def parse(line: bytes) -> LogRow | str:
        row = _parse(line)
        if isinstance(row, LogRow):
            if (key := (row.model, row.task, row.step)) in seen:
                return f"step: {row.step!r} was logged already for this model and task"
            seen.add(key)
        return row

    rows, bad = read_lines(path, parse, on_bad=on_bad, what="step")
    return Log(tuple(rows), tuple(bad))


def _attempts(case: Case) -> tuple[list[tuple[str, bool, Context]], Counter[Kind]]:
    """The judged candidates in order, each draw once, and the tries without one; and how many failed in which way."""
    seen: set[str] = set()
    attempts: list[tuple[str, bool, Context]] = []
    kinds = Counter[Kind]()
    by_round: dict[int, list[tuple[bool, Likelihoods | None]]] = {}
    for rollout in case.rollouts:
        if rollout.verdict is None or rollout.response_id in seen:
            continue
        if rollout.response_id is not None:
            seen.add(rollout.response_id)
        if rollout.kind is not None:
            kinds[rollout.kind] += 1
        opinion = likelihoods_of(rollout.verdict) if rollout.verdict.weak else None
        if rollout.round is None:
            context = Context(tokens=rollout.usage.tokens or None, opinion=opinion)
            attempts.append((rollout.remedy, rollout.passed, context))
        else:
            by_round.setdefault(rollout.round, []).append((rollout.passed, opinion))
    for number, attempt in enumerate(case.attempts):
        ended = by_round.get(number, []) + [(False, None)] * attempt.misses
        each = round(attempt.tokens / len(ended)) if ended and attempt.tokens else None
        attempts += [(attempt.remedy, passed, Context(attempt.kind, attempt.told, each, x)) for passed, x in ended]
    return attempts, kinds


def _said(context: Context) -> dict[str, object]:
    """Of ``context``, what is known."""
    said = {"kind": context.kind, "told": context.told or None, "tokens": context.tokens, "opinion": context.opinion}
    return {name: value for name, value in said.items() if value is not None}


_Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class _Context(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    kind: Kind | None = None
    told: bool = False
    tokens: NonNegativeInt | None = None
    opinion: tuple[_Share, _Share] | None = None


class _Line(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    version: Annotated[Literal[1, 2], Field(validation_alias=AliasChoices("schema", "v"))]
    step: Annotated[str, Field(min_length=1)]
    model: Annotated[str, Field(min_length=1)]
    task: Annotated[str, Field(min_length=1)]
    evidence: Evidence
    features: dict[str, FiniteFloat] | None
    attempts: list[tuple[Annotated[str, Field(pattern=f"^{REMEDY_NAME.pattern}$")], bool]]
    contexts: list[_Context] = []  # pydantic copies it
    kinds: dict[Kind, NonNegativeInt] = {}


def _parse(line: bytes) -> LogRow | str:
    try:
        parsed = _Line.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'line'}: {first['msg']}"
    features = parsed.features
    if features is not None:
        wanted = FEATURES.get(parsed.evidence, ())
        if set(features) != set(wanted):
            return f"features: {sorted(features)} for {parsed.evidence} evidence; expected {sorted(wanted)} or null"
    attempts = tuple(parsed.attempts)
    if len(parsed.contexts) not in (0, len(attempts)):
        return f"contexts: {len(parsed.contexts)} for {len(attempts)} attempts; give one for each, or none"
    contexts = tuple(Context(x.kind, x.told, x.tokens, x.opinion) for x in parsed.contexts)
    return LogRow(parsed.step, parsed.model, parsed.task, parsed.evidence, features, attempts, contexts, parsed.kinds)
