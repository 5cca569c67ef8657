"""The dataset's files, and the sources of problems."""

from __future__ import annotations

import asyncio
import errno
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS

from rfx_agent.errors import ConfigError
from rfx_agent.lab import dataset as files
from rfx_agent.lab.dataset import FAILURES, KEY, ROLLOUTS, DatasetError, read_dataset, write_dataset
from rfx_agent.lab.problems import ASK, DEFAULT, Problem, from_gym, from_jsonl
from rfx_agent.lab.problems.gym import EVALUATES
from rfx_agent.lab.profiles import read_profile
from rfx_agent.records import Rollout

ROLLOUT: dict[str, Any] = {
    "problem_id": "p",
    "generator": "sums",
    "remedy": "retry",
    "attempt": 0,
    "seed": 1,
    "temperature": 0.6,
    "text": "4",
    "passed": False,
    "prompt_tokens": 3,
    "completion_tokens": 1,
    "seconds": 0.5,
    "start": 0,
}
FAILURE: dict[str, Any] = {
    "cell": "m|sums",
    "model": "m",
    "task": "sums",
    "problem_id": "p",
    "n_failed_rollouts": 1,
    "retry": 0.5,
    "retry_attempts": 2,
    "prompt": "[]",
    "expected": None,
}
ABOUT = {"format": 1, "created": "2026-01-01T00:00:00+00:00"}


# --- the files


def test_what_was_written_is_read(tmp_path: Path) -> None:
    kept = write_dataset(tmp_path / "new", [ROLLOUT | {"kl": [0.5, 0.25]}], [FAILURE], ABOUT)
    found = read_dataset(tmp_path / "new")
    assert found.rollouts.equals(kept.rollouts)
    assert found.failures.equals(kept.failures)
    assert found.provenance == ABOUT
    row = found.rollouts.to_pylist()[0]
    assert row["kl"] == [0.5, 0.25]
    assert row["delta_path"] is row["spread"] is row["error"] is None
    assert len(found) == 1


def test_columns_are_those_of_the_format(tmp_path: Path) -> None:
    write_dataset(tmp_path, [ROLLOUT], [FAILURE], ABOUT)
    schema = pq.read_schema(tmp_path / ROLLOUTS)
    number, count, text = pa.float32(), pa.int32(), pa.string()
    expected = {
        "problem_id": text,
        "generator": text,
        "remedy": text,
        "attempt": count,
        "source": count,
        "seed": pa.int64(),
        "temperature": number,
        "text": text,
        "answer": text,
        "passed": pa.bool_(),
        "score": number,
        "finish_reason": text,
        "prompt_tokens": count,
        "completion_tokens": count,
        "seconds": number,
        "start": count,
        "junction": count,
        "peak": count,
        **dict.fromkeys(("spread", "concentration", "logit_dispersion"), pa.float64()),
        **dict.fromkeys(("spread_proxy", "concentration_proxy", "logit_dispersion_proxy"), pa.float64()),
        **dict.fromkeys(("delta_path", "coverage_gap", "logit_variance", "kl", "entropy"), pa.list_(number)),
        "surprisal": pa.list_(number),
        "error": text,
    }
    assert dict(zip(schema.names, schema.types, strict=True)) == expected
    codecs = {
        pq.ParquetFile(tmp_path / name).metadata.row_group(0).column(0).compression for name in (ROLLOUTS, FAILURES)
    }
    assert codecs == {"ZSTD"}
    assert read_profile(tmp_path / FAILURES).rates["retry"].tolist() == [0.5]


def test_a_full_disk_leaves_the_old_pair(tmp_path: Path, monkeypatch: Any) -> None:
    write_dataset(tmp_path, [ROLLOUT], [FAILURE], ABOUT)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    write, calls = files._write, []

    def full(path: Path, table: Any) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, table)

    monkeypatch.setattr(files, "_write", full)
    with pytest.raises(DatasetError, match="the disk is full"):
        write_dataset(tmp_path, [ROLLOUT] * 2, [FAILURE], ABOUT | {"created": "later"})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_two_writings_are_told_apart(tmp_path: Path) -> None:
    write_dataset(tmp_path, [ROLLOUT], [FAILURE], ABOUT)
    old = (tmp_path / FAILURES).read_bytes()
    write_dataset(tmp_path, [ROLLOUT], [FAILURE], ABOUT | {"created": "later"})
    (tmp_path / FAILURES).write_bytes(old)
    with pytest.raises(DatasetError, match="of two writings"):
        read_dataset(tmp_path)


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not there"):
        read_dataset(tmp_path)
    pq.write_table(pa.table({"a": [1]}), tmp_path / ROLLOUTS)
    with pytest.raises(DatasetError, match="carries no provenance"):
        read_dataset(tmp_path)
    table = pa.table({"a": [1]}).replace_schema_metadata({KEY: json.dumps({"format": 9})})
    pq.write_table(table, tmp_path / ROLLOUTS)
    with pytest.raises(DatasetError, match="not of format 2"):
        read_dataset(tmp_path)
    (tmp_path / ROLLOUTS).write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_dataset(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot be written"):
        write_dataset(tmp_path / "file", [ROLLOUT], [FAILURE], ABOUT)


# --- problems from a file


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def judged(problem: Problem, text: str) -> bool:
    assert problem.verifier is not None
    sync = problem.verifier.verify(problem.step, Rollout(text))
    assert asyncio.run(problem.verifier.averify(problem.step, Rollout(text))) == sync
    return sync.passed


def test_problems_from_json_lines(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Capital of France?"}]
    path = lines(
        tmp_path / "p.jsonl",
        {"id": 1, "prompt": "2 + 2?", "expected": 4},
        "",
        {"id": "b", "messages": chat, "expected": "Paris", "generator": "capitals"},
    )
    first, second = from_jsonl(path)
    assert (first.id, first.generator, first.messages) == ("1", "problems", ({"role": "user", "content": "2 + 2?"},))
    assert (second.generator, list(second.messages), second.expected) == ("capitals", chat, "Paris")
    assert judged(first, "2 + 2 = 4, so the answer is \\boxed{4 apples}")
    assert judged(first, "it is 4.")
    assert not judged(first, "Answer: 5")
    assert judged(second, "Answer: **paris**")
    assert not judged(second, "Answer: Lyon")
    assert judged(
        from_jsonl(lines(path, {"id": 1, "prompt": "?", "expected": "\\sqrt{8}"}), verifier="math")[0],
        "\\boxed{2\\sqrt{2}}",
    )


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"id": 1, "expected": 4}, "give either 'prompt' or 'messages'"),
        ({"id": 1, "prompt": "a", "messages": [], "expected": 4}, "give either 'prompt' or 'messages'"),
        ({"id": 1, "prompt": "a"}, "'expected' is missing"),
        ({"prompt": "a", "expected": 4}, "give 'id' as text"),
        ({"id": 1, "messages": [], "expected": 4}, "messages is empty"),
        ({"id": 1, "messages": ["a"], "expected": 4}, "messages[0] is 'a'"),
        ({"id": "", "prompt": "a", "expected": 4}, "id is ''"),
        ("{", "no JSON"),
        ([1], "give a JSON object"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, row: Any, named: str) -> None:
    path = lines(tmp_path / "p.jsonl", {"id": 0, "prompt": "a", "expected": 1}, row)
    with pytest.raises(ConfigError) as error:
        from_jsonl(path)
    assert "line 2" in str(error.value)
    assert named in str(error.value)


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        from_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="no problems in it"):
        from_jsonl(lines(tmp_path / "p.jsonl", ""))
    with pytest.raises(ConfigError, match="give one of 'exact', 'math'"):
        from_jsonl(tmp_path / "p.jsonl", verifier="judge")  # type: ignore[arg-type]


# --- problems from reasoning-gym

GYM = from_gym(per_generator=6, seed=3)


def test_there_are_enough_generators_and_their_prompts_are_short() -> None:
    assert len(DEFAULT) >= 12
    assert {p.generator for p in GYM} == set(DEFAULT)
    assert len({p.id for p in GYM}) == len(GYM) == 6 * len(DEFAULT)
    for problem in GYM:
        ((message),) = problem.messages
        assert message["role"] == "user"
        assert message["content"].endswith(ASK)
        assert len(message["content"]) < 700  # about 250 tokens at most
        assert len(str(problem.expected)) < 60


def test_generators_take_turns_and_more_problems_are_appended() -> None:
    names = list(DEFAULT)
    assert [p.generator for p in GYM[: len(names)]] == names
    more = from_gym(per_generator=8, seed=3)
    assert [p.body() for p in more[: len(GYM)]] == [p.body() for p in GYM]
    assert [p.body() for p in from_gym(per_generator=6, seed=4)] != [p.body() for p in GYM]


@pytest.mark.parametrize("name", list(DEFAULT))
@pytest.mark.parametrize(
    "dress",
    [
        "{}",
        "The sum is 3 and 4.\n\\boxed{{{}}}",
        "So:\nAnswer: {}",
        "working 1 2 3\n{}",
        "\\[ \\boxed{{\\text{{{}}}}} \\]",
        "**Final answer:** **{}**",
    ],
)
def test_the_right_answer_passes_in_any_dress(name: str, dress: str) -> None:
    for problem in (p for p in GYM if p.generator == name):
        assert judged(problem, dress.format(problem.expected)), problem.expected


@pytest.mark.parametrize("name", list(DEFAULT))
def test_a_wrong_answer_does_not_pass(name: str) -> None:
    mine = [p for p in GYM if p.generator == name]
    others = {"17", *(str(p.expected) for p in mine)}
    for problem in mine:
        wrong = next(answer for answer in sorted(others) if answer != problem.expected)
        assert not judged(problem, f"\\boxed{{{wrong}}}"), (problem.expected, wrong)
        for text in (
            "",
            "   \n",
            "I do not know",
            "\\boxed{}",
            "\\boxed{-987654321}",
            "1e999999999",
            "9" * 5000,
            "[" * 200,
        ):
            assert not judged(problem, text), text


def test_numbers_pass_with_separators_units_and_names() -> None:
    (problem,) = from_gym(["products"], per_generator=1)
    answer = int(problem.expected)
    assert judged(problem, f"\\boxed{{{answer:,}}}")
    assert judged(problem, f"\\boxed{{x = {answer}}}")
    assert judged(problem, f"\\boxed{{{answer} \\text{{ units}}}}")
    assert not judged(problem, f"\\boxed{{{answer + 1:,}}}")
    assert not judged(problem, f"\\boxed{{{answer} or {answer + 1}}}")


def test_the_score_is_the_generators_own() -> None:
    (problem,) = from_gym(["spell_backward"], per_generator=1)
    half = str(problem.expected)[:-1] + "?"
    assert problem.verifier is not None
    verdict = problem.verifier.verify(problem.step, Rollout(half))
    assert not verdict.passed
    assert verdict.score is not None
    assert 0 < verdict.score < 1


def test_generators_that_evaluate_an_answer_are_refused() -> None:
    runs = re.compile(r"(?:\beval|\bexec|parse_expr|sympify)\(\s*(?:answer|\w*expr\w*|full_code)\b")
    found = {
        name
        for name, (kind, _) in DATASETS.items()
        if runs.search(inspect.getsource(inspect.getmodule(kind)))  # type: ignore[arg-type]
    }
    assert found <= EVALUATES
    assert not EVALUATES & set(DEFAULT)
    with pytest.raises(ConfigError, match="evaluates a model's answer as code"):
        from_gym(["countdown"])


def test_a_generator_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="no generator 'sum_of_all'"):
        from_gym(["sum_of_all"])
    with pytest.raises(ConfigError, match="per_generator is 0"):
        from_gym(per_generator=0)


def test_the_librarys_own_settings_are_used_for_others() -> None:
    (problem,) = from_gym(["coin_flip"], per_generator=1, seed=5)
    entry = reasoning_gym.create_dataset("coin_flip", size=1, seed=5)[0]
    assert problem.messages[0]["content"] == entry["question"] + ASK
    assert judged(problem, f"\\boxed{{{entry['answer']}}}")
