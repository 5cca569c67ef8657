"""Problems from a file of JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from rfx_agent.checks import among
from rfx_agent.errors import ConfigError
from rfx_agent.lab.problems.problem import NUMBER, Problem, is_number
from rfx_agent.ports import Verifier
from rfx_agent.records import Step
from rfx_agent.verifiers.answers import extract_answer
from rfx_agent.verifiers.math import MathVerifier
from rfx_agent.verifiers.text import ExactVerifier

__all__ = ["Judge", "from_jsonl"]

Judge: TypeAlias = Literal["exact", "math"]


def from_jsonl(path: str | os.PathLike[str], *, verifier: Judge = "exact") -> tuple[Problem, ...]:
    """Problems from JSON lines: ``id``, ``prompt`` or ``messages``, and, if need be, ``generator`` and ``expected``.

    Args:
        path: the file; blank lines are skipped.
        verifier: ``exact`` compares spellings, ``math`` mathematics; both need ``expected``.

    Raises:
        ConfigError: a file that cannot be read, a line that is no such problem (names it), another ``verifier``.
    """
    among("verifier", verifier, get_args(Judge))
    math = MathVerifier() if verifier == "math" else None
    found = []
    for number, row in _rows(Path(path)):
        prompt, messages, expected = row.get("prompt"), row.get("messages"), row.get("expected")
        if (prompt is None) == (messages is None):
            raise ConfigError(f"{path}: line {number}: give either 'prompt' or 'messages'")
        if expected is None:
            raise ConfigError(f"{path}: line {number}: 'expected' is missing; the verifier {verifier!r} needs it")
        if isinstance(expected, bool | Mapping) or not isinstance(row.get("id"), str | int):
            raise ConfigError(f"{path}: line {number}: give 'id' as text and 'expected' as text, number or list")
        try:
            step = Step.of(prompt if messages is None else messages)  # type: ignore[arg-type]  # checked by Step
            judge: Verifier = math or ExactVerifier(extract=_last_number if is_number(expected) else None)
            generator = str(row.get("generator") or "problems")
            found.append(Problem(str(row["id"]), step.messages, generator, expected, judge))
        except (ConfigError, TypeError) as error:
            raise ConfigError(f"{path}: line {number}: {error}") from error
    if not found:
        raise ConfigError(f"{path}: there are no problems in it; give one JSON object a line")
    return tuple(found)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}: line {number}: no JSON: {error}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{path}: line {number}: {type(row).__name__}; give a JSON object")
        yield number, row


def _last_number(text: str) -> str | None:
    """The last number of what a text marks as its answer, else of the text."""
    marked = extract_answer(text)
    for part in (marked, text):
        if part and (found := NUMBER.findall(part)):
            return str(found[-1]).rstrip(",.")
    return marked
