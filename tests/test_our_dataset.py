"""The dataset that comes with the package: what it holds, what the docs say of it, and what the demo replays."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rfx_agent.cli.app import app
from rfx_agent.cli.tape import DATASET
from rfx_agent.lab.dataset import Dataset, read_dataset
from rfx_agent.lab.evidence import evidence, markdown

ROOT = Path(__file__).parent.parent
STEERING = ("local_temp", "sparse_steer", "sparse_steer_random", "dense_steer")


@pytest.fixture(scope="module")
def ours() -> Dataset:
    return read_dataset(DATASET)


def test_it_is_as_large_as_it_claims_and_small_enough_to_carry(ours: Dataset) -> None:
    failures = ours.failures.to_pylist()
    assert len(failures) >= 60
    assert len({row["task"] for row in failures}) >= 8
    for row in failures:
        assert row["retry_attempts"] >= 8
        assert all(row[f"{remedy}_attempts"] >= 4 for remedy in (*STEERING, "tool"))
    assert sum(path.stat().st_size for path in DATASET.iterdir()) <= 10 * 2**20


def test_its_columns_of_version_0_1_have_the_new_names(ours: Dataset) -> None:
    assert ours.provenance["format"] == 1
    assert set(ours.rollouts["remedy"].to_pylist()) == {"retry", *STEERING, "tool"}
    assert None not in ours.failures["expected"].to_pylist()
    assert not {"operator", "reference"} & {*ours.rollouts.column_names, *ours.failures.column_names}


def test_it_says_where_it_comes_from(ours: Dataset) -> None:
    told = ours.provenance
    for role in ("specialist", "ancestor"):
        assert len(told[role]["sha256"]) == 64
        assert told[role]["dtype"]
    assert {"temperature", "lifted_temperature", "alpha", "max_tokens", "seed", "top_k"} <= set(told["settings"])
    assert "torch" in told["versions"]


def test_the_docs_have_its_figures_to_the_digit() -> None:
    said = (ROOT / "docs" / "evidence.md").read_text()
    assert markdown(evidence(DATASET)) in said


def test_the_demo_replays_it_the_same_everywhere() -> None:
    done = CliRunner().invoke(app, ["demo", "--replay", "--json"])
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout.splitlines()[-1])
    kept = json.loads((Path(__file__).parent / "data" / "replay.json").read_text())
    assert {k: v for k, v in shown.items() if k != "seconds"} == kept
