"""A dataset replayed: recorded attempts come back in order, the engine does the rest, and nothing is invented."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evidence_data import FEATURES, MIXED, rows, write
from rich.console import Console

from rfx_agent import ConfigError, Rollout, SampleRequest, Step
from rfx_agent.cli.demo import Report, Task, run_tasks
from rfx_agent.cli.replay import ReplaySampler, ReplaySteerer, ReplayTool, ReplayVerifier, replay_tasks
from rfx_agent.cli.show import DemoView
from rfx_agent.cli.tape import Replay, Tape, load_replay
from rfx_agent.errors import SamplerError
from rfx_agent.lab.dataset import read_dataset, write_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "mixed", *rows(MIXED, problems=10))


@pytest.fixture(scope="module")
def replay(folder: Path) -> Replay:
    return load_replay(folder)


def player(tape: Tape, **more: Any) -> tuple[ReplaySampler, ReplayTool]:
    tool = ReplayTool()
    return ReplaySampler(tape, tool, name="small", **more), tool


def ask(tape: Tape, n: int = 1) -> SampleRequest:
    return SampleRequest(tape.step.messages, n)


def program(tape: Tape, tool: ReplayTool) -> SampleRequest:
    return SampleRequest(tool.prompt(tape.step), purpose="tool_input")


def tape_of(replay: Replay, family: str, number: int = 0) -> Tape:
    return [tape for tape in replay.tapes if tape.family == family][number]


def shown(tasks: list[Task]) -> tuple[Report, str]:
    out = io.StringIO()
    view = DemoView(Console(file=out, width=80))
    with view.running("small", tasks, replay=True):
        report = asyncio.run(run_tasks(tasks, concurrency=1, on_done=view.done))
    view.summary(report, 0.0)
    return report, out.getvalue()


def test_draws_come_back_in_order_and_run_out(replay: Replay) -> None:
    tape = replay.tapes[0]
    sampler, _ = player(tape)
    recorded = tape.attempts["retry"]
    first = sampler.sample(ask(tape))
    rest = asyncio.run(sampler.asample(ask(tape, 20)))  # fewer than asked for, as a server may do
    got = [*first.rollouts, *rest.rollouts]
    assert [x.text for x in got] == [row["text"] for row in recorded]
    assert len({x.response_id for x in got}) == 9
    assert rest.usage.tokens == sum(row["prompt_tokens"] + row["completion_tokens"] for row in recorded[1:])
    with pytest.raises(SamplerError, match="no more than 9 retry attempts"):
        sampler.sample(ask(tape))


def test_a_rollout_keeps_what_was_measured(replay: Replay) -> None:
    tape = replay.tapes[0]
    (made,) = player(tape)[0].sample(ask(tape)).rollouts
    row = tape.attempts["retry"][0]
    assert made.features == {name: row[name] for name in FEATURES}
    assert (made.junction, made.peak, made.logprobs) == (4, 6, None)


def test_draws_and_programs_are_told_apart(replay: Replay) -> None:
    tape = tape_of(replay, "product")
    sampler, tool = player(tape, skip=4)
    assert sampler.sample(ask(tape)).rollouts[0].text == tape.attempts["retry"][4]["text"]
    written = sampler.sample(program(tape, tool)).rollouts[0]
    assert written.text == tape.attempts["tool"][0]["text"]
    assert sampler.sample(ask(tape)).rollouts[0].text == tape.attempts["retry"][5]["text"]


def test_nothing_is_asked_of_the_model_that_was_not_recorded(replay: Replay) -> None:
    sampler, _ = player(tape_of(replay, "product"))
    assert (sampler.continues_prefix, sampler.takes_max_tokens, sampler.takes_revision) == (False, False, False)
    report, _ = shown(replay_tasks(replay, problems=6, seed=7))
    used = {a.remedy for f in report.failures for a in f.recovery.attempts}
    assert used <= {"retry", "tool", "local_temp", "sparse_steer", "sparse_steer_random", "dense_steer"}


def test_the_sandbox_runs_the_program_and_its_verdict_is_the_recorded_one(replay: Replay) -> None:
    for family, passes in (("product", True), ("days", False)):
        tape = tape_of(replay, family)
        sampler, tool = player(tape)
        verifier = ReplayVerifier(tape, sampler)
        text = sampler.sample(program(tape, tool)).rollouts[0].text
        result = tool.run(tool.parse(text))
        assert result.answer == tape.attempts["tool"][0]["answer"]
        verdict = verifier.verify(tape.step, Rollout(str(result.answer), remedy="tool"))
        assert (verdict.passed, verdict.answer) == (passes, result.answer)


@pytest.mark.parametrize(
    ("text", "recorded", "same"),
    [
        ("713138", "713,138", True),
        ("x = 5", "5", True),
        ("{'day': 'Friday'}", "friday", True),
        ("working\n12", "12", True),
        ("123", "12", False),
        ("13", "12", False),
    ],
)
def test_another_result_than_was_recorded_does_not_pass(replay: Replay, text: str, recorded: str, same: bool) -> None:
    tape = tape_of(replay, "product")
    row = {**tape.attempts["tool"][0], "answer": recorded, "passed": True}
    tape = replace(tape, attempts={**tape.attempts, "tool": (row,)})
    sampler, tool = player(tape)
    sampler.sample(program(tape, tool))
    assert ReplayVerifier(tape, sampler).verify(tape.step, Rollout(text, remedy="tool")).passed is same


def test_every_recorded_verdict_is_given_back_and_no_other(replay: Replay) -> None:
    tape = tape_of(replay, "words")
    sampler, _ = player(tape)
    verifier = ReplayVerifier(tape, sampler)
    for rollout, row in zip(sampler.sample(ask(tape, 9)).rollouts, tape.attempts["retry"], strict=True):
        verdict = asyncio.run(verifier.averify(tape.step, rollout))
        assert (verdict.passed, verdict.answer) == (row["passed"], row["answer"])
    assert not verifier.verify(tape.step, Rollout("7")).passed


def test_steering_comes_back_in_order_with_its_failures(replay: Replay) -> None:
    tape = tape_of(replay, "product")
    broken = {**tape.attempts["dense_steer"][1], "error": "it diverged", "text": ""}
    tape = replace(tape, attempts={**tape.attempts, "dense_steer": (tape.attempts["dense_steer"][0], broken)})
    steerer = ReplaySteerer(tape, name="pair")
    assert steerer.operators == ("local_temp", "sparse_steer", "sparse_steer_random", "dense_steer")
    at, request = Rollout("It is"), ask(tape)
    hot = steerer.steer(tape.step, "local_temp", at, request).rollouts[0]
    assert (hot.text, hot.start) == (tape.attempts["local_temp"][0]["text"], 4)
    assert steerer.steer(tape.step, "dense_steer", at, request).rollouts[0].remedy == "dense_steer"
    with pytest.raises(SamplerError, match="as recorded: it diverged"):
        asyncio.run(steerer.asteer(tape.step, "dense_steer", at, request))
    with pytest.raises(SamplerError, match="no more than 2 dense_steer"):
        steerer.steer(tape.step, "dense_steer", at, request)


def test_a_program_that_fails_is_not_repaired_twice(replay: Replay) -> None:
    tape = tape_of(replay, "product")
    row = {**tape.attempts["tool"][0], "text": "answer = 1 / 0", "error": "ZeroDivisionError", "passed": False}
    tape = replace(tape, attempts={**tape.attempts, "tool": (row, *tape.attempts["tool"][1:])})
    sampler, tool = player(tape)
    first = sampler.sample(program(tape, tool))
    result = tool.run(tool.parse(first.rollouts[0].text))
    again = sampler.sample(SampleRequest(tool.repair(tape.step, first.rollouts[0].text, result)))
    assert result.error is not None
    assert again.rollouts[0].text == first.rollouts[0].text
    assert (first.usage.tokens > 0, again.usage.tokens) == (True, 0)
    after = sampler.sample(program(tape, tool))
    assert after.rollouts[0].text == tape.attempts["tool"][1]["text"]


def test_the_choice_is_seeded_and_spread_over_generators(replay: Replay) -> None:
    chosen = replay.choose(6, 7)
    assert [tape.family for tape in chosen] == ["product", "sum", "words", "days", "product", "sum"]
    assert chosen == replay.choose(6, 7) != replay.choose(6, 8)
    assert len(replay.choose(1000, 7)) == 40


def test_evidence_and_decisions_are_the_engines(replay: Replay) -> None:
    report, text = shown(replay_tasks(replay, problems=8, seed=7))
    assert len(report.failures) == 8
    diagnosed = [f.recovery.diagnosis for f in report.failures if f.recovery.diagnosis is not None]
    assert {d.evidence for d in diagnosed} == {"two_model"}
    assert {d.calibration for d in diagnosed} == {"the replayed dataset itself"}
    reasons = [d.reason for f in report.failures for d in f.recovery.decisions]
    assert any(reason.startswith("rule:") for reason in reasons)
    for failure in report.failures:
        drawn = [x.text for x in failure.retry.rollouts]
        assert drawn[0] == failure.recovery.rollouts[0].text
        assert failure.recovery.rollouts[0].round == 0
        tape = next(t for t in replay.tapes if t.step.id == failure.recovery.step.id)
        assert drawn == [row["text"] for row in tape.attempts["retry"]][: len(drawn)]
    assert "calibrated on the same dataset" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_figures_are_the_same_every_time(replay: Replay) -> None:
    once, text = shown(replay_tasks(replay, problems=10, seed=7))
    again, same = shown(replay_tasks(replay, problems=10, seed=7))
    assert once.as_dict() == again.as_dict()
    assert text.split("problems ━")[0] == same.split("problems ━")[0]


def test_it_says_when_recorded_draws_ran_out(folder: Path, tmp_path: Path) -> None:
    data = read_dataset(folder)
    few = [x for x in data.rollouts.to_pylist() if x["remedy"] != "retry" or x["attempt"] < 5]
    write_dataset(tmp_path, few, data.failures.to_pylist(), data.provenance)
    report, text = shown(replay_tasks(load_replay(tmp_path), problems=6, seed=7))
    cut = report.as_dict()["retry"]["cut_short"]
    assert cut > 0
    assert f"plain retry had fewer tokens on {cut} of 6: the recorded draws ran out" in " ".join(text.split())


def test_a_dataset_without_steering_is_replayed_without(folder: Path, tmp_path: Path) -> None:
    data = read_dataset(folder)
    plain = [x for x in data.rollouts.to_pylist() if x["remedy"] in ("retry", "tool")]
    write_dataset(tmp_path, plain, data.failures.to_pylist(), data.provenance)
    tasks = replay_tasks(load_replay(tmp_path), problems=4, seed=7)
    assert all(task.recovery.steerer is None for task in tasks)
    report, _ = shown(tasks)
    assert not {"local_temp", "dense_steer"} & set(report.as_dict()["recovery"]["routes"])


def test_a_dataset_that_cannot_be_replayed_is_refused(folder: Path, tmp_path: Path) -> None:
    data = read_dataset(folder)
    about = {**data.provenance, "settings": {"alpha": 0.7}}
    write_dataset(tmp_path, data.rollouts.to_pylist(), data.failures.to_pylist(), about)
    with pytest.raises(ConfigError, match="lacks \\['temperature', 'max_tokens'\\]"):
        load_replay(tmp_path)


def test_a_tape_holds_no_right_answer(replay: Replay) -> None:
    assert all(tape.step.expected is None for tape in replay.tapes)
    assert isinstance(replay.tapes[0].step, Step)
