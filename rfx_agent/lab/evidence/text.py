"""The figures of a dataset as Markdown, and the sentences that follow from them and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rfx_agent.lab.evidence.intervals import Figure

__all__ = ["markdown", "where_it_does_not_help"]

_RATE, _CORRELATION = "{:.3f}", "{:+.2f}"


def markdown(figures: Mapping[str, Any]) -> str:
    """Every table of ``docs/evidence.md`` with its heading, and the paragraph that says where the rule fails."""
    parts = [
        _screened(figures),
        *_rescue(figures["rescue"]),
        *_rule(figures["rule"]),
        _published(figures["published"]),
        where_it_does_not_help(figures),
        *_no_pass(figures["no_pass"]),
        *_correlations(figures),
        *_features(figures),
        (
            f"Intervals are 95 %: {figures['draws']:,} bootstrap resamples of problems, seed {figures['seed']}, each "
            "problem whole with all its attempts; Wilson's for shares of problems, and for shares of attempts that are "
            "exactly 0 or 1 (with the problems as trials)."
        ),
    ]
    return "\n\n".join(parts) + "\n"


def where_it_does_not_help(figures: Mapping[str, Any]) -> str:
    """One paragraph on the rule and its features: what each interval excludes, population by population."""
    sentences = []
    for name, held in figures["rule"].items():
        where = {
            "all": "On all failures",
            "steerable": "On those steerable by their own scores",
            "steerable, cross-fitted": "On those chosen as steerable by other attempts than the scored ones",
        }[name]
        above, below, level = _sorted_out(held["routed_minus"])
        if not (above or below or level):
            sentences.append(f"{where}, there was nothing to compare.")
            continue
        said = [
            f"{verb} {_listed(names)}"
            for verb, names in (
                ("rescues more than", above),
                ("rescues less than", below),
                ("cannot be told from", level),
            )
            if names
        ]
        sentences.append(f"{where}, the rule {'; it '.join(said)}.")
    fair = figures["rule"]["steerable, cross-fitted"]["routed_minus"]
    gains = {op: f for op, f in fair.items() if op != "tool"}
    above, _, _ = _sorted_out(gains)
    if gains and not above:
        sentences.append("So on fresh attempts the rule is not shown to help over any single decoding operator.")
    elif gains and len(above) < len(gains):
        sentences.append(f"So on fresh attempts it helps only over {_listed(above)}.")
    gain = {name: row.get("steering gain") for name, row in figures["associations"].items()}
    linked = [name for name, f in gain.items() if f is not None and _excludes_zero(f)]
    features = [name for name in ("spread", "concentration", "logit_dispersion") if name in linked]
    if features:
        sentences.append(f"What steering gains over retry goes with {_listed(features)}, by rank correlation.")
    else:
        sentences.append("No two-model feature is correlated with what steering gains over retry (intervals hold 0).")
    return " ".join(sentences)


def _sorted_out(differences: Mapping[str, Figure]) -> tuple[list[str], list[str], list[str]]:
    above: list[str] = []
    below: list[str] = []
    level: list[str] = []
    for name, figure in differences.items():
        if figure["value"] is None or figure["low"] is None:
            continue
        (above if figure["low"] > 0 else below if figure["high"] < 0 else level).append(name)
    return above, below, level


def _excludes_zero(figure: Figure) -> bool:
    return figure["low"] is not None and (figure["low"] > 0 or figure["high"] < 0)


def _screened(figures: Mapping[str, Any]) -> str:
    screened = figures["screened"]
    rows = [
        [g, *(str(screened.get(g, {}).get(key, "–")) for key in ("problems", "failed")), str(n)]
        for g, n in figures["generators"].items()
    ]
    total = [str(sum(int(s.get(key, 0)) for s in screened.values())) for key in ("problems", "failed")]
    rows.append(["all", *total, str(figures["failures"])])
    return _table(["generator", "screened", "first draw failed", "analysed"], rows)


def _rescue(rescue: Mapping[str, Any]) -> list[str]:
    overall = [
        [op, str(held["attempts"]), _show(held["overall"]), _show(held["once_in_four"])] for op, held in rescue.items()
    ]
    generators = next(iter(rescue.values()))["generators"]
    each = [[g, *(_show(held["generators"][g]) for held in rescue.values())] for g in generators]
    return [
        "## Rescue per remedy",
        _table(["remedy", "attempts", "rescued per attempt", "at least once in 4 attempts"], overall),
        _table(["generator", *rescue], each),
    ]


def _rule(rule: Mapping[str, Any]) -> list[str]:
    parts = ["## The paper's rule against every remedy"]
    names = list(rule)
    remedies = list(next(iter(rule.values()))["rescue"])
    parts.append(
        _table(
            ["rescued per attempt", *(f"{name} ({rule[name]['failures']:.4g})" for name in names)],
            [[op, *(_show(rule[name]["rescue"][op]) for name in names)] for op in remedies],
        )
    )
    parts.append(
        _table(
            ["routed minus", *names],
            [
                [op, *(_show(rule[name]["routed_minus"][op], "{:+.3f}") for name in names)]
                for op in remedies
                if op != "routed"
            ],
        )
    )
    routes = "; ".join(
        f"{name}: {', '.join(f'{op} {n:.4g}' for op, n in rule[name]['routes'].items()) or 'none'}" for name in names
    )
    return [*parts, f"Routes taken: {routes}. Numbers of failures are means over the halvings."]


def _published(held: Mapping[str, Any]) -> str:
    outside = ", ".join(f"{name} {n}" for name, n in held["outside"].items())
    routes = ", ".join(f"{op} {n}" for op, n in held["routes"].items()) or "none"
    return (
        f"Scored against the published calibration, {held['may_not_route']} of {held['failures']} failures may not "
        f"route (outside 3 standard deviations: {outside}). Routed all the same: {routes}; "
        f"rescued per attempt {_show(held['rescue'])}."
    )


def _no_pass(held: Mapping[str, Any]) -> list[str]:
    forecasts = ("published", "with_candidate", "fitted")
    rows = [
        [
            str(row["n"]),
            f"{row['failures']:.1f}",
            _show(row["observed"]),
            *(f"{row[name]:.3f} ({_sign(row['over'][name])})" for name in forecasts),
            *(f"{row['brier'][name]['value']:.4f}" for name in ("best_constant", *forecasts)),
        ]
        for row in held["rows"]
    ]
    heads = ["n", "failures", "next draw passes", "published", "candidate counted", "fitted"]
    briers = [f"Brier: {name}" for name in ("best constant", "published", "candidate counted", "fitted")]
    return [
        "## What n draws without a pass predict",
        _table([*heads, *briers], rows),
        (
            "In brackets, whether the forecast is too high or too low by more than the interval of its error, or holds "
            "(=). Fitted: a Beta by moments over the failures of all other generators."
        ),
    ]


def _correlations(figures: Mapping[str, Any]) -> list[str]:
    linked = figures["associations"]
    targets = list(next(iter(linked.values()), {}))
    rows = [[name, *(_show(row[t], _CORRELATION) for t in targets)] for name, row in linked.items()]
    return [
        "## Proxies",
        _table(
            ["proxy", "Spearman with its feature"], [[n, _show(f, _CORRELATION)] for n, f in figures["proxies"].items()]
        ),
        "## Evidence and outcome",
        _table(["Spearman", *targets], rows),
        f"Of {len(rows) * len(targets)} such intervals, about one in twenty excludes 0 by chance.",
    ]


def _features(figures: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, f in figures["features"].items():
        low, high = f["mean_interval"]
        there = f.get("published")
        rows.append(
            [
                name,
                str(f["count"]),
                f"{f['mean']:.4f} ({low:.4f} to {high:.4f})",
                f"{f['std']:.4f}",
                f"{there['mean']:.4f} ± {there['std']:.4f}" if there else "–",
                f"{f['published_z']:+.1f}" if there else "–",
            ]
        )
    agreed = figures["agreement"]
    return [
        "## Features and agreement",
        _table(["feature", "failures", "mean", "sd", "published", "published z of the mean"], rows),
        (
            f"{agreed['failures']} failures have no pass in their first four draws. A share of "
            f"{_show(agreed['all_different'])} of them has four different answers; on average there are "
            f"{_show(agreed['distinct'], '{:.2f}')} different ones, and the most frequent has a share of "
            f"{_show(agreed['modal_share'])}. Later draws pass with "
            f"{_show(agreed['retry_after_scattered'])} after four different answers, and with "
            f"{_show(agreed['retry_after_agreeing'])} after others."
        ),
    ]


def _sign(figure: Figure) -> str:
    if figure["low"] is None or figure["low"] <= 0 <= figure["high"]:
        return "="
    return "high" if figure["low"] > 0 else "low"


def _show(figure: Figure, form: str = _RATE) -> str:
    if figure["value"] is None:
        return "–"
    value = form.format(figure["value"])
    if figure["low"] is None:
        return value
    return f"{value} ({form.format(figure['low'])} to {form.format(figure['high'])})"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
