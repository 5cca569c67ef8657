"""Two-model evidence through the engine: scored, calibrated, routed to a steerer; and what happens when it breaks."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scenarios import STEP

from rfx_agent import Case, Recovery, RetryBudget, Rollout, SampleRequest, SampleResult, Step, Usage, recovery_graph
from rfx_agent.adapters.graph.recovery_graph import outcome_of, step_input
from rfx_agent.codec import load
from rfx_agent.errors import SamplerError
from rfx_agent.evidence.calibration import Calibration
from rfx_agent.evidence.features import TopLogprobs, evidence_of
from rfx_agent.records import ScoreResult, Spend
from rfx_agent.testing import ScriptedSampler, ScriptedVerifier


def table(seed: int) -> TopLogprobs:
    """Ten positions, six alternatives; the taken token is the first of each row, whatever the seed."""
    rng = np.random.default_rng(seed)
    values = np.log(rng.dirichlet(np.ones(6), size=10))
    ids = np.arange(60).reshape(10, 6)
    return TopLogprobs(ids, values, ids[:, 0])


def failing(i: int) -> Rollout:
    return Rollout(f"wrong {i}", response_id=f"x:{i}", usage=Usage(5, 10, 1), tokens=("ab ",) * 10, logprobs=table(i))


class Ancestor:
    name = "ancestor"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def score(self, step: Step, rollouts: Sequence[Rollout]) -> ScoreResult:
        if self.error is not None:
            raise self.error
        return ScoreResult(tuple(table(100 + i) for i, _ in enumerate(rollouts)), Usage(15 * len(rollouts), 0, 1))

    async def ascore(self, step: Step, rollouts: Sequence[Rollout]) -> ScoreResult:
        return self.score(step, rollouts)


class Steering:
    name = "steering"
    operators = ("dense_steer", "sparse_steer", "sparse_steer_random")

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[tuple[str, int | None]] = []

    def steer(self, step: Step, operator: str, rollout: Rollout, request: SampleRequest) -> SampleResult:
        if self.error is not None:
            raise self.error
        self.asked.append((operator, rollout.junction))
        return SampleResult((Rollout("42", usage=Usage(5, 10, 1)),), Usage(5, 10, 1))

    async def asteer(self, step: Step, operator: str, rollout: Rollout, request: SampleRequest) -> SampleResult:
        return self.steer(step, operator, rollout, request)


class Traces:
    def __init__(self) -> None:
        self.kept: list[Rollout] = []

    def put(self, step_id: str, rollouts: Sequence[Rollout]) -> None:
        self.kept += rollouts


def calibrated() -> Calibration:
    """A population around these failures in which their spread stands out, so that the rule asks for dense steering."""
    found = evidence_of([failing(i) for i in range(3)], [table(100 + i) for i in range(3)]).features
    assert found is not None
    columns = {
        name: value + np.array([-0.3, 0.2] * 20) - (0.1 if name == "spread" else -0.1) for name, value in found.items()
    }
    return Calibration.from_failures(columns, name="ours", pair="a/b", task="t")


def recovery(**parts: Any) -> Recovery:
    """Draws three times at once before it decides, unless told otherwise."""
    base: dict[str, Any] = {
        "sampler": ScriptedSampler([failing(i) for i in range(3)], last="wrong"),
        "verifier": ScriptedVerifier(["42"]),
        "scorer": Ancestor(),
        "extra_samples": 3,
    }
    return Recovery(**(base | parts))


@pytest.mark.parametrize("bought", [False, True], ids=["at once", "one by one"])
@pytest.mark.parametrize("way", ["sync", "async", "graph"])
def test_calibrated_features_route_to_the_steerer(way: str, bought: bool) -> None:
    """The draws that the features are of: as many as were asked for, or as many as the policy buys."""
    steerer = Steering()
    r = recovery(steerer=steerer, calibration=calibrated(), extra_samples=None if bought else 3)
    if way == "graph":
        state = recovery_graph(r).invoke(step_input(STEP, "41"))
        case, outcome = load(Case, state["recovery"]), outcome_of(state)
    else:
        case = r.run(STEP, "41") if way == "sync" else asyncio.run(r.arun(STEP, "41"))
        assert case.outcome is not None
        outcome = case.outcome
    assert (outcome.status, outcome.by) == ("rescued", "dense_steer")
    draws, (steered, _) = case.decisions[:-2], case.decisions[-2:]
    assert [(d.remedy, d.reason) for d in draws] == [("retry", "evidence:draws")] * (3 if bought else 0)
    assert [d.evidence for d in draws] == ["samples", "two_model", "two_model"][: len(draws)]
    assert steered.evidence == "two_model"
    assert steered.reason == "rule:dense_steer"
    assert steered.budget_after is not None
    operator, junction = steerer.asked[0]
    assert operator == "dense_steer"
    assert junction is not None
    assert junction % 3 == 0  # three characters a token


def test_no_draws_are_bought_for_features_that_have_nothing_to_choose_from() -> None:
    alone = recovery(calibration=calibrated(), extra_samples=None, budget=RetryBudget(attempts=2)).run(STEP, "41")
    assert [d.reason for d in alone.decisions] == ["worth:retry", "gate:stochastic", "budget:attempts"]
    parts: dict[str, Any] = {"steerer": Steering(), "calibration": calibrated(), "extra_samples": None}
    unscored = recovery(scorer=None, **parts).run(STEP, "41")
    assert [d.reason for d in unscored.decisions] == ["worth:retry", "worth:dense_steer", "passed"]


def test_features_outside_their_calibration_are_reported_and_do_not_route() -> None:
    case = recovery(steerer=Steering()).run(STEP, "41")  # against the published population
    first = case.decisions[0]
    assert first.evidence == "two_model"
    assert first.features is not None
    assert not first.reason.startswith("rule:")
    assert case.diagnosis is not None
    assert any("lies outside calibration" in caveat for caveat in case.diagnosis.caveats)


@pytest.mark.parametrize("error", [RuntimeError("ancestor is down"), ValueError("bad ids")])
def test_a_scorer_that_fails_degrades_the_evidence_and_says_so(error: Exception) -> None:
    case = recovery(scorer=Ancestor(error)).run(STEP, "41")
    assert case.decisions[0].evidence == "one_model"
    assert any(str(error) in note for note in case.notes)


def test_scoring_is_paid_for_and_left_out_where_it_cannot_be() -> None:
    plain = recovery(scorer=None).run(STEP, "41").ledger.spent
    scored = recovery().run(STEP, "41").ledger.spent
    assert (scored.tokens - plain.tokens, scored.calls - plain.calls) == (45, 1)
    long = ScriptedSampler([replace(failing(i), text="wrong" * 400) for i in range(3)], last="wrong")
    poor = recovery(sampler=long, budget=RetryBudget(tokens=2000), max_tokens=500).run(STEP, "41")
    assert poor.decisions[0].evidence == "one_model"
    assert any("cannot pay for the ancestor's scores: tokens" in note for note in poor.notes)


def test_a_steerer_that_fails_costs_its_attempt_and_blocks_nothing() -> None:
    steerer = Steering(SamplerError("out of memory", calls=1))
    sampler = ScriptedSampler([failing(i) for i in range(3)], last="42")
    case = recovery(sampler=sampler, steerer=steerer, calibration=calibrated()).run(STEP, "41")
    assert case.outcome is not None
    assert case.outcome.status == "rescued"
    assert case.blocked == ""
    first = case.attempts[1]
    assert (first.remedy, first.got) == ("dense_steer", 0)
    assert first.note == "steering gave nothing: out of memory"
    assert case.decisions[1].remedy != "dense_steer"


def test_steering_is_paid_for_before_it_is_asked_for() -> None:
    """Both models read the draw, twice at most; where that cannot be paid, it is no option."""
    steerer = Steering()
    long = [replace(failing(i), text="wrong" * 400) for i in range(3)]
    parts: dict[str, Any] = {"steerer": steerer, "calibration": calibrated(), "max_tokens": 50}
    rich = recovery(sampler=ScriptedSampler(long, last="wrong"), budget=RetryBudget(tokens=16_000), **parts)
    assert rich.run(STEP, "41").ledger.reserved == Spend()
    assert len(steerer.asked) == 1
    poor = recovery(sampler=ScriptedSampler(long, last="wrong"), budget=RetryBudget(tokens=7_500), **parts)
    assert poor.run(STEP, "41").decisions[0].remedy != "dense_steer"
    assert len(steerer.asked) == 1


def test_raw_tables_go_to_the_trace_store_once_and_no_further() -> None:
    traces = Traces()
    case = recovery(traces=traces).run(STEP, "41")
    raw = [x for x in traces.kept if x.logprobs is not None]
    assert [x.text for x in raw] == ["wrong 0", "wrong 1", "wrong 2"]
    assert all(x.logprobs is None and x.tokens is None for x in case.rollouts)
