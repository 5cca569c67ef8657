"""The definitions of the token and trajectory features, word for word, one token at a time.

A row is a list of (id, log-probability) in the order given; absent entries have been left out.
"""

from __future__ import annotations

import math

Row = list[tuple[int, float]]


def logsumexp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def log_p(row: Row, token: int, temperature: float) -> float:
    total = logsumexp([lp / temperature for _, lp in row])
    return dict(row).get(token, -1000.0) / temperature - total


def token(s: Row, a: Row, taken: int, temperature: float = 0.6, k: int = 20) -> dict[str, float]:
    total_s = logsumexp([lp / temperature for _, lp in s])
    total_a = logsumexp([lp / temperature for _, lp in a])
    in_s, in_a = dict(s), dict(a)

    def log_s(y: int) -> float:
        return in_s.get(y, -1000.0) / temperature - total_s

    def log_a(y: int) -> float:
        return in_a.get(y, -1000.0) / temperature - total_a

    delta = log_s(taken) - log_a(taken)
    preferred = [y for y, _ in sorted(a, key=lambda entry: -entry[1])[:k]]  # sorted is stable: ties as given
    mass_a = sum(math.exp(log_a(y)) for y in preferred)
    mass_s = sum(math.exp(log_s(y)) for y in preferred)
    gap = math.log((mass_a + 1e-8) / (mass_s + 1e-8))

    p = [math.exp(log_s(y)) for y, _ in s]
    mean = sum(q * lp for q, (_, lp) in zip(p, s, strict=True)) / sum(p)
    return {
        "delta_path": delta,
        "coverage_gap": gap,
        "demotion_pressure": max(0.0, delta) + max(0.0, gap),
        "logit_variance": sum(q * (lp - mean) ** 2 for q, (_, lp) in zip(p, s, strict=True)) / sum(p),
        "kl": max(0.0, sum(q * (log_s(y) - log_a(y)) for q, (y, _) in zip(p, s, strict=True))),
        "entropy": -sum(q * log_s(y) for q, (y, _) in zip(p, s, strict=True)),
    }


def rollout(tokens: list[dict[str, float]], window: int = 8) -> tuple[float, float, float] | None:
    tokens = list(tokens)
    while tokens and tokens[-1]["kl"] == 0.0:
        tokens.pop()
    if not tokens:
        return None
    j = [t["demotion_pressure"] for t in tokens]
    peak = j.index(max(j))
    around = [t["logit_variance"] for t in tokens[max(0, peak - window) : peak + window + 1]]
    return (
        sum(x > 0 for x in j) / len(j),
        math.log10(max(max(j) / max(sum(j) / len(j), 1e-8), 1e-8)),
        math.log10(max(sum(around) / len(around), 1e-8)),
    )
