"""A recorded exchange with a real vLLM, answered again over loopback, honestly or with faults put in."""

from __future__ import annotations

import copy
import gzip
import json
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from servers import Answer, _Quiet, _Running

__all__ = ["Replay", "plan"]

Fault = Callable[[str, dict[str, Any], Answer], Answer | None]


@cache
def _recorded() -> dict[str, Any]:
    # Made by benchmarks/scorers.py --record from two servers of vLLM 0.32.0 on a CPU: the specialist is SmolLM2-135M,
    # dequantised to float32, and the ancestor the same with noise on its weights.
    with gzip.open(Path(__file__).parent / "data" / "vllm_exchange.json.gz") as file:
        data: dict[str, Any] = json.load(file)
    return data


def plan() -> dict[str, Any]:
    """What was asked when the exchange was recorded."""
    made: dict[str, Any] = _recorded()["plan"]
    return made


def _key(path: str, request: Any) -> str:
    return json.dumps([path, request], sort_keys=True)


class Replay(_Running):
    """Answers a request that was recorded as the server did, and any other with a 500.

    Attributes:
        requests: (path, body) of every request, in order of arrival.
        fault: given path, body and answer (its body its own copy), the answer to send instead, or None to leave it.
    """

    def __init__(self, fault: Fault | None = None) -> None:
        known = {_key(one["path"], one["request"]): one for one in _recorded()["exchange"]}
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.fault = fault
        lock = threading.Lock()
        outer = self

        class Handler(_Quiet):
            def do_POST(self) -> None:  # noqa: N802
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append((self.path, body))
                one = known.get(_key(self.path, body))
                if one is None:
                    self.answer(Answer(500, {"error": {"message": f"{self.path}: not recorded"}}))
                    return
                answer = Answer(one["status"], copy.deepcopy(one["answer"]))
                self.answer((outer.fault and outer.fault(self.path, body, answer)) or answer)

        super().__init__(Handler)

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def paths(self) -> list[str]:
        """The endpoints that were asked, sorted: requests at once arrive in any order."""
        return sorted(path for path, _ in self.requests)
