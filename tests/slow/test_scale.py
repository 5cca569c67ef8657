"""Features over Arrow batches: the same numbers as the definitions, whatever carries them and wherever they run."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import literal
import numpy as np
import pytest

from rfx_agent import ConfigError
from rfx_agent.lab.common import ProfileError
from rfx_agent.lab.scale import extract, map_batches

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

NAMES = ("spread", "concentration", "logit_dispersion")
Rollout = dict[str, Any]


def rollout(rng: np.random.Generator, length: int, k: int, *, ragged: bool = False, kind: str = "plain") -> Rollout:
    """One rollout as nested lists; ``kind`` picks what is odd about its rows."""
    found: Rollout = {"rollout": f"r{rng.integers(1 << 40)}", "taken": []}
    found |= {f"{s}_{w}": [] for s in ("specialist", "ancestor") for w in ("ids", "logprobs")}
    for _ in range(length):
        pool = rng.permutation(3 * k)
        rows = {}
        for side in ("specialist", "ancestor"):
            width = int(rng.integers(1, k + 1)) if ragged else k
            lps = np.log(rng.dirichlet(np.full(width, 0.3)) + 1e-12)
            if kind == "ties":
                lps = np.round(lps)
            if kind != "unsorted":
                lps = np.sort(lps)[::-1]
            if kind == "absent":
                lps[rng.random(width) < 0.3] = rng.choice([-np.inf, -9999.0, -1000.0])
                lps[0] = -0.5
            lps = np.minimum(lps, 0.0)
            rows[side] = ([int(x) for x in rng.permutation(pool[: 2 * k])[:width]], [float(x) for x in lps])
        if kind == "same":
            rows["ancestor"] = rows["specialist"]
        for side, (ids, lps) in rows.items():
            found[f"{side}_ids"].append(ids)
            found[f"{side}_logprobs"].append(lps)
        found["taken"].append(int(rng.choice(rows["specialist"][0]) if rng.random() < 0.9 else 3 * k))
    return found


def table(rollouts: list[Rollout], *, k: int | None = None, number: Any = None) -> Any:
    """An Arrow table; with ``k`` the inner lists are of fixed size."""
    number = number or pa.float64()

    def inner(kind: Any) -> Any:
        return pa.list_(pa.list_(kind, k) if k else pa.list_(kind))

    fields = [("rollout", pa.string()), ("taken", pa.list_(pa.int32()))]
    for side in ("specialist", "ancestor"):
        fields += [(f"{side}_ids", inner(pa.int32())), (f"{side}_logprobs", inner(number))]
    return pa.Table.from_pylist(rollouts, schema=pa.schema(fields))


def slow(one: Rollout) -> tuple[float, float, float] | None:
    rows = {
        side: [
            [(i, lp) for i, lp in zip(ids, lps, strict=True) if lp > -1000]
            for ids, lps in zip(one[f"{side}_ids"], one[f"{side}_logprobs"], strict=True)
        ]
        for side in ("specialist", "ancestor")
    }
    each = zip(rows["specialist"], rows["ancestor"], one["taken"], strict=True)
    return literal.rollout([literal.token(s, a, x) for s, a, x in each])


def run(source: Any, folder: Path, **how: Any) -> Any:
    pq.write_table(source, folder / "in.parquet", row_group_size=3)
    extract(folder / "in.parquet", folder / "out.parquet", **how)
    return pq.read_table(folder / "out.parquet")


@pytest.mark.parametrize("kind", ["plain", "ties", "unsorted", "absent", "ragged", "float32"])
def test_features_are_those_of_the_definitions(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(5)
    made = [rollout(rng, int(rng.integers(1, 20)), 24, ragged=kind == "ragged", kind=kind) for _ in range(7)]
    fixed = None if kind == "ragged" else 24
    source = table(made, k=fixed, number=pa.float32() if kind == "float32" else None)
    got = run(source, tmp_path).to_pylist()
    assert [r["rollout"] for r in got] == [m["rollout"] for m in made]
    for row, one in zip(got, source.to_pylist(), strict=True):
        assert row["error"] is None
        assert [row[n] for n in NAMES] == pytest.approx(slow(one), abs=1e-9)
        assert row["junction_start"] <= row["peak"] < row["junction_stop"]


def broken(kind: str) -> Rollout:
    one = rollout(np.random.default_rng(2), 6, 5)
    match kind:
        case "nan":
            one["ancestor_logprobs"][3][1] = float("nan")
        case "positive":
            one["specialist_logprobs"][3][0] = 0.5
        case "twice":
            one["specialist_ids"][3][1] = one["specialist_ids"][3][0]
        case "negative":
            one["ancestor_ids"][3][1] = -4
        case "empty":
            one["ancestor_logprobs"][3] = [-9999.0] * 5
        case "null":
            one["specialist_logprobs"][3][2] = None
        case "short":
            one["ancestor_ids"], one["ancestor_logprobs"] = one["ancestor_ids"][:4], one["ancestor_logprobs"][:4]
        case "uneven":
            one["taken"] = one["taken"][:5]
    return one


@pytest.mark.parametrize("kind", ["nan", "positive", "twice", "negative", "empty", "null", "short", "uneven"])
def test_a_broken_rollout_costs_only_itself(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(3)
    source = table([rollout(rng, 6, 5), broken(kind), rollout(rng, 6, 5)], k=5)
    got = run(source, tmp_path, on_bad="skip").to_pylist()
    assert [r["error"] is None for r in got] == [True, False, True]
    assert got[1]["spread"] is None
    with pytest.raises(ProfileError, match="row 2: ") as caught:
        run(source, tmp_path)
    assert caught.value.row == 2


def test_rollouts_without_positions_are_unavailable_never_zero(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    got = run(table([rollout(rng, 0, 5), rollout(rng, 5, 5, kind="same"), rollout(rng, 5, 5)]), tmp_path).to_pylist()
    assert [r["spread"] is None for r in got] == [True, True, False]
    assert [r["error"] for r in got] == [None] * 3


def test_nothing_changes_with_workers(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    source = table([rollout(rng, 9, 8) for _ in range(20)])
    first = run(source, tmp_path, workers=1)
    assert run(source, tmp_path, workers=3).equals(first)


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed (extra: ray)")
def test_ray_says_what_threads_say(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    source = table([rollout(rng, 9, 8) for _ in range(9)])
    assert run(source, tmp_path, engine="ray", workers=1).equals(run(source, tmp_path))


def test_batches_are_read_only_as_fast_as_they_are_used() -> None:
    read = []

    def batches() -> Any:
        for i in range(50):
            read.append(i)
            yield i

    results = map_batches(lambda x: -x, batches(), workers=2)  # type: ignore[arg-type,return-value]
    assert next(results) == 0
    assert len(read) <= 4
    assert list(results) == [-i for i in range(1, 50)]


def test_an_output_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"
    target.write_text("old")
    pq.write_table(table([broken("nan")]), tmp_path / "in.parquet")
    with pytest.raises(ProfileError):
        extract(tmp_path / "in.parquet", target)
    assert target.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]


def test_files_and_parameters_that_cannot_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    with pytest.raises(ProfileError, match="No such file"):
        extract(source, target)
    source.write_text("no parquet")
    with pytest.raises(ProfileError, match=r"in\.parquet"):
        extract(source, target)
    good = table([rollout(np.random.default_rng(8), 3, 4)])
    pq.write_table(good.drop_columns(["taken"]), source)
    with pytest.raises(ProfileError, match="'taken' is missing"):
        extract(source, target)
    pq.write_table(good.set_column(1, "taken", pa.array([1])), source)
    with pytest.raises(ProfileError, match="'taken' is of type int64; give list of integers"):
        extract(source, target)
    pq.write_table(good, source)
    for wrong in ({"engine": "abacus"}, {"workers": 0}, {"temperature": 0.0}, {"coverage_k": 0}, {"on_bad": "x"}):
        with pytest.raises(ConfigError):
            extract(source, target, **wrong)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"ray is not installed.*rfx-agent\[ray\]"):
        extract(source, target, engine="ray")
    assert not target.exists()
