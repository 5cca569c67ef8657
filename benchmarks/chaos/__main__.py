"""``python -m benchmarks.chaos``: run a part of the harness and print what it found as one JSON object."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from benchmarks.chaos.budgets import budgets
from benchmarks.chaos.databases import KINDS, database
from benchmarks.chaos.faults import faults
from benchmarks.chaos.kills import kill
from benchmarks.chaos.server import Settings, running


def main() -> int:
    """Exit with 1 where something that must hold did not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("what", choices=["faults", "budgets", "kills", "all"])
    parser.add_argument("--on", choices=[*KINDS, "all"], default="all", help="the databases, for budgets and kills")
    parser.add_argument("--kills", type=int, default=600, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="a run of seconds")
    given = parser.parse_args()
    kinds = KINDS if given.on == "all" else (given.on,)
    found = {}
    if given.what in ("faults", "all"):
        found["faults"] = faults(runs=20, together=20) if given.small else faults()
    if given.what in ("budgets", "all"):
        size: dict[str, Any] = {"processes": 3, "runs": 30, "killed": 1, "after": 0.5}
        with running(Settings(latency=0.02)) as server:
            for kind in kinds:
                with database(kind) as made:
                    found[f"budgets on {kind}"] = budgets(
                        server, made.budget, made.folder, **(size if given.small else {})
                    )
                if kind == "redis":
                    with database(kind) as made, made.troubled(1.0):
                        found["budgets on redis that is killed"] = budgets(
                            server, made.budget, made.folder, **(size if given.small else {})
                        )
    if given.what in ("kills", "all"):
        each = 20 if given.small else given.kills // len(kinds)
        with running(Settings(latency=0.015)) as server:
            for kind in kinds:
                with database(kind) as made:
                    found[f"kills on {kind}"] = kill(server, made, kills=each, seed=given.seed, prefix=kind)
    print(json.dumps(found, indent=1))
    return 0 if all(x["held"] for x in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
