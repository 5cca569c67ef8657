"""Prequential replays of the learned policy: one JSON object.

Replays every cell of a profile in ``--orders`` seeded orders with the learned policy and with retry, which differences
are against, and times it, the reading of the profile left out. Memory is bounded by the block of orders in lock-step,
not by their number.

    python benchmarks/policies.py PROFILE [--orders 1000] [--workers 1]
"""

import argparse
import json
import resource
import time
from pathlib import Path

from rfx_agent.lab.profiles import read_profile
from rfx_agent.lab.simulate import simulate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", type=Path)
    parser.add_argument("--orders", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    profile = read_profile(options.profile)
    started, worked = time.perf_counter(), time.process_time()
    found = simulate(profile, ["learned"], orders=options.orders, workers=options.workers)
    seconds = time.perf_counter() - started
    print(
        json.dumps(
            {
                "failures": len(profile),
                "orders": options.orders,
                "workers": options.workers,
                "seconds": round(seconds, 2),
                "cpu_seconds": round(time.process_time() - worked, 2),
                "microseconds_per_failure": round(1e6 * seconds / len(profile) / options.orders, 2),
                "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "rescue_within": found.mean["learned"]["rescue_within"],
            }
        )
    )


if __name__ == "__main__":
    main()
