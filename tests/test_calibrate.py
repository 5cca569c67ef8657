"""Calibrations from profiles and logs: statistics, intervals, mixtures, drift, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from rfx_agent.cli.lab import calibrate as command
from rfx_agent.errors import CalibrationError
from rfx_agent.evidence.calibration import Calibration
from rfx_agent.lab.calibrate import calibrate, check, intervals, merge_all, populations, read_any
from rfx_agent.lab.common import ProfileError
from rfx_agent.lab.logs import LogRow
from rfx_agent.lab.profiles import Profile

pytest.importorskip("polars")
FEATURES = ("spread", "concentration", "logit_dispersion")


def made(n: int = 60, seed: int = 0, shift: float = 0.0, models: tuple[str, ...] = ("a",)) -> Profile:
    rng = np.random.default_rng(seed)
    model = [models[i % len(models)] for i in range(n)]
    return Profile(
        cell=[f"{m}|t" for m in model],
        model=model,
        task=["t"] * n,
        problem_id=[f"p{i}" for i in range(n)],
        n_failed=np.full(n, 10),
        features={name: rng.normal(shift, 1.0, n) for name in FEATURES},
        rates={"retry": rng.beta(1, 2, n), "tool": rng.beta(2, 1, n)},
    )


def saved(profile: Profile, path: Path) -> Path:
    import polars as pl

    names = {"cell": profile.cell, "model": profile.model, "task": profile.task, "problem_id": profile.problem_id}
    pl.DataFrame(
        names | {"n_failed_rollouts": profile.n_failed} | dict(profile.features) | dict(profile.rates)
    ).write_csv(path)
    return path


def test_a_profile_becomes_one_calibration_per_model_and_task() -> None:
    profile = made(models=("a", "b"))
    found = populations(profile)
    assert [(p.model, p.task, p.failures) for p in found] == [("a", "t", 30), ("b", "t", 30)]
    calibration = calibrate(found[0])
    mine = np.array(profile.model) == "a"
    stats = calibration.stats["two_model"]["spread"]
    assert (stats.count, stats.mean) == (30, pytest.approx(profile.features["spread"][mine].mean()))
    assert calibration.rates["retry"].mean == pytest.approx(profile.rates["retry"][mine].mean())
    assert (calibration.name, calibration.pair, calibration.task) == ("a/t", "a", "t")


def test_a_log_counts_failures_only_and_not_the_candidate() -> None:
    features = dict.fromkeys(FEATURES, 0.5)
    rows = [
        LogRow("1", "m", "t", "two_model", features, (("retry", False), ("retry", True), ("retry", False))),
        LogRow("2", "m", "t", "samples", None, (("retry", False), ("tool", True))),
        LogRow("3", "m", "t", "samples", None, (("retry", True),)),
        LogRow("4", "m", "u", "one_model", {f"{n}_proxy": 1.0 for n in FEATURES}, (("retry", False),)),
    ]
    first, second = populations(rows)
    assert first.rates["retry"].tolist() == [0.5]
    assert first.rates["tool"].tolist() == [1.0]
    assert list(first.features) == ["two_model"]
    assert list(calibrate(second).stats) == ["one_model"]


def test_a_population_without_anything() -> None:
    (empty,) = populations([LogRow("1", "m", "t", "samples", None, (("retry", False),))])
    with pytest.raises(CalibrationError, match="nothing to learn"):
        calibrate(empty)


def test_a_log_without_failures(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    line = {"v": 1, "step": "s", "model": "m", "task": "t", "evidence": "samples", "features": None}
    path.write_text(json.dumps(line | {"attempts": [["retry", True]]}))
    with pytest.raises(ProfileError, match="no step of this log failed"):
        read_any(path)


def test_intervals_hold_the_figure_and_come_from_their_seed() -> None:
    (population,) = populations(made(400))
    found = intervals(population, seed=1)
    assert found == intervals(population, seed=1) != intervals(population, seed=2)
    stats = found["features"]["two_model"]["spread"]
    low, high = stats["mean_interval"]
    assert low < stats["mean"] < high
    # Four standard errors wide, by the normal approximation.
    assert high - low == pytest.approx(2 * 1.96 * stats["std"] / np.sqrt(400), rel=0.15)
    assert stats["std_interval"][0] < stats["std"] < stats["std_interval"][1]
    assert found["rates"]["retry"]["count"] == 400


def test_merging_is_as_good_as_seeing_all_at_once() -> None:
    both, (a, b) = made(models=("a", "b")), populations(made(models=("a", "b")))
    merged = merge_all([calibrate(a), calibrate(b)], name="mixture")
    assert merged.stats["two_model"]["spread"].mean == pytest.approx(both.features["spread"].mean())
    assert (merged.name, merged.pair, merged.task) == ("mixture", "a + b", "t")
    with pytest.raises(CalibrationError, match="at least one"):
        merge_all([], name="none")


def test_the_same_population_has_not_drifted_and_another_has() -> None:
    calibration = calibrate(populations(made(300))[0])
    same = check(calibration, populations(made(300, seed=1))[0])
    assert same.verdict == "stable", same
    moved = check(calibration, populations(made(300, seed=1, shift=0.6))[0])
    assert moved.verdict == "drifted"
    assert "two_model.spread" in moved.sentence
    assert {s.what for s in moved.shifts if s.drifted} == {f"two_model.{n}" for n in FEATURES}
    assert {s.what for s in moved.shifts} >= {"rate.retry", "rate.tool"}


def test_false_alarms_are_as_rare_as_promised() -> None:
    calibration = calibrate(populations(made(2000))[0])
    alarms = [
        check(calibration, populations(made(80, seed=s))[0], matters=0.0).verdict == "drifted" for s in range(1, 121)
    ]
    assert np.mean(alarms) <= 0.1  # 0.05 of the family, and luck


def test_a_shift_that_is_significant_but_small_does_not_matter() -> None:
    calibration = calibrate(populations(made(20_000))[0])
    found = check(calibration, populations(made(20_000, seed=1, shift=0.1))[0])
    assert found.verdict == "stable"
    assert min(s.p for s in found.shifts) < 1e-6


def test_too_little_to_compare() -> None:
    calibration = calibrate(populations(made(300))[0])
    assert check(calibration, populations(made(5))[0]).verdict == "unknown"
    assert check(Calibration("n", "a", "t"), populations(made(50))[0]).verdict == "unknown"


def test_a_constant_feature_that_moves_has_drifted() -> None:
    flat = made(50)
    flat.features["spread"][:] = 0.5  # type: ignore[index]
    calibration = calibrate(populations(flat)[0])
    assert not next(s for s in check(calibration, populations(flat)[0]).shifts if "spread" in s.what).drifted
    flat.features["spread"][:] = 0.6  # type: ignore[index]
    assert next(s for s in check(calibration, populations(flat)[0]).shifts if "spread" in s.what).drifted


app = typer.Typer()
app.command()(command)


def test_the_command_writes_what_load_reads(tmp_path: Path) -> None:
    source, target = saved(made(), tmp_path / "p.csv"), tmp_path / "c.json"
    done = CliRunner().invoke(app, [str(source), "-o", str(target), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["populations"][0]["features"]["two_model"]["spread"]["count"] == 60
    assert Calibration.load(target).stats["two_model"]["spread"].count == 60


def test_the_command_keeps_populations_apart_or_mixes_them(tmp_path: Path) -> None:
    source = saved(made(models=("a", "../b")), tmp_path / "p.csv")
    assert CliRunner().invoke(app, [str(source), "-o", str(tmp_path / "out")]).exit_code == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["_b_t.json", "a_t.json"]
    mixed, other = tmp_path / "mixed.json", tmp_path / "out" / "a_t.json"
    done = CliRunner().invoke(app, [str(source), "-o", str(mixed), "--merge", str(other), "--name", "all"])
    assert done.exit_code == 0, done.output
    assert (Calibration.load(mixed).name, Calibration.load(mixed).rates["retry"].count) == ("all", 90)
    one = tmp_path / "one.json"
    assert CliRunner().invoke(app, [str(source), "-o", str(one), "--model", "a"]).exit_code == 0
    assert Calibration.load(one).pair == "a"


def test_the_command_says_whether_a_batch_drifted(tmp_path: Path) -> None:
    source = saved(made(300), tmp_path / "p.csv")
    same, moved = saved(made(300, 1), tmp_path / "same.csv"), saved(made(300, 1, 0.8), tmp_path / "moved.csv")
    assert CliRunner().invoke(app, [str(source), "--check", str(same)]).exit_code == 0
    done = CliRunner().invoke(app, [str(source), "--check", str(moved), "--json"])
    assert done.exit_code == 3
    assert json.loads(done.stdout.splitlines()[-1])["drift"][0]["verdict"] == "drifted"


def test_the_command_names_what_is_wrong(tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("x,y\n1,2\n")
    done = CliRunner().invoke(app, [str(bad)])
    assert done.exit_code == 1
    assert "columns" in done.output
    assert CliRunner().invoke(app, [str(saved(made(), tmp_path / "p.csv")), "--model", "nobody"]).exit_code == 2
