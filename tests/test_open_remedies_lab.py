"""The offline lab carries every remedy by name: profiles, logs, calibrations, simulations, audits."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rfx_agent import Case, ConfigError, FunctionVerifier, Recovery, Rollout, Step, Verdict
from rfx_agent.case import Attempt, Decision, Outcome
from rfx_agent.cli.app import app
from rfx_agent.cli.tape import DATASET
from rfx_agent.evidence.calibration import Calibration
from rfx_agent.evidence.diagnosis import Option, diagnose_case
from rfx_agent.evidence.features import TWO_MODEL
from rfx_agent.evidence.rescue import belief_in, context_of
from rfx_agent.lab.calibrate import calibrate, intervals, merge_all, populations, read_any
from rfx_agent.lab.common import ProfileError
from rfx_agent.lab.logs import Context, Log, LogRow, log_line, read_log
from rfx_agent.lab.players import DecidingPlayer, LearnedPlayer, _code
from rfx_agent.lab.profiles import Profile, read_profile
from rfx_agent.lab.replay import Cell, replay
from rfx_agent.lab.simulate import cells_of, simulate
from rfx_agent.policies import DefaultPolicy, LearnedPolicy, PopulationPrior, Worth
from rfx_agent.policies.population import REMEDIES, ordered
from rfx_agent.records import Spend, Usage
from rfx_agent.testing import ScriptedSampler

pl = pytest.importorskip("polars")

SHARED = Path(os.environ.get("RFX_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data")
HEAD = "cell,model,task,problem_id,n_failed_rollouts"
ROW = "a|b,a,b,p{},5"


def csv(path: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    n = len(next(iter(columns.values())))
    lines = [",".join([HEAD, *columns])]
    lines += [",".join([ROW.format(i), *(str(column[i]) for column in columns.values())]) for i in range(n)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def made(n: int = 12, **columns: Any) -> Profile:
    """One cell of ``n`` failures; ``columns`` are rates by remedy."""
    rates = {op: np.broadcast_to(np.asarray(rate, dtype=float), (n,)).copy() for op, rate in columns.items()}
    ids = [f"p{i}" for i in range(n)]
    return Profile(["a|b"] * n, ["a"] * n, ["b"] * n, ids, np.full(n, 5), {}, rates)


# --- profiles


def test_a_column_of_numbers_under_any_name_is_a_remedy(tmp_path: Path) -> None:
    columns = {
        "revise": [0.5, 1],
        "retry": [0.1, 0.2],
        "retry_attempts": [10, 8],
        "ask_a_colleague": [0, 0.25],
        "ask_a_colleague_tokens": [310.5, 290],
        "kind_cut": [0.25, 0],
        "kind_wrong": [0.5, 1.0],
        "expected": [1, 0],
        "prompt_tokens": [9, 9],
        "Difficulty": [0.3, 0.4],
        "owner": ["me", "you"],
    }
    source = csv(tmp_path / "p.csv", columns)
    frame = pl.read_csv(source)
    frame.write_parquet(tmp_path / "p.parquet")
    for path in (source, tmp_path / "p.parquet"):
        profile = read_profile(path)
        assert list(profile.rates) == ["retry", "revise", "ask_a_colleague"]  # those known before come first
        assert profile.rates["revise"].tolist() == [0.5, 1.0]
        assert {k: v.tolist() for k, v in profile.attempts.items()} == {"retry": [10, 8]}
        assert {k: v.tolist() for k, v in profile.tokens.items()} == {"ask_a_colleague": [310.5, 290.0]}
        assert {k: v.tolist() for k, v in profile.kinds.items()} == {"cut": [0.25, 0.0], "wrong": [0.5, 1.0]}
        assert profile.ignored == ("expected", "prompt_tokens", "Difficulty", "owner")
        assert (profile.evidence, profile.features) == ("samples", {})
        second = profile.where(np.array([False, True]))
        assert second.attempts["retry"].tolist() == [8]
        assert second.tokens["ask_a_colleague"].tolist() == [290.0]
        assert second.kinds["wrong"].tolist() == [1.0]


def test_text_is_text_where_the_file_says_so(tmp_path: Path) -> None:
    """A column of digits is rates in a CSV, which has no types, and text in a Parquet file whose type is text."""
    source = csv(tmp_path / "p.csv", {"retry": [0.1, 0.2], "code": [0, 1]})
    assert list(read_profile(source).rates) == ["retry", "code"]
    pl.read_csv(source).with_columns(pl.col("code").cast(pl.String)).write_parquet(tmp_path / "p.parquet")
    profile = read_profile(tmp_path / "p.parquet")
    assert (list(profile.rates), profile.ignored) == (["retry"], ("code",))


def test_a_typing_mistake_among_numbers_is_a_bad_row(tmp_path: Path) -> None:
    path = csv(tmp_path / "p.csv", {"retry": [0.1] * 4, "revise": [0.5, "o.5", 0.5, 1.5]})
    with pytest.raises(ProfileError, match=r"row 2: revise: 'o\.5' is no number"):
        read_profile(path)
    profile = read_profile(path, on_bad="skip")
    assert profile.problem_id == ["p0", "p2"]
    assert [reason for _, reason in profile.bad_rows] == [
        "revise: 'o.5' is no number",
        "revise: 1.5 lies outside [0, 1]",
    ]


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"difficulty": [3, 4]}, r"'difficulty': most of its numbers lie outside \[0, 1\].*capital letter"),
        ({"kind_lazy": [0.5, 0.5]}, "'kind_lazy': 'lazy' is not a kind of failure; choose among cut, refused"),
        ({"My-Own": [0.5, 0.5], "My-Own_attempts": [3, 3]}, r"'My-Own' has attempts or tokens beside it.*\[a-z0-9_\]"),
        ({"spread": [0.5, 0.5]}, "'concentration', 'logit_dispersion'.*features of one kind come together"),
        ({"kind_cut": [0.7, 0.2], "kind_wrong": [0.7, 0.2]}, "row 1: kind_cut: .*add up to more than 1"),
        ({"kind_cut": [1.2, 0.2]}, r"row 1: kind_cut: 1.2 lies outside \[0, 1\]"),
        ({"revise": [0.5, 0.5], "revise_tokens": [30, -1]}, "row 2: revise_tokens: -1 is below 0"),
        ({"revise": [0.5, 0.5], "revise_attempts": [3, 2.5]}, "row 2: revise_attempts: 2.5 is no whole number"),
        ({"revise": ["", 0.5]}, "row 1: revise: missing"),
        ({"revise": ["x", "y"], "revise_attempts": [3, 3]}, "row 1: revise: 'x' is no number"),
    ],
)
def test_what_is_not_understood_is_said(tmp_path: Path, columns: dict[str, Any], why: str) -> None:
    with pytest.raises(ProfileError, match=why):
        read_profile(csv(tmp_path / "p.csv", {"retry": [0.1, 0.2]} | columns))


def test_the_files_that_are_there_read_as_before() -> None:
    ours = read_profile(DATASET / "failures.parquet")
    assert len(ours) == 62
    assert list(ours.rates) == ["retry", "local_temp", "sparse_steer", "sparse_steer_random", "dense_steer", "tool"]
    assert (ours.ignored, ours.kinds, ours.tokens) == (("prompt", "reference"), {}, {})
    assert set(ours.attempts) == set(ours.rates)
    if (SHARED / "failure_profiles.csv").is_file():
        published = read_profile(SHARED / "failure_profiles.csv")
        assert list(published.rates) == list(ours.rates)[:-1]
        assert (len(published), published.ignored, published.attempts, published.kinds) == (744, (), {}, {})


# --- logs


def strict(text: str) -> Verdict:
    """Says what is wrong with an answer that is no number."""
    if not text.isdigit():
        return Verdict(False, feedback=f"{text!r} is no number", kind="malformed")
    return Verdict(text == "7", answer=text)


def run(texts: Sequence[str], remedies: Sequence[str] = ()) -> Case:
    from rfx_agent.policies import FixedPolicy

    sampler = ScriptedSampler(list(texts))
    policy = FixedPolicy(tuple(remedies)) if remedies else DefaultPolicy()
    return Recovery(sampler, verifier=FunctionVerifier(strict), policy=policy).run("3 + 4?")


def test_a_line_says_how_the_answer_before_had_failed_and_what_an_attempt_cost(tmp_path: Path) -> None:
    case = run(["seven", "8", "7"], ["revise", "retry"])
    line = json.loads(log_line(case, model="m", task="sums"))
    assert line["attempts"] == [["retry", False], ["revise", False], ["retry", True]]
    assert [{k: v for k, v in c.items() if k != "tokens"} for c in line["contexts"]] == [
        {},
        {"kind": "malformed", "told": True},
        {"kind": "wrong"},
    ]
    assert [c.get("tokens") for c in line["contexts"]] == [a.tokens or None for a in case.attempts]
    assert line["kinds"] == {"malformed": 1, "wrong": 1}
    (tmp_path / "log.jsonl").write_text(json.dumps(line) + "\n")
    (row,) = read_log(tmp_path / "log.jsonl").rows
    assert row.kinds == {"malformed": 1, "wrong": 1}
    assert [(c.kind, c.told) for c in row.contexts] == [(None, False), ("malformed", True), ("wrong", False)]
    assert [(op, passed, c.kind) for op, passed, c in row.after()] == [
        ("revise", False, "malformed"),
        ("retry", True, "wrong"),
    ]


def test_the_cost_of_a_round_is_shared_by_its_attempts_and_a_miss_is_one() -> None:
    no = Verdict(False)
    rollouts = (
        Rollout("x", id="r0", verdict=no, kind="wrong", usage=Usage(3, 4, 1)),
        Rollout("x", id="r1", round=0, response_id="s", verdict=no, kind="wrong"),
        Rollout("x", id="r2", round=0, response_id="s", verdict=no, kind="wrong"),
        Rollout("x", id="r3", round=0, verdict=no, kind="cut"),
    )
    attempts = (
        Attempt("retry", 3, 3, tokens=101, kind="wrong"),
        Attempt("my_own", 1, 0, misses=1, tokens=40, kind="cut", told=True),
    )
    case = Case(Step.of("q"), rollouts=rollouts, attempts=attempts, outcome=Outcome("rejected", by="human"))
    line = json.loads(log_line(case, model="m", task="t"))
    assert line["attempts"] == [*[["retry", False]] * 3, ["my_own", False], ["human", False]]
    assert line["contexts"] == [
        {"tokens": 7},
        {"kind": "wrong", "tokens": 50},
        {"kind": "wrong", "tokens": 50},
        {"kind": "cut", "told": True, "tokens": 40},
        {"kind": "cut"},
    ]
    assert line["kinds"] == {"wrong": 2, "cut": 1}


def test_a_case_of_which_no_kind_is_known_has_none_in_its_line() -> None:
    """As one that an older version began."""
    rollout = Rollout("x", id="r0", verdict=Verdict(False))
    case = Case(Step.of("q"), rollouts=(rollout,), attempts=(Attempt("retry", misses=1, tokens=9),))
    line = json.loads(log_line(replace(case, outcome=Outcome("unresolved")), model="m", task="t"))
    assert "contexts" not in line
    assert "kinds" not in line


GOOD: dict[str, Any] = {
    "schema": 2,
    "step": "s",
    "model": "m",
    "task": "t",
    "evidence": "samples",
    "features": None,
    "attempts": [["retry", False], ["ask_a_colleague", True]],
}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"contexts": [{}]}, "contexts: 1 for 2 attempts; give one for each, or none"),
        ({"contexts": [{}, {"kind": "lazy"}]}, "contexts.1.kind:"),
        ({"contexts": [{}, {"tokens": -1}]}, "contexts.1.tokens:"),
        ({"kinds": {"lazy": 1}}, "kinds.lazy"),
        ({"kinds": {"cut": -1}}, "kinds.cut:"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | {"step": "z"} | change) + "\n")
    with pytest.raises(ProfileError, match=f"line 2: {why}"):
        read_log(path)
    (row,) = read_log(path, on_bad="skip").rows
    assert (row.contexts, row.kinds) == ((), {})
    assert list(row.after()) == [("ask_a_colleague", True, Context())]


# --- calibrations


def logged(n: int = 40, task: str = "t", seed: int = 0, passes: float = 0.75) -> list[LogRow]:
    """After a malformed answer a revision passes often if the verifier told why, and never after a wrong one."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        told = i % 2 == 0
        first = Context("malformed" if told else "wrong", told, 300)
        passed = told and bool(rng.random() < passes)
        attempts: list[tuple[str, bool]] = [("retry", False), ("revise", passed)]
        contexts = [Context(), first]
        if not passed:
            attempts.append(("retry", bool(rng.random() < 0.3)))
            contexts.append(Context("wrong", False, 200))
        rows.append(LogRow(f"{task}{i}", "m", task, "samples", None, tuple(attempts), tuple(contexts), {"wrong": 1}))
    return rows


def test_every_remedy_of_a_log_is_counted_by_what_it_followed() -> None:
    (population,) = populations(rows := logged())
    calibration = calibrate(population)
    passes = sum(row.attempts[1][1] for row in rows)
    assert 0 < passes < 20
    assert calibration.counts["revise|malformed|told"] == (passes, 20.0)
    assert calibration.counts["revise|wrong"] == (0.0, 20.0)
    assert calibration.counts["retry|wrong"][1] == 40 - passes
    assert {key for key in calibration.counts if key.endswith("@t")} == {
        f"{context_of('revise', 'malformed', told=True)}@t",
        f"{context_of('revise', 'wrong', told=False)}@t",
        f"{context_of('retry', 'wrong', told=False)}@t",
    }
    assert calibration.counts["revise|wrong@t"] == calibration.counts["revise|wrong"]
    assert set(calibration.rates) == {"revise", "retry"}
    told, bare = (
        belief_in("revise", calibration, kind=kind, told=told).beta  # type: ignore[arg-type]
        for kind, told in (("malformed", True), ("wrong", False))
    )
    assert told[0] / sum(told) > 0.5 > 0.2 > bare[0] / sum(bare)
    assert Calibration.from_json(calibration.to_json()).counts == calibration.counts


def test_tasks_are_pooled_and_kept_apart(tmp_path: Path) -> None:
    each = [calibrate(p) for p in populations([*logged(task="t"), *logged(task="u", seed=1)])]
    whole = merge_all(each, name="both")
    assert whole.counts["revise|wrong"] == (0.0, 40.0)
    assert whole.counts["revise|wrong@t"] == whole.counts["revise|wrong@u"] == (0.0, 20.0)
    assert (whole.name, whole.pair, whole.task) == ("both", "m", "t + u")
    whole.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json").counts == whole.counts


def test_a_log_that_knows_no_kinds_is_counted_by_remedy() -> None:
    rows = [LogRow(str(i), "m", "t", "samples", None, (("retry", False), ("my_own", i % 2 == 0))) for i in range(10)]
    calibration = calibrate(populations(rows)[0])
    assert calibration.counts == {"my_own": (5.0, 10.0), "my_own@t": (5.0, 10.0)}
    assert calibration.rates["my_own"].mean == 0.5
    assert calibrate(populations(made(6, retry=np.linspace(0, 1, 6)))[0]).counts == {}


def write_log(path: Path, rows: Sequence[LogRow]) -> Path:
    def said(context: Context) -> dict[str, Any]:
        return {"kind": context.kind, "told": context.told, "tokens": context.tokens}

    lines = []
    for row in rows:
        line = GOOD | {"step": row.step, "task": row.task, "attempts": row.attempts, "kinds": row.kinds}
        lines.append(json.dumps(line | {"contexts": [said(c) for c in row.contexts]}))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_command_shows_what_it_counted(tmp_path: Path) -> None:
    source = write_log(tmp_path / "log.jsonl", logged())
    (population,), _ = read_any(source)
    done = CliRunner().invoke(app, ["calibrate", str(source), "-o", str(tmp_path / "c.json"), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])["populations"][0]
    assert found["counts"] == intervals(population)["counts"]
    assert found["counts"]["revise|wrong@t"] == {"passes": 0.0, "attempts": 20.0, "rate": 0.0}
    assert Calibration.load(tmp_path / "c.json").counts["revise|wrong"] == (0.0, 20.0)
    shown = CliRunner().invoke(app, ["calibrate", str(source)], env={"COLUMNS": "140"}).output
    (told,) = [line.split() for line in shown.splitlines() if line.strip().startswith("revise") and "yes" in line]
    assert told[:4] == ["revise", "malformed", "yes", "20"]
    asked = CliRunner().invoke(app, ["calibrate", "--help"], env={"COLUMNS": "140"}).output
    assert "after each kind of failure" in " ".join(asked.split())


# --- simulations


def test_a_cell_has_the_remedies_of_the_whole_source() -> None:
    profile = made(4, retry=0.1, revise=0.5, ask_a_colleague=0.2, human=1.0)
    (cell,) = cells_of(profile)
    assert cell.remedies == ordered(["revise", "ask_a_colleague"])
    assert cell.had == ("retry", "ask_a_colleague", "revise")  # a person is no remedy to be played
    assert cell.rates[:, cell.remedies.index("revise")].tolist() == [0.5] * 4
    assert Cell("c", cell.rates[:, :6], cell.available[:6], {}).remedies == REMEDIES


def test_a_fixed_sequence_of_any_remedies_rescues_what_the_formula_says() -> None:
    rng = np.random.default_rng(0)
    rates = {op: rng.integers(0, 11, 12) / 10 for op in ("retry", "revise", "tool", "my_own")}
    found = simulate(made(**rates), ["fixed:revise+tool", "fixed:my_own"], orders=3, costs={"revise": 1.5})
    for name, turns in (("fixed:revise+tool", ("revise", "tool")), ("fixed:my_own", ("my_own",))):
        q = np.stack([1 - rates[turns[b % len(turns)]] for b in range(8)], axis=1)
        expected = 1 - np.cumprod(q, axis=1).mean(axis=0)
        within = found.cells["a|b"][name]["rescue_within"]
        assert list(within.values()) == pytest.approx([expected[b - 1] for b in found.budgets])
    attempts, cost = (found.mean["fixed:revise+tool"][f"{what}_per_rescue"] for what in ("attempts", "cost"))
    assert attempts < cost < 1.5 * attempts
    assert found.as_dict()["remedies"] == {"a|b": ["retry", "tool", "my_own", "revise"]}


def test_what_was_not_measured_is_refused_by_name() -> None:
    profile = made(3, retry=0.1, revise=0.5)
    with pytest.raises(ConfigError, match=r"policy 'fixed:revise\+tool': a\|b has only retry, revise"):
        simulate(profile, ["fixed:revise+tool"], orders=1)
    with pytest.raises(ConfigError, match="costs names 'revsie', of which nothing was measured"):
        simulate(profile, ["retry"], orders=1, costs={"revsie": 1.5})
    assert simulate(profile, orders=1).policies == ("retry", "round_robin", "default", "learned")


def test_the_learned_policy_finds_an_unknown_remedy_that_rescues() -> None:
    found = simulate(made(80, retry=0.1, revise=0.1, my_own=0.9), ["learned"], orders=10).cells["a|b"]
    assert found["learned"]["rescue_within"]["1"] > 0.7
    dear = simulate(made(80, retry=0.1, my_own=0.12), ["learned"], orders=10, costs={"my_own": 5.0}).cells["a|b"]
    assert dear["learned"]["cost_per_rescue"] < 1.15 * dear["retry"]["cost_per_rescue"]


def test_the_lock_step_replay_is_the_policy_played_by_hand_with_any_remedies() -> None:
    rng = np.random.default_rng(3)
    profile = made(6, **{op: rng.integers(0, 10, 6) / 10 for op in ("retry", "revise", "my_own", "ask_a_colleague")})
    (cell,) = cells_of(profile)
    prior = PopulationPrior(size=32)
    policy = LearnedPolicy(prior=prior, worth=Worth(rescue=1e9, minutes=0.0, answered=0.0))
    player = LearnedPlayer(policy, cell.available, 1, cell.remedies)
    tally = replay(cell, player, np.ones(len(cell.remedies)), 4, np.random.default_rng(9), 1)
    rng = np.random.default_rng(9)
    order = rng.permuted(np.tile(np.arange(6), (1, 1)), axis=1)[0]
    expected = np.zeros((6, 4))
    for failure in order:
        luck = rng.random((1, 4))[0]
        tries: dict[str, int] = {}
        alive, learned = 1.0, None
        for b in range(4):
            rescue = policy.expected(dict.fromkeys(cell.had, 0) | tries)
            remedy = max(cell.had, key=lambda op: rescue[op])
            rate = cell.rates[failure, cell.remedies.index(remedy)]
            alive *= 1 - rate
            expected[failure, b] = 1 - alive
            if learned is None and luck[b] < rate:
                learned = policy.belief.seen(tries, remedy)
            tries[remedy] = tries.get(remedy, 0) + 1
        policy = replace(policy, belief=learned or policy.belief.seen(tries))
    np.testing.assert_allclose(tally.rescued, expected, atol=1e-9)


def test_a_row_of_many_counts_is_one_number() -> None:
    rng = np.random.default_rng(0)
    for width in (3, 8, 9, 17, 30):
        rows = rng.integers(0, 64, (60, width))[rng.integers(0, 60, 200)]
        rows[:, 0] = rng.integers(0, 2, 200)
        code = _code(rows)
        same = (rows[:, None] == rows[None]).all(axis=2)
        np.testing.assert_array_equal(code[:, None] == code[None], same)


@pytest.mark.parametrize("features", [None, (0.5, 2.3, -0.8), (9.0, 2.3, -0.8)])
def test_the_default_policy_is_asked_what_the_engine_would_ask_it(features: tuple[float, ...] | None) -> None:
    """The same failure as a case of the engine and as a row of a profile: the same diagnosis, the same decision."""
    named = None if features is None else dict(zip(TWO_MODEL, features, strict=True))
    had = ("retry", "revise", "tool", "my_own")
    profile = made(1, **dict.fromkeys(had, 0.1))
    if named is not None:
        profile = replace(profile, features={name: np.array([x]) for name, x in named.items()})
    (cell,) = cells_of(profile)
    player = DecidingPlayer(DefaultPolicy(), cell, 8, {"tool": 2.0})
    case = Case(Step.of("q", id="0"))
    for remedy in ("retry", "retry", "revise"):
        rollout = Rollout("x", remedy=remedy, verdict=Verdict(False), kind="wrong", features=named)
        case = case.add((rollout,), Attempt(remedy, got=1))
    case = replace(case, attempts=case.attempts[1:], decisions=(Decision("resample"), Decision("revise")))
    options = {op: Option(Spend(attempts=1, tokens=2000 if op == "tool" else 1000), op, op) for op in had}
    theirs = diagnose_case(case, Calibration.published(), options)
    tried = {"retry": 1, "revise": 1}
    mine = player.diagnosis(0, tuple(tried.get(op, 0) for op in cell.remedies))
    for name in ("evidence", "features", "z", "routable", "draws", "tried", "cost", "kinds", "kind", "told", "failed"):
        assert getattr(mine, name) == getattr(theirs, name), name
    assert (mine.turn, mine.nodes, mine.priors) == (theirs.turn, theirs.nodes, theirs.priors)
    assert mine.posterior == theirs.posterior


def test_a_failures_kind_and_what_a_log_says_was_told_reach_the_policy() -> None:
    profile = made(2, retry=0.1, extend=0.5)
    kinds = {"cut": np.array([0.9, 0.0]), "wrong": np.array([0.1, 1.0])}
    (cell,) = cells_of(replace(profile, kinds=kinds))
    assert cell.before == (("cut", False), ("wrong", False))
    player = DecidingPlayer(DefaultPolicy(), cell, 4)
    none = (0,) * len(cell.remedies)
    assert [player.diagnosis(i, none).kind for i in (0, 1)] == ["cut", "wrong"]
    assert player.act(np.array([0]), np.zeros((1, len(none)), np.int64))[0][0] == cell.remedies.index("extend")
    (cell,) = cells_of(Log(tuple(logged(4))))
    assert cell.before == (("malformed", True), ("wrong", False)) * 2
    assert {op: set(spent.tolist()) for op, spent in cell.tokens.items()} == {"revise": {300.0}, "retry": {200.0}}


def test_tokens_are_a_ceiling_of_their_own(tmp_path: Path) -> None:
    columns = {
        "retry": [0.5, 0.2],
        "retry_tokens": [100, 200],
        "revise": [0.8, 0.4],
        "revise_tokens": [300, 300],
    }
    source = csv(tmp_path / "p.csv", columns)
    found = simulate(read_profile(source), ["fixed:revise+retry"], orders=2, tokens=(99, 200, 300, 400, 10**6))
    within = {name: figures["rescue_within_tokens"] for name, figures in found.mean.items()}
    assert within["retry"]["99"] == 0.0
    assert within["retry"]["200"] == pytest.approx((1 - 0.5**2 + 0.2) / 2)
    assert within["fixed:revise+retry"]["200"] == 0.0
    assert within["fixed:revise+retry"]["300"] == pytest.approx((0.8 + 0.4) / 2)
    assert within["fixed:revise+retry"]["400"] == pytest.approx((1 - 0.2 * 0.5 + 0.4) / 2)
    for name in found.policies:
        assert within[name]["1000000"] == pytest.approx(found.mean[name]["rescue_within"]["8"])
    asked = [str(source), "--policy", "fixed:revise+retry", "--cost", "revise=1.5", "--tokens", "400", "--orders", "2"]
    done = CliRunner().invoke(app, ["simulate", *asked, "--json"])
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown["tokens"] == [400]
    assert shown["cells"]["a|b"]["fixed:revise+retry"]["rescue_within_tokens"]["400"] == pytest.approx(0.65)
    assert "Rescued within T tokens" in CliRunner().invoke(app, ["simulate", *asked]).output
    wrong = CliRunner().invoke(app, ["simulate", str(source), "--cost", "Revise=1"])
    assert wrong.exit_code == 1
    assert "give REMEDY=COST, such as revise=1.5" in " ".join(wrong.output.split())


def test_prices_reach_the_default_policy() -> None:
    """The same two remedies; the cheaper is bought first, whichever it is."""
    profile = made(3, retry=0.1, my_own=0.3, ask_a_colleague=0.3)
    policy = DefaultPolicy(worth=10)
    for dear, cheap in (("my_own", "ask_a_colleague"), ("ask_a_colleague", "my_own")):
        (cell,) = cells_of(profile)
        player = DecidingPlayer(policy, cell, 4, {dear: 4.0})
        nothing = np.zeros((1, len(cell.remedies)), np.int64)
        assert cell.remedies[player.act(np.array([0]), nothing)[0][0]] == cheap
        tokens = {op: np.full(3, 400.0 if op == dear else 100.0) for op in cell.had}
        (measured,) = cells_of(replace(profile, tokens=tokens))
        again = DecidingPlayer(policy, measured, 4)
        assert measured.remedies[again.act(np.array([0]), nothing)[0][0]] == cheap
