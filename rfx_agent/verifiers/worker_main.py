"""The helper process itself (see ``worker.py``): reads one JSON job a line, writes one JSON reply a line.

Run as a script, so that nothing of the package is imported: it starts in the time that Python needs. It trusts its
parent and nothing in the jobs' texts.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

__all__: list[str] = []


def _limit_memory(memory: int) -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    except (ImportError, ValueError, OSError):
        pass  # Windows, or a lower limit that is there already; the time limit holds all the same


def _limit_time(seconds: float) -> None:
    """End this process soon after its parent should have: should the parent be gone, nobody else would."""
    try:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        soft = int(time.process_time() + min(seconds, 1e9)) + 3
        resource.setrlimit(resource.RLIMIT_CPU, (soft if hard < 0 else min(soft, hard), hard))
    except (ImportError, ValueError, OSError):
        pass


def _load(job: dict[str, Any]) -> dict[str, Any]:
    if job["what"] == "math":
        _algebra()
    elif job["what"] == "schema":
        importlib.import_module("jsonschema")
    return {}


def _regex(job: dict[str, Any]) -> dict[str, Any]:
    pattern = re.compile(job["pattern"], job["flags"])
    match = pattern.fullmatch(job["text"]) if job["full"] else pattern.search(job["text"])
    return {"matched": False} if match is None else {"matched": True, "answer": match.group(job["group"])}


def _math(job: dict[str, Any]) -> dict[str, Any]:
    return {"same": _algebra().compare(job["gold"], job["found"], job["mode"], job["tolerance"])}


@functools.cache
def _algebra() -> Any:
    """The neighbouring file, by its path: the package stays unimported."""
    path = Path(__file__).with_name("worker_algebra.py")
    spec = importlib.util.spec_from_file_location("rfx_worker_algebra", path)
    assert spec is not None  # noqa: S101  # it is a Python file
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _schema(job: dict[str, Any]) -> dict[str, Any]:
    validator = _validator(json.dumps(job["schema"]))
    found = itertools.islice(validator.iter_errors(job["value"]), job["most"])
    return {"errors": [_told(error) for error in found]}


def _told(error: Any) -> str:
    """Where, what is wrong, what was expected there, and what stood there."""
    wanted = json.dumps(error.validator_value, ensure_ascii=False, default=str)[:80]
    got = error.instance
    if isinstance(got, dict):
        shown = f"an object with the keys {', '.join(list(got)[:10])[:100] or 'none'}"
    elif isinstance(got, list):
        shown = f"an array of {len(got)}"
    else:
        shown = json.dumps(got, ensure_ascii=False)[:80]
    said = error.message if len(error.message) <= 300 else f"{error.message[:300]}..."
    return f"at {error.json_path[:200]}: {said} (expected {error.validator}: {wanted}; got {shown})"


@functools.lru_cache(maxsize=32)
def _validator(schema: str) -> Any:
    jsonschema = importlib.import_module("jsonschema")
    made = json.loads(schema)
    kind = jsonschema.validators.validator_for(made, default=jsonschema.Draft202012Validator)
    return kind(made, registry=importlib.import_module("referencing").Registry())


_OPS = {"load": _load, "math": _math, "regex": _regex, "schema": _schema}


def _main() -> None:
    memory, path = int(sys.argv[1]), json.loads(sys.argv[2])
    sys.path[:] = path
    # Replies have a channel of their own: what a library prints must not be taken for one.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _limit_memory(memory)
    for line in sys.stdin.buffer:
        reply: dict[str, Any]
        try:
            job = json.loads(line)
            _limit_time(float(job.get("seconds", 600)))
            reply = _OPS[job["op"]](job)
        except Exception as error:  # noqa: BLE001  # whatever a text provokes is the reply
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


if __name__ == "__main__":
    _main()
