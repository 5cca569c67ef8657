"""From a journal to a dataset: the rows of the problems that are complete, and how they came about."""

from __future__ import annotations

import datetime
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rfx_agent.evidence.features import ONE_MODEL, TWO_MODEL
from rfx_agent.evidence.kinds import kind_of
from rfx_agent.lab.collect.journal import Fingerprint, Key
from rfx_agent.lab.common import KINDS, REMEDIES, in_columns
from rfx_agent.lab.dataset import FORMAT
from rfx_agent.records import Rollout, Verdict

__all__ = ["Rows", "assemble", "failed_draws", "needed", "screened"]

_PACKAGES = (
    *("rfx-agent", "gguf", "numpy", "openai", "pyarrow", "pydantic-monty", "reasoning-gym"),
    *("tokenizers", "torch", "transformers", "vllm", "xllamacpp"),
)
_NOTES = 20  # different notes that are kept in the provenance

Records = Mapping[Key, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Rows:
    """What goes into the two files."""

    rollouts: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    provenance: dict[str, Any]


def screened(plan: Fingerprint, records: Records) -> list[Mapping[str, Any]]:
    """The problems that count, in order: all whose screening is recorded, up to the last that ``failures`` allows.

    Screening runs several problems at once and may overshoot; what lies beyond the limit does not count, so that
    the dataset is the same whatever finished first.
    """
    left, kept = plan.growing["failures"], []
    for body in plan.problems:
        if left is not None and left <= 0:
            break
        record = records.get(Key(body["id"], "retry", 0))
        if record is None:
            continue
        kept.append(body)
        if left is not None and failing(record):
            left -= 1
    return kept


def failing(record: Mapping[str, Any]) -> bool:
    """Whether a draw came back and did not pass; one that never came back is no failure of the problem's."""
    return not record["passed"] and record["error"] is None


def failed_draws(records: Records, problem: str, draws: int) -> list[int]:
    """The attempts of ``problem`` that are failed draws, the screening draw included, in order."""
    each = ((attempt, records.get(Key(problem, "retry", attempt))) for attempt in range(draws + 1))
    return [attempt for attempt, record in each if record is not None and failing(record)]


def needed(plan: Fingerprint, records: Records, problem: str) -> list[Key]:
    """The units that a failing problem needs. Which draws are scored is known only once they are all there."""
    growing, fixed = plan.growing, plan.fixed
    keys = [Key(problem, "retry", attempt) for attempt in range(growing["draws"] + 1)]
    others = [*growing["operators"], *(["tool"] if fixed["tool"] is not None else [])]
    keys += [Key(problem, remedy, attempt) for remedy in others for attempt in range(growing["attempts"])]
    if any(name is not None for name in fixed["scorers"].values()):
        failed = failed_draws(records, problem, growing["draws"])
        keys += [Key(problem, "score", attempt) for attempt in failed[: growing["scored"]]]
    return keys


def assemble(plan: Fingerprint, records: Records) -> Rows:
    """Rows of every failing problem whose units are all there; the others are counted as partial."""
    counted = screened(plan, records)
    failed = [body for body in counted if failing(records[Key(body["id"], "retry", 0)])]
    rollouts: list[dict[str, Any]] = []
    failures, partial, notes = [], 0, Counter[str]()
    model = str(plan.fixed["specialist"].get("name") or plan.fixed["sampler"])
    for body in sorted(failed, key=lambda body: str(body["id"])):
        keys = needed(plan, records, body["id"])
        if any(key not in records for key in keys):
            partial += 1
            continue
        notes.update(note for key in keys for note in records[key].get("notes", ()))
        mine = [_rollout(body, key, records) for key in keys if key.remedy != "score"]
        scored = failed_draws(records, body["id"], plan.growing["draws"])[: plan.growing["scored"]]
        rollouts += sorted(mine, key=lambda row: (row["remedy"], row["attempt"]))
        failures.append(_failure(body, model, mine, scored))
    return Rows(rollouts, failures, _provenance(plan, counted, records, partial, notes))


def _rollout(body: Mapping[str, Any], key: Key, records: Records) -> dict[str, Any]:
    record = records[key]
    row: dict[str, Any] = {"problem_id": key.problem, "generator": body["generator"], "remedy": key.remedy}
    row |= {name: value for name, value in record.items() if name not in ("notes", "proxies")}
    if "kind" not in record and key.remedy == "retry" and failing(record):  # of a version that kept none
        draw = Rollout(record["text"], finish_reason=record["finish_reason"], verdict=Verdict(False))
        row["kind"] = kind_of(draw)
    row |= record.get("proxies") or {}
    if key.remedy == "retry":
        # In the dataset these are the two-model ones; by proxies they only served to steer.
        row |= {"junction": None, "peak": None}
        if (scores := records.get(Key(key.problem, "score", key.attempt))) is not None:
            own = "surprisal" in record  # proxies are of the table that the draw came with, where it had one
            row |= {} if own else {"surprisal": scores.get("surprisal"), **(scores.get("proxies") or {})}
            row |= {"junction": scores["junction"], "peak": scores["peak"]}
            row |= scores["features"] or {}
            row |= scores["tokens"] or {}
    return row


def _failure(
    body: Mapping[str, Any], model: str, rows: Sequence[Mapping[str, Any]], scored: Sequence[int]
) -> dict[str, Any]:
    task = str(body["generator"])
    row: dict[str, Any] = {"cell": f"{model}|{task}", "model": model, "task": task, "problem_id": body["id"]}
    measured = [r for r in rows if r["remedy"] == "retry" and r["attempt"] in scored]
    behind = len(measured)
    for names in (ONE_MODEL, TWO_MODEL):
        usable = [r for r in measured if r.get(names[0]) is not None]
        if usable:
            row |= {name: math.fsum(r[name] for r in usable) / len(usable) for name in names}
            behind = len(usable)
    row["n_failed_rollouts"] = behind
    for remedy in in_columns([*REMEDIES, *(r["remedy"] for r in rows)]):
        # The screening draw failed by selection: it says nothing of the rate.
        tries = [r for r in rows if r["remedy"] == remedy and (remedy != "retry" or r["attempt"] > 0)]
        row[f"{remedy}_attempts"] = len(tries)
        if tries:
            row[remedy] = sum(r["passed"] for r in tries) / len(tries)
            row[f"{remedy}_tokens"] = sum(r["prompt_tokens"] + r["completion_tokens"] for r in tries) / len(tries)
    known = [r["kind"] for r in rows if r["remedy"] == "retry" and r.get("kind") is not None]
    row |= {f"kind_{kind}": known.count(kind) / len(known) for kind in KINDS if known}
    expected = body["expected"]
    row["prompt"] = json.dumps(body["messages"], ensure_ascii=False)
    row["expected"] = expected if expected is None or isinstance(expected, str) else json.dumps(expected)
    return row


def _provenance(
    plan: Fingerprint, counted: Sequence[Mapping[str, Any]], records: Records, partial: int, notes: Counter[str]
) -> dict[str, Any]:
    seen: dict[str, dict[str, int]] = {}
    for body in counted:
        record = records[Key(body["id"], "retry", 0)]
        tally = seen.setdefault(body["generator"], {"problems": 0, "failed": 0, "errors": 0})
        tally["problems"] += 1
        tally["failed"] += failing(record)
        tally["errors"] += record["error"] is not None
    fixed = plan.fixed
    names = ("temperature", "tool_temperature", "max_tokens", "seed", "sampler", "steerer", "tool", "scorers")
    return {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
        "specialist": fixed["specialist"],
        "ancestor": fixed["ancestor"],
        "settings": {name: fixed[name] for name in names} | fixed["settings"] | plan.growing,
        "screened": dict(sorted(seen.items())),
        "partial": partial,
        "notes": dict(notes.most_common(_NOTES)),
        **plan.extras,
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # not part of this collection
            continue
    return found
