"""One HTML file that says what kind of failures there are and what pays: pictures, each with its table.

The file is whole: styles and pictures are inside, nothing is fetched, no script runs, and its own policy (CSP) forbids
both. Every name that comes from a profile is escaped. A Jinja template was tried for the page, its sections and tables:
27 lines of it and 5 to load it, in place of 27 here.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rfx_agent.checks import whole
from rfx_agent.errors import RfxError
from rfx_agent.evidence.routing import RoutingRule, route
from rfx_agent.lab import svg
from rfx_agent.lab.audit import audit
from rfx_agent.lab.common import whole_file
from rfx_agent.lab.profiles import Profile
from rfx_agent.lab.topography import REGIMES, plane_of

__all__ = ["report", "write_report"]

_STYLE = Path(__file__).with_name("report.css")
_BUDGETS = (1, 2, 3, 4, 6, 8)
_PRICE = "learned:0.05"


def write_report(
    profile: Profile, path: str | os.PathLike[str], *, title: str = "Failures", orders: int = 20, seed: int = 0
) -> None:
    """Write ``report`` to ``path``; a reader sees the old file or the new one, never half of either.

    Raises:
        ProfileError: a profile without features.
        ConfigError: ``orders`` below 1.
        OSError: a path that cannot be written.
    """
    text = report(profile, title=title, orders=orders, seed=seed)
    with whole_file(Path(path)) as part:
        part.write_text(text, encoding="utf-8")


def report(
    profile: Profile,
    *,
    title: str = "Failures",
    orders: int = 20,
    seed: int = 0,
    found: Mapping[str, Any] | None = None,
) -> str:
    """The page as text; the same profile, orders and seed give the same page.

    Args:
        profile: failures with features.
        title: of the page; untrusted text is fine.
        orders: orders that the policies are replayed in.
        seed: of audit and replay.
        found: what ``audit`` gave for this profile; it is run where this is None.

    Raises:
        ProfileError: a profile without features.
        ConfigError: ``orders`` below 1.
    """
    whole("report: orders", orders, least=1)
    found = audit(profile, seed=seed) if found is None else found
    replayed = _replay(profile, orders, seed)
    parts = [_regimes(found), *_kinds(found), _plane(profile, found, seed), _told(found)]
    if isinstance(replayed, str):
        parts.append(_section("Policies", f"<p>Not replayed: {svg.escape_text(replayed)}</p>"))
    else:
        parts += [_rescue(replayed), _spent(replayed)]
    parts.append(_calibration(found, None if isinstance(replayed, str) else replayed))
    skipped = f" {len(profile.bad_rows)} malformed rows were skipped." if profile.bad_rows else ""
    heading = (
        f"<h1>{svg.escape_text(title)}</h1><p>{len(profile)} failures in {len(profile.cells)} cells (a cell is one "
        f"model on one task), {found['evidence'].replace('_', '-')} evidence.{skipped}</p>"
    )
    return _page(title, heading + "".join(parts))


def _replay(profile: Profile, orders: int, seed: int) -> dict[str, Any] | str:
    """The simulation, or why there is none."""
    from rfx_agent.lab.named import playable
    from rfx_agent.lab.simulate import cells_of, simulate

    try:
        names = (*playable(cells_of(profile)), _PRICE)
        return simulate(profile, names, budgets=_BUDGETS, orders=orders, seed=seed).as_dict()
    except RfxError as error:
        return str(error)


def _page(title: str, body: str) -> str:
    style = "\n" + _STYLE.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{svg.escape_text(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def _section(name: str, text: str, figure: str = "", table: str = "") -> str:
    pair = f'<div class="pair"><figure>{figure}</figure><div>{table}</div></div>' if figure else table
    return f"\n<section>\n<h2>{svg.escape_text(name)}</h2>\n{text}\n{pair}\n</section>"


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that scrolls by itself where it is wider than the page; keyboards reach it."""
    heads = "".join(f'<th scope="col">{svg.escape_text(h)}</th>' for h in head)
    lines = "".join(f"<tr>{''.join(f'<td>{svg.escape_text(_shown(v))}</td>' for v in row)}</tr>" for row in rows)
    label = svg.escape_text(caption)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{label}"><table><caption>{label}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _shown(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _regimes(found: Mapping[str, Any]) -> str:
    cells = [c for c in found["cells"] if "regimes" in c]
    if not cells:
        return _section("Regimes", "<p>Not known: they need the rates of retry and of another remedy.</p>")
    names = [r.replace("_", " ") for r in REGIMES]
    rows = [(c["cell"], [float(c["regimes"][r]) for r in REGIMES]) for c in cells]
    picture = svg.stacked_bars("Failures by regime", "One bar per cell, split into its regimes.", rows, unit="failures")
    table = _table(
        "Failures by regime",
        ["cell", "failures", *names, "steerable", "retry rate"],
        [
            [c["cell"], c["failures"], *(c["regimes"][r] for r in REGIMES), c["steerable"], c["rates"]["retry"]]
            for c in cells
        ],
    )
    text = (
        "<p>Stochastic: retry passes at least half the time. Structural: it does not, and the best other remedy is "
        "at least 0.05 better. Out of reach: nothing measured is. Steerable is the paper's gate, which also counts "
        "failures with a retry rate of exactly one half.</p>"
    )
    return _section("Regimes", text, picture + svg.legend(names, kind="bar"), table)


def _kinds(found: Mapping[str, Any]) -> list[str]:
    """How the rollouts failed, where the profile says it."""
    cells = [c for c in found["cells"] if "kinds" in c]
    if not cells:
        return []
    kinds = list(cells[0]["kinds"])
    rows = [[c["cell"], *(f"{c['kinds'][kind]:.1%}" for kind in kinds)] for c in cells]
    table = _table("Share of failed rollouts by kind", ["cell", *(kind.replace("_", " ") for kind in kinds)], rows)
    text = "<p>Read off how each rollout ended, never off its reasoning. Mean over the failures of a cell.</p>"
    return [_section("Kinds of failure", text, "", table)]


def _plane(profile: Profile, found: Mapping[str, Any], seed: int) -> str:
    plane = plane_of(profile.matrix())
    names = [f"axis {i + 1} ({s:.0%} of the variance)" for i, s in enumerate(plane.share)]
    rule = RoutingRule()
    options = [*dict.fromkeys([*rule.operators.values(), rule.fallback])]
    routes = np.zeros(len(profile), dtype=np.int64)
    if profile.evidence == "two_model":
        cell = np.asarray(profile.cell)
        for name in profile.cells:
            at = cell == name
            chosen = route({f: profile.features[f][at] for f in rule.operators}, rule)
            routes[at] = [options.index(operator) for operator in chosen.tolist()]
        shown = [o.replace("_", " ") for o in options]
        counts = [[c, *(int(((routes == i) & (cell == c)).sum()) for i in range(len(options)))] for c in profile.cells]
        table = _table("Routes by the paper's rule", ["cell", *shown], counts)
        text = "<p>Each failure in the plane of the features' two main axes, by the operator that the rule picks.</p>"
    else:
        shown, table = ["failure"], ""
        text = "<p>Each failure in the plane of the proxies' two main axes. Proxies are not routed by the rule.</p>"
    axes = _table(
        "Weight of each feature",
        ["feature", "axis 1", "axis 2"],
        [[f, *plane.loadings[:, i].round(3).tolist()] for i, f in enumerate(found["features"])],
    )
    desc = "A scatter of all failures; marks and colours tell the operators apart."
    picture = svg.scatter("Feature plane", desc, plane.at, routes, x_name=names[0], y_name=names[1], seed=seed)
    return _section("Feature plane", text, picture + svg.legend(shown, kind="mark"), table + axes)


def _told(found: Mapping[str, Any]) -> str:
    regimes = found["regimes"] or {}
    rows = [
        ("the model, from three features", found["separability"]["model"]),
        ("the post-training method", found["separability"]["method"]),
        ("stochastic or not", regimes or None),
        ("the same, without the failure count", regimes.get("without_count")),
    ]
    table = _table(
        "Cross-validated accuracy; problems are kept whole",
        ["what is told", "accuracy", "± over folds", "majority"],
        [[what, *((None,) * 3 if s is None else (s["accuracy"], s["std"], s["majority"]))] for what, s in rows],
    )
    ceiling = regimes.get("ceiling")
    text = ""
    if ceiling:
        text = (
            f"<p>A regime is cut from a rate over about ten attempts. One who knew every true rate would be right "
            f"{ceiling['oracle']:.3f} of the time.</p>"
        )
    return _section("What the features tell", text, "", table)


def _rescue(replayed: Mapping[str, Any]) -> str:
    mean = {n: f for n, f in replayed["mean"].items() if n != _PRICE}
    series = {name: [(float(b), v) for b, v in f["rescue_within"].items()] for name, f in mean.items()}
    desc = "One line per policy: the share of failures rescued within a number of attempts, mean over cells."
    picture = svg.lines("Rescue against attempts", desc, series, x_name="attempts", y_name="share rescued")
    table = _table(
        "Share rescued within attempts, mean over cells",
        ["policy", *(str(b) for b in _BUDGETS)],
        [[name.replace("_", " "), *(f["rescue_within"][str(b)] for b in _BUDGETS)] for name, f in mean.items()],
    )
    table += _table(
        "Beyond retry, with 95 % interval over failures",
        ["policy", "within 3", "from", "to", "within 6", "from", "to"],
        [
            [
                name.replace("_", " "),
                *(f"{f['against_retry'][b][key]:+.3f}" for b in ("3", "6") for key in ("difference", "low", "high")),
            ]
            for name, f in mean.items()
            if name != "retry"
        ],
    )
    text = (
        f"<p>Prequential replay in {replayed['orders']} orders: each failure is met once, and a policy learns only "
        "from what it tried itself.</p>"
    )
    legend = svg.legend([n.replace("_", " ") for n in series], kind="line")
    return _section("Rescue against attempts", text, picture + legend, table)


def _spent(replayed: Mapping[str, Any]) -> str:
    failures = sum(replayed["failures"].values()) / len(replayed["failures"])
    rows, lines = [], []
    for name, f in replayed["mean"].items():
        lost = (f["wasted_share"] or 0.0) * f["attempts"]
        label = "learned, attempts priced" if name == _PRICE else name.replace("_", " ")
        rows.append((label, [f["attempts"] - lost, lost]))
        lines.append([label, f["attempts"], f["attempts_per_rescue"], f["wasted_share"], f["escalated"]])
    names = ["on failures that something rescues", "on failures that nothing rescues"]
    desc = "One bar per policy: attempts per failure, split by whether any remedy ever rescued it."
    picture = svg.stacked_bars("Budget use", desc, rows, unit=f"attempts per failure, at most {max(_BUDGETS)}")
    head = ["policy", "attempts per failure", "attempts per rescue", "share wasted", "share escalated"]
    text = (
        f"<p>About {failures:.0f} failures a cell, at most {max(_BUDGETS)} attempts each. With a price of 0.05 of a "
        "rescue on every attempt, the learned policy stops where it no longer expects one.</p>"
    )
    table = _table(f"Budget use at {max(_BUDGETS)} attempts, mean over cells", head, lines)
    return _section("Budget use", text, picture + svg.legend(names, kind="bar"), table)


def _calibration(found: Mapping[str, Any], replayed: Mapping[str, Any] | None) -> str:
    series: dict[str, list[dict[str, float]]] = {}
    errors = []
    if found["regimes"]:
        of = found["regimes"]["calibration"]
        series["a failure is stochastic (held out)"] = of["bins"]
        errors.append(["a failure is stochastic (held out)", of["ece"]])
    learned = (replayed or {"mean": {}})["mean"].get("learned", {})
    if learned.get("reliability"):
        name = "the learned policy's next attempt rescues"
        series[name] = [
            {"predicted": r["predicted"], "observed": r["rescued"], "count": r["share"]} for r in learned["reliability"]
        ]
        errors.append([name, learned["ece"]])
    if not series:
        return _section("Predicted against actual", "<p>Nothing was predicted: the profile has no retry rates.</p>")
    names = list(series)
    desc = "Observed against predicted frequency; on the diagonal predictions are right. Larger marks: more of them."
    picture = svg.reliability_plot("Predicted against actual", desc, series)
    tables = _table("Expected calibration error", ["prediction", "error"], errors)
    for name, bins in series.items():
        total = sum(b["count"] for b in bins)
        rows = [[b["predicted"], b["observed"], f"{b['count'] / total:.1%}"] for b in bins]
        tables += _table(f"Reliability: {name}", ["predicted", "observed", "share"], rows)
    return _section("Predicted against actual", "", picture + svg.legend(names, kind="mark"), tables)
