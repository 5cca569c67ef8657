"""A sandbox in another interpreter: for a forked child whose parent had used one.

Monty's library has threads, which a fork does not copy: in the child, every call to it would wait for ever.
"""

from __future__ import annotations

import queue
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rfx_agent._worker import Worker, WorkerTimeout
from rfx_agent.errors import ToolError
from rfx_agent.records import ToolResult
from rfx_agent.tools.trial import Trial, TrialResult

__all__ = ["Aside"]

_SPARE = 30.0  # seconds beyond what the programs may take: their interpreter starts, on a busy machine


class Aside:
    """Interpreters that each run one program at a time in a sandbox of their own, started as they are needed.

    Args:
        settings: of the sandbox.
        workers: most programs at a time.
        seconds: after which the sandbox ends a program, whatever it does.
    """

    def __init__(self, settings: Mapping[str, Any], *, workers: int, seconds: float) -> None:
        self._settings, self._seconds = dict(settings), seconds
        self._all = [Worker(Path(__file__).with_name("aside_main.py")) for _ in range(workers)]
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        for worker in self._all:
            self._idle.put(worker)

    def run(self, code: str, answer_name: str) -> ToolResult:
        """See ``Sandbox.run``."""
        return ToolResult(**self._asked({"code": code, "answer_name": answer_name}, programs=1))

    def test(self, code: str, trial: Trial) -> TrialResult:
        """See ``Sandbox.test``."""
        return TrialResult(**self._asked({"code": code, "trial": asdict(trial)}, programs=2 + len(trial.tests)))

    def close(self) -> None:
        """Stop all of them, those that work too."""
        for worker in self._all:
            worker.close()

    def _asked(self, job: Mapping[str, Any], *, programs: int) -> dict[str, Any]:
        worker = self._idle.get()
        try:
            reply = worker.call(
                {"op": "sandbox", "settings": self._settings, **job}, seconds=programs * self._seconds + _SPARE
            )
        except WorkerTimeout as error:
            raise ToolError(f"the sandbox did not answer: {error}") from error
        finally:
            self._idle.put(worker)
        if "error" in reply:
            raise ToolError(str(reply["error"]))
        result: dict[str, Any] = reply["result"]
        return result
