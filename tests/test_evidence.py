"""The analysis of a dataset: against literal definitions, and on made-up datasets whose truth is known."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from evidence_data import FEATURES, MIXED, PROXIES, rows, write
from scipy.stats import spearmanr
from typer.testing import CliRunner

from rfx_agent import ConfigError
from rfx_agent.cli.evidence import evidence as command
from rfx_agent.lab.dataset import DatasetError, read_dataset
from rfx_agent.lab.evidence import analyse, evidence, markdown, where_it_does_not_help
from rfx_agent.lab.evidence.contest import contest
from rfx_agent.lab.evidence.draws import after_no_pass
from rfx_agent.lab.evidence.intervals import Bootstrap, wilson
from rfx_agent.lab.evidence.outcomes import Outcomes, read_outcomes

SAME = dict.fromkeys(("retry", "local_temp", "sparse_steer", "sparse_steer_random", "dense_steer"), 0.2)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "mixed", *rows(MIXED, problems=8))


@pytest.fixture(scope="module")
def figures(mixed: Path) -> dict[str, Any]:
    return evidence(mixed, draws=500)


def made(passed: Mapping[str, Any], features: Mapping[str, Any] | None = None) -> Outcomes:
    """Outcomes from arrays of passes."""
    n = len(next(iter(passed.values())))
    columns = dict.fromkeys((*FEATURES, *PROXIES), np.full(n, np.nan)) | dict(features or {})
    nothing = dict.fromkeys(("distinct", "modal_share", "passes", "length"), np.zeros(n))
    return Outcomes(
        np.array([f"p{i}" for i in range(n)]),
        np.array(["g"] * n),
        {op: np.asarray(table, dtype=float) for op, table in passed.items()},
        {name: np.asarray(column, dtype=float) for name, column in columns.items()},
        nothing,
        np.asarray(passed["retry"], dtype=float).mean(axis=1),
        "small",
        {},
    )


def test_wilson_by_hand() -> None:
    # (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.96: for 0 of 10 the upper end is z²/(n + z²).
    z2 = 1.959963984540054**2
    assert wilson(0, 10) == {"value": 0.0, "low": 0.0, "high": pytest.approx(z2 / (10 + z2)), "n": 10}
    half = wilson(5, 10)
    assert (half["low"], half["high"]) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert wilson(0, 0)["value"] is None


def test_the_bootstrap_keeps_problems_whole() -> None:
    # Ten problems of ten attempts, all or none of which pass: ten observations, not a hundred.
    passes = np.repeat([10.0, 0.0], 5)
    whole = Bootstrap(10).ratio(passes, np.full(10, 10.0))
    single = Bootstrap(100).ratio(np.repeat([1.0, 0.0], 50), np.ones(100))
    assert whole["value"] == single["value"] == 0.5
    assert whole["high"] - whole["low"] > 2.5 * (single["high"] - single["low"])
    boot = Bootstrap(4, draws=50, seed=3)
    top, bottom = np.array([1.0, 0, 2, 4]), np.array([4.0, 2, 4, 4])
    literal = [sum(top[i] for i in row) / sum(bottom[i] for i in row) for row in boot.index]
    assert [boot.ratio(top, bottom)[k] for k in ("low", "high")] == pytest.approx(np.percentile(literal, [2.5, 97.5]))


def test_a_share_without_width_has_wilsons_interval_and_a_difference_has_none() -> None:
    boot = Bootstrap(8)
    assert boot.ratio(np.zeros(8), np.full(8, 4.0), share=True)["high"] == wilson(0, 8)["high"] > 0.3
    assert boot.ratio(np.zeros(8), np.ones(8)) == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 8}
    assert boot.ratio(np.zeros(8), np.zeros(8))["value"] is None


def test_rank_correlation_is_scipys_and_needs_something_to_rank() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, 40).astype(float)  # ties
    y = x + rng.normal(0, 2, 40)
    y[3] = np.nan
    keep = np.isfinite(y)
    found = Bootstrap(40, draws=400).spearman(x, y)
    assert found["value"] == pytest.approx(spearmanr(x[keep], y[keep]).statistic)
    assert found["low"] < found["value"] < found["high"]
    assert found["n"] == 39
    assert Bootstrap(40).spearman(x, np.ones(40))["value"] is None


@pytest.mark.parametrize("n", range(4))
def test_draws_without_a_pass_are_the_mean_over_all_orders(n: int) -> None:
    draws = [1, 0, 0, 1, 0]
    orders = [order for order in itertools.permutations(draws) if not any(order[:n])]
    weight, rate = after_no_pass(np.array([2.0]), np.array([5.0]), n)
    assert weight[0] == pytest.approx(len(orders) / 120)
    assert rate[0] == pytest.approx(np.mean([np.mean(order[n:]) for order in orders]))


def test_nothing_is_left_after_the_last_draw() -> None:
    weight, rate = after_no_pass(np.array([0.0, 3.0]), np.array([2.0, 3.0]), 2)
    assert weight.tolist() == [0.0, 0.0]
    assert rate.tolist() == [0.0, 0.0]


def test_the_screening_draw_counts_in_no_rate(mixed: Path) -> None:
    outcomes = read_outcomes(mixed)
    profile = read_dataset(mixed).failures.to_pydict()
    assert outcomes.passed["retry"].shape == (32, 8)
    for remedy, rate in outcomes.rates().items():
        assert rate.tolist() == pytest.approx(profile[remedy])


def test_rates_are_those_that_were_put_in(figures: dict[str, Any]) -> None:
    rescue = figures["rescue"]
    assert rescue["tool"]["overall"]["value"] == 0.5
    assert rescue["tool"]["generators"]["product"] == wilson(8, 8)
    assert rescue["tool"]["once_in_four"] == wilson(16, 32)
    assert rescue["retry"]["generators"]["days"] == wilson(0, 8)
    low, high = (rescue["dense_steer"]["generators"]["product"][k] for k in ("low", "high"))
    assert low < 0.4 < high


def test_luck_makes_failures_look_steerable_and_cross_fitting_takes_it_back() -> None:
    rng = np.random.default_rng(5)
    passed = {op: rng.random((300, 8 if op == "retry" else 4)) < rate for op, rate in SAME.items()}
    outcomes = made(passed, {name: rng.normal(size=300) for name in FEATURES})
    rule = contest(outcomes, Bootstrap(300, draws=500))
    lucky, fair = rule["steerable"], rule["steerable, cross-fitted"]
    assert lucky["routed_minus"]["retry"]["low"] > 0.02  # although all remedies are the same
    assert fair["routed_minus"]["retry"]["low"] < 0 < fair["routed_minus"]["retry"]["high"]
    assert abs(fair["rescue"]["routed"]["value"] - 0.2) < 0.03


def test_where_the_features_tell_the_operator_the_rule_wins() -> None:
    rng = np.random.default_rng(6)
    best = rng.integers(0, 3, 200)
    operators = ("dense_steer", "sparse_steer", "local_temp")  # in the order of the features
    features = {name: rng.normal(size=200) * 0.2 + 2 * (best == i) for i, name in enumerate(FEATURES)}
    passed = {op: rng.random((200, 4)) < np.where(best == i, 0.9, 0.1)[:, None] for i, op in enumerate(operators)}
    passed |= {"sparse_steer_random": np.zeros((200, 4)), "retry": rng.random((200, 8)) < 0.1}
    outcomes = made(passed, features)
    found = analyse(outcomes, draws=300)
    fair = found["rule"]["steerable, cross-fitted"]
    assert all(f["low"] > 0.2 for f in fair["routed_minus"].values())
    text = where_it_does_not_help(found)
    assert "not shown to help" not in text
    assert "rescues less" not in text
    assert "cannot be told" not in text


def test_the_sentences_follow_the_intervals() -> None:
    def said(low: float, high: float) -> str:
        figure = {"value": (low + high) / 2, "low": low, "high": high, "n": 9}
        rule = {name: {"routed_minus": {"retry": figure}} for name in ("all", "steerable", "steerable, cross-fitted")}
        return where_it_does_not_help({"rule": rule, "associations": {"spread": {"steering gain": figure}}})

    assert "rescues more than retry" in said(0.1, 0.2)
    assert "goes with spread" in said(0.1, 0.2)
    assert "rescues less than retry" in said(-0.2, -0.1)
    level = said(-0.1, 0.1)
    assert "cannot be told from retry" in level
    assert "not shown to help" in level
    assert "No two-model feature" in level


def test_forecasts_are_held_against_what_happened(figures: dict[str, Any]) -> None:
    first, *_ = table = figures["no_pass"]["rows"]
    assert first["n"] == 0
    assert first["failures"] == 32
    assert first["observed"]["value"] == pytest.approx(figures["rescue"]["retry"]["overall"]["value"])
    assert first["published"] == pytest.approx(0.27 / 0.72)
    assert first["over"]["published"]["low"] > 0  # much lower rates were put in
    assert [row["published"] for row in table[1:]] == pytest.approx([row["with_candidate"] for row in table[:-1]])
    for row in table:
        assert all(f["value"] >= row["brier"]["best_constant"]["value"] - 0.05 for f in row["brier"].values())


def test_published_figures_hold_for_their_own_pairs_only(figures: dict[str, Any]) -> None:
    held = figures["published"]
    assert held["failures"] == 32
    assert held["outside"]["concentration"] == 32  # about 1 where 2.33 ± 0.30 was published
    assert held["may_not_route"] == 32
    spread = figures["features"]["spread"]
    assert spread["published_z"] == pytest.approx((spread["mean"] - 0.4682) / 0.2143)


def test_proxies_are_held_against_their_features(figures: dict[str, Any]) -> None:
    assert set(figures["proxies"]) == set(PROXIES)
    assert all(f["low"] > 0.3 for f in figures["proxies"].values())  # noise of half a deviation was added


def test_the_same_seed_gives_the_same_figures(mixed: Path, figures: dict[str, Any]) -> None:
    assert evidence(mixed, draws=500) == figures
    assert evidence(mixed, draws=500, seed=1)["rescue"] != figures["rescue"]
    json.dumps(figures, allow_nan=False)


def test_every_table_is_written(figures: dict[str, Any]) -> None:
    text = markdown(figures)
    assert text.count("\n## ") == 6
    for name in (*MIXED, *figures["rescue"], *FEATURES, *PROXIES, "routed"):
        assert f"| {name} |" in text
    assert "nan" not in text
    widths = [{line.count("|") for line in block.splitlines()} for block in text.split("\n\n") if block[:1] == "|"]
    assert all(len(width) == 1 for width in widths)


def test_a_dataset_without_features_says_what_it_can(tmp_path: Path) -> None:
    rollouts, failures = rows(MIXED, problems=3)
    for row in (*rollouts, *failures):
        for name in (*FEATURES, *PROXIES):
            row.pop(name, None)
    found = evidence(write(tmp_path / "bare", rollouts, failures), draws=200)
    assert found["rescue"]["tool"]["overall"]["value"] == 0.5
    assert found["rule"]["all"]["failures"] == 0
    assert found["proxies"]["spread_proxy"]["value"] is None
    assert "there was nothing to compare" in markdown(found)


def test_a_dataset_that_teaches_nothing_is_refused(tmp_path: Path) -> None:
    rollouts, failures = rows(MIXED, problems=1)
    first = [x for x in rollouts if x["remedy"] == "retry" and x["attempt"] == 0]
    with pytest.raises(ConfigError, match="no failures with draws"):
        evidence(write(tmp_path / "first", first, failures))
    with pytest.raises(DatasetError, match="is not there"):
        evidence(tmp_path / "nowhere")


def test_the_command_prints_tables_or_json(mixed: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    shown = CliRunner().invoke(app, [str(mixed), "--markdown", "--draws", "200"])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout == markdown(evidence(mixed, draws=200))
    got = CliRunner().invoke(app, [str(mixed), "--json", "--draws", "200"])
    assert json.loads(got.stdout)["failures"] == 32
    assert CliRunner().invoke(app, [str(mixed), "--draws", "200"]).exit_code == 0
    assert CliRunner().invoke(app, [str(mixed), "--json", "--markdown"]).exit_code == 2
    missing = CliRunner().invoke(app, [str(mixed / "none")])
    assert missing.exit_code == 1
    assert "finish the collection" in missing.stderr
