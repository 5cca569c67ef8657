"""Collecting: nothing lost, nothing repeated, whatever happens in between."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import random
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rfx_agent.errors import ConfigError, FeatureError, SamplerError, VerifierError
from rfx_agent.evidence.features import ONE_MODEL, TWO_MODEL, TopLogprobs, evidence_of, token_features
from rfx_agent.lab.collect import Plan, Progress, acollect, collect, finish
from rfx_agent.lab.collect import run as lab
from rfx_agent.lab.collect.journal import JOURNAL, Journal
from rfx_agent.lab.common import REMEDIES
from rfx_agent.lab.dataset import FAILURES, ROLLOUTS, Dataset, DatasetError, read_dataset
from rfx_agent.lab.evidence import evidence, markdown
from rfx_agent.lab.problems import Problem
from rfx_agent.lab.profiles import read_profile
from rfx_agent.records import Rollout, SampleRequest, SampleResult, ScoreResult, Step, Usage, Verdict
from rfx_agent.testing import ScriptedTool, ScriptedVerifier
from rfx_agent.verifiers import FunctionVerifier

WORDS = ("so", "then", "two", "and", "three", "make", "five", "or", "six")


def table(texts: Sequence[str], salt: str, k: int = 6) -> TopLogprobs:
    """A proper top-K table over ``texts``, the same for the same arguments."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(salt.encode()).digest()[:4], "big"))
    rows, taken = [], []
    for text in texts:
        ids = rng.permutation(len(WORDS))[:k].tolist()
        own = WORDS.index(text)
        ids = ids if own in ids else [own, *ids[1:]]
        lps = np.log(rng.dirichlet(np.ones(k)) * 0.99)
        rows.append(list(zip(ids, lps.tolist(), strict=True)))
        taken.append(own)
    return TopLogprobs.from_rows(rows, taken)


class Model:
    """A specialist whose text depends on the seed and the prompt alone; about ``share`` of its draws pass."""

    continues_prefix = False

    def __init__(self, share: float = 0.3, *, name: str = "model", tables: bool = True, pause: float = 0.0) -> None:
        self.name, self.share, self.tables, self.pause = name, share, tables, pause
        self.asked: list[SampleRequest] = []
        self.now = self.most = 0

    def sample(self, request: SampleRequest) -> SampleResult:
        self.asked.append(request)
        rng = random.Random(f"{request.messages[-1]['content']}/{request.seed}")  # noqa: S311  # not secrets
        tokens = [rng.choice(WORDS) for _ in range(rng.randint(2, 12))]
        passed = rng.random() < self.share
        text = "".join(f"{word} " for word in tokens) + ("right" if passed else "wrong")
        logprobs = table(tokens, text) if self.tables and request.want_logprobs else None
        pieces = tuple(f"{word} " for word in tokens)
        made = Rollout(text, prompt_ids=(1, 2), tokens=pieces, logprobs=logprobs, finish_reason="stop")
        return SampleResult((made,), Usage(7, len(tokens), 1))

    async def asample(self, request: SampleRequest) -> SampleResult:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.pause)
            return self.sample(request)
        finally:
            self.now -= 1


class Ancestor:
    """Scores by a table of its own."""

    def __init__(self, name: str = "ancestor") -> None:
        self.name = name
        self.scored: list[str] = []

    def score(self, step: Step, rollouts: Sequence[Rollout]) -> ScoreResult:
        self.scored += [r.text for r in rollouts]
        tables = [table([str(t).strip() for t in r.tokens or ()], f"{self.name}/{r.text}") for r in rollouts]
        return ScoreResult(tuple(tables), Usage(9, 0, 1))

    async def ascore(self, step: Step, rollouts: Sequence[Rollout]) -> ScoreResult:
        return self.score(step, rollouts)


class Steerer:
    """Steers with the model itself; remembers what it was given."""

    name = "steerer"
    operators = ("sparse_steer", "local_temp")

    def __init__(self, model: Model, broken: str = "") -> None:
        self.model, self.broken = model, broken
        self.given: list[tuple[str, Rollout]] = []

    def steer(self, step: Step, operator: str, rollout: Rollout, request: SampleRequest) -> SampleResult:
        self.given.append((operator, rollout))
        if operator == self.broken:
            raise SamplerError(f"{operator} is unavailable")
        result = self.model.sample(request)
        made = tuple(replace(x, temperature=1.0, start=3, junction=3, peak=5) for x in result.rollouts)
        return replace(result, rollouts=made)

    async def asteer(self, step: Step, operator: str, rollout: Rollout, request: SampleRequest) -> SampleResult:
        await asyncio.sleep(self.model.pause)
        return self.steer(step, operator, rollout, request)


def verifier() -> ScriptedVerifier:
    return ScriptedVerifier(lambda text: text.endswith("right"))


def problems(n: int = 12) -> tuple[Problem, ...]:
    return tuple(
        Problem(f"p{i:02}", ({"role": "user", "content": f"question {i}"},), ("sums", "words")[i % 2], f"answer {i}")
        for i in range(n)
    )


class Programs:
    """Writes a program for the tool: some fail at first, some always, some are right."""

    name = "programs"
    continues_prefix = False

    def sample(self, request: SampleRequest) -> SampleResult:
        again = "failed:" in request.messages[-1]["content"]
        kinds = ("good", "bad", "worse") if not again else ("good", "worse")
        kind = random.Random(f"{request.messages[0]['content']}/{request.seed}").choice(kinds)  # noqa: S311  # not secrets
        return SampleResult((Rollout(kind, finish_reason="stop"),), Usage(11, 5, 1))

    async def asample(self, request: SampleRequest) -> SampleResult:
        return self.sample(request)


def plan(n: int = 12, **changes: Any) -> Plan:
    model = changes.pop("sampler", None) or Model()
    given: dict[str, Any] = {
        "problems": problems(n),
        "sampler": model,
        "verifier": verifier(),
        "tool": ScriptedTool({"good": "is right", "bad": "is wrong"}),
        "tool_sampler": Programs(),
        "steerer": Steerer(model),
        "scorers": (None, Ancestor()),
        "draws": 4,
        "attempts": 3,
        "scored": 2,
        "concurrency": 4,
        "specialist": {"name": "small", "sha256": "ab", "dtype": "float32"},
        "ancestor": {"name": "large", "sha256": "cd", "dtype": "float32"},
    }
    return Plan(**(given | changes))


def content(found: Dataset) -> Any:
    """Everything but times."""
    rows = found.rollouts.drop_columns(["seconds"]).to_pylist()
    about = {name: value for name, value in found.provenance.items() if name != "created"}
    return rows, found.failures.to_pylist(), about


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> Dataset:
    return collect(plan(), tmp_path_factory.mktemp("whole"))


# --- what is in it


def test_every_failing_problem_has_all_its_attempts_and_no_passing_one_is_there(whole: Dataset) -> None:
    rows = whole.rollouts.to_pylist()
    screening = {p.id: Model().sample(_ask(p.id, "retry", 0)).rollouts[0].text for p in problems()}
    failing = sorted(name for name, text in screening.items() if not text.endswith("right"))
    assert 3 < len(failing) < 12
    assert sorted({row["problem_id"] for row in rows}) == failing == whole.failures["problem_id"].to_pylist()
    keys = [(row["problem_id"], row["remedy"], row["attempt"]) for row in rows]
    each = [("local_temp", 3), ("retry", 5), ("sparse_steer", 3), ("tool", 3)]
    assert keys == [(name, op, i) for name in failing for op, n in each for i in range(n)]
    assert whole.provenance["screened"] == {
        task: {"problems": 6, "failed": sum(int(name[1:]) % 2 == odd for name in failing), "errors": 0}
        for odd, task in enumerate(("sums", "words"))
    }
    assert whole.provenance["partial"] == 0


def _ask(problem: str, remedy: str, attempt: int) -> SampleRequest:
    from rfx_agent.lab.collect.journal import Key
    from rfx_agent.lab.collect.work import seed_of

    messages = next(p.messages for p in problems() if p.id == problem)
    return SampleRequest(messages, seed=seed_of(plan(), Key(problem, remedy, attempt)))


def test_a_row_says_what_was_asked_and_what_came(whole: Dataset) -> None:
    for row in whole.rollouts.to_pylist():
        if row["remedy"] == "tool":
            continue
        ask = _ask(row["problem_id"], row["remedy"], row["attempt"])
        made = Model().sample(ask)
        assert (row["seed"], row["text"]) == (ask.seed, made.rollouts[0].text)
        assert (row["prompt_tokens"], row["completion_tokens"]) == (7, made.usage.completion_tokens)
        assert row["passed"] == row["text"].endswith("right")
        assert row["answer"] == row["text"]
        assert row["finish_reason"] == "stop"
        steered = row["remedy"] != "retry"
        assert row["temperature"] == pytest.approx(1.0 if steered else 0.6)
        assert row["start"] == (3 if steered else 0)
        assert row["error"] is None
        assert len(row["surprisal"]) == made.usage.completion_tokens


def test_seeds_are_all_different(whole: Dataset) -> None:
    seeds = whole.rollouts["seed"].to_pylist()
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_features_are_those_of_the_library_and_only_of_scored_draws(whole: Dataset) -> None:
    seen = Counter[str]()
    for row in whole.rollouts.to_pylist():
        scored = row["spread"] is not None
        seen[row["problem_id"]] += scored
        assert scored == (row["kl"] is not None) == (row["junction"] is not None and row["remedy"] == "retry")
        if not scored:
            continue
        assert (row["remedy"], row["passed"]) == ("retry", False)
        made = Model().sample(_ask(row["problem_id"], "retry", row["attempt"])).rollouts[0]
        (other,) = Ancestor().score(Step.of("x"), [made]).tables
        assert isinstance(other, TopLogprobs)
        assert made.logprobs is not None
        found = evidence_of([made], [other])
        assert {name: row[name] for name in TWO_MODEL} == pytest.approx(found.features)
        assert {name: row[name] for name in ONE_MODEL} == pytest.approx(evidence_of([made]).features)
        tokens = token_features(made.logprobs, other)
        for name in ("delta_path", "coverage_gap", "logit_variance", "kl", "entropy"):
            assert row[name] == np.asarray(getattr(tokens, name), dtype=np.float32).tolist()
        assert made.tokens is not None
        assert row["peak"] == len("".join(made.tokens[: found.peaks[0]]))
    assert set(seen.values()) == {2}


def test_rates_are_a_literal_recount(whole: Dataset) -> None:
    rows = whole.rollouts.to_pylist()
    for failure in whole.failures.to_pylist():
        mine = [row for row in rows if row["problem_id"] == failure["problem_id"]]
        for remedy in ("retry", "local_temp", "sparse_steer", "tool"):
            tries = [row for row in mine if row["remedy"] == remedy]
            if remedy == "retry":
                assert not tries[0]["passed"]
                tries = tries[1:]
            assert failure[f"{remedy}_attempts"] == len(tries)
            assert failure[remedy] == sum(row["passed"] for row in tries) / len(tries)
        scored = [row for row in mine if row["spread"] is not None]
        for name in (*TWO_MODEL, *ONE_MODEL):
            assert failure[name] == math.fsum(row[name] for row in scored) / len(scored)
        assert failure["n_failed_rollouts"] == len(scored)
        number = int(failure["problem_id"][1:])
        assert json.loads(failure["prompt"]) == [{"role": "user", "content": f"question {number}"}]
        assert failure["expected"] == f"answer {number}"
        assert failure["cell"] == f"small|{failure['task']}"


def test_steering_goes_round_the_failed_draws_with_the_junction_that_was_measured(tmp_path: Path) -> None:
    steerer = Steerer(Model())
    found = collect(plan(steerer=steerer, concurrency=1), tmp_path)
    rows = found.rollouts.to_pylist()
    by_text = {row["text"]: row for row in rows if row["remedy"] == "retry"}
    for row in rows:
        if row["remedy"] not in steerer.operators:
            assert row["source"] is None
            continue
        failed = [
            r["attempt"]
            for r in rows
            if r["problem_id"] == row["problem_id"] and r["remedy"] == "retry" and not r["passed"]
        ]
        assert row["source"] == failed[row["attempt"] % len(failed)]
    for _, given in steerer.given:
        source = by_text[given.text]
        assert not source["passed"]
        assert given.logprobs is not None
        assert given.prompt_ids == (1, 2)
        if source["peak"] is not None:  # measured by two models; else the proxies' place
            assert (given.junction, given.peak) == (source["junction"], source["peak"])
        assert given.peak is not None


def test_the_tool_is_asked_again_once_and_both_turns_are_paid(whole: Dataset) -> None:
    rows = [row for row in whole.rollouts.to_pylist() if row["remedy"] == "tool"]
    kinds = Counter((row["text"], row["prompt_tokens"], row["passed"]) for row in rows)
    assert {text for text, _, _ in kinds} == {"good", "bad", "worse"}
    for row in rows:
        assert row["passed"] == (row["text"] == "good")
        assert row["answer"] == {"good": "is right", "bad": "is wrong", "worse": None}[row["text"]]
        assert (row["error"] is not None) == (row["text"] == "worse")
        assert (row["prompt_tokens"], row["completion_tokens"]) in {(11, 5), (22, 10)}
        assert row["text"] != "worse" or row["prompt_tokens"] == 22
    assert ("good", 22, True) in kinds


def test_the_profile_reader_reads_it(whole: Dataset) -> None:
    profile = read_profile(whole.folder / FAILURES)
    assert len(profile) == len(whole)
    assert profile.evidence == "two_model"
    assert set(profile.rates) == {"retry", "local_temp", "sparse_steer", "tool"}
    assert sorted(profile.cells) == ["small|sums", "small|words"]
    assert profile.rates["tool"].tolist() == whole.failures["tool"].to_pylist()


def test_the_lab_accepts_it(whole: Dataset) -> None:
    from typer.testing import CliRunner

    from rfx_agent.cli.app import app

    path = str(whole.folder / FAILURES)
    done = CliRunner().invoke(app, ["simulate", path, "--orders", "2", "--json", "--policy", "retry"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["calibrate", path, "--json"])
    assert done.exit_code == 0, done.output


class Misnamed(Steerer):
    operators = ("local_temp", "Nudge", "score")


class Nudger(Steerer):
    """Has an operator that nobody else knows."""

    operators = ("nudge", "local_temp")


def test_a_steerers_operators_may_have_any_name(tmp_path: Path) -> None:
    found = collect(plan(steerer=Nudger(Model())), tmp_path)
    assert set(found.rollouts["remedy"].to_pylist()) == {"retry", "local_temp", "nudge", "tool"}
    profile = read_profile(tmp_path / FAILURES)
    assert list(profile.rates) == ["retry", "local_temp", "tool", "nudge"]
    assert profile.attempts["nudge"].tolist() == [3] * len(found)
    assert profile.ignored == ("prompt", "expected")
    figures = evidence(tmp_path, draws=100)
    assert figures["rescue"]["nudge"]["attempts"] == 3 * len(found)
    assert "| nudge |" in markdown(figures)


def test_a_failure_says_what_attempts_cost_and_how_its_draws_failed(tmp_path: Path) -> None:
    class Cut(Model):
        def sample(self, request: SampleRequest) -> SampleResult:
            result = super().sample(request)
            (made,) = result.rollouts
            return replace(result, rollouts=(replace(made, finish_reason="length" if "so" in made.text else "stop"),))

    found = collect(plan(sampler=Cut()), tmp_path)
    rows = found.rollouts.to_pylist()
    kinds = [name for name in found.failures.column_names if name.startswith("kind_")]
    for failure in found.failures.to_pylist():
        mine = [row for row in rows if row["problem_id"] == failure["problem_id"]]
        for remedy in ("retry", "local_temp", "sparse_steer", "tool"):
            tries = [row for row in mine if row["remedy"] == remedy][remedy == "retry" :]
            spent = [row["prompt_tokens"] + row["completion_tokens"] for row in tries]
            assert failure[f"{remedy}_tokens"] == sum(spent) / len(spent)
        failed = [row for row in mine if row["remedy"] == "retry" and not row["passed"]]
        assert failure["kind_cut"] == sum(row["finish_reason"] == "length" for row in failed) / len(failed)
        assert sum(failure[name] for name in kinds) == pytest.approx(1)
    assert 0 < np.mean(found.failures["kind_cut"].to_pylist()) < 1
    profile = read_profile(tmp_path / FAILURES)
    assert set(profile.kinds) >= {"cut", "wrong"}
    assert set(profile.tokens) == set(profile.rates)


def test_a_journal_that_kept_no_kinds_has_them_all_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    found = collect(plan(), tmp_path)
    records = Journal.records

    def without(self: Journal) -> Any:
        return {key: {k: v for k, v in one.items() if k != "kind"} for key, one in records(self).items()}

    monkeypatch.setattr(Journal, "records", without)
    assert content(finish(tmp_path)) == content(found)


# --- stopped, killed, started again


def test_a_second_run_asks_nothing(tmp_path: Path) -> None:
    first = collect(plan(), tmp_path)
    model, ancestor = Model(), Ancestor()
    again = collect(plan(sampler=model, scorers=(None, ancestor)), tmp_path)
    assert (model.asked, ancestor.scored) == ([], [])
    assert content(again) == content(first)


@pytest.mark.parametrize("after", [1, 7, 20, 40, 60, 85])
def test_stopped_by_an_error_it_goes_on_where_it_was(tmp_path: Path, after: int, whole: Dataset) -> None:
    calls = 0

    def judge(text: str) -> bool:
        nonlocal calls
        calls += 1
        if calls == after:
            raise OSError("no more")
        return text.endswith("right")

    with pytest.raises(VerifierError, match=r"problem 'p\d\d': scripted broke: OSError: no more"):
        collect(plan(verifier=ScriptedVerifier(judge)), tmp_path)
    with Journal(tmp_path, write=False) as journal:
        kept = len(journal.records())
    assert kept >= after - 4
    model = Model()
    assert content(collect(plan(sampler=model), tmp_path)) == content(whole)


CHILD = textwrap.dedent("""
    import sys
    from pathlib import Path
    from test_collect import Model, plan
    from rfx_agent.lab.collect import collect
    collect(plan(sampler=Model(pause=0.004)), Path(sys.argv[1]), progress=lambda p: print("up", flush=True))
    print("done", flush=True)
""")


def test_killed_again_and_again_it_loses_and_repeats_nothing(tmp_path: Path, whole: Dataset) -> None:
    rng, kills, before = random.Random(5), 0, 0  # noqa: S311  # not secrets
    folders = os.pathsep.join(str(folder) for folder in Path(__file__).parents[:2])
    env = os.environ | {"PYTHONPATH": folders}
    while kills < 60:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=env
        )
        assert child.stdout is not None
        first = child.stdout.readline()  # it has taken the folder
        if kills >= 10 and kills % 5 == 0:
            rest = child.stdout.read()
            assert child.wait() == 0
            assert first.strip() in {"up", "done"}
            assert rest.strip().endswith("done")
            break
        time.sleep(rng.random() * 0.15)
        child.kill()
        kills += child.wait() < 0
        child.stdout.close()
        with Journal(tmp_path, write=False) as journal:
            now = len(journal.records())
        assert now >= before
        before = now
    assert kills >= 10
    assert content(read_dataset(tmp_path)) == content(whole)
    with sqlite3.connect(tmp_path / JOURNAL) as db:
        ((units, different),) = db.execute(
            "SELECT count(*), count(DISTINCT problem || remedy || attempt) FROM units"
        ).fetchall()
    assert units == different


def test_finish_writes_the_complete_problems_and_counts_the_others(
    tmp_path: Path, whole: Dataset, monkeypatch: Any
) -> None:
    monkeypatch.setattr(lab, "_PAUSE", 0.0)

    class Stop(Exception):
        pass

    def stop(at: Progress) -> None:
        if at.phase == "local_temp" and at.done > at.total - 5:
            raise Stop

    with pytest.raises(Stop):
        collect(plan(), tmp_path, progress=stop)
    partial = finish(tmp_path)
    missing = partial.provenance["partial"]
    assert 0 < missing < len(whole)
    assert len(partial) == len(whole) - missing
    complete = set(partial.failures["problem_id"].to_pylist())
    assert partial.rollouts.drop_columns(["seconds"]).to_pylist() == [
        row for row in content(whole)[0] if row["problem_id"] in complete
    ]
    assert content(read_dataset(tmp_path)) == content(partial)
    assert content(collect(plan(), tmp_path)) == content(whole)


def test_finish_needs_a_journal(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is nothing to finish"):
        finish(tmp_path)


def test_how_much_runs_at_once_changes_nothing(tmp_path: Path, whole: Dataset) -> None:
    model = Model(pause=0.001)
    assert content(collect(plan(sampler=model, concurrency=16), tmp_path)) == content(whole)
    assert 4 < model.most <= 16


def test_async_does_the_same(tmp_path: Path, whole: Dataset) -> None:
    assert content(asyncio.run(acollect(plan(), tmp_path))) == content(whole)


# --- one plan, one folder


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"temperature": 0.7}, "temperature was 0.6 and is 0.7"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"max_tokens": 9}, "max_tokens was 512 and is 9"),
        ({"sampler": Model(name="other")}, "sampler was 'model' and is 'other'"),
        (
            {"specialist": {"name": "small", "sha256": "zz", "dtype": "float32"}},
            "specialist.sha256 was 'ab' and is 'zz'",
        ),
        ({"settings": {"alpha": 0.5}}, ""),
        ({"draws": 3}, "draws was 4 and is 3; it may only grow"),
        ({"attempts": 2}, "attempts was 3 and is 2"),
        ({"failures": 3}, "failures was without limit and is 3"),
        ({"operators": ("local_temp",)}, "operators lacks sparse_steer"),
        ({"tool": None}, "tool was 'scripted' and is None"),
        ({"n": 11}, "there were 12 problems and are 11"),
        ({"verifier": FunctionVerifier(lambda text: True, name="lax")}, "problem 0 ('p00') has another verifier"),
        ({"problems": tuple(reversed(problems()))}, "problem 0 ('p00') has another id"),
    ],
)
def test_another_plan_is_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    settled = {} if named else {"settings": {"alpha": 0.7}}
    collect(plan(**settled), tmp_path)
    model = Model()
    with pytest.raises(ConfigError) as error:
        collect(plan(**({"sampler": model} | changes)), tmp_path)
    assert (named or "settings.alpha was 0.7 and is 0.5") in str(error.value)
    assert model.asked == []


def test_a_plan_may_grow(tmp_path: Path) -> None:
    small = plan(6, draws=2, attempts=1, scored=1, operators=("local_temp",), tool=None, failures=2)
    collect(small, tmp_path / "grown")
    model = Model()
    grown = collect(plan(sampler=model), tmp_path / "grown")
    straight = collect(plan(), tmp_path / "straight")
    assert len(model.asked) < straight.rollouts.num_rows
    rows, failures, about = content(grown)
    # With more draws there are more failed ones to go round, so that an early attempt may be steered elsewhere.
    unlike = [(a, b) for a, b in zip(rows, content(straight)[0], strict=True) if a != b]
    assert all(a["remedy"] == "local_temp" and a["source"] != b["source"] for a, b in unlike)
    assert [f["retry_attempts"] for f in failures] == [4] * len(failures)
    assert about == content(straight)[2]


def test_a_journal_of_another_version_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / JOURNAL) as db:
        db.execute("CREATE TABLE units (problem TEXT, operator TEXT, attempt INTEGER)")
    for write in (True, False):
        with pytest.raises(DatasetError, match="is of another version; go on with that version"):
            Journal(tmp_path, write=write)


def test_two_processes_do_not_collect_into_one_folder(tmp_path: Path) -> None:
    collect(plan(2), tmp_path)
    with Journal(tmp_path), pytest.raises(ConfigError, match="another process is collecting"):
        collect(plan(2), tmp_path)
    with Journal(tmp_path):
        finish(tmp_path)  # looking is free


# --- what goes wrong


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path: Path, whole: Dataset, monkeypatch: Any) -> None:
    opened = sqlite3.connect

    def small(path: Any, **options: Any) -> sqlite3.Connection:
        db = opened(path, **options)
        if str(path).endswith(JOURNAL):
            db.execute("PRAGMA max_page_count = 20")
        return db

    with monkeypatch.context() as patch:
        patch.setattr("rfx_agent.lab.collect.journal.sqlite3.connect", small)
        with pytest.raises(DatasetError, match="the disk is full; free some space"):
            collect(plan(), tmp_path)
    with Journal(tmp_path, write=False) as journal:
        assert 0 < len(journal.records()) < 100
    assert not list(tmp_path.glob("*.parquet"))
    assert content(collect(plan(), tmp_path)) == content(whole)


def test_an_operator_that_fails_is_a_miss_with_its_error_and_stops_nothing(tmp_path: Path) -> None:
    model = Model()
    steerer = Steerer(model, broken="sparse_steer")
    found = collect(plan(sampler=model, steerer=steerer), tmp_path)
    rows = [row for row in found.rollouts.to_pylist() if row["remedy"] == "sparse_steer"]
    assert len(rows) == 3 * len(found)
    assert {(row["error"], row["passed"], row["text"]) for row in rows} == {("sparse_steer is unavailable", False, "")}
    assert set(found.failures["sparse_steer"].to_pylist()) == {0.0}
    assert set(found.failures["sparse_steer_attempts"].to_pylist()) == {3}
    asked = [operator for operator, _ in steerer.given if operator == "sparse_steer"]
    assert len(asked) == 2 * len(rows)  # each was tried again once
    assert read_profile(tmp_path / FAILURES).rates["sparse_steer"].tolist() == [0.0] * len(found)


class Flaky(Model):
    """Fails when asked what it was not asked before."""

    def sample(self, request: SampleRequest) -> SampleResult:
        if request in self.asked:
            return super().sample(request)
        self.asked.append(request)
        raise SamplerError("busy", transient=True)


def test_what_works_the_second_time_is_no_error(tmp_path: Path, whole: Dataset) -> None:
    assert content(collect(plan(sampler=Flaky()), tmp_path)) == content(whole)


class Gone(Model):
    """Answers ``alive`` times and never again."""

    def __init__(self, alive: int, *, transient: bool) -> None:
        super().__init__()
        self.alive, self.transient = alive, transient

    def sample(self, request: SampleRequest) -> SampleResult:
        if len(self.asked) >= self.alive:
            raise SamplerError("connection refused", transient=self.transient)
        return super().sample(request)


@pytest.mark.parametrize("alive", [0, 5, 30])
def test_a_model_that_is_gone_ends_the_run_and_its_misses_do_not_count(
    tmp_path: Path, alive: int, whole: Dataset
) -> None:
    with pytest.raises(SamplerError, match=r"attempts in a row got no answer .* connection refused"):
        collect(plan(sampler=Gone(alive, transient=True)), tmp_path)
    assert content(collect(plan(), tmp_path)) == content(whole)


def test_a_screening_draw_that_never_came_is_no_failure_of_the_problem(tmp_path: Path) -> None:
    found = collect(plan(sampler=Gone(6, transient=False), concurrency=1, tool=None, operators=()), tmp_path)
    tally = found.provenance["screened"]
    assert sum(one["errors"] for one in tally.values()) == 6
    assert sum(one["problems"] for one in tally.values()) == 12
    assert {row["error"] for row in found.rollouts.to_pylist() if row["attempt"]} == {"connection refused"}
    assert set(found.failures["retry"].to_pylist()) == {0.0}


class Picky(Ancestor):
    """Cannot score every second rollout."""

    def score(self, step: Step, rollouts: Sequence[Rollout]) -> ScoreResult:
        result = super().score(step, rollouts)
        bad = FeatureError("NaN", rollout=0, position=3)
        return replace(result, tables=tuple(bad if i % 2 else t for i, t in enumerate(result.tables)))


def test_a_draw_that_cannot_be_scored_costs_the_others_nothing(tmp_path: Path) -> None:
    found = collect(plan(scorers=(None, Picky())), tmp_path)
    assert set(found.failures["n_failed_rollouts"].to_pylist()) == {1}
    assert None not in found.failures["spread"].to_pylist()
    ((note, times),) = found.provenance["notes"].items()
    assert note == "a draw was not scored: NaN (at rollout 0, position 3)"
    assert times == len(found)


def test_a_specialist_that_gives_no_tables_is_scored_by_its_own_scorer(tmp_path: Path) -> None:
    scorer = Ancestor("specialist")
    found = collect(plan(sampler=Model(tables=False), scorers=(scorer, Ancestor())), tmp_path)
    assert scorer.scored
    scored = [row for row in found.rollouts.to_pylist() if row["spread"] is not None]
    assert len(scored) == 2 * len(found)
    assert all(row["surprisal"] and row["spread_proxy"] is not None for row in scored)


def test_without_an_ancestor_there_are_proxies_and_no_other_features(tmp_path: Path) -> None:
    found = collect(plan(scorers=(None, None), ancestor=None), tmp_path)
    assert set(TWO_MODEL).isdisjoint(found.failures.column_names)
    assert set(found.failures["n_failed_rollouts"].to_pylist()) == {2}
    assert read_profile(tmp_path / FAILURES).evidence == "one_model"


def test_without_tables_there_are_rates_alone(tmp_path: Path) -> None:
    found = collect(plan(sampler=Model(tables=False), scorers=(None, None), ancestor=None), tmp_path)
    assert read_profile(tmp_path / FAILURES).evidence == "samples"
    assert min(found.failures["n_failed_rollouts"].to_pylist()) >= 1


def test_half_a_surrogate_is_no_reason_to_stop(tmp_path: Path) -> None:
    class Odd(Model):
        def sample(self, request: SampleRequest) -> SampleResult:
            result = super().sample(request)
            return replace(result, rollouts=(Rollout("half \ud83d of it, wrong"),))

    found = collect(plan(2, sampler=Odd(), tool=None, operators=(), scorers=(None, None)), tmp_path)
    assert set(found.rollouts["text"].to_pylist()) == {"half ? of it, wrong"}


# --- limits and progress


@pytest.mark.parametrize("limit", [1, 3])
def test_screening_stops_at_enough_failures_whatever_ends_first(tmp_path: Path, limit: int) -> None:
    found = []
    for concurrency in (1, 7):
        model = Model(pause=0.001)
        folder = tmp_path / str(concurrency)
        found.append(content(collect(plan(sampler=model, failures=limit, concurrency=concurrency), folder)))
        assert len(found[-1][1]) == limit
    assert found[0] == found[1]
    asked = sum(one["problems"] for one in found[0][2]["screened"].values())
    assert asked < 12


def test_progress_counts_up_and_ends_complete(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(lab, "_PAUSE", 0.0)
    seen: list[Progress] = []
    found = collect(plan(), tmp_path, progress=seen.append)
    assert list(dict.fromkeys(p.phase for p in seen)) == [
        *("screen", "retry", "tool", "score"),
        *("sparse_steer", "local_temp"),
    ]
    last = seen[-1]
    assert last.done == last.total == found.rollouts.num_rows + 2 * len(found)
    assert last.failing == len(found)
    assert last.left == 0
    assert seen[0].left is None
    for phase in ("screen", "tool"):
        counts = [p.done for p in seen if p.phase == phase]
        assert counts == sorted(counts)


def test_every_remedy_of_the_schema_is_known() -> None:
    assert REMEDIES[:6] == ("retry", "local_temp", "sparse_steer", "sparse_steer_random", "dense_steer", "tool")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"draws": 0}, "draws is 0"),
        ({"concurrency": True}, "concurrency is True"),
        ({"temperature": 0}, "temperature is 0"),
        ({"failures": 0}, "failures is 0"),
        ({"problems": ()}, "problems is empty"),
        ({"problems": (*problems(2), *problems(1))}, "two problems have the id 'p00'"),
        ({"verifier": None}, "problem 'p00' has no verifier"),
        ({"operators": ("dense_steer",)}, "the steerer offers ['sparse_steer', 'local_temp']"),
        ({"steerer": Misnamed(Model())}, "operators has ['Nudge', 'score']; give names of [a-z0-9_] other than retry"),
    ],
)
def test_a_plan_that_cannot_work_is_refused_at_once(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan(**changes)
    assert named in str(error.value)


def test_a_mistake_in_a_port_names_the_problem(tmp_path: Path) -> None:
    class Wrong(Model):
        def sample(self, request: SampleRequest) -> SampleResult:
            raise KeyError("oops")

    with pytest.raises(Exception, match=r"problem 'p\d\d': model broke: KeyError: 'oops'"):
        collect(plan(sampler=Wrong()), tmp_path)


def test_files_are_not_left_half_written(tmp_path: Path, whole: Dataset) -> None:
    for name in (ROLLOUTS, FAILURES):
        assert json.loads(pq.read_schema(whole.folder / name).metadata[b"rfx_agent"]) == whole.provenance
    assert sorted(p.name for p in whole.folder.iterdir()) == [FAILURES, "journal.lock", JOURNAL, ROLLOUTS]


def test_a_verdict_with_a_score_keeps_it(tmp_path: Path) -> None:
    judge = FunctionVerifier(lambda text: Verdict(False, answer="x", score=0.25), name="half")
    found = collect(plan(2, verifier=judge, tool=None, operators=()), tmp_path)
    assert set(found.rollouts["score"].to_pylist()) == {0.25}


# --- the command


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from rfx_agent.cli.app import app

    for arguments, named in (
        ([str(tmp_path), "--finish"], "there is nothing to finish"),
        ([str(tmp_path), "--problems", str(tmp_path / "none.jsonl")], "none.jsonl cannot be read"),
        ([str(tmp_path), "--reasoning-gym", "sums"], "reasoning-gym has no generator 'sums'"),
        ([str(tmp_path), "--reasoning-gym", "gcd", "--specialist", "no-such"], "no-such"),
        ([str(tmp_path), "--reasoning-gym", "gcd", "--problems", "x"], "exclude each other"),
    ):
        done = CliRunner().invoke(app, ["collect", *arguments], terminal_width=200)
        assert done.exit_code in (1, 2), done.output
        assert named in " ".join(done.output.split()), done.output


def test_the_command_finishes_what_is_there(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from rfx_agent.cli.app import app

    found = collect(plan(), tmp_path)
    (tmp_path / FAILURES).unlink()
    done = CliRunner().invoke(app, ["collect", str(tmp_path), "--finish", "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["failures"], result["rollouts"]) == (len(found), found.rollouts.num_rows)
    assert result["remedies"]["retry"]["attempts"] == 4 * len(found)
    assert content(read_dataset(tmp_path)) == content(found)


@pytest.mark.nightly
def test_the_command_collects_with_a_real_model(tmp_path: Path) -> None:
    """The tiny model with itself for an ancestor: small, but every phase and every real part."""
    from typer.testing import CliRunner

    from rfx_agent.cli.app import app

    out = tmp_path / "out"
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"id": "a", "prompt": "What is 977 times 868?", "expected": 848036}) + "\n")
    arguments = ["collect", str(out), "--problems", str(path), "--specialist", "smollm2-135m", "--json"]
    arguments += ["--ancestor", "smollm2-135m", "--draws", "1", "--attempts", "1", "--scored", "1"]
    arguments += ["--max-tokens", "12", "--concurrency", "4"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["screened"] == {"problems": {"problems": 1, "failed": 1, "errors": 0}}
    assert {name: one["attempts"] for name, one in result["remedies"].items()} == dict.fromkeys(REMEDIES[:6], 1)
    found = read_dataset(out)
    assert found.provenance["specialist"]["name"] == "smollm2-135m"
    assert len(found.provenance["specialist"]["sha256"]) == 64
    assert found.provenance["settings"]["alpha"] == 0.7
    first = next(row for row in found.rollouts.to_pylist() if (row["remedy"], row["attempt"]) == ("retry", 0))
    # A model has not left itself: every two-model difference is 0, or rounding.
    assert max(map(abs, first["delta_path"])) < 1e-3
    assert max(first["kl"]) < 1e-3
    assert min(first["surprisal"]) >= 0
    assert len(first["kl"]) == len(first["surprisal"]) == first["completion_tokens"]
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0
    assert content(read_dataset(out)) == content(found)
