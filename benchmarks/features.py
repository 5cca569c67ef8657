"""Token features per second, against the literal definition on the same machine in the same run.

Prints one JSON object. One thread (the kernel calls no BLAS); ``--positions``, ``--k`` set the size. ``tokens_per_s``
is the kernel on tables that were checked before; ``arrow`` starts from Arrow batches as Parquet gives them, checks
included. ``limit`` is what no kernel can beat: the exponentials alone, and reading every byte of the input once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import literal  # the tests' own reference

from rfx_agent.evidence.features import TopLogprobs, token_features

VOCABULARY = 151_936
LENGTH = 500  # tokens of a rollout, in Arrow batches


def tables(positions: int, k: int, rng: np.random.Generator) -> tuple[TopLogprobs, TopLogprobs]:
    """Two tables that share about four fifths of their tokens, with a real vocabulary's ids."""
    shared = int(0.8 * k)
    ids = np.array([rng.choice(VOCABULARY, 2 * k - shared, replace=False) for _ in range(positions)])
    s = rng.permuted(ids[:, :k], axis=1)
    a = rng.permuted(ids[:, k - shared :], axis=1)
    scores_s, scores_a = (np.sort(rng.gumbel(scale=3.0, size=(positions, k)), axis=1)[:, ::-1] for _ in "sa")
    lps = [x - np.logaddexp.reduce(x, axis=1, keepdims=True) for x in (scores_s, scores_a)]
    taken = s[np.arange(positions), rng.integers(0, min(k, 3), positions)]
    return TopLogprobs(s, lps[0], taken), TopLogprobs(a, lps[1], taken)


def best(work: Callable[[], object], repeats: int) -> float:
    """Least CPU time of several runs, in seconds: the machine may be shared, and noise only ever adds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def arrow_batch(spec: TopLogprobs, anc: TopLogprobs) -> object:
    """Both tables as one record batch of rollouts of 500 tokens: ids int32, log-probabilities float64."""
    import pyarrow as pa

    ends = pa.array(np.append(np.arange(0, len(spec), LENGTH), len(spec)), pa.int32())

    def rows(values: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(ends, pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1]))

    columns = {"rollout": pa.array(range(len(ends) - 1)), "taken": pa.ListArray.from_arrays(ends, spec.taken)}
    for name, table in (("specialist", spec), ("ancestor", anc)):
        columns[f"{name}_ids"] = rows(table.ids.astype(np.int32))
        columns[f"{name}_logprobs"] = rows(np.array(table.logprobs))
    return pa.record_batch(columns)


def from_arrow(spec: TopLogprobs, anc: TopLogprobs, plain: float) -> dict[str, float]:
    """Tokens per second from Arrow batches to token features."""
    from rfx_agent.lab.batches import token_features_of_batch

    batch = arrow_batch(spec, anc)
    speed = len(spec) / best(lambda: token_features_of_batch(batch), 7)
    return {"tokens_per_s": round(speed), "ratio": round(speed / plain, 1)}


def limit(spec: TopLogprobs, anc: TopLogprobs) -> dict[str, int]:
    """Tokens per second of the parts that cannot be left out: 2 K exponentials, and touching 2 K ids and numbers."""
    scaled = [(t.logprobs - t.logprobs.max(axis=1, keepdims=True)) / 0.6 for t in (spec, anc)]
    out = np.empty((500, spec.logprobs.shape[1]))

    def exponentials() -> None:
        for x in scaled:
            for start in range(0, len(x), len(out)):
                np.exp(x[start : start + len(out)], out=out[: len(x) - start])

    inputs = [x for t in (spec, anc) for x in (t.ids.astype(np.int32), np.array(t.logprobs))]
    return {
        "exponentials_tokens_per_s": round(len(spec) / best(exponentials, 5)),
        "reading_tokens_per_s": round(len(spec) / best(lambda: [x.sum() for x in inputs], 5)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=int, default=8_000)
    parser.add_argument("--literal-positions", type=int, default=200)
    parser.add_argument("--k", type=int, default=100)
    args = parser.parse_args()

    spec, anc = tables(args.positions, args.k, np.random.default_rng(0))
    few = min(args.literal_positions, args.positions)

    def rows(table: TopLogprobs) -> list[literal.Row]:
        return [
            list(zip(i, lp, strict=True))
            for i, lp in zip(table.ids[:few].tolist(), table.logprobs[:few].tolist(), strict=True)
        ]

    rows_s, rows_a, taken = rows(spec), rows(anc), spec.taken[:few].tolist()

    def slow() -> list[dict[str, float]]:
        return [literal.token(s, a, x) for s, a, x in zip(rows_s, rows_a, taken, strict=True)]

    got, want = token_features(spec, anc), slow()
    error = max(float(np.max(np.abs(getattr(got, name)[:few] - [row[name] for row in want]))) for name in want[0])
    kernel = args.positions / best(lambda: token_features(spec, anc), 7)
    plain = few / best(slow, 3)
    build = args.positions / best(lambda: TopLogprobs(spec.ids, spec.logprobs, spec.taken), 3)
    print(
        json.dumps(
            {
                "k": args.k,
                "positions": args.positions,
                "tokens_per_s": round(kernel),
                "literal_tokens_per_s": round(plain),
                "ratio": round(kernel / plain, 1),
                "table_tokens_per_s": round(build),
                "max_abs_error": error,
                "agrees_1e-9": error <= 1e-9,
                "arrow": from_arrow(spec, anc, plain),
                "limit": limit(spec, anc),
            }
        )
    )


if __name__ == "__main__":
    main()
