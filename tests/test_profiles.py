"""Profiles and event logs: what is read, and what is wrong with what is not."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from scenarios import EVERY, SCENARIOS, STEP
from states import STATES, manifest

from rfx_agent import Case, ConfigError, RfxError, Rollout, Step, Verdict
from rfx_agent.case import Attempt, Outcome
from rfx_agent.codec import plain
from rfx_agent.evidence.calibration import Calibration
from rfx_agent.evidence.features import TWO_MODEL
from rfx_agent.lab.calibrate import calibrate, populations
from rfx_agent.lab.common import ProfileError
from rfx_agent.lab.logs import LogRow, log_line, read_log
from rfx_agent.lab.profiles import is_log, read_profile
from rfx_agent.policies import Belief, LearnedPolicy

pl = pytest.importorskip("polars")

FOLDER = Path(os.environ.get("RFX_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data")
HEAD = "cell,model,task,problem_id,n_failed_rollouts,spread,concentration,logit_dispersion,retry,tool"
ROW = "a|b,a,b,p{},5,0.1,0.2,-0.3,0.5,1"


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join([HEAD, *lines]) + "\n", encoding="utf-8")
    return path


def test_a_profile_is_read_as_it_is(tmp_path: Path) -> None:
    profile = read_profile(write(tmp_path / "p.csv", ROW.format(1), ROW.format(2)))
    assert (profile.cell, profile.model, profile.task) == (["a|b"] * 2, ["a"] * 2, ["b"] * 2)
    assert profile.problem_id == ["p1", "p2"]
    assert profile.n_failed.tolist() == [5, 5]
    assert {k: v.tolist() for k, v in profile.rates.items()} == {"retry": [0.5, 0.5], "tool": [1.0, 1.0]}
    assert profile.matrix().tolist() == [[0.1, 0.2, -0.3]] * 2
    assert (len(profile), profile.evidence, profile.bad_rows, profile.ignored) == (2, "two_model", (), ())
    assert profile.where(np.array([False, True])).problem_id == ["p2"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_formats_are_told_apart_by_what_is_in_them(tmp_path: Path, kind: str) -> None:
    source = write(tmp_path / "p.csv", ROW.format(1), ROW.format(2))
    path = tmp_path / "anything"
    frame = pl.read_csv(source).with_columns(pl.lit("x").alias("note"))
    frame.write_csv(path) if kind == "csv" else frame.write_parquet(path)
    profile = read_profile(path)
    assert len(profile) == 2
    assert profile.ignored == ("note",)


def test_the_published_profiles() -> None:
    if not (FOLDER / "failure_profiles.csv").is_file():
        pytest.skip("the published profiles are not there; set RFX_SHARED_DATA")
    profile = read_profile(FOLDER / "failure_profiles.csv")
    assert len(profile) == 744
    assert len(profile.cells) == 4
    assert list(profile.rates) == ["retry", "local_temp", "sparse_steer", "sparse_steer_random", "dense_steer"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("a|b,a,b,p2,5,nan,0.2,-0.3,0.5,1", "spread: nan is not finite"),
        ("a|b,a,b,p2,5,0.1,inf,-0.3,0.5,1", "concentration: inf is not finite"),
        ("a|b,a,b,p2,5,x,0.2,-0.3,0.5,1", "spread: 'x' is no number"),
        ("a|b,a,b,p2,5,0.1,0.2,-0.3,1.01,1", r"retry: 1.01 lies outside \[0, 1\]"),
        ("a|b,a,b,p2,5,0.1,0.2,-0.3,0.5,-0.1", r"tool: -0.1 lies outside \[0, 1\]"),
        ("a|b,a,b,p2,5,0.1,0.2,-0.3,,1", "retry: missing"),
        (",a,b,p2,5,0.1,0.2,-0.3,0.5,1", "cell: missing"),
        ("a|b,a,b, ,5,0.1,0.2,-0.3,0.5,1", "problem_id: missing"),
        ("a|b,a,b,p2,0,0.1,0.2,-0.3,0.5,1", "n_failed_rollouts: 0 is no whole number of at least 1"),
        ("a|b,a,b,p2,2.5,0.1,0.2,-0.3,0.5,1", "n_failed_rollouts: 2.5 is no whole number"),
        ("a|b,a,b,p1,5,0.1,0.2,-0.3,0.5,1", "problem_id: 'p1' of cell 'a.b' is in row 1 already"),
        ("a|b,a,c,p2,5,0.1,0.2,-0.3,0.5,1", "cell: 'a.b' is 'a' on 'c' here, 'a' on 'b' in row 1"),
        ("a|b,a,b,p2,5,0.1", "concentration: missing"),
        ("a|b,a,b,p2,5,0.1,0.2,-0.3,0.5,1,7,8", "fields: 12 where the header has 10"),
        ("", "missing"),
        ("a|b,a,b,p\udcff2,5,0.1,0.2,-0.3,0.5,1", "bytes: not UTF-8"),
    ],
)
def test_a_bad_row_is_named_or_fatal_as_asked(tmp_path: Path, row: str, why: str) -> None:
    path = tmp_path / "p.csv"
    text = "\n".join([HEAD, ROW.format(1), row, ROW.format(3)]) + "\n"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ProfileError, match=f"p.csv: row 2: .*{why}") as caught:
        read_profile(path)
    assert caught.value.row == 2
    profile = read_profile(path, on_bad="skip")
    assert profile.problem_id == ["p1", "p3"]
    ((number, reason),) = profile.bad_rows
    assert number == 2
    assert reason.split(":")[0] == caught.value.column


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the file is empty"),
        ("\n \n", "the file is empty"),
        (HEAD, "no usable row"),
        ("x,y\n1,2\n", "columns .*cell.* are missing"),
        (HEAD.replace("spread", "spred") + "\n" + ROW.format(1), "'spread'"),
        ('{"v": 1}\n', "an event log"),
        ("PAR1 and then nothing", "p.csv"),
    ],
)
def test_files_that_are_no_profile(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(ProfileError, match=why):
        read_profile(path)


def test_a_column_of_the_wrong_type(tmp_path: Path) -> None:
    frame = pl.read_csv(write(tmp_path / "p.csv", ROW.format(1)))
    frame.with_columns(pl.lit(True).alias("retry")).write_parquet(tmp_path / "p.parquet")
    with pytest.raises(ProfileError, match="'retry' is of type Boolean"):
        read_profile(tmp_path / "p.parquet")


def test_what_the_caller_did_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "p.csv", ROW.format(1))
    with pytest.raises(ProfileError, match="No such file"):
        read_profile(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="on_bad is 'ignore'"):
        read_profile(path, on_bad="ignore")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ConfigError, match=r"polars is not installed.*rfx-agent\[lab\]"):
        read_profile(path)
    assert issubclass(ProfileError, RfxError)


@pytest.mark.parametrize("name", EVERY)
def test_every_case_can_be_logged_and_read_back(tmp_path: Path, name: str) -> None:
    case = SCENARIOS[name].recovery().run(STEP, SCENARIOS[name].candidate)
    line = log_line(case, model="m", task="t")
    assert "\n" not in line
    path = tmp_path / "log.jsonl"
    path.write_text(line + "\n")
    assert is_log(path)
    (row,) = read_log(path).rows
    for remedy in ("retry", "tool"):
        tried = [passed for name, passed in row.attempts if name == remedy]
        assert (len(tried), sum(tried)) == case.tally(remedy)


def test_a_log_line_holds_no_text_and_no_draw_twice() -> None:
    no, yes = Verdict(False, "SECRET"), Verdict(True, "SECRET")
    rollouts = (
        Rollout("SECRET", id="r0", verdict=no),
        Rollout("SECRET", id="r1", round=0, response_id="x", verdict=no),
        Rollout("SECRET", id="r2", round=0, response_id="x", verdict=no),
        Rollout("SECRET", id="r3", round=2, remedy="tool", verdict=yes),
    )
    attempts = (Attempt("retry", 2, 2), Attempt("tool", 1, 0, misses=1), Attempt("tool", 1, 1))
    step = Step.of("SECRET", expected="SECRET", id="s1")
    case = Case(step=step, rollouts=rollouts, attempts=attempts, outcome=Outcome("rescued", "SECRET", "SECRET", "tool"))
    line = log_line(case, model="m", task="t")
    assert "SECRET" not in line
    assert json.loads(line)["attempts"] == [["retry", False], ["retry", False], ["tool", False], ["tool", True]]
    with pytest.raises(ConfigError, match="no outcome"):
        log_line(Case(step=step), model="m", task="t")
    with pytest.raises(ConfigError, match="model is ' '"):
        log_line(case, model=" ", task="t")


def test_a_person_is_an_attempt() -> None:
    rollout = Rollout("x", id="r0", verdict=Verdict(False))
    case = Case(step=Step.of("q"), rollouts=(rollout,), outcome=Outcome("rejected", by="human"))
    assert json.loads(log_line(case, model="m", task="t"))["attempts"] == [["retry", False], ["human", False]]


GOOD = {
    "schema": 2,
    "step": "s",
    "model": "m",
    "task": "t",
    "evidence": "two_model",
    "features": {"spread": 0.1, "concentration": 2.0, "logit_dispersion": -1.0},
    "attempts": [["retry", False], ["retry", True]],
}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"schema": 3}, "schema:"),
        ({"step": ""}, "step:"),
        ({"evidence": "three_model"}, "evidence:"),
        ({"features": {"spread": 1.0}}, "features: .*expected"),
        ({"features": GOOD["features"] | {"spread": "x"}}, "features.spread:"),
        ({"attempts": [["retry", 1]]}, "attempts.0.1:"),
        ({"attempts": [["Pray", True]]}, "attempts.0.0:"),
        ({"step": "first"}, "step: 'first' was logged already"),
    ],
)
def test_a_bad_line_is_named_or_fatal_as_asked(tmp_path: Path, change: dict, why: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(json.dumps(x) for x in (GOOD | {"step": "first"}, GOOD | change)) + "\n\n{\n")
    with pytest.raises(ProfileError, match=f"line 2: .*{why}"):
        read_log(path)
    log = read_log(path, on_bad="skip")
    assert [number for number, _ in log.bad_rows] == [2, 4]
    assert len(log.rows) == 1


def test_what_version_0_1_recorded_is_read() -> None:
    known = manifest()
    rows = read_log(STATES / "log.jsonl").rows
    assert [plain(row, mode="json") for row in rows] == known["log"]
    belief = Belief.from_json((STATES / "belief.json").read_bytes())
    assert belief.failures == known["belief"]["failures"]
    for tries, rescue in known["belief"]["expected"]:
        assert LearnedPolicy(belief=belief).expected(tries) == pytest.approx(rescue)
    calibration = Calibration.load(STATES / "calibration.json")
    assert calibration.name == known["calibration"]["name"]
    assert calibration.z(dict.fromkeys(TWO_MODEL, 0.6), "two_model") == pytest.approx(known["calibration"]["z"])
    assert calibrate(populations(rows)[0]).rates["tool"].count == sum(row.tally("tool")[0] > 0 for row in rows)


def test_what_a_row_says() -> None:
    row = LogRow("s", "m", "t", "samples", None, (("retry", False), ("retry", True), ("tool", False)))
    assert row.failed
    assert row.tally("retry") == (1, 1)  # the candidate failed by selection
    assert row.tally("tool") == (1, 0)
    assert not LogRow("s", "m", "t", "samples", None, (("retry", True),)).failed


def test_a_line_without_end_is_not_taken_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + "{" + " " * (1 << 21) + "\n" + json.dumps(GOOD | {"step": "z"}) + "\n")
    log = read_log(path, on_bad="skip")
    assert [r.step for r in log.rows] == ["s", "z"]
    assert log.bad_rows == ((2, "line: longer than 1048576 bytes"),)
