"""Token features per second, against the literal definition on the same machine in the same run.

Prints one JSON object. One thread (the kernels call no BLAS); ``--positions``, ``--k`` set the size.
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

from rfx_agent.features import TopLogprobs, token_features

VOCABULARY = 151_936


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
            }
        )
    )


if __name__ == "__main__":
    main()
