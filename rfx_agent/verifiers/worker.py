"""The helper process for work on untrusted text that Python cannot interrupt: symbolic algebra, schemas and regular
expressions. One for each interpreter.
"""

from __future__ import annotations

import atexit
from pathlib import Path
from typing import Any

from rfx_agent._worker import Worker, WorkerTimeout
from rfx_agent.verifiers.base import clip

__all__ = ["Worker", "WorkerTimeout", "ask", "helper", "shared_worker"]

_MEMORY = 2 * 1024**3  # bytes of address space, where the system can limit it


def helper(*, memory: int = _MEMORY) -> Worker:
    """A helper of its own."""
    return Worker(Path(__file__).with_name("worker_main.py"), str(memory))


_shared = helper()
atexit.register(_shared.close)


def shared_worker() -> Worker:
    """The one helper of this interpreter, stopped at exit."""
    return _shared


def ask(what: str, job: dict[str, Any], *, seconds: float) -> dict[str, Any] | str:
    """The shared helper's reply to ``job``, or a sentence that says why there is none; ``what`` is being done."""
    try:
        reply = shared_worker().call(job, seconds=seconds)
    except WorkerTimeout:
        return f"the {what} took longer than {seconds} s and was stopped"
    return f"the {what} could not be finished: {clip(str(reply['error']))}" if "error" in reply else reply
