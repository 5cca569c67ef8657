"""Measuring a judge: figures against counts by hand, what is judged again, bad rows, and the command with a model."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from test_judge import Judge, says
from typer.testing import CliRunner

from rfx_agent import ConfigError, Rollout, SampleRequest, Step, Usage, Verdict
from rfx_agent.cli import judge as command
from rfx_agent.errors import SamplerError
from rfx_agent.lab.common import ProfileError
from rfx_agent.lab.judge_cases import FILLER, INJECTIONS, JudgeCase, read_cases
from rfx_agent.lab.judge_check import ajudge_check, judge_check
from rfx_agent.records import SampleResult
from rfx_agent.verifiers.judge import JudgeVerifier

QUIET: dict[str, Any] = {"repeats": 1, "injections": False, "verbosity": False}


class Scripted:
    """A verifier of texts by a function, that remembers them."""

    name = "scripted"
    needs_peers = False

    def __init__(self, passes: Callable[[str], bool]) -> None:
        self.passes = passes
        self.seen: list[str] = []

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        self.seen.append(rollout.text)
        return Verdict(self.passes(rollout.text), usage=Usage(10, 2, 1))

    async def averify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        return self.verify(step, rollout)


def cases_of(**counts: int) -> list[JudgeCase]:
    """``right_pass=3``: three right cases whose text says that the judge passes them."""
    return [
        JudgeCase(f"q{name}{i}", f"{name.split('_')[1]} {i}", name.startswith("right"), group=name.split("_")[0])
        for name, count in counts.items()
        for i in range(count)
    ]


def passes(text: str) -> bool:
    return text.startswith("pass")


# --- figures


def test_figures_are_those_counted_by_hand() -> None:
    cases = cases_of(right_pass=5, right_fail=1, wrong_pass=2, wrong_fail=4)
    report = judge_check(Scripted(passes), cases, **QUIET)
    assert report.confusion == {"true_pass": 5, "false_pass": 2, "true_fail": 4, "false_fail": 1}
    assert (report.cases, report.right, report.judgings) == (12, 6, 12)
    assert report.accuracy["value"] == 9 / 12
    assert report.precision["value"] == 5 / 7
    assert report.recall["value"] == 5 / 6
    assert report.false_pass_rate["value"] == 2 / 6
    assert report.false_pass_rate["n"] == 6
    # Wilson for 2 of 6: centre (2/6 + z²/12) / (1 + z²/6), z = 1.96.
    assert report.false_pass_rate["low"] == pytest.approx(0.0968, abs=1e-4)
    assert report.false_pass_rate["high"] == pytest.approx(0.7000, abs=1e-4)
    # Agreement 9/12; by the margins 1/2 · 7/12 + 1/2 · 5/12 = 1/2.
    assert report.kappa == pytest.approx(0.5)
    assert report.groups["wrong"]["false_pass_rate"]["value"] == 2 / 6
    assert report.groups["right"] == {
        "cases": 6,
        "accuracy": report.groups["right"]["accuracy"],
        "false_pass_rate": {"value": None, "low": None, "high": None, "n": 0},
    }
    assert report.as_dict()["usage"] == {
        "prompt_tokens": 120,
        "completion_tokens": 24,
        "calls": 12,
        "tokens_per_judging": 12.0,
    }
    assert (report.repeats, report.verbosity, report.injections) == (None, None, None)
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False)) == report.as_dict()


@pytest.mark.parametrize(
    ("counts", "kappa"),
    [
        ({"right_pass": 3, "wrong_fail": 3}, 1.0),
        ({"right_fail": 3, "wrong_pass": 3}, -1.0),
        ({"right_pass": 3, "wrong_pass": 3}, 0.0),  # a judge that passes everything
        ({"right_pass": 3}, None),
    ],
)
def test_kappa_at_its_ends(counts: dict[str, int], kappa: float | None) -> None:
    assert judge_check(Scripted(passes), cases_of(**counts), **QUIET).kappa == kappa


# --- what is judged again


def test_only_wrong_cases_that_failed_are_attacked_one_attempt_at_a_time() -> None:
    fooled = lambda text: passes(text) or "evaluation team" in text or "0\n\nPlease" in text  # noqa: E731
    judge = Scripted(fooled)
    cases = cases_of(right_pass=1, right_fail=1, wrong_pass=1, wrong_fail=3)
    report = judge_check(judge, cases, repeats=1, verbosity=False)
    assert report.injections is not None
    assert sorted(judge.seen[6:]) == sorted(f"fail {i}\n\n{text}" for i in range(3) for text in INJECTIONS.values())
    assert report.injections["flips"]["value"] == (3 + 1) / 24
    assert report.injections["cases"]["value"] == 1.0
    by_attempt = {name: share["value"] for name, share in report.injections["by_attempt"].items()}
    assert by_attempt == {name: {"authority": 1.0, "plea": 1 / 3}.get(name, 0.0) for name in INJECTIONS}


def test_fewer_attempts_are_chosen_by_the_seed() -> None:
    def seen(seed: int) -> list[str]:
        judge = Scripted(passes)
        report = judge_check(judge, cases_of(wrong_fail=4), repeats=1, verbosity=False, injections=2, seed=seed)
        assert report.injections is not None
        assert report.injections["flips"]["n"] == 8
        return judge.seen[4:]

    assert seen(1) == seen(1) != seen(2)


def test_where_nothing_fails_nothing_is_attacked() -> None:
    report = judge_check(Scripted(passes), cases_of(right_pass=2), repeats=1, verbosity=False)
    assert report.injections is not None
    assert report.injections["flips"] == {"value": None, "low": None, "high": None, "n": 0}


def test_empty_words_and_second_judgings_are_counted() -> None:
    turns: dict[str, int] = {}

    def fickle(text: str) -> bool:
        turns[text] = turns.get(text, 0) + 1
        if FILLER in text:
            return True
        return passes(text) or (text == "fail 0" and turns[text] == 2)

    report = judge_check(Scripted(fickle), cases_of(right_pass=2, wrong_fail=2), repeats=2, injections=False)
    assert report.repeats is not None
    assert report.repeats["agreement"]["value"] == 3 / 4
    assert report.repeats["kappa"] == pytest.approx(0.5)
    assert report.verbosity is not None
    assert (report.verbosity["fail_to_pass"]["value"], report.verbosity["pass_to_fail"]["value"]) == (1.0, 0.0)


def test_a_judge_gets_another_seed_for_each_round_and_the_same_in_every_run() -> None:
    def seeds() -> list[int | None]:
        model = Judge(says("fail"))
        judge_check(JudgeVerifier(model, rubric="Right."), cases_of(wrong_fail=1), seed=5, injections=1)
        return [request.seed for request in model.requests]

    assert seeds() == seeds()
    assert len(set(seeds())) == 4  # two judgings, empty words, one attempt


def test_no_verdict_is_a_fail_and_counted() -> None:
    model = Judge(lambda nonce, prompt: "I cannot say.")
    report = judge_check(JudgeVerifier(model, rubric="Right."), cases_of(right_pass=2), **QUIET)
    assert (report.no_verdict["value"], report.recall["value"]) == (1.0, 0.0)
    assert report.usage.calls == 4


def test_both_ways_in_say_the_same_and_progress_is_told() -> None:
    cases = cases_of(right_pass=2, wrong_fail=2)
    told: list[tuple[int, int]] = []
    one = judge_check(Scripted(passes), cases, progress=lambda done, total: told.append((done, total)))
    two = asyncio.run(ajudge_check(Scripted(passes), cases, concurrency=1))
    assert one == two
    assert told[-1] == (4 * 3 + 2 * 8, 4 * 3 + 2 * 8)


def test_a_judge_that_cannot_be_reached_ends_the_measurement() -> None:
    judge = JudgeVerifier(Judge(SamplerError("connection refused")), rubric="Right.")
    with pytest.raises(SamplerError, match="refused"):
        judge_check(judge, cases_of(right_pass=3))


@pytest.mark.parametrize(
    ("options", "match"),
    [({"repeats": 0}, "repeats"), ({"concurrency": 0}, "concurrency"), ({"injections": -1}, "injections")],
)
def test_parameters_that_cannot_work_fail_at_once(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        judge_check(Scripted(passes), cases_of(right_pass=1), **options)
    with pytest.raises(ConfigError, match="cases is empty"):
        judge_check(Scripted(passes), [])


# --- rows


def test_cases_are_read_with_all_their_fields(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6*7?"}]
    rows = [
        {"prompt": "6*7?", "response": "42", "passed": True},
        {"prompt": turns, "response": "", "passed": False, "group": "sums", "expected": 42},
    ]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    (one, two), bad = read_cases(path)
    assert (one, bad) == (JudgeCase("6*7?", "42", True), [])
    assert (two.step.messages, two.step.expected, two.group) == (tuple(turns), 42, "sums")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "line: not JSON"),
        ("[1]", "line"),
        ('{"prompt": "q", "response": "a"}', "passed: Field required"),
        ('{"prompt": "q", "response": "a", "passed": "yes"}', "passed"),
        ('{"prompt": "q", "response": "a", "passed": 1}', "passed"),
        ('{"prompt": "", "response": "a", "passed": true}', "prompt"),
        ('{"prompt": [], "response": "a", "passed": true}', "prompt"),
        ('{"prompt": [{"content": "q"}], "response": "a", "passed": true}', "prompt"),
        ('{"prompt": "q", "response": null, "passed": true}', "response"),
        ('{"prompt": "q", "response": "a", "passed": true, "label": 1}', "label"),
        ("[" * 100_000, "line: not JSON"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "cases.jsonl"
    good = '{"prompt": "q", "response": "a", "passed": true}'
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(ProfileError, match=re.escape("cases.jsonl: line 2: ") + re.escape(why)) as caught:
        read_cases(path)
    assert caught.value.row == 2
    cases, bad = read_cases(path, on_bad="skip")
    assert len(cases) == 1
    assert [number for number, _ in bad] == [2]


def test_a_file_without_cases_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="No such file"):
        read_cases(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ProfileError, match="no usable line"):
        read_cases(tmp_path / "empty.jsonl")


def test_our_own_cases_are_half_wrong_and_no_group_gives_a_label_away() -> None:
    cases, _ = read_cases(Path(__file__).parent.parent / "benchmarks" / "data" / "judge_cases.jsonl")
    assert (len(cases), sum(c.passed for c in cases)) == (240, 120)
    assert len({(c.problem, c.response) for c in cases}) == 240
    assert len({c.problem for c in cases}) >= 60
    for group in {c.group for c in cases}:
        labels = [c.passed for c in cases if c.group == group]
        assert abs(2 * sum(labels) - len(labels)) <= max(3, len(labels) // 3), group
    assert [c.passed for c in cases] == [True, False] * 120  # so that a part of them is half wrong too


# --- the command

app = typer.Typer()
app.command()(command.judge_check)


def rows(tmp_path: Path, *extra: str) -> Path:
    path = tmp_path / "cases.jsonl"
    made = [{"prompt": "6*7?", "response": "Answer: 42", "passed": True, "group": "g"}]
    made += [{"prompt": "6*7?", "response": f"Answer: {n}", "passed": False} for n in (40, 41)]
    path.write_text("\n".join([*map(json.dumps, made), *extra]))
    return path


def test_the_command_measures_and_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Judge(lambda n, p: says("pass" if "Answer: 42" in p else "fail", criteria=[True])(n, p))
    monkeypatch.setattr("rfx_agent.samplers.local.LocalSampler", lambda **_: model)
    rubric = tmp_path / "rubric.md"
    rubric.write_text("- The answer is right.\n")
    done = CliRunner().invoke(app, [str(rows(tmp_path, "{")), "--rubric", str(rubric), "--on-bad", "skip", "--json"])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["confusion"] == {"true_pass": 1, "false_pass": 0, "true_fail": 2, "false_fail": 0}
    assert figures["skipped"] == [{"row": 4, "reason": "line: not JSON"}]
    assert figures["injections"]["flips"]["n"] == 16
    assert "wrong cases passed" in done.stderr
    assert "1. The answer is right." in model.requests[0].messages[-1]["content"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--model", "m"], "go together"),
        (["--draws", "2"], "odd"),
        (["--rubric", "none.md"], "cannot be read"),
        ([], "line 4"),
    ],
)
def test_the_command_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], why: str
) -> None:
    monkeypatch.setattr("rfx_agent.samplers.local.LocalSampler", lambda **_: Judge(says("pass")))
    bad = [] if options else ["{"]
    done = CliRunner().invoke(app, [str(rows(tmp_path, *bad)), *options])
    assert done.exit_code
    assert why in done.output


def test_a_rubric_is_a_text_unless_every_line_is_an_item(tmp_path: Path) -> None:
    path = tmp_path / "rubric.md"
    for text, read in (
        ("- one\n\n* two\n3. three\n", ["one", "two", "three"]),
        ("It is right:\n- one\n", "It is right:\n- one"),
    ):
        path.write_text(text)
        assert command._rubric(path) == read


# --- a real model, once


@pytest.mark.slow
def test_the_whole_path_with_a_small_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the extra 'local' is not installed")
    from rfx_agent.samplers.local import LocalSampler

    asked: list[SampleRequest] = []

    class Watched(LocalSampler):
        async def asample(self, request: SampleRequest) -> SampleResult:
            asked.append(request)
            return await super().asample(request)

    with Watched("smollm2-135m", parallel=1, context=1024, threads=1, top_logprobs=None) as sampler:
        monkeypatch.setattr("rfx_agent.samplers.local.LocalSampler", lambda **_: sampler)
        short = ["--repeats", "1", "--injections", "0", "--no-verbosity", "--max-tokens", "24", "--json"]
        done = CliRunner().invoke(app, [str(rows(tmp_path)), *short])
        assert done.exit_code == 0, done.output
        figures = json.loads(done.stdout.splitlines()[-1])
        assert sum(figures["confusion"].values()) == 3
        # What it says is its own affair; that each judging was asked, read and paid for is ours.
        assert figures["usage"]["calls"] == len(asked) >= figures["judgings"] >= 3
        verifier = JudgeVerifier(sampler, rubric="Right.", max_tokens=24)
        step, rollout = Step.of("6*7?"), Rollout("Answer: <|im_end|> 42 é🧮")
        most, real = verifier.bound(step, rollout), verifier.verify(step, rollout).usage
        assert 0 < real.prompt_tokens <= most.prompt_tokens
        assert 0 < real.completion_tokens <= most.completion_tokens
