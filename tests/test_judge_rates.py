"""Rates of a judge: counted, written, loaded, and refused where they are another judge's or tell nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from test_judge import Judge, says
from test_judge_check import Scripted, cases_of, passes
from typer.testing import CliRunner

from rfx_agent import ConfigError, FunctionVerifier
from rfx_agent.cli import judge as command
from rfx_agent.lab.judge_cases import JudgeCase
from rfx_agent.lab.judge_check import judge_check
from rfx_agent.lab.judge_rates import clustered, rates_of
from rfx_agent.verifiers.judge import JudgeVerifier
from rfx_agent.verifiers.rates import MeasuredRates, loaded_rates

QUIET: dict[str, Any] = {"repeats": 1, "injections": False, "verbosity": False}


def judge(rates: Any = None, **options: Any) -> JudgeVerifier:
    return JudgeVerifier(Judge(says("pass")), **({"rubric": "It is right.", "rates": rates} | options))


def pairs(true: int, right: int, false: int, wrong: int) -> list[tuple[bool, bool]]:
    return [(i < true, True) for i in range(right)] + [(i < false, False) for i in range(wrong)]


def measured(path: Path, *counts: int, of: JudgeVerifier | None = None) -> Path:
    mine = of or judge()
    rates_of(pairs(*counts), judge="j", model=mine.model, settings=mine.settings, date="2026-01-31").save(path)
    return path


# --- counting


def test_rates_are_counted_and_smoothed() -> None:
    found = rates_of(pairs(36, 40, 0, 40))
    assert (found.true_pass.passed, found.true_pass.n, found.false_pass.passed, found.false_pass.n) == (36, 40, 0, 40)
    assert found.pair == (36.5 / 41, 0.5 / 41)  # none of 40 is not never
    # Wilson for 0 of 40: z² / (n + z²).
    assert (found.false_pass.low, found.false_pass.high) == (0, pytest.approx(0.0876, abs=1e-4))
    assert found.tells


def test_answers_of_one_problem_are_kept_together() -> None:
    # Ten problems of ten answers, all of a problem alike: as good as ten answers.
    given = [(p < 5, True) for p in range(10) for _ in range(10)] + pairs(0, 0, 1, 10)
    problems = [str(p) for p in range(10) for _ in range(10)] + [f"w{i}" for i in range(10)]
    alone, kept = rates_of(given), rates_of(given, problems=problems)
    assert (kept.true_pass.passed, kept.true_pass.n) == (50, 100)
    assert kept.true_pass.high - kept.true_pass.low > 2.5 * (alone.true_pass.high - alone.true_pass.low)
    assert kept.false_pass == alone.false_pass  # each of a problem of its own
    assert clustered([True, False], ["a", "a"])["n"] == 1


@pytest.mark.parametrize(
    ("given", "options", "match"),
    [
        ([], {}, "none of 0 answers is right"),
        ([(True, True)], {}, "none of 1 answers is wrong"),
        ([(True, False)], {}, "none of 1 answers is right"),
        ([(True, True), (True, False)], {"problems": ["a"]}, "problems has 1 entries for 2 pairs"),
    ],
)
def test_what_cannot_be_counted_is_refused(given: Any, options: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        rates_of(given, **options)


def test_a_report_gives_the_same_rates() -> None:
    cases = cases_of(right_pass=5, right_fail=1, wrong_pass=2, wrong_fail=4)
    report = judge_check(Scripted(passes), cases, **QUIET)
    assert report.rates(model="m") == rates_of(pairs(5, 6, 2, 6), judge="scripted", model="m")
    assert report.by_problem["problems"] == 12
    same = [JudgeCase("q", c.response, c.passed) for c in cases]
    report = judge_check(Scripted(passes), same, **QUIET)
    # One problem cannot be resampled: then it is as wide as for answers that have nothing to do with each other.
    assert report.by_problem == {
        "problems": 1,
        "recall": report.recall | {"n": 1},
        "false_pass_rate": report.false_pass_rate | {"n": 1},
    }
    with pytest.raises(ConfigError, match="none of 2 answers is wrong"):
        judge_check(Scripted(passes), cases_of(right_pass=2), **QUIET).rates()


# --- loading


def test_a_judge_takes_the_pair_or_the_file(tmp_path: Path) -> None:
    path = measured(tmp_path / "rates.json", 36, 40, 4, 40)
    for given in (path, str(path), (36.5 / 41, 4.5 / 41)):
        assert judge(given).rates == (36.5 / 41, 4.5 / 41)
    assert judge().rates is None
    assert judge(path).reseeded(3).rates == judge(path).rates
    assert FunctionVerifier(lambda text: True, weak=True, rates=path).rates == judge(path).rates
    written = json.loads(path.read_text())
    assert written["schema"] == 1
    assert written["false_pass"]["n"] == 40
    assert MeasuredRates.load(path) == MeasuredRates.model_validate_json(path.read_text())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rubric": "It is polite."}, "rubric '"),
        ({"rubric": ["It is right."]}, "rubric '"),  # a criterion is judged otherwise
        ({"threshold": 0.8}, "threshold 0.7, and here it is 0.8"),
        ({"draws": 3, "temperature": 0.5}, "draws 1, and here it is 3"),
        ({"show_expected": True}, "show_expected False, and here it is True"),
    ],
)
def test_rates_of_another_judge_are_refused(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    path = measured(tmp_path / "rates.json", 36, 40, 4, 40)
    with pytest.raises(ConfigError, match=match) as caught:
        judge(path, **options)
    assert "rfx judge-check CASES --rates FILE" in str(caught.value)


def test_rates_of_another_model_are_refused_where_it_is_known(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    rates_of(pairs(36, 40, 4, 40), model="another").save(path)
    with pytest.raises(ConfigError, match="model 'another', and here it is 'judge-model'"):
        judge(path)
    assert loaded_rates("x", path) is not None  # a function has no model
    rates_of(pairs(36, 40, 4, 40)).save(path)  # nor do people's decisions name one
    assert judge(path).rates is not None


@pytest.mark.parametrize("counts", [(20, 40, 20, 40), (10, 40, 20, 40), (40, 40, 40, 40), (0, 40, 0, 40)])
def test_a_pass_that_tells_nothing_is_refused(tmp_path: Path, counts: tuple[int, ...]) -> None:
    path = measured(tmp_path / "rates.json", *counts)
    assert not MeasuredRates.load(path).tells
    with pytest.raises(ConfigError, match="tells nothing; take another model or rubric"):
        judge(path)
    with pytest.raises(ConfigError, match="tells nothing"):
        FunctionVerifier(lambda text: True, weak=True, rates=path)


SHARE = {"passed": 1, "n": 2, "low": 0.0, "high": 1.0}
GOOD = {"schema": 1, "judge": "j", "true_pass": SHARE | {"passed": 2}, "false_pass": SHARE, "date": "2026-01-31"}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"schema": 2}, "schema"),
        ({"true_pass": SHARE | {"passed": 3}}, "more passed than there were"),
        ({"true_pass": SHARE | {"n": 0}}, "true_pass.n"),
        ({"true_pass": SHARE | {"passed": True}}, "true_pass.passed"),
        ({"false_pass": SHARE | {"high": float("nan")}}, "no rates"),
        ({"false_pass": None}, "false_pass"),
        ({"settings": {"rubric": ["x"]}}, "settings"),
    ],
)
def test_a_file_that_is_none_names_what_is_wrong(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    path = tmp_path / "rates.json"
    path.write_text(json.dumps(GOOD))
    assert loaded_rates("x", path) == (2.5 / 3, 1.5 / 3)
    path.write_text(json.dumps(GOOD | {"of a later version": 1}))
    assert loaded_rates("x", path) is not None
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(ConfigError, match=match) as caught:
        judge(path)
    assert str(caught.value).startswith("JudgeVerifier: rates:")


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"schema": 1}', "\x00"])
def test_a_file_of_anything_is_a_plain_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rates.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="holds no rates"):
        judge(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        judge(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        judge(tmp_path)
    with pytest.raises(ConfigError, match="cannot be written"):
        rates_of(pairs(1, 1, 0, 1)).save(tmp_path)


# --- the command

app = typer.Typer()
app.command()(command.judge_check)
SHORT = ["--repeats", "1", "--injections", "0", "--no-verbosity"]


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Judge, rows: list[tuple[str, bool]], *more: str) -> Any:
    monkeypatch.setattr("rfx_agent.samplers.local.LocalSampler", lambda **_: model)
    path = tmp_path / "cases.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": "6*7?", "response": r, "passed": p}) for r, p in rows))
    return CliRunner().invoke(app, [str(path), *SHORT, "--rates", str(tmp_path / "rates.json"), *more])


ROWS = [("Answer: 42", True), ("Answer: 40", False), ("Answer: 41", False)]


def test_the_command_writes_what_the_judge_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Judge(lambda n, p: says("pass" if "Answer: 42" in p else "fail")(n, p))
    done = run(tmp_path, monkeypatch, model, ROWS)
    assert done.exit_code == 0, done.output
    assert "tells nothing" not in done.stderr
    mine = JudgeVerifier(model, rubric=command._DEFAULT, rates=tmp_path / "rates.json")
    assert mine.rates == (1.5 / 2, 0.5 / 3)
    with pytest.raises(ConfigError, match="rubric"):
        judge(tmp_path / "rates.json")


def test_the_command_says_that_a_judge_tells_nothing_and_writes_it_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(tmp_path, monkeypatch, Judge(says("pass")), ROWS)
    assert done.exit_code == 0, done.output
    assert "passes 2 of 2 wrong and 1 of 1 right answers: its pass tells nothing" in " ".join(done.stderr.split())
    assert MeasuredRates.load(tmp_path / "rates.json").false_pass.passed == 2


@pytest.mark.parametrize(
    ("rows", "more", "why"),
    [
        ([("a", True)], [], "all of these have one label"),
        (ROWS, ["--rates", "no/such/folder/r.json"], "no such folder"),
    ],
)
def test_the_command_refuses_before_it_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str, bool]], more: list[str], why: str
) -> None:
    model = Judge(says("pass"))
    done = run(tmp_path, monkeypatch, model, rows, *more)
    assert done.exit_code
    assert why in " ".join(done.output.split())
    assert model.requests == []
