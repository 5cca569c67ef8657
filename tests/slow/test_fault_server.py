"""The provider's own bill against what was charged, on a server that breaks in all ways of ``benchmarks.faults``.

The full size is ``python -m benchmarks.faults``.
"""

from typing import Any

import pytest

pytest.importorskip("sqlalchemy")
pytest.importorskip("langchain")

from benchmarks.fault_server import FAULTS
from benchmarks.faults import measured


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_spent_unseen_and_nothing_leaks(seed: int) -> None:
    report = measured(112, seed=10_000 * seed)
    assert report["examples"] == {}
    assert set(report["violations"].values()) == {0}
    assert report["faulty"] > 0.25 * report["requests"]
    assert report["clean_runs"] > 15
    assert report["ends"]["answer"] > 80


def test_without_a_fault_all_is_charged_to_the_token() -> None:
    report = measured(56, seed=77, share=0.0)
    assert report["examples"] == {}
    assert report["clean_runs"] > 45  # of a busy machine some may be late
    assert report["ends"].get("answer", 0) > 45
    assert report["bill"] > 0


@pytest.mark.parametrize(
    "change",
    [
        {"tokens_of": lambda text: 10 * len(text)},  # a bill that nothing in the texts can explain
        {"BAD_WORDS": ("Adding",)},
    ],
    ids=["bill", "words"],
)
def test_a_violation_is_seen(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in change.items():
        module = "benchmarks.fault_server" if name == "tokens_of" else "benchmarks.faults"
        monkeypatch.setattr(f"{module}.{name}", value)
    faults = tuple(x for x in FAULTS if x.startswith("usage"))
    report = measured(28, seed=5, share=0.5, faults=faults)
    assert sum(report["violations"].values()) > 0
