"""The interpreter of ``aside``: reads one JSON job a line, runs it in a sandbox, writes one JSON reply a line."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Any

__all__: list[str] = []


def _main() -> None:
    sys.path[:] = json.loads(sys.argv[1])
    # Replies have a channel of their own: what a library prints must not be taken for one.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    from rfx_agent.errors import RfxError
    from rfx_agent.tools.sandbox import Sandbox
    from rfx_agent.tools.trial import Trial

    boxes: dict[str, Sandbox] = {}

    def done(job: dict[str, Any]) -> dict[str, Any]:
        if job["op"] == "load":
            return {}
        box = boxes.setdefault(repr(job["settings"]), Sandbox(**job["settings"]))
        if "trial" not in job:
            return {"result": asdict(box.run(job["code"], answer_name=job["answer_name"]))}
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in job["trial"].items()}
        return {"result": asdict(box.test(job["code"], Trial(**given)))}

    for line in sys.stdin.buffer:
        try:
            reply = done(json.loads(line))
        except Exception as error:  # noqa: BLE001  # told where it was asked
            reply = {"error": str(error) if isinstance(error, RfxError) else f"{type(error).__name__}: {error}"[:500]}
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


if __name__ == "__main__":
    _main()
