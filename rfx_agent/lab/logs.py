"""The event log of production runs: one JSON object a line and step, without prompts, answers or any model output.

::

    {"v": 1, "step": "ab12", "model": "qwen", "task": "sums", "evidence": "two_model",
     "features": {"spread": 0.4, "concentration": 2.1, "logit_dispersion": -0.8},
     "attempts": [["retry", false], ["retry", false], ["tool", true]]}

``attempts`` is in order; its first entry is the candidate whose failure opened the case. Keys that are not named here
are left alone, so that a log may carry more.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from rfx_agent._errors import ConfigError
from rfx_agent._types import Evidence, Operator
from rfx_agent.case import Case
from rfx_agent.features import ONE_MODEL, TWO_MODEL
from rfx_agent.lab._common import BadRow, OnBad, ProfileError, check_on_bad

__all__ = ["Log", "LogRow", "iter_log", "log_line", "read_log"]

_LONGEST = 1 << 20
"""Bytes of the longest line that is read: a log holds no text, so a longer one is something else."""

_NAMES: dict[Evidence, tuple[str, ...]] = {"two_model": TWO_MODEL, "one_model": ONE_MODEL, "samples": ()}


@dataclass(frozen=True, slots=True)
class LogRow:
    """One finished step.

    Attributes:
        step: its id.
        model: the specialist, with its ancestor where there is one.
        task: kind of steps.
        evidence: what the features were computed from.
        features: by name, or None where there were none.
        attempts: (operator, passed) in order, the candidate first; repeats of one draw are left out.
    """

    step: str
    model: str
    task: str
    evidence: Evidence
    features: Mapping[str, float] | None
    attempts: tuple[tuple[Operator, bool], ...]

    @property
    def failed(self) -> bool:
        """Whether the candidate failed, so that this is a failure at all."""
        return bool(self.attempts) and not self.attempts[0][1]

    def tally(self, operator: str) -> tuple[int, int]:
        """(attempts, passes) of ``operator``, the candidate left out: it failed by selection, not by chance."""
        after = [passed for name, passed in self.attempts[1:] if name == operator]
        return len(after), sum(after)


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
    seen: set[str] = set()
    attempts: list[tuple[str, bool]] = []
    by_round: dict[int, list[bool]] = {}
    for rollout in case.rollouts:
        if rollout.verdict is None or rollout.response_id in seen:
            continue
        if rollout.response_id is not None:
            seen.add(rollout.response_id)
        if rollout.round is None:
            attempts.append((rollout.operator, rollout.passed))
        else:
            by_round.setdefault(rollout.round, []).append(rollout.passed)
    for number, attempt in enumerate(case.attempts):
        attempts += [(attempt.operator, passed) for passed in by_round.get(number, [])]
        attempts += [(attempt.operator, False)] * attempt.misses
    if case.outcome.by == "human" and case.outcome.status in ("human", "rejected"):
        attempts.append(("human", case.outcome.status == "human"))
    diagnosis = case.diagnosis
    evidence: Evidence = "samples" if diagnosis is None else diagnosis.evidence
    features = None if diagnosis is None or diagnosis.features is None else dict(diagnosis.features)
    line = {"v": 1, "step": case.step.id, "model": model, "task": task, "evidence": evidence}
    return json.dumps(line | {"features": features, "attempts": attempts}, allow_nan=False)


def iter_log(path: str | os.PathLike[str]) -> Iterator[tuple[int, LogRow | str]]:
    """(line number, row or what is wrong with the line), one line in memory at a time; blank lines are left out.

    A step id that comes twice for one model and task is wrong the second time.

    Raises:
        ProfileError: a file that cannot be read.
    """
    seen: set[tuple[str, str, str]] = set()
    try:
        with Path(path).open("rb") as file:
            number = 0
            while line := file.readline(_LONGEST + 1):
                number += 1
                if len(line) > _LONGEST:
                    while line and not line.endswith(b"\n"):
                        line = file.readline(_LONGEST)
                    yield number, f"line: longer than {_LONGEST} bytes"
                    continue
                if not line.strip():
                    continue
                row = _parse(line)
                if isinstance(row, LogRow):
                    key = (row.model, row.task, row.step)
                    if key in seen:
                        yield number, f"step: {row.step!r} was logged already for this model and task"
                        continue
                    seen.add(key)
                yield number, row
    except OSError as error:
        raise ProfileError(f"{os.fspath(path)}: {error.strerror or error}") from error


def read_log(path: str | os.PathLike[str], *, on_bad: OnBad = "raise") -> Log:
    """Read what ``log_line`` wrote, one line a step.

    Args:
        path: JSON lines.
        on_bad: ``raise`` at the first malformed line, or ``skip`` them and name each in ``Log.bad_rows``.

    Raises:
        ProfileError: a file that cannot be read, no usable line, or a malformed one; names its number and field.
        ConfigError: another ``on_bad``.
    """
    check_on_bad(on_bad)
    rows: list[LogRow] = []
    bad: list[BadRow] = []
    for number, row in iter_log(path):
        if isinstance(row, LogRow):
            rows.append(row)
            continue
        if on_bad == "raise":
            raise ProfileError(
                f"{os.fspath(path)}: line {number}: {row}; mend it, or skip such lines (on_bad='skip')",
                row=number,
                column=row.split(":", 1)[0],
            )
        bad.append((number, row))
    if not rows:
        raise ProfileError(f"{os.fspath(path)}: no usable line; give at least one step")
    return Log(tuple(rows), tuple(bad))


class _Line(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    v: Literal[1]
    step: Annotated[str, Field(min_length=1)]
    model: Annotated[str, Field(min_length=1)]
    task: Annotated[str, Field(min_length=1)]
    evidence: Evidence
    features: dict[str, FiniteFloat] | None
    attempts: list[tuple[Operator, bool]]


def _parse(line: bytes) -> LogRow | str:
    try:
        parsed = _Line.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'line'}: {first['msg']}"
    features = parsed.features
    if features is not None:
        wanted = _NAMES[parsed.evidence]
        if set(features) != set(wanted) or not all(map(math.isfinite, features.values())):
            return f"features: {sorted(features)} for {parsed.evidence} evidence; expected {sorted(wanted)} or null"
    return LogRow(parsed.step, parsed.model, parsed.task, parsed.evidence, features, tuple(parsed.attempts))
