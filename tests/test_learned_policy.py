"""The learned policy: its model against literal sums, its belief as a value, its decisions branch by branch."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from diagnoses import DECODING, ONE, diagnosis

from rfx_agent import Recovery, Revise, Step, Verdict
from rfx_agent.budgets.step import Ledger, RetryBudget
from rfx_agent.errors import ConfigError
from rfx_agent.policies import Belief, LearnedPolicy, MemoryPolicyStore, Policy, PolicyStore, PopulationPrior, Worth
from rfx_agent.policies.belief import seen_in
from rfx_agent.policies.population import REMEDIES, Hypotheses, hypotheses, ordered, predict, weigh
from rfx_agent.policies.worth import choose
from rfx_agent.remedies import Retry
from rfx_agent.testing import ScriptedSampler, ScriptedVerifier
from rfx_agent.verifiers import FunctionVerifier

SMALL = PopulationPrior(size=64)
NONE = (0,) * len(REMEDIES)


def tries(**counts: int) -> tuple[int, ...]:
    return tuple(counts.get(op, 0) for op in REMEDIES)


def test_one_hypothesis_is_the_beta_integral_of_the_definition() -> None:
    worlds = Hypotheses(PopulationPrior(size=1, centre_sd=0.0, spread_sd=0.0, centre=-0.5, spread=2.0))
    # No draw is left with one hypothesis: offsets are 0 and strengths their medians, 5 and 0.9.
    points, weights = np.polynomial.hermite_e.hermegauss(15)
    expected_fail, expected_both = 0.0, 0.0
    for x, w in zip(points, weights / weights.sum(), strict=True):
        m = 1 / (1 + math.exp(0.5 - 2.0 * x))
        # retry fails twice, dense steering fails once: Beta-binomial, remedy by remedy
        fail = (5 * (1 - m) / 5) * ((5 * (1 - m) + 1) / 6) * (1 - m)
        expected_fail += w * fail
        expected_both += w * fail * m  # a remedy that was not tried passes with its mean
    table = worlds.table(tries(retry=2, dense_steer=1))
    assert table[0, -1] == pytest.approx(expected_fail, rel=1e-5)
    assert table[0, REMEDIES.index("local_temp")] == pytest.approx(expected_both, rel=1e-5)


def test_probabilities_of_all_remedies_within_three_attempts_sum_to_one() -> None:
    worlds = hypotheses(SMALL)
    sequence = ("retry", "dense_steer", "retry")
    total = np.zeros(SMALL.size)
    for b, remedy in enumerate(sequence):
        before = tries(**{op: sequence[:b].count(op) for op in set(sequence[:b])})
        total += np.exp(worlds.log_likelihood(before, REMEDIES.index(remedy)))
    total += np.exp(worlds.log_likelihood(tries(retry=2, dense_steer=1), len(REMEDIES)))
    np.testing.assert_allclose(total, 1, rtol=1e-4)


def test_a_failure_lowers_every_belief_and_its_own_operators_most() -> None:
    policy = LearnedPolicy()
    before, after = policy.expected({}), policy.expected({"retry": 1})
    assert all(after[op] < before[op] for op in REMEDIES)
    drop = {op: after[op] / before[op] for op in ("retry", "local_temp", "dense_steer")}
    assert drop["retry"] < drop["local_temp"] < drop["dense_steer"]


@pytest.mark.parametrize("remedies", list(itertools.combinations_with_replacement(("retry", "dense_steer"), 3)))
def test_another_failed_attempt_never_raises_a_belief(remedies: tuple[Any, ...]) -> None:
    policy = LearnedPolicy()
    counts = {op: remedies.count(op) for op in remedies}
    before = policy.expected(counts)
    for op in DECODING:
        after = policy.expected({**counts, op: counts.get(op, 0) + 1})
        assert all(after[k] <= before[k] + 1e-6 for k in DECODING)


def test_before_any_outcome_operators_are_alike_and_variety_pays() -> None:
    policy = LearnedPolicy()
    first = policy.expected({})
    assert max(first.values()) - min(first.values()) < 0.03
    second = policy.expected({"retry": 1})
    assert max(second, key=lambda op: second[op]) != "retry"


def test_it_learns_which_operator_rescues() -> None:
    # Four in ten pass with dense steering, one in twenty with a retry, and no failure saw both.
    belief = Belief({((), "dense_steer"): 40, ((("dense_steer", 1),), None): 60} | {((), "retry"): 5})
    belief += Belief({((("retry", 1),), None): 95})
    policy = LearnedPolicy(belief=belief)
    rescue = policy.expected({})
    assert rescue["dense_steer"] > rescue["retry"] + 0.15
    assert policy.decide(diagnosis(), Ledger()).remedy == "dense_steer"


def test_beliefs_add_up_whatever_the_order_and_come_back_from_json() -> None:
    one = Belief().seen({"retry": 2}, "dense_steer").seen({"retry": 1})
    two = Belief().seen({}, "retry").seen({"retry": 1})
    assert one + two == two + one
    assert (one + two).failures == 4
    assert Belief.from_json((one + two).to_json()) == one + two
    assert (one + two).to_json() == (two + one).to_json()
    assert LearnedPolicy(belief=one + two).expected({}) == pytest.approx(LearnedPolicy(belief=two + one).expected({}))
    assert one.scaled(0.5).failures == 1
    assert Belief.from_json(one.scaled(0.25).to_json()) == one.scaled(0.25)


def test_attempts_are_read_up_to_the_first_pass() -> None:
    assert Belief().of([("retry", False), ("tool", True), ("retry", False)]) == Belief().seen({"retry": 1}, "tool")
    assert Belief().of([("retry", False), ("human", True)]) == Belief().seen({"retry": 1})
    assert Belief().of([]) == Belief()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "not what to_json writes"),
        ('{"v": 9, "remedies": []}', "version 9"),
        ('{"v": 1, "remedies": [{"failed": {"A wish": 1}, "by": null, "n": 1}]}', "'A wish' is no remedy"),
        ('{"v": 1, "remedies": [{"failed": {"retry": 1}, "by": "human", "n": 1}]}', "'human' is no remedy"),
        ('{"v": 1, "remedies": [{"failed": {"retry": 1}, "by": 7, "n": 1}]}', "7 is no remedy"),
        ('{"v": 1, "remedies": [{"failed": {"retry": -1}, "by": null, "n": 1}]}', "failed attempts of retry is -1"),
        ('{"v": 1, "remedies": [{"failed": {"retry": 1}, "by": null, "n": -1}]}', "n is -1"),
        ('{"v": 1, "remedies": [{"failed": {"retry": 1}, "by": null, "n": NaN}]}', "n is nan"),
        ("{", "not what to_json writes"),
    ],
)
def test_what_is_no_belief_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Belief.from_json(text)


def test_workers_share_a_belief_through_a_store() -> None:
    store = MemoryPolicyStore()
    assert isinstance(store, PolicyStore)
    for by in ("retry", "dense_steer", None):
        store.add(Belief().seen({"local_temp": 1}, by))
    shared = LearnedPolicy().refreshed(store)
    assert shared.belief.failures == 3
    assert LearnedPolicy().belief == Belief()  # values: nobody else's policy changed


def test_memory_bounds_what_a_belief_counts_for() -> None:
    many = Belief({((("retry", 1),), None): 1e6, ((), "retry"): 1e6})
    sure = LearnedPolicy(belief=many, memory=1e9, prior=SMALL)
    bounded = LearnedPolicy(belief=many, memory=5, prior=SMALL)
    assert weigh(sure.evidence())[None].max() > 0.99
    assert sure.expected({}) != bounded.expected({})


def test_the_choice_is_by_rescue_per_cost_and_stops_where_nothing_is_worth_it() -> None:
    k = len(REMEDIES)
    rescue = np.full((1, k), 0.01)
    rescue[0, REMEDIES.index("retry")] = 0.3
    rescue[0, REMEDIES.index("dense_steer")] = 0.4
    everything = np.ones(k, bool)
    assert REMEDIES[choose(rescue, Worth(), everything)[0]] == "dense_steer"
    dear = Worth(attempt={"dense_steer": 2.0})
    assert REMEDIES[choose(rescue, dear, everything)[0]] == "retry"  # 0.3 / 1 against 0.4 / 2
    assert REMEDIES[choose(rescue / 30, Worth(), everything)[0]] == "dense_steer"  # 1.3 % is worth 1 / 100
    assert choose(rescue / 50, Worth(), everything)[0] == -1  # 0.8 % is not
    assert choose(rescue / 10, Worth(rescue=20.0, minute=1.0), everything)[0] == -1  # 4 % is below 1 / 20
    assert choose(rescue, Worth(), np.zeros(k, bool))[0] == -1
    # A person who answers all cases for nothing is always the better choice.
    assert choose(rescue, Worth(minutes=0.0, answered=1.0), everything)[0] == -1


def test_decisions_branch_by_branch() -> None:
    policy = LearnedPolicy()
    assert isinstance(policy, Policy)
    assert policy.decide(diagnosis(passed="r2"), Ledger()).route == "accept"
    assert policy.decide(diagnosis(blocked="no model", cost={}), Ledger()).reason == "sampler_error"
    assert policy.decide(diagnosis(cost={}), Ledger()).reason == "no_route"
    assert policy.decide(diagnosis(), Ledger(RetryBudget(samples=0))).reason == "budget:samples"
    decision = policy.decide(diagnosis(cost={"retry": ONE}), Ledger())
    assert (decision.route, decision.remedy, decision.regime) == ("resample", "retry", "stochastic")
    assert set(decision.expected) == {"retry"}
    assert policy.decide(diagnosis(), Ledger()) == policy.decide(diagnosis(), Ledger())
    hopeless = {"retry": 20, "dense_steer": 20, "sparse_steer": 20, "local_temp": 20}
    spent = diagnosis(draws=21, failed=hopeless, cost=dict.fromkeys(DECODING[:3], ONE))
    decision = LearnedPolicy(worth=Worth(rescue=20.0, minute=1.0)).decide(spent, Ledger())
    assert (decision.route, decision.reason, decision.regime) == ("escalate", "not_worth", "out_of_reach")
    assert decision.sentence.startswith("80 attempts failed: the best option left, ")
    assert max(decision.expected.values()) < 0.05
    # What is worth five times as much is worth another attempt.
    assert LearnedPolicy(worth=Worth(rescue=1e4)).decide(spent, Ledger()).reason.startswith("learned:")


def test_rounds_say_nothing_and_failed_attempts_count() -> None:
    policy = LearnedPolicy()
    given = diagnosis(draws=4, tried={"retry": 3, "dense_steer": 9}, failed={"retry": 3})
    expected = policy.expected({"retry": 3})
    assert policy.decide(given, Ledger()).expected == pytest.approx({op: expected[op] for op in DECODING})


def test_a_failure_of_which_every_answer_was_cut_has_no_regime() -> None:
    cut = diagnosis(kinds={"cut": 3}, kind="cut")
    assert LearnedPolicy().decide(cut, Ledger()).reason.startswith("learned:")
    assert LearnedPolicy().decide(cut, Ledger()).regime is None
    assert LearnedPolicy().decide(replace(cut, kinds={"cut": 3, "wrong": 1}), Ledger()).regime is not None


def test_a_failure_of_which_every_answer_was_cut_is_not_out_of_reach() -> None:
    decision = LearnedPolicy(worth=Worth(rescue=0.0, minute=0.0)).decide(diagnosis(kinds={"cut": 3}), Ledger())
    assert (decision.reason, decision.regime) == ("not_worth", None)


# Remedies that the prior was not chosen on.

MINE = ("revise", "delegate_large", "look_up")


def test_names_are_open_and_their_order_is_the_same_for_all() -> None:
    assert ordered(MINE) == ordered((*reversed(MINE), "retry")) == (*REMEDIES, *sorted(MINE))
    assert ordered(()) == REMEDIES
    expected = LearnedPolicy().expected(dict.fromkeys(MINE, 0))
    assert tuple(expected) == ordered(MINE)
    assert all(0 < p < 1 for p in expected.values())


def test_a_further_remedy_leaves_what_is_believed_of_the_others() -> None:
    belief = Belief().seen({"retry": 2}, "dense_steer").seen({"retry": 1, "tool": 1})
    policy = LearnedPolicy(belief=belief, prior=SMALL)
    alone, beside = policy.expected({"retry": 1}), policy.expected({"retry": 1} | dict.fromkeys(MINE, 0))
    assert {op: beside[op] for op in REMEDIES} == pytest.approx(alone)
    # Two remedies that nothing is known of are two draws of one prior, and not the same draw.
    assert beside["revise"] == pytest.approx(beside["look_up"], abs=0.1)
    assert beside["revise"] != beside["look_up"]


def test_it_learns_which_remedy_of_ones_own_rescues() -> None:
    belief = Belief({((), "revise"): 40, ((("revise", 1),), None): 10, ((("retry", 1),), None): 50})
    given = diagnosis(cost=dict.fromkeys(("retry", "revise", "look_up"), ONE), told=True)
    decision = LearnedPolicy(belief=belief).decide(given, Ledger())
    assert (decision.route, decision.remedy, decision.reason) == ("revise", "revise", "learned:revise")
    assert (decision.regime, decision.told) == ("structural", True)
    assert decision.expected["revise"] > decision.expected["look_up"] > decision.expected["retry"]
    assert set(decision.expected) == {"retry", "revise", "look_up"}
    assert decision.sentence == (
        f"0 attempts failed: revise rescues with {decision.expected['revise']:.0%}, the best for its cost, going by "
        "100 failures before."
    )
    assert belief.attempts() == {"revise": 50, "retry": 50}
    assert Belief.from_json(belief.to_json()) == belief


def test_a_cost_is_given_by_name() -> None:
    worth = Worth(attempt={"revise": 2.0, "look_up": 0.25}, otherwise=0.5)
    assert worth.costs(("retry", "look_up", "revise")).tolist() == [0.5, 0.25, 2.0]
    rescue = np.array([[0.2, 0.1, 0.5]])
    names = ("retry", "look_up", "revise")
    chosen = [choose(rescue, w, np.ones(3, bool), None, names)[0] for w in (worth, Worth())]
    assert [names[i] for i in chosen] == ["retry", "revise"]  # 0.2 / 0.5 and 0.1 / 0.25 are alike: the first


def test_what_was_never_tried_is_not_given_up_unseen() -> None:
    hopeless = Belief({((("retry", 2),), None): 200})
    stuck = diagnosis(draws=9, cost=dict.fromkeys(("retry", "dense_steer"), ONE))
    old = Worth(rescue=20.0, minute=1.0)  # an attempt pays from 5 % on
    decision = LearnedPolicy(belief=hopeless, worth=old).decide(stuck, Ledger())
    assert decision.expected["dense_steer"] < 0.05
    assert decision.remedy == "dense_steer"
    once = replace(stuck, failed={"dense_steer": 1})
    assert LearnedPolicy(belief=hopeless, worth=old).decide(once, Ledger()).route == "escalate"
    assert LearnedPolicy(belief=hopeless, worth=old, explore=0).decide(stuck, Ledger()).route == "escalate"
    assert hopeless.attempts() == {"retry": 400}


def test_the_candidate_is_no_attempt_and_each_draw_of_a_round_is_one() -> None:
    sampler = ScriptedSampler([str(i) for i in range(20)])
    policy = LearnedPolicy(worth=Worth(rescue=1e6))
    recovery = Recovery(sampler, ScriptedVerifier([]), remedies=[Retry()], policy=policy, concurrency=3)
    case = recovery.run("What is 6 times 7?", "0")
    assert [len(x.messages) for x in sampler.requests] == [1] * 4  # twelve attempts, three at once
    for made, decision in zip((0, 3, 6, 9), case.decisions, strict=False):
        assert decision.expected["retry"] == pytest.approx(policy.expected({"retry": made})["retry"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LearnedPolicy(memory=0), "memory is 0"),
        (lambda: LearnedPolicy(explore=-1), "explore is -1"),
        (lambda: Worth(rescue=math.nan), "rescue is nan"),
        (lambda: Worth(answered=2.0), "answered is 2.0"),
        (lambda: Worth(attempt={"A wish": 1.0}), "attempt names 'A wish'"),
        (lambda: Worth(attempt={"human": 1.0}), "attempt names 'human'"),
        (lambda: Belief().seen({"human": 1}), "'human' is no remedy"),
        (lambda: Belief().scaled(2), "share is 2"),
        (lambda: PopulationPrior(size=0), "size is 0"),
    ],
)
def test_parameters_that_cannot_work_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_in_the_graph_it_recovers_and_learns_from_the_case() -> None:
    sampler = ScriptedSampler(["1", "2", "42"])
    policy = LearnedPolicy(worth=Worth(rescue=1000.0))
    recovery = Recovery(sampler, ScriptedVerifier(["42"]), policy=policy)
    case = recovery.run(Step.of("What is 6 times 7?"), "0")
    assert case.outcome is not None
    assert case.outcome.status == "rescued"
    assert case.decisions[0].policy == "learned/2"
    learned = policy.learn(case)
    assert learned.belief == seen_in(case)
    assert learned.belief.failures == 1
    ((failed, by),) = learned.belief.histories
    assert (sum(n for _, n in failed), by) == (2, case.outcome.by)


def test_in_the_graph_it_learns_of_a_remedy_of_ones_own() -> None:
    def judge(text: str) -> Verdict:
        return Verdict(text == "42", answer=text, feedback=None if text == "42" else "it is between 40 and 44")

    belief = Belief({((), "revise"): 40, ((("retry", 1),), None): 50})
    policy = LearnedPolicy(belief=belief)
    recovery = Recovery(
        ScriptedSampler(["41", "42"]), FunctionVerifier(judge), policy=policy, remedies=[Retry(), Revise()]
    )
    case = recovery.run("What is 6 times 7?", "40")
    assert [x.remedy for x in case.decisions] == ["revise", "revise", None]
    assert seen_in(case) == Belief().seen({"revise": 1}, "revise")
    assert policy.learn(case).belief == belief + seen_in(case)


def test_a_candidate_that_passed_teaches_nothing() -> None:
    recovery = Recovery(sampler=ScriptedSampler(["42"]), verifier=ScriptedVerifier(["42"]))
    assert seen_in(recovery.run(Step.of("What is 6 times 7?"), "42")) == Belief()
    assert seen_in(recovery.run(Step.of("What is 6 times 7?"))) == Belief()


def test_predictions_are_shares_whatever_the_weights() -> None:
    weights = np.random.default_rng(0).random((3, SMALL.size))
    rescue = predict(weights, hypotheses(SMALL).table(tries(retry=30, tool=50)))
    assert rescue.shape == (3, len(REMEDIES))
    assert ((rescue >= 0) & (rescue <= 1)).all()
    # Attempts beyond those that are told apart change nothing.
    np.testing.assert_array_equal(hypotheses(SMALL).table(tries(retry=24)), hypotheses(SMALL).table(tries(retry=40)))
