"""Features of many tokens from Parquet, on threads and on a local Ray: tokens per second, peak memory, equal output.

Prints one JSON object. The input is synthetic and made first, in pieces: 10 million tokens with K = 10 take about 2 GB
(with K = 100 it would be ten times that). Each engine runs in a process of its own, so that its peak is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rfx_agent.lab.scale import extract

LENGTH = 500
VOCABULARY = 151_936


def make(path: Path, tokens: int, k: int, seed: int = 0) -> None:
    """A file of rollouts of 500 tokens; the two models share about four fifths of each row's ids."""
    rng = np.random.default_rng(seed)
    shared, writer, rollouts = int(0.8 * k), None, tokens // LENGTH
    for start in range(0, rollouts, 100):
        count = min(100, rollouts - start)
        n = count * LENGTH
        # Ids a fixed odd step apart are distinct, and as scattered as a vocabulary's.
        first = rng.integers(0, VOCABULARY, n)[:, None]
        ids = ((first + 7919 * np.arange(2 * k - shared)) % VOCABULARY).astype(np.int32)
        sides = ids[:, :k], ids[:, k - shared :]
        lps = [-np.cumsum(rng.exponential(0.8, (n, k)), axis=1).astype(np.float32) for _ in sides]
        taken = ids[np.arange(n), rng.integers(0, min(k, 3), n)]
        ends = pa.array(np.arange(0, n + 1, LENGTH, dtype=np.int32))

        def rows(values: np.ndarray, ends: pa.Array = ends) -> pa.Array:
            inner = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), k)
            return pa.ListArray.from_arrays(ends, inner)

        table = pa.table(
            {
                "rollout": [f"r{i}" for i in range(start, start + count)],
                "taken": pa.ListArray.from_arrays(ends, pa.array(taken)),
                "specialist_ids": rows(sides[0]),
                "specialist_logprobs": rows(lps[0]),
                "ancestor_ids": rows(sides[1]),
                "ancestor_logprobs": rows(lps[1]),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema, compression="none", use_dictionary=False)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def resident() -> int:
    """Kilobytes that this process and all below it hold of their own (proportional share of what is shared)."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError):
            continue
    mine, total = {int(Path("/proc/self").resolve().name)}, 0
    while more := {p for p, parent in parents.items() if parent in mine} - mine:
        mine |= more
    for process in mine:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue
    return total


def run(engine: str, source: Path, target: Path, workers: int) -> dict[str, float]:
    """One extraction in this process, with the peak over it and its children."""
    peak, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            peak[0] = max(peak[0], resident())

    threading.Thread(target=watch, daemon=True).start()
    start = time.perf_counter()
    done = extract(source, target, engine=engine, workers=workers)
    seconds = time.perf_counter() - start
    over.set()
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "tokens": done.tokens,
        "seconds": round(seconds, 1),
        "tokens_per_s": round(done.tokens / seconds),
        "peak_gib_process": round(own / 2**20, 3),
        "peak_gib_with_children": round(max(peak[0], own) / 2**20, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--engines", nargs="+", default=["threads", "ray"])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        engine, source, target = args.one
        print(json.dumps(run(engine, Path(source), Path(target), args.workers)))
        return
    with tempfile.TemporaryDirectory() as folder:
        source, result, outputs = Path(folder, "tokens.parquet"), {"k": args.k}, []
        make(source, args.tokens, args.k)
        result["input_gb"] = round(source.stat().st_size / 1e9, 2)
        for engine in args.engines:
            target = Path(folder, f"{engine}.parquet")
            command = [sys.executable, __file__, "--workers", str(args.workers), "--one", engine]
            done = subprocess.run([*command, str(source), str(target)], capture_output=True, text=True, check=True)  # noqa: S603
            result[engine] = json.loads(done.stdout.splitlines()[-1])
            outputs.append(pq.read_table(target))
        result["same_output"] = all(o.equals(outputs[0]) for o in outputs)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
