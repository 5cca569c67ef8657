"""The simulation: baselines to the digit, the replay against a literal loop, estimates against literal weights."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from rfx_agent.cli.simulate import simulate as command
from rfx_agent.errors import ConfigError
from rfx_agent.lab.logs import Log, LogRow
from rfx_agent.lab.ope import SupportError, remedy_rates, sequence_value
from rfx_agent.lab.players import DecidingPlayer, FixedPlayer, LearnedPlayer
from rfx_agent.lab.profiles import Profile, read_profile
from rfx_agent.lab.replay import Cell, replay
from rfx_agent.lab.simulate import NAMES, ROUND, cells_of, simulate
from rfx_agent.policies import FixedPolicy, LearnedPolicy, PopulationPrior, Worth
from rfx_agent.policies.population import REMEDIES

BUDGETS = (1, 2, 3, 4, 6, 8)
FOLDER = Path(os.environ.get("RFX_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data")
PUBLISHED = FOLDER / "failure_profiles.csv"
published = pytest.mark.skipif(
    not PUBLISHED.is_file(),
    reason=f"the published profiles are not at {PUBLISHED}; set RFX_SHARED_DATA to their folder",
)
COSTS = np.ones(len(REMEDIES))
EVERY = Worth(rescue=1e9, minutes=0.0, answered=0.0)


def made(n: int = 30, seed: int = 0) -> Profile:
    """Two cells; in the second, dense steering rescues what nothing else does, and a third is out of reach."""
    rng = np.random.default_rng(seed)
    rates = {op: rng.integers(0, 11, 2 * n) / 10 for op in ROUND}
    second = np.arange(2 * n) >= n
    for op in ROUND:
        rates[op][second] = 0.0 if op != "dense_steer" else 0.9
    rates["dense_steer"][second & (np.arange(2 * n) % 3 == 0)] = 0.0
    features = {name: rng.normal(size=2 * n) for name in ("spread", "concentration", "logit_dispersion")}
    names = ["a|x"] * n + ["b|x"] * n
    return Profile(
        names, [c[0] for c in names], ["x"] * 2 * n, [str(i) for i in range(2 * n)], np.full(2 * n, 5), features, rates
    )


@pytest.fixture(scope="module")
def small() -> Any:
    return simulate(made(), orders=20, seed=3)


def test_fixed_policies_rescue_what_the_formula_says(small: Any) -> None:
    for cell in cells_of(made()):
        for name, turns in (("retry", ("retry",)), ("round_robin", ROUND)):
            q = 1 - cell.rates[:, [REMEDIES.index(turns[b % len(turns)]) for b in range(8)]]
            rescue = 1 - np.cumprod(q, axis=1).mean(axis=0)
            figures = small.cells[cell.name][name]
            assert list(figures["rescue_within"].values()) == pytest.approx([rescue[b - 1] for b in BUDGETS])
            alive = np.concatenate([np.ones((len(q), 1)), np.cumprod(q, axis=1)[:, :-1]], axis=1)
            assert figures["attempts"] == pytest.approx(alive.sum(axis=1).mean())


def test_the_json_has_what_is_promised(small: Any) -> None:
    found = json.loads(json.dumps(small.as_dict(), allow_nan=False))
    assert set(found["cells"]) == {"a|x", "b|x"}
    for figures in (found["mean"], *found["cells"].values()):
        assert set(figures) == set(NAMES)
        for policy in figures.values():
            assert set(policy["rescue_within"]) == {"1", "2", "3", "4", "6", "8"}
            assert policy["attempts"] > 0
    for b in BUDGETS:
        each = [cell["learned"]["rescue_within"][str(b)] for cell in found["cells"].values()]
        assert found["mean"]["learned"]["rescue_within"][str(b)] == pytest.approx(np.mean(each))
    assert found["mean"]["retry"]["against_retry"]["3"] == {"difference": 0.0, "low": 0.0, "high": 0.0}


def test_it_learns_where_there_is_something_to_learn(small: Any) -> None:
    cell = small.cells["b|x"]
    assert cell["learned"]["rescue_within"]["1"] > cell["round_robin"]["rescue_within"]["1"] + 0.3
    assert cell["learned"]["against_retry"]["3"]["low"] > 0.4
    assert small.hopeless["b|x"] == 10


def test_the_seed_settles_everything_and_threads_nothing() -> None:
    profile = made(12)
    once = simulate(profile, ["learned"], orders=6, seed=1, workers=1).as_dict()
    assert simulate(profile, ["learned"], orders=6, seed=1, workers=3).as_dict() == once
    assert simulate(profile, ["learned"], orders=6, seed=2).as_dict() != once
    # Orders and draws are shared: other policies beside it change nothing.
    assert simulate(profile, NAMES, orders=6, seed=1).cells["a|x"]["learned"] == once["cells"]["a|x"]["learned"]


def test_the_lock_step_replay_is_the_policy_played_by_hand() -> None:
    """The same orders and draws, one failure and one attempt at a time, through the policy's own ``expected``."""
    cell = cells_of(made(8, seed=5))[0]
    prior = PopulationPrior(size=32)
    policy = LearnedPolicy(prior=prior, worth=EVERY)
    tally = replay(cell, LearnedPlayer(policy, cell.available, 1), COSTS, 4, np.random.default_rng(9), 1)
    rng = np.random.default_rng(9)
    order = rng.permuted(np.tile(np.arange(8), (1, 1)), axis=1)[0]
    expected = np.zeros((8, 4))
    for failure in order:
        luck = rng.random((1, 4))[0]
        tries: dict[Any, int] = {}
        alive, learned = 1.0, None
        for b in range(4):
            rescue = policy.expected(tries)
            remedy = max((op for op in REMEDIES if op in ROUND), key=lambda op: rescue[op])
            rate = cell.rates[failure, REMEDIES.index(remedy)]
            alive *= 1 - rate
            expected[failure, b] = 1 - alive
            if learned is None and luck[b] < rate:
                learned = policy.belief.seen(tries, remedy)
            tries = {**tries, remedy: tries.get(remedy, 0) + 1}
        policy = LearnedPolicy(prior=prior, worth=EVERY, belief=learned or policy.belief.seen(tries))
    np.testing.assert_allclose(tally.rescued, expected, atol=1e-9)


def test_it_never_learns_from_a_rate() -> None:
    """Two cells whose draws come out the same teach the same, whatever the rates behind them."""
    low, high = np.full((1, len(REMEDIES)), 1e-12), np.full((1, len(REMEDIES)), 1e-9)
    players = []
    for rates in (low, high):
        cell = Cell("c", np.repeat(rates, 20, axis=0), np.ones(len(REMEDIES), bool), {})
        player = LearnedPlayer(LearnedPolicy(prior=PopulationPrior(size=32), worth=EVERY), cell.available, 3)
        replay(cell, player, COSTS, 3, np.random.default_rng(0), 3)
        players.append(player.act(np.zeros(3, np.intp), np.zeros((3, len(REMEDIES)), np.int64)))
    np.testing.assert_array_equal(players[0][1], players[1][1])


def test_a_policys_own_decide_gives_what_its_vector_form_gives() -> None:
    cell = cells_of(made())[0]
    asked = replay(cell, DecidingPlayer(FixedPolicy(ROUND), cell, 6), COSTS, 6, np.random.default_rng(1), 4)
    played = replay(cell, FixedPlayer(ROUND), COSTS, 6, np.random.default_rng(1), 4)
    np.testing.assert_allclose(asked.rescued, played.rescued)
    learned = LearnedPolicy(worth=EVERY)
    tries = np.zeros((1, len(REMEDIES)), np.int64)
    for _ in range(5):
        at = np.zeros(1, np.intp)
        one = DecidingPlayer(learned, cell, 9).act(at, tries)
        two = LearnedPlayer(learned, cell.available, 1).act(at, tries)
        assert one[0] == two[0]
        assert one[1] == pytest.approx(two[1], rel=1e-4)
        tries[0, two[0][0]] += 1


def test_a_price_makes_it_stop_earlier_on_what_nothing_rescues() -> None:
    found = simulate(made(60), ["learned", "learned:0.05", "learned:0.2"], orders=20)
    free, some, dear = (found.cells["b|x"][f"learned{suffix}"] for suffix in ("", ":0.05", ":0.2"))
    assert free["escalated"] == 0
    assert free["wasted_attempts"] == pytest.approx(8)
    assert dear["wasted_attempts"] < some["wasted_attempts"] < 6
    assert some["rescue_within"]["8"] > free["rescue_within"]["8"] - 0.03
    assert 0.2 < some["escalated"] < 0.5


def test_costs_count_and_steer() -> None:
    found = simulate(made(), ["learned"], orders=5, costs={"dense_steer": 3.0, "retry": 2.0})
    retry = found.cells["a|x"]["retry"]
    assert retry["cost_per_rescue"] == pytest.approx(2 * retry["attempts_per_rescue"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policies": ["wish"]}, "policy 'wish' does not exist"),
        ({"policies": ["learned:-1"]}, "does not exist"),
        ({"policies": ["fixed:retry+Wish"]}, "does not exist"),
        ({"policies": ["fixed:retry+wish"]}, "a.x has only retry"),
        ({"policies": ["fixed:retry+tool"]}, "a.x has only retry"),
        ({"costs": {"wish": 2.0}}, "costs names 'wish', of which nothing was measured"),
        ({"tokens": [0]}, "tokens"),
        ({"tokens": [500]}, "nothing is known of the tokens of 'retry' in a.x"),
        ({"budgets": []}, "budgets"),
        ({"budgets": [0]}, "budgets"),
        ({"orders": 0}, "orders is 0"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(made(4), **{"policies": ["retry"], "orders": 2, **options})


@published
def test_the_published_baselines_to_the_digit() -> None:
    found = simulate(read_profile(PUBLISHED), ["retry", "paper_rule", "round_robin"], orders=1)
    figures = {name: [f"{v:.3f}" for v in found.mean[name]["rescue_within"].values()] for name in found.policies}
    assert figures == {
        "retry": ["0.455", "0.545", "0.593", "0.623", "0.659", "0.680"],
        "paper_rule": ["0.454", "0.532", "0.572", "0.596", "0.625", "0.642"],
        "round_robin": ["0.455", "0.573", "0.627", "0.659", "0.703", "0.724"],
    }


@published
def test_the_learned_policy_on_the_published_failures() -> None:
    """Loosely: 40 orders. docs/policies.md has the figures for 200, and those with a cell left out."""
    found = simulate(read_profile(PUBLISHED), ["round_robin", "default", "learned", "learned:0.05"], orders=40)
    learned, retry, turns = (found.mean[name]["rescue_within"] for name in ("learned", "retry", "round_robin"))
    assert learned["3"] - retry["3"] > 0.03
    assert learned["6"] - retry["6"] > 0.035
    assert learned["6"] > retry["8"]
    assert all(learned[b] > turns[b] - 0.004 for b in learned)
    assert found.mean["learned"]["ece"] < 0.03
    # While it learns: beside the default policy, over the first 50 failures.
    early, default = found.mean["learned"]["rescue_early"], found.mean["default"]["rescue_early"]
    assert all(early[b] > default[b] - 0.02 for b in early)
    priced = found.mean["learned:0.05"]
    assert priced["wasted_attempts"] < 0.75 * priced["retry_wasted_at_equal_rescue"]


def rows(n: int, seed: int = 0) -> list[LogRow]:
    """Logged by a policy that picks at random, at most three attempts; dense steering passes twice as often."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        attempts: list[Any] = [("retry", False)]
        for _ in range(3):
            op = str(rng.choice(["retry", "dense_steer"], p=[0.7, 0.3]))
            attempts.append((op, bool(rng.random() < (0.4 if op == "dense_steer" else 0.2))))
            if attempts[-1][1]:
                break
        found.append(LogRow(str(i), "m", "t", "samples", None, tuple(attempts)))
    return found


def test_the_stepwise_estimate_is_inverse_propensity_weighting_and_finds_the_truth() -> None:
    log = rows(3000)
    plan = ("dense_steer", "retry")
    found = sequence_value(log, plan)
    total, at_risk = 0.0, {0: len(log), 1: 0}
    made_, passed = [0, 0], [0, 0]
    followers = log
    for s in range(2):
        at_risk[s] = len(followers)
        took = [r for r in followers if len(r.attempts) > s + 1 and r.attempts[s + 1][0] == plan[s]]
        made_[s], passed[s] = len(took), sum(r.attempts[s + 1][1] for r in took)
        followers = [r for r in took if not r.attempts[s + 1][1]]
        weight = np.prod([at_risk[j] / made_[j] for j in range(s + 1)])
        total += passed[s] * weight / len(log)
    assert found.value == pytest.approx(total)
    assert found.low < 1 - 0.6 * 0.8 < found.high
    assert found.support == tuple(made_)
    assert found.propensity == pytest.approx([made_[j] / at_risk[j] for j in range(2)])


def test_without_support_there_is_no_estimate() -> None:
    with pytest.raises(SupportError, match="attempt 2, tool after retry: the log made it 0 times") as caught:
        sequence_value(rows(500), ("retry", "tool"))
    assert (caught.value.step, caught.value.tries) == (1, 0)
    with pytest.raises(SupportError, match="attempt 1"):
        remedy_rates(rows(10))
    with pytest.raises(ConfigError, match="remedies is empty"):
        sequence_value(rows(10), ())


def test_remedy_rates_leave_out_what_was_seldom_tried() -> None:
    found = remedy_rates(rows(4000), min_tries=20)
    assert found["dense_steer"].low < 0.4 < found["dense_steer"].high
    assert sum(e.support[0] for e in found.values()) == 4000
    assert "retry" in remedy_rates(rows(400), min_tries=200)
    assert "dense_steer" not in remedy_rates(rows(400), min_tries=200)


def test_the_command_line(tmp_path: Path) -> None:
    profile = made(6)
    columns = ["cell", "model", "task", "problem_id", "n_failed_rollouts", *profile.features, *profile.rates]
    lines = [",".join(columns)]
    for i in range(len(profile)):
        numbers = [*(c[i] for c in profile.features.values()), *(c[i] for c in profile.rates.values())]
        lines.append(
            ",".join([profile.cell[i], profile.model[i], "x", str(i), "5", *(repr(float(v)) for v in numbers)])
        )
    file = tmp_path / "p.csv"
    file.write_text("\n".join(lines) + "\n")
    app = typer.Typer()
    app.command()(command)
    asked = ["--policy", "retry", "--policy", "learned", "--budget", "1", "--budget", "3", "--orders", "4", "--json"]
    result = CliRunner().invoke(app, [str(file), *asked, "--seed", "1"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found["mean"]) == {"retry", "learned"}
    assert set(found["mean"]["learned"]["rescue_within"]) == {"1", "3"}
    assert found["seed"] == 1
    wrong = CliRunner().invoke(app, [str(file), "--policy", "wish"])
    assert wrong.exit_code == 1
    assert "does not exist" in wrong.output


def test_a_sweep_on_ray_gives_what_threads_give() -> None:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    given = made(40)
    runs = [simulate(given, ("retry", "learned"), orders=8, workers=2, engine=e) for e in ("threads", "ray")]
    assert runs[0].as_dict() == runs[1].as_dict()


def test_a_log_is_played_like_a_profile(tmp_path: Path) -> None:
    log = rows(400)
    (cell,) = cells_of(Log(tuple(log)))
    retry, dense = (REMEDIES.index(op) for op in ("retry", "dense_steer"))
    assert (cell.name, len(cell.rates)) == ("m|t", 400)
    assert [REMEDIES[i] for i in np.flatnonzero(cell.available)] == ["retry", "dense_steer"]
    tries, passes = np.sum([row.tally("retry") for row in log], axis=0)
    untried = [i for i, row in enumerate(log) if not row.tally("retry")[0]]
    assert cell.rates[untried, retry] == pytest.approx(passes / tries)
    assert cell.rates[:, dense].mean() > 1.5 * cell.rates[:, retry].mean()
    file = tmp_path / "log.jsonl"
    lines = [{"schema": 2, **{name: getattr(row, name) for name in row.__slots__}} for row in log]
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [str(file), "--orders", "4", "--json"])
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)["mean"]) == {"retry", "round_robin", "default", "learned"}
    result = CliRunner().invoke(app, [str(file), "--policy", "fixed:dense_steer+retry", "--orders", "4", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["cells"]["m|t"]
    assert found["fixed:dense_steer+retry"]["rescue_within"]["2"] > found["retry"]["rescue_within"]["2"]
    with pytest.raises(ConfigError, match=r"nothing was measured of 'retry' in m\|t"):
        cells_of(Log((LogRow("s", "m", "t", "samples", None, (("retry", False), ("tool", True))),)))
    with pytest.raises(ConfigError, match="no step of this log failed"):
        cells_of(Log((LogRow("s", "m", "t", "samples", None, (("retry", True),)),)))
